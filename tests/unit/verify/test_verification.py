# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Verification of a small backup: cases rare on real servers, and damage that must not end the verification."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import shutil
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import checksums as _host_checksums
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify import checksums as _verify_checksums
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify import quick as _verify
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify import verification as _verify_job
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify.verification import Options
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import timelines as _timelines

from tests.unit.helpers.backups import make_cluster, metadata, proof, record_of
from tests.unit.helpers.control_files import control_file
from tests.unit.helpers.published import MB, Published


@pytest.fixture
def published(tmp_path: pathlib.Path) -> Published:
    return Published(tmp_path)


def test_undamaged(published: Published, tmp_path: pathlib.Path) -> None:
    assert published.quick() == set()
    result = published.verify("full")
    assert (result["bad_files"], result["files"]) == ([], len(published.files))
    assert result["bytes"] == sum(map(len, published.files.values()))


def test_each_bad_file_once(published: Published) -> None:
    """A damaged label is not also reported for its size; verification continues after every file."""
    data = published.path / "data"
    (data / "backup_label").write_bytes(b"\xef\xbb\xbf" + published.files["data/backup_label"])
    (data / "PG_VERSION").write_bytes(b"17\n")
    (data / "base/5/1259").write_bytes(b"x" * 8192)
    (data / "base/5/2600").unlink()
    (data / "global/surplus").write_bytes(b"")
    (data / "link").symlink_to("/etc/passwd")
    shutil.rmtree(data / "pg_notify")
    (published.path / "tablespaces/77").mkdir()
    (published.path / "tablespaces/77/file").write_bytes(b"")
    expected = {
        ("PG_VERSION", "damaged"),
        ("backup_label", "damaged"),
        ("base/5/2600", "missing"),
        ("global/surplus", "surplus"),
        ("link", "surplus"),
        ("pg_notify", "missing"),
        ("pg_tblspc/77/file", "surplus"),
    }
    assert published.quick() == expected
    assert published.bad("full") == expected | {("base/5/1259", "checksum")}


@pytest.mark.parametrize(
    "target, problem", [(None, "missing"), ("/srv/live", "link"), ("../../tablespaces/1", "link"), ("", "link")]
)
def test_links_to_tablespaces(published: Published, target: str | None, problem: str) -> None:
    """With a link that points elsewhere the restored server would write to a live tablespace."""
    link = published.path / "data/pg_tblspc/16385"
    link.unlink()
    if target:
        link.symlink_to(target)
    elif target == "":
        link.mkdir()
    assert published.quick() == {("pg_tblspc/16385", problem)}


def test_surplus_link(published: Published) -> None:
    (published.path / "data/pg_tblspc/99").symlink_to("/srv/live")
    assert published.quick() == {("pg_tblspc/99", "surplus")}


@pytest.mark.parametrize(
    "standby, made, good",
    [
        (False, control_file(6), True),
        (False, control_file(5), False),
        (False, control_file(identifier=1), False),
        (False, b"short", False),
        (True, control_file(5, 0x2000120), True),
        (True, control_file(2, 0x2000120), True),
        (True, control_file(5, 0x2000121), False),
        (True, control_file(6), False),
    ],
)
def test_control_file(tmp_path: pathlib.Path, standby: bool, made: bytes, good: bool) -> None:
    """A control file that the server would refuse at the end of recovery is refused, though its checksum is right."""
    published = Published(tmp_path, standby=standby, control=made)
    assert published.quick() == (set() if good else {("global/pg_control", "damaged")})


def test_manifest_of_another_backup(published: Published, tmp_path: pathlib.Path) -> None:
    (tmp_path / "other").mkdir()
    other = Published(tmp_path / "other", ranges=[_timelines.WalRange(1, 0x2000028, 0x2000128)])
    shutil.copy(other.path / "data/backup_manifest", published.path / "data/backup_manifest")
    assert published.quick() == {("backup_manifest", "damaged")}


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "stopped"},
        {"server": {}},
        {"stop": None},
        {"required_wal": []},
        {"wal": "include"},
        {"wal": "include", "wal_proof": {"sha256": {}}},
    ],
    ids=str,
)
def test_metadata(published: Published, changes: dict[str, t.Any]) -> None:
    """Without valid metadata nothing derived from it is reported."""
    published.content.update(changes)
    published.save()
    assert ("backup.json", "damaged") in published.bad("quick", "full", "wal")


