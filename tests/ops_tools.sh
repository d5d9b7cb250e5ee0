#!/usr/bin/env bash
# What slow tests need of Debian: `ops_tools.sh DIR`.
#
# Prometheus is unpacked into DIR, which nobody need be root for and which starts no service.  podman
# and debootstrap, which build and run the image, are installed if we are root.  Where packages cannot
# be had DIR/unavailable says why, and the tests that need them are skipped.
set -euo pipefail
mkdir -p "$1"
cd "$1"
rm -f unavailable

without() {
    echo "$1" | tee unavailable
    exit 0
}

command -v apt-get > /dev/null || without "no apt-get: Prometheus and podman come from Debian's packages"

if [ ! -x usr/bin/promtool ]; then
    apt-get download -qq prometheus 2> /dev/null \
        || { apt-get update -qq && apt-get download -qq prometheus; } \
        || without "apt-get cannot fetch prometheus"
    dpkg-deb --extract prometheus_*.deb .
    rm prometheus_*.deb
fi

if ! command -v podman runc debootstrap > /dev/null; then
    [ "$(id -u)" = 0 ] || without "not root: podman, runc and debootstrap must be installed by hand"
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        podman buildah runc debootstrap > /dev/null || without "apt-get cannot install podman"
fi
