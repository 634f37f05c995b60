# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which directories a restore may use.

Sources: PostgreSQL, "Recovering Using a Continuous Archive Backup"; checkDataDir of miscinit.c for owner and mode.

Private to pgfleet.basebackup. Room ``_restore``: which backup, the plan, the restore; it knows nothing of ``_backup``.
"""

from __future__ import annotations

import os
import shlex
import stat
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import paths as _paths
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.changes import closed, fixed
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import printable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.paths import inside, nearest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.findings import Findings
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.layout import Layout, is_empty, wal_directory
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.neighbours import (
    Surroundings,
    user_of,
    user_of_wal,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.old_wal import OldWal
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.record import (
    CLUSTER,
    EMPTY,
    INTERRUPTED,
    Destination,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import running as _running

_ELSEWHERE = "Choose a different directory."


def is_root() -> bool:
    """Return whether this runs as root, as which PostgreSQL refuses to run."""
    return os.geteuid() == 0


def check_alone(findings: Findings, around: Surroundings, name: str, real: bytes, *others: bytes) -> bool:
    """Refuse a place that overlaps with ``others`` or with backups and WAL, or lies in another cluster."""
    known = [*around.holdings, *(("another place of this restore", one) for one in others)]
    overlapping = [f"{what}, {printable(one)}," for what, one in known if inside(real, one) or inside(one, real)]
    cluster = _running.cluster_around(real)
    if cluster and cluster != around.data:
        overlapping.append(f"the cluster in {printable(cluster)}")
    for what in overlapping[:1]:
        findings.refuse("overlap", f"{name}, {printable(real)}, and {what} overlap.", _ELSEWHERE)
    return not overlapping


def check_directory(findings: Findings, path: bytes) -> None:
    """Refuse a directory that belongs to another user, or that this user cannot make."""
    if os.path.lexists(path):
        status = os.stat(path)
        if not stat.S_ISDIR(status.st_mode):
            findings.refuse("not_a_directory", f"{printable(path)} is not a directory.", _ELSEWHERE)
        elif status.st_uid != os.geteuid():
            findings.refuse(
                "wrong_owner",
                f"{printable(path)} belongs to the user {status.st_uid}, this runs as {os.geteuid()}:"
                " PostgreSQL does not start in another user's directory.",
                f"Set {option('become_user')} to its owner, or: chown {os.geteuid()} {shlex.quote(printable(path))}",
            )
        else:
            obstacle = closed(path)
            if obstacle is not None:
                findings.refuse("not_writable", f"{printable(path)} {obstacle.why}.", obstacle.cure)
        return
    parent = nearest(os.path.dirname(path))
    obstacle = closed(parent)
    if obstacle is not None:
        user = os.geteuid()
        findings.refuse(
            "not_writable",
            f"{printable(path)} cannot be made by the user {user}: {printable(parent)} {obstacle.why}.",
            f"Make it as root: install -d -m 0700 -o {user} {shlex.quote(printable(path))}",
        )


# -- the data directory ------------------------------------------------------------------------------------------------


def check_data_directory(findings: Findings, around: Surroundings) -> None:
    """Check that this user may use the data directory, and that no server and nothing else uses it."""
    data = around.data
    if is_root():
        findings.refuse(
            "running_as_root",
            "This runs as root; the restored files must belong to the operating system user of the server.",
            f"Set {option('become_user')} to that user.",
        )
    check_directory(findings, data)
    # The restore asks find_server, which also knows a server with a renamed program by its postmaster.pid.
    process = findings.collect(None, _running.find_server, data)
    pid = process.pid if process else _running.server_in(data, around.servers)
    if pid is not None:
        findings.refuse("server_running", f"A PostgreSQL server runs in {printable(data)} (process {pid}).", "Stop it.")
    user = user_of(around, data)
    if user:
        findings.refuse("overlap", f"The data directory, {printable(data)}, and {user} overlap.", _ELSEWHERE)
    check_alone(findings, around, "The data directory", data)


def check_content(findings: Findings, destination: Destination, delta: bool, replace: bool) -> None:
    """Check that the contents of the data directory may be overwritten or moved aside."""
    data = destination.data
    if destination.state in (EMPTY, INTERRUPTED):
        return
    if not delta and not replace:
        findings.refuse(
            "not_empty",
            f"The data directory {printable(data)} is not empty.",
            f"Set {option('delta')} to keep the files that are right and replace the others, or {option('replace')}"
            " to move it aside.",
        )
    elif replace:
        _check_movable(findings, data)
    elif destination.state != CLUSTER:
        findings.refuse(
            "not_a_data_directory",
            f"{printable(data)} has no PG_VERSION: it is not a data directory, and {option('delta')} would empty it.",
            f"Set {option('replace')} to move it aside.",
        )


def _check_movable(findings: Findings, data: bytes) -> None:
    parent = os.path.dirname(data)
    obstacle = closed(parent) or fixed(data, os.lstat(data), os.stat(parent))
    if os.path.ismount(data) or _paths.mounts_below(data):
        why = "it is a mount point or has one inside"
    elif obstacle is not None:
        why = f"{printable(obstacle.path)} {obstacle.why}"
    else:
        return
    findings.refuse(
        "cannot_move_aside",
        f"{printable(data)} cannot be moved aside: {why}.",
        f"Set {option('delta')}, or move its content away yourself.",
    )


# -- WAL ---------------------------------------------------------------------------------------------------------------


def check_waldir(
    findings: Findings,
    around: Surroundings,
    waldir: t.Optional[bytes],
    linked: t.Optional[bytes],
    source: bytes,
    spaces: t.Sequence[bytes],
) -> t.Optional[bytes]:
    """Return the target of the link ``pg_wal``, None when it is a directory itself.

    ``waldir`` is the module's argument, ``linked`` the target of an existing link that stays, ``source`` the data
    directory of the backup's server, ``spaces`` the server's directories in the tablespaces.
    """
    link = around.data + b"/pg_wal"
    place = os.path.normpath(waldir) if waldir else linked
    if place is None:
        return None
    real = os.path.realpath(place)
    for one in sorted({real, linked or real}):
        user = user_of_wal(around, source, one)
        if user:
            findings.refuse(
                "waldir_in_use",
                f"The directory of pg_wal, {printable(one)}, is in use by {user}.",
                f"Set a different {option('waldir')}, and remove the link {printable(link)} if it leads there.",
            )
            return place
        if not check_alone(findings, around, "The directory of pg_wal", one, around.data, *spaces):
            return place
    if waldir and os.path.ismount(link):
        findings.refuse(
            "nested_mount",
            f"{printable(link)} is a mount point and cannot become a link to {option('waldir')}.",
            f"Leave {option('waldir')} out, or unmount it.",
        )
    check_directory(findings, real)
    if real != linked and not is_empty(real):
        findings.refuse(
            "waldir_not_empty",
            f"The directory for pg_wal, {printable(place)}, is not empty.",
            "Choose a different one, or move its files away; WAL that was not archived may be among them.",
        )
    return place


def check_saved_wal(
    findings: Findings, around: Surroundings, destination: Destination, layout: Layout, wal: OldWal
) -> None:
    """Check the directory to which WAL is saved that was not archived."""
    if not wal.save_to:
        return
    real = os.path.realpath(wal.save_to)
    old = wal_directory(around.data)
    taken = [*layout.roots, *(space.real for space in layout.spaces), *([old] if old else [])]
    user = user_of(around, real)
    if user:
        findings.refuse("overlap", f"save_wal_to, {printable(real)}, and {user} overlap.", _ELSEWHERE)
        return
    if not check_alone(findings, around, "save_wal_to", real + b"/x", *taken):
        return
    check_directory(findings, real)
    # An interrupted restore has saved its files there itself.
    if destination.request.save_wal_to != wal.save_to:
        present = [name for name in wal.unarchived if os.path.lexists(real + b"/" + os.fsencode(name))]
        if present:
            findings.refuse("saved_wal_exists", f"{printable(real)} has a file {present[0]} already.", _ELSEWHERE)
