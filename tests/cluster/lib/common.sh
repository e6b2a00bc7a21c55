# shellcheck shell=bash
# Words, paths, locks and processes: what every other file here uses.

CLUSTER_HOME=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${TOWLINE_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/towline}
STATE=${TOWLINE_STATE:-/var/tmp/towline}
# Names of clusters are names of network namespaces: one set for the machine.
LOCKS=/run/lock/towline

# Debian keeps some programs where only root's PATH looks.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
[ -d /usr/local/go/bin ] && PATH=$PATH:/usr/local/go/bin

say() { printf 'cluster: %s\n' "$*" >&2; }

# die WHAT [WHAT TO DO]
die() {
	printf 'cluster: %s\n' "$1" >&2
	[ $# -lt 2 ] || printf '     do: %s\n' "$2" >&2
	exit 1
}

usage_error() {
	printf 'cluster: %s\n     do: tests/cluster/cluster --help\n' "$1" >&2
	exit 2
}

need_root() {
	[ "$(id -u)" -eq 0 ] ||
		die "'$1' makes network namespaces and containers, and needs root" "sudo tests/cluster/cluster $1 ..."
}

need_prerequisites() {
	"$CLUSTER_HOME/../prerequisites.sh" --check cluster >/dev/null ||
		die "this machine lacks what a cluster needs (above)" "tests/prerequisites.sh --install cluster"
}

seconds_since() { # EPOCHREALTIME value
	awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }'
}

case "$CACHE$STATE" in
*[!A-Za-z0-9._/+@-]*) die "TOWLINE_CACHE and TOWLINE_STATE are written into configurations: use plain paths ('$CACHE', '$STATE')" ;;
esac

# --- names and directories ---------------------------------------------------

check_name() {
	[[ $1 =~ ^[a-z0-9]([a-z0-9-]{0,22}[a-z0-9])?$ ]] ||
		die "'$1' cannot be the name of a cluster: use up to 24 lower-case letters, digits and dashes"
}

cluster_dir() { printf '%s/clusters/%s\n' "$STATE" "$1"; }

cluster_names() {
	local dir
	for dir in "$STATE"/clusters/*/; do
		[ -e "$dir/env" ] && basename "$dir"
	done
	return 0
}

# load_cluster NAME: sets DIR and everything in the cluster's env file.
load_cluster() {
	local others
	check_name "$1"
	DIR=$(cluster_dir "$1")
	if [ ! -e "$DIR/env" ]; then
		others=$(cluster_names | tr '\n' ' ')
		die "there is no cluster '$1' (there is: ${others:-none})" "tests/cluster/cluster up $1"
	fi
	# shellcheck disable=SC1091
	. "$DIR/env"
}

netns_path() { printf '/run/netns/towline-%s\n' "$1"; }

# After a restart of the machine the file may be there without the namespace.
netns_exists() { [ "$(stat --file-system --format %T "/run/netns/$1" 2>/dev/null)" = nsfs ]; }

# inside CMD...: in the network namespace of the loaded cluster. Not `ip netns
# exec`: that hides the cgroup mounts from the kubelet.
inside() { nsenter --net="/run/netns/$NETNS" "$@"; }

# with_lock FILE CMD...: one at a time; the lock ends with the command.
with_lock() {
	local file=$1 fd
	shift
	mkdir -p "$(dirname "$file")"
	exec {fd}>"$file"
	if ! flock --timeout 2 "$fd"; then
		say "waiting for another run that holds $file"
		flock --timeout 1800 "$fd" || die "another run has held $file for half an hour" "look at it: fuser -v $file"
	fi
	"$@" # not under '||': that would take 'set -e' away from all it calls
	exec {fd}>&-
}

# --- processes ---------------------------------------------------------------
# A process is remembered by its id together with its start time, so that an id
# that was given to another process later is never taken for ours.

start_time() { # PID
	local stat
	{ stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 1
	stat=${stat##*) }
	# shellcheck disable=SC2086
	set -- $stat
	[ "$1" != Z ] || return 1
	printf '%s\n' "${20}"
}

recorded_pid() { # COMPONENT: its pid if it is still alive
	local pid started
	{ read -r pid started <"$DIR/pids/$1"; } 2>/dev/null || return 1
	[ "$(start_time "$pid")" = "$started" ] || return 1
	printf '%s\n' "$pid"
}

running() { recorded_pid "$1" >/dev/null; }

# start COMPONENT CMD...: starts it in the namespace unless it runs, free of this
# shell, with its output in a log of its own.
start() {
	local component=$1 fd pid environment
	shift
	running "$component" && return 0
	mkdir -p "$DIR/pids" "$DIR/log"
	# None of the caller's settings: a proxy variable would send it astray.
	environment=(env -i PATH="$PATH" HOME="${HOME:-/root}" LANG=C)
	(
		# Nothing of the caller's either: a daemon that inherits a lock or a pipe
		# would hold it for its whole life.
		for fd in "/proc/$BASHPID/fd/"*; do
			fd=${fd##*/}
			[ "$fd" -le 2 ] || [ "$fd" -eq 255 ] || exec {fd}>&-
		done
		ulimit -n "$(ulimit -Hn)"
		cd "$DIR" || exit 1
		exec setsid nsenter --net="/run/netns/$NETNS" "${environment[@]}" "$@" \
			</dev/null >>"$DIR/log/$component.log" 2>&1
	) &
	pid=$!
	disown "$pid"
	printf '%s %s\n' "$pid" "$(start_time "$pid")" >"$DIR/pids/$component"
}

# stop_all COMPONENT...: asks, waits up to 5 s, then insists.
stop_all() {
	local component pid deadline=$((SECONDS + 5)) alive
	for component in "$@"; do
		pid=$(recorded_pid "$component") && kill -TERM "$pid" 2>/dev/null
	done
	while :; do
		alive=()
		for component in "$@"; do running "$component" && alive+=("$component"); done
		[ ${#alive[@]} -gt 0 ] || break
		if [ "$SECONDS" -ge "$deadline" ]; then
			for component in "${alive[@]}"; do
				pid=$(recorded_pid "$component") && kill -KILL "$pid" 2>/dev/null
			done
			sleep 0.2
			break
		fi
		sleep 0.05
	done
	for component in "$@"; do rm -f "$DIR/pids/$component"; done
	return 0
}

# wait_for SECONDS WHAT COMPONENT CMD...: until CMD succeeds; fails at once when
# the component has ended.
wait_for() {
	local limit=$1 what=$2 component=$3 began=$EPOCHREALTIME deadline=$((SECONDS + $1))
	shift 3
	until "$@" >/dev/null 2>&1; do
		if [ -n "$component" ] && ! running "$component"; then
			show_log "$component"
			say "$component ended before it was ready"
			return 1
		fi
		if [ "$SECONDS" -ge "$deadline" ]; then
			[ -z "$component" ] || show_log "$component"
			say "$what: not within $limit s"
			return 1
		fi
		sleep 0.1
	done
	say "$what ($(seconds_since "$began") s)"
}

show_log() { # COMPONENT
	[ -s "$DIR/log/$1.log" ] || return 0
	say "the last lines of $DIR/log/$1.log:"
	tail -n 15 "$DIR/log/$1.log" | sed 's/^/    /' >&2
}
