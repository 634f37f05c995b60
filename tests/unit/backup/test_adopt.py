# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy that the user made: normalised, refused if incomplete, and stopped again after a crash."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import adopt as _user_copy
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import stop as _stop
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import manifest as _manifest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import tree as _datadir
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._session import session as _session

from tests.unit.helpers.backups import files_below, make_cluster, metadata, record_of
from tests.unit.helpers.control_files import CATALOG, control_file

VERSION = f"PG_18_{CATALOG}"
# Long before and long after everything in these tests.
LATER = 4102444800.0
LABEL = b"""\
START WAL LOCATION: 0/2000028 (file 000000010000000000000002)
CHECKPOINT LOCATION: 0/2000060
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIME: 2026-11-22 06:29:46 UTC
LABEL: nightly
START TIMELINE: 1
"""


class Live:
    """A cluster of small files with a tablespace, and the copy that a user's step makes of it."""

    def __init__(self, root: pathlib.Path) -> None:
        self.data, self.space = root / "live", root / "space"
        for name in (
            "base/5",
            "global",
            "pg_wal/archive_status",
            "pg_tblspc",
            "pg_replslot/slot",
            "pg_stat_tmp",
            "log",
        ):
            (self.data / name).mkdir(parents=True)
        (self.space / VERSION / "5").mkdir(parents=True)
        (self.data / "pg_tblspc" / "16385").symlink_to(self.space)
        for name in (
            "PG_VERSION",
            "postmaster.pid",
            "base/5/1259",
            "base/5/t3_16400",
            "base/5/16500_init",
            "base/5/16500",
            "pg_wal/000000010000000000000002",
            "pg_replslot/slot/state",
            "backup_manifest.old",
        ):
            (self.data / name).write_text(name)
        (self.data / "global" / "pg_control").write_bytes(control_file())
        (self.space / VERSION / "5" / "2600").write_text("space")

    def scan(self) -> _datadir.Scan:
        return _datadir.scan(os.fsencode(self.data), 18, CATALOG)

    def copy(self, backup: pathlib.Path) -> None:
        """Copy as an administrator would: everything, links as links."""
        shutil.copytree(self.data, backup / "data", symlinks=True)
        shutil.copytree(self.space, backup / "tablespaces" / "16385", symlinks=True)

    def listing(self) -> dict[str, bytes]:
        """Return all files and links of the server with their contents."""
        found = {}
        for path in sorted([*self.data.rglob("*"), *self.space.rglob("*")]):
            found[str(path)] = (
                os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
            )
        return found


@pytest.fixture
def live(tmp_path: pathlib.Path) -> Live:
    return Live(tmp_path)


@pytest.fixture
def backup(tmp_path: pathlib.Path) -> pathlib.Path:
    place = tmp_path / "backup"
    place.mkdir()
    return place


def take_over(live: Live, backup: pathlib.Path, at_start: frozenset[bytes] | None = None) -> None:
    if at_start is None:
        at_start = frozenset(entry.path for entry in live.scan().files)
    _user_copy.take_over(live.scan(), os.fsencode(backup), 18, CATALOG, at_start)


def refusal(live: Live, backup: pathlib.Path, at_start: frozenset[bytes] | None = None) -> BackupError:
    """Return why the copy is refused; require that the server's files did not change."""
    before = live.listing()
    with pytest.raises(BackupError) as caught:
        take_over(live, backup, at_start)
    assert live.listing() == before, "the live cluster was changed"
    return caught.value


def test_shape(live: Live, backup: pathlib.Path) -> None:
    """Files that PostgreSQL excludes are removed, links point into the backup, modes are those of a backup."""
    before = live.listing()
    live.copy(backup)
    (backup / "data" / "base" / "stray").symlink_to("/etc")
    (backup / "data" / "backup_label.0123456789abcdef.tmp").write_text("left by a stop that was killed")
    (backup / "tablespaces" / "99999").mkdir()
    (backup / "data" / "pg_wal").rename(backup / "wal")
    (backup / "data" / "pg_wal").symlink_to(live.data / "pg_wal")
    take_over(live, backup)
    assert files_below(backup / "data") == {
        "PG_VERSION",
        "base/5/1259",
        "base/5/16500_init",
        "backup_manifest.old",
        "global/pg_control",
        "pg_tblspc/16385",
    }
    assert files_below(backup / "tablespaces") == {f"16385/{VERSION}/5/2600"}
    assert os.listdir(backup / "tablespaces") == ["16385"]
    assert os.readlink(backup / "data" / "pg_tblspc" / "16385") == "../../tablespaces/16385"
    for name in ("pg_wal/archive_status", "pg_wal/summaries", "pg_replslot", "pg_stat_tmp", "log"):
        assert os.listdir(backup / "data" / name) == [], name
    for path in (backup / "data").rglob("*"):
        if not path.is_symlink():
            assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert live.listing() == before


def test_twice_is_once(live: Live, backup: pathlib.Path) -> None:
    live.copy(backup)
    take_over(live, backup)
    first = {name: (backup / name).lstat().st_ino for name in files_below(backup)}
    take_over(live, backup)
    assert files_below(backup) == set(first)


