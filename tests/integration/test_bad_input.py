# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every module refuses bad input, with a reason, before it touches anything."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import connection as _connection

from tests.harness import binaries
from tests.harness.modules import Modules, run_module_as
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server
from tests.harness.user import me, server_user
from tests.integration.helpers.files import listing
from tests.integration.helpers.leftovers import all_is_well
from tests.integration.helpers.steps import Steps

# The arguments, in addition to the common ones, with which each module reaches its checks.
WITH_ID: t.Final[dict[str, dict[str, t.Any]]] = {
    "backup_copy": {},
    "backup_stop": {},
    "backup_publish": {"proof": {}},
    "backup_abort": {},
}
WITH_REPOSITORY: t.Final = {**WITH_ID, "backup_start": {}, "backup_info": {}}
WITH_LOGIN: t.Final[dict[str, dict[str, t.Any]]] = {
    "server_info": {},
    "backup_start": {},
    "wal_switch": {"lsn": "0/1"},
    "wal_archived": {"required_wal": ["000000010000000000000001"], "timeout": 0},
}
BAD_NAMES: t.Final = ("", ".", "..", ".hidden", "a/b", "../a", "a b", "a\n", "ä", "-a", "a" * 101, "*")


class Case(t.NamedTuple):
    """Arguments that ``module`` must refuse with ``code`` and with ``said`` in its message."""

    module: str
    arguments: dict[str, t.Any]
    code: str
    said: str


def bad_places(sandbox: Sandbox, primary: Server) -> t.Iterator[Case]:
    """Repositories that are not valid."""
    public = sandbox.directory("public", 0o777)
    file = sandbox.root / "file"
    file.write_text("")
    for name, more in WITH_REPOSITORY.items():
        for place, code, said in (
            (sandbox.root / "unknown", "repository_missing", "does not exist"),
            (file, "repository_missing", "not a directory"),
            (public, "unsafe_directory", "mode 0777"),
            (pathlib.Path("relative", "path"), "repository_relative", "not an absolute path"),
        ):
            yield Case(name, {**more, "repository": str(place)}, code, said)
    tablespace = primary.value("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'extra'")
    alias = sandbox.root / "alias"
    alias.symlink_to(primary.data)
    for place in (primary.data, primary.data / "base", pathlib.Path(tablespace), alias / "base"):
        yield Case("backup_start", {"repository": str(place)}, "repository_inside_cluster", "part of the database")


def bad_names() -> t.Iterator[Case]:
    """Names that are not plain file names."""
    for bad in BAD_NAMES:
        for name, more in WITH_REPOSITORY.items():
            # Without a name backup_info lists all clusters.
            if bad or name != "backup_info":
                yield Case(name, {**more, "cluster": bad}, "bad_name", "plain file name")
        for name, more in WITH_ID.items():
            yield Case(name, {**more, "backup_id": bad}, "bad_name", "plain file name")
        if bad:
            yield Case("backup_start", {"backup_id": bad}, "bad_name", "plain file name")


def bad_values(primary: Server) -> t.Iterator[Case]:
    """Impossible labels, numbers, durations, positions and names of WAL files."""
    for label in ("two\nlines", "re\rturn", "tab\t", "é" * 513, "x" * 1025, "\u2028", "\x7f"):
        yield Case("backup_start", {"label": label}, "bad_label_text", "label")
    for number in ("session_timeout", "session_idle_timeout", "takeover_after"):
        for value in (0, -1, "soon"):
            yield Case("backup_start", {number: value}, "bad_duration", number)
    yield Case("backup_start", {"connect_params": {"client_encoding": "UTF8"}}, "bad_connect_params", "client_encoding")
    for duration in ("soon", "1 fortnight", "-1h", "1h 5m"):
        yield Case("backup_start", {"max_age": duration}, "bad_duration", duration)
        yield Case("backup_info", {"max_age": duration}, "bad_duration", duration)
    for name in ("backup_copy", "backup_stop"):
        for jobs in (0, -2):
            yield Case(name, {"jobs": jobs}, "bad_number", "jobs")
    yield Case("backup_abort", {"timeout": 0}, "bad_duration", "timeout")
    for lsn in ("", "0", "0/", "x/1", "0/100000000", "0/1 ", "0/-1"):
        yield Case("wal_switch", {"lsn": lsn}, "bad_lsn", "lsn")
    yield Case("wal_switch", {"lsn": "FFFFFFFF/0"}, "lsn_in_the_future", "has written WAL up to")
    for wal in ([], ["x"], ["../000000010000000000000001"], ["000000010000000000000FFF"], ["1.history"],
                ["000000010000000000000001.partial"], ["000000010000000000000001", ""]):  # fmt: skip
        for more in ({}, {"archive_directory": "/nowhere", "system_identifier": "1"}):
            yield Case("wal_archived", {"required_wal": wal, "timeout": 0, **more}, "bad_wal_name", "WAL file")
    good = {"required_wal": ["000000010000000000000001"], "timeout": 0}
    in_directory = {**good, "archive_directory": "/nowhere", "system_identifier": "1"}
    for size in (0, -1, 3, 1 << 19, 1 << 31, (1 << 24) + 1):
        yield Case("wal_archived", {**in_directory, "wal_segment_size": size}, "bad_number", str(size))
    yield Case("wal_archived", {**in_directory, "system_identifier": "main"}, "bad_number", "system_identifier")
    yield Case("wal_archived", {**good, "interval": 0}, "bad_duration", "interval")
    for name, more in (("wal_archived", good), ("wal_switch", {"lsn": "0/1"})):
        yield Case(name, {**more, "system_identifier": "1"}, "other_cluster", primary.system_identifier)


