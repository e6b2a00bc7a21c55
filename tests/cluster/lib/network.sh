# shellcheck shell=bash
# The network of a cluster, and the faults on its link.
#
#   caller's namespace                 namespace towline-NAME
#   tl<slot>  HOST_IP  ------veth------  uplink  UPLINK_IP
#                                        lo      NODE_IP (API server, kubelet)
#                                        veth…   pods, one /32 route each
#
# Cluster number <slot> has 198.18.<slot>.0/24 for its link and node, and
# 198.19.<2*slot>.0/24 and the next for services and pods. NODE_IP is on lo, so
# that cutting the link takes nothing away inside.

SLOTS=128

# allot_network NAME: picks a free slot and makes namespace and link.
allot_network() {
	local name=$1 slot interface
	NETNS=towline-$name
	if [ -e "/run/netns/$NETNS" ]; then
		die "the network namespace $NETNS is there, but its cluster is not in $STATE" \
			"set TOWLINE_STATE to where it was made and run 'cluster down $name', or take another name"
	fi
	for ((slot = 0; slot < SLOTS; slot++)); do
		interface=tl$slot
		# Whoever makes the interface has the slot.
		ip -oneline address show to "198.18.$slot.0/24" | grep -q . && continue
		ip link add name "$interface" type veth peer name "uplink$slot" 2>/dev/null && break
	done
	[ "$slot" -lt $SLOTS ] || die "all $SLOTS test networks are taken" "tests/cluster/cluster down --all"
	SLOT=$slot
	HOST_LINK=$interface
	ip link set "$interface" alias "$NETNS"
	HOST_IP=198.18.$slot.1
	UPLINK_IP=198.18.$slot.2
	NODE_IP=198.18.$slot.3
	SERVICE_CIDR=198.19.$((2 * slot)).0/24
	POD_CIDR=198.19.$((2 * slot + 1)).0/24
}

make_network() {
	local ns=/run/netns/$NETNS
	ip netns add "$NETNS"
	ip link set "uplink$SLOT" netns "$NETNS" name uplink
	ip address add "$HOST_IP/24" dev "$HOST_LINK"
	ip link set "$HOST_LINK" up
	# IPv6 would be a second way in and out that nothing here needs.
	nsenter --net="$ns" sh -ec '
		for file in /proc/sys/net/ipv6/conf/all/disable_ipv6 /proc/sys/net/ipv6/conf/default/disable_ipv6; do
			[ ! -e "$file" ] || echo 1 >"$file"
		done
		echo 1 >/proc/sys/net/ipv4/ip_forward
		ip link set lo up
	'
	nsenter --net="$ns" ip address add "$UPLINK_IP/24" dev uplink
	nsenter --net="$ns" ip address add "$NODE_IP/32" dev lo
	nsenter --net="$ns" ip link set uplink up
	uplink_route
	# The NAT: pods leave with the address of the uplink, nothing new comes in.
	nsenter --net="$ns" nft -f - <<-NFT
		table inet towline {
			chain inbound {
				ct state established,related accept
				counter drop
			}
			chain input {
				type filter hook input priority filter; policy accept;
				iifname "uplink" jump inbound
			}
			chain forward {
				type filter hook forward priority filter; policy accept;
				iifname "uplink" jump inbound
			}
			chain postrouting {
				type nat hook postrouting priority srcnat; policy accept;
				oifname "uplink" masquerade
			}
		}
	NFT
	touch "$DIR/network-made"
}

# own_link: the interface is there, and not that of a cluster made since.
own_link() { [ "$(cat "/sys/class/net/$HOST_LINK/ifalias" 2>/dev/null)" = "$NETNS" ]; }

network_whole() { [ -e "$DIR/network-made" ] && netns_exists "$NETNS" && own_link; }

# The test range is reached through the caller, so that one gateway address does
# for all clusters; there is no default route: nothing leaves the machine.
uplink_route() {
	nsenter --net="/run/netns/$NETNS" ip route replace 198.18.0.0/15 via "$HOST_IP" dev uplink src "$UPLINK_IP"
}

remove_network() {
	! own_link || ip link delete "$HOST_LINK"
	[ ! -e "/run/netns/$NETNS" ] || ip netns delete "$NETNS"
}

# assert_behind_nat: a listener inside cannot be reached from here by any of the
# cluster's addresses, while the way out works.
assert_behind_nat() {
	local address port=${APISERVER_URL##*:}
	for address in "$NODE_IP" "$UPLINK_IP"; do
		if timeout 0.4 bash -c "exec 3<>/dev/tcp/$address/$port" 2>/dev/null; then
			die "the cluster can be dialled from outside ($address:$port answers), so it is not behind NAT" \
				"nsenter --net=/run/netns/$NETNS nft list table inet towline"
		fi
	done
	inside ping -c 1 -W 2 -q "$HOST_IP" >/dev/null 2>&1 || inside "$(busybox_path)" ping -c 1 -W 2 "$HOST_IP" >/dev/null 2>&1 ||
		die "the cluster does not reach $HOST_IP, where a gateway would listen" \
			"ip address show dev $HOST_LINK; a firewall of this machine may drop what comes in there"
}

# --- faults ------------------------------------------------------------------

link_usage() {
	cat <<-'USAGE'
		Usage: cluster link NAME FAULT

		Faults on the link between a cluster and the caller; they add up, and last
		until 'restore'.

		  cut             pull the cable: no carrier, connecting fails with no route
		  blackhole       packets vanish both ways
		  refuse          TCP is answered with resets both ways
		  loss PERMILLE   that many in 1,000 packets are lost, each way
		  rate MBIT       at most that many megabits per second, each way
		  kill [[IP:]PORT]
		                  end established TCP connections to HOST_IP[:PORT], or to
		                  another address, at once (also those of pods); nothing else
		                  changes
		  stall [[IP:]PORT]
		                  packets of TCP connections that are established with
		                  HOST_IP[:PORT], or with another address, vanish both ways;
		                  new ones pass
		  restore         undo all of it
		  show            what is in force

		Example:
		  tests/cluster/cluster link dev loss 10
	USAGE
}

is_number() { [[ $1 =~ ^[0-9]+$ ]]; }

command_link() {
	local name=${1:-} fault=${2:-}
	case "$name" in
	'') usage_error "'link' needs the name of a cluster" ;;
	-h | --help) link_usage && return 0 ;;
	esac
	need_root link
	load_cluster "$name"
	netns_exists "$NETNS" || die "the network of '$name' is gone" "tests/cluster/cluster up $name"
	with_lock "$DIR/link.lock" link_fault "$fault" "${3:-}"
}

