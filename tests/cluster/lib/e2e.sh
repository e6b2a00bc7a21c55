# shellcheck shell=bash
# Kubernetes' own end-to-end tests, straight to the API server or through a
# gateway.

E2E_FOCUS='\[sig-cli\].*(exec|attach|port-forward|cp|logs|proxy)'
E2E_SKIP='Slow|Serial|Feature:'

e2e_usage() {
	cat <<-USAGE
		Usage: cluster e2e NAME KUBECONFIG [options]

		Runs Kubernetes' own end-to-end tests on a cluster that has a node. With the
		cluster's own admin.kubeconfig ('admin' for short) they run inside its network,
		straight to the API server; with any other, from the caller's network.

		  --focus REGEX    which tests (default: $E2E_FOCUS)
		  --skip REGEX     which of them not (default: $E2E_SKIP)
		  --report DIR     write junit_01.xml and e2e.log there
		  --kubectl PATH   the kubectl they use (default: the newest of the cache)
		  --inside         run inside the cluster's network in any case

		The exit status is that of the tests; the last line is 'N passed, N failed'.

		Examples:
		  tests/cluster/cluster e2e dev admin --report /tmp/direct
		  tests/cluster/cluster e2e dev ~/.kube/config --focus 'sig-cli.*exec'
	USAGE
}

command_e2e() {
	local name='' kubeconfig='' focus=$E2E_FOCUS skip=$E2E_SKIP report='' kubectl='' where=outside
	while [ $# -gt 0 ]; do
		case $1 in
		-h | --help) e2e_usage && return 0 ;;
		--inside) where=inside ;;
		--focus | --skip | --report | --kubectl)
			[ $# -ge 2 ] || usage_error "'e2e $1' needs a value"
			printf -v "${1#--}" %s "$2"
			shift
			;;
		-*) usage_error "'e2e' has no option '$1'; try: tests/cluster/cluster e2e --help" ;;
		*)
			if [ -z "$name" ]; then
				name=$1
			elif [ -z "$kubeconfig" ]; then
				kubeconfig=$1
			else
				usage_error "'e2e' takes the name of a cluster and one kubeconfig"
			fi
			;;
		esac
		shift
	done
	[ -n "$kubeconfig" ] || usage_error "'e2e' needs the name of a cluster and a kubeconfig, or 'admin'"
	need_root e2e
	load_cluster "$name"
	[ "$WITH_NODE" = yes ] || die "'$name' has no node to run pods on" "tests/cluster/cluster up $name --node"
	[ "$kubeconfig" != admin ] || kubeconfig=$ADMIN_KUBECONFIG
	[ -r "$kubeconfig" ] || die "there is no kubeconfig $kubeconfig"
	kubeconfig=$(readlink -f "$kubeconfig")
	[ "$kubeconfig" != "$ADMIN_KUBECONFIG" ] || where=inside
	build e2e
	kubectl=${kubectl:-$KUBE_BIN/kubectl}
	[ -n "$report" ] || report=$(mktemp -d)
	mkdir -p "$report"
	report=$(readlink -f "$report")
	run_e2e
}

# run_e2e: with what command_e2e has read.
run_e2e() {
	local command status=0 summary passed failed
	command=("$(artefact e2e)/e2e.test" --kubeconfig "$kubeconfig" --kubectl-path "$kubectl"
		--provider skeleton --allowed-not-ready-nodes 1 --report-dir "$report"
		--ginkgo.focus "$focus" --ginkgo.skip "$skip" --ginkgo.no-color --ginkgo.timeout 45m)
	[ "$where" = outside ] || command=(nsenter --net="/run/netns/$NETNS" "${command[@]}")
	say "end-to-end tests from $where the cluster's network; all they say: $report/e2e.log"
	: >"$report/e2e.log"
	(cd "$report" && "${command[@]}" >"$report/e2e.log" 2>&1) &
	e2e_progress $! || status=$?
	summary=$(grep -aE '^(Ran [0-9]+ of|SUCCESS!|FAIL!)' "$report/e2e.log" || true)
	if [ -z "$summary" ]; then
		tail -n 20 "$report/e2e.log" >&2
		die "the end-to-end tests ended before they ran (above)"
	fi
	printf '%s\n' "$summary"
	[ "$status" -eq 0 ] || sed -n '/^Summarizing/,$p' "$report/e2e.log" | head -n 40 >&2
	passed=$(sed -n 's/.* \([0-9]*\) Passed.*/\1/p' <<<"$summary" | tail -n 1)
	failed=$(sed -n 's/.* \([0-9]*\) Failed.*/\1/p' <<<"$summary" | tail -n 1)
	echo "${passed:-0} passed, ${failed:-0} failed"
	[ "${passed:-0}" -gt 0 ] || die "no test matched '$focus'"
	return "$status"
}

# e2e_progress PID: a line for each test that ended, until the process has.
e2e_progress() {
	local pid=$1 seen=0 now
	while kill -0 "$pid" 2>/dev/null; do
		sleep 1
		now=$(grep -ao '•' "$report/e2e.log" | wc -l || true)
		[ "$now" -eq "$seen" ] || say "... $now tests have ended"
		seen=$now
	done
	wait "$pid"
}
