# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What server_state refuses."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.modules import server_state


class Ended(Exception):
    """The end of the module."""


@pytest.mark.parametrize("check", [False, True])
def test_a_server_that_does_not_run_is_not_restarted(
    check: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster manager may have stopped it: an old primary that comes back accepts writes that are lost."""
    said: dict[str, t.Any] = {}

    class MadeUpModule:
        check_mode = check
        no_log_values: t.ClassVar[set[str]] = set()
        params: t.ClassVar[dict[str, t.Any]] = {
            "data_directory": str(tmp_path), "state": "restarted", "mode": "fast", "timeout": "5 minutes",
            "bin_directory": None, "config_file": None, "log_file": None, "unit": None,
        }  # fmt: skip

        def __init__(self, **_spec: t.Any) -> None:
            self.params = dict(type(self).params)

        def fail_json(self, **result: t.Any) -> t.NoReturn:
            said.update(result)
            raise Ended

    monkeypatch.setattr(server_state, "AnsibleModule", MadeUpModule)
    with pytest.raises(Ended):
        server_state.main()
    assert said["code"] == "server_not_running"
    assert str(tmp_path) in said["msg"]
