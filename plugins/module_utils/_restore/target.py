# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The point to recover to: what the options mean, and the settings for PostgreSQL.

Sources: PostgreSQL, section "Recovery Target"; recoveryStopsBefore and recoveryStopsAfter of xlogrecovery.c.

Private to pgfleet.basebackup. Room ``_restore``: which backup, the plan, the restore; it knows nothing of ``_backup``.
"""

from __future__ import annotations

import datetime
import re
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.records import RESTORE_POINT, Event
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.segments import format_lsn, parse_lsn

END, IMMEDIATE, TIME, LSN, XID, NAME = "", "immediate", "time", "lsn", "xid", "name"
ACTIONS = ("pause", "promote", "shutdown")
MAX_NAME_BYTES = 63  # MAXFNAMELEN - 1

_TIME = re.compile(
    r"([12]\d{3}-\d\d-\d\d)[Tt ](\d\d:\d\d)(?::(\d\d)(?:\.(\d{1,6}))?)?"
    r" ?(?:([Zz]|UTC|GMT)|([-+])(\d\d)(?::?(\d\d)(?::?(\d\d))?)?)"
)

_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|0|[1-9][0-9]*")
_EPOCH = datetime.datetime(1970, 1, 1)
_MICROSECOND = datetime.timedelta(microseconds=1)


class Target(t.NamedTuple):
    """A recovery target in PostgreSQL's terms.

    ``kind`` is "" (the end of the WAL), ``immediate`` (the end of the backup), ``time``, ``lsn``, ``xid`` or ``name``;
    ``text`` is the text of the option. ``value`` is, by kind: None, None, microseconds since 1970 in UTC, an LSN, a
    transaction as in WAL (32 bits), a name. ``timeline`` is ``latest``, ``current`` or a decimal number.
    """

    kind: str
    text: str
    value: t.Union[int, str, None]
    inclusive: bool
    timeline: str
    action: str


def parse_target(params: t.Mapping[str, t.Any]) -> Target:
    """Return the target that a module's ``recovery_target*`` options set; absent and empty options are ignored.

    A time needs its UTC offset: without it two machines may read it differently. Raises :class:`BackupError`, code
    ``bad_target``.
    """
    given = [
        (kind, str(params.get(option))) for kind, option in _OPTIONS.items() if params.get(option) not in (None, "")
    ]
    if len(given) > 1:
        raise _bad(
            "Only one recovery target can be reached, not "
            + " and ".join(option(_OPTIONS[kind]) for kind, _text in given)
            + "."
        )
    kind, text = given[0] if given else (END, "")
    inclusive = params.get("recovery_target_inclusive")
    action = params.get("recovery_target_action") or "promote"
    if action not in ACTIONS:
        raise _bad(f"{option('recovery_target_action')} is one of {', '.join(ACTIONS)}, not {action!r}.")
    timeline = _timeline(str(params.get("recovery_target_timeline") or "latest"))
    return Target(kind, text, _PARSERS[kind](text), inclusive is None or bool(inclusive), timeline, action)


_OPTIONS = {
    IMMEDIATE: "recovery_target",
    TIME: "recovery_target_time",
    LSN: "recovery_target_lsn",
    XID: "recovery_target_xid",
    NAME: "recovery_target_name",
}


def _bad(msg: str, hint: str = "") -> BackupError:
    return BackupError(msg, code="bad_target", hint=hint)


def _immediate(text: str) -> None:
    if text not in (END, IMMEDIATE):
        raise _bad(f"{option('recovery_target')} can be {IMMEDIATE!r} only, not {text!r}.")


def _time(text: str) -> int:
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise _bad(
            f"{option('recovery_target_time')} {text!r} is not a time with its offset from UTC.",
            "Write it like 2026-11-22 10:00:00.123456+01:00 or 2026-11-22T09:00:00Z.",
        )
    day, minute, second, fraction, _utc, sign, *offset = match.groups()
    hours, minutes, seconds = (int(part or 0) for part in offset)
    try:
        local = datetime.datetime.strptime(f"{day} {minute}:{second or '00'}", "%Y-%m-%d %H:%M:%S")
        if hours > 15 or minutes > 59 or seconds > 59:
            raise ValueError("the offset from UTC is too large")
    except ValueError as exc:
        raise _bad(f"{option('recovery_target_time')} {text!r} is not a time: {exc}.") from exc
    east = datetime.timedelta(hours=hours, minutes=minutes, seconds=seconds)
    past = (local - _EPOCH + (east if sign == "-" else -east)) // _MICROSECOND
    return past + int((fraction or "").ljust(6, "0"))


def _lsn(text: str) -> int:
    try:
        return parse_lsn(text.strip())
    except ValueError as exc:
        raise _bad(f"{option('recovery_target_lsn')} {text!r} is not an LSN like 2/30000A8.") from exc


def _xid(text: str) -> int:
    if not _NUMBER.fullmatch(text.strip()) or int(text, 0) >= 1 << 64 or int(text, 0) % (1 << 32) < 3:
        raise _bad(f"{option('recovery_target_xid')} {text!r} is not a transaction's number.")
    # pg_current_xact_id() counts beyond 32 bits, WAL does not.
    return int(text, 0) % (1 << 32)


def _name(text: str) -> str:
    if len(name_bytes(text)) > MAX_NAME_BYTES or "\n" in text or "\0" in text:
        raise _bad(
            f"{option('recovery_target_name')} {text!r} cannot be a restore point's, which has at most 63 bytes"
            " on one line."
        )
    return text


_PARSERS: dict[str, t.Callable[[str], t.Union[int, str, None]]] = {
    END: _immediate,
    IMMEDIATE: _immediate,
    TIME: _time,
    LSN: _lsn,
    XID: _xid,
    NAME: _name,
}


def _timeline(text: str) -> str:
    if text in ("latest", "current"):
        return text
    # PostgreSQL would read a leading zero as octal, but a number copied from a file name is hexadecimal.
    if not _NUMBER.fullmatch(text) or not 0 < int(text, 0) < 1 << 32:
        raise _bad(
            f"{option('recovery_target_timeline')} {text!r} is neither latest nor current nor a number"
            " without leading zeros.",
            "A timeline from a file's name is hexadecimal: 0x0000000A.",
        )
    return str(int(text, 0))


def name_bytes(name: str) -> bytes:
    """Return a restore point's name as in WAL."""
    return name.encode("utf-8", "surrogateescape")


