# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan is data: nothing changes it, and a plan with refusals is not carried out."""

from __future__ import annotations

import copy
import dataclasses
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.aside import Aside, prepare
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.plan import Plan
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.restore import Restore

from tests.unit.helpers.restores import Case


def parts(plan: Plan) -> dict[str, t.Any]:
    """Return a copy of all parts of a plan."""
    found = {one.name: getattr(plan, one.name) for one in dataclasses.fields(plan)}
    choice = found.pop("choice")._asdict()
    backup, record = choice.pop("backup"), choice.pop("record")
    layout = vars(found.pop("layout"))
    return {**copy.deepcopy({**found, "choice": choice, "layout": layout, "backup": backup.id}), "record": record}


@pytest.mark.parametrize("options", [{}, {"delta": True}, {"replace": True}, {"delta": True, "restore_as": "copy"}])
def test_a_restore_leaves_the_plan_as_it_is(case: Case, options: dict[str, t.Any]) -> None:
    if options:
        case.old_cluster()
    plan = case.plan(**options)
    before = parts(plan)
    case.carry_out(plan)
    assert case.startable
    assert parts(plan) == before


@pytest.mark.parametrize("name", [one.name for one in dataclasses.fields(Plan)])
def test_no_part_can_be_set(case: Case, name: str) -> None:
    plan = case.plan()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(plan, name, None)


def test_a_refused_plan_is_not_carried_out(case: Case) -> None:
    case.old_cluster()
    plan = case.plan()
    assert plan.refusals
    with pytest.raises(ValueError):
        prepare(plan)
    with pytest.raises(ValueError):
        Restore(plan, Aside(), lambda: None, lambda _bytes, _files: None)
    assert not (case.data / "pgfleet_restore").exists()