def nobody_there(primary: Server) -> t.Iterator[Case]:
    """Servers, databases, roles and backups that do not exist."""
    for name, more in WITH_LOGIN.items():
        for login, said in (
            ({"login_port": 1}, "Cannot connect"), ({"login_db": "nowhere"}, "nowhere"),
            ({"login_user": "nobody"}, "nobody"), ({"login_unix_socket": "/nowhere"}, "Cannot connect"),
        ):  # fmt: skip
            yield Case(name, {**more, **login}, "connection_failed", said)
    for name, more in WITH_ID.items():
        if name != "backup_abort":
            yield Case(name, {**more, "backup_id": "unknown"}, "unknown_backup", "unknown")


def test_refused(sandbox: Sandbox, primary: Server, repository: pathlib.Path) -> None:
    """Each case fails with its code and a message that names the cause, in check mode too, and leaves no trace."""
    modules = Modules(primary, repository=str(repository), cluster="main", backup_id="one")
    cases = [*bad_places(sandbox, primary), *bad_names(), *bad_values(primary), *nobody_there(primary)]
    places = [repository, sandbox.root / "public", primary.directory / "tablespaces"]
    before, entries = [listing(place) for place in places], {path.name for path in primary.data.iterdir()}
    wrong = []
    for case in cases:
        # In check mode a missing backup may be one that an earlier step would have made.
        for check in (False, True) if case.code != "unknown_backup" else (False,):
            result = modules.run(case.module, check=check, **case.arguments)
            if not result.get("failed") or result.get("code") != case.code or case.said not in result["msg"]:
                wrong.append((case, check, {key: result.get(key) for key in ("failed", "code", "msg")}))
    assert not wrong, "\n".join(map(str, wrong))
    assert [listing(place) for place in places] == before
    assert {path.name for path in primary.data.iterdir()} == entries
    assert len(cases) > 200
    all_is_well(sandbox, repository, primary)


