#!/usr/bin/env bash
# Names every missing prerequisite of the builds, the test clusters and the
# tests, with the command that installs it; --install installs them.
# shellcheck disable=SC2310  # functions are used as conditions on purpose
set -euo pipefail

GO_MINIMUM=1.26
RUST_TARGET=x86_64-unknown-linux-musl

usage() {
	cat <<'USAGE'
Usage: tests/prerequisites.sh [--check | --install] [GROUP...]

Names what this machine lacks and the command that installs it.

  --check     only look (the default); exit status 1 if something is missing
  --install   install missing Debian packages and the Rust target (needs root)
  -h, --help  this text

Groups (default: all of them):
  build       compilers for the gateway, the agent and the test programs
  cluster     what `tests/cluster/cluster` needs
  tests       middleboxes and tools that the tests put around the product

--install never removes, replaces or downgrades a package: it simulates first
and refuses if apt would. Services in the packages are not started.

Examples:
  tests/prerequisites.sh
  tests/prerequisites.sh --install cluster
USAGE
}

# One line each: group, Debian package, and what shows that it is there: commands
# (all of them), or paths (one of those separated by |).
PACKAGES='
build    gcc                          cc
build    make                         make
build    cmake                        cmake
build    musl-tools                   musl-gcc
build    pkg-config                   pkg-config
cluster  containerd                   containerd ctr containerd-shim-runc-v2
cluster  runc                         runc
cluster  containernetworking-plugins  /usr/lib/cni/ptp|/opt/cni/bin/ptp
cluster  busybox-static               /bin/busybox|/usr/bin/busybox
cluster  nftables                     nft
cluster  iptables                     iptables
cluster  conntrack                    conntrack
cluster  socat                        socat
cluster  iproute2                     ip ss tc
cluster  util-linux                   nsenter setsid flock unshare
cluster  procps                       ps
tests    nginx                        nginx
tests    haproxy                      haproxy
tests    squid                        squid
tests    tinyproxy                    tinyproxy
tests    faketime                     faketime
tests    postgresql                   /usr/lib/postgresql/*/bin/postgres|/usr/local/pgsql/bin/postgres
tests    python3-venv                 /usr/lib/python3*/ensurepip/__init__.py
tests    openssl                      openssl
tests    curl                         curl
tests    jq                           jq
tests    default-jre-headless         java
tests    maven                        mvn
tests    unzip                        unzip
tests    nodejs                       node
tests    npm                          npm
'

mode=check
groups=()
while [ $# -gt 0 ]; do
	case "$1" in
	--check) mode=check ;;
	--install) mode=install ;;
	-h | --help)
		usage
		exit 0
		;;
	build | cluster | tests) groups+=("$1") ;;
	*)
		echo "prerequisites: unknown argument '$1'; try: tests/prerequisites.sh --help" >&2
		exit 2
		;;
	esac
	shift
