# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Verification of published backups: every kind of damage is found and named, and nothing is touched."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify import detached as _verify_detached

from tests.harness import binaries
from tests.harness.modules import Modules, Result
from tests.harness.playbook import host_vars, run_playbook
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, is_alive, wait_until
from tests.harness.user import me, run
from tests.integration.helpers.files import listing, read_json
from tests.integration.helpers.leftovers import left_behind
from tests.integration.helpers.steps import Background, Steps

BOTH = pytest.mark.majors(15, 18)
ALL = pytest.mark.majors(14, 15, 16, 17, 18)

Damage = t.Callable[["Published"], object]


class Published:
    """A published backup that tests can damage temporarily."""

    def __init__(self, modules: Modules, primary: Server, steps: Steps) -> None:
        self.modules = modules
        self.primary = primary
        self.path = steps.published
        self.data = self.path / "data"
        self.id = steps.id
        assert primary.archive
        self.archive = primary.archive

    @property
    def content(self) -> dict[str, t.Any]:
        """backup.json."""
        content: dict[str, t.Any] = json.loads((self.path / "backup.json").read_text())
        return content

    @contextlib.contextmanager
    def damaged(self, damage: Damage) -> t.Iterator[None]:
        """Damage the backup and restore it at the end."""
        kept = self.path.parents[1] / "kept"
        # Hard links are enough, and fast, if the damage creates a new file.
        run(["cp", "-al", self.path, kept], user=me())
        try:
            damage(self)
            yield
        finally:
            shutil.rmtree(self.path)
            kept.rename(self.path)

    def verify(self, *levels: str, **arguments: t.Any) -> Result:
        """Run the module and return its result, whatever it finds."""
        arguments.setdefault("archive_directory", str(self.archive))
        given = {name: value for name, value in arguments.items() if value is not None}
        return self.modules.run("backup_verify", levels=list(levels or ("quick",)), **given)

    def bad(self, *levels: str, **arguments: t.Any) -> set[tuple[str, str]]:
        """Return path and problem of each bad file; none if the module finds the backup good."""
        result = self.verify(*levels, **arguments)
        assert bool(result.get("failed")) == bool(result.get("bad_files")), result
        if result.get("failed"):
            assert result["code"] == "damaged_backup", result
        return {(one["path"], one["problem"]) for one in result["bad_files"]}

    def accepted(self, *options: str) -> bool:
        """Whether pg_verifybackup accepts the backup, by default without its WAL."""
        tool = binaries.tool(self.primary.major, "pg_verifybackup")
        done = run(
            [tool, *(options or ("-n",)), self.data],
            env=binaries.environment(self.primary.major), user=me(), check=False,
        )  # fmt: skip
        return done.returncode == 0


@pytest.fixture
def published(modules: Modules, primary: Server) -> Published:
    """A backup of a primary with a tablespace."""
    steps = Steps(modules, primary)
    steps.whole()
    return Published(modules, primary, steps)


def change(name: str, edit: t.Callable[[bytes], bytes]) -> Damage:
    """Damage the content of a file."""

    def damage(backup: Published) -> None:
        replace(backup.data / name, edit((backup.data / name).read_bytes()))

    return damage


def replace(path: pathlib.Path, content: bytes) -> None:
    """Rewrite a file."""
    path.unlink()
    path.write_bytes(content)


