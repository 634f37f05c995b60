# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration of the restored server: its ``postgresql.auto.conf``, and whether recovery can run with it.

Sources: PostgreSQL, sections "Archive Recovery", "Recovery Target" and "Administrator's Overview" of hot standby.

Private to pgfleet.basebackup. Room ``_restore``: which backup, the plan, the restore; it knows nothing of ``_backup``.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import conf as _conf
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import control as _control
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import target as _target
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.candidate import Choice
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.contents import read_verified
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.findings import Findings
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.layout import CONTROL
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify.quick import Found
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archive import Archive, restore_command

AUTO_CONF = b"postgresql.auto.conf"


# A copy for tests listens and loads nothing. It must not write to the archive, fetch changes from a publisher, wait for
# the source's standby, or write to the source's log files, which log rotation truncates.
_COPY = {
    "listen_addresses": "",
    "ssl": "off",
    "shared_preload_libraries": "",
    "session_preload_libraries": "",
    "local_preload_libraries": "",
    "archive_mode": "off",
    "max_logical_replication_workers": "0",
    "synchronous_standby_names": "",
    "external_pid_file": "",
    "log_directory": "log",
}

# Commands and delays for a standby, which would also apply to recovery to a target.
_NO_STANDBY = {"archive_cleanup_command": "", "recovery_end_command": "", "recovery_min_apply_delay": "0"}

# These have their own options, with which the plan is checked.
_OPTIONS = frozenset(
    ("restore_command", "primary_conninfo", "primary_slot_name", "data_directory", "port", "include", "include_dir")
)


class Configuration(t.NamedTuple):
    """The configuration of the restored server.

    ``settings`` are written to ``postgresql.auto.conf``, below those of the source with ``source_settings``;
    ``parameters`` are lower than recovery needs; ``overrides_data_directory`` says that ``postgresql.conf`` names
    another data directory. ``config_file`` is the ``postgresql.conf`` outside the data directory, "" for the one of the
    backup, None when there is none at all.
    """

    settings: t.Mapping[str, t.Any] = {}
    source_settings: bool = True
    parameters: t.Tuple[t.Mapping[str, t.Any], ...] = ()
    overrides_data_directory: bool = False
    config_file: t.Optional[str] = None


def configure(
    findings: Findings,
    params: t.Mapping[str, t.Any],
    choice: Choice,
    archive: t.Optional[Archive],
    directories: t.Sequence[bytes],
    data: bytes,
) -> Configuration:
    """Return the configuration of the restored server, and refuse wrong settings.

    ``directories`` are those of the backup, ``data`` is the data directory. Raises BackupError, code ``bad_setting``.
    """
    for name in params["settings"]:
        if name.lower() in _OPTIONS or name.lower().startswith("recovery_target"):
            raise BackupError(
                f"{name} has its own option, or cannot be set; it must not be in {option('settings')}.",
                code="bad_setting",
            )
    _check_standby(findings, params, archive)
    settings = _settings(params, choice, archive, _has_in_place_spaces(choice, directories))
    configuration = Configuration(settings, params["source_settings"])
    try:
        for name, value in settings.items():
            _conf.format_setting(name, value)
        return _check_source(findings, params, choice, configuration, data)
    except BackupError as exc:
        findings.refusals.append(exc)
        return configuration


def _check_standby(findings: Findings, params: t.Mapping[str, t.Any], archive: t.Optional[Archive]) -> None:
    standby = params["restore_as"] == "standby"
    if standby and _target.parse_target(params).kind:
        findings.refuse(
            "bad_target", "A standby follows its primary and has no recovery target.", "Leave the target out."
        )
    if standby and not params["primary_conninfo"] and archive is None:
        findings.refuse(
            "no_upstream",
            f"A standby needs {option('primary_conninfo')} or an archive.",
            f"Set {option('primary_conninfo')}.",
        )
    if not standby and (params["primary_conninfo"] or params["primary_slot_name"]):
        findings.refuse(
            "no_standby",
            f"{option('primary_conninfo')} and {option('primary_slot_name')} are for a standby only.",
            f"Leave them out, or set {option('restore_as')}=standby.",
        )


def _has_in_place_spaces(choice: Choice, directories: t.Sequence[bytes]) -> bool:
    """Return whether the backup has tablespaces inside the data directory."""
    in_place = {path for path in directories if path.startswith(b"pg_tblspc/") and path.count(b"/") == 1}
    return bool(in_place - {b"pg_tblspc/%d" % oid for oid in choice.record.stop.tablespaces})


def _settings(
    params: t.Mapping[str, t.Any], choice: Choice, archive: t.Optional[Archive], in_place_spaces: bool
) -> dict[str, t.Any]:
    settings: dict[str, t.Any] = {}
    if params["restore_as"] == "standby":
        settings.update(_target.recovery_settings(_target.parse_target({})))
        settings["primary_conninfo"] = params["primary_conninfo"] or ""
        settings["primary_slot_name"] = params["primary_slot_name"] or ""
        if archive is not None:
            settings["restore_command"] = restore_command(archive)
    else:
        settings.update(_target.recovery_settings(choice.target))
        # Recovery requires one; without an archive it never finds a file.
        settings["restore_command"] = restore_command(archive) if archive else "false"
        settings.update(_NO_STANDBY)
    if params["restore_as"] == "copy":
        settings.update(_COPY)
        if choice.record.server.major < 15:
            # Each server empties it when it starts.
            settings["stats_temp_directory"] = "pg_stat_tmp"
        if choice.record.server.major >= 17:
            # They can run at each login.
            settings["event_triggers"] = "off"
        if choice.record.server.major >= 18:
            settings["oauth_validator_libraries"] = ""
    if in_place_spaces:
        # Without it a directory in pg_tblspc counts as corruption (CheckTablespaceDirectory of xlogrecovery.c).
        settings["allow_in_place_tablespaces"] = "on"
    if params["port"]:
        settings["port"] = params["port"]
    settings.update((name, "" if value is None else value) for name, value in params["settings"].items())
    return settings