done
[ ${#groups[@]} -gt 0 ] || groups=(build cluster tests)

wants() {
	local group
	for group in "${groups[@]}"; do
		[ "$group" = "$1" ] && return 0
	done
	return 1
}

# present PROBE...: every command is on PATH, or one of the |-separated paths exists.
present() {
	local probe path paths
	for probe in "$@"; do
		if [ "${probe#/}" = "$probe" ]; then
			command -v "$probe" >/dev/null 2>&1 || return 1
			continue
		fi
		IFS='|' read -r -a paths <<<"$probe"
		for path in "${paths[@]}"; do
			# Unquoted: a path may hold a wildcard.
			# shellcheck disable=SC2086
			set -- $path
			[ -e "$1" ] && continue 2
		done
		return 1
	done
}

missing_packages() {
	local group package probes
	while read -r group package probes; do
		[ -n "$group" ] || continue
		wants "$group" || continue
		# shellcheck disable=SC2086
		present $probes || echo "$package"
	done <<<"$PACKAGES"
}

# Debian keeps some programs where only root's PATH looks.
PATH="$PATH:/usr/sbin:/sbin"
[ -d "${HOME:-/root}/.cargo/bin" ] && PATH="$PATH:${HOME:-/root}/.cargo/bin"
[ -d /usr/local/go/bin ] && PATH="$PATH:/usr/local/go/bin"

version_at_least() { # WANTED HAVE
	[ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]
}

problems=0
problem() { # WHAT HOW
	problems=$((problems + 1))
	printf 'missing: %s\n     do: %s\n' "$1" "$2" >&2
}

apt_quiet() {
	DEBIAN_FRONTEND=noninteractive apt-get -q -y \
		-o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold \
		-o DPkg::Lock::Timeout=300 "$@"
}

POLICY=/usr/sbin/policy-rc.d
POLICY_SAVED=$POLICY.towline-saved

restore_policy() {
	if [ -e "$POLICY_SAVED" ]; then
		mv -f "$POLICY_SAVED" "$POLICY"
	else
		rm -f "$POLICY"
	fi
}

# keep_services_stopped: packages such as nginx would start a service on a fixed
# port; the policy that forbids it is ours only while apt runs.
keep_services_stopped() {
	if [ -x "$POLICY" ] && ! "$POLICY" nginx start >/dev/null 2>&1; then
		return 0 # this machine forbids it already
	fi
	if [ -e "$POLICY" ]; then
		mv -f "$POLICY" "$POLICY_SAVED"
	fi
	trap restore_policy EXIT
	trap 'exit 130' INT TERM
	printf '#!/bin/sh\nexit 101\n' >"$POLICY"
	chmod 755 "$POLICY"
}

install_packages() {
	local simulation refused changed
	echo "prerequisites: installing $*"
	apt_quiet update >/dev/null || echo "prerequisites: 'apt-get update' failed; going on with the lists that are there" >&2
	if ! simulation=$(apt_quiet -s install --no-install-recommends "$@" 2>&1); then
		printf '%s\n' "$simulation" >&2
		echo "prerequisites: apt cannot install these packages (its words are above); nothing was changed" >&2
		return 1
	fi
	refused=$(printf '%s\n' "$simulation" |
		grep -E '^(Remv|Purg) |DOWNGRADED|will be REMOVED' || true)
	if [ -n "$refused" ]; then
		printf '%s\n' "$refused" >&2
		cat >&2 <<-REFUSED
			prerequisites: refused: apt would remove, replace or downgrade the packages above; nothing was changed
			     do: apt-get -s install --no-install-recommends $*
			         and decide yourself
		REFUSED
		return 1
	fi
	changed=$(printf '%s\n' "$simulation" | sed -n 's/^Inst \([^ ]*\) \[.*/\1/p' | tr '\n' ' ')
	[ -z "$changed" ] || echo "prerequisites: apt brings these up to date as well, as the new ones ask for it: $changed"
	keep_services_stopped
	apt_quiet install --no-install-recommends --no-remove "$@"
}

mapfile -t missing < <(missing_packages)

if [ "$mode" = install ] && [ ${#missing[@]} -gt 0 ]; then
	if [ "$(id -u)" -ne 0 ]; then
		echo "prerequisites: --install needs root; type: sudo tests/prerequisites.sh --install ${groups[*]}" >&2
		exit 1
	fi
	if ! command -v apt-get >/dev/null; then
		echo "prerequisites: no apt-get on this machine; install by its own means: ${missing[*]}" >&2
		exit 1
	fi
	install_packages "${missing[@]}"
	hash -r
	mapfile -t missing < <(missing_packages)
fi

if [ ${#missing[@]} -gt 0 ]; then
	for package in "${missing[@]}"; do
		problem "Debian package $package" "apt-get install --no-install-recommends $package"
	done
fi

if wants build || wants cluster; then
	if ! command -v go >/dev/null; then
		problem "Go $GO_MINIMUM or newer" "install it as https://go.dev/doc/install says, so that 'go version' works"
	else
		have=$(go env GOVERSION 2>/dev/null || true)
		have=${have#go}
		version_at_least "$GO_MINIMUM" "$have" ||
			problem "Go $GO_MINIMUM or newer (this is ${have:-unknown})" "install it as https://go.dev/doc/install says"
	fi
fi

if wants build; then
	if ! command -v cargo >/dev/null; then
		problem "Rust (cargo)" "install it as https://rustup.rs says"
	else
		# Looked up without starting rustup, which takes half a second.
		sysroot=$(rustc --print sysroot 2>/dev/null || true)
		if [ ! -d "$sysroot/lib/rustlib/$RUST_TARGET/lib" ]; then
			if [ "$mode" = install ] && command -v rustup >/dev/null; then
				rustup target add "$RUST_TARGET" || problem "Rust target $RUST_TARGET" "rustup target add $RUST_TARGET"
			else
				problem "Rust target $RUST_TARGET" "rustup target add $RUST_TARGET"
			fi
		fi
	fi
fi

if wants cluster; then
	if [ "$(id -u)" -ne 0 ]; then
		problem "root (network namespaces, containers)" "run this, and tests/cluster/cluster, with sudo"
	elif command -v ip >/dev/null && command -v nft >/dev/null; then
		# One throw-away namespace shows all that the kernel has to offer.
		# shellcheck disable=SC2016
		if ! said=$(unshare --net sh -ec '
			ip link add name probe0 type veth peer name probe1 || { echo "veth devices"; exit 1; }
			nft add table inet probe || { echo "nftables"; exit 1; }
		' 2>&1); then
			problem "a kernel that allows network namespaces with veth and nftables ($(printf '%s' "$said" | tail -n 1))" \
				"modprobe -a veth nf_tables nf_nat; in a container: run it privileged"
		fi
	fi
	grep -qw overlay /proc/filesystems ||
		problem "the overlay file system" "modprobe overlay"
	if [ ! -e /sys/fs/cgroup/cgroup.controllers ] && [ ! -d /sys/fs/cgroup/memory ]; then
		problem "control groups at /sys/fs/cgroup" "mount them (in a container: run it privileged with the host's cgroups)"
	fi
fi

if [ "$problems" -gt 0 ]; then
	echo "prerequisites: $problems missing for: ${groups[*]}" >&2
	[ "$mode" = install ] || echo "     do: sudo tests/prerequisites.sh --install ${groups[*]}" >&2
	exit 1
fi
echo "prerequisites: all there for: ${groups[*]}"