link_fault() {
	local fault=$1 value=$2
	case "$fault $value" in
	'kill '*:* | 'stall '*:*)
		# Where another cluster's host listens.
		local HOST_IP=${value%:*}
		value=${value##*:}
		;;
	esac
	case "$fault" in
	cut)
		# The cluster's end goes down: this end keeps address and listeners.
		inside ip link set uplink down
		;;
	blackhole) link_rules drop ;;
	refuse) link_rules 'meta l4proto tcp reject with tcp reset' ;;
	loss)
		is_number "$value" && [ "$value" -le 1000 ] || usage_error "'link loss' needs a number from 0 to 1000 (permille)"
		link_rules "numgen random mod 1000 < $value drop"
		;;
	rate)
		is_number "$value" && [ "$value" -gt 0 ] || usage_error "'link rate' needs a number of megabits per second"
		inside tc qdisc replace dev uplink root tbf rate "${value}mbit" burst 256kb latency 200ms
		tc qdisc replace dev "$HOST_LINK" root tbf rate "${value}mbit" burst 256kb latency 200ms
		;;
	kill)
		[ -z "$value" ] || is_number "$value" || usage_error "'link kill' takes a port number"
		link_kill "$value"
		;;
	stall)
		[ -z "$value" ] || is_number "$value" || usage_error "'link stall' takes a port number"
		link_stall "$value"
		;;
	restore)
		inside nft delete table inet towline_link 2>/dev/null || true
		inside nft delete table inet towline_stall 2>/dev/null || true
		inside tc qdisc delete dev uplink root 2>/dev/null || true
		tc qdisc delete dev "$HOST_LINK" root 2>/dev/null || true
		inside ip link set uplink up
		uplink_route
		;;
	show)
		inside ip -oneline link show dev uplink
		inside tc qdisc show dev uplink
		inside nft list table inet towline_link 2>/dev/null || true
		inside nft list table inet towline_stall 2>/dev/null || true
		;;
	'') usage_error "'link' needs a fault: cut, blackhole, refuse, loss, rate, kill, stall, restore" ;;
	*) usage_error "there is no fault '$fault': there are cut, blackhole, refuse, loss, rate, kill, stall, restore" ;;
	esac
}

# link_rules RULE: for packets in and out over the link, forwarded ones included.
# A chain of its own before the NAT, so that connections under way are hit too.
link_rules() {
	inside nft -f - <<-NFT
		table inet towline_link {
			chain input {
				type filter hook input priority -50; policy accept;
			}
			chain forward {
				type filter hook forward priority -50; policy accept;
			}
			chain output {
				type filter hook output priority -50; policy accept;
			}
		}
		add rule inet towline_link input iifname "uplink" $1
		add rule inet towline_link forward iifname "uplink" $1
		add rule inet towline_link forward oifname "uplink" $1
		add rule inet towline_link output oifname "uplink" $1
	NFT
}

# link_stall [PORT]: connections that begin from now on bear this time's mark, and
# what bears another is dropped.
link_stall() {
	local port='' answer='' mark
	[ -z "$1" ] || { port="tcp dport $1" answer="tcp sport $1"; }
	mark=$(($(date +%s%N) / 1000000 % 2147483647))
	local there="oifname \"uplink\" ip daddr $HOST_IP meta l4proto tcp $port"
	local back="iifname \"uplink\" ip saddr $HOST_IP meta l4proto tcp $answer"
	inside nft -f - <<-NFT
		table inet towline_stall
		delete table inet towline_stall
		table inet towline_stall {
			chain input {
				type filter hook input priority -50; policy accept;
				$back ct mark != $mark drop
			}
			chain forward {
				type filter hook forward priority -50; policy accept;
				$there ct state new ct mark set $mark
				$there ct mark != $mark drop
				$back ct mark != $mark drop
			}
			chain output {
				type filter hook output priority -50; policy accept;
				$there ct state new ct mark set $mark
				$there ct mark != $mark drop
			}
		}
	NFT
}

# link_kill [PORT]: sockets of the namespace itself and of every pod in it.
link_kill() {
	local namespace filter=(dst "$HOST_IP") killed=0 count
	[ -z "$1" ] || filter+=(dport "=" ":$1")
	for namespace in "/run/netns/$NETNS" "$DIR"/containerd/state/io.containerd.grpc.v1.cri/netns/*; do
		[ -e "$namespace" ] || continue
		count=$(nsenter --net="$namespace" ss --no-header --tcp --kill state established "${filter[@]}" 2>/dev/null | wc -l) || continue
		killed=$((killed + count))
	done
	say "ended $killed connections to $HOST_IP${1:+:$1}"
}
