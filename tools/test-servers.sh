#!/bin/sh
# What the tests drive and pip does not carry: Chromium, and a Redis that speaks TLS.
# Installed when root; otherwise the tests that need it are skipped with a loud line.
set -eu
servers=.venv/servers
if [ ! -x "$servers/usr/bin/redis-server" ] && command -v apt-get >/dev/null 2>&1; then
    # Unpacked, not installed: an installed one would start by itself.
    echo "test: unpacking Debian's Redis"
    mkdir -p "$servers"
    [ "$(id -u)" != 0 ] || apt-get update -qq
    (cd "$servers" && for package in redis-tools redis-server libjemalloc2 liblzf1 libatomic1; do
        apt-get download -qq "$package" && dpkg -x "$package"_*.deb . || exit 0
    done) 2>/dev/null || echo "test: no Redis with TLS; its tests will be skipped" >&2
fi
for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null 2>&1 && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "test: installing chromium"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null
else
    echo "test: no Chromium; the browser tests will be skipped (apt-get install chromium)" >&2
fi
