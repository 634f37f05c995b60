# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collector of findings: the order of refusals, and the effect of a look that fails."""

from __future__ import annotations

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.findings import Findings


def fails(code: str) -> int:
    raise BackupError("It cannot be read.", code=code)


def test_a_failed_look_is_a_refusal_and_the_next_one_is_made() -> None:
    findings = Findings()
    findings.refuse("not_empty", "It is not empty.", "Empty it.", path="/x")
    assert findings.collect(7, fails, "unreadable") == 7
    assert findings.collect(7, lambda number: number + 1, 1) == 2
    findings.refuse("overlap", "They overlap.")
    assert [one.code for one in findings.refusals] == ["not_empty", "unreadable", "overlap"]
    assert (findings.refusals[0].hint, findings.refusals[0].details) == ("Empty it.", {"path": "/x"})


def test_a_fault_of_the_program_is_no_refusal() -> None:
    with pytest.raises(KeyError):
        Findings().collect(None, dict.__getitem__, {}, "x")
