# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records: every damage is refused and named by its field, and a written record reads back unchanged."""

from __future__ import annotations

import json
import os
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository import record as _record
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository import record_file as _file
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.timelines import WalRange

from tests.unit.helpers.backups import IDENTIFIER, SEGMENT, metadata, proof, record_of

VICTIM: t.Final = "../../../victim.txt"
MISSING: t.Final = object()
DRILL: t.Final = {"at": "2026-11-22T11:32:00Z", "ok": True, "by": "me", "host": "db"}
SPECIAL: t.Final = {"path": "base/link", "kind": "symlink", "target": "/elsewhere"}


def changed(content: t.Any, path: str, value: t.Any) -> None:
    """Change or remove the value at ``path``, written with dots."""
    *parents, last = path.split(".")
    for name in parents:
        content = content[int(name) if name.isdigit() and isinstance(content, list) else name]
    if value is MISSING:
        del content[last]
    else:
        content[int(last) if isinstance(content, list) else last] = value


def whole() -> dict[str, t.Any]:
    """Return the content of a record with every field."""
    content = metadata("complete", wal="include", wal_proof={"sha256": {SEGMENT: "a" * 64}}, drills=[DRILL])
    content["copy"]["special_files"] = [SPECIAL]
    content["stop"]["tablespaces"] = {"16385": "/srv/space"}
    content["server"]["config_files_outside"] = ["/etc/pg.conf"]
    content["server"]["run_by"] = RUN_BY
    drill = {**DRILL, "recovered_to_lsn": "0/2000120", "timeline": 2, "seconds": 1.5, "target": "the end"}
    content["drills"] = [{**drill, "checks": [{"name": "amcheck", "ok": None, "msg": "not wanted"}]}]
    return json.loads(json.dumps(content))  # type: ignore[no-any-return]


RUN_BY: t.Final = {
    "kind": "systemd",
    "unit": "postgresql@18-main.service",
    "program": "",
    "config_file": "/etc/postgresql/18/main/postgresql.conf",
    "hba_file": "/etc/postgresql/18/main/pg_hba.conf",
    "ident_file": "/etc/postgresql/18/main/pg_ident.conf",
    "external_pid_file": "",
    "bin_directory": "/usr/lib/postgresql/18/bin",
    "socket_directories": ["/run/postgresql"],
    "log_file": "/var/log/postgresql.log",
    "os_user": "postgres",
}
NUMBERS: t.Final = [True, "1", None, -1, 1e308, float("nan"), float("inf"), 10**30, [], {}]
TEXTS: t.Final = [None, 1, True, [], {}, "\0", "\ud800", "x" * 200_000]
NAMES: t.Final = [*TEXTS, "", ".", "..", "a/b", "../b1", "/b1", "b2"]
LSNS: t.Final = [None, 1, "", "0", "0/", "x/1", "0/100000000", "0/1 ", "0/1\n", "0/-1", "1" * 100, "\0"]
SEGMENTS: t.Final = [VICTIM, "", None, 1, SEGMENT + "x", SEGMENT.lower() + "a", f"{SEGMENT}/", f"/{SEGMENT}",
                     f"{SEGMENT}\n", f"{SEGMENT}.partial", "1.history", "00000001.history/x", "."]  # fmt: skip
