# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every reason why a backup would fail, found before anything is changed, each with its remedy.

Private to pgfleet.basebackup. Room ``_backup``: the steps of a backup, from start to publish; it knows no restore.

The rules are those of PostgreSQL, "Making a Base Backup Using the Low Level API": archiving enabled and working,
a role with the rights to start and stop, and files that this operating system user can read.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.control import read_control
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import ARCHIVE, INCLUDE
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Cluster, Repository
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.archiver import archives_itself
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.facts import backup_functions
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.running import cluster_of

# A server whose limit for idle slots is shorter than this could end the session that keeps a backup's WAL; the default
# of session_timeout, in seconds.
SLOT_SECONDS = 86400

# postmaster.pid is written shortly before the time of pg_postmaster_start_time; the server allocates
# its shared memory in between, which takes a while when it is huge.
START_TIME_TOLERANCE = 60.0


def problem(code: str, msg: str, hint: str) -> dict[str, str]:
    """Return one entry of ``problems``."""
    return {"code": code, "msg": msg, "hint": hint}


def _grant(info: t.Mapping[str, t.Any], what: str) -> str:
    where = "on the primary, " if info["role"] == "standby" else ""
    return f"As a superuser, {where}in the database {info['login_db']}: {what} TO {info['login_role']};"


def _rights(info: t.Mapping[str, t.Any], needed: t.Iterable[str]) -> list[dict[str, str]]:
    start, stop = backup_functions(info["major"])
    functions = {
        "backup_start": start,
        "backup_stop": stop,
        "switch_wal": "pg_switch_wal()",
    }
    found = []
    for name in needed:
        if info["privileges"][name]:
            continue
        if name in functions:
            what, grant = functions[name], f"GRANT EXECUTE ON FUNCTION {functions[name]}"
        else:
            what, grant = f"the role {name}", f"GRANT {name}"
        found.append(
            problem(f"no_privilege_{name}", f"The role {info['login_role']} lacks {what}.", _grant(info, grant))
        )
    return found


def _slots(info: t.Mapping[str, t.Any]) -> list[dict[str, str]]:
    """Check that the server can keep the WAL until it is copied."""
    slots, address = info["replication_slots"], info["address"]
    found = []
    if not info["privileges"]["replication"]:
        found.append(
            problem(
                "no_privilege_replication",
                f"The role {info['login_role']} lacks the attribute REPLICATION, which the replication slot needs that"
                " keeps the WAL.",
                f"As a superuser{', on the primary' if info['role'] == 'standby' else ''}:"
                f" ALTER ROLE {info['login_role']} REPLICATION;",
            )
        )
    if info["wal_level"] != "minimal" and slots["used"] >= slots["max"]:
        found.append(
            problem(
                "no_free_slot",
                f"All {slots['max']} replication slots of {address} are in use; one is needed to keep the WAL that the"
                " backup includes.",
                f"ALTER SYSTEM SET max_replication_slots = {slots['max'] + 1}; restart. Or drop an unused one:"
                " SELECT slot_name FROM pg_replication_slots WHERE NOT active;",
            )
        )
    if 0 < slots["idle_timeout"] < SLOT_SECONDS:
        found.append(
            problem(
                "idle_replication_slot_timeout",
                f"idle_replication_slot_timeout is {slots['idle_timeout']} s on {address}: a checkpoint after that time"
                " would end the session of the backup.",
                "Set it to 0, or to a day and more: ALTER SYSTEM SET idle_replication_slot_timeout = 0;"
                " SELECT pg_reload_conf();",
            )
        )
    wal = os.path.join(info["data_directory"] or "", "pg_wal")
    if os.path.isdir(wal) and not os.access(wal, os.R_OK | os.X_OK):
        found.append(
            problem(
                "pg_wal_unreadable",
                f"{wal} cannot be read by the user with id {os.geteuid()}.",
                f"Run the task as the server's operating system user: {option('become_user')}.",
            )
        )
    return found


def _archiving(info: t.Mapping[str, t.Any]) -> list[dict[str, str]]:
    archiving = info["archiving"]
    if archiving["mode"] == "off":
        return [
            problem(
                "archive_mode_off",
                f"archive_mode is off on {info['address']}: without its WAL a backup cannot be restored.",
                "ALTER SYSTEM SET archive_mode = on; set archive_command or archive_library; restart. Where another"
                f" program archives (pg_receivewal), set {option('archive_directory')} or {option('restore_command')}."
                f" Without any archive, include the WAL in the backup: {option('wal')}=include.",
            )
        ]
    if not archiving["command_set"] and not archiving["library"]:
        return [
            problem(
                "archive_command_empty",
                f"archive_mode is {archiving['mode']} on {info['address']}, but neither archive_command nor"
                f" archive_library is set.",
                "Set one of them: ALTER SYSTEM SET archive_command = '...'; SELECT pg_reload_conf();",
            )
        ]
    if archiving["failing"]:
        return [
            problem(
                "archiver_failing",
                f"The archiver of {info['address']} fails: {archiving['last_failed_wal']} at"
                f" {archiving['last_failed_time']};"
                f" its last success was {archiving['last_archived_wal'] or 'never'}"
                f" at {archiving['last_archived_time'] or 'no time'}.",
                "See the server's log for the error of archive_command.",
            )
        ]
    return []