def flip(data: bytes, at: int = 5000) -> bytes:
    """Change one bit."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def resealed(edit: t.Callable[[str], str]) -> Damage:
    """Change a manifest and give it the checksum that belongs to it."""

    def damage(data: bytes) -> bytes:
        body = edit(data.decode().rpartition("\n")[0].rpartition("\n")[0] + "\n").encode()
        return body + b'"Manifest-Checksum": "%s"}\n' % hashlib.sha256(body).hexdigest().encode()

    return change("backup_manifest", damage)


def without_checksums(text: str) -> str:
    return re.sub(r', "Checksum-Algorithm": "[^"]*", "Checksum": "[^"]*"', "", text)


def unlisted(text: str) -> str:
    return re.sub(r'\{ "Path": "backup_label"[^}]*\},\n', "", text)


def put(name: str, content: bytes = b"") -> Damage:
    return lambda backup: (backup.data / name).write_bytes(content)


def relink(backup: Published) -> None:
    (link,) = (backup.data / "pg_tblspc").iterdir()
    target = link.resolve()
    link.unlink()
    link.symlink_to(target)


# A kind of damage, our report of it, and whether pg_verifybackup detects it.
QUICK: t.Final[dict[str, tuple[Damage, set[tuple[str, str]], bool]]] = {
    "truncated": (change("base/1/1259", lambda data: data[:8192]), {("base/1/1259", "size")}, True),
    "grown": (change("base/1/1259", lambda data: data + b"\0"), {("base/1/1259", "size")}, True),
    "missing": (lambda b: (b.data / "base/1/1259").unlink(), {("base/1/1259", "missing")}, True),
    "surplus": (put("base/1/99999"), {("base/1/99999", "surplus")}, True),
    "a directory instead": (
        lambda b: ((b.data / "base/1/1259").unlink(), (b.data / "base/1/1259").mkdir()),
        {("base/1/1259", "not_a_file")},
        True,
    ),
    "a fifo instead": (
        lambda b: ((b.data / "base/1/1259").unlink(), os.mkfifo(b.data / "base/1/1259")),
        {("base/1/1259", "not_a_file")},
        True,
    ),
    "empty directory missing": (lambda b: (b.data / "pg_twophase").rmdir(), {("pg_twophase", "missing")}, False),
    "label with CRLF": (
        change("backup_label", lambda data: data.replace(b"\n", b"\r\n")), {("backup_label", "damaged")}, True,
    ),
    "label with BOM": (
        change("backup_label", lambda data: b"\xef\xbb\xbf" + data), {("backup_label", "damaged")}, True,
    ),
    "label truncated": (change("backup_label", lambda data: data[:-1]), {("backup_label", "damaged")}, True),
    "label missing": (lambda b: (b.data / "backup_label").unlink(), {("backup_label", "missing")}, True),
    "label of another backup": (
        change("backup_label", lambda data: re.sub(rb"(START WAL LOCATION: [^ ]*)[^ ] ", rb"\g<1>7 ", data)),
        {("backup_label", "damaged")},
        True,
    ),
    "map with CRLF": (
        change("tablespace_map", lambda data: data.replace(b"\n", b"\r\n")), {("tablespace_map", "damaged")}, True,
    ),
    "map with BOM": (
        change("tablespace_map", lambda data: b"\xef\xbb\xbf" + data), {("tablespace_map", "damaged")}, True,
    ),
    "map truncated": (change("tablespace_map", lambda data: data[:-1]), {("tablespace_map", "damaged")}, True),
    "map of another place": (
        change("tablespace_map", lambda data: data.replace(b"extra", b"other")), {("tablespace_map", "damaged")}, True,
    ),
    "map missing": (lambda b: (b.data / "tablespace_map").unlink(), {("tablespace_map", "missing")}, True),
    "pg_control flipped": (
        change("global/pg_control", lambda data: flip(data, 40)), {("global/pg_control", "damaged")}, True,
    ),
    "PG_VERSION": (change("PG_VERSION", lambda data: b"13\n"), {("PG_VERSION", "damaged")}, True),
    "manifest missing": (lambda b: (b.data / "backup_manifest").unlink(), {("backup_manifest", "missing")}, True),
    "manifest flipped": (change("backup_manifest", flip), {("backup_manifest", "damaged")}, True),
    "manifest without last newline": (
        change("backup_manifest", lambda data: data[:-1]), {("backup_manifest", "damaged")}, True,
    ),
    "manifest in one line": (
        change("backup_manifest", lambda data: data.replace(b"\n", b"")), {("backup_manifest", "damaged")}, True,
    ),
    "manifest with the brace on its own line": (
        change("backup_manifest", lambda data: data[:-2] + b"\n}\n"), {("backup_manifest", "damaged")}, True,
    ),
    "manifest with another key": (
        resealed(lambda text: text.replace('"Files"', '"Key": 1,\n"Files"')), {("backup_manifest", "damaged")}, True,
    ),
    "manifest with ./": (
        resealed(lambda text: text.replace('"base/1/1259"', '"./base/1/1259"')), {("backup_manifest", "damaged")}, True,
    ),
    "manifest without the label": (
        resealed(unlisted), {("backup_manifest", "damaged"), ("backup_label", "surplus")}, True,
    ),
    # Damage that pg_verifybackup accepts.
    "manifest made anew": (
        resealed(lambda text: re.sub(r":\d\d GMT", ":00 GMT", text)), {("backup_manifest", "damaged")}, False,
    ),
    "manifest without WAL": (
        resealed(lambda text: re.sub(r'"WAL-Ranges": \[.*?\]', '"WAL-Ranges": [ ]', text, flags=re.DOTALL)),
        {("backup_manifest", "damaged")},
        False,
    ),
    "manifest without checksums": (resealed(without_checksums), {("backup_manifest", "damaged")}, False),
    "manifest with a later end": (
        resealed(lambda text: re.sub(r'("End-LSN": "[^"]*)."', r'\1F"', text)), {("backup_manifest", "damaged")}, False,
    ),
    "manifest with sizes as text": (
        resealed(lambda text: re.sub(r'"Size": (\d+)', r'"Size": "\1"', text)), {("backup_manifest", "damaged")}, False,
    ),
    "postgresql.auto.conf changed": (
        change("postgresql.auto.conf", lambda data: data + b"#\n"), {("postgresql.auto.conf", "size")}, False,
    ),
    "signal file": (put("recovery.signal"), {("recovery.signal", "surplus")}, False),
    "WAL that does not belong": (
        put("pg_wal/000000010000000000000001"), {("pg_wal/000000010000000000000001", "surplus")}, False,
    ),
    "link into a live tablespace": (relink, {("pg_tblspc/{oid}", "link")}, False),
}  # fmt: skip


@ALL
def test_quick(published: Published) -> None:
    """Each damage alone is named; pg_verifybackup agrees, except for those it accepts by design."""
    (oid,) = (path.name for path in (published.data / "pg_tblspc").iterdir())
    assert published.bad("quick", "full", "wal") == set()
    assert published.accepted()
    for name, (damage, expected, refused) in QUICK.items():
        with published.damaged(damage):
            wanted = {(path.format(oid=oid), problem) for path, problem in expected}
            assert published.bad() == wanted, name
            assert published.accepted() is not refused, name
    assert published.bad() == set()


@BOTH
def test_full(published: Published) -> None:
    """All files with changed content are named in one result, including those of a tablespace."""
    (link,) = (published.data / "pg_tblspc").iterdir()
    in_space = max((path for path in link.resolve().rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    inside = f"pg_tblspc/{link.name}/{in_space.relative_to(link.resolve())}"
    names = ["base/1/1259", "base/1/1249", "base/5/1259", "global/1262", inside]

    def damage(backup: Published) -> None:
        for name in names:
            path = (backup.data / name).resolve()
            replace(path, flip(path.read_bytes()))
        (backup.data / "base/1/2600").unlink()

    with published.damaged(damage):
        assert published.bad() == {("base/1/2600", "missing")}
        expected = {(name, "checksum") for name in names} | {("base/1/2600", "missing")}
        result = published.verify("full", jobs=3)
        assert {(one["path"], one["problem"]) for one in result["bad_files"]} == expected
        assert "Bad files: 6" in result["msg"]
        assert not published.accepted()
    result = published.verify("full")
    content = published.content
    assert (result["files"], result["bytes"]) == (content["copy"]["files"], content["copy"]["bytes"])
    assert result["unchecked_files"] == 0
    assert (result["changed"], result["finished"], result["backup_id"]) == (False, True, published.id)


def test_no_checksums(modules: Modules, primary: Server) -> None:
    """A backup without checksums is not silently called clean."""
    steps = Steps(modules, primary)
    steps.start()
    steps.ok("backup_copy", checksum_algorithm="NONE")
    steps.finish()
    result = Published(modules, primary, steps).verify("full")
    assert not result.get("failed"), result
    assert result["unchecked_files"] == result["files"] > 0


@pytest.fixture
def long_backup(modules: Modules, primary: Server) -> Published:
    """A backup that needs at least three WAL segments."""
    steps = Steps(modules, primary)
    steps.start()
    for _number in range(2):
        primary.sql("CREATE TABLE IF NOT EXISTS t AS SELECT 1 AS i")
        primary.sql("INSERT INTO t SELECT generate_series(1, 1000)")
        primary.sql("SELECT pg_switch_wal()")
    steps.finish()
    return Published(modules, primary, steps)


@contextlib.contextmanager
def archived(archive: pathlib.Path, name: str, content: bytes | None) -> t.Iterator[None]:
    """Replace or remove a file of the archive during the block."""
    path = archive / name
    kept = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    yield
    path.write_bytes(kept)


@BOTH
def test_archive(long_backup: Published, sandbox: Sandbox) -> None:
    """Each missing or damaged WAL file is named, whether plain, compressed or fetched by a command."""
    backup, archive = long_backup, long_backup.archive
    names = backup.content["required_wal"]
    assert len(names) >= 3
    assert backup.verify("wal")["wal_files"] == len(names)
    first, middle, last = names[0], names[1], names[-1]
    for name in (first, middle, last):
        with archived(archive, name, None):
            assert backup.bad("wal") == {(name, "wal_missing")}
    data = (archive / middle).read_bytes()
    damages = {
        "short": data[: len(data) // 2],
        "foreign": data[:24] + bytes(8) + data[32:],
        "another segment": (archive / first).read_bytes(),
        "zeros where the disk was full": data[:8192] + bytes(len(data) - 8192),
        "a page of another time": data[:8200] + bytes(8) + data[8208:],
        "empty": b"",
    }
    for what, content in damages.items():
        with archived(archive, middle, content):
            assert backup.bad("wal") == {(middle, "bad_segment")}, what
    with archived(archive, first, None), archived(archive, last, damages["foreign"][:100]):
        assert backup.bad("full", "wal") == {(first, "wal_missing"), (last, "bad_segment")}

    packed = sandbox.directory("packed")
    for name in names:
        (packed / f"{name}.gz").write_bytes(gzip.compress((archive / name).read_bytes(), 1))
    assert backup.bad("wal", archive_directory=str(packed)) == set()
    (packed / f"{middle}.gz").write_bytes(gzip.compress(data, 1)[:-100])
    assert backup.bad("wal", archive_directory=str(packed)) == {(middle, "bad_segment")}

    def by_command(command: str) -> set[tuple[str, str]]:
        return backup.bad("wal", archive_directory=None, restore_command=command)

    assert by_command(f'cp "{archive}/%f" "%p"') == set()
    assert by_command("false") == {(name, "wal_missing") for name in names}

    result = backup.verify("wal", archive_directory=None)
    assert (result["failed"], result["code"]) == (True, "no_archive")
    own = backup.path.parents[1] / "wal"
    subprocess.run(["cp", "-a", archive, own], check=True)
    assert backup.verify("wal", archive_directory=None)["wal_files"] == len(names)


@BOTH
def test_included_wal(sandbox: Sandbox, repository: pathlib.Path, major: int) -> None:
    """WAL in the backup is part of it: the quick level checks presence and size, the others its content."""
    primary = sandbox.primary(major)
    steps = Steps(Modules(primary, repository=str(repository), cluster="main"), primary)
    steps.start(wal="include")
    steps.ok("backup_copy")
    primary.sql("SELECT pg_switch_wal()")
    steps.ok("backup_stop")
    steps.ok("backup_publish")
    backup = Published(steps.modules, primary, steps)
    names = backup.content["required_wal"]
    place = f"pg_wal/{names[0]}"
    assert backup.bad("full", "wal", archive_directory=None) == set()
    assert backup.accepted("-s")
    # damage, the levels that find it, the problem
    cases: list[tuple[Damage, tuple[str, ...], str]] = [
        (lambda b: (b.data / place).unlink(), ("quick", "full", "wal"), "missing"),
        (change(place, lambda data: data[:-8192]), ("quick", "full", "wal"), "size"),
        (change(place, lambda data: data[:24] + bytes(8) + data[32:]), ("quick", "full", "wal"), "bad_segment"),
        (change(place, lambda data: flip(data, 100)), ("full", "wal"), "checksum"),
    ]
    for damage, levels, problem in cases:
        with backup.damaged(damage):
            for level in ("quick", "full", "wal"):
                expected = {(place, problem)} if level in levels else set()
                assert backup.bad(level, archive_directory=None) == expected, (problem, level)


@BOTH
def test_pg_verifybackup(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL's own verdict is requested, and counts."""
    major = published.primary.major
    monkeypatch.setenv("LD_LIBRARY_PATH", binaries.environment(major)["LD_LIBRARY_PATH"])
    where = os.path.dirname(binaries.tool(major, "pg_verifybackup"))
    asked = {"pg_verifybackup": True, "bin_directory": where}
    result = published.verify("full", **asked)
    assert result["pg_verifybackup"]["ok"], result
    with published.damaged(change("base/1/1259", flip)):
        result = published.verify("full", **asked)
        assert [one["path"] for one in result["bad_files"]] == ["base/1/1259"]
        assert "base/1/1259" in result["pg_verifybackup"]["output"]
        # Neither reads the files.
        result = published.verify("quick", **asked)
        assert result["pg_verifybackup"]["ok"], result


