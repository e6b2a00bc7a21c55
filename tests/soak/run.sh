#!/usr/bin/env bash
# Clients of every kind while everything dies at random.
set -euo pipefail

here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
# shellcheck source=../../deploy/quickstart/common.sh
. "$here/../../deploy/quickstart/common.sh"
SELF=soak

usage() {
	cat <<'USAGE'
Usage: tests/soak/run.sh MINUTES [--seed N]

Two replicas on one PostgreSQL behind a load balancer, two real clusters with an
agent each, and clients of every kind: shells whose every line is looked at,
copies both ways, port-forwards, watches that have to see every event, GETs and
POSTs on connections that are kept alive. For so many minutes, one after the
other, at random: connections are reset or fall silent, packets are lost, agents
and replicas are killed or told to end while others take their place, PostgreSQL
goes away, API servers are killed.

Afterwards no byte may differ, each lost stream has to be one that the documents
say is lost, nothing may stand still, and open files, tasks and memory of every
part have to be where they were. The last line is 'N passed, M failed'; the exit
status is 0 if M is 0.

  --seed N    the same faults as another run that said it had this seed

Environment
  TOWLINE_BIN_DIR       the programs (default: built)
  TOWLINE_TEST_CLUSTER  the clusters: this name, and it with a 2 (default: it)

Examples
  sudo tests/soak/run.sh 2
  sudo tests/soak/run.sh 60 --seed 17
USAGE
}

minutes=''
seed=$((SRANDOM))
while [ $# -gt 0 ]; do
	case $1 in
	-h | --help) usage && exit 0 ;;
	--seed)
		[[ ${2:-} =~ ^[0-9]+$ ]] || die '--seed needs a number' 'tests/soak/run.sh --help'
		seed=$2
		shift
		;;
	*)
		[[ -z $minutes && $1 =~ ^[1-9][0-9]*$ ]] || die "'$1' is not a number of minutes" 'tests/soak/run.sh --help'
		minutes=$1
		;;
	esac
	shift
done
[ -n "$minutes" ] || die 'it needs a number of minutes' 'tests/soak/run.sh --help'

build=(cargo build --manifest-path "$TOP/Cargo.toml" --locked)
"${build[@]}" -p tests --features cluster --bin soak
[ -n "${TOWLINE_BIN_DIR:-}" ] || "${build[@]}" -p towline -p towline-gateway -p towline-agent
exec "$CARGO_TARGET_DIR/debug/soak" "$((minutes * 60))" "$seed"