def format_time(time_us: int) -> str:
    """Return microseconds since 1970 as PostgreSQL prints and reads them, in UTC."""
    return f"{_EPOCH + time_us * _MICROSECOND:%Y-%m-%d %H:%M:%S.%f}+00"


def is_stop(target: Target, event: Event) -> bool:
    """Return whether recovery to a time, a transaction or a name stops at this record, if it is the first such one."""
    if target.kind == NAME:
        return event.kind == RESTORE_POINT and event.name == name_bytes(str(target.value))
    if event.kind == RESTORE_POINT:
        return False
    if target.kind == XID:
        return event.xid == target.value
    value = t.cast(int, target.value)
    return event.time_us > value or (event.time_us == value and not target.inclusive)


def is_applied(target: Target) -> bool:
    """Return whether the record at which recovery stops is replayed; for an inclusive time it is not."""
    return target.kind == NAME or (target.kind in (XID, LSN) and target.inclusive)


def recovery_settings(target: Target) -> dict[str, str]:
    """Return the settings that make a server recover to ``target``, in the order in which they must be written.

    All other targets come first, as empty texts: a target in the copied ``postgresql.conf`` would be a second one, with
    which PostgreSQL does not start.
    """
    values = {IMMEDIATE: IMMEDIATE, NAME: target.text, XID: str(target.value)}
    if target.kind == TIME:
        values[TIME] = format_time(t.cast(int, target.value))
    elif target.kind == LSN:
        values[LSN] = format_lsn(t.cast(int, target.value))
    settings = {option: "" for kind, option in _OPTIONS.items() if kind != target.kind}
    if target.kind:
        settings[_OPTIONS[target.kind]] = values[target.kind]
    return {
        **settings,
        "recovery_target_inclusive": "on" if target.inclusive else "off",
        "recovery_target_timeline": target.timeline,
        "recovery_target_action": target.action,
    }


def in_words(target: Target) -> str:
    """Return the target in words for a sentence."""
    return {
        END: "the end of the WAL",
        IMMEDIATE: "the end of the backup",
        TIME: f"the time {target.text}",
        LSN: f"the LSN {target.text}",
        XID: f"the end of transaction {target.value}",
        NAME: f"the restore point {target.text!r}",
    }[target.kind]
