# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restores of every kind on real servers: targets, odd places, repairs, archives, configurations."""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import os
import pathlib
import shutil
import typing as t

import pytest

from tests.harness.checks import amcheck, data_checksum
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, wait_until
from tests.harness.user import own_directory, own_file, run
from tests.integration.helpers.files import listing, untouched
from tests.integration.helpers.source import Source, numbers
from tests.integration.helpers.steps import Background, Steps

BOTH: t.Final = pytest.mark.majors(15, 18)
TARGET: t.Final = "recovery_target"


class Done(t.NamedTuple):
    """A transaction that wrote a number: its id, and where and when it ended."""

    xid: str
    start: str
    end: str
    at: str


def write(server: Server, number: int) -> Done:
    """Insert a number in its own transaction."""
    with contextlib.closing(server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("INSERT INTO numbers VALUES (%s) RETURNING pg_current_xact_id()::text", [number])
        (xid,) = cursor.fetchone()
        cursor.execute("SELECT pg_current_wal_insert_lsn()::text")
        (start,) = cursor.fetchone()
        cursor.execute("COMMIT")
        cursor.execute("SELECT pg_current_wal_insert_lsn()::text, pg_xact_commit_timestamp(%s::text::xid)::text", [xid])
        end, at = cursor.fetchone()
    return Done(xid, start, end, at)


@BOTH
def test_every_kind_of_target(sandbox: Sandbox, major: int) -> None:
    """Each target stops where it should, inclusive and exclusive, and performs its action there."""
    source = Source(sandbox, major, track_commit_timestamp=True)
    server = source.server
    server.sql("CREATE TABLE numbers (n int)")
    write(server, 1)
    source.backup()
    server.sql("SELECT pg_create_restore_point('before two')")
    two = write(server, 2)
    server.sql("SELECT pg_create_restore_point('after two')")
    write(server, 3)
    source.archived()
    cases: list[tuple[dict[str, t.Any], set[int]]] = [({}, {1, 2, 3}), ({TARGET: "immediate"}, {1})]
    for kind, text in (("time", two.at), ("lsn", two.start), ("xid", two.xid)):
        cases.append(({f"{TARGET}_{kind}": text}, {1, 2}))
        cases.append(({f"{TARGET}_{kind}": text, f"{TARGET}_inclusive": False}, {1}))
    cases += [({f"{TARGET}_name": f"{word} two"}, found) for word, found in (("before", {1}), ("after", {1, 2}))]
    place = source.place()
    for target, expected in cases:
        result = source.restored(place, delta=True, force=True, **target)
        assert result["backup_id"] == "one"
        assert numbers(source.started(place)) == expected, (target, place.log[-2000:])
        place.stop("immediate")

    name = {f"{TARGET}_name": "after two", f"{TARGET}_action": "pause"}
    source.restored(place, delta=True, **name)
    place.start()
    wait_until(lambda: place.value("SELECT pg_get_wal_replay_pause_state()") == "paused", "it pauses")
    assert (place.in_recovery, numbers(place)) == (True, {1, 2})
    place.stop("immediate")
    source.restored(place, delta=True, **{**name, f"{TARGET}_action": "shutdown"})
    place.tool("pg_ctl", "-D", place.data, "-l", place.log_file, "-s", "-W", "start")
    wait_until(lambda: "shutting down" in place.log and not place.running, f"it shuts down: {place.log[-1000:]}")


@BOTH
def test_odd_paths_next_to_the_live_source(sandbox: Sandbox, major: int) -> None:
    """Spaces, quotes, a backslash, a newline, a byte that is not UTF-8; the copy does not affect the source."""
    source = Source(sandbox, major, initdb=["--wal-segsize=1", "--locale=C", "--encoding=LATIN1"])
    server, root = source.server, os.fsencode(source.server.directory)
    odd = {"spaces": b"two  words ", "latin": b"caf\xe9", "quotes": b'a "tablespace"', "newline": b"a\nb\\c"}
    for name, path in odd.items():
        server.tablespace(name, root + b"/" + path)
    source.backup()
    source.archived()
    server.sql("CHECKPOINT")
    expected = data_checksum(server)
    oids = dict(server.sql("SELECT spcname, oid::text FROM pg_tablespace WHERE spcname !~ '^pg_'"))
    place = source.place("the 'copy'", data="da ta\\1")
    places = {name: os.fsencode(place.directory) + b"/it's new/" + path for name, path in odd.items()}
    mapping = {oids[name]: os.fsdecode(path) for name, path in places.items()}
    # Under its original path, too.
    mapping[os.fsdecode(root + b"/caf\xe9")] = mapping.pop(oids["latin"])
    setting = 'it\'s "quoted", with \\ and % and #'
    settings = {"pgfleet.text": setting, "work_mem": "5MB", "autovacuum": False}
    theirs = [pathlib.Path(os.fsdecode(root + b"/" + path)) for path in odd.values()]
    with untouched(source.archive, *theirs):
        source.restored(place, tablespace_mapping=mapping, tablespace_directory=None, settings=settings)
        copy = source.started(place)
        assert data_checksum(copy) == expected
        links = {name: os.readlink(os.fsencode(copy.data) + b"/pg_tblspc/" + oids[name].encode()) for name in odd}
        assert links == places
        shown = ("pgfleet.text", "work_mem", "autovacuum", "archive_mode", "port")
        assert [copy.value(f"SHOW {name}") for name in shown] == [setting, "5MB", "off", "off", str(place.port)]
        for name in odd:
            copy.sql(f"INSERT INTO in_{name} SELECT i, 'copy' FROM generate_series(1, 5000) i")
        copy.switch_wal()
        copy.sql("CHECKPOINT")
        amcheck(copy)
        copy.sql("DROP TABLE in_spaces")
        copy.sql("DROP TABLESPACE spaces")
        copy.stop()
    assert data_checksum(server) == expected
    assert not (server.data / "tablespace_map").exists()


def test_only_damaged_files_are_copied(sandbox: Sandbox, major: int) -> None:
    """Intact files keep inode and time; the result counts only the bytes of the others."""
    source = Source(sandbox, major, tablespaces=["extra"])
    source.backup()
    expected = data_checksum(source.server)
    place = source.place()
    source.restored(place)
    before = listing(place.directory)
    base = place.data / "base" / "1"
    names = ("1247", "1249", "1255", "2601", "2602")
    changed, shorter, longer, gone, link = (base / name for name in names)
    sizes = {name: (base / name).stat().st_size for name in names}
    assert len(set(sizes.values())) > 2
    with changed.open("r+b") as file:
        file.seek(9000)
        file.write(b"\xa5")
    os.truncate(shorter, sizes["1249"] - 8192)
    with longer.open("ab") as file:
        file.write(bytes(8192))
    gone.unlink()
    # The same content under another name is not the server's file.
    other = place.directory / "other"
    link.rename(other)
    os.link(other, link)
    (tablespace,) = (place.directory / "tablespaces").iterdir()
    (surplus,) = (own_directory(path) for path in [next(tablespace.glob("PG_*")) / "777"])
    own_file(surplus / "1", "x")
    own_file(base / "77777", "x" * 8192)
    # The module rewrites these files each time.
    result = source.restored(place, delta=True, force=True)["plan"]
    assert result["copy_bytes"] == sum(sizes.values()), result
    assert (result["copy_files"], result["replace_files"]) == (5, 4)
    assert result["keep_files"] == result["files"] - 5
    assert result["keep_bytes"] == result["bytes"] - result["copy_bytes"]
    now = listing(place.directory)
    files = {path for path in now if not pathlib.Path(path).is_dir() and not path.endswith(names)}
    new = {os.path.relpath(path, place.data) for path in files if now[path] != before.get(path)}
    assert new - {"../other"} == {
        "global/pg_control", "postgresql.auto.conf", "pgfleet_restore.json", "recovery.signal", "tablespace_map",
    }  # fmt: skip
    assert {path for path in before if path not in now} == set()
    assert other.stat().st_nlink == 1
    assert data_checksum(source.started(place)) == expected
    amcheck(place)


def long_backup(source: Source) -> list[str]:
    """Take the backup ``one``, which needs at least three WAL segments, and return their names."""
    steps = Steps(source.modules(archive_directory=None), source.server)
    steps.start()
    for _segment in range(3):
        source.server.switch_wal()
    stop = steps.finish()
    names: list[str] = stop["required_wal"]
    assert len(names) >= 3
    return names


@BOTH
def test_archives(sandbox: Sandbox, major: int) -> None:
    """Missing or foreign WAL is named and refused; compressed files and a command work as well as plain files."""
    source = Source(sandbox, major)
    server, archive = source.server, source.archive
    server.sql("CREATE TABLE numbers AS SELECT 1 AS n")
    names = long_backup(source)
    server.sql("INSERT INTO numbers VALUES (2)")
    source.archived()
    place = source.place()
    hidden = sandbox.root / "hidden"
    command = f"cp {archive}/%f %p"
    for missing in ([names[0]], [names[1]], [names[-1]], names):
        hidden.mkdir()
        for name in missing:
            (archive / name).rename(hidden / name)
        answer = source.run(place, check=True)
        (refusal,) = answer["plan"]["refusals"]
        assert refusal["code"] == "wal_incomplete", answer
        assert missing[0] in refusal["msg"]
        answer = source.run(place)
        assert (answer["code"], answer["missing"]) == ("wal_incomplete", missing), answer
        answer = source.modules(archive_directory=None).run(
            "backup_restore", **source.options(place, restore_command=command)
        )
        assert (answer["code"], answer["missing"]) == ("wal_incomplete", missing), answer
        for name in missing:
            (hidden / name).rename(archive / name)
        hidden.rmdir()
    # Another cluster archives to the same directory.
    content = (archive / names[-1]).read_bytes()
    (archive / names[-1]).write_bytes(content[:24] + bytes(8) + content[32:])
    for more in ({}, {TARGET: "immediate"}):
        answer = source.run(place, **more)
        assert (answer.get("failed"), answer.get("code")) == (True, "bad_segment"), answer
        assert names[-1] in answer["msg"]
    (archive / names[-1]).write_bytes(content)
    assert not place.data.exists()

    for number, name in enumerate(sorted(path.name for path in archive.iterdir() if len(path.name) == 24)):
        if number % 3 == 0:
            with gzip.open(archive / f"{name}.gz", "wb") as file:
                file.write((archive / name).read_bytes())
            (archive / name).unlink()
        elif number % 3 == 1:
            run(["zstd", "-q", "--rm", archive / name])
    for path in archive.iterdir():
        path.chmod(0o644)
    with source.copy() as copy:
        assert numbers(copy) == {1, 2}
    for path in archive.glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    run(["sh", "-c", f"cd {archive} && zstd -q -d --rm *.zst"])
    place = source.place("commanded")
    modules = source.modules(archive_directory=None)
    result = modules.ok("backup_restore", **source.options(place, restore_command=command, recovery_target="immediate"))
    assert result["plan"]["restore_command"] == command
    assert numbers(source.started(place)) == {1}


def test_backups_that_were_changed(sandbox: Sandbox, major: int) -> None:
    """A damaged label, map or record is refused by name, and so is a record of an earlier schema."""
    source = Source(sandbox, major, tablespaces=["extra"])
    backup = source.backup()
    source.archived()
    place = source.place()
    record = json.loads((backup / "backup.json").read_text())
    label, spaces = (backup / "data" / name for name in ("backup_label", "tablespace_map"))

    def damaged(path: pathlib.Path, content: bytes, *codes: str) -> None:
        old = path.read_bytes()
        path.write_bytes(content)
        try:
            answer = source.refused(place, *(codes or ("damaged_backup",)))
            assert path.name in str(answer), answer
        finally:
            path.write_bytes(old)

    text = label.read_bytes()
    for content in (text.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + text, text[:40], b""):
        damaged(label, content)
    text = spaces.read_bytes()
    for content in (text.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + text, text.rstrip(), b""):
        damaged(spaces, content)
    for path in (backup / "data" / "PG_VERSION", backup / "data" / "global" / "pg_control"):
        damaged(path, path.read_bytes()[:-1] + b"x", "damaged_backup", "corrupt_file")
    edited = backup / "backup.json"
    old = edited.read_text()
    nested = [(outer, inner) for outer in record if isinstance(record[outer], dict) for inner in record[outer]]
    # May be null or missing if the value is unknown.
    may_lack = {"published_at", "run_by", "stats_temp_directory", "error", "kept", "drills", "sha256"}
    may_lack |= {"seconds", "special_files", "vanished_files", "reused_files", "checksum_algorithm"}
    for keys in [*((key,) for key in record), *nested]:
        for value in (None, "\0"):
            content = json.loads(old)
            parent = content[keys[0]] if len(keys) == 2 else content
            parent.pop(keys[-1])
            if value:
                parent[keys[-1]] = value
            edited.write_text(json.dumps(content))
            answer = source.run(place, check=True)
            if value or keys[-1] not in may_lack:
                assert not answer.get("restorable"), (keys, value, answer)
                assert ".".join(keys) in str(answer), (keys, value, answer)
            else:
                assert answer.get("restorable"), (keys, answer)
    edited.write_text(json.dumps({**record, "schema": 1}))
    source.refused(place, "old_schema", backup_id=backup.name)
    edited.write_text(old)
    expected = data_checksum(source.server)
    source.restored(place)
    assert data_checksum(source.started(place)) == expected


def test_record_that_leads_out_of_the_backup(sandbox: Sandbox, major: int) -> None:
    """A record edited to name files elsewhere is refused by every step that reads it, and nothing happens."""
    source = Source(sandbox, major, archive=False, tablespaces=["extra"])
    backup = source.backup(wal="include")
    place = source.place()
    victim = sandbox.root / "victim.txt"
    victim.write_text("precious")
    edited = backup / "backup.json"
    old = edited.read_text()
    outside = os.path.relpath(victim, backup / "data" / "pg_wal")
    command = sandbox.root / "ran"
    (oid,) = json.loads(old)["stop"]["tablespaces"]
    for keys, value in (
        (("wal_proof", "archived"), [*json.loads(old)["wal_proof"]["archived"], outside]),
        (("wal_proof", "sha256"), {**json.loads(old)["wal_proof"]["sha256"], outside: "0" * 64}),
        (("required_wal",), [*json.loads(old)["required_wal"], f"x; touch {command};"]),
        (("stop", "tablespaces"), {"../../../..": str(sandbox.root)}),
        (("stop", "tablespaces"), {oid: "relative"}),
        (("copy", "special_files"), [{"path": "../victim.txt", "kind": "symlink", "target": "x"}]),
        (("server", "data_directory"), f"x$(touch {command})/data"),
        (("server", "config_files_outside"), ["victim.txt"]),
    ):
        content = json.loads(old)
        parent = content[keys[0]] if len(keys) == 2 else content
        parent[keys[-1]] = value
        edited.write_text(json.dumps(content))
        restored = source.run(place)
        verified = source.modules().fails("backup_verify")
        for answer in (restored, verified):
            assert ".".join(keys) in answer["msg"], (keys, answer)
        assert verified["code"] == "damaged_backup"
        (listed,) = source.modules().ok("backup_info")["clusters"][0]["backups"]
        assert (listed["state"], ".".join(keys) in listed["problem"]) == ("damaged", True)
    assert (victim.read_text(), command.exists(), os.path.lexists(place.data)) == ("precious", False, False)
    edited.write_text(old)
    source.restored(place)


def test_idle_standby_with_its_wal(sandbox: Sandbox, major: int) -> None:
    """A backup with its own WAL is restored without an archive, to its end and no other target."""
    source = Source(sandbox, major, archive=False)
    source.server.sql("CREATE TABLE numbers AS SELECT 1 AS n")
    standby = sandbox.standby(source.server)
    source.server.stop()
    source.backup(server=standby, wal="include")
    expected = data_checksum(standby)
    place = source.place()
    source.refused(place, "target_beyond_archive", recovery_target_lsn="7/0")
    result = source.restored(place)
    assert result["plan"]["wal_missing"] == []
    assert result["plan"]["restore_command"] == "false"
    copy = source.started(place)
    assert data_checksum(copy) == expected
    copy.sql("INSERT INTO numbers VALUES (2)")
    amcheck(copy)


def test_two_at_once(sandbox: Sandbox, major: int) -> None:
    """Of two different restores into one directory one succeeds, and the other is refused."""
    source = Source(sandbox, major)
    source.server.sql("CREATE TABLE numbers AS SELECT 1 AS n")
    source.backup()
    source.archived()
    place = source.place()
    both = {
        name: Background(functools.partial(source.run, place, settings={"cluster_name": name}))
        for name in ("left", "right")
    }
    answers = {name: one.result() for name, one in both.items()}
    (winner,) = [name for name, answer in answers.items() if not answer.get("failed")]
    (refused,) = [answer for answer in answers.values() if answer.get("failed")]
    assert refused["code"] in ("busy", "not_empty"), refused
    assert source.started(place).value("SHOW cluster_name") == winner
    assert numbers(place) == {1}


def test_configuration_outside(sandbox: Sandbox, major: int) -> None:
    """It is not in the backup: that is reported, and the configuration to be used is checked before the start."""
    source = Source(sandbox, major)
    server = source.server
    outside = own_directory(sandbox.root / "etc")
    server.stop()
    names = ("postgresql.conf", "pg_hba.conf", "pg_ident.conf")
    for name in names:
        shutil.move(server.data / name, outside / name)
    with (outside / "postgresql.conf").open("a") as file:
        file.write(f"data_directory = '{server.data}'\nhba_file = '{outside}/pg_hba.conf'\n"
                   f"ident_file = '{outside}/pg_ident.conf'\n")  # fmt: skip

    def start(one: Server, config: pathlib.Path) -> None:
        options = f"-c config_file={config}/postgresql.conf -c data_directory={one.data}"
        one.tool("pg_ctl", "-D", one.data, "-l", one.log_file, "-s", "-w", "-o", options, "start")

    start(server, outside)
    source.backup()
    source.archived()
    expected = data_checksum(server)
    place = source.place()
    theirs = own_directory(place.directory / "etc")
    for name in names:
        own_file(theirs / name, (outside / name).read_text().replace(str(outside), str(theirs)))
    lower = own_file(theirs / "lower.conf", "include 'postgresql.conf'\nmax_connections = 5\n")
    config = {"config_file": str(lower), "restore_as": "primary", "settings": {"archive_mode": "off"}}
    source.refused(place, "parameters_too_low", **config)
    result = source.restored(place, **{**config, "config_file": str(theirs / "postgresql.conf")})
    assert sorted(result["plan"]["config_files_outside"]) == [str(outside / name) for name in sorted(names)]
    assert any("data_directory" in one for one in result["plan"]["warnings"]), result["plan"]["warnings"]
    start(place, theirs)
    sandbox.servers.append(place)
    wait_until(lambda: not place.in_recovery, "recovered")
    assert data_checksum(place) == expected
    assert data_checksum(server) == expected
