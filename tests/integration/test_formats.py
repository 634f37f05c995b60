# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL's formats in all variants: WAL segments and their archives, manifests, labels."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import pathlib
import shutil

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import files as _walfile

from tests.harness.checks import data_checksum, restore_and_check, verifybackup
from tests.harness.modules import Modules
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server
from tests.harness.user import me, run
from tests.integration.helpers.files import manifest
from tests.integration.helpers.leftovers import all_is_well
from tests.integration.helpers.steps import Steps


@pytest.mark.majors(15, 18)
@pytest.mark.parametrize("megabytes", [1, 64])
def test_wal_segment_size(sandbox: Sandbox, repository: pathlib.Path, major: int, megabytes: int) -> None:
    """Names, number of segments, proof and restore are right for sizes other than 16 MB."""
    primary = sandbox.primary(major, initdb=[f"--wal-segsize={megabytes}"])
    standby = sandbox.standby(primary)
    steps = Steps(Modules(standby, repository=str(repository), cluster="main"), standby)
    archiver = Modules(primary, repository=str(repository), cluster="main")
    steps.start()
    steps.ok("backup_copy")
    # Enough WAL for several segments of 1 MB, whose numbers would show a wrong segment size.
    primary.pgbench_init()
    primary.sql("CHECKPOINT")
    standby.catch_up()
    standby.sql("CHECKPOINT")
    stopped = steps.ok("backup_stop")
    assert stopped["wal_segment_size"] == megabytes << 20
    names = primary.sql(
        "SELECT DISTINCT pg_walfile_name(%(start)s::pg_lsn + n) FROM generate_series("
        "0, %(stop)s::pg_lsn - %(start)s::pg_lsn - 1, 512 * 1024) n UNION SELECT pg_walfile_name(%(stop)s::pg_lsn - 1)"
        " ORDER BY 1",
        {"start": stopped["start_lsn"], "stop": stopped["stop_lsn"]},  # type: ignore[arg-type]
    )
    assert stopped["required_wal"] == [name for (name,) in names]
    assert (len(names) > 5) == (megabytes == 1)
    steps.finish(archiver)
    assert primary.archive is not None
    question = {"required_wal": stopped["required_wal"], "system_identifier": stopped["system_identifier"]}
    by_file = archiver.ok("wal_archived", **question, wal_segment_size=megabytes << 20,
                          archive_directory=str(primary.archive), timeout=1)  # fmt: skip
    assert by_file["proof"]["method"] == "archive_directory"
    wrong = archiver.fails("wal_archived", **question, archive_directory=str(primary.archive), timeout=0)
    assert wrong["code"] in ("bad_segment", "wal_not_archived")
    all_is_well(sandbox, repository, primary, standby)
    expected = data_checksum(primary)

    def is_the_same(server: Server) -> None:
        assert data_checksum(server) == expected

    restore_and_check(sandbox, steps.published, primary.archive, major, is_the_same)


def flipped(content: bytes, at: int) -> bytes:
    """Return ``content`` with eight bytes changed."""
    return content[:at] + bytes(byte ^ 0xFF for byte in content[at : at + 8]) + content[at + 8 :]


