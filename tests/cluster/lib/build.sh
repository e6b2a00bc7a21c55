# shellcheck shell=bash
# Builds programs and images into the cache. Each result lies in a directory
# named by the hash of all that went into it: a second run finds it there, a
# changed input does not, and two checkouts do not disturb each other.

KUBE_VERSION=v1.36.3
KUBE_PROGRAMS='etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl'
TARGETS='kube kubectl-1.29 kubectl-1.31 helm tools images relay e2e'

IMAGE_REGISTRY=registry.k8s.io
PAUSE_IMAGE=$IMAGE_REGISTRY/pause:3.10.2
BUSYBOX_IMAGE=$IMAGE_REGISTRY/e2e-test-images/busybox:1.37.0-1
AGNHOST_IMAGE=$IMAGE_REGISTRY/e2e-test-images/agnhost:2.63.0

# Keeps a desktop or another build usable meanwhile.
NICE=(nice -n "${TOWLINE_NICE:-10}")

# hash_of WORD...: of the words, and of the content of those that are files.
hash_of() {
	local word
	for word in "$@"; do
		if [ -f "$word" ]; then
			printf '%s ' "${word##*/}"
			sha256sum <"$word"
		else
			printf '%s\n' "$word"
		fi
	done | sha256sum | cut -c1-16
}

go_version() {
	GO_VERSION=${GO_VERSION:-$(cd / && go env GOVERSION 2>/dev/null || echo none)}
	printf '%s\n' "$GO_VERSION"
}

# version_flags VERSION: the stamp without which components refuse each other.
version_flags() {
	local version=$1 package major minor
	IFS=. read -r major minor _ <<<"${version#v}"
	printf -- '-s -w'
	for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
		printf -- ' -X %s.%s' "$package" "gitVersion=$version" "$package" "gitMajor=$major" \
			"$package" "gitMinor=$minor" "$package" "gitTreeState=clean"
	done
}

module_version() { # DIRECTORY MODULE
	awk -v module="$2" '$1 == "require" { sub(/^require /, "") } $1 == module { print $2; exit }' "$CLUSTER_HOME/$1/go.mod"
}

# kubectl_version 1.29: v0.29.15 in go.mod is Kubernetes v1.29.15.
kubectl_version() { module_version "kubectl-$1" k8s.io/kubectl | sed 's/^v0\./v1./'; }

# artefact TARGET: the directory its result belongs in, built or not.
artefact() {
	local home=$CLUSTER_HOME
	case $1 in
	kube) set -- kube "$home"/kube/go.{mod,sum} "$home/kube/main.go" "$(version_flags $KUBE_VERSION)" ;;
	e2e) set -- e2e "$home"/kube/go.{mod,sum} "$(version_flags $KUBE_VERSION)" ;;
	kubectl-*) set -- "$1" "$home/$1"/go.{mod,sum} "$home/$1/main.go" ;;
	helm) set -- helm "$home"/helm/go.{mod,sum} ;;
	tools) set -- tools "$home/go.mod" "$home"/{pki,image,relay}/main.go ;;
	images) set -- images "$home"/kube/go.{mod,sum} "$home"/{image,pause}/main.go "$(busybox_path)" \
		"$(declare -f build_images)" "$PAUSE_IMAGE" "$BUSYBOX_IMAGE" "$AGNHOST_IMAGE" ;;
	*) usage_error "there is nothing called '$1' to build; there is: $TARGETS all" ;;
	esac
	printf '%s/store/%s-%s\n' "$CACHE" "$1" "$(hash_of "$@" "$(go_version)")"
}

busybox_path() {
	local path
	for path in /bin/busybox /usr/bin/busybox; do
		[ ! -x "$path" ] || { echo "$path" && return 0; }
	done
	die "busybox-static is not installed" "tests/prerequisites.sh --install cluster"
}

# build TARGET: makes sure that its result is there.
build() {
	local dir
	if [ "$1" = relay ]; then set -- tools; fi
	dir=$(artefact "$1")
	if [ ! -d "$dir" ]; then
		command -v go >/dev/null || die "Go is not on PATH" "tests/prerequisites.sh --check build"
		with_lock "$CACHE/lock/$1" build_locked "$1" "$dir"
	fi
	link_programs "$1" "$dir"
}

build_locked() { # TARGET DIRECTORY
	local target=$1 dir=$2 began=$EPOCHREALTIME temporary
	[ ! -d "$dir" ] || return 0 # the run that held the lock built it
	mkdir -p "$CACHE/store" "$CACHE/bin"
	find "$CACHE/store" -mindepth 1 -maxdepth 1 -name ".$target-*" -mmin +60 -exec rm -rf {} +
	temporary=$(mktemp -d "$CACHE/store/.$target-XXXXXX")
	chmod 755 "$temporary"
	say "building $target with $(go_version)"
	if ! "build_${target%%-*}" "$temporary" "$target"; then
		rm -rf "$temporary"
		die "building $target failed (above)"
	fi
	mv -T "$temporary" "$dir"
	prune "$target" "$dir"
	say "built $target in $(seconds_since "$began") s: $(du -sh "$dir" | cut -f1) in $dir"
}

# prune: results that nobody has used for two weeks.
prune() {
	find "$CACHE/store" -mindepth 1 -maxdepth 1 -type d -name "$1-????????????????" \
		! -path "$2" -mtime +14 -exec rm -rf {} +
}

