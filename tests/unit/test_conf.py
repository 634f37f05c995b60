# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Configuration files: what the server's scanner takes and refuses, includes, and settings that must not be lower."""

from __future__ import annotations

import os
import pathlib
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils import _conf
from ansible_collections.pgfleet.basebackup.plugins.module_utils._control import ControlFile
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError

# What the server makes of each line was tried on servers of 14 and 18 (tests/integration/test_target.py does it again).
LINES: t.Final = [
    (b"port = 5433", {"port": "5433"}),
    (b"  Port\t5433  # comment", {"port": "5433"}),
    (b"port=5433#comment", {"port": "5433"}),
    (b"port 0x1538\r", {"port": "0x1538"}),
    (b"a.b = 'c'", {"a.b": "c"}),
    (b"A.B c-d.e:f/g_1", {"a.b": "c-d.e:f/g_1"}),
    (b"work_mem = 64MB", {"work_mem": "64MB"}),
    (b"x = -1.5e-3", {"x": "-1.5e-3"}),
    (b"x = .5", {"x": ".5"}),
    (b"x'it''s'", {"x": "it's"}),
    (rb"x = 'a\'b\\c\t\101\7\q'", {"x": "a'b\\c\tA\7q"}),
    (rb"x = '\303\251'", {"x": "\u00e9"}),
    (b"x = 'caf\xe9'", {"x": "caf\udce9"}),
    (b"x = ''", {"x": ""}),
    (b"x = '# no comment' # a comment with 'quotes", {"x": "# no comment"}),
    (b"\xc3\xa9t\xc3\xa9 = on", {"\u00e9t\u00e9": "on"}),
    (b"", {}),
    (b" \t# nothing", {}),
]
ERRORS: t.Final = [
    b"port", b"port =", b"port = = 1", b"port = 1 2", b"port = 'a", b"port = a'", b"port = 'a'b", b"= 1", b"1 = 1",
    b"a.b.c = 1", b"a-b = 1", b"a-1", b"a.5", b"x = 0.5s", b"x = 1.2.3", b"x = $1", b"x = 'a\\", b"x = %", b"x; = 1",
]  # fmt: skip


def write(path: pathlib.Path, *lines: t.Union[str, bytes]) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return path


def read(folder: pathlib.Path, **extra: t.Any) -> dict[str, str]:
    return _conf.read_settings(str(folder / "postgresql.conf"), str(folder), extra)


def refused(code: str, folder: pathlib.Path, match: str) -> None:
    with pytest.raises(BackupError, match=match) as caught:
        read(folder)
    assert caught.value.code == code


@pytest.mark.parametrize("line, expected", LINES)
def test_lines(tmp_path: pathlib.Path, line: bytes, expected: dict[str, str]) -> None:
    (tmp_path / "postgresql.conf").write_bytes(line)
    assert read(tmp_path) == expected
    write(tmp_path / "postgresql.conf", "before = 1", line, "after = 2")
    assert read(tmp_path) == {"before": "1", **expected, "after": "2"}


@pytest.mark.parametrize("line", ERRORS)
def test_errors(tmp_path: pathlib.Path, line: bytes) -> None:
    write(tmp_path / "postgresql.conf", "before = 1", line)
    refused("bad_conf", tmp_path, "line 2 of .*postgresql.conf")


def test_the_last_word_counts(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "postgresql.conf", "a = 1", "b = 1", "B = 2", "c = 1", "include 'conf.d/one.conf'", "d = 1")
    write(tmp_path / "conf.d" / "one.conf", "c = 2", "d = 2", "include = two", "include_if_exists nowhere")
    write(tmp_path / "conf.d" / "two", "e = 1", f"include_dir '{tmp_path}/more'")
    for name in ("10.conf", "9.conf", "Z.conf", ".hidden.conf", "x.conf~", "sub.conf/y.conf"):
        write(tmp_path / "more" / name, f"last = '{name}'", f"'{name}'" if name[0] in ".xs" else f"f{name[0]} = 1")
    write(tmp_path / "postgresql.auto.conf", "f9 = 2", "a = 9")
    assert read(tmp_path, a=True, G=7) == {
        "a": "on", "b": "2", "c": "2", "d": "1", "e": "1", "f1": "1", "f9": "2", "fz": "1", "g": "7", "last": "Z.conf",
    }  # fmt: skip


