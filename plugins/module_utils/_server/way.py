# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a server is stopped and started: by its unit, as ``pg_ctl`` does it, or by others only.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.paths import identity, same
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.owner import (
    CONTAINER,
    NONE,
    PATRONI,
    SUPERVISOR,
    SYSTEMD,
    SYSTEMD_USER,
    Owner,
    is_in_unit,
    manager_of,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.process import ServerProcess, server_process
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.running import running_servers
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.service import VERBS
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.units import (
    directory_of_unit,
    full_name,
    unit_for,
    unit_of,
)

UNIT, USER_UNIT, PG_CTL = "unit", "user_unit", "pg_ctl"

_HOOKS = {"started": "start", "stopped": "stop", "restarted": "restart"}
# What the managers want instead, by their programs.
_COMMANDS = {
    "patroni": "patronictl restart for a restart, patronictl edit-config for settings,"
    " and before anything else is done by hand patronictl pause --wait",
    "repmgrd": "repmgr service pause, and repmgr service unpause afterwards",
    "pg_autoctl": "pg_autoctl enable maintenance, and pg_autoctl disable maintenance afterwards",
    "pacemakerd": "pcs resource unmanage for its resource, and pcs resource manage afterwards",
    "supervisord": "supervisorctl stop, start or restart with the name of its program",
    "runsv": "sv down, sv up or sv restart with the directory of its service",
    "s6-supervise": "s6-svc -d, -u or -r with the directory of its service",
    "stolon-keeper": "stolonctl",
    "monit": "monit unmonitor, and monit monitor afterwards",
}


class Way(t.NamedTuple):
    """``by`` is ``unit``, ``user_unit`` or ``pg_ctl``; ``unit`` the name of the unit, "" without one."""

    by: str
    unit: str = ""


def way_of(
    data_directory: str,
    process: t.Optional[ServerProcess],
    state: str,
    unit: str,
    known: t.Mapping[str, t.Any],
) -> Way:
    """Return how the server of ``data_directory`` is brought into ``state``.

    ``unit`` is the user's own choice, "" for none; ``known`` has ``kind``, ``unit``, ``program`` and ``data_directory``
    as they were while it ran, or is empty. Raises :class:`BackupError`: ``managed_server`` when others run it,
    ``wrong_unit`` when ``unit`` is not its unit.
    """
    owner = process.owner if process else None
    if owner is None or owner.kind == NONE:
        owner = manager_of(data_directory) or owner
    if owner is not None and owner.kind in (PATRONI, SUPERVISOR, CONTAINER):
        raise managed(data_directory, owner, state)
    if owner is None:
        return _way_to_start(data_directory, unit, known)
    if owner.unit:
        _refuse_shared(data_directory, owner, state)
    return _way_of_owner(data_directory, owner, state, full_name(unit) if unit else "")


def managed(data_directory: str, owner: Owner, state: str) -> BackupError:
    """Return the refusal of what others must do."""
    process = f" (process {owner.pid})" if owner.pid else ""
    whose = f"{owner.program or 'another program'}{process}" + (f", the unit {owner.unit}" if owner.unit else "")
    hook = f"Or write your own tasks for it, and set {option('hook_' + _HOOKS[state])}"
    if owner.kind == CONTAINER:
        what = "is the process of a container"
        commands = "Use what runs the container, such as docker restart, podman restart or kubectl rollout restart."
    else:
        what = f"is managed by {whose}, which would act when it stops"
        wanted = _COMMANDS.get(owner.program)
        commands = f"Use {wanted}." if wanted else f"Use the commands of {owner.program or 'that program'}."
    return BackupError(
        f"The server on {data_directory} {what}: it is not {state} here.",
        code="managed_server",
        hint=f"{commands} {hook}.",
        kind=owner.kind,
        unit=owner.unit,
        program=owner.program,
    )


def _way_of_owner(data_directory: str, owner: Owner, state: str, unit: str) -> Way:
    """Return the way of a server that runs under a unit or by hand."""
    if owner.kind in (SYSTEMD, SYSTEMD_USER):
        if unit and unit != owner.unit:
            raise BackupError(
                f"The server on {data_directory} runs under the unit {owner.unit}, not under {unit}.",
                code="wrong_unit",
                hint=f"Leave {option('service')} empty: the unit is found.",
            )
        return Way(UNIT if owner.kind == SYSTEMD else USER_UNIT, owner.unit)
    if unit and state == "restarted":
        raise BackupError(
            f"The server on {data_directory} was started by hand and does not run under the unit {unit}.",
            code="wrong_unit",
            hint=f"Stop it with pg_ctl -D, then: systemctl start {unit}. Or leave {option('service')} empty.",
        )
    if unit:
        _check_choice(data_directory, unit)
    return Way(PG_CTL)


def _refuse_shared(data_directory: str, owner: Owner, state: str) -> None:
    """Raise :class:`BackupError`, code ``managed_server``, when the unit runs another server, too."""
    here = identity(data_directory)
    for server in running_servers():
        if not same(server.identity, here) and is_in_unit(server.pid, owner.unit):
            raise BackupError(
                f"The unit {owner.unit} runs the server on {data_directory} and that on"
                f" {os.fsdecode(server.data_directory)}, which would be {state}, too: nothing is {state} here.",
                code="managed_server",
                hint="Give each server a unit; or write your own tasks for it, and set"
                f" {option('hook_' + _HOOKS[state])}.",
                kind=owner.kind,
                unit=owner.unit,
                program=owner.program,
            )


def _check_choice(data_directory: str, unit: str) -> None:
    """Raise :class:`BackupError` when the unit that the user chose is not there or runs another server."""
    found = unit_of(unit)
    if found is None or not found.loaded:
        raise BackupError(
            f"There is no unit {unit} on this host."
            if found
            else f"The manager systemd does not answer about the unit {unit}.",
            code="unit_missing" if found else "no_systemd",
            hint=f"Correct {option('service')}, or leave it empty: the unit is found.",
        )
    place = directory_of_unit(found)
    if place and not _same_place(place, data_directory):
        raise BackupError(
            f"The unit {unit} runs the server on {place}, not that on {data_directory}.",
            code="wrong_unit",
            hint=f"Correct {option('service')}, or leave it empty: the unit is found.",
        )


def _way_to_start(data_directory: str, unit: str, known: t.Mapping[str, t.Any]) -> Way:
    """Return the way to start a server that does not run."""
    was = known if _same_place(known.get("data_directory"), data_directory) else {}
    if unit:
        _check_choice(data_directory, full_name(unit))
        return Way(UNIT, full_name(unit))
    if was.get("kind") == SYSTEMD_USER:
        return Way(USER_UNIT, str(was["unit"]))
    if was.get("kind") == SYSTEMD and was.get("unit"):
        found = unit_of(str(was["unit"]))
        if found is not None and found.loaded:
            place = directory_of_unit(found)
            if not place or _same_place(place, data_directory):
                return Way(UNIT, found.name)
    name = unit_for(data_directory)
    return Way(UNIT, name) if name else Way(PG_CTL)


def _same_place(one: t.Any, other: str) -> bool:
    """Return whether two paths lead to one directory, or would if they existed."""
    if not one or not isinstance(one, str):
        return False
    return same(identity(one), identity(other)) or os.path.normpath(one) == os.path.normpath(other)


def refuse_managed(data_directory: str, state: str) -> None:
    """Raise :class:`BackupError`, code ``managed_server``, unless nobody manages the server of ``data_directory``."""
    process = server_process(data_directory)
    owner = process.owner if process else None
    if owner is not None and owner.kind in (SYSTEMD, SYSTEMD_USER):
        user = " --user" if owner.kind == SYSTEMD_USER else ""
        raise BackupError(
            f"The server on {data_directory} runs under the unit {owner.unit}: it is not {state} behind its back.",
            code="managed_server",
            hint=f"Use systemctl{user} {VERBS[state]} {owner.unit}, or pgfleet.basebackup.server_service.",
            kind=owner.kind,
            unit=owner.unit,
            program=owner.program,
        )
    if owner is None or owner.kind == NONE:
        owner = manager_of(data_directory)
    if owner is not None:
        raise managed(data_directory, owner, state)
