# shellcheck shell=bash
# The control plane: etcd, API server, controller manager.

write_env() {
	cat >"$DIR/.env.new" <<-ENV
		NAME=$NAME
		NETNS=$NETNS
		SLOT=$SLOT
		HOST_LINK=$HOST_LINK
		HOST_IP=$HOST_IP
		UPLINK_IP=$UPLINK_IP
		NODE_IP=$NODE_IP
		APISERVER_URL=https://$NODE_IP:6443
		POD_CIDR=$POD_CIDR
		SERVICE_CIDR=$SERVICE_CIDR
		WITH_NODE=$WITH_NODE
		NODE_NAME=$NAME-node
		CLUSTER_DIR=$DIR
		ADMIN_KUBECONFIG=$DIR/admin.kubeconfig
		CA_CERT=$DIR/ca.crt
		AUDIT_LOG=$DIR/log/audit.log
		LOG_DIR=$DIR/log
		PID_DIR=$DIR/pids
		CONTAINERD_SOCKET=$DIR/containerd/containerd.sock
		KUBE_BIN=$(artefact kube)
	ENV
	mv "$DIR/.env.new" "$DIR/env"
	# shellcheck disable=SC1091
	. "$DIR/env"
}

write_certificates() {
	"$(artefact tools)/pki" --dir "$DIR/pki" --name "$NAME" --server "$APISERVER_URL" \
		--node "$NODE_NAME" --sans "$NODE_IP,${SERVICE_CIDR%.*}.1"
	install -m 600 "$DIR/pki/admin.kubeconfig" "$ADMIN_KUBECONFIG"
	install -m 644 "$DIR/pki/ca.crt" "$CA_CERT"
}

start_control_plane() {
	local pki=$DIR/pki
	mkdir -p "$DIR/etcd" "$DIR/log"
	chmod 700 "$DIR/etcd"
	start etcd "$KUBE_BIN/etcd" \
		--data-dir "$DIR/etcd" --unsafe-no-fsync --log-level warn --quota-backend-bytes 8589934592 \
		--listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
		--listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
		--initial-cluster default=http://127.0.0.1:2380
	# shellcheck disable=SC2086
	start kube-apiserver "$KUBE_BIN/kube-apiserver" \
		--etcd-servers http://127.0.0.1:2379 \
		--advertise-address "$NODE_IP" --secure-port 6443 \
		--service-cluster-ip-range "$SERVICE_CIDR" --allow-privileged \
		--tls-cert-file "$pki/apiserver.crt" --tls-private-key-file "$pki/apiserver.key" \
		--client-ca-file "$pki/ca.crt" \
		--authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction \
		--service-account-issuer https://kubernetes.default.svc.cluster.local \
		--service-account-key-file "$pki/sa.pub" --service-account-signing-key-file "$pki/sa.key" \
		--kubelet-client-certificate "$pki/apiserver-kubelet-client.crt" \
		--kubelet-client-key "$pki/apiserver-kubelet-client.key" \
		--kubelet-certificate-authority "$pki/ca.crt" \
		--kubelet-preferred-address-types InternalIP \
		--enable-aggregator-routing --feature-gates CBORServingAndStorage=true \
		--requestheader-client-ca-file "$pki/front-proxy-ca.crt" \
		--requestheader-allowed-names front-proxy-client \
		--requestheader-username-headers X-Remote-User \
		--requestheader-group-headers X-Remote-Group \
		--requestheader-extra-headers-prefix X-Remote-Extra- \
		--proxy-client-cert-file "$pki/front-proxy-client.crt" \
		--proxy-client-key-file "$pki/front-proxy-client.key" \
		--audit-policy-file "$CLUSTER_HOME/etc/audit-policy.yaml" \
		--audit-log-path "$AUDIT_LOG" --audit-log-maxsize 200 --audit-log-maxbackup 1 \
		${TOWLINE_APISERVER_FLAGS:-}
}

start_controllers() {
	local pki=$DIR/pki
	start kube-controller-manager "$KUBE_BIN/kube-controller-manager" \
		--kubeconfig "$pki/controller-manager.kubeconfig" \
		--authentication-kubeconfig "$pki/controller-manager.kubeconfig" \
		--authorization-kubeconfig "$pki/controller-manager.kubeconfig" \
		--bind-address 127.0.0.1 --leader-elect=false \
		--use-service-account-credentials --kube-api-qps 500 --kube-api-burst 1000 \
		--service-account-private-key-file "$pki/sa.key" --root-ca-file "$pki/ca.crt" \
		--cluster-signing-cert-file "$pki/ca.crt" --cluster-signing-key-file "$pki/ca.key" \
		--requestheader-client-ca-file "$pki/front-proxy-ca.crt" \
		--service-cluster-ip-range "$SERVICE_CIDR"
}

# admin ARGS...: kubectl as the administrator, inside.
admin() {
	inside env -u http_proxy -u https_proxy -u HTTP_PROXY -u HTTPS_PROXY \
		"$KUBE_BIN/kubectl" --kubeconfig "$ADMIN_KUBECONFIG" --request-timeout 10s "$@"
}

api_ready() { [ "$(admin get --raw /readyz 2>/dev/null)" = ok ]; }