def test_includes_that_stop_a_server(tmp_path: pathlib.Path) -> None:
    main = tmp_path / "postgresql.conf"
    for line, code, match in [
        ("include nowhere", "unreadable", "nowhere cannot be read: No such file"),
        ("include_dir nowhere", "unreadable", "nowhere cannot be read: No such file"),
        ("include ' '", "bad_conf", "includes nothing"),
        ("include_dir ''", "bad_conf", "includes nothing"),
        ("include './postgresql.conf'", "bad_conf", "includes itself"),
        ("include 'other.conf'", "bad_conf", "more than 10 deep"),
    ]:
        write(main, line)
        write(tmp_path / "other.conf", "include postgresql.conf")
        refused(code, tmp_path, match)
    main.unlink()
    refused("unreadable", tmp_path, "postgresql.conf cannot be read")


@pytest.mark.parametrize(
    "value", ["", "a", "it's", "back\\slash", "\\n", "'", "''", "caf\u00e9", "caf\udce9", "\t#=", 5, -1]
)
def test_what_is_written_is_read(tmp_path: pathlib.Path, value: t.Any) -> None:
    line = _conf.format_setting("x.y", value)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    write(tmp_path / "postgresql.conf", os.fsencode(line) + b"after = 1")
    assert read(tmp_path) == {"x.y": str(value), "after": "1"}


def test_switches_and_refusals() -> None:
    assert _conf.format_setting("fsync", False) == "fsync = 'off'\n"
    assert _conf.format_setting("fsync", True) == "fsync = 'on'\n"
    for name, value in [("a b", 1), ("", 1), ("a.b.c", 1), ("1", 1), ("include_dir", "x"), ("a", "x\ny"), ("a", "\0")]:
        with pytest.raises(BackupError) as caught:
            _conf.format_setting(name, value)
        assert caught.value.code == "bad_setting"


def test_auto_conf_loses_the_last_recovery() -> None:
    kept = (
        "# Do not edit this file manually!\nwork_mem = '8MB'\n???\nmy.restore_command = 'x'\n# primary_conninfo = ''\n"
    )
    gone = (
        "primary_conninfo = 'user=x password=''it\\'s'' # y'\n Primary_Slot_Name='s'\nrecovery_target_time 'x' # y\n"
        "restore_command = 'cp'\npromote_trigger_file = ''\nrecovery_min_apply_delay = 5\n"
    )
    assert _conf.clean_auto_conf(kept) == kept
    assert _conf.clean_auto_conf(gone + kept + gone) == kept
    assert _conf.clean_auto_conf("a = 1\nrestore_command = 'x'") == "a = 1"
    assert _conf.clean_auto_conf("") == ""


def control(**fields: int) -> ControlFile:
    zeros = dict.fromkeys(ControlFile._fields, 0)
    defaults = {"max_connections": 100, "max_worker_processes": 8, "max_wal_senders": 10, "max_locks_per_xact": 64}
    return ControlFile(**{**zeros, **defaults, **fields, "raw": b""})  # type: ignore[arg-type]


def test_lowered_parameters() -> None:
    assert _conf.lowered_parameters(control(), {}) == []
    source = control(max_connections=101, max_worker_processes=9, max_wal_senders=11, max_prepared_xacts=1,
                     max_locks_per_xact=65)  # fmt: skip
    names = ["max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_transactions",
             "max_locks_per_transaction"]  # fmt: skip
    needed, defaults = [101, 9, 11, 1, 65], [100, 8, 10, 0, 64]
    assert _conf.lowered_parameters(source, {}) == [
        {"name": name, "needed": most, "configured": own}
        for name, most, own in zip(names, needed, defaults, strict=True)
    ]
    enough = dict(zip(names, ["0x65", "011", " 11 ", "1", "64.6"], strict=True))
    assert _conf.lowered_parameters(source, enough) == []
    assert _conf.lowered_parameters(source, {**enough, "max_connections": "0144"}) == [
        {"name": "max_connections", "needed": 101, "configured": 100}
    ]
    assert _conf.lowered_parameters(source, {"hot_standby": "OFF"}) == []
    assert len(_conf.lowered_parameters(source, {"hot_standby": "yes"})) == 5


@pytest.mark.parametrize("text", ["", "many", "1_000", "nan", "1e999", "089", "0x", "10 MB", "--1"])
def test_numbers_that_are_none(text: str) -> None:
    with pytest.raises(BackupError, match="max_connections is not a number") as caught:
        _conf.lowered_parameters(control(), {"max_connections": text})
    assert caught.value.code == "bad_conf"
