#!/bin/sh
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# bootstrap.sh .venv | .venv-oldest
# Creates a virtual environment with the locked tools: .venv with the newest Python that works, .venv-oldest with the
# oldest. Runs every Python that it finds, since a command on PATH may be a broken shim.
set -eu
# Tests run its programs as another account, too.
umask 022
venv=$1
cd "$(dirname "$0")/.."

# A virtual environment, above all the one to be created, cannot be the base of another.
probe='import ensurepip, ssl, sys, venv; v = sys.version_info; assert sys.prefix == sys.base_prefix
print(v[0] * 100 + v[1])'
candidates() {
    for name in python3.14 python3.13 python3.12 python3.11 python3; do
        command -v "$name" || true
    done
    for path in "${HOME:-/nonexistent}"/.pyenv/versions/*/bin/python3 /usr/local/bin/python3* /usr/bin/python3*; do
        case $path in *-config) continue ;; esac
        if [ -x "$path" ]; then echo "$path"; fi
    done
}
working() { # "<version> <path>" of each Python that works and is supported by an ansible-core in requirements/
    candidates | while read -r path; do
        version=$("$path" -c "$probe" 2>/dev/null </dev/null) || continue
        if [ "$version" -ge 311 ] && [ "$version" -le "$1" ]; then echo "$version $path"; fi
    done
}

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    case $venv in
    *oldest*) found=$(working 313 | sort -n | head -n 1) ;;
    *) found=$(working 314 | sort -rns -k 1,1 | head -n 1) ;;
    esac
    if [ -z "$found" ]; then
        echo "No working Python 3.11 to 3.14 with venv: install one (Debian, Ubuntu: apt install python3-venv)." >&2
        exit 1
    fi
    "${found#* }" -m venv --clear "$venv"
fi
version=$("$venv/bin/python" -c 'import sys; print(sys.version_info[1])')
case $venv:$version in
*oldest*) lock=requirements/core-2.18.txt ;;
*:11) lock=requirements/core-2.19.txt ;;
*) lock=requirements/core-2.21.txt ;;
esac
echo "$venv: Python 3.$version, $lock" >&2
"$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --requirement "$lock"
mkdir -p "$venv/collections/ansible_collections/pgfleet"
ln -sfn ../../../.. "$venv/collections/ansible_collections/pgfleet/basebackup"
touch "$venv/stamp"
