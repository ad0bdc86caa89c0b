#!/bin/sh
# Makes $VENV from $PYTHON and installs Cloche in it, as pinned by constraints.txt.
set -eu
python=${PYTHON:-python3.11}
venv=${VENV:-.venv}

command -v "$python" >/dev/null 2>&1 || python=python3
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "setup: Python 3.11 or newer is needed; '$python' is not. Try: make setup PYTHON=python3.12" >&2
    exit 2
fi

if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    # Debian keeps ensurepip in a package of its own.
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
            echo "setup: installing python$version-venv"
            apt-get update -qq
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "python$version-venv" >/dev/null
        else
            echo "setup: this Python has no ensurepip; run: sudo apt-get install python$version-venv" >&2
            exit 2
        fi
    fi
    echo "setup: making $venv"
    "$python" -m venv --clear "$venv"
fi
echo "setup: installing Cloche and its tools (a minute on the first run)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable '.[dev]'
# It asks for Celery < 5.7 and works with 5.7: the tests of what wraps Celery show it.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps celery-batches==0.11
