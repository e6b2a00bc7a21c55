# shellcheck shell=bash
# The node: containerd, kubelet, kube-proxy, and the scheduler that fills it.

CONTROL_COMPONENTS='etcd kube-apiserver kube-controller-manager'
NODE_COMPONENTS='containerd kube-scheduler kube-proxy kubelet'

expected_components() {
	echo "$CONTROL_COMPONENTS"
	[ "$WITH_NODE" = no ] || echo "$NODE_COMPONENTS"
}

cgroup_directories() { # of this cluster, in every hierarchy that is mounted
	local controller
	if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
		echo "/sys/fs/cgroup/towline-$NAME"
		return 0
	fi
	for controller in /sys/fs/cgroup/*/; do
		[ -e "${controller}cgroup.procs" ] && [ ! -L "${controller%/}" ] && echo "${controller}towline-$NAME"
	done
	return 0
}

make_cgroups() {
	local directory
	if [ -w /sys/fs/cgroup/cgroup.subtree_control ]; then
		# shellcheck disable=SC2013
		for directory in $(cat /sys/fs/cgroup/cgroup.controllers); do
			echo "+$directory" >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null || true
		done
	fi
	while read -r directory; do
		mkdir -p "$directory"
		# A new cpuset is empty, and nothing can run in an empty one.
		if [[ $directory == */cpuset/* ]]; then
			cat /sys/fs/cgroup/cpuset/cpuset.cpus >"$directory/cpuset.cpus"
			cat /sys/fs/cgroup/cpuset/cpuset.mems >"$directory/cpuset.mems"
		fi
	done < <(cgroup_directories)
}

write_node_configuration() {
	local pki=$DIR/pki plugins=/opt/cni/bin
	[ -x $plugins/ptp ] || plugins=/usr/lib/cni
	[ ${#CONTAINERD_SOCKET} -le 104 ] ||
		die "the path $CONTAINERD_SOCKET is too long for a socket" "set TOWLINE_STATE to a shorter directory"
	mkdir -p "$DIR/containerd" "$DIR/kubelet" "$DIR/cni/net.d" "$DIR/log/pods"
	cat >"$DIR/containerd/config.toml" <<-TOML
		version = 2
		root = "$DIR/containerd/root"
		state = "$DIR/containerd/state"
		disabled_plugins = [
		  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
		  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
		  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
		]
		[grpc]
		  address = "$CONTAINERD_SOCKET"
		[plugins."io.containerd.internal.v1.opt"]
		  path = "$DIR/containerd/opt"
		[plugins."io.containerd.grpc.v1.cri"]
		  sandbox_image = "$PAUSE_IMAGE"
		  # Without CAP_SYS_RESOURCE the score cannot be lowered, and containers fail.
		  restrict_oom_score_adj = true
		  netns_mounts_under_state_dir = true
		  [plugins."io.containerd.grpc.v1.cri".cni]
		    bin_dir = "$plugins"
		    conf_dir = "$DIR/cni/net.d"
		  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
		    runtime_type = "io.containerd.runc.v2"
		    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
		      SystemdCgroup = false
	TOML
	# ptp, not bridge: every packet is routed, so services work between pods of
	# one node whether or not the kernel filters bridged packets.
	cat >"$DIR/cni/net.d/10-towline.conflist" <<-CNI
		{
		  "cniVersion": "0.4.0",
		  "name": "towline_${NAME}_",
		  "plugins": [
		    {
		      "type": "ptp",
		      "mtu": 1500,
		      "ipMasq": false,
		      "ipam": {
		        "type": "host-local",
		        "dataDir": "$DIR/cni/allocated",
		        "ranges": [[{"subnet": "$POD_CIDR"}]],
		        "routes": [{"dst": "0.0.0.0/0"}]
		      }
		    },
		    {"type": "portmap", "capabilities": {"portMappings": true}}
		  ]
		}
	CNI
	# There is no DNS here; a name that is asked for all the same fails at once.
	printf 'nameserver 127.0.0.1\noptions timeout:1 attempts:1\n' >"$DIR/kubelet/resolv.conf"
	cat >"$DIR/kubelet/config.yaml" <<-YAML
		apiVersion: kubelet.config.k8s.io/v1beta1
		kind: KubeletConfiguration
		authentication:
		  anonymous: {enabled: false}
		  webhook: {enabled: true}
		  x509: {clientCAFile: $pki/ca.crt}
		authorization: {mode: Webhook}
		tlsCertFile: $pki/kubelet.crt
		tlsPrivateKeyFile: $pki/kubelet.key
		containerRuntimeEndpoint: unix://$CONTAINERD_SOCKET
		cgroupDriver: cgroupfs
		cgroupRoot: /towline-$NAME
		failCgroupV1: false
		failSwapOn: false
		enforceNodeAllocatable: []
		oomScoreAdj: 0
		resolvConf: $DIR/kubelet/resolv.conf
		podLogsDir: $DIR/log/pods
		volumePluginDir: $DIR/kubelet/volume-plugins
		evictionHard:
		  memory.available: 1Mi
		  nodefs.available: 0%
		  imagefs.available: 0%
		imageGCHighThresholdPercent: 100
		imageGCLowThresholdPercent: 99
		healthzBindAddress: 127.0.0.1
		nodeStatusUpdateFrequency: 5s
		syncFrequency: 10s
	YAML
}

start_containerd() {
	start containerd containerd --config "$DIR/containerd/config.toml"
}

containerd_ready() { ctr --address "$CONTAINERD_SOCKET" version; }

start_node() {
	local pki=$DIR/pki
	start kube-scheduler "$KUBE_BIN/kube-scheduler" \
		--kubeconfig "$pki/scheduler.kubeconfig" \
		--authentication-kubeconfig "$pki/scheduler.kubeconfig" \
		--authorization-kubeconfig "$pki/scheduler.kubeconfig" \
		--bind-address 127.0.0.1 --leader-elect=false
	start kube-proxy "$KUBE_BIN/kube-proxy" \
		--kubeconfig "$pki/kube-proxy.kubeconfig" --hostname-override "$NODE_NAME" \
		--proxy-mode nftables --cluster-cidr "$POD_CIDR" --oom-score-adj 0 \
		--conntrack-max-per-core 0 --conntrack-tcp-timeout-established 0 --conntrack-tcp-timeout-close-wait 0 \
		--healthz-bind-address 127.0.0.1:10256 --metrics-bind-address 127.0.0.1:10249
	start kubelet "$KUBE_BIN/kubelet" \
		--config "$DIR/kubelet/config.yaml" --kubeconfig "$pki/node.kubeconfig" \
		--root-dir "$DIR/kubelet/root" --cert-dir "$DIR/kubelet/pki" \
		--node-ip "$NODE_IP" --hostname-override "$NODE_NAME"
}

node_ready() {
	[ "$(admin get node "$NODE_NAME" -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}' 2>/dev/null)" = True ]
}

load_images() { # TAR...
	local tar said
	for tar in "$@"; do
		said=$(ctr --address "$CONTAINERD_SOCKET" --namespace k8s.io images import "$tar" 2>&1) ||
			die "containerd did not take $tar: ${said##*$'\n'}" "make one with: $CACHE/bin/mkimage --help"
		printf '%s\n' "$said" >>"$DIR/log/images.log"
	done
}

# --- taking it away ----------------------------------------------------------

shim_pids() {
	local file words
	for file in /proc/[0-9]*/cmdline; do
		# A process may end before its line is read.
		{ mapfile -d '' -t words <"$file"; } 2>/dev/null || continue
		[[ ${words[0]:-} == *containerd-shim* ]] || continue
		[[ " ${words[*]} " == *" -address $CONTAINERD_SOCKET "* ]] || continue
		file=${file#/proc/}
		echo "${file%/cmdline}"
	done
}

container_pids() {
	local directory
	while read -r directory; do
		[ ! -d "$directory" ] || find "$directory" -name cgroup.procs -exec cat {} + 2>/dev/null || true
	done < <(cgroup_directories) | sort -u
}

kill_containers() {
	local pids tries
	# The shims first: they would report what ends to a containerd that is gone.
	for ((tries = 0; tries < 50; tries++)); do
		mapfile -t pids < <(shim_pids; container_pids)
		[ ${#pids[@]} -gt 0 ] || return 0
		kill -KILL "${pids[@]}" 2>/dev/null || true
		sleep 0.1
	done
	say "these processes of containers do not end: ${pids[*]}"
}

unmount_all() {
	local pass target targets
	for pass in 1 2 3; do
		mapfile -t targets < <(awk -v dir="$DIR/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r)
		[ ${#targets[@]} -gt 0 ] || return 0
		for target in "${targets[@]}"; do
			umount "$target" 2>/dev/null || [ "$pass" -lt 3 ] || umount --lazy "$target" 2>/dev/null || true
		done
		sleep 0.1
	done
}

remove_cgroups() {
	local directory
	while read -r directory; do
		[ ! -d "$directory" ] || find "$directory" -depth -type d -exec rmdir {} + 2>/dev/null || true
	done < <(cgroup_directories)
}

# The kubelet and the CNI library write two things at fixed places.
remove_strays() {
	local link result
	for link in /var/log/containers/*; do
		[ -L "$link" ] && [[ $(readlink "$link") == "$DIR"/* ]] && rm -f "$link"
	done
	rmdir --ignore-fail-on-non-empty /var/log/containers 2>/dev/null || true
	for result in /var/lib/cni/results/"towline_${NAME}_"-*-eth0; do
		[ -e "$result" ] || continue
		link=${result##*/"towline_${NAME}_"-}
		rm -f "$result" "/var/lib/cni/results/cni-loopback-${link%-eth0}-lo"
	done
	rmdir /var/lib/cni/results /var/lib/cni /var/lib/kubelet/device-plugins /var/lib/kubelet 2>/dev/null || true
}
