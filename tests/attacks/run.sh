#!/usr/bin/env bash
# Takes out what stops each attack, one check at a time, and sees its test fail.
# What is taken out is in mutations.patch and, of the HTTP libraries, in
# libraries.patch; which tests have to fail then is in list.txt. Needs no cluster.
set -euo pipefail

here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
top=${here%/tests/attacks}

usage() {
	cat <<'USAGE'
Usage: tests/attacks/run.sh [--tree DIR] [MUTATION...]

Builds the tests in a tree of their own, with mutations.patch there and
libraries.patch in copies of hyper and h2. There all tests of list.txt have to pass
with nothing taken out; then they run with one mutation at a time, and how each
failed is told. A test that passes all the same is GREEN,
and the exit status is 1.

  --tree DIR  a tree where the patches are applied already
  MUTATION    only these

Environment
  CARGO_TARGET_DIR  where the tests are built (default: in TOWLINE_CACHE; never
                    where the unpatched tree is built)
  TOWLINE_CACHE     what is kept (default: ~/.cache/towline)

Example
  tests/attacks/run.sh redirect-anywhere verifier-unchecked
USAGE
}

tree=''
only=()
while [ $# -gt 0 ]; do
	case $1 in
	--tree) tree=$(readlink -f "${2:?--tree needs a directory}") && shift ;;
	-h | --help) usage && exit 0 ;;
	-*) printf "attacks: unknown argument '%s'\n" "$1" >&2 && exit 2 ;;
	*) only+=("$1") ;;
	esac
	shift
done

cache=${TOWLINE_CACHE:-$HOME/.cache/towline}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target-attacks}
# What a test says, without the way there.
export RUST_BACKTRACE=0
work=$(mktemp -d "${TMPDIR:-/tmp}/attacks.XXXXXX")
logs=$cache/runs/attacks
mkdir -p "$logs"
clean() {
	[ ! -d "$work/tree" ] || git -C "$top" worktree remove --force "$work/tree"
	rm -rf "$work"
}
trap clean EXIT

# apply PATCH ARGUMENT...: with git
apply() {
	local patch=$here/$1
	shift
	git "$@" "$patch" || {
		printf 'attacks: %s is for other code: %s\n' "${patch##*/}" "$(head -n 1 "$patch")" >&2
		printf '     do: apply it to a tree of its own, mend it there, git diff\n' >&2
		exit 1
	}
}

# library NAME: a copy of it, in the version of Cargo.lock.
library() {
	local version manifest
	version=$(awk -v name="$1" '$1 == "name" { mine = $3 == "\"" name "\"" } mine && $1 == "version" { gsub(/"/, "", $3); print $3; exit }' "$tree/Cargo.lock")
	manifest=$(cd "$tree" && cargo metadata --locked --format-version 1 | grep -o "\"manifest_path\":\"[^\"]*/$1-$version/Cargo.toml\"" | cut -d '"' -f 4)
	cp -r "${manifest%/Cargo.toml}" "$work/libraries/$1"
	chmod -R u+w "$work/libraries/$1"
}

for patch in mutations libraries; do sed -n '1p' "$here/$patch.patch"; done
if [ -z "$tree" ]; then
	tree=$work/tree
	git -C "$top" worktree add --quiet --detach "$tree" HEAD
	# As it stands on disk: what is being worked on has to stop the attacks.
	git -C "$top" diff --binary HEAD | git -C "$tree" apply --allow-empty --index
	mkdir "$work/libraries"
	library hyper
	library h2
	apply libraries.patch -C "$work/libraries" apply
	apply mutations.patch -C "$tree" apply --3way
	printf '\n[patch.crates-io]\nhyper = { path = "%s" }\nh2 = { path = "%s" }\n' \
		"$work/libraries/hyper" "$work/libraries/h2" >>"$tree/Cargo.toml"
fi
# Not --locked: the lock file has to learn of the copies.
(cd "$tree" && cargo test --offline --no-run -p towline-proto -p towline-oidc -p towline-gateway -p towline-agent) 2>&1 |
	tee "$work/executables" >&2

# `Executable tests/path.rs (/…/deps/path-0123abcd)`, `Executable unittests src/lib.rs (/…/deps/towline_oidc-0123abcd)`
executable() {
	local kind='tests/.*'
	[[ $1 != towline_* ]] || kind='unittests src/lib\.rs'
	sed -nE "s|^ *Executable $kind \((.*/deps/$1-[0-9a-f]+)\)$|\1|p" "$work/executables"
}

# run MUTATION EXECUTABLE LOG TEST...: where cargo would.
run() {
	local mutation=$1 name=$2 log=$3 package=gateway program
	shift 3
	case $name in
	towline_oidc) package=proto/oidc ;;
	towline_proto) package=proto ;;
	towline_agent | agent) package=agent ;;
	esac
	program=$(executable "$name")
	case $program in /*) ;; *) program=$tree/$program ;; esac
	(cd "$tree/$package" && TOWLINE_MUTATION=$mutation timeout --kill-after 10 240 "$program" --exact "$@" </dev/null >"$log" 2>&1)
}

# How a test failed: the first lines of its panic.
reason() { # TEST LOG
	awk -v name="$1" '
		/^---- / { mine = $2 == name }
		mine && /panicked at/ { seen = 1; next }
		/^failures:/ { mine = 0 }
		mine && seen && said < 4 && NF && !/^note:/ { line = line $0 " "; said++ }
		END { gsub(/[[:space:]]+/, " ", line); print substr(line, 1, 240) }' "$2"
}

passed=0 failed=0
judge() { # WANTED MUTATION EXECUTABLE TEST LOG STATUS
	local found
	if grep -q "^---- $4 stdout ----" "$5"; then
		found=FAILED
	elif [ "$6" -ge 124 ]; then
		found=HANGS
	elif grep -q "^test $4 \.\.\. ok$" "$5"; then
		found=GREEN
	else
		found=ABSENT
	fi
	if [ "$found" = "$1" ]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
	printf '%s\t%s\t%s::%s\t%s\n' "$found" "$2" "$3" "$4" "$(reason "$4" "$5")"
}

listed() {
	while read -r mutation name tests; do
		case $mutation in '' | '#'*) continue ;; esac
		[ ${#only[@]} -eq 0 ] || [[ " ${only[*]} " == *" $mutation "* ]] || continue
		printf '%s %s %s\n' "$mutation" "$name" "$tests"
	done <"$here/list.txt"
}

listed >"$work/listed"
readarray -t names < <(cut -d ' ' -f 2 "$work/listed" | sort -u)
for name in "${names[@]}"; do
	readarray -t tests < <(awk -v name="$name" '$2 == name { for (n = 3; n <= NF; n++) print $n }' "$work/listed" | sort -u)
	log=$logs/$name.log status=0
	run '' "$name" "$log" "${tests[@]}" || status=$?
	for test in "${tests[@]}"; do judge GREEN - "$name" "$test" "$log" "$status"; done
done
while read -r mutation name line; do
	read -ra tests <<<"$line"
	log=$logs/$name-$mutation.log status=0
	run "$mutation" "$name" "$log" "${tests[@]}" || status=$?
	for test in "${tests[@]}"; do judge FAILED "$mutation" "$name" "$test" "$log" "$status"; done
done <"$work/listed"
printf '%s passed, %s failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
