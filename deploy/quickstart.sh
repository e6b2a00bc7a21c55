#!/usr/bin/env bash
# From a checkout to kubectl through the gateway, with one command.
set -euo pipefail

here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
# shellcheck source=quickstart/common.sh
. "$here/quickstart/common.sh"

usage() {
	cat <<'USAGE'
Usage: deploy/quickstart.sh [--name NAME] [up [--context CONTEXT] | env | status | down]

Builds Towline, runs a gateway and a Kubernetes cluster behind NAT on this
machine, connects the two, and shows kubectl working through the gateway.

  up          (the default) bring it up; everything keeps running. Harmless when it
              is up, repairs what is missing
    --context CONTEXT
              use your own cluster, by this context of your kubeconfig, instead of
              bringing one up. The agent then runs as a process on this machine, as
              no image can be put on the nodes of somebody else's cluster
  env         print the settings for your shell: eval "$(deploy/quickstart.sh env)"
  status      what runs; exit status 1 if something does not
  down        stop and remove all of it
  --name NAME a second one beside the first (default: quickstart)

It needs root (network namespaces, containers) unless you use --context, and what
tests/prerequisites.sh names. The first run compiles Kubernetes and takes about a
quarter of an hour on two cores; later runs take seconds.

Environment
  XDG_STATE_HOME    its state goes to towline/NAME in there (default: ~/.local/state)
  CARGO_TARGET_DIR  where Rust code is built (default: in TOWLINE_CACHE)
  TOWLINE_CACHE     what is built once (default: ~/.cache/towline)

Examples
  deploy/quickstart.sh
  eval "$(deploy/quickstart.sh env)" && kubectl get pods -A
  deploy/quickstart.sh up --context kind-dev
  deploy/quickstart.sh down
USAGE
}

usage_error() {
	say "$1"
	printf '     do: deploy/quickstart.sh --help\n' >&2
	exit 2
}

NAME=quickstart
verb=''
context=''
while [ $# -gt 0 ]; do
	case $1 in
	-h | --help) usage && exit 0 ;;
	--name | --context)
		[ -n "${2:-}" ] || usage_error "$1 needs a value"
		if [ "$1" = --name ]; then NAME=$2; else context=$2; fi
		shift
		;;
	up | env | status | down)
		[ -z "$verb" ] || usage_error "both '$verb' and '$1'"
		verb=$1
		;;
	*) usage_error "unknown argument '$1'" ;;
	esac
	shift
done
verb=${verb:-up}
[ -z "$context" ] || [ "$verb" = up ] || usage_error "--context belongs to 'up'"
check_name "$NAME"

DIR=${XDG_STATE_HOME:-${HOME:-/root}/.local/state}/towline/$NAME
case $DIR in
*[!A-Za-z0-9._/+@-]*) die "the state directory is written into configurations: use a plain path ('$DIR')" ;;
esac
PROJECT=demo
USER_NAME='admin'
BINDING=towline-$NAME-admin
POD=towline-$NAME-hello
KUBECONFIG_FILE=$DIR/kubeconfig

# What this one was brought up with: CONTEXT (empty: our own cluster), URL.
CONTEXT=''
URL=''
# shellcheck disable=SC1091
load_settings() { [ ! -e "$DIR/settings" ] || . "$DIR/settings"; }

# as_user CMD...: as who follows the README would, with this state only.
as_user() {
	env TOWLINE_CONFIG_DIR="$DIR/config" KUBECONFIG="$KUBECONFIG_FILE" PATH="$(programs_path)" "$@"
}

# The static programs first, then the caller's own, then what the cluster was built from.
programs_path() { printf '%s:%s:%s\n' "$DIR/bin" "$PATH" "$CACHE/bin"; }

# as_cluster_admin ARGUMENTS...: kubectl straight to the API server, as its administrator.
as_cluster_admin() {
	if [ -n "$CONTEXT" ]; then
		env KUBECONFIG="$DIR/admin.kubeconfig" PATH="$(programs_path)" kubectl "$@"
	else
		"$CLUSTER" kubectl "$NAME" "$@"
	fi
}

