#!/bin/sh
# What the tests drive and pip does not carry: Chromium, PostgreSQL, RabbitMQ and Debian's
# redis-server (TLS, Sentinel, another version than the bundled Valkey). Installed when root;
# otherwise the tests that need them are skipped with a loud line.
set -eu

has() {
    for name in "$@"; do
        command -v "$name" >/dev/null 2>&1 && return 0
        for program in /usr/lib/postgresql/*/bin/"$name"; do
            [ -x "$program" ] && return 0
        done
    done
    return 1
}

missing=
has chromium chromium-browser google-chrome || missing="$missing chromium"
has initdb || missing="$missing postgresql"
has redis-server || missing="$missing redis-server"
[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || missing="$missing rabbitmq-server"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "test: NOT INSTALLED, so their tests will be skipped:$missing (apt-get install$missing)" >&2
    exit 0
fi
echo "test: installing$missing"

# The tests start their own servers. Debian's postgresql would make a cluster, and every server
# package starts a service: invoke-rc.d(8) asks policy-rc.d first, and 101 forbids it.
if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    mkdir -p /etc/postgresql-common
    echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
fi
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
apt-get update -qq
# shellcheck disable=SC2086 # a list of words
DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1 apt-get install -y -qq \
    --no-install-recommends $missing >/dev/null
