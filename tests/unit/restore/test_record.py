# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What restores record in a data directory, and which state that gives it."""

from __future__ import annotations

import json
import os
import pathlib

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.findings import Findings
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.record import (
    CLUSTER,
    EMPTY,
    INTERRUPTED,
    OTHER,
    Record,
    Request,
    read_destination,
    read_record,
    read_request,
    state_of,
    write_record,
    write_request,
)

DIGEST = "d1" * 32
RECORD = Record(DIGEST, "b1", "primary", 1.5, None, {"plan": {}})
REQUEST = Request(DIGEST, "b1", {"16385": "/srv/a"}, os.fsencode("/saved/caf\udce9"), (b"/wal/\xe9",))


@pytest.fixture
def data(tmp_path: pathlib.Path) -> bytes:
    (tmp_path / "data/pgfleet_restore").mkdir(parents=True)
    (tmp_path / "data/global").mkdir()
    return os.fsencode(tmp_path / "data")


def touch(path: bytes) -> None:
    with open(path, "wb"):
        pass


def test_a_record_counts_with_its_control_file(data: bytes) -> None:
    write_record(data, RECORD)
    assert read_record(data) is None
    touch(data + b"/global/pg_control")
    assert read_record(data) == RECORD
    os.rename(data, data + b".old")
    os.makedirs(data + b"/global")
    for name in (b"/pgfleet_restore.json", b"/global/pg_control"):
        os.rename(data + b".old" + name, data + name)
    assert read_record(data) is None


@pytest.mark.parametrize(
    "changes",
    [{"digest": "x"}, {"backup_id": "../x"}, {"restore_as": "root"}, {"restored_at": "now"}, {"restored_at": 1e300},
     {"run_id": 1}, {"result": []}, {"inode": "x"}, {"device": True}],
)  # fmt: skip
def test_a_record_with_a_wrong_value_is_none(data: bytes, changes: dict[str, object]) -> None:
    write_record(data, RECORD)
    touch(data + b"/global/pg_control")
    place = pathlib.Path(os.fsdecode(data), "pgfleet_restore.json")
    place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))
    assert read_record(data) is None


@pytest.mark.parametrize(
    "changes",
    [{"digest": "x"}, {"backup_id": "a/b"}, {"spaces": {"../1": "/srv"}}, {"spaces": {"1": "srv"}},
     {"wal_from": ["wal"]}, {"save_wal_to": "saved"}, {"system_identifier": "$(id)"}],
)  # fmt: skip
def test_a_request_with_a_wrong_value_is_none(data: bytes, changes: dict[str, object]) -> None:
    write_request(data, REQUEST)
    place = pathlib.Path(os.fsdecode(data), "pgfleet_restore", "request.json")
    place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))
    assert read_request(data) == Request()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"device": 1, "inode": 1}'])
def test_a_damaged_record_is_none(data: bytes, content: bytes) -> None:
    touch(data + b"/global/pg_control")
    with open(data + b"/pgfleet_restore.json", "wb") as stream:
        stream.write(content)
    assert read_record(data) is None


def test_a_request_survives(data: bytes) -> None:
    assert read_request(data) == Request()
    write_request(data, REQUEST)
    assert read_request(data) == REQUEST


def test_states(data: bytes) -> None:
    assert state_of(data + b"/absent") == EMPTY
    os.rmdir(data + b"/global")
    assert state_of(data) == EMPTY
    os.mkdir(data + b"/global")
    assert state_of(data) == OTHER
    touch(data + b"/PG_VERSION")
    assert state_of(data) == CLUSTER
    write_request(data, REQUEST)
    assert state_of(data) == INTERRUPTED
    touch(data + b"/global/pg_control")
    assert state_of(data) == CLUSTER


def test_the_request_of_an_interrupted_restore_alone_counts(data: bytes) -> None:
    write_request(data, REQUEST)
    found = read_destination(Findings(), data)
    assert (found.state, found.record, found.request) == (INTERRUPTED, None, REQUEST)
    for name in (b"/PG_VERSION", b"/global/pg_control"):
        touch(data + name)
    found = read_destination(Findings(), data)
    assert (found.state, found.request) == (CLUSTER, Request())
