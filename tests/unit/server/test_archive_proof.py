# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A failed proof, and a failed wal_archiving: no other server is switched, and what was changed is reported."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import archive_proof as _archive_proof
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.archiving import Archiving, Found, Wanted
from ansible_collections.pgfleet.basebackup.plugins.modules import wal_archiving as _wal_archiving

SEGMENT: t.Final = "000000010000000000000007"
ARCHIVING: t.Final = {"failing": False, "last_archived_wal": None}


def server(role: str = "primary", identifier: str = "1") -> dict[str, t.Any]:
    return {"address": f"{role}:5432", "role": role, "system_identifier": identifier, "archiving": ARCHIVING}


class Upstream:
    """A connection, which nothing is asked over."""

    def __init__(self, login: t.Mapping[str, t.Any]) -> None:
        self.login = login

    def __enter__(self) -> Upstream:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def refuse(*_: t.Any, **__: t.Any) -> t.NoReturn:
    raise BackupError("The server closed the connection.", code="connection_lost")


def prove(info: t.Mapping[str, t.Any]) -> BackupError:
    """Return how the proof of a server fails."""
    connection = t.cast(t.Any, None)
    with pytest.raises(BackupError) as caught:
        _archive_proof.prove({}, connection, info, "", force=True, timeout=1, means="a script")
    return caught.value


@pytest.fixture
def switched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the addresses of the servers that are switched."""
    addresses: list[str] = []

    def switch(_connection: object, info: t.Mapping[str, t.Any], *_: object) -> dict[str, str]:
        addresses.append(info["address"])
        return {"segment": SEGMENT}

    monkeypatch.setattr(_archive_proof, "switch_wal", switch)
    monkeypatch.setattr(_archive_proof, "wait_archived", refuse)
    return addresses


def test_a_failure_after_the_switch_has_changed_something(switched: list[str]) -> None:
    failure = prove(server())
    assert (failure.code, failure.details) == ("connection_lost", {"changed": True})
    assert switched == ["primary:5432"]


@pytest.mark.parametrize(("identifier", "code"), [("1", "connection_lost"), ("2", "other_cluster")])
def test_the_server_that_answers_is_the_one_switched(
    switched: list[str], monkeypatch: pytest.MonkeyPatch, identifier: str, code: str
) -> None:
    """Between finding the primary and switching, its address may have come to lead to another server."""
    found = {**server(), "address": "before", "login_host": "before", "login_port": 5432}
    monkeypatch.setattr(_archive_proof, "find_primary", lambda *_: found)
    monkeypatch.setattr(_archive_proof, "Connection", Upstream)
    monkeypatch.setattr(_archive_proof, "server_info", lambda _: server(identifier=identifier))
    failure = prove(server("standby"))
    assert failure.code == code
    assert switched == (["primary:5432"] if identifier == "1" else [])
    assert failure.details.get("changed", False) == (identifier == "1")


class Parameters:
    """The server's parameters, one of which is to be changed; planning that fails, or doing it."""

    def __init__(self, failure: Exception, planning: bool) -> None:
        self.failure = failure
        self.planning = planning

    def plan(self, _settings: object) -> list[str]:
        if self.planning:
            raise self.failure
        return ["archive_mode"]

    def require_rights(self, *_: object, **__: object) -> None:
        pass

    def pending_restart(self, *_: object) -> list[str]:
        return []

    def apply(self, _changes: object) -> None:
        raise self.failure


@pytest.mark.parametrize("planning", [False, True])
@pytest.mark.parametrize("code", ["query_failed", "os_error"])
def test_a_failure_of_the_module(monkeypatch: pytest.MonkeyPatch, code: str, planning: bool) -> None:
    """It says whether the module began to change something, not only planned it."""
    failure = BackupError("The role may not.", code=code)
    full = OSError(28, "No space left on device", "/srv/backups")
    run = object.__new__(_wal_archiving.Run)
    run.params = {"restart": "manual", "timeout": 1}
    run.check_mode = False
    run.touched = False
    run.parameters = t.cast(t.Any, Parameters(full if code == "os_error" else failure, planning))
    run.info = server()
    found = Found(18, "18.1", "primary", "/data", {"archive_command": "cp %p /wal/%f"}, "on", True)
    run.archiving = Archiving(Wanted("/srv/backups/main", "/srv/backups/main/wal", "/home/.pgfleet"), found)
    monkeypatch.setattr(_wal_archiving, "as_lines", lambda *_, **__: "")
    with pytest.raises(BackupError) as caught:
        run.result()
    assert (caught.value.code, caught.value.details["changed"]) == (code, not planning)
    if code == "os_error":
        assert (caught.value.msg, caught.value.details["errno"]) == ("/srv/backups: No space left on device", 28)