# link_programs: $CACHE/bin holds what was built last, under plain names.
link_programs() {
	local file
	mkdir -p "$CACHE/bin"
	touch -c "$2"
	for file in "$2"/*; do
		case $1:${file##*/} in
		images:* | kubectl-*:kubectl) continue ;;
		esac
		[ "$(readlink "$CACHE/bin/${file##*/}" || true)" = "$file" ] && continue
		ln -s "$file" "$CACHE/bin/.${file##*/}.$$"
		mv -T "$CACHE/bin/.${file##*/}.$$" "$CACHE/bin/${file##*/}"
	done
}

# go_build DIRECTORY OUTPUT LDFLAGS PACKAGE...: says every 15 s that it is alive.
go_build() {
	local directory=$1 output=$2 ldflags=$3 status=0 began=$SECONDS pid
	shift 3
	local go_command=(build)
	if [ "${1:-}" = --test ]; then
		go_command=(test -c)
		shift
	fi
	(cd "$CLUSTER_HOME/$directory" && CGO_ENABLED=0 GOFLAGS='-buildvcs=false' GOWORK=off \
		exec "${NICE[@]}" go "${go_command[@]}" -mod=readonly -trimpath -ldflags "$ldflags" -o "$output" "$@" 2>&1) |
		{ grep --line-buffered -v '^go: downloading ' || true; } >&2 &
	pid=$!
	while kill -0 "$pid" 2>/dev/null; do
		sleep 0.2
		if [ $((SECONDS - began)) -ge 15 ] && [ $(((SECONDS - began) % 15)) -eq 0 ]; then
			say "... still compiling ${output##*/}, $((SECONDS - began)) s"
			sleep 1
		fi
	done
	wait "$pid" || status=$?
	[ "$status" -eq 0 ] && [ -e "$output" ]
}

build_kube() {
	local program
	[ "$(module_version kube k8s.io/kubernetes)" = "$KUBE_VERSION" ] ||
		die "lib/build.sh says Kubernetes $KUBE_VERSION, kube/go.mod says $(module_version kube k8s.io/kubernetes)" "make them agree"
	say "the first build downloads and compiles all of Kubernetes: 5 to 10 minutes on two cores"
	go_build kube "$1/kube" "$(version_flags $KUBE_VERSION)" . || return 1
	for program in $KUBE_PROGRAMS; do ln -s kube "$1/$program"; done
}

build_kubectl() {
	local minor=${2#kubectl-}
	go_build "$2" "$1/$2" "$(version_flags "$(kubectl_version "$minor")")" . || return 1
	ln -s "$2" "$1/kubectl"
}

build_helm() {
	go_build helm "$1/helm" "-s -w -X helm.sh/helm/v3/internal/version.version=$(module_version helm helm.sh/helm/v3)" \
		helm.sh/helm/v3/cmd/helm
}

build_tools() {
	go_build . "$1/pki" '-s -w' ./pki &&
		go_build . "$1/mkimage" '-s -w' ./image &&
		go_build . "$1/relay" '-s -w' ./relay
}

build_e2e() {
	say "the first build compiles Kubernetes' end-to-end tests: 5 to 10 minutes on two cores"
	go_build kube "$1/e2e.test" "$(version_flags $KUBE_VERSION)" --test k8s.io/kubernetes/test/e2e
}

build_images() {
	local work=$1/work busybox applet applets=() common
	build tools
	busybox=$(busybox_path)
	mkdir "$work"
	go_build . "$work/pause" '-s -w' ./pause || return 1
	go_build kube "$work/agnhost" '-s -w' k8s.io/kubernetes/test/images/agnhost || return 1

	for applet in $("$busybox" --list); do
		[ "$applet" = busybox ] || applets+=(--symlink "/bin/$applet=busybox")
	done
	mkdir "$work/etc"
	printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n' >"$work/etc/passwd"
	printf 'root:x:0:\nnogroup:x:65534:\n' >"$work/etc/group"
	common=(--file "$busybox=/bin/busybox:0755" "${applets[@]}" --file "$work/etc=/etc"
		--dir /tmp:1777 --dir /root:0700 --dir /var/run --dir /home --symlink /usr/bin=../bin)

	local mkimage
	mkimage=$(artefact tools)/mkimage
	"$mkimage" --name "$PAUSE_IMAGE" --file "$work/pause=/pause:0755" --entrypoint /pause \
		--user 65535:65535 --output "$1/pause.tar" || return 1
	"$mkimage" --name "$BUSYBOX_IMAGE" --name busybox:latest "${common[@]}" --cmd sh --output "$1/busybox.tar" || return 1
	"$mkimage" --name "$AGNHOST_IMAGE" "${common[@]}" --file "$work/agnhost=/agnhost:0755" \
		--entrypoint /agnhost --cmd pause --output "$1/agnhost.tar" || return 1
	rm -rf "$work"
}

build_all() {
	local target
	for target in $TARGETS; do build "$target"; done
}

command_build() {
	local target targets=("$@")
	[ $# -gt 0 ] || targets=(all)
	for target in "${targets[@]}"; do
		case $target in
		-h | --help) usage && exit 0 ;;
		all) build_all ;;
		*) build "$target" ;;
		esac
	done
	for target in "${targets[@]}"; do
		if [ "$target" = all ]; then say "all is built: $CACHE/bin"; else artefact "${target/#relay/tools}"; fi
	done
}