def _check_source(
    findings: Findings, params: t.Mapping[str, t.Any], choice: Choice, configuration: Configuration, data: bytes
) -> Configuration:
    """Compare the settings with the configuration of the source, and return them adapted to it."""
    layout = choice.backup.layout()
    source = os.fsdecode(layout.data)
    config = _config_file(params["config_file"], source, choice)
    if config is None:
        findings.warn(
            f"The backup has no postgresql.conf, and {option('config_file')} is not set, so the parameters are not"
            " checked."
        )
        return configuration
    configured = _conf.read_settings(config, source if configuration.source_settings else None, configuration.settings)
    with open(layout.place(CONTROL), "rb") as stream:
        control = _control.parse_control(stream.read())
    configuration = _raise_parameters(findings, params, configuration, _conf.lowered_parameters(control, configured))
    named = configured.get("data_directory")
    return configuration._replace(
        config_file="" if os.path.dirname(config) == source else config,
        overrides_data_directory=_overrides_data_directory(findings, named, config, source, data),
    )


def _config_file(given: t.Optional[str], source: str, choice: Choice) -> t.Optional[str]:
    """Return the configuration file to check: the one ``given``, or the server's own, or None.

    ``source`` is the data directory in the backup. A server of Debian's packages had its own outside.
    """
    config = given or os.path.join(source, "postgresql.conf")
    if given or os.path.exists(config):
        return config
    server = choice.record.server
    known = [server.run_by.config_file] if server.run_by else []
    known += [one for one in server.config_files_outside if os.path.basename(one) == "postgresql.conf"]
    return next((one for one in known if one and os.access(one, os.R_OK)), None)


def _raise_parameters(
    findings: Findings,
    params: t.Mapping[str, t.Any],
    configuration: Configuration,
    lowered: t.Sequence[t.Mapping[str, t.Any]],
) -> Configuration:
    """Raise parameters that are lower than at the source, for a copy; otherwise refuse them: recovery would stop."""
    settings = dict(configuration.settings)
    if params["restore_as"] == "copy":
        given = {name.lower() for name in params["settings"]}
        settings.update((one["name"], one["needed"]) for one in lowered if one["name"] not in given)
        lowered = [one for one in lowered if one["name"] in given]
    if lowered:
        words = ", ".join(f"{one['name']} = {one['configured']} (needed {one['needed']})" for one in lowered)
        findings.refuse(
            "parameters_too_low",
            f"Recovery would stop, because these are lower than at the source: {words}.",
            f"Raise them in the configuration or in {option('settings')}.",
            parameters=list(lowered),
        )
    return configuration._replace(settings=settings, parameters=tuple(lowered))


def _overrides_data_directory(
    findings: Findings, named: t.Optional[str], config: str, source: str, data: bytes
) -> bool:
    """Return whether the restored ``postgresql.conf`` needs a line that overrides the data directory ``named`` in it.

    Without that line the server would run in that directory, not in the restored one.
    """
    if not named or os.path.realpath(named) == os.fsdecode(data):
        return False
    if os.path.dirname(os.path.realpath(config)) == os.path.realpath(source):
        findings.warn(f"A line at the end of postgresql.conf overrides its data_directory = {named!r}.")
        return True
    findings.warn(
        f"{config} says data_directory = {named!r}: a server started with it does not run in {os.fsdecode(data)},"
        " unless its command line names data_directory, as that of the roles does."
    )
    return False


def auto_conf(file: t.Optional[Found], configuration: Configuration) -> bytes:
    """Return the restored server's ``postgresql.auto.conf``, made from that of the backup.

    Raises BackupError, code ``corrupt_file``.
    """
    settings = configuration.settings
    used = file if configuration.source_settings else None
    text = read_verified(used).decode("utf-8", "surrogateescape") if used else ""
    lines = [line for line in _conf.clean_auto_conf(text).splitlines(keepends=True) if not _sets(line, settings)]
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    lines += [_conf.format_setting(name, value) for name, value in settings.items()]
    return "".join(lines).encode("utf-8", "surrogateescape")


def _sets(line: str, settings: t.Mapping[str, t.Any]) -> bool:
    """Return whether a line, as ALTER SYSTEM writes it, sets one of these."""
    return line.partition("=")[0].strip().lower() in {name.lower() for name in settings}


def signal_file(restore_as: str) -> bytes:
    """Return the name of the signal file that starts recovery; ``standby.signal`` takes precedence over the other."""
    return b"standby.signal" if restore_as == "standby" else b"recovery.signal"


def data_directory_line(data: bytes) -> bytes:
    """Return the line that makes the server run in ``data``, whatever earlier lines of ``postgresql.conf`` say."""
    return b"\n" + os.fsencode(_conf.format_setting("data_directory", os.fsdecode(data)))
