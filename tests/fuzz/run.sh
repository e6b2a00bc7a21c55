#!/usr/bin/env bash
# Fuzzes what parses input from outside, with libFuzzer. Closes with one line that
# counts the properties that held.
set -euo pipefail

here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)

usage() {
	cat <<'USAGE'
Usage: tests/fuzz/run.sh [--seconds N] [--keep] [TARGET...]

Runs the properties of tests/fuzz/src under libFuzzer, one after the other, each
on its corpus in tests/fuzz/corpus. An input for which a property does not hold
is kept in tests/fuzz/corpus/TARGET, where every test run tries it again.

  --seconds N  for all properties together (default: 600)
  --keep       keep inputs that reach new code in the corpus too, minimized
  --list       say which targets there are
  -h, --help   this text

Without a TARGET all are run. The last line is 'N passed, M failed'; the exit
status is 0 if M is 0.

Needs a nightly Rust toolchain (rustup toolchain install nightly). cargo-fuzz is
installed into the build cache when it is missing.

Environment
  TOWLINE_CACHE  where cargo-fuzz and builds are kept (default: ~/.cache/towline)

Examples
  tests/fuzz/run.sh --seconds 60 request sign-in
USAGE
}

die() {
	printf 'fuzz: %s\n' "$*" >&2
	exit 2
}

all=()
while IFS= read -r dir; do all+=("$(basename "$dir")"); done < <(find "$here/corpus" -mindepth 1 -maxdepth 1 -type d | sort)

seconds=600
keep=false
targets=()
while [ $# -gt 0 ]; do
	case $1 in
	--seconds)
		seconds=${2:-}
		case $seconds in '' | *[!0-9]*) die "--seconds takes a number, not '$seconds'" ;; esac
		shift
		;;
	--keep) keep=true ;;
	--list) printf '%s\n' "${all[@]}" && exit 0 ;;
	-h | --help) usage && exit 0 ;;
	-*) die "unknown option '$1'; do: tests/fuzz/run.sh --help" ;;
	*)
		[ -d "$here/corpus/$1" ] || die "there is no target '$1'; there are: ${all[*]}"
		targets+=("$1")
		;;
	esac
	shift
done
[ ${#targets[@]} -gt 0 ] || targets=("${all[@]}")

cache=${TOWLINE_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/towline}
tool=$cache/cargo-fuzz
build=$cache/target/fuzz
mkdir -p "$tool" "$build"

rustc +nightly --version >/dev/null 2>&1 || die 'no nightly toolchain; do: rustup toolchain install nightly --profile minimal'
if [ ! -x "$tool/bin/cargo-fuzz" ]; then
	printf 'fuzz: installing cargo-fuzz\n'
	CARGO_TARGET_DIR=$build/tool cargo install --quiet cargo-fuzz --locked --root "$tool"
	rm -rf "$build/tool"
fi

# There is no unsafe code here for an address sanitizer to look at, and without
# one five times as many inputs are tried.
PATH=$tool/bin:$PATH
unset CARGO_TARGET_DIR
printf 'fuzz: building\n'
cargo +nightly fuzz build --fuzz-dir "$here/libfuzzer" --sanitizer none --target-dir "$build" property
host=$(rustc -vV | sed -n 's/^host: //p')
program=$build/$host/release/property
[ -x "$program" ] || die "the build left no $program"

each=$((seconds / ${#targets[@]}))
[ "$each" -gt 0 ] || each=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

passed=0
failed=0
for target in "${targets[@]}"; do
	corpus=$here/corpus/$target
	found=$work/$target
	mkdir -p "$found/corpus"
	printf 'fuzz: %s, %s s\n' "$target" "$each"
	# New inputs go into the first directory; the second is read.
	if TOWLINE_FUZZ_TARGET=$target "$program" "$found/corpus" "$corpus" \
		-max_total_time="$each" -timeout=10 -rss_limit_mb=2048 -max_len=16384 \
		-artifact_prefix="$found/" -print_final_stats=1 >"$found/log" 2>&1; then
		passed=$((passed + 1))
		printf 'fuzz: %s: held for %s inputs\n' "$target" "$(sed -n 's/^stat::number_of_executed_units: *//p' "$found/log")"
		if $keep; then
			mkdir -p "$found/merged"
			TOWLINE_FUZZ_TARGET=$target "$program" -merge=1 "$found/merged" "$corpus" "$found/corpus" >"$found/merge.log" 2>&1
			find "$found/merged" -type f -size -2k -exec cp -n {} "$corpus/" \;
		fi
	else
		failed=$((failed + 1))
		grep -m 3 -hE "panicked at|^SUMMARY|^==" -A 3 "$found/log" | sed 's/^/    /' || true
		find "$found" -maxdepth 1 -type f \( -name 'crash-*' -o -name 'timeout-*' -o -name 'oom-*' \) | while IFS= read -r input; do
			cp "$input" "$corpus/"
			printf 'fuzz: %s: DOES NOT HOLD for tests/fuzz/corpus/%s/%s\n' "$target" "$target" "$(basename "$input")"
		done
	fi
done

printf '%s passed, %s failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
