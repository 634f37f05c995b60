# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which directories are refused."""

from __future__ import annotations

import os
import pathlib

import pytest

from tests.unit.helpers.made_up_wal import segment_name
from tests.unit.helpers.restores import VERSION, Case


def test_a_file_in_the_place(case: Case) -> None:
    """A file in place of the data directory has exactly these refusals, each with a hint."""
    case.data.write_bytes(b"x")
    refusals = {one.code: one.hint for one in case.plan().refusals}
    assert list(refusals) == ["not_a_directory", "not_empty"]
    assert all(refusals.values())


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
    (pathlib.Path(case.published.cluster.path) / "cluster.json").write_text('{"schema": 2, "system_identifier": "1"}')
    assert "other_cluster" in case.refusals(delta=True)


def test_waldir(case: Case) -> None:
    waldir = case.folder / "wal"
    case.restore(waldir=str(waldir))
    assert os.readlink(case.data / "pg_wal") == str(waldir)
    assert sorted(os.listdir(waldir)) == ["archive_status", "summaries"]
    (waldir / segment_name(40)).write_bytes(b"x")
    assert case.refusals(waldir=str(waldir), delta=True, force=True) == []
    # An existing link stays.
    case.restore(delta=True)
    assert os.readlink(case.data / "pg_wal") == str(waldir)
    assert sorted(os.listdir(waldir)) == ["archive_status", "summaries"]
    (waldir / segment_name(40)).write_bytes(b"x")
    other = str(case.folder / "other")
    assert case.refusals(waldir=str(waldir), data_directory=other, tablespace_directory=other + "s",
                         tablespace_mapping={}) == ["waldir_not_empty"]  # fmt: skip
    assert case.refusals(waldir=str(case.data / "x"), delta=True) == ["overlap"]
