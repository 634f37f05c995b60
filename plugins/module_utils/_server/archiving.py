# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a server archives its WAL, and how it is to: decided from facts, without asking or changing anything.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.

Sources: PostgreSQL, "Continuous Archiving and Point-in-Time Recovery", "Archive Modules", and the settings
``archive_mode``, ``archive_command``, ``archive_library``.
"""

from __future__ import annotations

import os
import shutil
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.trust import refuse_unsafe, trusted_users
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.running import cluster_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import script as _script
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.place import refuse_scripts, unusable

AUTO, BASIC_ARCHIVE, SCRIPT, OWN = METHODS = ("auto", "basic_archive", "script", "own")
BASIC_DIRECTORY = "basic_archive.archive_directory"
# What the decisions need to know of the configuration files.
NAMES = ("archive_mode", "archive_command", "archive_library", BASIC_DIRECTORY, "wal_level")
# Commands that are set so that archiving can be started later without a restart.
PLACEHOLDERS = ("true", "/bin/true", "/usr/bin/true", ":", "cd .", "exit 0", "test 1 = 1")

Problem = t.Dict[str, str]


class Wanted(t.NamedTuple):
    """The options: the cluster's directory in the repository, the directories of the archive and of the script, and how
    to archive."""

    home: str
    directory: str
    script_directory: str
    method: str = AUTO
    compression: str = "none"
    archive_mode: str = "on"
    restore_command: str = ""


class Found(t.NamedTuple):
    """The server: ``configured`` are the values of NAMES in its configuration files, None where unknown."""

    major: int
    version: str
    role: str
    data_directory: t.Optional[str]
    configured: t.Mapping[str, t.Optional[str]]
    running_mode: str
    has_basic_archive: bool


class Archiving:
    """How the server is to archive: the method, its commands and its parameters."""

    def __init__(self, wanted: Wanted, found: Found) -> None:
        self.wanted = wanted
        self.found = found
        self.library = found.configured.get("archive_library") or ""
        self.command = found.configured.get("archive_command") or ""
        # Where basic_archive is configured to archive to.
        self.present = found.configured.get(BASIC_DIRECTORY) or "" if self.library == BASIC_ARCHIVE else ""
        before = self.library, self.command
        self.method = self._method()
        self.elsewhere = ""
        if self.method == OWN:
            self.mode = found.running_mode
            self.restore_command = wanted.restore_command
            return
        script = os.path.join(wanted.script_directory, _script.SCRIPT)
        self.mode = wanted.archive_mode
        self.restore_command = _script.restore_command(script, wanted.directory)
        # A server from 16 on refuses a command together with a library.
        basic = self.method == BASIC_ARCHIVE
        self.library = BASIC_ARCHIVE if basic else ""
        self.command = "" if basic else _script.archive_command(script, wanted.directory, wanted.compression)
        self.elsewhere = self._elsewhere(*before)

    def _configured(self) -> str:
        """Return the method that the configuration files have: "" when none, OWN when it is not this collection's."""
        if self.library:
            return BASIC_ARCHIVE if self.library == BASIC_ARCHIVE and self._is_ours(self.present) else OWN
        if not self.command:
            return ""
        return SCRIPT if _script.SCRIPT in self.command else OWN

    def _is_ours(self, directory: str) -> bool:
        """Return whether a directory is the wanted archive, or another one below the repository.

        A rebuilt node has the settings of the node that it was made from, which name the archive of that node.
        """
        if not os.path.isabs(directory):
            return False
        if _same(directory, self.wanted.directory):
            return True
        repository = os.path.dirname(os.path.normpath(self.wanted.home))
        return any(_is_below(kind(directory), kind(repository)) for kind in (os.path.normpath, os.path.realpath))

    def _method(self) -> str:
        if self.wanted.method != AUTO:
            return self.wanted.method
        configured = self._configured()
        if configured == OWN:
            return OWN
        if self.wanted.compression != "none" or not self.found.has_basic_archive:
            return SCRIPT
        return configured or BASIC_ARCHIVE

    def _elsewhere(self, library: str, command: str) -> str:
        """Return where this collection's present setting archives to, "" when that is the wanted directory."""
        directory = ""
        if library:
            directory = self.present if self._is_ours(self.present) else ""
        elif _script.SCRIPT in command:
            directory = _script.directory_of(command)
        return "" if not directory or _same(directory, self.wanted.directory) else directory

    def settings(self) -> dict[str, str]:
        """Return the parameters to set, in this order; none for OWN."""
        if self.method == OWN:
            return {}
        settings = {"archive_mode": self.mode, "archive_command": self.command}
        # No server starts with archiving and wal_level=minimal.
        if self.found.configured.get("wal_level") == "minimal":
            settings["wal_level"] = "replica"
        if self.found.major >= 15:
            settings["archive_library"] = self.library
        if self.library:
            settings[BASIC_DIRECTORY] = self.wanted.directory
        return settings

    def archives(self) -> bool:
        """Return whether this server itself archives: a standby only with ``always``."""
        return self.found.role == "primary" or self.mode == "always"

    def means(self) -> str:
        """Return what archives, and where to, as the end of a sentence."""
        if self.method == OWN:
            return (
                f"the library {self.library} of this server" if self.library else "the archive_command of this server"
            )
        if self.method == BASIC_ARCHIVE:
            return f"basic_archive into {self.wanted.directory}"
        compression = f" ({self.wanted.compression})" if self.wanted.compression != "none" else ""
        return f"{_script.SCRIPT} into {self.wanted.directory}{compression}"

    def facts(self) -> dict[str, str]:
        """Return the part of the module's result that the method decides."""
        return {
            "method": self.method,
            "directory": "" if self.method == OWN else self.wanted.directory,
            "compression": self.wanted.compression if self.method == SCRIPT else "none",
            "archive_mode": self.mode,
            "archive_command": self.command,
            "archive_library": self.library,
            "restore_command": self.restore_command,
        }