PLACES: t.Final = [None, 1, "", "data", "./data", "~/data", "/x\0", "/" + "x" * 5000]
PATHS: t.Final = [None, 1, "", "/etc/passwd", "..", VICTIM, "base/../../x", "base//x", "base/.", "base/", "\0"]
DIGESTS: t.Final = [None, 1, "", "a" * 63, "a" * 65, "A" * 64, "g" * 64, f"{'a' * 63}/"]
DAMAGES: t.Final[dict[str, list[t.Any]]] = {
    "backup_id": [MISSING, *NAMES],
    "cluster": [MISSING, *NAMES],
    "state": [MISSING, None, "", "done", 1, ["complete"]],
    "kind": [MISSING, None, "incremental", 1],
    "wal": [MISSING, None, "", "included", {}],
    "host": [MISSING, *TEXTS],
    "label": [MISSING, *TEXTS, "x" * 1025],
    "created_at": [MISSING, *NUMBERS, 1e12],
    "session_idle_timeout": [MISSING, *NUMBERS],
    "published_at": ["now", True, -1, float("nan")],
    "error": [1, [], "\0", "x" * 10_001],
    "kept": [1, "true"],
    "server": [MISSING, None, [], 1, "x", {}],
    "server.version": [MISSING, *TEXTS],
    "server.major": [MISSING, *NUMBERS, 18.0, 0, 1000],
    "server.role": [MISSING, None, "leader", 1],
    "server.system_identifier": [MISSING, None, 1, "", "x", "-1", "1" * 21, str(1 << 64), "٣", "1\n", "1; id;"],
    "server.data_directory": [MISSING, *PLACES],
    "server.stats_temp_directory": [1, [], "\0", "x" * 5000],
    "server.wal_segment_size": [MISSING, *NUMBERS, 0, 1 << 19, 3 << 20, 1 << 31],
    "server.block_size": [MISSING, *NUMBERS, 0, 8191],
    "server.data_checksums": [MISSING, None, 1, "true"],
    "server.catalog_version": [MISSING, *NUMBERS, 0, 1 << 32],
    "server.config_files_outside": [MISSING, None, "/etc/pg.conf", {}],
    "server.config_files_outside.0": PLACES,
    "server.port": [MISSING, *NUMBERS, 0, 65536],
    "server.run_by": [1, [], "x", {}],
    "server.run_by.kind": [MISSING, None, 1, "", "launchd"],
    "server.run_by.unit": [
        MISSING,
        *TEXTS,
        "-H root",
        "--user",
        "a;id",
        "$(id)",
        "a b",
        "a/b.service",
        "x\n",
        "x" * 300,
    ],
    "server.run_by.program": [MISSING, *TEXTS, "x" * 300],
    "server.run_by.config_file": [MISSING, None, 1, "data", "./data", "/x\0", "/" + "x" * 5000],
    "server.run_by.hba_file": [MISSING, None, 1, "data", "/x\0"],
    "server.run_by.ident_file": [MISSING, None, 1, "data", "/x\0"],
    "server.run_by.external_pid_file": [MISSING, None, 1, "data", "/x\0"],
    "server.run_by.socket_directories.0": [None, 1, "\0", "x" * 5000],
    "server.run_by.bin_directory": [MISSING, None, 1, "bin", "/x\0"],
    "server.run_by.log_file": [MISSING, None, 1, "log", "/x\0"],
    "server.run_by.socket_directories": [MISSING, None, "/run", {}],
    "server.run_by.os_user": [MISSING, *TEXTS, "", "-u", "a b", "a;id", "../x"],
    "start": [MISSING, None, [], {}, 1],
    "start.start_lsn": [MISSING, *LSNS],
    "start.start_wal_file": [MISSING, *SEGMENTS],
    "start.timeline": [MISSING, *NUMBERS, 0, 1 << 32],
    "start.from_standby": [MISSING, None, 0, "no"],
    "start.started_at": [MISSING, *NUMBERS, 1e12],
    "copy": [MISSING, None, [], {}, 1],
    "copy.by": [MISSING, None, "me", 1],
    "copy.bytes": [MISSING, *NUMBERS, 1.5, 1 << 63],
    "copy.files": [MISSING, *NUMBERS],
    "copy.seconds": [True, "1", -1, 1e308, float("nan")],
    "copy.checksum_algorithm": [1, "", "sha256", "SHA256\n", "../SHA"],
    "copy.special_files": [1, "x", {}],
    "copy.special_files.0": [None, 1, [], {}],
    "copy.special_files.0.path": [MISSING, *PATHS],
    "copy.special_files.0.kind": [MISSING, None, "file", 1],
    "copy.special_files.0.target": [MISSING, None, 1, "\0", "x" * 5000],
    "copy.vanished_files": [True, "1", -1],
    "copy.reused_files": [True, "1", -1],
    "stop": [MISSING, None, [], {}, 1],
    "stop.stop_lsn": [MISSING, *LSNS, "0/1000000"],
    "stop.timeline": [MISSING, *NUMBERS, 0],
    "stop.stopped_at": [MISSING, *NUMBERS, 1e12],
    "stop.wal_ranges": [MISSING, None, {}, 1],
    "stop.wal_ranges.0": [None, 1, {}, []],
    "stop.wal_ranges.0.timeline": [MISSING, *NUMBERS],
    "stop.wal_ranges.0.start": [MISSING, *LSNS],
    "stop.wal_ranges.0.end": [MISSING, *LSNS],
    "stop.manifest_checksum": [MISSING, *DIGESTS],
    "stop.tablespaces": [MISSING, None, [], 1],
    "stop.tablespaces.16385": PLACES,
    "required_wal": [MISSING, None, {}, 1, "x", []],
    "required_wal.0": SEGMENTS,
    "wal_proof": [MISSING, None, [], {}, 1],
    "wal_proof.archived": [MISSING, None, {}, SEGMENT],
    "wal_proof.archived.0": SEGMENTS,
    "wal_proof.method": [MISSING, *TEXTS],
    "wal_proof.source": [MISSING, *TEXTS],
    "wal_proof.system_identifier": [MISSING, None, 1, "x"],
    "wal_proof.proven_at": [MISSING, *NUMBERS],
    "wal_proof.sha256": [MISSING, None, [], {}],
    f"wal_proof.sha256.{SEGMENT}": DIGESTS,
    "drills": [1, "x", {}],
    "drills.0": [None, 1, [], {}],
    "drills.0.at": [MISSING, None, 1, "", "yesterday", "2026-11-22 11:32"],
    "drills.0.ok": [MISSING, None, 1],
    "drills.0.by": [MISSING, *TEXTS],
    "drills.0.host": [MISSING, *TEXTS],
    "drills.0.recovered_to_lsn": ["", "x", 1],
    "drills.0.last_transaction_at": [1, [], "\0"],
    "drills.0.timeline": [0, True, "1"],
    "drills.0.target": [1, []],
    "drills.0.seconds": [True, "1", float("nan"), -1],
    "drills.0.msg": [1, []],
    "drills.0.checks": [1, {}],
    "drills.0.checks.0": [None, 1, []],
    "drills.0.checks.0.ok": [1, "x"],
}


