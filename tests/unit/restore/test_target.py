# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recovery targets: which values are accepted, which are refused, and at which record recovery stops."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import target as _target
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.records import ABORT, COMMIT, RESTORE_POINT, Event

NOON: t.Final = 1795348800 * 1000000  # 2026-11-22 12:00 UTC


def parse(**options: t.Any) -> _target.Target:
    return _target.parse_target({f"recovery_target_{name}": value for name, value in options.items()})


def refused(match: str, **options: t.Any) -> BackupError:
    with pytest.raises(BackupError, match=match) as caught:
        parse(**options)
    assert caught.value.code == "bad_target"
    return caught.value


def test_nothing_is_the_end_of_the_wal() -> None:
    everything = dict.fromkeys(["recovery_target", *(f"recovery_target_{name}" for name in (
        "time", "lsn", "xid", "name", "inclusive", "timeline", "action"))])  # fmt: skip
    expected = _target.Target("", "", None, True, "latest", "promote")
    assert _target.parse_target({}) == _target.parse_target(everything) == expected
    assert _target.parse_target({**everything, "recovery_target_name": "", "recovery_target_time": ""}) == expected


@pytest.mark.parametrize(
    "text, offset",
    [
        ("2026-11-22 12:00:00+00", 0),
        ("2026-11-22T12:00:00Z", 0),
        (" 2026-11-22t12:00z ", 0),
        ("2026-11-22 12:00 UTC", 0),
        ("2026-11-22 12:00:00.5 GMT", 500000),
        ("2026-11-22 13:00:00.000001+01", 1),
        ("2026-11-22 07:30:00.123456-04:30", 123456),
        ("2026-11-22T07:30:00-0430", 0),
        ("2026-11-23 03:00:00 +15:00", 0),
        ("2026-11-22 12:53:28+00:53:28", 0),
    ],
)
def test_times(text: str, offset: int) -> None:
    target = parse(time=text)
    assert (target.kind, target.text, target.value) == ("time", text, NOON + offset)
    printed = _target.format_time(NOON + offset)
    assert parse(time=printed).value == target.value
    assert _target.recovery_settings(target)["recovery_target_time"] == printed


def test_times_of_other_centuries() -> None:
    for text in ("1969-12-31 23:59:59.999999+00", "1000-01-01 00:00:00.000000+00", "2999-12-31 23:59:59.000001+00"):
        assert _target.format_time(t.cast(int, parse(time=text).value)) == text
    assert parse(time="1969-12-31 23:59:59.999999+00").value == -1


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-22 12:00:00", "2026-11-22", "12:00+00", "2026-11-22 12:00:00 CET", "2026-11-22 12:00:00.1234567Z",
        "2026-11-22 12:00:60Z", "2026-11-22 24:00:00Z", "2026-02-30 12:00:00Z", "2026-11-22 12:00:00+16",
        "2026-11-22 12:00:00+01:60", "yesterday", "now", "9999-12-31 23:59:59-01", "1795348800",
        "2026-11-22 12:00:00Z'",
    ],
)  # fmt: skip
def test_times_that_are_none(text: str) -> None:
    refused("recovery_target_time", time=text)


def test_a_time_without_zone_says_how() -> None:
    assert "+01:00" in refused("offset from UTC", time="2026-11-22 12:00:00").hint


@pytest.mark.parametrize(
    "option, text, value",
    [
        ("lsn", "2/30000A8", 0x2030000A8),
        ("lsn", " 0/0 ", 0),
        ("xid", "751", 751),
        ("xid", "0x2EF", 751),
        ("xid", str((3 << 32) + 751), 751),
        ("name", "before the migration", "before the migration"),
        ("name", "x" * 63, "x" * 63),
    ],
)
def test_values(option: str, text: str, value: t.Any) -> None:
    target = parse(**{option: text}, inclusive=False, timeline="current", action="pause")
    assert target == _target.Target(option, text, value, False, "current", "pause")


def test_numbers_may_come_as_numbers() -> None:
    assert parse(xid=751).value == 751
    assert parse(timeline=3).timeline == "3"