def test_nothing_copied(live: Live, backup: pathlib.Path) -> None:
    assert refusal(live, backup).code == "nothing_copied"
    (backup / "data").mkdir()
    assert refusal(live, backup).code == "nothing_copied"


@pytest.mark.parametrize("name", ["data/base/5/1259", "data/base/5", f"tablespaces/16385/{VERSION}/5/2600"])
def test_missing_file(live: Live, backup: pathlib.Path, name: str) -> None:
    live.copy(backup)
    place = backup / name
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    error = refusal(live, backup)
    assert error.code == "copy_not_whole"
    assert ("2600" if "tablespaces" in name else "base/5/1") in error.msg
    # Replay creates a file again that did not exist before the start.
    take_over(live, backup, frozenset())


@pytest.mark.parametrize("name", ["tablespaces/16385", "tablespaces"])
def test_missing_tablespace(live: Live, backup: pathlib.Path, name: str) -> None:
    live.copy(backup)
    shutil.rmtree(backup / name)
    error = refusal(live, backup, frozenset())
    assert (error.code, "16385" in error.msg) == ("copy_not_whole", True)


def test_link_to_the_live_cluster(live: Live, backup: pathlib.Path) -> None:
    """Pruning would follow the link and delete the server's WAL."""
    (backup / "data").symlink_to(live.data)
    (backup / "tablespaces").mkdir()
    (backup / "tablespaces" / "16385").symlink_to(live.space)
    assert refusal(live, backup).code == "not_a_copy"