def test_metadata_is_not_json(published: Published) -> None:
    (published.path / "backup.json").write_text("{")
    assert published.bad("quick", "full", "wal") == {("backup.json", "damaged")}


def test_metadata_of_a_newer_version(published: Published) -> None:
    published.content["schema"] = 99
    published.save()
    with pytest.raises(BackupError) as caught:
        published.verify("quick")
    assert caught.value.code == "newer_schema"


def test_what_cannot_be_read(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read error does not end the verification either, and differs from a missing file."""
    real = os.scandir

    def scandir(path: t.Any) -> t.Any:
        if os.fsencode(path).endswith(b"base/5"):
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    # The directory contains files that cannot be listed.
    assert published.quick() == {(path, "unreadable") for path in ("base/5", "base/5/1259", "base/5/2600")}


def test_file_that_cannot_be_read(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.readv

    def readv(descriptor: int, buffers: t.Any) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("base/5/2600"):
            raise OSError(5, "Input/output error")
        return real(descriptor, buffers)

    monkeypatch.setattr(os, "readv", readv)
    (published.path / "data/base/5/1259").write_bytes(b"x" * 8192)
    assert published.bad("full") == {("base/5/2600", "unreadable"), ("base/5/1259", "checksum")}


TWO_TIMELINES: t.Final = [_timelines.WalRange(2, 0x2100100, 0x2200200), _timelines.WalRange(1, 0x2000028, 0x2100100)]
SEGMENTS: t.Final = ("000000010000000000000020", "000000020000000000000021", "000000020000000000000022")


def test_missing_history(tmp_path: pathlib.Path) -> None:
    """The history is as necessary as the segments: without it the server does not find the checkpoint."""
    published = Published(tmp_path, ranges=TWO_TIMELINES)
    archive = tmp_path / "archive"
    archive.mkdir()
    missing = {(name, "wal_missing") for name in SEGMENTS}
    assert published.bad("wal", archive_directory=str(archive)) == missing | {("00000002.history", "history_missing")}
    (archive / "00000002.history").write_text("nonsense\n")
    assert published.bad("wal", archive_directory=str(archive)) == missing | {("00000002.history", "bad_history")}
    (archive / "00000002.history").write_text("1\t0/2100100\tno recovery target specified\n")
    assert published.bad("wal", archive_directory=str(archive)) == missing


def test_included_history(tmp_path: pathlib.Path) -> None:
    history = b"1\t0/2100100\tno recovery target specified\n"
    wal_files = {name: bytes(MB) for name in SEGMENTS[1:]} | {"00000002.history": history}
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in wal_files.items()}
    published = Published(
        tmp_path,
        ranges=TWO_TIMELINES,
        wal_files=wal_files,
        wal="include",
        wal_proof={**proof(), "sha256": {**sums, SEGMENTS[0]: "0" * 64}},
    )
    place = published.path / "data/pg_wal"
    segments = {(f"pg_wal/{name}", "bad_segment") for name in SEGMENTS[1:]} | {(f"pg_wal/{SEGMENTS[0]}", "missing")}
    assert published.quick() == segments
    (place / "00000002.history").write_bytes(history + b"#")
    assert published.bad("full") == segments | {("pg_wal/00000002.history", "checksum")}
    (place / "00000002.history").unlink()
    (place / "archive_status").mkdir()
    (place / "archive_status/00000002.history.done").touch()
    (place / "archive_status/000000020000000000000023.done").touch()
    assert published.quick() == segments | {
        ("pg_wal/00000002.history", "missing"),
        ("pg_wal/archive_status/000000020000000000000023.done", "surplus"),
    }


def test_archive_that_is_not_there(published: Published) -> None:
    """A wrong archive argument is not a damaged backup."""
    for wish, code in (({}, "no_archive"), ({"archive_directory": "/nowhere"}, "archive_missing")):
        with pytest.raises(BackupError) as caught:
            published.verify("wal", **wish)
        assert caught.value.code == code


def test_archive_that_cannot_be_unpacked(
    published: Published, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "000000010000000000000020.zst").touch()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BackupError) as caught:
        published.verify("wal", archive_directory=str(tmp_path))
    assert caught.value.code == "tool_missing"


def test_disagreement(published: Published, tmp_path: pathlib.Path) -> None:
    """A backup that pg_verifybackup refuses is not called good."""
    tool = tmp_path / "pg_verifybackup"
    tool.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "pg_verifybackup (PostgreSQL) 18.6" && exit\necho "no: $*"\nexit 1\n'
    )
    tool.chmod(0o755)
    asked = {"pg_verifybackup": True, "bin_directory": str(tmp_path)}
    result = published.verify("quick", **asked)
    said = f"no: --skip-checksums --no-parse-wal {published.path}/data"
    assert result["pg_verifybackup"] == {"ok": False, "output": said}
    (bad,) = result["bad_files"]
    assert (bad["path"], bad["problem"], bad["msg"].endswith(said)) == ("", "pg_verifybackup", True)
    (published.path / "data/base/5/2600").unlink()
    assert {one["problem"] for one in published.verify("full", **asked)["bad_files"]} == {"missing"}


def test_which_one(tmp_path: pathlib.Path) -> None:
    """The latest backup is the one that ended last, whatever its name, even if it is damaged."""
    with pytest.raises(BackupError) as caught:
        _verify_job.chosen(make_cluster(tmp_path), "latest")
    assert caught.value.code == "no_backup"
    newer, older = Published(tmp_path, "a"), Published(tmp_path, "b")
    older.content["stop"]["stopped_at"] -= 1000
    older.save()
    cluster = newer.cluster
    assert _verify_job.chosen(cluster, "latest").id == "a"
    assert _verify_job.chosen(cluster, "b").id == "b"
    cluster.new_backup(record_of(metadata(backup_id="c")))
    for name, code in (("c", "not_published"), ("d", "unknown_backup"), ("../b", "bad_name")):
        with pytest.raises(BackupError) as caught:
            _verify_job.chosen(cluster, name)
        assert caught.value.code == code
    (newer.path / "backup.json").write_text("{")
    os.utime(newer.path)
    assert _verify_job.chosen(cluster, "latest").id == "a"


def test_removed_during_the_verification(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backup removed during its verification is not called damaged."""

    def check() -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(published.path)

    wish = Options(**dict.fromkeys(Options._fields, None) | {"levels": ["full"], "jobs": 1})
    with pytest.raises(BackupError) as caught:
        _verify_job.verify(published.backup, wish, check)
    assert caught.value.code == "unknown_backup"


def test_library_is_missing(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checksums that cannot be computed do not count as verified."""
    quick = _verify.QuickCheck(published.backup, published.backup.load())
    files = [one._replace(entry=one.entry._replace(algorithm="CRC32C", checksum="0" * 8)) for one in quick.files]
    monkeypatch.setattr(_host_checksums, "crc32c", None)
    with pytest.raises(BackupError) as caught:
        list(_verify_checksums.wrong_checksums(files, 2, lambda: None, lambda done_bytes, done_files: None))
    assert caught.value.code == "missing_library"


def test_message(published: Published) -> None:
    """The message names the first few files; the list has them all."""
    for number in range(8):
        (published.path / f"data/base/5/{number}").touch()
    error = _verify_job.damage(published.verify("quick"))
    assert error is not None
    assert error.code == "damaged_backup"
    assert "b1 is damaged. Bad files: 8: base/5/0: " in error.msg
    assert error.msg.endswith("and 3 more")
    assert len(error.details["bad_files"]) == 8
