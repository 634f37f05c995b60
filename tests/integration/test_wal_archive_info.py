# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What wal_archive_info reports about a real archive with increasing damage."""

from __future__ import annotations

import gzip
import pathlib

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _wal
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archive import DirectoryArchive, restore_command

from tests.harness.checks import restore
from tests.harness.modules import Modules
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, wait_until
from tests.integration.helpers.files import listing
from tests.integration.helpers.steps import Steps

SIZE = 1 << 20
AS_TEXT = "to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"


def change(server: Server, number: int) -> tuple[str, str]:
    """Commit something, switch the segment; return its name and the transaction's time."""
    server.sql(f"CREATE TABLE change_{number} (i int)")
    when = server.value(f"SELECT {AS_TEXT.format('timestamp')} FROM pg_last_committed_xact()")
    name = server.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn() - 1)")
    server.sql("SELECT pg_switch_wal()")
    assert server.archive
    wait_until((server.archive / name).exists, f"{name} in the archive")
    return name, when


@pytest.mark.majors(15, 18)
def test_archive_that_gets_worse(sandbox: Sandbox, repository: pathlib.Path, major: int) -> None:
    primary = sandbox.primary(major, initdb=["--wal-segsize=1"], track_commit_timestamp=True)
    standby = sandbox.standby(primary)
    assert primary.archive
    modules = Modules(primary, repository=str(repository), cluster="main")
    one = Steps(modules, primary, "one").whole()
    changes = [change(primary, number) for number in range(4)]
    place = {"archive_directory": str(primary.archive)}

    before = listing(primary.archive)
    answer = modules.ok("wal_archive_info", **place)
    assert modules.ok("wal_archive_info", check=True, **place) == {
        **answer, "newest_age_seconds": pytest.approx(answer["newest_age_seconds"], abs=30),
    }  # fmt: skip
    assert listing(primary.archive) == before
    assert (answer["changed"], answer["problems"]) == (False, [])
    assert (answer["wal_segment_size"], answer["system_identifier"]) == (SIZE, primary.system_identifier)
    assert answer["newest"] == changes[-1][0] == answer["timelines"][0]["last"]
    assert [timeline["gaps"] for timeline in answer["timelines"]] == [[]]
    (backup,) = answer["backups"]
    assert (backup["backup_id"], backup["wal"], backup["missing"]) == ("one", "present", [])
    assert (backup["recoverable_until"], backup["timeline"]) == (changes[-1][1], 1)
    assert _wal.parse_lsn(backup["recoverable_until_lsn"]) >= _wal.parse_lsn(one["stop_lsn"])

    # A promotion, with the old timeline's last segment as .partial only.
    primary.sql("CREATE TABLE not_archived (i int)")
    standby.catch_up()
    primary.stop("immediate")
    standby.promote()
    wait_until(lambda: list(primary.archive.glob("*.partial")), "the partial segment")
    on_two, when = change(standby, 9)
    answer = modules.ok("wal_archive_info", **place)
    assert (answer["problems"], len(answer["partials"])) == ([], 1)
    assert [(timeline["timeline"], timeline["gaps"]) for timeline in answer["timelines"]] == [(1, []), (2, [])]
    (backup,) = answer["backups"]
    assert (backup["recoverable_until"], backup["timeline"]) == (when, 2)

    # A compressed file, and odd files in the archive.
    middle = primary.archive / changes[1][0]
    middle.with_name(middle.name + ".gz").write_bytes(gzip.compress(middle.read_bytes()))
    middle.unlink()
    odd = {"temporary": ".half.tmp", "unknown": "README"}
    for name in odd.values():
        (primary.archive / name).write_text("x")
    answer = modules.ok("wal_archive_info", check_headers="all", **place)
    assert (answer["problems"], {kind: answer[kind] for kind in odd}) == (
        [], {kind: [name] for kind, name in odd.items()},
    )  # fmt: skip

    # PostgreSQL recovers exactly as far, with the command built for this archive.
    (backup,) = answer["backups"]
    archive = DirectoryArchive(str(primary.archive), SIZE, int(standby.system_identifier))
    restored = restore(sandbox, repository / "main" / "backups" / "one", primary.archive, major, start=False)
    restored.conf(restore_command=restore_command(archive)).start()
    wait_until(lambda: not restored.in_recovery, "the end of recovery")
    assert f"redo done at {backup['recoverable_until_lsn']} " in restored.log
    assert restored.value(f"SELECT {AS_TEXT.format('pg_last_xact_replay_timestamp()')}") == backup["recoverable_until"]
    assert restored.value("SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)") == f"{backup['timeline'] + 1:08X}"
    restored.stop("immediate")

    # The gap is named, and the backup is recoverable up to it.
    (primary.archive / (changes[1][0] + ".gz")).unlink()
    answer = modules.ok("wal_archive_info", **place)
    (gap,) = answer["timelines"][0]["gaps"]
    assert gap == {"after": changes[0][0], "before": changes[2][0], "missing": [changes[1][0]], "count": 1}
    (backup,) = answer["backups"]
    assert (backup["wal"], backup["recoverable_until"]) == ("present", changes[0][1])
    assert changes[1][0] in backup["problem"]
    assert all(changes[1][0] in problem for problem in answer["problems"])

    # Without the history it is unknown that timeline 2 continues.
    history = primary.archive / "00000002.history"
    content = history.read_bytes()
    history.unlink()
    answer = modules.ok("wal_archive_info", **place)
    assert (answer["missing_histories"], answer["backups"][0]["timeline"]) == (["00000002.history"], 1)
    history.write_bytes(content)

    # The segment that the backup itself needs.
    needed = next(name for name in one["required_wal"] if _wal.is_segment_name(name))
    (primary.archive / needed).unlink()
    (backup,) = modules.ok("wal_archive_info", **place)["backups"]
    assert (backup["wal"], backup["missing"], backup["recoverable_until"]) == ("incomplete", [needed], None)

    # Another cluster's segment after all others.
    foreign = bytearray((primary.archive / on_two).read_bytes())
    foreign[24:32] = b"\1" * 8
    (primary.archive / "000000020000000900000000").write_bytes(foreign)
    answer = modules.ok("wal_archive_info", **place)
    assert answer["foreign"] == ["000000020000000900000000"]
    assert answer["timelines"][1]["last"] == on_two
    for arguments, code in (
        ({"archive_directory": str(primary.archive / "no")}, "archive_missing"),
        ({**place, "wal_segment_size": 5}, "bad_number"),
        ({**place, "growth_window": "soon"}, "bad_duration"),
        ({}, "archive_missing"),
    ):
        assert modules.fails("wal_archive_info", **arguments)["code"] == code