# quietly COMMAND...: what single commands suggest as a next step is not the
# reader's; what they say when they fail is.
quietly() {
	local said status=0
	said=$("$@" 2>&1) || status=$?
	[ "$status" -eq 0 ] || printf '%s\n' "$said" >&2
	return "$status"
}

# --- up ----------------------------------------------------------------------

timings=()
# timed WHAT COMMAND...: says what it does before it does it, and keeps the time.
timed() {
	local what=$1 began=$EPOCHREALTIME took
	shift
	say "$what ..."
	"$@"
	took=$(seconds_since "$began")
	timings+=("$(printf '%7s s  %s' "$took" "$what")")
}

command_up() {
	local wanted=$context
	# Before anything is made.
	check_needs "$wanted"
	mkdir -p "$DIR"
	chmod 700 "$DIR"
	with_lock "$LOCKS/quickstart-$NAME" up_locked "$wanted"
}

check_needs() { # CONTEXT
	if [ -z "$1" ]; then
		"$TOP/tests/prerequisites.sh" --check build cluster ||
			die 'this machine lacks what the quick start needs (above); nothing was started' 'sudo tests/prerequisites.sh --install build cluster'
		return
	fi
	"$TOP/tests/prerequisites.sh" --check build ||
		die 'this machine lacks what the quick start needs (above); nothing was started' 'sudo tests/prerequisites.sh --install build'
	command -v kubectl >/dev/null || die 'kubectl is not on PATH; nothing was started' 'install it as https://kubernetes.io/docs/tasks/tools/ says'
	kubectl config get-contexts "$1" >/dev/null 2>&1 ||
		die "your kubeconfig has no context '$1'; it has: $(kubectl config get-contexts -o name 2>/dev/null | tr '\n' ' ')" \
			'deploy/quickstart.sh up --context ONE-OF-THEM'
	kubectl --context "$1" --request-timeout 10s get --raw /version >/dev/null ||
		die "the cluster of context '$1' does not answer (above); nothing was started" "kubectl --context $1 version"
}

up_locked() { # CONTEXT
	local began=$EPOCHREALTIME
	load_settings
	if [ -e "$DIR/settings" ] && [ "$CONTEXT" != "$1" ]; then
		die "the quick start is up with ${CONTEXT:+context }${CONTEXT:-a cluster of its own}" 'deploy/quickstart.sh down'
	fi
	CONTEXT=$1
	timed 'building gateway, agent and command line (static)' build_programs
	if [ -z "$CONTEXT" ]; then
		timed 'bringing up a Kubernetes cluster behind NAT' "$CLUSTER" up "$NAME" --node
	else
		save_admin_kubeconfig
	fi
	timed 'starting the gateway' gateway_up
	timed 'signing in' sign_in
	timed 'registering the cluster, and running its agent' agent_up
	timed 'writing a kubeconfig: towline get-credentials' get_credentials
	timed 'waiting for the first answer through the gateway' wait_for_answer
	timed 'starting a pod to look at' pod_up
	show
	printf '\n'
	printf '%s\n' "${timings[@]}"
	printf '%7s s  in all\n' "$(seconds_since "$began")"
	cat <<-NEXT

		It keeps running. Your own kubectl:

		    eval "\$($(shown_command) env)"
		    kubectl get pods -A

		And to remove all of it: $(shown_command) down
	NEXT
}

# How the caller may type this script again.
shown_command() {
	local command=./deploy/quickstart.sh
	[ "$(pwd)" = "$TOP" ] || command=$TOP/deploy/quickstart.sh
	[ "$NAME" = quickstart ] || command+=" --name $NAME"
	printf '%s\n' "$command"
}

