#!/usr/bin/env bash
# All checks and tests, in the order in which they fail cheapest. Closes with one
# line that counts all tests.
set -euo pipefail

top=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
cd "$top"

usage() {
	cat <<'USAGE'
Usage: tests/run.sh [--fast | --full]

Checks and tests everything: formatting, lints, documentation, unit and
in-process tests, then whole programs on real Kubernetes clusters, Kubernetes'
own end-to-end tests through the gateway, and the quick start.

  --fast      leave out what needs a cluster (no root, no Go)
  --full      add what takes longer: the tests that kill each part 20 times, the
              end-to-end tests straight to the API server too, the benchmarks,
              ten minutes of fuzzing (needs a nightly Rust toolchain)
  -h, --help  this text

The last line is 'N passed, M failed'; the exit status is 0 if M is 0 and every
check passed. A check that fails (lints, a build that breaks) counts as one
failure. What each step said is kept under the build cache.

Environment
  CARGO_TARGET_DIR  where Rust code is built (default: in TOWLINE_CACHE)
  TOWLINE_CACHE     what is built once (default: ~/.cache/towline)

Examples
  tests/run.sh --fast
  sudo tests/run.sh
USAGE
}

tier=default
case "${1:-}" in
'') ;;
--fast) tier=fast ;;
--full) tier=full ;;
-h | --help) usage && exit 0 ;;
*)
	printf "run: unknown argument '%s'\n     do: tests/run.sh --help\n" "$1" >&2
	exit 2
	;;
esac

# shellcheck source=../deploy/quickstart/common.sh
. "$top/deploy/quickstart/common.sh"
SELF=run

logs=$CACHE/runs/$(date -u +%Y%m%dT%H%M%SZ).$$
mkdir -p "$logs"
# The last ten runs are enough.
find "$CACHE/runs" -mindepth 1 -maxdepth 1 -type d | sort | head -n -10 | xargs -r rm -rf

# The quick start of this run, beside one that the caller may have; it ends with
# the run, however that ends.
quickstart=(env "XDG_STATE_HOME=$logs/state" deploy/quickstart.sh --name run)
take_down() {
	[ "$tier" = fast ] || "${quickstart[@]}" down >"$logs/down.log" 2>&1 || true
}
trap 'status=$?; take_down; exit $status' EXIT

passed=0
failed=0
steps=0
step_pid=''
step_name=''

# Whatever ends this script ends the step that runs (`timeout` passes the signal
# on), and still says how far it got.
ended_from_outside() {
	trap - INT TERM HUP
	[ -z "$step_pid" ] || kill -TERM "$step_pid" 2>/dev/null || true
	printf 'run: ENDED FROM OUTSIDE after %s, in: %s\n' "$(elapsed "$SECONDS")" "$step_name"
	failed=$((failed + 1))
	finish
}
trap ended_from_outside INT TERM HUP

elapsed() { printf '%d min %02d s' $((($1) / 60)) $((($1) % 60)); }

# Every libtest summary and every 'N passed, M failed' of the end-to-end tests.
tests_in() { # LOG passed|failed
	sed -nE \
		-e 's/^test result: .* ([0-9]+) passed; ([0-9]+) failed;.*/\1 \2/p' \
		-e 's/^([0-9]+) passed, ([0-9]+) failed$/\1 \2/p' "$1" |
		awk -v column="$([ "$2" = passed ] && echo 1 || echo 2)" '{ sum += $column } END { print sum + 0 }'
}

