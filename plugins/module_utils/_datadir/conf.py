# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The server's configuration files, read and written by the server's own rules.

Sources: PostgreSQL, "Setting Parameters" and the scanner guc-file.l, which is the same in 14 to 18.

Private to pgfleet.basebackup. Room ``_datadir``: a data directory and the formats of its files; it knows no server.
"""

from __future__ import annotations

import os
import re
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.control import ControlFile
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option

AUTO_CONF = "postgresql.auto.conf"

# ALTER SYSTEM or pg_basebackup -R may have set these for another recovery. One that the server's version no longer has
# (promote_trigger_file) would keep it from starting.
RECOVERY_SETTINGS = frozenset(
    (
        "archive_cleanup_command",
        "primary_conninfo",
        "primary_slot_name",
        "promote_trigger_file",
        "recovery_end_command",
        "recovery_min_apply_delay",
        "recovery_target",
        "recovery_target_action",
        "recovery_target_inclusive",
        "recovery_target_lsn",
        "recovery_target_name",
        "recovery_target_time",
        "recovery_target_timeline",
        "recovery_target_xid",
        "restore_command",
    )
)

# Setting, field of the control file, built-in default in 14 to 18: documentation, "Administrator's Overview" of hot
# standby, and CheckRequiredParameterValues in xlogrecovery.c.
_NOT_LOWER = (
    ("max_connections", "max_connections", "100"),
    ("max_worker_processes", "max_worker_processes", "8"),
    ("max_wal_senders", "max_wal_senders", "10"),
    ("max_prepared_transactions", "max_prepared_xacts", "0"),
    ("max_locks_per_transaction", "max_locks_per_xact", "64"),
)

_MAX_DEPTH = 10  # of files that include each other
_LETTER = rb"[A-Za-z_\x80-\xff]"
_ID = _LETTER + rb"[A-Za-z_0-9\x80-\xff]*"
_NAME = re.compile(_ID + rb"(?:\." + _ID + rb")?")
_UNQUOTED = re.compile(_LETTER + rb"[A-Za-z_0-9\x80-\xff._:/-]*")

# The scanner takes the longest match.
_VALUES = (
    re.compile(rb"'(?:[^'\\\n]|\\[^\n]|'')*'"),
    _UNQUOTED,
    re.compile(rb"[-+]?(?:0x[0-9a-fA-F]+|[0-9]+)[a-zA-Z]*"),
    re.compile(rb"[-+]?[0-9]*\.[0-9]*(?:[Ee][-+]?[0-9]+)?"),
)

_BLANK = re.compile(rb"[ \t\r]*")
_REST = re.compile(rb"[ \t\r]*(?:#.*)?", re.DOTALL)
_ESCAPE = re.compile(rb"''|\\([0-7]{1,3}|.)", re.DOTALL)
_ESCAPED = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_FALSE = ("f", "fa", "fal", "fals", "false", "n", "no", "of", "off", "0")
_INTEGER = re.compile(r"[-+]?(?:(0[xX][0-9a-fA-F]+)|(0[0-7]*)|[1-9][0-9]*)")
_FRACTION = re.compile(r"[-+]?(?=[0-9]*[.eE])(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[Ee][-+]?[0-9]{1,2})?")


def read_settings(
    config_file: str, data_directory: t.Optional[str], extra: t.Optional[t.Mapping[str, t.Any]] = None
) -> dict[str, str]:
    """Return the settings of a server started with these files: value as text by name in lower case.

    ``config_file`` with its includes comes first, then ``postgresql.auto.conf`` of ``data_directory``, if that is given
    and has one, then ``extra``; the last value counts. Raises :class:`BackupError`, code ``bad_conf``, for a file with
    which the server would not start, and ``unreadable`` for one that is missing or cannot be read.
    """
    settings: dict[str, str] = {}
    _read_file(os.path.abspath(config_file), True, 0, settings)
    if data_directory is not None:
        _read_file(os.path.join(os.path.abspath(data_directory), AUTO_CONF), False, 0, settings)
    settings.update((name.lower(), _text(value)) for name, value in (extra or {}).items())
    return settings


def _read_file(path: str, must_exist: bool, depth: int, settings: dict[str, str]) -> None:
    if depth > _MAX_DEPTH:
        raise BackupError(f"The configuration file {path} is included more than {_MAX_DEPTH} deep.", code="bad_conf")
    try:
        with open(path, "rb") as stream:
            content = stream.read()
    except OSError as exc:
        # Here the server skips any file that it cannot open, not only an absent one.
        if not must_exist:
            return
        raise BackupError(
            f"The configuration file {path} cannot be read: {exc.strerror}.",
            code="unreadable",
            hint=f"Make it readable for the user of this task, or set another {option('config_file')}.",
        ) from exc
    for number, line in enumerate(content.split(b"\n"), 1):
        item = _parse_line(line)
        if item is None:
            raise BackupError(
                f"Syntax error in line {number} of {path}: {line.decode('utf-8', 'backslashreplace')!r}",
                code="bad_conf",
            )
        name, value = item
        if name in ("include", "include_if_exists", "include_dir"):
            if not value.strip(" \t\r\n"):
                raise BackupError(f"Line {number} of {path} includes nothing.", code="bad_conf")
            target = os.path.normpath(os.path.join(os.path.dirname(path), value))
            if target == path:
                raise BackupError(f"The configuration file {path} includes itself.", code="bad_conf")
            if name == "include_dir":
                for member in _members(target):
                    _read_file(member, True, depth + 1, settings)
            else:
                _read_file(target, name == "include", depth + 1, settings)
        elif name:
            settings[name] = value


def _members(directory: str) -> list[str]:
    """Return the files of an include_dir in its order, by their bytes."""
    try:
        names = sorted(os.listdir(directory), key=os.fsencode)
    except OSError as exc:
        raise BackupError(
            f"The configuration directory {directory} cannot be read: {exc.strerror}.", code="unreadable"
        ) from exc
    paths = [os.path.join(directory, name) for name in names if name.endswith(".conf") and not name.startswith(".")]
    return [path for path in paths if not os.path.isdir(path)]


def _parse_line(line: bytes) -> t.Optional[tuple[str, str]]:
    """Return name in lower case and value of a line, two empty texts for an empty one, None for a syntax error."""
    position = _blank(line, 0)
    if _ends(line, position):
        return "", ""
    name = _NAME.match(line, position)
    # A longer word that begins like a name is not one.
    if name is None or t.cast("re.Match[bytes]", _UNQUOTED.match(line, position)).end() > name.end():
        return None
    position = _blank(line, name.end())
    if line[position : position + 1] == b"=":
        position = _blank(line, position + 1)
    ends = [match.end() for match in (pattern.match(line, position) for pattern in _VALUES) if match]
    if not ends or not _ends(line, max(ends)):
        return None
    value = line[position : max(ends)]
    if value.startswith(b"'"):
        value = _ESCAPE.sub(_unescape, value[1:-1])
    return name.group().decode("utf-8", "surrogateescape").lower(), os.fsdecode(value)


def _blank(line: bytes, position: int) -> int:
    return t.cast("re.Match[bytes]", _BLANK.match(line, position)).end()


def _ends(line: bytes, position: int) -> bool:
    """Return whether nothing but blanks and a comment follows."""
    return t.cast("re.Match[bytes]", _REST.match(line, position)).end() == len(line)


def _unescape(match: re.Match[bytes]) -> bytes:
    text: t.Optional[bytes] = match.group(1)
    if text is None:
        return b"'"
    if text[:1].isdigit() and text[:1] < b"8":
        return bytes((int(text, 8) & 0xFF,))
    return _ESCAPED.get(text, text)


def _text(value: t.Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def format_setting(name: str, value: t.Any) -> str:
    """Return the line of a configuration file, with its newline, that gives ``name`` this value.

    Raises :class:`BackupError`, code ``bad_setting``, for an invalid name and for a value that no line can hold.
    """
    text = _text(value)
    if _NAME.fullmatch(os.fsencode(name)) is None or name.lower().startswith("include"):
        raise BackupError(f"{name!r} is not the name of a setting.", code="bad_setting")
    # As ALTER SYSTEM does: the server would read \n as a newline, but other programs read such files line by line.
    if "\n" in text or "\0" in text:
        raise BackupError(f"The value of the setting {name} contains a newline or a zero byte.", code="bad_setting")
    quoted = text.replace("\\", "\\\\").replace("'", "''")
    return f"{name} = '{quoted}'\n"


def clean_auto_conf(text: str) -> str:
    """Return ``postgresql.auto.conf`` without the lines that set one of :data:`RECOVERY_SETTINGS`.

    Everything else stays, comments too, and also a line with a syntax error: the server will report it.
    """
    kept = []
    for line in text.split("\n"):
        item = _parse_line(os.fsencode(line))
        if item is None or item[0] not in RECOVERY_SETTINGS:
            kept.append(line)
    return "\n".join(kept)


def lowered_parameters(control: ControlFile, settings: t.Mapping[str, str]) -> list[dict[str, t.Any]]:
    """Return the settings that are lower than at the source, with which recovery would pause or abort.

    Each is ``name``, ``needed`` and ``configured``. ``settings`` come from :func:`read_settings`; absent ones have
    their default. ``control`` is the backup's: where the source raised a setting later, replay will require more.
    With ``hot_standby`` off the server does not compare. Raises :class:`BackupError`, code ``bad_conf``, for a value
    that is not a number.
    """
    if settings.get("hot_standby", "on").strip().lower() in _FALSE:
        return []
    found = []
    for name, field, default in _NOT_LOWER:
        needed = getattr(control, field)
        configured = _number(name, settings.get(name, default))
        if configured < needed:
            found.append({"name": name, "needed": needed, "configured": configured})
    return found


def _number(name: str, text: str) -> int:
    """Return an integer as the server reads it: decimal, hexadecimal, octal with a leading 0, or a rounded fraction."""
    word = text.strip()
    integer = _INTEGER.fullmatch(word)
    if integer:
        return int(word, 16 if integer.group(1) else 8 if integer.group(2) else 10)
    if _FRACTION.fullmatch(word):
        return round(float(word))
    raise BackupError(f"The setting {name} is not a number: {text!r}.", code="bad_conf")
