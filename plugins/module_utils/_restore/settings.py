# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the restored server is configured: what is written to ``postgresql.auto.conf``, and whether it will do.

Sources: PostgreSQL, sections "Archive Recovery", "Recovery Target" and "Administrator's Overview" of hot standby.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import conf as _conf
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import control as _control
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import target as _target
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.copy import read_verified
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.layout import CONTROL, Layout
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.plan import Plan
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import archive as _archive

AUTO_CONF = b"postgresql.auto.conf"


# A copy for tests must not write to the archive, ask a publisher for its changes, wait for somebody else's standby, or
# write to the source's log files, which the rotation truncates.
_COPY = {
    "archive_mode": "off",
    "max_logical_replication_workers": "0",
    "synchronous_standby_names": "",
    "external_pid_file": "",
    "log_directory": "log",
}


# Commands and delays that belong to a standby; replay to a target would obey them too.
_NO_STANDBY = {"archive_cleanup_command": "", "recovery_end_command": "", "recovery_min_apply_delay": "0"}


# These have options of their own, against which the plan is checked.
_OPTIONS = frozenset(
    ("restore_command", "primary_conninfo", "primary_slot_name", "data_directory", "port", "include", "include_dir")
)


def check(plan: Plan) -> None:
    """Decide the settings of the restored server and note what is wrong with them.

    Raises BackupError: ``bad_setting``, and what reading the configuration raises.
    """
    params = plan.params
    for name in params["settings"]:
        if name.lower() in _OPTIONS or name.lower().startswith("recovery_target"):
            raise BackupError(f"settings: {name} has an option of its own, or none.", code="bad_setting")
    standby = params["restore_as"] == "standby"
    if standby and plan.target.kind:
        plan.refuse("bad_target", "A standby follows its primary and has no recovery target.", "Leave the target out.")
    if standby and not params["primary_conninfo"] and plan.archive is None:
        plan.refuse("no_upstream", "A standby needs primary_conninfo or an archive.", "Give primary_conninfo.")
    if not standby and (params["primary_conninfo"] or params["primary_slot_name"]):
        plan.refuse(
            "no_standby",
            "primary_conninfo and primary_slot_name are for restore_as: standby.",
            "Leave them out, or restore_as: standby.",
        )
    plan.settings = _settings(plan)
    for name, value in plan.settings.items():
        _conf.format_setting(name, value)
    _check_parameters(plan)


def _settings(plan: Plan) -> dict[str, t.Any]:
    params = plan.params
    settings: dict[str, t.Any] = {}
    if params["restore_as"] == "standby":
        settings.update(_target.recovery_settings(_target.parse_target({})))
        settings["primary_conninfo"] = params["primary_conninfo"] or ""
        settings["primary_slot_name"] = params["primary_slot_name"] or ""
        if plan.archive is not None:
            settings["restore_command"] = _archive.restore_command(plan.archive)
    else:
        settings.update(_target.recovery_settings(plan.choice.target))
        # Recovery asks for it; where there is no archive, nothing is ever found.
        settings["restore_command"] = _archive.restore_command(plan.archive) if plan.archive else "false"
        settings.update(_NO_STANDBY)
    if params["restore_as"] == "copy":
        settings.update(_COPY)
        if plan.content["server"]["major"] < 15:
            # Each server empties it when it starts.
            settings["stats_temp_directory"] = "pg_stat_tmp"
    in_place = [path for path in plan.directories if path.startswith(b"pg_tblspc/") and path.count(b"/") == 1]
    mapped = {b"pg_tblspc/%s" % oid.encode("ascii") for oid in plan.content["stop"]["tablespaces"]}
    if set(in_place) - mapped:
        # Without it recovery takes a directory in pg_tblspc for damage (CheckTablespaceDirectory of xlogrecovery.c).
        settings["allow_in_place_tablespaces"] = "on"
    if params["port"]:
        settings["port"] = params["port"]
    settings.update((name, "" if value is None else value) for name, value in params["settings"].items())
    return settings


def _check_parameters(plan: Plan) -> None:
    """Compare with what the source had: lower values make recovery stop."""
    data = plan.choice.backup.file("data")
    config = plan.params["config_file"] or os.path.join(data, "postgresql.conf")
    if not plan.params["config_file"] and not os.path.exists(config):
        outside = [one for one in plan.config_files_outside if os.path.basename(one) == "postgresql.conf"]
        if not outside or not os.access(outside[0], os.R_OK):
            plan.warnings.append(
                "The backup has no postgresql.conf, and config_file was not given: the settings cannot be checked."
            )
            return
        config = outside[0]
    configured = _conf.read_settings(config, data, plan.settings)
    with open(plan.choice.backup.file("data", "global", "pg_control"), "rb") as stream:
        control = _control.parse_control(stream.read())
    plan.parameters = _conf.lowered_parameters(control, configured)
    if plan.params["restore_as"] == "copy":
        given = {name.lower() for name in plan.params["settings"]}
        for one in plan.parameters:
            if one["name"] not in given:
                plan.settings[one["name"]] = one["needed"]
        plan.parameters = [one for one in plan.parameters if one["name"] in given]
    if plan.parameters:
        words = ", ".join(f"{one['name']} = {one['configured']} (needed {one['needed']})" for one in plan.parameters)
        plan.refuse(
            "parameters_too_low",
            f"Recovery would stop, because these are lower than at the source: {words}.",
            "Raise them in the configuration or in settings.",
            parameters=plan.parameters,
        )
    # The server would run in the directory that the setting names, and not in the restored one.
    named = configured.get("data_directory")
    if named and os.path.realpath(named) != os.fsdecode(plan.data):
        if os.path.dirname(os.path.realpath(config)) == os.path.realpath(data):
            plan.data_directory_setting = True
            plan.warnings.append(f"data_directory = {named!r} in postgresql.conf is overruled by a line at its end.")
        else:
            plan.warnings.append(
                f"{config} says data_directory = {named!r}: a server started with it does not run in"
                f" {os.fsdecode(plan.data)}."
            )


def auto_conf(plan: Plan) -> bytes:
    """Return the restored server's ``postgresql.auto.conf``. Raises BackupError, code ``corrupt_file``."""
    file = plan.small.get(AUTO_CONF)
    text = read_verified(file).decode("utf-8", "surrogateescape") if file else ""
    lines = [line for line in _conf.clean_auto_conf(text).splitlines(keepends=True) if not _sets(line, plan.settings)]
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    lines += [_conf.format_setting(name, value) for name, value in plan.settings.items()]
    return "".join(lines).encode("utf-8", "surrogateescape")


def _sets(line: str, settings: t.Mapping[str, t.Any]) -> bool:
    """Tell whether a line, as ALTER SYSTEM writes it, sets one of these."""
    return line.partition("=")[0].strip().lower() in {name.lower() for name in settings}


def write_signals(layout: Layout, restore_as: str, write: t.Callable[[bytes, bytes], None]) -> None:
    """Write the file that makes the server recover; a standby's wins over the other, so there is only one."""
    name = b"standby.signal" if restore_as == "standby" else b"recovery.signal"
    write(layout.place(name), b"")


def data_directory_line(data: bytes) -> bytes:
    """Return the line that makes the server run in ``data`` whatever ``postgresql.conf`` says before it."""
    return b"\n" + os.fsencode(_conf.format_setting("data_directory", os.fsdecode(data)))


def control_of(plan: Plan) -> bytes:
    """Return the backup's control file. Raises BackupError, code ``corrupt_file`` or ``bad_control``."""
    return _control.parse_control(read_verified(plan.small[CONTROL])).raw
