# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tablespaces: odd paths byte for byte, in place, inside the data directory, and made or dropped during the backup."""

from __future__ import annotations

import os
import pathlib

import pytest

from tests.harness.checks import data_checksum, restore_and_check
from tests.harness.modules import Modules
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server
from tests.integration.helpers.files import files_and_directories, manifest
from tests.integration.helpers.leftovers import all_is_well
from tests.integration.helpers.steps import Predictor, Steps

LATIN1 = ("--locale=C", "--encoding=LATIN1")


def in_place(server: Server, name: str) -> None:
    """Create an in-place tablespace in ``pg_tblspc``, with a table like that of ``Server.tablespace``."""
    connection = server.connect()
    try:
        with connection.cursor() as cursor:
            cursor.execute("SET allow_in_place_tablespaces = on")
            cursor.execute(f"CREATE TABLESPACE {name} LOCATION ''")
            cursor.execute(f"CREATE TABLE in_{name} TABLESPACE {name} AS SELECT generate_series(1, 1000) i")
    finally:
        connection.close()


def oids(server: Server) -> dict[str, int]:
    """Return the OIDs of the tablespaces by name, except those that every cluster has."""
    return dict(server.sql("SELECT spcname, oid FROM pg_tablespace WHERE spcname !~ '^pg_'"))


@pytest.mark.majors(15, 18)
def test_odd_tablespaces(sandbox: Sandbox, repository: pathlib.Path, major: int) -> None:
    """Spaces, a byte that is not UTF-8, a backslash, in place and in PGDATA: exact map, all files, restored."""
    primary = sandbox.primary(major, initdb=LATIN1)
    primary.sql("CREATE DATABASE unicode ENCODING 'UTF8' TEMPLATE template0")
    root = os.fsencode(primary.directory)
    paths = {"spaces": root + b"/two  words ", "latin": root + b"/caf\xe9", "backslash": root + b"/a\\b"}
    paths["inside"] = os.fsencode(primary.data) + b"/inside"
    for name, path in paths.items():
        primary.tablespace(name, path)
    in_place(primary, "place")
    modules = Modules(primary, repository=str(repository), cluster="main")
    steps = Steps(modules, primary)
    for name in paths:
        primary.sql(f"CREATE INDEX ON in_{name} (i)")
    expected = data_checksum(primary)
    steps.whole()

    data, numbers = steps.published / "data", oids(primary)
    lines = {b"%d %s\n" % (numbers[name], path.replace(b"\\", b"\\\\")) for name, path in paths.items()}
    assert set((data / "tablespace_map").read_bytes().splitlines(keepends=True)) == lines
    links = {path.name: os.readlink(path) for path in (data / "pg_tblspc").iterdir() if path.is_symlink()}
    assert links == {str(numbers[name]): f"../../tablespaces/{numbers[name]}" for name in paths}
    assert (data / "pg_tblspc" / str(numbers["place"])).is_dir()
    assert not (data / "pg_tblspc" / str(numbers["place"])).is_symlink()
    # The tablespace in PGDATA is in the backup once, as a tablespace; its directory in PGDATA is empty.
    assert not list((data / "inside").iterdir())
    listed = {
        entry["Path"].split("/")[1] for entry in manifest(data)["Files"] if entry["Path"].startswith("pg_tblspc/")
    }
    assert listed == {str(number) for number in numbers.values()}
    theirs = sandbox.directory("theirs")
    mappings = [f"-T{os.fsdecode(path)}={theirs}/{name}" for name, path in paths.items()]
    primary.tool("pg_basebackup", "-D", theirs / "data", "-c", "fast", "-X", "none", "--no-sync", *mappings)
    ours, reference = (files_and_directories(backup / "data") for backup in (steps.published, theirs))
    assert set(ours[0]) - {"tablespace_map"} == set(reference[0])
    assert ours[1] == reference[1]
    # With encoding conversion the path would be wrong in one database and fail in the other.
    other = Steps(Modules(**{**modules.common, "login_db": "unicode"}), primary, "other")
    other.whole()
    assert (other.published / "data" / "tablespace_map").read_bytes() == (data / "tablespace_map").read_bytes()
    all_is_well(sandbox, repository, primary)

    def is_the_same(server: Server) -> None:
        assert data_checksum(server) == expected
        assert oids(server) == numbers

    # Without this setting recovery refuses directories in pg_tblspc, whatever tool made the backup.
    options = {"allow_in_place_tablespaces": True}
    restore_and_check(sandbox, steps.published, primary.archive, major, is_the_same, **options)
    assert data_checksum(primary) == expected