# build_programs: a copy of them is the quick start's own, so that a later build
# does not change what runs.
build_programs() {
	local program
	build_static_programs
	mkdir -p "$DIR/bin"
	for program in towline-gateway towline-agent towline; do
		! cmp -s "$STATIC_PROGRAMS/$program" "$DIR/bin/$program" || continue
		# Whatever runs the one before ends; a later step starts it again.
		stop_all "${program#towline-}"
		install -m 755 "$STATIC_PROGRAMS/$program" "$DIR/bin/$program"
	done
}

save_admin_kubeconfig() {
	[ -e "$DIR/admin.kubeconfig" ] ||
		(umask 077 && kubectl config view --raw --minify --flatten --context "$CONTEXT" >"$DIR/admin.kubeconfig")
}

# host_ip: where the gateway listens. The cluster's link ends there, so nobody
# outside this machine reaches it.
host_ip() {
	if [ -n "$CONTEXT" ]; then
		echo 127.0.0.1
	else
		# shellcheck disable=SC1091
		(. "$("$CLUSTER" dir "$NAME")/env" && echo "$HOST_IP")
	fi
}

gateway_up() {
	local address port
	address=$(host_ip)
	if [ -n "$URL" ] && [ "${URL#"https://$address:"}" = "$URL" ]; then
		say "the cluster was made anew with another address: the gateway is, too"
		stop_all gateway agent
		forget_gateway
	fi
	if [ ! -e "$DIR/settings" ]; then
		# What a run left that got no further.
		stop_all gateway agent
		forget_gateway
	fi
	if running gateway; then
		say "the gateway runs already, at $URL"
		return
	fi
	if [ -z "$URL" ]; then
		port=$(free_port "$address")
		URL=https://$address:$port
		(umask 077 && "$DIR/bin/towline-gateway" init --state-dir "$DIR/gateway" --host "$address" \
			--listen "$address:$port" --public-url "$URL" --project "$PROJECT" --admin "$USER_NAME" \
			--print json >"$DIR/init.json")
		printf "CONTEXT='%s'\nURL='%s'\n" "$CONTEXT" "$URL" >"$DIR/settings"
	fi
	launch gateway "$DIR/bin/towline-gateway" run --config "$DIR/gateway/gateway.toml"
	wait_for 20 "the gateway answers at $URL" gateway gateway_answers
}

# forget_gateway: another gateway knows no users, memberships or keys of the one before.
forget_gateway() {
	rm -rf --one-file-system "$DIR/gateway" "$DIR/config" "$DIR/settings" "$DIR/init.json" \
		"$DIR/password" "$DIR/password-is-set" "$KUBECONFIG_FILE" "$DIR/agent"
	URL=''
}

gateway_answers() {
	local address=${URL#https://}
	# Whoever listens there, ours must still run: wait_for looks at that.
	timeout 2 bash -c "exec 3<>/dev/tcp/${address%:*}/${address#*:}"
}

# free_port ADDRESS: one that nobody listens at, chosen by chance from the range
# below the one that the kernel takes for outgoing connections.
free_port() {
	local port
	for _ in $(seq 50); do
		port=$((20000 + RANDOM % 10000))
		! timeout 1 bash -c "exec 3<>/dev/tcp/$1/$port" 2>/dev/null && echo "$port" && return
	done
	die "no free port on $1"
}

from_init() { jq_free "$1" <"$DIR/init.json"; }

# jq_free KEY: a string of a flat JSON object, without asking for jq.
jq_free() { tr -d '\n' | sed -n "s/.*\"$1\"[[:space:]]*:[[:space:]]*\"\([^\"]*\)\".*/\1/p"; }

sign_in() {
	if as_user towline whoami >/dev/null 2>&1; then
		say "signed in already"
		return
	fi
	local login=(towline login "$URL" --certificate-authority "$(from_init certificateAuthority)" --username "$USER_NAME")
	# Kept before it is set: a run that is killed in between goes on with it.
	[ -e "$DIR/password" ] || (umask 077 && head -c 24 /dev/urandom | base64 >"$DIR/password")
	if [ ! -e "$DIR/password-is-set" ] && quietly as_user "${login[@]}" --one-time-code "$(from_init oneTimeCode)" \
		--new-password-file "$DIR/password"; then
		touch "$DIR/password-is-set"
		return
	fi
	quietly as_user "${login[@]}" --password-file "$DIR/password"
	touch "$DIR/password-is-set"
}

membership() { as_user towline memberships describe "$NAME" --project "$PROJECT" -o json 2>/dev/null; }

# register FLAGS...: the membership may be there from a run that got no further.
register() {
	local renew=()
	! membership >/dev/null || renew=(--renew)
	quietly as_user towline memberships register "$NAME" --project "$PROJECT" "${renew[@]}" --force "$@"
}

agent_up() {
	mkdir -p "$DIR/agent"
	if [ -n "$CONTEXT" ]; then
		agent_process_up
	else
		agent_pod_up
	fi
	# The cluster's own RBAC has the last word: it knows the user by the name that the gateway gives.
	as_cluster_admin get clusterrolebinding "$BINDING" >/dev/null 2>&1 ||
		quietly as_cluster_admin create clusterrolebinding "$BINDING" --clusterrole cluster-admin --user "$USER_NAME"
}

agent_pod_up() {
	local image digest
	digest=$(sha256sum <"$DIR/bin/towline-agent" | cut -c1-12)
	image=towline-agent:$(agent_version)-$digest
	if [ ! -e "$DIR/agent/$digest.tar" ]; then
		rm -f "$DIR"/agent/*.tar
		build_agent_image "$DIR/agent/$digest.tar.new" "$image"
		mv "$DIR/agent/$digest.tar.new" "$DIR/agent/$digest.tar"
	fi
	"$CLUSTER" load "$NAME" "$DIR/agent/$digest.tar" >/dev/null
	if [ ! -e "$DIR/agent/applied" ] || ! as_cluster_admin get namespace towline >/dev/null 2>&1; then
		rm -f "$DIR/agent/applied"
		# An agent of an earlier gateway would keep that one's key.
		quietly as_cluster_admin delete namespace towline --ignore-not-found --timeout 60s
		register --manifest "$DIR/agent/agent.yaml" --image "$image" --impersonate-users "$USER_NAME"
		quietly as_cluster_admin apply -f "$DIR/agent/agent.yaml"
		printf '%s\n' "$image" >"$DIR/agent/applied"
	elif [ "$(cat "$DIR/agent/applied")" != "$image" ]; then
		sed -i "s#image: .*towline-agent:.*#image: $image#" "$DIR/agent/agent.yaml"
		quietly as_cluster_admin apply -f "$DIR/agent/agent.yaml"
		printf '%s\n' "$image" >"$DIR/agent/applied"
	fi
	quietly as_cluster_admin -n towline rollout status --timeout 60s deployment
}

agent_process_up() {
	say "no image can be put on the nodes of context '$CONTEXT': the agent runs as a process on this machine"
	if running agent; then
		say 'the agent runs already'
		return
	fi
	if [ ! -e "$DIR/agent/agent.key" ]; then
		register --output-file "$DIR/agent/registration.yaml"
	fi
	launch agent "$DIR/bin/towline-agent" run --registration "$DIR/agent/registration.yaml" \
		--key-file "$DIR/agent/agent.key" --kubeconfig "$DIR/admin.kubeconfig" --health-listen 127.0.0.1:0
}

get_credentials() {
	quietly as_user towline get-credentials "$NAME" --project "$PROJECT" --kubeconfig "$KUBECONFIG_FILE"
}

through_gateway() { as_user kubectl --request-timeout 15s "$@"; }

wait_for_answer() {
	local component=gateway
	[ -z "$CONTEXT" ] || component=agent
	if ! wait_for 60 'the API server answers through the gateway' "$component" through_gateway get --raw /version; then
		through_gateway get --raw /version || true
		[ -n "$CONTEXT" ] || as_cluster_admin -n towline logs --tail 15 deployment/towline-agent >&2 || true
		die 'no answer through the gateway (above)' "$(shown_command) status"
	fi
}

pod_up() {
	local image=busybox:latest policy=IfNotPresent
	if ! through_gateway get pod "$POD" >/dev/null 2>&1; then
		quietly through_gateway run "$POD" --image "$image" --image-pull-policy "$policy" --restart Never \
			--overrides '{"spec":{"terminationGracePeriodSeconds":0}}' -- sleep 1000000
	fi
	quietly through_gateway wait --for condition=Ready --timeout 60s "pod/$POD"
}

# show: what a person would type, and what comes.
show() {
	local began
	printf '\n$ kubectl get pods -A\n'
	began=$EPOCHREALTIME
	through_gateway get pods -A
	timings+=("$(printf '%7s s  kubectl get pods -A, through the gateway' "$(seconds_since "$began")")")
	# shellcheck disable=SC2016
	printf '\n$ kubectl exec %s -- sh -c %s\n' "$POD" "'echo \"hello from \$(hostname), through the gateway\"'"
	began=$EPOCHREALTIME
	# shellcheck disable=SC2016
	through_gateway exec "$POD" -- sh -c 'echo "hello from $(hostname), through the gateway"'
	timings+=("$(printf '%7s s  kubectl exec, through the gateway' "$(seconds_since "$began")")")
}

# --- the others --------------------------------------------------------------

need_up() {
	load_settings
	[ -e "$DIR/settings" ] || die 'the quick start is not up' "$(shown_command)"
}

command_env() {
	need_up
	[ -e "$KUBECONFIG_FILE" ] || die 'the quick start came only half the way up' "$(shown_command)"
	cat <<-SETTINGS
		export KUBECONFIG='$KUBECONFIG_FILE'
		export TOWLINE_CONFIG_DIR='$DIR/config'
		export PATH='$DIR/bin':"\$PATH":'$CACHE/bin'
	SETTINGS
}

command_status() {
	local status=0 pid component components=(gateway)
	need_up
	[ -z "$CONTEXT" ] || components+=(agent)
	printf '%-12s %s\n' url "$URL" state "$DIR" cluster "${CONTEXT:-our own, $NAME}"
	for component in "${components[@]}"; do
		if pid=$(recorded_pid "$component"); then
			printf '%-12s running, pid %s; its log: %s\n' "$component" "$pid" "$DIR/log/$component.log"
		else
			printf '%-12s ENDED; its log: %s\n' "$component" "$DIR/log/$component.log"
			status=1
		fi
	done
	if [ -z "$CONTEXT" ]; then
		"$CLUSTER" status "$NAME" || status=1
	fi
	as_user towline memberships list --project "$PROJECT" || status=1
	through_gateway get --raw /version >/dev/null || status=1
	[ "$status" -eq 0 ] || printf '     do: %s\n' "$(shown_command)" >&2
	return "$status"
}

command_down() { with_lock "$LOCKS/quickstart-$NAME" down_locked; }

down_locked() {
	if [ ! -d "$DIR" ] && [ ! -d "$(cluster_dir "$NAME")" ]; then
		say "nothing is up: nothing to take down"
		return
	fi
	load_settings
	if [ -n "$CONTEXT" ] && [ -e "$DIR/admin.kubeconfig" ]; then
		as_cluster_admin --request-timeout 20s delete --ignore-not-found pod "$POD" || true
		as_cluster_admin --request-timeout 20s delete --ignore-not-found clusterrolebinding "$BINDING" || true
	fi
	stop_all agent gateway
	[ -n "$CONTEXT" ] || [ ! -d "$(cluster_dir "$NAME")" ] || "$CLUSTER" down "$NAME"
	rm -rf --one-file-system "$DIR"
	# Ours only if they are empty.
	rmdir "$(dirname "$DIR")" "$LOCKS" 2>/dev/null || true
	say "it is gone; what was built stays in $CACHE and $CARGO_TARGET_DIR"
}

# Read to the end before anything runs: the file may change meanwhile.
"command_$verb"; exit
