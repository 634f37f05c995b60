# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One call of the module."""

from __future__ import annotations

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.run import Run

from tests.unit.helpers.restores import Case


def test_second_call_changes_nothing(case: Case) -> None:
    case.restore()
    place = case.data / "base/5/2600"
    place.write_bytes(b"the server has written")
    assert case.plan().is_done
    assert case.plan(backup_id=None, delta=True).is_done
    assert not case.plan(force=True, delta=True).is_done
    assert case.refusals(force=True) == ["not_empty", "tablespace_not_empty"]
    assert case.refusals(port=4711) == ["not_empty", "tablespace_not_empty"]
    result = case.restore(force=True, delta=True)
    assert (result["plan"]["copy_files"], result["plan"]["keep_files"]) == (1, 5)
    case.is_restored()


def test_copy_of_the_directory_does_not_count(case: Case) -> None:
    case.restore()
    record = (case.data / "pgfleet_restore.json").read_bytes()
    case.data.rename(case.folder / "elsewhere")
    case.data.mkdir(mode=0o700)
    for path in ("PG_VERSION", "global/pg_control", "pgfleet_restore.json"):
        (case.data / path).parent.mkdir(exist_ok=True)
        (case.data / path).write_bytes((case.folder / "elsewhere" / path).read_bytes())
    assert (case.data / "pgfleet_restore.json").read_bytes() == record
    assert not case.plan().is_done
    assert "not_empty" in case.refusals()


def test_detached(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the module calls it: predicted, done, already done, forced only by another task."""
    predicted = Run(case.params).predict()
    assert (predicted["changed"], predicted["restorable"]) == (True, True)
    assert not case.data.exists()
    result = Run({**case.params, "run_id": "one"}).step()
    assert (result["changed"], result["finished"]) == (True, True)
    case.is_restored()
    again = Run(case.params).step()
    assert (again["changed"], again["finished"], again["plan"]) == (False, True, result["plan"])
    assert Run(case.params).predict()["changed"] is False
    forced = {**case.params, "force": True, "delta": True}
    assert Run({**forced, "run_id": "one"}).step()["changed"] is False
    assert Run({**forced, "run_id": "two"}).step()["plan"]["keep_files"] == 6
    assert Run(forced).step()["changed"] is True
    with pytest.raises(BackupError) as caught:
        Run({**case.params, "port": 1}).step()
    assert (caught.value.code, caught.value.details["plan"]["refusals"][0]["code"]) == ("not_empty", "not_empty")
    refused = Run({**case.params, "port": 1}).predict()
    assert (refused["changed"], refused["restorable"]) == (False, False)
    with pytest.raises(BackupError) as caught:
        Run({**case.params, "data_directory": "x"})
    assert caught.value.code == "bad_path"
    monkeypatch.undo()