def test_archive_is_read(
    sandbox: Sandbox, primary: Server, repository: pathlib.Path, modules: Modules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory, plain or compressed, or a restore_command; a partial or foreign file or garbage is not a proof."""
    steps = Steps(modules, primary)
    steps.start()
    steps.ok("backup_copy")
    stopped = steps.ok("backup_stop")
    steps.archived(stopped)
    assert primary.archive is not None
    (name,) = stopped["required_wal"]
    content = (primary.archive / name).read_bytes()
    place = sandbox.directory("other-archive")
    # The server is not queried, so none is needed.
    alone = Modules(None, **{key: modules.common[key] for key in ("repository", "cluster")})
    question = {"required_wal": [name], "system_identifier": stopped["system_identifier"], "interval": 0.05}
    in_place = {**question, "archive_directory": str(place)}
    packed = gzip.compress(content, 1)

    for file, text in (
        (name, content[:-8192]), (name + ".gz", packed[:-1000]), (name + ".gz", gzip.compress(content[:-512], 1)),
        (name + ".gz", flipped(packed, len(packed) // 2)), (name + ".xz", b"\xfd7zXZ\0x"),
        (name + ".bz2", b"BZh"), (name + ".partial", content), (name + ".tmp", content), (name, b""),
    ):  # fmt: skip
        (place / file).write_bytes(text)
        late = alone.fails("wal_archived", **in_place, timeout=0)
        assert (late["code"], late["missing"]) == ("wal_not_archived", [name]), (file, late)
        assert str(place) in late["msg"]
        (place / file).unlink()
    for at, said in ((24, "another cluster"), (8, "page address"), (0, "header"), (32, "segment size")):
        (place / name).write_bytes(flipped(content, at))
        bad = alone.fails("wal_archived", **in_place, timeout=5)
        assert (bad["code"], name in bad["msg"], said in bad["msg"]) == ("bad_segment", True, True), bad
        (place / name).unlink()
    (place / name).write_bytes(content + b"\0")
    assert alone.fails("wal_archived", **in_place, timeout=5)["code"] == "bad_segment"
    (place / name).unlink()

    for suffix, compress in ((".bz2", bz2.compress), (".xz", lambda data: lzma.compress(data, preset=0)),
                             (".gz", lambda data: gzip.compress(data, 1)), ("", bytes)):  # fmt: skip
        (place / (name + suffix)).write_bytes(compress(content))
        proof = alone.ok("wal_archived", **in_place, timeout=0)["proof"]
        assert (proof["archived"], proof["method"], proof["source"]) == ([name], "archive_directory", str(place))
        (place / (name + suffix)).unlink()
    for suffix, tool in ((".zst", "zstd"), (".lz4", "lz4")):
        if shutil.which(tool):
            (place / name).write_bytes(content)
            run([tool, "-q", place / name, place / (name + suffix)], user=me())
            (place / name).unlink()
            assert alone.ok("wal_archived", **in_place, timeout=0)["proof"]["archived"] == [name]
        else:
            (place / (name + suffix)).write_bytes(b"")
            assert alone.fails("wal_archived", **in_place, timeout=0)["code"] == "tool_missing"
        (place / (name + suffix)).unlink()

    fetch = {**question, "restore_command": f'echo "100%%" && cp "{primary.archive}/%f" "%p"'}
    proof = alone.ok("wal_archived", **fetch, timeout=0)["proof"]
    assert (proof["method"], proof["source"]) == ("restore_command", fetch["restore_command"])
    for command in ("false", "true", f'head -c 1000 "{primary.archive}/%f" > "%p"', f"cp {place}/%f %p"):
        assert alone.fails("wal_archived", **{**fetch, "restore_command": command}, timeout=0)["missing"] == [name]
    monkeypatch.setattr(_walfile, "COMMAND_SECONDS", 0.1)
    slow = alone.fails("wal_archived", **{**fetch, "restore_command": "exec sleep 5"}, timeout=0)
    assert slow["code"] == "wal_not_archived"
    monkeypatch.undo()
    foreign = alone.fails("wal_archived", **{**fetch, "system_identifier": "1"}, timeout=5)
    assert (foreign["code"], "another cluster" in foreign["msg"]) == ("bad_segment", True)
    history = alone.fails("wal_archived", **{**fetch, "required_wal": [name, "00000002.history"]}, timeout=0)
    assert history["missing"] == ["00000002.history"]
    # The server has no trace of segments it has not written yet, nor of those archived and recycled.
    for future in ("0000000100000000000000F0", "00000002.history", "000000020000000000000001"):
        late = modules.fails("wal_archived", required_wal=[name, future], timeout=0)
        assert (late["code"], late["missing"]) == ("wal_not_archived", [future])
    steps.ok("backup_publish", proof=proof)
    all_is_well(sandbox, repository, primary)


@pytest.mark.majors(14, 18)
def test_checksums_and_labels(
    sandbox: Sandbox, primary: Server, repository: pathlib.Path, modules: Modules, major: int
) -> None:
    """pg_verifybackup accepts every algorithm and detects a changed file; the label arrives byte for byte."""
    labels = {
        "NONE": "Grüße, »quoted« 'single' \"double\" \\n $$ %s 漢字",
        "SHA224": " leading and trailing blanks ",
        "SHA384": "START TIMELINE: 7",
        "SHA512": "é" * 512,
        "CRC32C": "CHECKPOINT LOCATION: 0/0",
    }
    for algorithm, label in labels.items():
        steps = Steps(modules, primary, algorithm)
        steps.start(label=label)
        copied = steps.ok("backup_copy", checksum_algorithm=algorithm, jobs=1)
        assert copied["checksum_algorithm"] == algorithm
        steps.finish()
        data = steps.published / "data"
        verifybackup(data, major, primary.archive)
        (line,) = [line for line in (data / "backup_label").read_bytes().splitlines() if line.startswith(b"LABEL: ")]
        assert line == b"LABEL: " + label.encode()
        files = manifest(data)["Files"]
        wanted = None if algorithm == "NONE" else algorithm
        assert {entry.get("Checksum-Algorithm") for entry in files} == {wanted}
        assert all(("Checksum" in entry) == (wanted is not None) for entry in files)
        if wanted:
            with (data / "PG_VERSION").open("r+b") as file:
                file.write(b"9")
            with pytest.raises(AssertionError, match="PG_VERSION"):
                verifybackup(data, major)
    all_is_well(sandbox, repository, primary)


def test_manifest_of_names_that_are_no_utf8(
    sandbox: Sandbox, primary: Server, repository: pathlib.Path, modules: Modules, major: int
) -> None:
    """Such a name is listed in hexadecimal; other names with JSON's escapes."""
    names = [b"caf\xe9", 'quote " backslash \\ tab \t ü'.encode()]
    for name in names:
        path = os.path.join(os.fsencode(primary.data), name)
        run(["cp", primary.data / "PG_VERSION", path])
    steps = Steps(modules, primary)
    steps.whole()
    files = manifest(steps.published / "data")["Files"]
    assert [entry["Encoded-Path"] for entry in files if "Encoded-Path" in entry] == [names[0].hex()]
    assert names[1].decode() in {entry.get("Path") for entry in files}
    verifybackup(steps.published / "data", major, primary.archive)
    all_is_well(sandbox, repository, primary)
