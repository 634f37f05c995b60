# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole backups by modules run as programs, with the oldest and the newest Python and as the server's user."""

from __future__ import annotations

import pathlib
import typing as t

import pytest

from tests.harness import binaries
from tests.harness.checks import data_checksum, restore_and_check
from tests.harness.modules import Modules, Result, run_module_as, target_pythons
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server
from tests.harness.user import ServerUser, me, server_user
from tests.integration.helpers.files import is_private
from tests.integration.helpers.leftovers import all_is_well
from tests.integration.helpers.steps import Steps

# Found when the tests run, because some interpreters are downloaded.
TARGETS: t.Final[dict[str, t.Callable[[], tuple[str, ServerUser]]]] = {
    "oldest": lambda: (target_pythons()[0], me()),
    "newest": lambda: (target_pythons()[-1], me()),
    "server_user": lambda: (binaries.server_python(), server_user()),
}


class Programs(Modules):
    """Modules run by ``python`` as ``user``, each in its own process."""

    def __init__(self, python: str, user: ServerUser, server: Server, **common: t.Any) -> None:
        super().__init__(server, **common)
        self._python, self._user = python, user

    def run(self, name: str, *, check: bool = False, **arguments: t.Any) -> Result:
        """Run the module and return the result, failed or not."""
        return run_module_as(
            name, self.arguments(name, **arguments), python=self._python, user=self._user, check=check
        )  # fmt: skip


@pytest.mark.oldest_core
@pytest.mark.parametrize("target", TARGETS)
def test_whole_backup(sandbox: Sandbox, primary: Server, repository: pathlib.Path, major: int, target: str) -> None:
    """Every module runs, the session outlives the programs, and the backup is restored."""
    python, user = TARGETS[target]()
    place = repository if user == server_user() else sandbox.directory("own")
    programs = Programs(python, user, primary, repository=str(place), cluster="main")
    expected = data_checksum(primary)
    assert programs.ok("server_info", repository=str(place), cluster="main")["ready"]
    given_up = Steps(programs, primary, "given-up")
    given_up.start()
    assert given_up.ok("backup_abort")["changed"]
    steps = Steps(programs, primary)
    assert steps.start()["state"] == "running"
    assert steps.start()["changed"] is False
    programs.ok("wal_switch", lsn="0/1")
    steps.finish()
    (cluster,) = programs.ok("backup_info", max_age="1 hour")["clusters"]
    assert (cluster["newest"], cluster["fresh"]) == ("one", True)
    assert {path.stat().st_uid for path in steps.published.rglob("*")} == {user.uid}
    is_private(steps.published)
    all_is_well(sandbox, place, primary)

    def is_the_same(server: Server) -> None:
        assert data_checksum(server) == expected

    restore_and_check(sandbox, steps.published, primary.archive, major, is_the_same)