@pytest.mark.parametrize(
    "option, text",
    [
        ("lsn", "30000A8"), ("lsn", "0/"), ("lsn", "0/123456789"), ("xid", "0"), ("xid", "2"), ("xid", "-5"),
        ("xid", "0751"), ("xid", "1_000"), ("xid", str(1 << 64)), ("xid", str(1 << 32)), ("xid", "a"),
        ("name", "x" * 64), ("name", "\u00e4" * 32), ("name", "a\nb"), ("timeline", "newest"), ("timeline", "0"),
        ("timeline", "0000000A"), ("timeline", "010"), ("timeline", "-1"), ("timeline", "4294967296"),
        ("action", "stop"),
    ],
)  # fmt: skip
def test_values_that_are_none(option: str, text: str) -> None:
    assert text.strip() in str(refused(f"recovery_target_{option} ", **{option: text}).msg) or "\n" in text


def test_only_one_target() -> None:
    refused("recovery_target_time and recovery_target_xid", time="2026-11-22 12:00Z", xid=7)
    with pytest.raises(BackupError, match="recovery_target and recovery_target_lsn"):
        _target.parse_target({"recovery_target": "immediate", "recovery_target_lsn": "0/1"})
    with pytest.raises(BackupError, match="'immediate' only"):
        _target.parse_target({"recovery_target": "latest"})


@pytest.mark.parametrize("text, number", [("1", "1"), ("0x0000000A", "10"), ("4294967295", "4294967295")])
def test_timelines(text: str, number: str) -> None:
    assert parse(timeline=text).timeline == number


def test_settings_name_one_target_last_among_them() -> None:
    for options, name, value in [
        ({"lsn": "2/030000A8"}, "recovery_target_lsn", "2/30000A8"),
        ({"xid": "0x2EF"}, "recovery_target_xid", "751"),
        ({"name": "a 'b'"}, "recovery_target_name", "a 'b'"),
        ({"time": "2026-11-22 13:00:00.5+01"}, "recovery_target_time", "2026-11-22 12:00:00.500000+00"),
    ]:
        settings = _target.recovery_settings(parse(**options, inclusive=False, timeline="0x2"))
        assert list(settings)[4] == name
        assert list(settings.values())[:5] == ["", "", "", "", value]
        assert list(settings.values())[5:] == ["off", "2", "promote"]
    assert list(_target.recovery_settings(parse()).values()) == ["", "", "", "", "", "on", "latest", "promote"]
    immediate = _target.recovery_settings(_target.parse_target({"recovery_target": "immediate"}))
    assert (list(immediate)[4], immediate["recovery_target"]) == ("recovery_target", "immediate")


def test_where_recovery_stops() -> None:
    commit = Event(100, 140, COMMIT, 751, NOON, b"")
    abort = commit._replace(kind=ABORT)
    point = Event(100, 200, RESTORE_POINT, 0, NOON, b"caf\xc3\xa9")
    exclusive = parse(time=_target.format_time(NOON), inclusive=False)
    inclusive = exclusive._replace(inclusive=True)
    later = exclusive._replace(value=NOON - 1, inclusive=True)
    for event in (commit, abort):
        assert [_target.is_stop(target, event) for target in (exclusive, inclusive, later)] == [True, False, True]
        assert _target.is_stop(parse(xid=751), event)
        assert not _target.is_stop(parse(xid=752), event)
        assert not _target.is_stop(parse(name="caf\u00e9"), event)
    assert not any(_target.is_stop(target, point) for target in (exclusive, later, parse(xid=751), parse(name="x")))
    assert _target.is_stop(parse(name="caf\u00e9"), point)
    applied = [parse(name="x"), parse(name="x", inclusive=False), parse(xid=7), parse(lsn="0/7")]
    left_out = [inclusive, exclusive, parse(xid=7, inclusive=False), parse(lsn="0/7", inclusive=False)]
    assert [_target.is_applied(target) for target in (*applied, *left_out)] == [True] * 4 + [False] * 4