def test_no_tool(published: Published) -> None:
    """A missing pg_verifybackup is not silently ignored."""
    result = published.verify(pg_verifybackup=True, bin_directory="/nowhere")
    assert (result["failed"], result["code"]) == (True, "programs_missing")
    older = os.path.dirname(binaries.tool(14, "pg_verifybackup"))
    assert "is of version 14" in published.verify(pg_verifybackup=True, bin_directory=older)["msg"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system, which needs root")
def test_nothing_is_touched(published: Published, repository: pathlib.Path) -> None:
    """It works in a read-only repository; check mode returns the same."""
    subprocess.run(["mount", "--bind", repository, repository], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", repository], check=True)
        before = listing(repository)
        arguments = {"backup_id": "latest", "levels": ["full", "wal"], "archive_directory": str(published.archive)}
        result = published.modules.ok("backup_verify", **arguments)
        sliced = published.modules.ok("backup_verify", **arguments, wait_timeout=30, run_id="read-only")
        checked = published.modules.ok("backup_verify", **arguments, check=True)
        assert listing(repository) == before
    finally:
        subprocess.run(["umount", "-l", repository], check=True)
    for answer in (result, sliced, checked):
        answer.pop("seconds")
    assert result == sliced == checked
    assert not result["changed"]


class Held:
    """Verifications that wait for their WAL until they are released."""

    def __init__(self, backup: Published, top: pathlib.Path) -> None:
        self.backup = backup
        self.top = top
        self.go = top / "go"
        self.arguments = {
            "levels": ["full", "wal"],
            "restore_command": f'while test ! -e "{self.go}"; do sleep 0.05; done; cp "{backup.archive}/%f" "%p"',
        }

    def slice(self, run_id: str, seconds: int = 1) -> Result:
        """Ask once."""
        return self.backup.modules.run("backup_verify", **self.arguments, run_id=run_id, wait_timeout=seconds)

    @property
    def leaders(self) -> list[int]:
        """The detached processes."""
        return [read_json(path / "progress.json")["pid"] for path in self.folders]

    @property
    def folders(self) -> list[pathlib.Path]:
        """The folders of their records."""
        return list(self.top.glob("pgfleet-verify-*/*"))


@pytest.fixture
def held(published: Published, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Held]:
    """Verifications that tests can hold."""
    top = sandbox.directory("tmp")
    monkeypatch.setattr(tempfile, "tempdir", str(top))
    held = Held(published, top)
    yield held
    held.go.touch()
    wait_until(lambda: not left_behind(top), f"left behind: {left_behind(top)}")


def test_slices(held: Held) -> None:
    """Two verifications at once are independent; one survives its killed module; nothing remains at the end."""
    first = held.slice("a")
    assert (first["finished"], first["changed"], first["backup_id"]) == (False, False, held.backup.id), first
    assert first["progress"]["total_bytes"] > first["progress"]["done_bytes"] > 0, first
    assert held.slice("b")["finished"] is False
    assert len(set(held.leaders)) == 2
    leaders = held.leaders
    task = Background(lambda: held.slice("a", 60))
    task.kill()
    assert sorted(held.leaders) == sorted(leaders)
    held.go.touch()
    results = [held.slice(run_id, 60) for run_id in "ab"]
    for result in results:
        assert result["finished"], result
        assert result["wal_files"] == len(held.backup.content["required_wal"])
    assert held.folders == []


def test_verification_is_killed(held: Held) -> None:
    """The next call reports it, and the one after it begins again."""
    held.slice("a")
    (leader,) = held.leaders
    os.kill(leader, signal.SIGKILL)
    # Its workers notice at their next message that the leader has ended.
    held.go.touch()
    result = held.slice("a", 30)
    assert (result["failed"], result["code"]) == (True, "verification_killed")
    assert held.folders == []
    assert held.slice("a", 60)["finished"]


def test_abandoned(held: Held) -> None:
    """A verification ends when no call has waited for it for long; a query counts as a call."""
    held.slice("a")
    (leader,) = held.leaders
    (folder,) = held.folders
    long_ago = time.time() - _verify_detached.ABANDONED_SECONDS / 2
    os.utime(folder / "lock", (long_ago, long_ago))
    assert held.slice("a")["finished"] is False
    assert (folder / "lock").stat().st_mtime > long_ago + 1
    os.utime(folder / "lock", (0, 0))
    wait_until(lambda: not is_alive(leader), "it has ended")
    result = held.slice("a")
    assert (result["failed"], result["code"]) == (True, "abandoned")


def test_leftovers_and_strangers(held: Held) -> None:
    """Records of long-dead verifications are removed; a folder created by another user is not used."""
    held.go.touch()
    old = held.top / f"pgfleet-verify-{os.geteuid()}" / "old"
    old.mkdir(parents=True)
    old.parent.chmod(0o700)
    os.utime(old, (0, 0))
    assert held.slice("a", 60)["finished"]
    assert not old.exists()
    old.parent.chmod(0o777)
    assert held.slice("a", 60)["code"] == "temporary_folder"
    assert held.slice("", 60)["code"] == "run_id"


def test_play(held: Held) -> None:
    """A play shows progress, and damage fails the task with all bad files."""
    backup = held.backup
    common = {"repository": backup.modules.common["repository"], "cluster": "main"}
    slow = {"levels": ["full", "wal"], "restore_command": f"sleep 1; cp {backup.archive}/%f %p", "jobs": 1}
    tasks = [
        {"pgfleet.basebackup.backup_verify": {**common, **slow, "progress_interval": 1}},
        {"pgfleet.basebackup.backup_verify": {**common, "levels": ["full"], "backup_id": "damaged"}},
    ]
    damaged = backup.path.with_name("damaged")
    shutil.copytree(backup.path, damaged, symlinks=True)
    content = {**backup.content, "backup_id": "damaged"}
    content["stop"]["stopped_at"] -= 1
    (damaged / "backup.json").write_text(json.dumps(content))
    for name in ("base/1/1259", "base/1/1249"):
        replace(damaged / "data" / name, flip((damaged / "data" / name).read_bytes()))
    variables = {**host_vars(backup.primary), "ansible_become": False}
    play = run_playbook(
        [{"hosts": "all", "gather_facts": False, "environment": {"TMPDIR": str(held.top)}, "tasks": tasks}],
        {"db1": variables},
        directory=held.top,
    )
    good, bad = (event["result"] for event in play.of("db1"))
    assert (good["finished"], good["backup_id"], good["changed"]) == (True, backup.id, False)
    assert re.search(rf"\[db1\] {backup.id}: \d+ %", play.stdout), play.stdout
    assert [(one["path"], one["problem"]) for one in bad["bad_files"]] == [
        ("base/1/1249", "checksum"),
        ("base/1/1259", "checksum"),
    ]


def test_standby(standby_modules: Modules, modules: Modules, standby: Server, primary: Server) -> None:
    """A standby's backup is good by the rules for standbys."""
    steps = Steps(standby_modules, standby)
    steps.start()
    steps.finish(modules)
    backup = Published(standby_modules, primary, steps)
    assert backup.bad("full", "wal") == set()
    with backup.damaged(change("backup_label", lambda data: data.replace(b"FROM: standby", b"FROM: primary"))):
        assert backup.bad() == {("backup_label", "damaged"), ("global/pg_control", "damaged")}