def test_repository_problems_are_reported_early(sandbox: Sandbox, primary: Server, repository: pathlib.Path) -> None:
    """server_info reports what backup_start would refuse as problems with hints, and does not fail."""
    modules = Modules(primary)
    for place, code, hint in (
        (sandbox.root / "unknown", "repository_missing", "install -d -m 0700"),
        (sandbox.directory("public", 0o777), "unsafe_directory", "chmod go-w"),
        (primary.data, "repository_inside_cluster", "outside"),
    ):
        told = modules.ok("server_info", repository=str(place), cluster="main")
        assert (told["ready"], [one["code"] for one in told["problems"]]) == (False, [code])
        assert hint in told["problems"][0]["hint"]
        started = Modules(primary, repository=str(place), cluster="main").fails("backup_start")
        assert started["code"] == code
    assert modules.ok("server_info", repository=str(repository), cluster="main")["ready"]
    assert not list(repository.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second account")
def test_repository_of_another_user(sandbox: Sandbox, primary: Server, repository: pathlib.Path) -> None:
    """A repository that the task's user cannot read or write is refused with its name and the user id."""
    repository.chmod(0o500)
    python = binaries.server_python()
    for name, more in WITH_REPOSITORY.items():
        if name == "backup_info":
            continue
        arguments = Modules(primary, repository=str(repository), cluster="main", backup_id="one").arguments(
            name, **more
        )
        refused = run_module_as(name, arguments, python=python)
        assert (refused["failed"], refused["code"]) == (True, "repository_not_writable"), refused
        assert f"id {server_user().uid}" in refused["msg"]
    arguments = {"repository": str(repository)}
    assert run_module_as("backup_info", arguments, python=python)["clusters"] == []
    repository.chmod(0o300)
    assert run_module_as("backup_info", arguments, python=python)["code"] == "repository_not_writable"
    repository.chmod(0o700)
    assert not list(repository.iterdir())


def test_psycopg2_is_missing(sandbox: Sandbox, primary: Server, repository: pathlib.Path) -> None:
    """The message names the interpreter that lacks it; modules that need no server work without it."""

    def lacks(python: str) -> bool:
        return subprocess.run([python, "-c", "import psycopg2"], stderr=subprocess.DEVNULL, check=False).returncode != 0

    bare = next((python for python in reversed(binaries.interpreters().values()) if lacks(python)), None)
    assert bare, "every interpreter here has psycopg2"
    modules = Modules(primary, repository=str(repository), cluster="main")
    for name, more in WITH_LOGIN.items():
        refused = run_module_as(name, modules.arguments(name, **more), python=bare, user=me())
        assert (refused["failed"], refused["code"]) == (True, "psycopg2_missing"), refused
        assert "psycopg2" in refused["msg"]
        assert bare in refused["hint"]
    info = run_module_as("backup_info", {"repository": str(repository)}, python=bare, user=me())
    assert info["clusters"] == []
    assert not list(repository.iterdir())


@pytest.mark.parametrize("oldest, newest", [(140000, 159999), (190000, 199999)], ids=["newer", "older"])
def test_unsupported_version(
    primary: Server,
    repository: pathlib.Path,
    modules: Modules,
    monkeypatch: pytest.MonkeyPatch,
    oldest: int,
    newest: int,
) -> None:
    """Every module that queries a server refuses one of an unsupported version."""
    monkeypatch.setattr(_connection, "OLDEST_VERSION", oldest)
    monkeypatch.setattr(_connection, "NEWEST_VERSION", newest)
    for name, more in WITH_LOGIN.items():
        refused = modules.fails(name, **more)
        assert (refused["code"], "PostgreSQL 18" in refused["msg"]) == ("unsupported_version", True), refused
    assert not list(repository.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a mount namespace")
def test_data_directory_of_another_server(sandbox: Sandbox, repository: pathlib.Path, major: int) -> None:
    """A login to another host: the server's directory does not exist here, or belongs to another server."""
    here, elsewhere = sandbox.primary(major, name="here"), sandbox.primary(major, name="elsewhere")
    python = sandbox.root / "python"
    for source, code in (
        (sandbox.directory("empty"), "data_directory_not_here"),
        (here.data, "data_directory_of_another_server"),
    ):
        # The module sees another directory under this path than the server does.
        mount = f"mount --bind {source} {elsewhere.data} && exec {binaries.with_psycopg2(sys.executable)}"
        python.write_text(f'#!/bin/sh\nexec unshare --mount sh -c \'{mount} "$@"\' sh "$@"\n')
        python.chmod(0o755)
        modules = Modules(elsewhere, repository=str(repository), cluster="main")
        for name in ("backup_start", "server_info"):
            result = run_module_as(name, modules.arguments(name), python=str(python), user=me())
            told = result if name == "backup_start" else result["problems"][0]
            assert (told["code"], str(elsewhere.data) in told["msg"]) == (code, True), result
    assert not list(repository.iterdir())
    all_is_well(sandbox, repository, here, elsewhere)


def test_repository_of_another_cluster(
    sandbox: Sandbox, primary: Server, repository: pathlib.Path, modules: Modules
) -> None:
    """A cluster's folder accepts backups of one system identifier only."""
    Steps(modules, primary).whole()
    other = sandbox.primary(primary.major, name="other")
    strangers = Modules(other, repository=str(repository), cluster="main")
    before = listing(repository)
    for check in (True, False):
        refused = strangers.fails("backup_start", check=check)
        assert refused["code"] == "other_cluster"
        assert primary.system_identifier in refused["msg"]
        assert other.system_identifier in refused["msg"]
    assert strangers.ok("server_info")["problems"][0]["code"] == "other_cluster"
    assert listing(repository) == before
    all_is_well(sandbox, repository, primary, other)