def named(path: str) -> str:
    """Return the path of a field as messages write it."""
    names = path.replace(f".{SEGMENT}", f"[{SEGMENT}]").replace(".16385", "[16385]").split(".")
    return "".join(f"[{name}]" if name.isdigit() else f".{name}" for name in names)[1:]


@pytest.mark.parametrize("path", DAMAGES)
def test_damage_is_named(path: str) -> None:
    for value in DAMAGES[path]:
        content = whole()
        changed(content, path, value)
        with pytest.raises(BackupError) as caught:
            _file.parse_backup(json.dumps(content).encode(), "b1", "main", "/srv/b1")
        assert caught.value.code == "damaged_backup", value
        assert caught.value.msg.startswith(f"The backup /srv/b1 is damaged: backup.json: {named(path)}"), value
        assert len(caught.value.msg) < 500, value


def test_every_field_has_its_damages() -> None:
    """A new field without a check fails here."""

    def ways(content: t.Any, path: str = "") -> t.Iterator[str]:
        if isinstance(content, (dict, list)):
            for name in content if isinstance(content, dict) else range(len(content)):
                yield f"{path}.{name}".strip(".")
                yield from ways(content[name], f"{path}.{name}")

    written = json.loads(_file.write_backup(record_of(whole())))
    assert set(ways(written)) - set(DAMAGES) == {
        "schema",
        *(f"drills.0.checks.0.{name}" for name in ("name", "msg")),
    }


@pytest.mark.parametrize("oid", ["", "0", "01", "x", "-1", "4294967296", "..", "1/2", "1\n", "٣"])
def test_oid(oid: str) -> None:
    content = whole()
    content["stop"]["tablespaces"] = {oid: "/srv/space"}
    with pytest.raises(BackupError, match=r"stop\.tablespaces"):
        record_of(content)


def test_name_of_an_included_file() -> None:
    content = whole()
    content["wal_proof"]["sha256"][VICTIM] = "a" * 64
    with pytest.raises(BackupError, match=r"wal_proof\.sha256") as caught:
        record_of(content)
    assert "victim" in caught.value.msg


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"1", b"null", b"\xff", b"[" * 1_000_000, b'{"a":' * 1_000_000, b'{"schema": NaN}',
     b'{"schema": ' + b"1" * 5_000_000 + b"}"],
    ids=lambda data: repr(data[:12]),
)  # fmt: skip
def test_not_a_record(data: bytes) -> None:
    with pytest.raises(BackupError) as caught:
        _file.parse_backup(data, "b1", "main", "/srv/b1")
    assert caught.value.code == "damaged_backup"
    with pytest.raises(BackupError) as caught:
        _file.parse_cluster(data, "/srv/main")
    assert caught.value.code == "damaged_cluster"
    assert len(caught.value.msg) < 500


@pytest.mark.parametrize(
    "schema, code",
    [(1, "old_schema"), (3, "newer_schema"), (0, "damaged"), ("2", "damaged"), (True, "damaged"), (2.0, "damaged")],
)
def test_schema(schema: t.Any, code: str) -> None:
    """The schema is checked first: other versions have other fields."""
    for kind, parse in (
        ("backup", lambda data: _file.parse_backup(data, "b1", "main", "/srv/b1")),
        ("cluster", lambda data: _file.parse_cluster(data, "/srv/main")),
    ):
        with pytest.raises(BackupError) as caught:
            parse(json.dumps({"schema": schema}).encode())
        assert caught.value.code == (f"damaged_{kind}" if code == "damaged" else code)
        assert code == "damaged" or (str(schema) in caught.value.msg and caught.value.hint)


