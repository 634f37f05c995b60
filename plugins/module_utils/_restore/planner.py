# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making the plan of a restore, by reading alone.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import functools
import os
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.manifest import ManifestFile
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Cluster
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import neighbours as _neighbours
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import old_wal as _old_wal
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import settings as _restore_settings
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.archives import ArchiveAndServer
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.choose import choose_backup
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.copy import read_verified
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.layout import (
    WORK,
    WRITTEN,
    backup_directories,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.places import Places
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.plan import Plan
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.record import (
    EMPTY,
    INTERRUPTED,
    WAL_SAVED,
    read_record,
    read_wish,
    state_of,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import running as _running
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify.look import Found, Look
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import archive as _archive
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.segments import parse_lsn

# DBState in pg_control of a server in recovery: shut down in recovery, in archive recovery.
_IN_RECOVERY = (2, 5)


def make(cluster: Cluster, params: t.Mapping[str, t.Any]) -> Plan:
    """Return the plan of a restore; the order of the looks is that of the refusals."""
    plan = Plan(cluster, params)
    _guard(plan, functools.partial(_find_state, plan))
    plan.record = read_record(plan.data)
    # That of an interrupted restore; when a cluster is there it is nobody's.
    plan.wish = read_wish(plan.data) if plan.state in (EMPTY, INTERRUPTED) else {}
    plan.servers = _running.running_servers()
    _make(plan)
    return plan


def _make(plan: Plan) -> None:
    _guard(plan, functools.partial(_choose, plan))
    if plan.is_done:
        return
    _guard(plan, functools.partial(_check_record, plan))
    places = Places(plan)
    _guard(plan, places.check_target)
    if plan.chosen is None:
        return
    _guard(plan, functools.partial(_look, plan))
    _guard(plan, functools.partial(_check_wal, plan))
    _guard(plan, places.make_layout)
    if plan.layout is None:
        return
    _guard(plan, functools.partial(_survey, plan))
    _guard(plan, functools.partial(_find_old_wal, plan))
    _guard(plan, places.check_saved_wal)
    _guard(plan, functools.partial(_restore_settings.check, plan))
    _guard(plan, functools.partial(_neighbours.check_relatives, plan))
    _guard(plan, places.check_space)


def _guard(plan: Plan, step: t.Callable[[], object]) -> None:
    """A refusal is noted, so that all of them are told at once."""
    try:
        step()
    except BackupError as exc:
        plan.refusals.append(exc)


def _find_state(plan: Plan) -> None:
    plan.state = state_of(plan.data)


def _choose(plan: Plan) -> None:
    known = plan.cluster.system_identifier()
    size = 16 << 20
    for backup in plan.cluster.published():
        try:
            size = int(backup.load_raw()["server"]["wal_segment_size"])
        except (BackupError, KeyError, TypeError, ValueError):
            continue
    directory, command = plan.params["archive_directory"], plan.params["restore_command"]
    default = os.path.join(plan.cluster.path, "wal")
    if not directory and not command and os.path.isdir(default):
        directory = default
    plan.archive = _archive.open_archive(directory, command, size, int(known) if known else None)
    plan.chosen = choose_backup(plan.cluster, plan.params["backup_id"], plan.target, _with_server(plan))
    plan.warnings += plan.chosen.warnings
    if plan.content.get("kind", "full") != "full":
        raise BackupError(
            f"The backup {plan.chosen.backup.id} is not a full one.", code="not_full", hint="Combine it first."
        )


def _with_server(plan: Plan) -> t.Optional[_archive.Archive]:
    """Return the archive with what only the cluster in the target directory has, where that will be used."""
    own = _old_wal.directory_of(plan.data)
    places = [os.fsencode(place) for place in plan.wish.get("wal_from", [])] + ([own] if own else [])
    uses = plan.params["restore_as"] == "primary" and plan.record.get("restore_as") != "copy"
    if uses and places and isinstance(plan.archive, _archive.DirectoryArchive):
        return ArchiveAndServer(plan.archive, places)
    return plan.archive


def _check_record(plan: Plan) -> None:
    """Require that ``backup.json`` is what was written, as far as it is used here; else there is no backup."""
    if plan.chosen is None:
        return
    backup, content = plan.chosen.backup, plan.content
    try:
        int(content["server"]["system_identifier"]), os.path.join(content["server"]["data_directory"], "")
        plan.version(), plan.specials(), list(content["server"].get("config_files_outside") or [])
        float(content["copy"]["bytes"]), float(content["copy"].get("seconds") or 0)
        [(int(oid), os.fsencode(location)) for oid, location in content["stop"]["tablespaces"].items()]
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        plan.chosen = None
        raise BackupError(
            f"The backup {backup.path} is damaged: backup.json is not what was written: {exc!r}",
            code="damaged_backup",
            hint="Restore another backup.",
        ) from exc


def _look(plan: Plan) -> None:
    """Look at the backup as far as its files need not be read."""
    backup, content = plan.choice.backup, plan.content
    look = Look(backup, backup.load())
    if look.bad_files:
        first = look.bad_files[0]
        plan.refuse(
            "damaged_backup",
            f"The backup {backup.id} is damaged: {first['path']}: {first['msg']} ({len(look.bad_files)} in all)",
            "Restore another backup.",
            bad_files=look.bad_files,
        )
    for file in look.files:
        if file.entry.path in WRITTEN:
            plan.small[file.entry.path] = file
            _guard(plan, functools.partial(read_verified, file))
        elif not file.entry.path.startswith(WORK + b"/"):
            plan.files.append(file)
    if content.get("wal") == "include":
        _add_included_wal(plan)
    if any(file.entry.algorithm is None for file in plan.files):
        plan.warnings.append(f"The backup {backup.id} has no checksums: its files cannot be verified.")
    plan.directories = backup_directories(os.fsencode(backup.path))
    plan.config_files_outside = list(content["server"].get("config_files_outside") or [])


def _check_wal(plan: Plan) -> None:
    """Look into the first page of the WAL files that are needed: those of another cluster have the same names."""
    if isinstance(plan.archive, _archive.DirectoryArchive):
        directory, server = os.fsencode(plan.archive.directory), plan.content["server"]
        size, identifier = server["wal_segment_size"], int(server["system_identifier"])
        for name in plan.choice.wal_needed:
            _guard(plan, functools.partial(_old_wal.check_header, directory, name, size, identifier))


def _add_included_wal(plan: Plan) -> None:
    checksums = plan.content["wal_proof"].get("sha256") or {}
    for name in plan.content["wal_proof"]["archived"]:
        place = os.fsencode(plan.choice.backup.file("data", "pg_wal", name))
        path = b"pg_wal/" + os.fsencode(name)
        checksum = checksums.get(name)
        entry = ManifestFile(path, os.stat(place).st_size, 0, "SHA256" if checksum else None, checksum)
        plan.files.append(Found(entry, place))


def _survey(plan: Plan) -> None:
    # What is to be set aside is not there any more.
    if not plan.replaces and not (plan.params["replace"] and plan.state == EMPTY):
        wanted = {file.entry.path for file in plan.files}
        plan.survey = plan.places.survey(wanted, set(plan.directories), plan.specials())


def _find_old_wal(plan: Plan) -> None:
    """Find the WAL of the replaced cluster that only it has."""
    source = _old_wal.directory_of(plan.data)
    size = plan.content["server"]["wal_segment_size"]
    # That of a copy for tests is nobody's.
    if plan.record.get("restore_as") == "copy":
        return
    plan.wal_from = [os.fsencode(place) for place in plan.wish.get("wal_from", [])]
    if plan.params["replace"] and plan.state == EMPTY and not plan.wish:
        plan.wal_from += _moved_before(plan)
    places = list(plan.wal_from)
    # The file that says so does not count when a server may have run since.
    saved = plan.state == INTERRUPTED and os.path.exists(plan.data + b"/" + WORK + b"/" + WAL_SAVED)
    if source is not None and not saved:
        plan.unarchived = _old_wal.unarchived(source, size, functools.partial(_is_archived, plan))
        places.append(source)
    if plan.wish.get("save_wal_to"):
        plan.save_to = os.fsencode(plan.wish["save_wal_to"])
    elif plan.unarchived and not plan.replaces:
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        default = f"{os.fsdecode(plan.data)}.saved_wal-{now}"
        while os.path.lexists(default):
            default += "x"
        plan.save_to = os.fsencode(plan.params["save_wal_to"] or default)
    if plan.params["restore_as"] == "primary":
        _use(plan, places, size)


def _is_archived(plan: Plan, name: str) -> bool:
    """Tell whether a WAL file that the old cluster has marked as done is in the archive, as far as can be told.

    A standby marks so what it streams, whether its primary could archive it or not.
    """
    if isinstance(plan.archive, _archive.DirectoryArchive):
        return plan.archive.has(name)
    control = plan.old_control()
    return control is not None and control.state not in _IN_RECOVERY


def _moved_before(plan: Plan) -> list[bytes]:
    """Return the WAL of what was moved aside by a call that died before it could say so."""
    parent, name = os.path.split(plan.data)
    names = os.listdir(parent) if os.path.isdir(parent) else []
    found = [one for one in names if one.startswith(name + b".replaced-")]
    place = _old_wal.directory_of(parent + b"/" + max(found)) if found else None
    return [place] if place else []


def _use(plan: Plan, places: t.Sequence[bytes], size: int) -> None:
    start = parse_lsn(plan.content["start"]["start_lsn"])
    identifier = int(plan.content["server"]["system_identifier"])
    included = {os.path.basename(file.entry.path) for file in plan.files if file.entry.path.startswith(b"pg_wal/")}
    seen: set[str] = set()
    for place in places:
        names = _old_wal.unarchived(place, size, functools.partial(_is_archived, plan))
        for name in _old_wal.usable(place, names, plan.archive, plan.choice.path, start, size, identifier):
            if name not in seen and os.fsencode(name) not in included:
                seen.add(name)
                plan.used.append((place, name))
