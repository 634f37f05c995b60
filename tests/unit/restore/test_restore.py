# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restores of a made-up backup: killed at every step and continued, what is kept and removed, what is refused."""

from __future__ import annotations

import os
import pathlib
import shutil
import stat

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import copy as _copy
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import paths as _paths
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import copy as _restore_copy
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import places as _restore_places
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import planner as _restore_plan
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.report import result_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.restore import Restore
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.run import Run
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import running as _live

from tests.unit.helpers_restore import VERSION, Case, chosen, in_this_process, killed, name
from tests.unit.helpers_unit import files_below
from tests.unit.verify.test_verification import Published


@pytest.fixture
def published(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    made = Published(tmp_path)
    made.content["server"]["catalog_version"] = 202506291
    made.save()
    monkeypatch.setattr(_restore_plan, "choose_backup", chosen(made))
    # The tests may run as root, whom PostgreSQL refuses.
    monkeypatch.setattr(_restore_places, "is_root", lambda: False)
    monkeypatch.setattr(_live, "running_servers", list)
    # Hundreds of restores; a crash at a flush is tried all the same.
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    for module in (_copy, _restore_copy):
        monkeypatch.setattr(module, "run_workers", in_this_process)
    return made


@pytest.fixture
def case(tmp_path: pathlib.Path, published: Published) -> Case:
    folder = tmp_path / "target"
    folder.mkdir()
    return Case(folder, published)


def contents(root: pathlib.Path) -> dict[str, bytes]:
    return {path: (root / path).read_bytes() for path in files_below(root) if (root / path).is_file()}


def saved(case: Case) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for folder in case.folder.glob("data.*"):
        top = folder / "pg_wal" if ".replaced-" in folder.name else folder
        found.update({path.name: path.read_bytes() for path in top.glob("0*")})
    return found


@pytest.mark.parametrize("way", ["empty", "delta", "replace"])
def test_killed_at_every_step(tmp_path: pathlib.Path, published: Published, way: str) -> None:
    """In between it is what it was, or cannot be started; the same call goes on, and loses no WAL."""
    root = tmp_path / "crashes"
    root.mkdir()
    wal: dict[str, bytes] = {}
    options = {} if way == "empty" else {way: True}

    def begin(folder: pathlib.Path) -> Case:
        case = Case(folder, published, **options)
        if way != "empty":
            wal.update(case.old_cluster())
        return case

    (tmp_path / "before").mkdir()
    before = contents(begin(tmp_path / "before").folder)
    count = 0
    for case in killed(root, begin):
        count += 1
        if case.startable and not case.done:
            now = contents(case.folder)
            assert {path: now.get(path) for path in before if "space" not in path} == {
                path: content for path, content in before.items() if "space" not in path
            }
        result = case.restore()
        case.is_restored()
        assert result["plan"]["files"] == 6
        if wal:
            assert set(saved(case)) >= set(wal)
            assert {path: saved(case)[path] for path in wal} == wal
            assert all((case.data / "pg_wal" / path).read_bytes() == wal[path] for path in wal)
        if way == "replace":
            # The old cluster is whole.
            (old,) = case.folder.glob("data.replaced-*")
            assert (old / "global/pg_control").exists()
            assert (old / "pg_tblspc/16385" / VERSION / "5/10").read_bytes() == b"surplus"
    assert count > 40


def test_second_call_changes_nothing(case: Case) -> None:
    case.restore()
    place = case.data / "base/5/2600"
    place.write_bytes(b"the server has written")
    assert case.plan().is_done
    assert case.plan(backup_id=None, delta=True).is_done
    assert not case.plan(force=True, delta=True).is_done
    assert case.refusals(force=True) == ["not_empty", "tablespace_not_empty"]
    assert case.refusals(port=4711) == ["not_empty", "tablespace_not_empty"]
    result = case.restore(force=True, delta=True)
    assert (result["plan"]["copy_files"], result["plan"]["keep_files"]) == (1, 5)
    case.is_restored()


def test_copy_of_the_directory_does_not_count(case: Case) -> None:
    case.restore()
    record = (case.data / "pgfleet_restore.json").read_bytes()
    case.data.rename(case.folder / "elsewhere")
    case.data.mkdir(mode=0o700)
    for path in ("PG_VERSION", "global/pg_control", "pgfleet_restore.json"):
        (case.data / path).parent.mkdir(exist_ok=True)
        (case.data / path).write_bytes((case.folder / "elsewhere" / path).read_bytes())
    assert (case.data / "pgfleet_restore.json").read_bytes() == record
    assert not case.plan().is_done
    assert "not_empty" in case.refusals()


def test_delta_keeps_what_is_right(case: Case) -> None:
    case.old_cluster()
    kept = {path: (case.data / path).stat().st_ino for path in ("base/5/2600", "PG_VERSION")}
    plan = case.plan(delta=True)
    assert plan.layout is not None
    equal = _restore_copy.equal_files(plan.contents.files, plan.layout, plan.survey.existing, 1)
    guess = result_of(plan)["plan"]
    assert result_of(plan, equal)["plan"] == {
        **guess, "keep_files": 5, "replace_files": 1, "copy_files": 1, "copy_bytes": 8192,
        "estimated_seconds": 585.1, "keep_bytes": guess["bytes"] - 8192,
    }  # fmt: skip
    result = case.restore(delta=True)
    assert {path: (case.data / path).stat().st_ino for path in kept} == kept
    numbers = result["plan"]
    assert (numbers["keep_files"], numbers["copy_files"], numbers["replace_files"]) == (5, 1, 1)
    assert numbers["used_wal"] == [name(33), name(34)]
    assert (case.data / "log/yesterday").read_bytes() == b"why it died"
    assert not (case.data / "base/99").exists()
    assert not (case.data / "standby.signal").exists()


def test_modes(case: Case) -> None:
    case.old_cluster()
    for path in (case.data / "base/5", case.data):
        path.chmod(0o755)
    (case.data / "PG_VERSION").chmod(0o444)
    case.restore(delta=True, allow_group_access=True)
    for path in (case.data, *case.data.rglob("*")):
        if not path.is_symlink() and "log" not in (path.name, path.parent.name):
            wanted = 0o750 if path.is_dir() else 0o640
            assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_hard_link_is_replaced(case: Case) -> None:
    """Another tree's file would change with the server's."""
    case.old_cluster()
    other = case.folder / "other"
    os.link(case.data / "base/5/2600", other)
    case.restore(delta=True)
    assert (case.data / "base/5/2600").stat().st_nlink == 1


def test_links_are_not_followed(case: Case) -> None:
    """Neither for writing nor for removing."""
    case.old_cluster()
    outside = case.folder / "outside"
    (outside / "5").mkdir(parents=True)
    (outside / "5/1259").write_bytes(b"somebody else's")
    (outside / "precious").write_bytes(b"somebody else's")
    for name_of in ("pg_tblspc", "pgfleet_restore"):
        (outside / name_of).mkdir()
    (outside / "pg_tblspc/4711").symlink_to(case.folder / "late")
    (case.folder / "late" / VERSION).mkdir(parents=True)
    (case.folder / "late" / VERSION / "file").write_bytes(b"somebody else's")
    os.rename(case.data / "pg_tblspc", case.folder / "pg_tblspc")
    for name_of in ("pg_tblspc", "pgfleet_restore"):
        (case.data / name_of).symlink_to(outside / name_of)
    shutil.rmtree(case.space)
    os.rename(case.data / "base", case.folder / "base")
    (case.data / "base").symlink_to(outside)
    (case.data / "global/linked").symlink_to(outside)
    (case.data / "global/0000").symlink_to(outside / "precious")
    before = contents(outside)
    case.restore(delta=True)
    assert contents(outside) == before
    assert (case.folder / "late" / VERSION / "file").exists()
    assert os.readlink(outside / "pg_tblspc/4711") == str(case.folder / "late")
    assert not (case.data / "base").is_symlink()


def test_source_has_links_that_the_backup_lacks(case: Case) -> None:
    case.old_cluster()
    outside = case.folder / "postgresql.conf"
    outside.write_text("")
    (case.data / "postgresql.conf").symlink_to(outside)
    case.published.content["copy"]["special_files"] = [{"path": "postgresql.conf", "kind": "symlink", "target": "x"}]
    case.published.save()
    case.restore(delta=True)
    assert (case.data / "postgresql.conf").is_symlink()


def test_nested_mounts_are_left_alone(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.old_cluster()
    mount = case.data / "mnt"
    mount.mkdir()
    (mount / "file").write_bytes(b"on another disk")
    monkeypatch.setattr(
        _paths, "mounts_below", lambda path: {os.fsencode(mount)} if path == os.fsencode(case.data) else set()
    )
    assert case.refusals(replace=True) == ["cannot_move_aside"]
    case.restore(delta=True)
    assert (mount / "file").read_bytes() == b"on another disk"
    monkeypatch.setattr(
        _paths, "mounts_below", lambda path: {path + b"/base"} if path == os.fsencode(case.data) else set()
    )
    assert case.refusals(delta=True, force=True) == ["nested_mount"]


def test_waldir(case: Case) -> None:
    waldir = case.folder / "wal"
    case.restore(waldir=str(waldir))
    assert os.readlink(case.data / "pg_wal") == str(waldir)
    assert sorted(os.listdir(waldir)) == ["archive_status", "summaries"]
    (waldir / name(40)).write_bytes(b"x")
    assert case.refusals(waldir=str(waldir), delta=True, force=True) == []
    # A link that is there stays.
    case.restore(delta=True)
    assert os.readlink(case.data / "pg_wal") == str(waldir)
    assert sorted(os.listdir(waldir)) == ["archive_status", "summaries"]
    (waldir / name(40)).write_bytes(b"x")
    other = str(case.folder / "other")
    assert case.refusals(waldir=str(waldir), data_directory=other, tablespace_directory=other + "s",
                         tablespace_mapping={}) == ["waldir_not_empty"]  # fmt: skip
    assert case.refusals(waldir=str(case.data / "x"), delta=True) == ["overlap"]


def test_corrupt_file(case: Case) -> None:
    place = case.published.path / "data/base/5/2600"
    place.write_bytes(b"y" * 10000)
    with pytest.raises(BackupError) as caught:
        case.restore()
    assert (caught.value.code, caught.value.details["file"]) == ("corrupt_file", "base/5/2600")
    assert "base/5/2600" in caught.value.msg
    assert not case.startable
    assert not (case.data / "base/5/2600").exists()
    place.write_bytes(b"z" * 9)
    assert case.refusals() == ["damaged_backup"]
    place.write_bytes(b"x" * 10000)
    result = case.restore()
    case.is_restored()
    assert result["plan"]["keep_files"] + result["plan"]["copy_files"] == 6


def test_corrupt_small_file(case: Case) -> None:
    """What is not copied but read is verified before anything is touched."""
    place = case.published.path / "data/global/pg_control"
    place.write_bytes(place.read_bytes()[:-1] + b"\xff")
    plan = case.plan()
    assert [(one.code, one.details["file"]) for one in plan.refusals] == [("corrupt_file", "global/pg_control")]
    assert not case.data.exists()


def test_a_file_in_the_place(case: Case) -> None:
    """What is no directory is told as such, and only so."""
    case.data.write_bytes(b"x")
    refusals = {one.code: one.hint for one in case.plan().refusals}
    assert list(refusals) == ["not_a_directory", "not_empty"]
    assert all(refusals.values())


@pytest.mark.parametrize("same_boot", [True, False])
def test_journal(case: Case, monkeypatch: pytest.MonkeyPatch, same_boot: bool) -> None:
    """What is copied is not read again, unless a crash of the machine may have lost what was not flushed."""

    def dies(_self: Restore) -> None:
        raise BackupError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Restore, "_write_wal", dies)
        with pytest.raises(BackupError):
            case.restore()
    if not same_boot:
        (case.data / "base/5/2600").write_bytes(b"?" * 10000)
        monkeypatch.setattr(_restore_copy, "_header", lambda: b"another boot\n")
    assert case.restore()["reused_files"] == (6 if same_boot else 0)
    case.is_restored()


def test_refusals(case: Case, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert case.refusals() == []
    assert case.refusals(tablespace_mapping={"4711": "/x"}) == ["bad_mapping"]
    assert case.refusals(tablespace_mapping={"16385": "x"}) == ["bad_mapping"]
    assert case.refusals(data_directory=case.params["repository"] + "/x") == ["overlap"]
    assert case.refusals(tablespace_mapping={"16385": str(case.data / "x")}) == ["overlap"]
    assert case.refusals(tablespace_mapping={"16385": str(case.folder)}) == ["overlap"]
    assert case.refusals(restore_as="standby") == ["no_upstream"]
    assert case.refusals(primary_conninfo="host=x") == ["no_standby"]
    assert case.refusals(restore_as="standby", primary_conninfo="host=x", recovery_target="immediate") == ["bad_target"]
    assert case.refusals(settings={"recovery_target_time": "x"}) == ["bad_setting"]
    assert case.refusals(settings={"a b": "x"}) == ["bad_setting"]
    case.data.mkdir()
    (case.data / "file").write_text("x")
    assert case.refusals() == ["not_empty"]
    assert case.refusals(delta=True) == ["not_a_data_directory"]
    assert case.refusals(replace=True) == []
    case.space.mkdir()
    (case.space / VERSION).mkdir()
    (case.space / VERSION / "x").write_text("x")
    assert case.refusals(replace=True) == ["tablespace_not_empty"]
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    assert set(case.refusals(replace=True)) >= {"wrong_owner", "tablespace_not_empty"}


def test_other_cluster(case: Case) -> None:
    case.old_cluster()
    case.published.cluster.prepare  # noqa: B018
    (pathlib.Path(case.published.cluster.path) / "cluster.json").write_text('{"schema": 1, "system_identifier": "1"}')
    assert "other_cluster" in case.refusals(delta=True)


def test_tablespaces_of_a_lost_data_directory(case: Case) -> None:
    """With delta or replace they are taken, unless a cluster on this host has them."""
    case.old_cluster()
    case.data.rename(case.folder / "source")
    assert case.refusals() == ["tablespace_not_empty"]
    assert case.refusals(delta=True) == []
    case.published.content["server"]["data_directory"] = str(case.folder / "source")
    case.published.save()
    assert case.refusals(delta=True) == ["tablespace_in_use"]


def test_live_tablespace(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.space.mkdir()
    place = os.fsencode(case.space)
    server = _live.Running(1, b"/elsewhere", (1, 2), {b"/in/its/namespace": _paths.identity(place)})
    monkeypatch.setattr(_live, "running_servers", lambda: [server])
    assert case.refusals() == ["tablespace_in_use"]
    assert case.refusals(tablespace_mapping={"16385": str(case.space / "x")}) == []
    case.data.mkdir()
    server = _live.Running(1, b"/elsewhere", _paths.identity(os.fsencode(case.data)), {})
    assert case.refusals() == ["server_running"]


def test_tablespace_that_the_backup_does_not_have_yet(case: Case) -> None:
    """Replay may create it again, in an empty directory; what lies there is moved, not deleted."""
    case.old_cluster()
    late = case.folder / "late"
    (late / VERSION).mkdir(parents=True)
    (late / VERSION / "file").write_bytes(b"x")
    (case.data / "pg_tblspc/4711").symlink_to(late)
    case.restore(delta=True)
    assert not (late / VERSION).exists()
    (moved,) = late.iterdir()
    assert (moved / VERSION / "file").read_bytes() == b"x"
    assert os.listdir(case.data / "pg_tblspc") == ["16390", "16385"] or len(os.listdir(case.data / "pg_tblspc")) == 2


def test_saved_wal_goes_where_it_is_wanted(case: Case) -> None:
    wal = case.old_cluster()
    wanted = case.folder / "saved"
    result = case.restore(delta=True, save_wal_to=str(wanted), restore_as="copy")
    assert {path.name: path.read_bytes() for path in wanted.iterdir()} == wal
    assert (result["plan"]["saved_wal"], result["plan"]["used_wal"]) == (str(wanted), [])
    assert not list((case.data / "pg_wal").glob("0*"))


def test_configuration(case: Case) -> None:
    case.restore(settings={"Work_Mem": "1MB", "log_statement": None}, port=4711, restore_as="copy",
                 recovery_target="immediate", restore_command="fetch %f '%p'")  # fmt: skip
    lines = (case.data / "postgresql.auto.conf").read_text().splitlines()
    for line in ("recovery_target = 'immediate'", "archive_mode = 'off'", "port = '4711'", "Work_Mem = '1MB'",
                 "log_statement = ''", "restore_command = 'fetch %f ''%p'''", "recovery_target_time = ''"):  # fmt: skip
        assert line in lines
    assert not (case.data / "standby.signal").exists()
    conninfo = "host=db1 user=x"
    case.restore(restore_as="standby", primary_conninfo=conninfo, primary_slot_name="slot", delta=True)
    lines = (case.data / "postgresql.auto.conf").read_text().splitlines()
    assert {f"primary_conninfo = '{conninfo}'", "primary_slot_name = 'slot'", "recovery_target = ''"} <= set(lines)
    assert (case.data / "standby.signal").exists()
    assert not (case.data / "recovery.signal").exists()


def test_detached(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the module calls it: predicted, done, done already, forced only by another task."""
    predicted = Run(case.params).predict()
    assert (predicted["changed"], predicted["restorable"]) == (True, True)
    assert not case.data.exists()
    result = Run({**case.params, "run_id": "one"}).step()
    assert (result["changed"], result["finished"]) == (True, True)
    case.is_restored()
    again = Run(case.params).step()
    assert (again["changed"], again["finished"], again["plan"]) == (False, True, result["plan"])
    assert Run(case.params).predict()["changed"] is False
    forced = {**case.params, "force": True, "delta": True}
    assert Run({**forced, "run_id": "one"}).step()["changed"] is False
    assert Run({**forced, "run_id": "two"}).step()["plan"]["keep_files"] == 6
    assert Run(forced).step()["changed"] is True
    with pytest.raises(BackupError) as caught:
        Run({**case.params, "port": 1}).step()
    assert (caught.value.code, caught.value.details["plan"]["refusals"][0]["code"]) == ("not_empty", "not_empty")
    refused = Run({**case.params, "port": 1}).predict()
    assert (refused["changed"], refused["restorable"]) == (False, False)
    with pytest.raises(BackupError) as caught:
        Run({**case.params, "data_directory": "x"})
    assert caught.value.code == "bad_path"
    monkeypatch.undo()
