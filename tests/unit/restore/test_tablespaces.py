# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where tablespaces are restored to."""

from __future__ import annotations

import os
import pathlib

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import paths as _paths
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.tablespaces import map_tablespaces, place_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import running as _running

from tests.unit.helpers.restores import VERSION, Case

ORIGINALS = {16385: b"/srv/a", 16386: b"/srv/b"}


def locations(wanted: dict[str, str], folder: str | None = None) -> list[bytes]:
    return [space.location for space in map_tablespaces(ORIGINALS, wanted, folder)]


@pytest.mark.parametrize(
    "wanted, folder, expected",
    [
        ({}, None, [b"/srv/a", b"/srv/b"]),
        ({"16385": "/x"}, None, [b"/x", b"/srv/b"]),
        ({"/srv/b": "/x/../y/"}, None, [b"/srv/a", b"/y"]),
        ({"/srv/b/": "/y"}, None, [b"/srv/a", b"/y"]),
        ({}, "/all", [b"/all/16385", b"/all/16386"]),
        ({"16386": "/y"}, "/all", [b"/all/16385", b"/y"]),
    ],
)
def test_mapping(wanted: dict[str, str], folder: str | None, expected: list[bytes]) -> None:
    assert locations(wanted, folder) == expected


@pytest.mark.parametrize("wanted", [{"16385": "x"}, {"4711": "/x"}, {"/srv": "/x"}])
def test_mappings_that_are_refused(wanted: dict[str, str]) -> None:
    with pytest.raises(BackupError) as caught:
        locations(wanted)
    assert caught.value.code == "bad_mapping"


def test_a_tablespace_half_set_aside(tmp_path: pathlib.Path) -> None:
    """The link already leads to the new directory, while the files are in the old one."""
    place = os.fsencode(tmp_path)
    assert place_of(place + b"/replaced-1", b"PG_18") == place
    os.makedirs(place + b"/replaced-1/PG_18")
    assert place_of(place + b"/replaced-1", b"PG_18") == place + b"/replaced-1"
    assert place_of(place, b"PG_18") == place


@pytest.fixture
def in_place(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """The source had its tablespace where the restore puts it."""
    monkeypatch.setattr("tests.unit.helpers.published.LOCATION", os.fsencode(tmp_path / "target/space"))


def test_tablespaces_of_a_lost_data_directory(in_place: None, case: Case) -> None:
    """With delta or replace they are reused, unless a cluster on this host has them."""
    case.old_cluster()
    case.data.rename(case.folder / "source")
    assert case.refusals() == ["tablespace_not_empty"]
    assert case.refusals(delta=True) == []
    case.published.content["server"]["data_directory"] = str(case.folder / "source")
    case.published.save()
    assert case.refusals(delta=True) == ["tablespace_in_use"]


def test_a_tablespace_in_another_place(case: Case) -> None:
    """Nothing says whose its files are: they are moved aside, and never overwritten."""
    case.old_cluster()
    case.data.rename(case.folder / "source")
    assert case.refusals(delta=True) == ["tablespace_not_empty"]
    assert case.refusals(replace=True) == []


def test_running_tablespace(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.space.mkdir()
    place = os.fsencode(case.space)
    server = _running.Running(
        1, b"/elsewhere", (1, 2), (_running.Held(b"/in/its/namespace", _paths.identity(place), _paths.spot_of(place)),)
    )
    monkeypatch.setattr(_running, "running_servers", lambda: [server])
    assert case.refusals() == ["tablespace_in_use"]
    assert case.refusals(tablespace_mapping={"16385": str(case.space / "x")}) == ["tablespace_in_use"]
    assert case.refusals(tablespace_mapping={"16385": str(case.folder / "other")}) == []
    case.data.mkdir()
    server = _running.Running(1, b"/elsewhere", _paths.identity(os.fsencode(case.data)))
    assert case.refusals() == ["server_running"]


def test_tablespace_that_the_backup_does_not_have_yet(case: Case) -> None:
    """Replay may create it again and needs an empty directory; existing files are moved, not deleted."""
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
