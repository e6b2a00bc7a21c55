#!/usr/bin/env bash
# Takes out what the tests on real clusters guard, one thing at a time, and sees
# each test fail. What is taken out is in mutations.patch, which tests have to
# fail then in list.txt.
set -euo pipefail

here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
top=${here%/tests/seen-to-fail}

usage() {
	cat <<'USAGE'
Usage: tests/seen-to-fail/run.sh [--test FILE] [MUTATION...]

Builds the programs with mutations.patch in a tree of their own, then runs the
tests of list.txt with one mutation at a time and says how each failed. A test
that passes all the same is GREEN, and the exit status is 1.

  --test FILE  only the tests of tests/tests/FILE.rs
  MUTATION     only these

Environment
  TOWLINE_MUTATED   a directory with mutated programs, instead of a build
  CARGO_TARGET_DIR  where Rust code is built (default: in TOWLINE_CACHE)
  TOWLINE_CACHE     what is built once (default: ~/.cache/towline)

Example
  sudo tests/seen-to-fail/run.sh --test http trailers-dropped
USAGE
}

only_test=''
only=()
while [ $# -gt 0 ]; do
	case $1 in
	--test) only_test=${2:?--test needs a name} && shift ;;
	-h | --help) usage && exit 0 ;;
	-*) printf "seen-to-fail: unknown argument '%s'\n" "$1" >&2 && exit 2 ;;
	*) only+=("$1") ;;
	esac
	shift
done

cache=${TOWLINE_CACHE:-$HOME/.cache/towline}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}
work=$(mktemp -d "${TMPDIR:-/tmp}/seen-to-fail.XXXXXX")
logs=$cache/runs/seen-to-fail
mkdir -p "$logs"
clean() {
	[ ! -d "$work/tree" ] || git -C "$top" worktree remove --force "$work/tree"
	rm -rf "$work"
}
trap clean EXIT
cd "$top"

built=${TOWLINE_MUTATED:-}
if [ -z "$built" ]; then
	built=$work/programs
	mkdir "$built"
	git worktree add --quiet --detach "$work/tree" HEAD
	git -C "$work/tree" apply --3way "$here/mutations.patch" || {
		printf 'seen-to-fail: mutations.patch is for other code\n' >&2
		printf '     do: git apply --3way %s, mend, git diff >%s\n' "$here/mutations.patch" "$here/mutations.patch" >&2
		exit 1
	}
	(cd "$work/tree" && cargo build --locked -p towline-gateway -p towline-agent -p towline)
	cp "$CARGO_TARGET_DIR"/debug/{towline,towline-agent,towline-gateway} "$built/"
fi
cargo test -p tests --features cluster --locked --no-run 2>&1 | tee "$work/executables" >&2
# `Executable tests/http.rs (/…/http-0123abcd)`
executable() { sed -nE "s|^ *Executable tests/$1\\.rs \\((.*)\\)$|\\1|p" "$work/executables"; }

# programs MUTATION[@PROGRAM]: a directory where the programs have it.
programs() {
	local what=${1%@*} where='' program
	[ "$what" = "$1" ] || where=${1#*@}
	rm -rf "${work:?}/bin"
	mkdir "$work/bin"
	for program in towline towline-agent towline-gateway; do
		if [ -z "$where" ] || [ "$where" = "$program" ]; then
			printf '#!/bin/sh\nTOWLINE_MUTATION=%s exec %s/%s "$@"\n' "$what" "$built" "$program" >"$work/bin/$program"
			chmod 755 "$work/bin/$program"
		else
			cp "$built/$program" "$work/bin/$program"
		fi
	done
}

# How a test failed: the first lines of its panic, and what the program said.
reason() { # TEST LOG
	awk -v name="$1" '
		/^---- / { mine = $2 == name }
		mine && /^Error: / { print substr($0, 1, 300); exit }
		mine && /panicked at/ { said = 0; seen = 1; next }
		mine && seen && said < 2 && NF && !/^stack backtrace/ { line = line $0 " "; said++ }
		mine && seen && /^stderr: ./ { line = line $0; exit }
		END { print substr(line, 1, 300) }' "$2"
}

green=0
while read -r mutation file tests; do
	case $mutation in '' | '#'*) continue ;; esac
	[ -z "$only_test" ] || [ "$only_test" = "$file" ] || continue
	[ ${#only[@]} -eq 0 ] || [[ " ${only[*]} " == *" ${mutation%@*} "* ]] || continue
	programs "$mutation"
	read -ra names <<<"$tests"
	if [[ $tests == '*::'* ]]; then
		names=()
		for kubectl in current v1_31 v1_29; do
			names+=("${kubectl}_websocket::${tests#*::}" "${kubectl}_spdy::${tests#*::}")
		done
	fi
	log=$logs/$file-$mutation.log
	status=0
	TOWLINE_BIN_DIR=$work/bin TOWLINE_DYNAMIC_BIN_DIR=$work/bin timeout --kill-after 10 420 "$(executable "$file")" --exact "${names[@]}" \
		</dev/null >"$log" 2>&1 || status=$?
	for name in "${names[@]}"; do
		if grep -q "^---- $name stdout ----" "$log"; then
			printf '%s\t%s\t%s\t%s\n' "$file::$name" "$mutation" FAILED "$(reason "$name" "$log")"
		elif [ "$status" -ge 124 ]; then
			printf '%s\t%s\t%s\n' "$file::$name" "$mutation" HANGS
		else
			printf '%s\t%s\t%s\n' "$file::$name" "$mutation" GREEN
			green=$((green + 1))
		fi
	done
done <"$here/list.txt"
[ "$green" -eq 0 ]