@pytest.mark.majors(15, 18)
@pytest.mark.parametrize("copied_before", [True, False], ids=["after_copy", "before_copy"])
def test_tablespace_created_during_the_backup(
    sandbox: Sandbox, primary: Server, repository: pathlib.Path, modules: Modules, copied_before: bool
) -> None:
    """It is not in the map, so a restore would use the live directory: the backup is void, nothing is published."""
    steps = Steps(modules, primary)
    steps.start()
    if copied_before:
        steps.ok("backup_copy")
    location = primary.tablespace("new")
    if not copied_before:
        steps.ok("backup_copy")
    failed = steps.fails("backup_stop")
    assert failed["code"] == "tablespace_created"
    assert f"new at {location}" in failed["msg"]
    assert "Traceback" not in failed["msg"]
    again = steps.fails("backup_stop")
    assert (again["code"], "new at" in again["msg"]) == ("void", True)
    proof = {"archived": ["00000001000000000000000" + digit for digit in "123456789"],
             "system_identifier": primary.system_identifier}  # fmt: skip
    assert steps.fails("backup_publish", proof=proof)["code"] == "not_stopped"
    (cluster,) = modules.ok("backup_info")["clusters"]
    assert (cluster["backups"], [one["state"] for one in cluster["unfinished"]]) == ([], ["failed"])
    all_is_well(sandbox, repository, primary, unfinished=["one"])
    assert modules.ok("backup_abort", backup_id="one")["state"] == "absent"
    # The tablespace that made this backup void is part of the next one.
    other = Steps(modules, primary, "two")
    other.whole()
    assert len(list((other.published / "tablespaces").iterdir())) == 2
    all_is_well(sandbox, repository, primary)


@pytest.mark.majors(15, 18)
def test_tablespaces_dropped_during_the_backup(
    sandbox: Sandbox, primary: Server, repository: pathlib.Path, modules: Modules, major: int
) -> None:
    """One is dropped before the copy, one after: the backup succeeds, and a restore has neither."""
    for name in ("early", "late"):
        primary.tablespace(name)
    steps, predicts = Steps(modules, primary), Predictor(modules, "one")
    steps.start()
    for name in ("early", "late"):
        primary.sql(f"DROP TABLE in_{name}")
        primary.sql(f"DROP TABLESPACE {name}")
        steps.ok("backup_copy")
    predicts("backup_stop", True)
    expected = data_checksum(primary)
    steps.finish()
    mapped = (steps.published / "data" / "tablespace_map").read_bytes()
    assert len(mapped.splitlines()) == 3
    all_is_well(sandbox, repository, primary)

    def has_neither(server: Server) -> None:
        assert data_checksum(server) == expected
        assert list(oids(server)) == ["extra"]
        assert len(list((server.data / "pg_tblspc").iterdir())) == 1

    restore_and_check(sandbox, steps.published, primary.archive, major, has_neither)


def test_in_place_tablespace_on_a_standby(
    sandbox: Sandbox, primary: Server, standby: Server, repository: pathlib.Path, standby_modules: Modules, major: int
) -> None:
    """An existing one is backed up; one replayed during the backup makes the backup void."""
    standby.conf(allow_in_place_tablespaces=True).reload()
    in_place(primary, "place")
    standby.catch_up()
    archiver = Modules(primary, repository=str(repository), cluster="main")
    good = Steps(standby_modules, standby, "good")
    good.start()
    good.finish(archiver)
    void = Steps(standby_modules, standby, "void")
    void.start()
    void.ok("backup_copy")
    in_place(primary, "late")
    standby.catch_up()
    failed = void.fails("backup_stop")
    assert (failed["code"], "late" in failed["msg"]) == ("tablespace_created", True)
    assert standby_modules.ok("backup_abort", backup_id="void")["changed"]
    all_is_well(sandbox, repository, primary, standby)
    restore_and_check(
        sandbox, good.published, primary.archive, major,
        lambda server: server.value("SELECT count(*) FROM in_place") == 1000 or pytest.fail("rows are missing"),
        target="immediate", allow_in_place_tablespaces=True,
    )  # fmt: skip
