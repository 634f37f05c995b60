# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration of the restored server."""

from __future__ import annotations

from tests.unit.helpers.restores import Case


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
