# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``backup.json`` and ``cluster.json``: read once into checked values, and written from them.

Private to pgfleet.basebackup. Room ``_repository``: backups on disk, their records and their locks; it knows no server.

No other file knows the keys of these files. Unknown keys are ignored; a key that must not be ignored needs a new
``SCHEMA``.
"""

from __future__ import annotations

import json
import re
import types
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import fields as _fields
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.fields import Wrong, field, optional
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import (
    ARCHIVE,
    BY_US,
    BY_USER,
    COMPLETE,
    FAILED,
    INCLUDE,
    LONGEST_ERROR,
    NAME,
    RUN_BY_KINDS,
    STARTED,
    STOPPED,
    WAL_CHOICES,
    BackupRecord,
    ClusterRecord,
    Copy,
    Drill,
    DrillCheck,
    Outcome,
    RunBy,
    Server,
    SpecialFile,
    Start,
    Stop,
    WalProof,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import fields as _wal_fields
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.segments import format_lsn
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.timelines import WalRange

# Versions 0.1 and 0.2 wrote schema 1.
SCHEMA = 2
LARGEST_FILE = 64 << 20  # bytes; the record of a backup with 200,000 included WAL files has half of that
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_ALGORITHM = re.compile(r"[A-Z0-9]{1,20}\Z")


def parse_cluster(data: bytes, path: str) -> ClusterRecord:
    """Return the record in ``cluster.json`` of the directory ``path``.

    Raises :class:`BackupError`: ``damaged_cluster`` naming the field, ``newer_schema``, ``old_schema``.
    """
    try:
        content = _fields.load_object(data)
        _check_schema(content, path)
        return ClusterRecord(field(content, "system_identifier", _wal_fields.system_identifier))
    except Wrong as exc:
        raise BackupError(f"{path}/cluster.json is damaged: {exc}.", code="damaged_cluster") from exc


def parse_backup(data: bytes, backup_id: str, cluster: str, path: str) -> BackupRecord:
    """Return the record in ``backup.json`` of the directory ``path`` of the backup ``backup_id`` of ``cluster``.

    Raises :class:`BackupError`: ``damaged_backup`` naming the field, ``newer_schema``, ``old_schema``.
    """
    try:
        content = _fields.load_object(data)
        _check_schema(content, f"The backup {path}")
        record = _backup(content)
        if record.backup_id != backup_id:
            raise Wrong(f"names the backup {record.backup_id}", "backup_id")
        if record.cluster != cluster:
            raise Wrong(f"names the cluster {record.cluster}", "cluster")
        return record
    except Wrong as exc:
        raise BackupError(
            f"The backup {path} is damaged: backup.json: {exc}.", code="damaged_backup", hint="Use another backup."
        ) from exc


def _check_schema(content: t.Any, what: str) -> None:
    schema = field(content, "schema", _fields.integer(1, 1_000_000))
    if schema > SCHEMA:
        raise BackupError(
            f"{what} was written by a newer version of this collection (schema {schema}).",
            code="newer_schema",
            hint="Update the collection.",
        )
    if schema < SCHEMA:
        raise BackupError(
            f"{what} was written by version 0.1 or 0.2 of this collection (schema {schema}), which this version does"
            " not read.",
            code="old_schema",
            hint="Restore old backups with the version that took them, and take new ones in another repository.",
        )


def _backup(content: t.Any) -> BackupRecord:
    state = field(content, "state", _fields.one_of(STARTED, STOPPED, COMPLETE, FAILED))
    wal = field(content, "wal", _fields.one_of(*WAL_CHOICES))
    has_outcome = state in (STOPPED, COMPLETE) or any(name in content for name in ("start", "copy", "stop"))
    outcome = _outcome(content) if has_outcome else None
    proof = optional(content, "wal_proof", _wal_proof)
    if proof is None and (state == COMPLETE or (state == STOPPED and wal != ARCHIVE)):
        raise Wrong("is missing", "wal_proof")
    if proof and outcome and wal == INCLUDE:
        unknown = sorted(set(outcome.required_wal) - set(proof.sha256))
        if unknown:
            raise Wrong(f"does not have the WAL file {unknown[0]}, which is included", "wal_proof.sha256")
    return BackupRecord(
        backup_id=field(content, "backup_id", _name),
        cluster=field(content, "cluster", _name),
        state=state,
        kind=field(content, "kind", _fields.one_of("full")),
        wal=wal,
        host=field(content, "host", _fields.text(255)),
        label=field(content, "label", _fields.text(1024)),
        created_at=field(content, "created_at", _fields.timestamp),
        session_idle_timeout=field(content, "session_idle_timeout", _fields.seconds),
        server=field(content, "server", _server),
        outcome=outcome,
        wal_proof=proof,
        published_at=optional(content, "published_at", _fields.timestamp),
        error=optional(content, "error", _fields.text(LONGEST_ERROR)) or "",
        kept=optional(content, "kept", _fields.boolean) or False,
        drills=optional(content, "drills", _fields.list_of(_drill)) or (),
    )


# What systemd allows in the name of a unit.
_UNIT = re.compile(r"(?:[A-Za-z0-9:_.\\][A-Za-z0-9:_.\\@-]{0,250})?\Z")
_ACCOUNT = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@$-]{0,99}\Z")
_name = _fields.matching(NAME, "a plain name")


def _server(content: t.Any) -> Server:
    return Server(
        version=field(content, "version", _fields.text(200)),
        major=field(content, "major", _fields.integer(1, 999)),
        role=field(content, "role", _fields.one_of("primary", "standby")),
        system_identifier=field(content, "system_identifier", _wal_fields.system_identifier),
        data_directory=field(content, "data_directory", _fields.location),
        stats_temp_directory=optional(content, "stats_temp_directory", _fields.text(_fields.LONGEST_PATH)),
        wal_segment_size=field(content, "wal_segment_size", _fields.power_of_two(1 << 20, 1 << 30)),
        block_size=field(content, "block_size", _fields.power_of_two(1 << 10, 1 << 15)),
        data_checksums=field(content, "data_checksums", _fields.boolean),
        catalog_version=field(content, "catalog_version", _fields.integer(1, 0xFFFFFFFF)),
        config_files_outside=field(content, "config_files_outside", _fields.list_of(_fields.location)),
        port=field(content, "port", _fields.integer(1, 65535)),
        run_by=optional(content, "run_by", _run_by),
    )


def _run_by(content: t.Any) -> RunBy:
    places = {
        name: field(content, name, _fields.location_or_nothing)
        for name in ("config_file", "hba_file", "ident_file", "external_pid_file", "bin_directory", "log_file")
    }
    return RunBy(
        kind=field(content, "kind", _fields.one_of(*RUN_BY_KINDS)),
        unit=field(content, "unit", _fields.matching(_UNIT, "the name of a unit, or empty")),
        program=field(content, "program", _fields.text(255)),
        socket_directories=field(content, "socket_directories", _fields.list_of(_fields.text(_fields.LONGEST_PATH))),
        os_user=field(content, "os_user", _fields.matching(_ACCOUNT, "the name of an account")),
        **places,
    )


def run_by_of(facts: t.Any) -> t.Optional[RunBy]:
    """Return who runs a server from the facts of ``server_info``, None when a record could not hold them."""
    try:
        return optional({"run_by": facts}, "run_by", _run_by)
    except Wrong:
        return None


def _outcome(content: t.Any) -> Outcome:
    outcome = Outcome(
        start=field(content, "start", _start),
        copy=field(content, "copy", _copy),
        stop=field(content, "stop", _stop),
        required_wal=field(content, "required_wal", _fields.list_of(_wal_fields.wal_name)),
    )
    if outcome.stop.lsn < outcome.start.lsn:
        raise Wrong(f"lies before the start, {format_lsn(outcome.start.lsn)}", "stop.stop_lsn")
    if not outcome.required_wal:
        raise Wrong("is empty", "required_wal")
    return outcome


def _start(content: t.Any) -> Start:
    return Start(
        lsn=field(content, "start_lsn", _wal_fields.lsn),
        wal_file=field(content, "start_wal_file", _wal_fields.wal_name),
        timeline=field(content, "timeline", _wal_fields.timeline),
        from_standby=field(content, "from_standby", _fields.boolean),
        started_at=field(content, "started_at", _fields.timestamp),
    )


def _copy(content: t.Any) -> Copy:
    return Copy(
        by=field(content, "by", _fields.one_of(BY_US, BY_USER)),
        files=field(content, "files", _fields.byte_count),
        bytes=field(content, "bytes", _fields.byte_count),
        seconds=optional(content, "seconds", _fields.seconds),
        checksum_algorithm=optional(content, "checksum_algorithm", _fields.matching(_ALGORITHM, "an algorithm")),
        special_files=optional(content, "special_files", _fields.list_of(_special_file)) or (),
        vanished_files=optional(content, "vanished_files", _fields.byte_count),
        reused_files=optional(content, "reused_files", _fields.byte_count),
    )


def _special_file(content: t.Any) -> SpecialFile:
    return SpecialFile(
        path=field(content, "path", _fields.path_below),
        kind=field(content, "kind", _fields.one_of("symlink", "fifo", "socket", "device")),
        target=field(content, "target", _fields.text(_fields.LONGEST_PATH)),
    )


def _stop(content: t.Any) -> Stop:
    return Stop(
        lsn=field(content, "stop_lsn", _wal_fields.lsn),
        timeline=field(content, "timeline", _wal_fields.timeline),
        stopped_at=field(content, "stopped_at", _fields.timestamp),
        wal_ranges=field(content, "wal_ranges", _fields.list_of(_wal_range)),
        manifest_checksum=field(content, "manifest_checksum", _fields.matching(_SHA256, "a SHA-256")),
        tablespaces=types.MappingProxyType(
            field(content, "tablespaces", _fields.mapping_of(_wal_fields.oid, _tablespace_location))
        ),
    )


def _tablespace_location(value: t.Any) -> bytes:
    return _fields.location(value).encode("utf-8", "surrogateescape")


def _wal_range(content: t.Any) -> WalRange:
    return WalRange(
        field(content, "timeline", _wal_fields.timeline),
        field(content, "start", _wal_fields.lsn),
        field(content, "end", _wal_fields.lsn),
    )


def _wal_proof(content: t.Any) -> WalProof:
    checksums = _fields.mapping_of(_wal_fields.wal_name, _fields.matching(_SHA256, "a SHA-256"))
    return WalProof(
        archived=field(content, "archived", _fields.list_of(_wal_fields.wal_name)),
        method=field(content, "method", _fields.text(100)),
        source=field(content, "source", _fields.text()),
        system_identifier=field(content, "system_identifier", _wal_fields.system_identifier),
        proven_at=field(content, "proven_at", _fields.timestamp),
        sha256=types.MappingProxyType(optional(content, "sha256", checksums) or {}),
    )


def parse_proof(content: t.Any) -> WalProof:
    """Return the proof that ``wal_archived`` returned, as a play passes it on.

    Raises :class:`BackupError`, ``bad_proof``, naming the field.
    """
    try:
        return _wal_proof(content)
    except Wrong as exc:
        raise BackupError(
            f"The proof that the WAL is archived is not what pgfleet.basebackup.wal_archived returns: {exc}.",
            code="bad_proof",
            hint="Pass on the proof that pgfleet.basebackup.wal_archived returns.",
        ) from exc


def _drill(content: t.Any) -> Drill:
    text = _fields.text()
    return Drill(
        at=field(content, "at", _fields.utc_text),
        ok=field(content, "ok", _fields.boolean),
        by=field(content, "by", text),
        host=field(content, "host", text),
        recovered_to_lsn=optional(content, "recovered_to_lsn", _lsn_text),
        last_transaction_at=optional(content, "last_transaction_at", text),
        timeline=optional(content, "timeline", _wal_fields.timeline),
        target=optional(content, "target", text),
        seconds=optional(content, "seconds", _fields.seconds),
        msg=optional(content, "msg", text),
        checks=optional(content, "checks", _fields.list_of(_drill_check)) or (),
    )


def _lsn_text(value: t.Any) -> str:
    return format_lsn(_wal_fields.lsn(value))


def _drill_check(content: t.Any) -> DrillCheck:
    return DrillCheck(
        name=optional(content, "name", _fields.text()) or "",
        ok=optional(content, "ok", _fields.boolean),
        msg=optional(content, "msg", _fields.text()) or "",
        value=field(content, "value", _fields.json_text) if "value" in content else None,
        expected=field(content, "expected", _fields.json_text) if "expected" in content else None,
    )


def parse_drill(content: t.Any) -> Drill:
    """Return the result of a drill as a play gives it.

    Raises :class:`BackupError`, ``bad_time`` or ``bad_drill``, naming the field.
    """
    try:
        return _drill(content)
    except Wrong as exc:
        code = "bad_time" if exc.field == "at" else "bad_drill"
        raise BackupError(f"The result of the drill cannot be recorded: {exc}.", code=code) from exc


def drill_result(drill: Drill) -> t.Dict[str, t.Any]:
    """Return a drill as modules return it."""
    return {**drill._asdict(), "checks": [_check_result(check) for check in drill.checks]}


def _check_result(check: DrillCheck) -> t.Dict[str, t.Any]:
    more = {"value": check.value, "expected": check.expected}
    values = {name: json.loads(text) for name, text in more.items() if text is not None}
    return {"name": check.name, "ok": check.ok, "msg": check.msg, **values}


# -- writing ------------------------------------------------------------------------------------------------------


def write_cluster(record: ClusterRecord) -> bytes:
    """Return the content of ``cluster.json``."""
    return _encode(record._asdict())


def write_backup(record: BackupRecord) -> bytes:
    """Return the content of ``backup.json``. Raises :class:`BackupError`, ``bad_record``, if it would be unreadable."""
    content = record._asdict()
    del content["outcome"]
    run_by = record.server.run_by
    content["server"] = {**record.server._asdict(), "run_by": run_by._asdict() if run_by else None}
    content["drills"] = [drill_result(drill) for drill in record.drills]
    if record.outcome is not None:
        content.update(_outcome_json(record.outcome))
    if record.wal_proof is not None:
        content["wal_proof"] = {**record.wal_proof._asdict(), "sha256": dict(record.wal_proof.sha256)}
    try:
        data = _encode(content)
        if len(data) > LARGEST_FILE:
            raise Wrong(f"has {len(data)} bytes, more than {LARGEST_FILE}")
        _backup(_fields.load_object(data))
    except (Wrong, ValueError) as exc:
        raise BackupError(
            f"The record of the backup {record.backup_id} cannot be written: {exc}.", code="bad_record"
        ) from exc
    return data


def _encode(content: t.Mapping[str, t.Any]) -> bytes:
    return json.dumps({"schema": SCHEMA, **content}, indent=2, sort_keys=True, allow_nan=False).encode("ascii") + b"\n"


def _outcome_json(outcome: Outcome) -> t.Dict[str, t.Any]:
    start, stop = outcome.start, outcome.stop
    return {
        "start": {
            "start_lsn": format_lsn(start.lsn),
            "start_wal_file": start.wal_file,
            "timeline": start.timeline,
            "from_standby": start.from_standby,
            "started_at": start.started_at,
        },
        "copy": {**outcome.copy._asdict(), "special_files": [one._asdict() for one in outcome.copy.special_files]},
        "stop": {
            "stop_lsn": format_lsn(stop.lsn),
            "timeline": stop.timeline,
            "stopped_at": stop.stopped_at,
            "wal_ranges": [
                {"timeline": one.timeline, "start": format_lsn(one.start), "end": format_lsn(one.end)}
                for one in stop.wal_ranges
            ],
            "manifest_checksum": stop.manifest_checksum,
            "tablespaces": {
                str(oid): location.decode("utf-8", "surrogateescape") for oid, location in stop.tablespaces.items()
            },
        },
        "required_wal": outcome.required_wal,
    }
