# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""backup_label and tablespace_map, as servers write them and damaged."""

from __future__ import annotations

import random
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import label as _label
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError

FULL = b"""\
START WAL LOCATION: 2/30000028 (file 0000000A0000000200000030)
CHECKPOINT LOCATION: 2/30000060
BACKUP METHOD: streamed
BACKUP FROM: standby
START TIME: 2026-11-22 06:29:46 CET
LABEL: nightly \xe9 \\n
START TIMELINE: 10
"""
INCREMENTAL = FULL + b"INCREMENTAL FROM LSN: 1/A0\nINCREMENTAL FROM TLI: 9\n"


def test_full_label() -> None:
    assert _label.parse_backup_label(FULL) == _label.BackupLabel(
        start_lsn=0x230000028,
        start_wal_file="0000000A0000000200000030",
        checkpoint_lsn=0x230000060,
        method="streamed",
        backup_from="standby",
        start_time="2026-11-22 06:29:46 CET",
        label=b"nightly \xe9 \\n",
        start_timeline=10,
        incremental_from_lsn=None,
        incremental_from_timeline=None,
    )


def test_incremental_label() -> None:
    label = _label.parse_backup_label(INCREMENTAL)
    assert (label.incremental_from_lsn, label.incremental_from_timeline) == (0x1000000A0, 9)


def test_padded_positions_and_empty_label() -> None:
    data = FULL.replace(b"2/30000028 ", b"2/30000028 ").replace(b": 2/30000060", b": 00000002/30000060")
    label = _label.parse_backup_label(data.replace(b"nightly \xe9 \\n", b""))
    assert (label.checkpoint_lsn, label.label) == (0x230000060, b"")


def test_every_truncation_is_refused() -> None:
    for data in (FULL, INCREMENTAL):
        for length in range(len(data)):
            if length != len(FULL):
                with pytest.raises(BackupError, match="backup_label is damaged"):
                    _label.parse_backup_label(data[:length])


def test_every_missing_repeated_or_exchanged_line_is_refused() -> None:
    lines = INCREMENTAL.splitlines(keepends=True)
    damaged = [lines[:i] + lines[i + 1 :] for i in range(len(lines))]
    damaged += [lines[: i + 1] + lines[i:] for i in range(len(lines))]
    damaged += [[*lines[:i], lines[i + 1], lines[i], *lines[i + 2 :]] for i in range(len(lines) - 1)]
    for candidate in damaged:
        with pytest.raises(BackupError, match="backup_label is damaged"):
            _label.parse_backup_label(b"".join(candidate))


@pytest.mark.parametrize(
    "old, new",
    [
        (b"\n", b"\r\n"),
        (b"nightly", b"night\rly"),
        (b"START WAL", b"\xef\xbb\xbfSTART WAL"),
        (b"streamed", b"pg_start_backup"),
        (b"standby", b"nowhere"),
        (b"2/30000028", b"2/130000028"),
        (b"2/30000060", b"2/30000027"),
        (b"TIMELINE: 10", b"TIMELINE: 9"),
        (b"TIMELINE: 10", b"TIMELINE: 010"),
        (b"0000000A0000000200000030", b"0000000a0000000200000030"),
        (b"streamed\n", b"streamed \n"),
        (b"FROM TLI: 9", b"FROM TLI: "),
        (b"FROM TLI: 9\n", b"FROM TLI: 9\n\n"),
    ],
)
def test_damaged_labels(old: bytes, new: bytes) -> None:
    assert old in INCREMENTAL
    with pytest.raises(BackupError, match="backup_label is damaged") as caught:
        _label.parse_backup_label(INCREMENTAL.replace(old, new))
    assert caught.value.code == "bad_label"


def test_the_damaged_line_is_named() -> None:
    with pytest.raises(BackupError, match=r"unexpected line 'BACKUP METHOD: streamed\\r'"):
        _label.parse_backup_label(FULL.replace(b"streamed", b"streamed\r"))


@pytest.mark.parametrize(
    "data, spaces",
    [
        (b"", {}),
        (b"16384 /srv/pg\n", {16384: b"/srv/pg"}),
        (b"16384 /a b\n4294967295  /c\n", {16384: b"/a b", 4294967295: b" /c"}),
        (b"1 /a\\\\b\\\n\\\r\\\\\n2 \xe9\xff\n", {1: b"/a\\b\n\r\\", 2: b"\xe9\xff"}),
    ],
)
def test_tablespace_map(data: bytes, spaces: t.Dict[int, bytes]) -> None:
    assert _label.parse_tablespace_map(data) == spaces
    assert _label.format_tablespace_map(spaces) == data


@pytest.mark.parametrize(
    "data",
    [
        b"16384 /srv/pg",
        b"16384 /srv/pg\r\n",
        b"\xef\xbb\xbf16384 /srv/pg\n",
        b"16384 /srv/pg\\\n",
        b"16384 /srv/\\pg\n",
        b"16384 \n",
        b"16384\n",
        b"/srv/pg\n",
        b"x /srv/pg\n",
        b"0 /srv/pg\n",
        b"4294967296 /srv/pg\n",
        b"1 /a\n\n2 /b\n",
        b"1 /a\n1 /b\n",
        b"1 /a\0b\n",
        b"\n",
    ],
)
def test_damaged_maps(data: bytes) -> None:
    with pytest.raises(BackupError, match="tablespace_map is damaged"):
        _label.parse_tablespace_map(data)


def test_any_location_survives_the_map() -> None:
    chance = random.Random(3)  # noqa: S311 - no secret
    for _turn in range(500):
        spaces = {
            oid: b"/" + bytes(chance.choice(b"\\\r\n \xe9ab") for _number in range(chance.randrange(12)))
            for oid in chance.sample(range(1, 2**32), 4)
        }
        data = _label.format_tablespace_map(spaces)
        assert _label.parse_tablespace_map(data) == spaces


@pytest.mark.parametrize("label", ["", "nightly", "h\u00e9 'quoted' \\n", "x" * 1024, "\u00e9" * 512, "\U0001f418"])
def test_label_texts(label: str) -> None:
    _label.check_label_text(label)


@pytest.mark.parametrize(
    "label, message",
    [
        ("a\nb", "control characters"),
        ("a\rb", "control characters"),
        ("\t", "control characters"),
        ("\0", "control characters"),
        ("\x7f", "control characters"),
        ("\u0085", "control characters"),
        ("\u2028", "control characters"),
        ("x" * 1025, "has 1025 bytes"),
        ("\u00e9" * 513, "has 1026 bytes"),
        ("\udce9", "not valid Unicode"),
    ],
)
def test_refused_label_texts(label: str, message: str) -> None:
    with pytest.raises(BackupError, match=message) as caught:
        _label.check_label_text(label)
    assert caught.value.code == "bad_label_text"