@pytest.mark.parametrize("identifier", [None, 1, "", "x", "1" * 21, "-1"])
def test_cluster(identifier: t.Any) -> None:
    with pytest.raises(BackupError, match="system_identifier") as caught:
        _file.parse_cluster(json.dumps({"schema": 2, "system_identifier": identifier}).encode(), "/srv/main")
    assert caught.value.code == "damaged_cluster"
    data = _file.write_cluster(_record.ClusterRecord(IDENTIFIER))
    assert _file.parse_cluster(data, "/srv/main").system_identifier == IDENTIFIER


# --- a written record can be read ---


@pytest.mark.parametrize("state", ["started", "stopped", "complete"])
def test_round_trip(state: str) -> None:
    record = record_of(metadata(state))
    assert record_of(json.loads(_file.write_backup(record))) == record
    for changed_record in (record.failed("why"), record.failed("x" * 100_000, kept=True)):
        assert record_of(json.loads(_file.write_backup(changed_record))) == changed_record


def test_values() -> None:
    record = record_of(whole())
    assert record_of(json.loads(_file.write_backup(record))) == record
    assert (record.start.lsn, record.stop.lsn) == (0x2000028, 0x2000120)
    assert record.stop.wal_ranges == (WalRange(1, 0x2000028, 0x2000120),)
    assert record.stop.tablespaces == {16385: b"/srv/space"}
    assert record.included_wal == {SEGMENT: "a" * 64}
    assert record.drills[0].checks == (_record.DrillCheck("amcheck", None, "not wanted", None, None),)
    with pytest.raises(TypeError):
        record.stop.tablespaces[1] = b"/"  # type: ignore[index]


def test_paths_that_are_not_utf8() -> None:
    name = os.fsdecode(b"caf\xe9\n")
    content = whole()
    content["server"]["data_directory"] = content["stop"]["tablespaces"]["16385"] = f"/srv/{name}"
    content["copy"]["special_files"][0]["path"] = name
    record = record_of(content)
    assert os.fsencode(record.server.data_directory) == record.stop.tablespaces[16385] == b"/srv/caf\xe9\n"
    assert record_of(json.loads(_file.write_backup(record))) == record


def test_life_of_a_record() -> None:
    """The record as the modules change it, from the start to publishing."""
    stopped = record_of(metadata("stopped"))
    started = stopped._replace(state="started", outcome=None)
    assert record_of(json.loads(_file.write_backup(started))) == started
    with pytest.raises(BackupError) as caught:
        print(started.stop)
    assert caught.value.code == "not_stopped"
    assert stopped.outcome is not None
    assert started.stopped(stopped.outcome, None) == stopped
    complete = stopped.completed(_file.parse_proof(proof()), 5.0)
    assert record_of(json.loads(_file.write_backup(complete))) == complete
    assert (complete.state, complete.published_at) == ("complete", 5.0)


@pytest.mark.parametrize(
    "wrong",
    [{"label": "x" * 2000}, {"created_at": float("nan")}, {"created_at": -1.0}, {"host": "\0"}, {"backup_id": "../b1"}],
    ids=str,
)
def test_what_could_not_be_read_is_not_written(wrong: dict[str, t.Any]) -> None:
    with pytest.raises(BackupError) as caught:
        _file.write_backup(record_of(metadata())._replace(**wrong))
    assert caught.value.code == "bad_record"


def test_unknown_fields_are_ignored() -> None:
    assert record_of({**metadata(), "newer": {"a": 1}}) == record_of(metadata())._replace(
        created_at=pytest.approx(record_of(metadata()).created_at, abs=5)
    )


@pytest.mark.parametrize("at, code", [("2026-11-22 11:32", "bad_time"), (None, "bad_time")])
def test_drill_without_a_time(at: t.Any, code: str) -> None:
    with pytest.raises(BackupError) as caught:
        _file.parse_drill({**DRILL, "at": at})
    assert caught.value.code == code


def test_drill_of_a_play() -> None:
    """Found and expected values of checks are kept, whatever they are; unknown fields are not recorded."""
    checks = [
        {"name": "a", "ok": True, "msg": "b", "value": [["c"]], "expected": None},
        {"name": "a", "ok": None, "msg": "b"},
    ]
    result = _file.drill_result(_file.parse_drill({**DRILL, "timeline": None, "checks": checks}))
    assert result["checks"] == checks
    more = [{**checks[0], "more": 1}]
    assert _file.drill_result(_file.parse_drill({**DRILL, "checks": more}))["checks"] == checks[:1]
    for value in ("x" * 200_000, float("nan")):
        with pytest.raises(BackupError, match=r"checks\[0\].value"):
            _file.parse_drill({**DRILL, "checks": [{"ok": True, "value": value}]})
    with pytest.raises(BackupError, match=r"checks\[0\].ok") as caught:
        _file.parse_drill({**DRILL, "checks": [{"ok": "yes"}]})
    assert caught.value.code == "bad_drill"
