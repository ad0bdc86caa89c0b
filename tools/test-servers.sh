#!/bin/sh
# What the tests drive and pip does not carry: Chromium, and Debian's redis-server beside the
# Valkey of the tests. Installed when root; otherwise the tests that need them are skipped with
# a loud line.
set -eu

have() {
    for name in "$@"; do
        command -v "$name" >/dev/null 2>&1 && return 0
    done
    return 1
}

# install WHAT PACKAGE FURTHER-ARGUMENTS...
install() {
    what=$1 package=$2
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "test: installing $package"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" \
            >/dev/null
    else
        echo "test: no $what; its tests will be skipped (apt-get install $package)" >&2
    fi
}

# Debian's packages start their service; the tests start their own servers. invoke-rc.d(8) asks
# policy-rc.d first: 101 forbids it.
install_stopped() {
    policy=/usr/sbin/policy-rc.d
    made=
    if [ "$(id -u)" = 0 ] && [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        made=$policy
        trap 'rm -f "$made"' EXIT
    fi
    install "$@"
    [ -z "$made" ] || rm -f "$made"
    trap - EXIT
}

have chromium chromium-browser google-chrome || install Chromium chromium
have redis-server || install_stopped redis-server redis-server
