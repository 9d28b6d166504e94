# The driver and exactly the programs that it runs.
#
# BASE_IMAGE is anything with Debian trixie and Python 3.13. One that has the programs already needs no apt-get here, and
# so no network: `make image` makes such a one where no registry can be reached. SOURCE_DATE_EPOCH and the builder's
# timestamp option make two builds of one commit the same, byte for byte.
ARG BASE_IMAGE=docker.io/library/python:3.13-slim-trixie

FROM ${BASE_IMAGE} AS packages
COPY locks/run.txt /build/run.txt
# Wheels only, each with its hash. Nothing of pip itself, and no test or type stub, goes into the image.
RUN python3 -m venv /build/venv \
    && /build/venv/bin/pip install --quiet --no-input --no-cache-dir --no-deps --no-compile --only-binary :all: \
        --require-hashes --target /opt/csi-local -r /build/run.txt \
    && rm -rf /opt/csi-local/bin /opt/csi-local/*.dist-info/RECORD /opt/csi-local/*.dist-info/direct_url.json \
    && find /opt/csi-local \( -name tests -o -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' \) -prune -exec rm -rf {} +
COPY csi_local /opt/csi-local/csi_local
RUN find /opt/csi-local \( -name __pycache__ -o -name '*.pyi' \) -prune -exec rm -rf {} + \
    && python3 -m compileall -q -j 1 --invalidation-mode unchecked-hash /opt/csi-local

FROM ${BASE_IMAGE} AS system
ENV PYTHONDONTWRITEBYTECODE=1
ARG PROGRAMS="btrfs-progs cryptsetup-bin e2fsprogs mount util-linux xfsprogs"
# hadolint ignore=DL3008
RUN for program in mkfs.btrfs cryptsetup mkfs.ext4 mount blkid mkfs.xfs; do \
        command -v "$program" >/dev/null || missing=yes; \
    done; \
    if [ -n "${missing:-}" ]; then \
        apt-get update -q && apt-get install -y -q --no-install-recommends ${PROGRAMS}; \
    fi
# What no program of the driver's needs: xfs_scrub with its 37 MB of Unicode tables, pip, perl, documentation. Python's own
# modules are compiled anew: in the image their files have another time than the one they were compiled with.
RUN rm -rf /usr/sbin/xfs_scrub* /usr/lib/*/libicu* /usr/bin/perl* /usr/lib/*/perl* /usr/share/perl* \
        /usr/lib/python3/dist-packages /usr/share/python-wheels /usr/share/doc /usr/share/man /usr/share/info \
        /usr/share/locale /usr/share/zoneinfo /usr/share/lintian /usr/share/bash-completion \
        /var/lib/apt/lists /var/cache /var/log \
    && find /usr -depth \( -name pip -o -name 'pip-*' -o -name ensurepip -o -name idlelib -o -name __pycache__ \) \
        -exec rm -rf {} + \
    && mkdir -m 755 /var/cache /var/log \
    && python3 -m compileall -q -f -j 1 --invalidation-mode unchecked-hash \
        "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
COPY --from=packages /opt/csi-local /opt/csi-local
COPY --chmod=755 deploy/csi-local /usr/local/bin/csi-local
# Whatever was taken away by mistake is found here, and not on somebody's node.
RUN for program in mkfs.btrfs btrfs cryptsetup mkfs.ext4 e2fsck resize2fs mkfs.xfs xfs_growfs blkid wipefs mount umount; do \
        libraries=$(ldd "$(command -v "$program")") || exit 1; \
        case $libraries in *"not found"*) echo "$program: $libraries"; exit 1 ;; esac; \
    done \
    && csi-local --version

# One layer: what was removed does not lie below it.
FROM scratch
# hadolint ignore=DL3067
COPY --from=system / /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# The controller needs no privileges. The node's container is made root, and privileged, by its manifest.
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/csi-local"]
CMD ["--help"]
