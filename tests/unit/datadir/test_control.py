# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control file: layouts, damage, torn reads."""

from __future__ import annotations

import os
import pathlib
import struct

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import control as _control
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError

LAYOUTS = [(1300, 288), (1700, 288), (1800, 292)]


def control_file(version: int = 1800, crc_offset: int = 292, size: int = 8192) -> bytes:
    content = bytearray(size)
    struct.pack_into("<QIII", content, 0, 7710880042689923079, version, 202506291, 6)
    struct.pack_into("<I", content, 48, 3)
    struct.pack_into("<QI", content, 136, 0x50000F8, 4)
    struct.pack_into("<i", content, 172, 1)
    struct.pack_into("<5i", content, 180, 100, 8, 10, 2, 64)
    struct.pack_into("<I", content, 252, 1)
    struct.pack_into("<I", content, crc_offset, _control.crc32c(bytes(content[:crc_offset])))
    return bytes(content)


@pytest.mark.parametrize(
    "data, crc",
    [
        (b"", 0),
        (b"a", 0xC1D04330),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_crc32c_is_that_of_the_standards(data: bytes, crc: int) -> None:
    assert _control.crc32c(data) == crc


@pytest.mark.parametrize("version, crc_offset", LAYOUTS)
def test_parse(version: int, crc_offset: int) -> None:
    raw = control_file(version, crc_offset)
    expected = _control.ControlFile(
        7710880042689923079, version, 202506291, 6, 3, 0x50000F8, 4, 1, 100, 8, 10, 2, 64, 1, raw
    )
    assert _control.parse_control(raw) == expected


@pytest.mark.parametrize("version, crc_offset", LAYOUTS)
def test_every_flipped_bit_is_noticed(version: int, crc_offset: int) -> None:
    raw = control_file(version, crc_offset)
    for position in range(crc_offset + 4):
        damaged = bytearray(raw)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(BackupError, match="pg_control has") as caught:
            _control.parse_control(bytes(damaged))
        assert caught.value.code in ("bad_control", "unsupported_control")


@pytest.mark.parametrize("size", [0, 512, 8191, 8193])
def test_other_sizes(size: int) -> None:
    raw = (control_file() + b"\0")[:size]
    with pytest.raises(BackupError, match=f"pg_control has {size} bytes") as caught:
        _control.parse_control(raw)
    assert caught.value.code == "bad_control"


@pytest.mark.parametrize("version", [0, 1201, 1301, 1900, 0x00000714])
def test_unknown_versions(version: int) -> None:
    with pytest.raises(BackupError, match=f"version {version}; known are 1300, 1700, 1800") as caught:
        _control.parse_control(control_file(version))
    assert caught.value.code == "unsupported_control"


def test_torn_reads_are_repeated(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pg_control"
    good = control_file()
    torn = good[:200] + b"\1" * 92 + good[292:]
    contents = [torn, good[:4096], b"", good, torn]
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        path.write_bytes(contents[len(pauses)])

    monkeypatch.setattr(_control.time, "sleep", pause)
    path.write_bytes(contents[0])
    assert _control.read_control(os.fsencode(path), attempts=4, delay=0.5).raw == good
    assert pauses == [0.5] * 3


def test_a_lasting_damage_is_reported(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "pg_control"
    path.write_bytes(control_file()[:-1])
    with pytest.raises(BackupError, match="8191 bytes"):
        _control.read_control(os.fsencode(path), attempts=2, delay=0)
    path.write_bytes(control_file() + b"\0")
    with pytest.raises(BackupError, match="8193 bytes"):
        _control.read_control(os.fsencode(path), attempts=1, delay=0)


def test_what_cannot_be_read(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BackupError, match="pg_control': No such file") as caught:
        _control.read_control(os.fsencode(tmp_path / "pg_control"))
    assert caught.value.code == "unreadable"
