#!/usr/bin/env bash
# Run a command on a Kubernetes node that is made for it: control plane, kubelet, containerd, kube-proxy, CoreDNS.
# For root, with docker and Go 1.24 and no cluster; built from Go modules, which takes 10 minutes the first time.
# usage: make image && tests/cluster/kubelet.sh make test-cluster
# The node has namespaces of its own and enforces no network policy; only the programs in $cache are left after it.
set -euo pipefail
KUBERNETES=1.34.4
COREDNS=1.13.1 # of the same minor version of client-go
cache=${KUBELET_CACHE:-/var/cache/pg-preflight-kubelet}
node=10.244.0.1 # of the bridge that the pods are on
cd "$(dirname "$0")/../.."

module() { # directory: a module whose staging parts are those of $KUBERNETES
    mkdir -p "$1"
    {
        printf 'module local\n\ngo 1.24.0\n\ngodebug default=go1.24\n\nreplace (\n'
        go mod download -json "k8s.io/kubernetes@v$KUBERNETES" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p' | xargs cat |
            sed -n "s|^\t\(k8s.io/[^ ]*\) => ./staging.*|\t\1 => \1 v0.${KUBERNETES#1.}|p"
        echo ')'
    } >"$1/go.mod"
}

build() {
    export CGO_ENABLED=0 GOFLAGS='-mod=mod -buildvcs=false'
    local set="-X k8s.io/component-base/version" from=k8s.io/kubernetes/cmd program
    set="-s -w $set.gitVersion=v$KUBERNETES $set.gitMajor=1 $set.gitMinor=$(cut -d. -f2 <<<$KUBERNETES)"
    module "$cache/kubernetes"
    (cd "$cache/kubernetes" && go get $from/kubelet@v$KUBERNETES &&
        for program in kubelet kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubectl; do
            echo "building $program"
            nice go build -ldflags "$set" -o "$cache/bin/" $from/$program
        done)
    module "$cache/coredns"
    cp tests/cluster/node/*.go "$cache/coredns"
    (cd "$cache/coredns" && echo "building coredns" && go get github.com/coredns/coredns@v$COREDNS && go mod tidy &&
        nice go build -ldflags '-s -w' -o "$cache/bin/coredns" coredns.go && go build -o "$cache/bin/pause" pause.go)
    touch "$cache/bin/of-$KUBERNETES-$COREDNS"
}

until_ok() { # seconds command...
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || { echo "not in time: $*" >&2; tail -n 5 "$work"/*.log >&2; exit 1; }
        sleep 0.5
    done
}

start() { # program arguments...
    "$@" >"$work/${1##*/}.log" 2>&1 &
}

inside() {
    local each
    for each in /run/netns /run/containerd /var/log /var/lib/cni /var/lib/kubelet; do
        mkdir -p "$each" "$work$each"
        mount --bind "$work$each" "$each"
    done
    ip link add cni0 type bridge
    ip address add $node/24 dev cni0
    for each in lo cni0; do ip link set $each up; done
    echo 1 >/proc/sys/net/ipv4/ip_forward
    # one certificate for everything and everybody
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /O=system:masters/CN=admin -keyout "$work/key" \
        -out "$work/cert" -addext "subjectAltName=IP:127.0.0.1,IP:$node" 2>/dev/null
    for each in tests/cluster/node/*; do sed "s|@work@|$work|g; s|@node@|$node|" "$each" >"$work/${each##*/}"; done
    export KUBECONFIG=$work/kubeconfig

    start etcd --data-dir "$work/etcd" --unsafe-no-fsync
    start kube-apiserver --etcd-servers=http://127.0.0.1:2379 --bind-address=127.0.0.1 --advertise-address=$node \
        --endpoint-reconciler-type=none --service-cluster-ip-range=10.96.0.0/16 --authorization-mode=Node,RBAC \
        --service-account-issuer=https://127.0.0.1 --service-account-{key,signing-key}-file="$work/key" \
        --tls-cert-file="$work/cert" --tls-private-key-file="$work/key" --client-ca-file="$work/cert" \
        --kubelet-preferred-address-types=InternalIP --kubelet-client-certificate="$work/cert" --kubelet-client-key="$work/key"
    start containerd --config "$work/containerd.toml"
    until_ok 60 kubectl get --raw /readyz
    start kube-controller-manager --kubeconfig="$KUBECONFIG" --bind-address=127.0.0.1 --leader-elect=false \
        --service-account-private-key-file="$work/key" --root-ca-file="$work/cert"
    start kube-scheduler --kubeconfig="$KUBECONFIG" --bind-address=127.0.0.1 --leader-elect=false
    start kube-proxy --kubeconfig="$KUBECONFIG" --hostname-override=node --bind-address=$node --conntrack-max-per-core=0 \
        --metrics-bind-address=127.0.0.1 --healthz-bind-address=127.0.0.1
    start coredns -conf "$work/Corefile"
    tar --create --directory "$cache/bin" pause | docker import -c 'ENTRYPOINT ["/pause"]' - localhost/pause:test >/dev/null
    docker save localhost/pause:test "$CLUSTER_IMAGE" "$CLUSTER_POSTGRES" |
        ctr --address "$work/containerd.sock" --namespace k8s.io images import -
    start kubelet --config="$work/kubelet.yaml" --kubeconfig="$KUBECONFIG" --hostname-override=node --node-ip=$node
    for each in {1..40}; do # local volumes, which know fsGroup as hostPath does not
        mkdir -p "$work/volumes/$each"
        sed "s|@number@|$each|" "$work/volume.yaml"
    done | kubectl apply --filename - >/dev/null
    until_ok 120 kubectl wait --for=condition=Ready node/node --timeout=5s
    kubectl get nodes --output wide
    "$@"
}

[[ ${1:-} != --inside ]] || { shift; inside "$@"; exit; }
((EUID == 0)) || { echo "only root can start a kubelet" >&2; exit 1; }
for each in docker go containerd ctr runc etcd iptables ip openssl /usr/lib/cni/bridge; do
    command -v "$each" >/dev/null || missing+=" $each"
done
[[ -z ${missing:-} ]] || { echo "missing here:$missing; on Debian 13: apt install containerd runc etcd-server" \
    "containernetworking-plugins docker.io golang iproute2 iptables openssl" >&2; exit 1; }
if [[ ! -e $cache/bin/of-$KUBERNETES-$COREDNS ]]; then
    mkdir -p "$cache/bin"
    echo "building Kubernetes $KUBERNETES; $cache/log says how far it is"
    build >"$cache/log" 2>&1
fi
export PATH=$cache/bin:$PATH CLUSTER_IMAGE=localhost/pg-preflight:test
export CLUSTER_POSTGRES=localhost/pg-preflight-test/postgres:17
docker tag "${PG_PREFLIGHT_IMAGE:-pg-preflight:pg17}" "$CLUSTER_IMAGE"
docker build --quiet --tag "$CLUSTER_POSTGRES" tests/image/postgres
kernel=$(sysctl vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops) # a kubelet changes them
export work && work=$(mktemp --directory /var/tmp/pg-preflight-kubelet.XXXX)
clean() {
    rm --recursive --force "$work"
    sysctl --quiet --load=- <<<"$kernel"
    find /sys/fs/cgroup/*/kubepods /sys/fs/cgroup/kubepods -depth -type d -exec rmdir {} + 2>/dev/null || true
}
trap clean EXIT
unshare --mount --net --pid --fork --mount-proc --kill-child "$0" --inside "$@"
