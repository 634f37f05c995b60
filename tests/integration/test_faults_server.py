# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Refusals and faults of a server: privileges, crashes, promotion, full_page_writes, pooling proxies."""

from __future__ import annotations

import os
import pathlib
import shutil
import typing as t

import pytest

from tests.harness.modules import Modules
from tests.harness.sandbox import Sandbox, archive_command, free_port
from tests.harness.servers import Server, wait_until
from tests.harness.user import own_file, popen
from tests.integration.helpers.leftovers import all_is_well
from tests.integration.helpers.steps import Steps, restores

BOTH: t.Final = pytest.mark.majors(15, 18)
PGBOUNCER: t.Final = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@pytest.fixture
def steps(sandbox: Sandbox, modules: Modules, primary: Server, repository: pathlib.Path) -> t.Iterator[Steps]:
    """The steps of a backup of the primary; nothing of it may remain at the end."""
    yield Steps(modules, primary)
    all_is_well(sandbox, repository, primary)


@pytest.fixture
def standby_steps(
    sandbox: Sandbox, standby_modules: Modules, standby: Server, primary: Server, repository: pathlib.Path
) -> t.Iterator[Steps]:
    """The steps of a backup of the standby; nothing of it may remain at the end."""
    yield Steps(standby_modules, standby)
    all_is_well(sandbox, repository, primary, standby)


def rights_missing(modules: Modules, **arguments: t.Any) -> dict[str, str]:
    """Return the hints of all problems by code."""
    info = modules.ok("server_info", **arguments)
    assert info["ready"] is not bool(info["problems"])
    return {one["code"]: one["hint"] for one in info["problems"]}


@BOTH
def test_rights_are_missing(sandbox: Sandbox, steps: Steps, primary: Server, repository: pathlib.Path) -> None:
    """Each missing privilege is named, its hint grants exactly that one, and all of them together are enough."""
    primary.sql("CREATE ROLE backup LOGIN")
    primary.sql("CREATE DATABASE other")
    steps.modules.common["login_user"] = "backup"
    expected = {
        f"no_privilege_{name}" for name in ("backup_start", "backup_stop", "pg_read_all_settings", "pg_monitor")
    }
    missing = rights_missing(steps.modules)
    assert set(missing) == expected
    result = steps.fails("backup_start")
    assert all(hint in result["msg"] for hint in missing.values())
    assert result["code"] == "no_privilege_backup_start"
    assert not os.listdir(repository)
    # Privileges on functions are granted in one database, roles in all.
    for code in ("no_privilege_backup_start", "no_privilege_backup_stop"):
        primary.sql(missing[code].partition(": ")[2], database="other")
    assert set(rights_missing(steps.modules)) == expected
    assert set(rights_missing(steps.modules, login_db="other")) == expected - {
        "no_privilege_backup_start",
        "no_privilege_backup_stop",
    }
    while missing:
        # pg_monitor, the last, holds pg_read_all_settings.
        code = min(missing, key=lambda one: (one == "no_privilege_pg_monitor", one))
        where, _colon, statement = missing[code].partition(": ")
        assert where == "As a superuser, in the database postgres"
        primary.sql(statement)
        left = rights_missing(steps.modules)
        assert set(left) == set(missing) - {code}
        missing = left
        if missing:
            assert steps.fails("backup_start")["code"] == next(iter(missing))
            assert not os.listdir(repository)
    steps.whole()
    ((code, hint),) = rights_missing(steps.modules, purpose="wal_switch").items()
    assert code == "no_privilege_switch_wal"
    primary.sql(hint.partition(": ")[2])
    assert not rights_missing(steps.modules, purpose="wal_switch")
    restores(sandbox, steps, primary)


@BOTH
def test_right_is_revoked_before_stop(steps: Steps, primary: Server, major: int) -> None:
    """The preflight cannot foresee it: the module reports PostgreSQL's own error with its SQLSTATE."""
    primary.sql("CREATE ROLE backup LOGIN")
    primary.sql("GRANT pg_monitor TO backup")
    primary.sql("GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean) TO backup")
    steps.modules.common["login_user"] = "backup"
    steps.start()
    steps.ok("backup_copy")
    primary.sql("REVOKE EXECUTE ON FUNCTION pg_backup_stop(boolean) FROM backup")
    result = steps.fails("backup_stop")
    assert "permission denied for function pg_backup_stop (SQLSTATE 42501)" in result["msg"]
    assert result["sqlstate"] == "42501"
    steps.void()


