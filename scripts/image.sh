#!/bin/sh
# Build the container image, as localhost/csi-local:VERSION, and where OUTPUT names a file, save it there.
#
#   BASE_IMAGE=…   a base to use, from a registry or from the builder's own store. Without it the Dockerfile's own is
#                  tried, and where no registry can be reached one is made from the machine's Debian mirror.
#   OUTPUT=FILE    a docker-archive, for `ctr images import` or `docker load`
#   STORE=DIR      where buildah keeps images; the default is a cache of this user
#
# As root, with buildah (and mmdebstrap where a base must be made).
set -eu
cd "$(dirname "$0")/.."
umask 022

VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGE=${IMAGE:-localhost/csi-local:$VERSION}
STORE=${STORE:-${XDG_CACHE_HOME:-$HOME/.cache}/csi-local/images}
CA=/etc/ssl/certs/ca-certificates.crt

# What a made base has: Python, the means to install wheels, and the programs of the Dockerfile.
PACKAGES=python3,python3-venv,ca-certificates,btrfs-progs,cryptsetup-bin,e2fsprogs,mount,util-linux,xfsprogs
MADE_BASE=localhost/csi-local-base:trixie

# The last commit of what goes into the image stands for every file's time: two builds of it are the same, byte for byte,
# whatever of the first is in the builder's cache.
if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
    SOURCE_DATE_EPOCH=$(git log -1 --format=%ct -- Dockerfile csi_local deploy/csi-local locks/run.txt 2>/dev/null || true)
fi
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-0}"

say() { printf 'image: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

command -v buildah >/dev/null || fail "buildah is missing. Install it with: apt-get install -y buildah"
[ "$(id -u)" -eq 0 ] || fail "building needs root: sudo make image"

# Its own store, and no daemon. With nothing but root's own rights there is no need of another namespace.
builder() {
    buildah --root "$STORE/root" --runroot "$STORE/run" --storage-driver "${STORAGE_DRIVER:-overlay}" "$@"
}

made_base() {
    if builder inspect --type image "$MADE_BASE" >/dev/null 2>&1; then
        return 0
    fi
    command -v mmdebstrap >/dev/null || fail "mmdebstrap is missing. Install it with: apt-get install -y mmdebstrap"
    say "making $MADE_BASE from the Debian mirror of this machine"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    # The machine's own mirror, for the other release.
    if [ -f /etc/apt/sources.list.d/debian.sources ]; then
        sources=$work/trixie.sources
        sed 's/bookworm/trixie/g' /etc/apt/sources.list.d/debian.sources >"$sources"
    else
        sources=$work/trixie.list
        sed -n '/^deb .*debian/s/bookworm/trixie/gp' /etc/apt/sources.list >"$sources"
    fi
    # Nothing that differs between two machines or two days stays: caches, logs, the host's name.
    # shellcheck disable=SC2016 # $1 is the hook's
    mmdebstrap --mode=root --variant=minbase --include="$PACKAGES" --quiet \
        --dpkgopt=path-exclude='/usr/share/man/*' --dpkgopt=path-exclude='/usr/share/doc/*' \
        --dpkgopt=path-exclude='/usr/share/locale/*' \
        --customize-hook='rm -rf "$1"/etc/resolv.conf "$1"/etc/hostname "$1"/var/log/* "$1"/var/cache/* "$1"/var/lib/apt/lists/*' \
        --customize-hook='ln -sf /usr/bin/python3 "$1/usr/local/bin/python"' \
        trixie "$work/base.tar" "$sources"
    container=$(builder from scratch)
    builder add --quiet "$container" "$work/base.tar" / >/dev/null
    builder config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    builder commit --quiet --rm --timestamp 0 "$container" "$MADE_BASE" >/dev/null
    rm -rf "$work"
    trap - EXIT
}

if [ -z "${BASE_IMAGE:-}" ]; then
    BASE_IMAGE=$(sed -n 's/^ARG BASE_IMAGE=//p' Dockerfile)
    if ! builder pull --quiet --policy ifmissing "$BASE_IMAGE" >/dev/null 2>&1; then
        say "$BASE_IMAGE cannot be pulled"
        BASE_IMAGE=$MADE_BASE
    fi
fi
if [ "$BASE_IMAGE" = "$MADE_BASE" ]; then
    made_base
fi

# Of the two formats, docker's would have the builder's own container in it.
set -- --isolation chroot --layers --pull-never --format oci --timestamp "$SOURCE_DATE_EPOCH" \
    --build-arg BASE_IMAGE="$BASE_IMAGE" --tag "$IMAGE"
[ ! -f "$CA" ] || set -- "$@" --volume "$CA:$CA:ro"
builder build "$@" . >&2
[ -z "${OUTPUT:-}" ] || builder push --quiet "$IMAGE" "docker-archive:$OUTPUT:$IMAGE" >&2
builder images --format '{{.Name}}:{{.Tag}} {{.Size}} {{.Digest}}' --noheading "$IMAGE"
