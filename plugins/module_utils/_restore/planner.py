# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making the plan of a restore, which only reads.

Private to pgfleet.basebackup. Room ``_restore``: which backup, the plan, the restore; it knows nothing of ``_backup``.
"""

from __future__ import annotations

import dataclasses
import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.tree import version_directory
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import paths as _paths
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import printable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.paths import inside
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.trust import refuse_unsafe
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Cluster
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import places as _places
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import room as _room
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.archives import ArchiveAndServer
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.candidate import Choice
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.changeable import Changes, check_changeable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.choose import choose_backup
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.contents import (
    Contents,
    check_contents,
    check_needed_wal,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.findings import Findings
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.identifiers import check_identifiers
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.layout import Layout, Survey, wal_directory
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.neighbours import (
    Surroundings,
    check_relatives,
    check_strangers,
    source_of,
    surroundings_of,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.old_wal import (
    OldWal,
    find_old_wal,
    find_usable_wal,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.plan import Plan
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.record import (
    EMPTY,
    Destination,
    digest_of,
    read_destination,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.settings import Configuration, configure
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.tablespaces import (
    LeftOver,
    TablespaceChecks,
    map_tablespaces,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.target import Target, parse_target
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archive import (
    Archive,
    DirectoryArchive,
    open_archive,
)


def make(cluster: Cluster, params: t.Mapping[str, t.Any]) -> Plan:
    """Return the plan of a restore; the refusals are in the order of the checks.

    Raises BackupError, code ``bad_target``, for arguments that name no target.
    """
    findings = Findings()
    target = parse_target(params)
    destination = read_destination(findings, os.path.realpath(os.fsencode(params["data_directory"])))
    archive, choice = _find_backup(findings, cluster, params, target, destination)
    plan = Plan(params, digest_of(params), target, destination, choice)
    if not plan.is_done:
        around = surroundings_of(destination.data, cluster.repository.path, archive)
        findings.collect(None, _check_destination, findings, around, destination, params)
        if choice is not None:
            plan = _complete(findings, plan, choice, archive, around)
        findings.collect(
            None, check_identifiers, findings, cluster, destination, bool(params["delta"]), choice, plan.contents
        )
    return dataclasses.replace(plan, refusals=tuple(findings.refusals), warnings=tuple(findings.warnings))


def _find_backup(
    findings: Findings, cluster: Cluster, params: t.Mapping[str, t.Any], target: Target, destination: Destination
) -> tuple[t.Optional[Archive], t.Optional[Choice]]:
    try:
        archive = _open_archive(cluster, params)
    except BackupError as exc:
        findings.refusals.append(exc)
        return None, None
    return archive, findings.collect(None, _choose, findings, cluster, params, target, archive, destination)


def _open_archive(cluster: Cluster, params: t.Mapping[str, t.Any]) -> t.Optional[Archive]:
    known = cluster.system_identifier()
    sizes = [record.server.wal_segment_size for _backup, record, _error in cluster.published_in_order() if record]
    # Without a backup it does not matter.
    size = sizes[-1] if sizes else 16 << 20
    directory = cluster.archive_directory(params["archive_directory"], params["restore_command"])
    if directory:
        # Who can write there decides what the restored server replays, as its superuser.
        refuse_unsafe(directory, "The archive", cluster.repository.users)
    return open_archive(directory, params["restore_command"], size, int(known) if known else None)


def _choose(
    findings: Findings,
    cluster: Cluster,
    params: t.Mapping[str, t.Any],
    target: Target,
    archive: t.Optional[Archive],
    destination: Destination,
) -> t.Optional[Choice]:
    if params["restore_as"] == "primary":
        archive = _with_old_wal(archive, destination)
    choice = choose_backup(cluster, params["backup_id"], target, archive)
    findings.warnings += choice.warnings
    return choice


def _with_old_wal(archive: t.Optional[Archive], destination: Destination) -> t.Optional[Archive]:
    """Return the archive combined with the WAL that only the cluster in the target directory has, if that is used."""
    if destination.record is not None and destination.record.restore_as == "copy":
        return archive
    own = wal_directory(destination.data)
    directories = [*destination.request.wal_from, *([own] if own else [])]
    if directories and isinstance(archive, DirectoryArchive):
        return ArchiveAndServer(archive, directories)
    return archive


def _check_destination(
    findings: Findings,
    around: Surroundings,
    destination: Destination,
    params: t.Mapping[str, t.Any],
) -> None:
    _places.check_data_directory(findings, around)
    _places.check_content(findings, destination, params["delta"], params["replace"])


def _complete(
    findings: Findings, plan: Plan, choice: Choice, archive: t.Optional[Archive], around: Surroundings
) -> Plan:
    """Return the plan completed with everything that depends on the chosen backup."""
    params, destination = plan.params, plan.destination
    contents = findings.collect(Contents(), check_contents, findings, choice)
    check_needed_wal(findings, choice, archive)
    placed = findings.collect(None, _lay_out, findings, plan, choice, contents, around)
    if placed is None:
        return dataclasses.replace(plan, contents=contents)
    layout, left_over = placed
    survey = findings.collect(Survey({}, []), _survey, plan, contents, layout)
    changes = Changes(contents.directories, survey, left_over, plan.replaces)
    findings.collect(None, check_changeable, findings, layout, changes)
    wal = _plan_wal(findings, plan, choice, archive, contents)
    findings.collect(None, _places.check_saved_wal, findings, around, destination, layout, wal)
    configuration = findings.collect(
        Configuration(), configure, findings, params, choice, archive, contents.directories, around.data
    )
    findings.collect(None, check_strangers, findings, around, choice, archive, plan.target)
    findings.collect(None, check_relatives, findings, around, choice, archive, plan.target, params["restore_as"])
    size = choice.record.server.wal_segment_size
    room = findings.collect((), _room.check_room, findings, layout, contents, survey, wal, size)
    return dataclasses.replace(
        plan,
        contents=contents,
        layout=layout,
        left_over=left_over,
        survey=survey,
        wal=wal,
        configuration=configuration,
        room=room,
    )


def _lay_out(
    findings: Findings, plan: Plan, choice: Choice, contents: Contents, around: Surroundings
) -> tuple[Layout, LeftOver]:
    """Return the checked places of all files. Raises BackupError, code ``bad_mapping``."""
    params, data, source = plan.params, plan.data, source_of(choice)
    version = version_directory(choice.record.server.major, choice.record.server.catalog_version)
    spaces = map_tablespaces(
        choice.record.stop.tablespaces, params["tablespace_mapping"], params["tablespace_directory"]
    )
    takes_over = bool(params["delta"] or params["replace"])
    replaces = bool(params["replace"])
    checks = TablespaceChecks(findings, around, plan.destination, source, version, takes_over, replaces)
    checks.check(spaces)
    left_over = checks.left_over(spaces)
    link = data + b"/pg_wal"
    linked = os.path.realpath(link) if os.path.islink(link) and not plan.replaces else None
    waldir = os.fsencode(params["waldir"]) if params["waldir"] else None
    versions = [space.real + b"/" + version for space in spaces]
    waldir = _places.check_waldir(findings, around, waldir, linked, source, versions)
    mounts = set() if plan.replaces else _paths.mounts_below(data) - {link}
    mounts = mounts.union(*(_paths.mounts_below(space.real) for space in spaces))
    layout = Layout(data, version, spaces, waldir, mounts, bool(params["allow_group_access"]))
    _check_mounts(findings, layout, contents)
    return layout, left_over


def _check_mounts(findings: Findings, layout: Layout, contents: Contents) -> None:
    for mount in layout.mounts:
        if any(inside(layout.place(file.entry.path), mount) for file in contents.files):
            findings.refuse(
                "nested_mount",
                f"{printable(mount)} is a mount point, and the backup has files there.",
                "Unmount it, or restore elsewhere.",
            )


def _survey(plan: Plan, contents: Contents, layout: Layout) -> Survey:
    # Files that are moved aside first do not count.
    if plan.replaces or (plan.params["replace"] and plan.destination.state == EMPTY):
        return Survey({}, [])
    return layout.survey(contents.paths, frozenset(contents.directories), contents.links)


def _plan_wal(
    findings: Findings, plan: Plan, choice: Choice, archive: t.Optional[Archive], contents: Contents
) -> OldWal:
    params, destination = plan.params, plan.destination
    size = choice.record.server.wal_segment_size
    wal = findings.collect(None, find_old_wal, destination, archive, size, params["replace"], params["save_wal_to"])
    if wal is None:
        return OldWal()
    if params["restore_as"] == "primary":
        used = findings.collect((), find_usable_wal, destination, archive, wal.sources, choice, contents.paths)
        return wal._replace(used=used)
    return wal