def problems_of(archiving: Archiving) -> list[Problem]:
    """Return what prevents archiving this way, each with ``code``, ``msg`` and ``hint``."""
    return _problems_of_own(archiving) if archiving.method == OWN else _problems_of_ours(archiving)


def _problems_of_own(archiving: Archiving) -> list[Problem]:
    instead = f"{option('method')}=script or basic_archive"
    problems = []
    if not archiving.library and not archiving.command:
        problems.append(
            problem(
                "archive_command_empty",
                f"Neither archive_command nor archive_library is set; {option('method')}=own only checks it.",
                f"Set one of them, or use {instead}.",
            )
        )
    if archiving.mode == "off":
        problems.append(
            problem(
                "archive_mode_off",
                "archive_mode is off.",
                f"Set it where this server's archive_command or archive_library is managed, or use {instead}.",
            )
        )
    if not archiving.library and archiving.command.strip() in PLACEHOLDERS:
        problems.append(
            problem(
                "archive_command_discards",
                f"archive_command is {archiving.command}, which throws the WAL away.",
                f"Replace it by {instead}.",
            )
        )
    return problems


def _problems_of_ours(archiving: Archiving) -> list[Problem]:
    wanted, found = archiving.wanted, archiving.found
    problems = []
    if _is_inside(wanted.directory, found.data_directory):
        problems.append(
            problem(
                "archive_inside_cluster",
                f"The archive {wanted.directory} lies in the data directory.",
                f"Choose a different {option('directory')}, preferably on another device.",
            )
        )
    else:
        other = cluster_of(wanted.directory)
        if other:
            problems.append(
                problem(
                    "archive_inside_cluster",
                    f"The archive {wanted.directory} lies in the database cluster {other}.",
                    f"Choose a different {option('directory')}.",
                )
            )
    reason = unusable(wanted.directory)
    if reason:
        problems.append(
            problem(
                "archive_unwritable", reason, f"Correct its owner or mode, or choose another {option('directory')}."
            )
        )
    apart = [os.path.dirname(wanted.home), *([found.data_directory] if found.data_directory else [])]
    checks: t.List[t.Callable[[], None]] = [lambda: refuse_scripts(wanted.script_directory, apart)]
    if not reason:
        checks.insert(0, lambda: refuse_unsafe(wanted.directory, "The archive", trusted_users()))
    for check in checks:
        try:
            check()
        except BackupError as exc:
            problems.append(problem(exc.code, exc.msg, exc.hint))
    if archiving.method == BASIC_ARCHIVE and not found.has_basic_archive:
        problems.append(
            problem(
                "basic_archive_missing",
                f"This server (PostgreSQL {found.version}) does not have the library basic_archive.",
                "It comes with PostgreSQL 15 and later, in some distributions in the package postgresql-contrib; or use"
                f" {option('method')}=script.",
            )
        )
    if archiving.method == BASIC_ARCHIVE and wanted.compression != "none":
        problems.append(
            problem(
                "no_compression",
                "basic_archive does not compress.",
                f"Use {option('method')}=script with {option('compression')}.",
            )
        )
    if archiving.method == SCRIPT and wanted.compression == "zstd" and shutil.which("zstd") is None:
        problems.append(
            problem(
                "tool_missing",
                "The command zstd is not installed.",
                f"Install it, or use {option('compression')}=gzip.",
            )
        )
    return problems


def problem(code: str, msg: str, hint: str) -> Problem:
    """Return one entry of ``problems``."""
    return {"code": code, "msg": msg, "hint": hint}


def _is_inside(directory: str, data_directory: t.Optional[str]) -> bool:
    if data_directory is None:
        return False
    real, data = os.path.realpath(directory), os.path.realpath(data_directory)
    return real == data or _is_below(real, data)


def _is_below(directory: str, parent: str) -> bool:
    return directory.startswith(parent.rstrip("/") + "/")


def _same(directory: str, other: str) -> bool:
    return os.path.normpath(directory) == os.path.normpath(other)


def last_segment(archiver: t.Mapping[str, t.Any]) -> str:
    """Return the segment or history file that was archived last, "" when there is none to ask for.

    A backup's history file counts as the segment that it begins with; a partial segment is no proof.
    """
    name = archiver["last_archived_wal"] or ""
    if name.endswith(".partial"):
        return ""
    return name.split(".")[0] if name.endswith(".backup") else name
