# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file system of a database host as Debian's packages make it: systemd, sshd, sudo, PostgreSQL, Patroni, etcd.

mmdebstrap builds it once for each recipe into the harness cache (a minute and a half, 400 MB). Hosts have it below
an overlay, so it is never written to.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
import typing as t

from . import binaries
from .user import me, run

SUITE: t.Final = "trixie"
MAJOR: t.Final = 17
PACKAGES: t.Final = (
    "acl", "dbus", "etcd-client", "etcd-server", "iproute2", "libpam-systemd", "openssh-server", "patroni",
    "postgresql", "procps", "python3", "python3-etcd", "python3-psycopg2", "sudo", "systemd", "systemd-sysv", "zstd",
)  # fmt: skip
# Documentation, and the compiler of JIT, which is four times as large as the server.
LEFT_OUT: t.Final = (
    "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/lib/*/libLLVM*",
    "/usr/lib/postgresql/*/lib/llvmjit.so", "/usr/lib/postgresql/*/lib/bitcode/*",
)  # fmt: skip
BEFORE: t.Final = """\
set -eu
mkdir -p "$1/etc/postgresql-common"
echo 'create_main_cluster = false' >"$1/etc/postgresql-common/createcluster.conf"
"""
# A machine id for each boot; no timers, and nothing that needs a machine; etcd and Patroni only where a test wants
# them; and the user whom Ansible logs in as.
AFTER: t.Final = """\
set -eu
: >"$1/etc/machine-id"
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \\
    etcd.service fstrim.timer getty.target patroni.service systemd-modules-load.service; do
    ln -sf /dev/null "$1/etc/systemd/system/$unit"
done
chroot "$1" useradd --create-home --password '*' --shell /bin/bash ansible
"""


def recipe() -> list[str]:
    """Return the command that builds the file system, without its destination."""
    return [
        "mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory",
        "--aptopt=Acquire::Languages \"none\"", f"--include={','.join(PACKAGES)}",
        *(f"--dpkgopt=path-exclude={path}" for path in LEFT_OUT),
        f"--essential-hook={BEFORE}", f"--customize-hook={AFTER}", SUITE,
    ]  # fmt: skip


@functools.cache
def base() -> pathlib.Path:
    """Return the file system; build it the first time."""
    key = hashlib.sha256("\0".join(recipe()).encode()).hexdigest()[:12]
    with binaries.made_once(f"debian-{SUITE}-{key}") as (final, work):
        if work:
            # What it mounts below the directory ends with it, even if this process is killed.
            alone = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"]
            umask = ["sh", "-c", 'umask 022; exec "$@"', "sh"]
            root = work / "root"
            run([*alone, "--propagation=private", *umask, *recipe(), root], user=me(), timeout=900)
    return final / "root"