@BOTH
@pytest.mark.parametrize("how", ["crash", "fast"])
def test_server_goes_down(steps: Steps, primary: Server, how: str) -> None:
    """The copy stops at once; the server starts again without a trace of the backup; the next backup is good."""
    steps.start()
    with steps.copying() as copy:
        if how == "crash":
            primary.kill()
        else:
            primary.stop()
        result = steps.stops_soon(copy)
    assert result["code"] == "connection_lost"
    if how == "fast":
        assert "terminating connection due to administrator command" in result["msg"]
    assert not (primary.data / "backup_label").exists()
    primary.start()
    steps.void()
    steps.whole()


@BOTH
def test_standby_is_promoted(sandbox: Sandbox, primary: Server, repository: pathlib.Path) -> None:
    """Stop fails as PostgreSQL says, the backup is void, and the new primary can be backed up."""
    archive = sandbox.directory("own-archive")
    standby = sandbox.standby(primary, archive_command=archive_command(archive))
    steps = Steps(Modules(standby, repository=str(repository), cluster="main"), standby)
    steps.start()
    with steps.copying(64 << 20) as copy:
        standby.promote()
        assert copy.result()["finished"]
    result = steps.fails("backup_stop")
    assert result["sqlstate"] == "55000"
    assert "the standby was promoted during online backup" in result["msg"]
    steps.void()
    steps.whole()
    all_is_well(sandbox, repository, primary, standby)


@BOTH
@pytest.mark.parametrize("moment", ["start", "stop"])
def test_full_page_writes_are_off(
    sandbox: Sandbox, standby_steps: Steps, modules: Modules, standby: Server, primary: Server, moment: str
) -> None:
    """PostgreSQL refuses such a standby's backup, at start or at stop; following the hint helps."""

    def switch_off() -> None:
        primary.conf(full_page_writes=False).reload()
        wait_until(lambda: primary.value("SHOW full_page_writes") == "off", "full_page_writes is off")
        primary.sql("CHECKPOINT")
        standby.catch_up()

    if moment == "start":
        switch_off()
        problems = rights_missing(modules, purpose="wal_switch")
        assert "ALTER SYSTEM SET full_page_writes = on" in problems["full_page_writes_off"]
        result = standby_steps.fails("backup_start", fast=True)
        assert not standby_steps.work.exists()
    else:
        standby_steps.start()
        standby_steps.ok("backup_copy")
        switch_off()
        result = standby_steps.fails("backup_stop")
        standby_steps.void()
    assert result["sqlstate"] == "55000"
    assert (
        "was replayed " + ("since last restartpoint" if moment == "start" else "during online backup") in result["msg"]
    )
    primary.conf(full_page_writes=True).reload()
    wait_until(lambda: primary.value("SHOW full_page_writes") == "on", "full_page_writes is on")
    primary.sql("CHECKPOINT")
    standby.catch_up()
    standby_steps.start()
    standby_steps.finish(archiver=modules)
    restores(sandbox, standby_steps, primary)


@BOTH
@pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")
@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_pooling_proxy(sandbox: Sandbox, steps: Steps, primary: Server, repository: pathlib.Path, mode: str) -> None:
    """Detected before the start, in either pooling mode; nothing is written."""
    assert PGBOUNCER is not None
    directory = sandbox.directory("pgbouncer")
    port = free_port()
    settings = own_file(
        directory / "pgbouncer.ini",
        f"[databases]\npostgres = host={primary.socket_directory} port={primary.port} user=postgres\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        f"pool_mode = {mode}\n",
    )
    log = (directory / "log").open("wb")
    proxy = popen([PGBOUNCER, settings], stdout=log, stderr=log)
    try:
        steps.modules.common.update(login_host="127.0.0.1", login_port=port)
        del steps.modules.common["login_unix_socket"]
        info = wait_until(
            lambda: (answer := steps.modules.run("server_info")).get("failed") is None and answer,
            "the proxy answers",
        )
        assert info["pooling_proxy"]
        assert [one["code"] for one in info["problems"]] == ["pooling_proxy"]
        result = steps.fails("backup_start")
        assert result["code"] == "pooling_proxy"
        assert "login_host and login_port to the server itself" in result["msg"]
        assert not os.listdir(repository)
    finally:
        proxy.kill()
        proxy.wait()
        log.close()
