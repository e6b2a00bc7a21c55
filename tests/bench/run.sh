#!/usr/bin/env bash
# Figures: the same work straight to its server, through the gateway, and through
# what others have, in one run. Asserts nothing.
set -euo pipefail

here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
# shellcheck source=../../deploy/quickstart/common.sh
. "$here/../../deploy/quickstart/common.sh"
SELF=bench

usage() {
	cat <<'USAGE'
Usage: tests/bench/run.sh [--output DIR] [--seconds N] [--watches N] [--readme]
                          [--short] [--only peers|cluster]

Two comparisons, each with the same client on the same machine in one run.

peers: straight to an origin that answers at once, through Towline, and through
konnectivity (built from the Go module proxy) in both of its modes, each way in
turns and in both orders: small GETs, downloads and uploads, watches and exec idle
and beside bulk, readers that never read, processor time, memory, cut connections.

cluster: small GETs, a large list, exec, cp and memory, straight to a real API
server and through the gateway; and what the assertion on each request, a decision
of IAM and resumable sessions cost. Brings up a gateway and a cluster of its own
(named 'bench') and takes them down again.

  --output DIR  where peers.txt, peers.json, report.txt and report.json go
                (default: a new directory)
  --seconds N   how long small GETs are asked for (default: 10; peers: 5)
  --watches N   how many watches are open at once (default: 1000; peers: 5000)
  --readme      put the peers' table into README.md
  --short       the peers with less of everything: seconds, for a look
  --only WHICH  one of the two

Examples
  sudo tests/bench/run.sh
  sudo tests/bench/run.sh --output /tmp/figures --seconds 30
USAGE
}

output=''
measure=()
peers=()
only=''
while [ $# -gt 0 ]; do
	case $1 in
	-h | --help) usage && exit 0 ;;
	--output | --seconds | --watches)
		[ -n "${2:-}" ] || die "$1 needs a value" 'tests/bench/run.sh --help'
		if [ "$1" = --output ]; then
			output=$2
		else
			measure+=("$1" "$2")
			peers+=("$1" "$2")
		fi
		shift
		;;
	--readme) peers+=(--readme "$TOP/README.md") ;;
	--short)
		peers+=(--seconds 1 --mebibytes 128 --watches 500 --cuts 2 --rounds 1 --agents 100)
		;;
	--only)
		only=${2:-}
		case $only in
		peers | cluster) ;;
		*) die "--only '$only' is neither peers nor cluster" 'tests/bench/run.sh --help' ;;
		esac
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
cargo build --manifest-path "$TOP/Cargo.toml" --release --locked -p bench \
	-p towline -p towline-gateway -p towline-agent
bench=$CARGO_TARGET_DIR/release/bench

# konnectivity: its programs, built once for each go.mod, outside the tree.
konnectivity() {
	local sums directory=$here/konnectivity
	sums=$(cat "$directory/go.mod" "$directory/go.sum" | sha256sum | cut -c1-16)
	local built=$CACHE/store/konnectivity-$sums
	if [ ! -e "$built/agent" ]; then
		say 'building konnectivity'
		(cd "$directory" && CGO_ENABLED=0 GOWORK=off GOFLAGS=-buildvcs=false go build -trimpath -o "$built.new/" \
			sigs.k8s.io/apiserver-network-proxy/cmd/server sigs.k8s.io/apiserver-network-proxy/cmd/agent) >&2
		rm -rf "$built"
		mv "$built.new" "$built"
	fi
	printf '%s\n' "$built"
}

if [ "$only" != cluster ]; then
	say 'beside its peers'
	"$bench" peers --towline "$CARGO_TARGET_DIR/release" --konnectivity "$(konnectivity)" \
		--date "$(date -u +%Y-%m-%d)" --json "$output/peers.json" \
		--version "towline=$("$CARGO_TARGET_DIR/release/towline-gateway" --version | awk '{ print $NF }')" \
		--version "konnectivity=$(awk '$1 == "sigs.k8s.io/apiserver-network-proxy" { print $2 }' "$here/konnectivity/go.mod")" \
		--version "go=$(go env GOVERSION)" --version "rust=$(rustc --version | awk '{ print $2 }')" \
		"${peers[@]}" | tee "$output/peers.txt"
	[ "$only" != peers ] || exit 0
fi
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
