# shellcheck shell=bash
# What the quick start, the tests' runner and the benchmarks share: where things
# are built, the static programs, and programs that go on after the script.

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# Words, locks, and processes known by their id and start time.
# shellcheck source=../../tests/cluster/lib/common.sh
. "$TOP/tests/cluster/lib/common.sh"
SELF=quickstart

[ -d "${HOME:-/root}/.cargo/bin" ] && PATH=${HOME:-/root}/.cargo/bin:$PATH
# One cache for all scripts, and builds outside the tree.
export TOWLINE_CACHE=$CACHE
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$CACHE/target}
STATIC_TARGET=x86_64-unknown-linux-musl
STATIC_PROGRAMS=$CARGO_TARGET_DIR/$STATIC_TARGET/release
CLUSTER=$TOP/tests/cluster/cluster

say() { printf '%s: %s\n' "$SELF" "$*" >&2; }

# die WHAT [WHAT TO DO]
die() {
	say "$1"
	[ $# -lt 2 ] || printf '     do: %s\n' "$2" >&2
	exit 1
}

# build_static_programs: gateway, agent and command line, linked statically, so
# that they run in an empty image and on any Linux.
build_static_programs() {
	(cd "$TOP" && cargo build --release --locked --target "$STATIC_TARGET" \
		-p towline-gateway -p towline-agent -p towline >&2) ||
		die 'building the programs failed (above)'
}

agent_version() { "$STATIC_PROGRAMS/towline-agent" --version | awk '{ print $NF }'; }

# build_agent_image FILE NAME: an image of nothing but the agent.
build_agent_image() {
	"$CLUSTER" build tools >/dev/null
	"$("$CLUSTER" path tools)/mkimage" --name "$2" --file "$STATIC_PROGRAMS/towline-agent=/towline-agent:0755" \
		--entrypoint /towline-agent --user 65532:65532 --output "$1"
}

# launch COMPONENT CMD...: starts it free of this shell, with its output in a log
# of its own; its id and start time go to $DIR/pids.
launch() {
	local component=$1 fd pid
	shift
	mkdir -p "$DIR/pids" "$DIR/log"
	(
		# A daemon that inherits a lock or a pipe would hold it for its whole life.
		for fd in "/proc/$BASHPID/fd/"*; do
			fd=${fd##*/}
			[ "$fd" -le 2 ] || [ "$fd" -eq 255 ] || exec {fd}>&-
		done
		cd "$DIR" || exit 1
		exec setsid "$@" </dev/null >>"$DIR/log/$component.log" 2>&1
	) &
	pid=$!
	disown "$pid"
	printf '%s %s\n' "$pid" "$(start_time "$pid")" >"$DIR/pids/$component"
}
