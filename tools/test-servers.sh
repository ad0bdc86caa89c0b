#!/bin/sh
# What the tests drive and pip does not carry: Chromium. Installed when root;
# otherwise the tests that need it are skipped with a loud line.
set -eu
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