# step NAME MINUTES COMMAND...: runs it with a limit, says every minute that it
# does, and counts the tests in what it says. A failure does not stop the run.
step() {
	local name=$1 minutes=$2 log status=0 began=$SECONDS said=$SECONDS ok bad
	shift 2
	steps=$((steps + 1))
	log=$logs/$(printf '%02d' "$steps")-${name//[^a-z0-9]/-}.log
	step_name=$name
	printf 'run: %s\n' "$name"
	# No input, so that nothing can wait for a person.
	timeout --kill-after=20 "$((minutes * 60))" "$@" </dev/null >"$log" 2>&1 &
	step_pid=$!
	while kill -0 "$step_pid" 2>/dev/null; do
		sleep 0.5
		[ $((SECONDS - said)) -lt 60 ] || {
			said=$SECONDS
			printf 'run: ... %s: %s; last: %s\n' "$name" "$(elapsed $((SECONDS - began)))" "$(tail -n 1 "$log" | tr -d '\r' | cut -c1-100)"
		}
	done
	wait "$step_pid" || status=$?
	step_pid=''
	ok=$(tests_in "$log" passed)
	bad=$(tests_in "$log" failed)
	if [ "$status" -ne 0 ] && [ "$bad" -eq 0 ]; then bad=1; fi
	passed=$((passed + ok))
	failed=$((failed + bad))
	if [ "$status" -eq 0 ]; then
		printf 'run: %s: ok%s (%s)\n' "$name" "$([ "$ok" -eq 0 ] || echo ", $ok tests")" "$(elapsed $((SECONDS - began)))"
		return 0
	fi
	# What failed and why, without the lines of what passed.
	grep -vE '^(test .* ok|running [0-9]+ tests?|test result: ok.*|[[:space:]]*(Compiling|Checking|Downloaded|Downloading|Running|Doc-tests) .*|[[:space:]]*)$' "$log" |
		tail -n 80 | sed 's/^/    /' || true
	if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then
		printf 'run: %s: NOT WITHIN %s MINUTES; it hangs, or this machine is too slow. All it said: %s\n' "$name" "$minutes" "$log"
	else
		printf 'run: %s: FAILED (%s). All it said: %s\n' "$name" "$(elapsed $((SECONDS - began)))" "$log"
	fi
	return 1
}

finish() {
	local where count
	for where in gateway gateway-proxy direct; do
		count=$(grep -ahE '^Ran [0-9]+ of|^(SUCCESS|FAIL)!' "$logs/e2e-$where/e2e.log" 2>/dev/null | tr '\n' ' ' || true)
		[ -z "$count" ] || printf 'run: [sig-cli] %-14s %s\n' "$where" "$count"
	done
	printf 'run: all of it took %s; logs: %s\n' "$(elapsed "$SECONDS")" "$logs"
	take_down
	trap - EXIT
	printf '%s passed, %s failed\n' "$passed" "$failed"
	[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
	exit
}

# need STEP...: what the rest rests on.
need() { step "$@" || finish; }

# --- what needs no cluster ---------------------------------------------------

if [ "$tier" = fast ]; then
	need prerequisites 2 tests/prerequisites.sh --check build
else
	need prerequisites 2 tests/prerequisites.sh --check
fi
step formatting 2 cargo fmt --all --check -- -l || true
step lints 25 cargo clippy --workspace --all-targets --all-features --locked -- -D warnings || true
step 'the protocol without an async runtime' 10 cargo check -p towline-proto --no-default-features --locked || true
step documentation 15 env RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked || true
step 'unit and in-process tests' 30 cargo test --workspace --locked --no-fail-fast || true

[ "$tier" != fast ] || finish

# --- what runs on a real cluster ---------------------------------------------

need 'static programs' 30 bash -euc '. deploy/quickstart/common.sh; build_static_programs'
need 'Kubernetes, its clients and images' 30 "$CLUSTER" build all
need 'identity providers' 15 tests/idp/build

export TOWLINE_BIN_DIR=$STATIC_PROGRAMS
[ "$tier" != full ] || export TOWLINE_FULL=1
# Figures of tests that pass: how long what was killed took to come back.
shown=()
[ "$tier" != full ] || shown=(-- --show-output)
step 'whole programs on real clusters' "$([ "$tier" = full ] && echo 90 || echo 30)" \
	cargo test -p tests --features cluster --locked --no-fail-fast "${shown[@]}" || true
grep -hE "^[a-z' ]+( killed [0-9]+ times,.*|: (before|after) .*)" "$logs"/*-whole-programs-on-real-clusters.log | sed 's/^/run: /' || true
# What callers do all day, once more behind what ends TLS in front of a gateway.
behind=(kubectl exec_cp helm clients http)
for front in nginx haproxy; do
	step "callers behind $front" 15 env "TOWLINE_TEST_FRONT=$front" \
		cargo test -p tests --features cluster --locked --no-fail-fast "${behind[@]/#/--test=}" || true
done

if step 'quick start' 15 "${quickstart[@]}" up; then
	passed=$((passed + 1))
	if step 'quick start, a second time' 5 "${quickstart[@]}" up; then passed=$((passed + 1)); fi
	# With the settings that the quick start prints: a script, its $0 and $1.
	"${quickstart[@]}" env >"$logs/env"
	# shellcheck disable=SC2016
	through_gateway=(bash -euc '. "$0"; exec bash -euc "$@"' "$logs/env")
	# The kubeconfig that get-credentials writes. One spec compares the CONNECT line
	# that a proxy got with the whole server URL, so it takes a URL without a path.
	step "Kubernetes' own end-to-end tests, through the gateway" 20 "${through_gateway[@]}" \
		'exec "$0" e2e run "$KUBECONFIG" --skip "Slow|Serial|Feature:|HTTP proxy" --report "$1"' \
		"$CLUSTER" "$logs/e2e-gateway" || true
	step "Kubernetes' own end-to-end tests, through a proxy to the gateway" 10 "${through_gateway[@]}" \
		'towline get-credentials run --project demo --server-without-path --kubeconfig "$1.kubeconfig"
		exec "$0" e2e run "$1.kubeconfig" --focus "\[sig-cli\].*HTTP proxy" --report "$1"' \
		"$CLUSTER" "$logs/e2e-gateway-proxy" || true
	if [ "$tier" = full ]; then
		step "Kubernetes' own end-to-end tests, straight to the API server" 20 \
			"$CLUSTER" e2e run admin --report "$logs/e2e-direct" || true
		step 'benchmarks' 30 tests/bench/run.sh --short --output "$logs/bench" || true
		cat "$logs/bench/peers.txt" "$logs/bench/report.txt" || true
		step 'fuzzing' 30 tests/fuzz/run.sh || true
	fi
	if step 'quick start, taken down' 3 "${quickstart[@]}" down; then passed=$((passed + 1)); fi
fi
finish
