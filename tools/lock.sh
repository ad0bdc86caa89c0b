#!/bin/sh
# Remakes constraints.txt from what pip resolves today, in a throw-away environment.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --editable '.[dev]'
{
    head -n 1 constraints.txt
    "$work/venv/bin/python" -m pip freeze --exclude-editable
} > "$work/constraints.txt"
cp "$work/constraints.txt" constraints.txt
