#!/usr/bin/env bash
# Figures: the same work straight to the API server and through the gateway, in
# one run. Asserts nothing.
set -euo pipefail

here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
# shellcheck source=../../deploy/quickstart/common.sh
. "$here/../../deploy/quickstart/common.sh"
SELF=bench

usage() {
	cat <<'USAGE'
Usage: tests/bench/run.sh [--output DIR] [--seconds N] [--watches N]

Measures small GETs, a large list, exec, cp and memory, straight to the API server
and through the gateway, with the same client on the same machine; and what the
assertion on each request, a decision of IAM and resumable sessions cost. Brings
up a gateway and a cluster of its own (named 'bench') and takes them down again.

  --output DIR  where report.txt and report.json go (default: a new directory)
  --seconds N   how long small GETs are asked for (default: 10)
  --watches N   how many watches are open at once (default: 1000)

Examples
  sudo tests/bench/run.sh
  sudo tests/bench/run.sh --output /tmp/figures --seconds 30
USAGE
}

output=''
measure=()
while [ $# -gt 0 ]; do
	case $1 in
	-h | --help) usage && exit 0 ;;
	--output | --seconds | --watches)
		[ -n "${2:-}" ] || die "$1 needs a value" 'tests/bench/run.sh --help'
		if [ "$1" = --output ]; then output=$2; else measure+=("$1" "$2"); fi
		shift
		;;
	*) die "unknown argument '$1'" 'tests/bench/run.sh --help' ;;
	esac
	shift
done
[ -n "$output" ] || output=$(mktemp -d)
mkdir -p "$output"
output=$(readlink -f "$output")

scene=$(mktemp -d)
quickstart=(env "XDG_STATE_HOME=$scene" "$TOP/deploy/quickstart.sh" --name bench)
trap 'status=$?; "${quickstart[@]}" down >/dev/null 2>&1 || true; rm -rf "$scene"; exit $status' EXIT
trap 'exit 130' INT TERM HUP

say 'building'
cargo build --manifest-path "$TOP/Cargo.toml" --release --locked -p bench
bench=$CARGO_TARGET_DIR/release/bench
"${quickstart[@]}" up >"$output/quickstart.log" 2>&1 || {
	tail -n 20 "$output/quickstart.log" >&2
	die 'the quick start did not come up (above)'
}
state=$scene/towline/bench

say 'making the objects'
admin=("$CLUSTER" kubectl bench)
"${admin[@]}" create namespace towline-bench
"$bench" objects | "${admin[@]}" -n towline-bench create -f - >/dev/null
until "${admin[@]}" -n towline-bench get serviceaccount default >/dev/null 2>&1; do sleep 0.2; done
"${admin[@]}" -n towline-bench run box --image busybox:latest --image-pull-policy Never --restart Never \
	--overrides '{"spec":{"terminationGracePeriodSeconds":0}}' -- sleep 1000000
"${admin[@]}" -n towline-bench wait --for condition=Ready --timeout 60s pod/box
head -c 268435456 /dev/urandom >"$scene/file"

# The agent's process: its pod's container has one.
agent_pid() {
	local id
	id=$("${admin[@]}" -n towline get pod -o 'jsonpath={.items[0].status.containerStatuses[0].containerID}')
	(
		# shellcheck disable=SC1091
		. "$("$CLUSTER" dir bench)/env"
		ctr --address "$CONTAINERD_SOCKET" --namespace k8s.io task ls | awk -v id="${id#containerd://}" '$1 == id { print $2 }'
	)
}
read -r gateway_pid _ <"$state/pids/gateway"
measure+=(--file "$scene/file" --process "gateway=$gateway_pid" --process "agent=$(agent_pid)")

# The same client, the same kubectl, the same machine. Through the gateway first:
# its memory is idle as it was started.
"${quickstart[@]}" env >"$scene/env"
# shellcheck disable=SC2016
through_gateway=(bash -euc '. "$0"; PATH='"$CACHE/bin"':$PATH; exec "$@"' "$scene/env")
# What one person may ask in a minute is asked in two seconds here.
for holder in '' --default; do
	"${through_gateway[@]}" towline quotas set requests_per_minute --project demo ${holder:+"$holder"} --limit 10000000 >/dev/null
done
say 'through the gateway'
"${through_gateway[@]}" \
	"$bench" measure --kubeconfig "$state/kubeconfig" "${measure[@]}" >"$output/gateway.json"
say 'straight to the API server'
"$CLUSTER" exec bench -- "$bench" measure --kubeconfig "$("$CLUSTER" dir bench)/admin.kubeconfig" \
	"${measure[@]}" >"$output/direct.json"
say 'assertions'
"$bench" assertions >"$output/assertions.json"
"$bench" decisions >"$output/decisions.json"
"$bench" sessions >"$output/sessions.json"

"$bench" report --direct "$output/direct.json" --gateway "$output/gateway.json" \
	--assertions "$output/assertions.json" --decisions "$output/decisions.json" \
	--sessions "$output/sessions.json" --json "$output/report.json" \
	--version "towline=$("$state/bin/towline-gateway" --version | awk '{ print $NF }')" \
	--version "kubernetes=$("${admin[@]}" version -o json | sed -n '/serverVersion/,$s/.*"gitVersion": "\(.*\)".*/\1/p')" \
	--version "rust=$(rustc --version | awk '{ print $2 }')" | tee "$output/report.txt"
say "all of it: $output/report.json"