def data_directory_problems(info: t.Mapping[str, t.Any]) -> list[dict[str, str]]:
    """Check that the files here are those of the server that we are connected to, and that we may read them."""
    directory = info["data_directory"]
    if directory is None:
        return []
    user = f"the user with id {os.geteuid()}"
    try:
        os.listdir(directory)
        os.stat(os.path.join(directory, "global", "pg_control"))
        control = read_control(os.fsencode(os.path.join(directory, "global", "pg_control")))
        with open(os.path.join(directory, "postmaster.pid"), encoding="ascii", errors="replace") as stream:
            lines = stream.read().splitlines()
    except FileNotFoundError:
        return [
            problem(
                "data_directory_not_here",
                f"The server's data directory {directory} is not on this host, or no server runs on it.",
                f"Backups are taken on the database host. Set {option('login_host')} to the server of this host.",
            )
        ]
    except (BackupError, OSError) as exc:
        return [
            problem(
                "data_directory_unreadable",
                f"The data directory {directory} cannot be read by {user}: {exc}",
                f"Run the task as the server's operating system user ({option('become_user')}), or as a member of its"
                " group if the cluster was initialised with group access.",
            )
        ]
    # A primary and its standby have one identifier, and after a power cut they start in the same second.
    same_role = control.in_recovery == (info["role"] == "standby")
    same = str(control.system_identifier) == info["system_identifier"] and same_role
    started, port = (lines[2], lines[3]) if len(lines) > 3 and lines[2].isdigit() else ("0", "")
    if not same or port != str(info["port"]) or abs(float(started) - info["started_at"]) > START_TIME_TOLERANCE:
        return [
            problem(
                "data_directory_of_another_server",
                f"{directory} on this host belongs to another server than the one at {info['address']}.",
                f"Set {option('login_host')} and {option('login_port')} to the server of this host.",
            )
        ]
    found = []
    for tablespace in info["tablespaces"]:
        path = tablespace["location"]
        if not tablespace["in_place"] and not os.access(path, os.R_OK | os.X_OK):
            found.append(
                problem(
                    "tablespace_unreadable",
                    f"The tablespace {tablespace['name']} at {path} cannot be read by {user}.",
                    f"Run the task as the server's operating system user: {option('become_user')}.",
                )
            )
    return found


def repository_problems(
    info: t.Mapping[str, t.Any], repository: str, cluster: str
) -> tuple[list[dict[str, str]], t.Optional[int]]:
    """Return the problems of the repository, and its free bytes (None when it is unusable)."""
    try:
        place = Repository(repository)
        refuse_place(place.cluster(cluster), info)
        place.cluster(cluster).refuse_other(info["system_identifier"])
    except BackupError as exc:
        return [problem(exc.code, exc.msg, exc.hint)], None
    free = place.free_bytes()
    size = info["size"]
    if size is not None and size > free:
        return [
            problem(
                "repository_too_small",
                f"The cluster has {size} bytes, the repository {repository} only {free} free.",
                "Free some space, or choose another repository.",
            )
        ], free
    return [], free


def refuse_place(cluster: Cluster, info: t.Mapping[str, t.Any]) -> None:
    """Raise :class:`BackupError`, code ``repository_inside_cluster``, when backups would lie in a server's directory.

    It may be the server that is backed up, or any other cluster on this host.
    """
    directories = [tablespace["location"] for tablespace in info["tablespaces"] if not tablespace["in_place"]]
    cluster.refuse_inside(os.fsencode(one) for one in [info["data_directory"], *directories] if one)
    other = cluster_of(cluster.path)
    if other:
        raise BackupError(
            f"The directory {cluster.path} lies in the database cluster {other}.",
            code="repository_inside_cluster",
            hint="Choose another repository, or another name for the cluster of these backups.",
        )


def problems_of_backup(
    info: t.Mapping[str, t.Any], external_archive: bool = False, wal: str = ARCHIVE
) -> list[dict[str, str]]:
    """Return what would stop a backup of this server; with ``external_archive`` its own archiving does not matter.

    ``wal`` says where a restore finds the WAL, see ``WAL_CHOICES``; archiving matters for ``archive`` only.
    """
    found = []
    if info["pooling_proxy"]:
        found.append(
            problem(
                "pooling_proxy",
                f"The connection to {info['address']} goes through a pooling proxy (PgBouncer or the like).",
                f"A backup needs one session from start to stop. Set {option('login_host')} and "
                f"{option('login_port')} to the server itself.",
            )
        )
    found += _rights(info, ("backup_start", "backup_stop", "pg_read_all_settings"))
    if info["wal_level"] == "minimal" and (info["role"] == "primary" or wal == INCLUDE):
        found.append(
            problem(
                "wal_level_minimal",
                "wal_level is minimal, which does not allow online backups.",
                "ALTER SYSTEM SET wal_level = replica; restart.",
            )
        )
    if wal == INCLUDE:
        found += _slots(info)
    if wal == ARCHIVE and not external_archive and archives_itself(info):
        found += _rights(info, ("pg_monitor",)) + _archiving(info)
    return found + data_directory_problems(info)


def problems_of_primary(
    info: t.Mapping[str, t.Any], external_archive: bool = False, wal: str = ARCHIVE
) -> list[dict[str, str]]:
    """Return why this server could not finish a standby's backup: the WAL switch and the archive."""
    if info["role"] != "primary":
        return [
            problem(
                "not_primary",
                f"The server at {info['address']} is a standby; the WAL can be switched on the primary only.",
                "Run the step on the primary. The role pg_backup takes it from pg_backup_primary.",
            )
        ]
    found = _rights(info, ("switch_wal",)) if wal == ARCHIVE else []
    if wal == ARCHIVE and not external_archive:
        found += _rights(info, ("pg_monitor",)) + _archiving(info)
    if not info["full_page_writes"]:
        found.append(
            problem(
                "full_page_writes_off",
                f"full_page_writes is off on the primary {info['address']}; a standby's backup needs it.",
                "On the primary: ALTER SYSTEM SET full_page_writes = on; SELECT pg_reload_conf(); CHECKPOINT;",
            )
        )
    return found