def test_link_to_a_snapshot(live: Live, backup: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The published backup would be a link to a snapshot that the administrator may remove."""
    (tmp_path / "snapshot").mkdir()
    live.copy(tmp_path / "snapshot")
    (backup / "data").symlink_to(tmp_path / "snapshot" / "data")
    (backup / "tablespaces").mkdir()
    shutil.copytree(live.space, backup / "tablespaces" / "16385")
    assert refusal(live, backup).code == "not_a_copy"


@pytest.mark.parametrize("name", ["pg_tblspc", "base", "global"])
def test_links_inside_the_copy_to_the_live_cluster(live: Live, backup: pathlib.Path, name: str) -> None:
    live.copy(backup)
    shutil.rmtree(backup / "data" / name)
    (backup / "data" / name).symlink_to(live.data / name)
    (live.data / "global" / "1262").write_text("shared")
    assert refusal(live, backup).code in ("not_a_copy", "copy_not_whole")


def test_link_to_a_live_tablespace(live: Live, backup: pathlib.Path) -> None:
    live.copy(backup)
    shutil.rmtree(backup / "tablespaces" / "16385")
    (backup / "tablespaces" / "16385").symlink_to(live.space)
    assert refusal(live, backup).code == "not_a_copy"


def test_hard_links(live: Live, backup: pathlib.Path) -> None:
    """With hard links, as `cp -al` makes them, the server would keep writing into the backup."""
    shutil.copytree(live.data, backup / "data", symlinks=True, copy_function=os.link)
    shutil.copytree(live.space, backup / "tablespaces" / "16385", symlinks=True)
    assert refusal(live, backup).code == "not_a_copy"


# --- stopping a backup with such a copy ---


class Stopping:
    """A backup whose session is replaced by the test's answers."""

    def __init__(self, live: Live, tmp_path: pathlib.Path) -> None:
        self.live = live
        cluster = make_cluster(tmp_path)
        server = {"data_directory": str(live.data), "catalog_version": CATALOG}
        self.backup = cluster.new_backup(record_of(metadata(server=server)))
        pathlib.Path(self.backup.file("session")).mkdir()
        _user_copy.write_listing(self.backup.file(_user_copy.LISTING), live.scan())
        self.record: dict[str, t.Any] = {
            "state": "running",
            "start_lsn": "0/2000028",
            "start_timeline": 1,
            "from_standby": False,
            "started_at": LATER,
            "tablespaces": [{"oid": 16385, "name": b"extra".hex(), "location": os.fsencode(live.space).hex()}],
        }
        self.save()
        live.copy(pathlib.Path(self.backup.path))
        self.asked: list[str] = []

    def save(self) -> None:
        pathlib.Path(self.backup.file("session", "state.json")).write_text(json.dumps(self.record))

    def stop_session(self) -> None:
        """Record what the session process records at a stop."""
        self.record.update(
            state="stopped",
            stop_lsn="0/2000120",
            stopped_at=LATER,
            label_file=LABEL.hex(),
            map_file=(b"16385 " + os.fsencode(self.live.space) + b"\n").hex(),
            min_recovery_end_timeline=0,
            tablespaces_after=self.record["tablespaces"],
        )
        self.save()

    def run(self) -> dict[str, t.Any]:
        return _stop.Stop(self.backup, "SHA256", 1).run()


@pytest.fixture
def stopping(live: Live, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Stopping:
    case = Stopping(live, tmp_path)

    def ask(self: _session.Session, action: str, renew: bool = True, seconds: float = 0) -> dict[str, t.Any]:
        case.asked.append(action)
        if action == "stop":
            case.stop_session()
        return dict(case.record)

    monkeypatch.setattr(_session.Session, "ask", ask)
    return case


def test_stop(stopping: Stopping) -> None:
    (stopping.live.data / "global" / "pg_control").write_bytes(control_file(filler=b"newest before the stop"))
    answer = stopping.run()
    assert stopping.asked == ["status", "stop"]
    data = pathlib.Path(stopping.backup.file("data"))
    assert (data / "global" / "pg_control").read_bytes() == control_file(filler=b"newest before the stop")
    assert (data / "backup_label").read_bytes() == LABEL
    assert answer["required_wal"] == ["000000010000000000000002"]
    manifest = _manifest.read_manifest(str(data / "backup_manifest"))
    on_disk = {os.fsencode(name) for name in files_below(data) if not name.startswith("pg_tblspc/")}
    listed = {one.path for one in manifest.files}
    assert listed == (on_disk - {b"backup_manifest"}) | {f"pg_tblspc/16385/{VERSION}/5/2600".encode()}
    assert stopping.run()["changed"] is False


@pytest.mark.parametrize("needed, code", [(0x2000120, ""), (0x2000121, "control_too_new")])
def test_control_file_that_asks_for_more(
    stopping: Stopping, monkeypatch: pytest.MonkeyPatch, needed: int, code: str
) -> None:
    """Recovery of a standby's backup must reach its pg_control's minimum, but WAL is proven only up to the stop."""
    monkeypatch.setitem(globals(), "LABEL", LABEL.replace(b"primary", b"standby"))
    (stopping.live.data / "global" / "pg_control").write_bytes(control_file(state=5, min_recovery_point=needed))
    if not code:
        assert stopping.run()["state"] == "stopped"
        return
    with pytest.raises(BackupError) as caught:
        stopping.run()
    assert (caught.value.code, stopping.backup.load().state) == (code, "failed")


def test_killed_after_the_stop(stopping: Stopping) -> None:
    """The control file is not copied again: a newer one may need WAL after the stop, which is never proven."""
    before = control_file(filler=b"before the stop")
    (stopping.live.data / "global" / "pg_control").write_bytes(before)

    def killed(*args: t.Any) -> None:
        raise KeyboardInterrupt

    stop = _stop.Stop(stopping.backup, "SHA256", 1)
    stop._finish = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stop.run()
    (stopping.live.data / "global" / "pg_control").write_bytes(control_file(filler=b"after the stop"))
    stopping.run()
    assert stopping.asked == ["status", "stop", "status"]
    data = pathlib.Path(stopping.backup.file("data"))
    assert (data / "global" / "pg_control").read_bytes() == before
    listed = {one.path: one for one in _manifest.read_manifest(str(data / "backup_manifest")).files}
    assert listed[b"global/pg_control"].size == 8192


def test_already_stopped_by_another_call(stopping: Stopping) -> None:
    """The second of two calls has read the state before the first finished."""
    late = _stop.Stop(stopping.backup, "SHA256", 1)
    stopping.run()
    manifest = pathlib.Path(stopping.backup.file("data", "backup_manifest")).stat().st_ino
    assert late.run()["changed"] is False
    assert pathlib.Path(stopping.backup.file("data", "backup_manifest")).stat().st_ino == manifest


def test_session_that_neither_stopped_nor_failed(stopping: Stopping) -> None:
    stopping.stop_session = lambda: stopping.record.update(state="stopping")  # type: ignore[method-assign]
    with pytest.raises(BackupError) as caught:
        stopping.run()
    assert (caught.value.code, stopping.backup.load().state) == ("session_lost", "started")


@pytest.mark.parametrize(
    "change, code, state",
    [
        ({"label_file": LABEL.replace(b"\n", b"\r\n").hex()}, "bad_label", "started"),
        ({"label_file": b"".hex()}, "bad_label", "started"),
        ({"label_file": LABEL.replace(b"0/2000028", b"0/2000100").replace(b"0/2000060", b"0/2000200").hex()},
         "label_of_another_backup", "failed"),
        ({"label_file": LABEL.replace(b"primary", b"standby").hex()}, "control_inconsistent", "failed"),
        ({"stop_lsn": "0/1000000"}, "bad_wal_range", "started"),
        ({"tablespaces_after": [{"oid": 5, "name": "61", "location": "2f61"}]}, "tablespace_created", "failed"),
    ],
)  # fmt: skip
def test_what_may_not_become_a_backup(stopping: Stopping, change: dict[str, t.Any], code: str, state: str) -> None:
    real = stopping.stop_session

    def stop_session() -> None:
        real()
        stopping.record.update(change)

    stopping.stop_session = stop_session  # type: ignore[method-assign]
    with pytest.raises(BackupError) as caught:
        stopping.run()
    assert (caught.value.code, stopping.backup.load().state) == (code, state)
    assert not os.path.exists(stopping.backup.file("data", "backup_manifest"))
