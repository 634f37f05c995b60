# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy beside production listens to nothing and loads nothing, unless it is asked for."""

from __future__ import annotations

import contextlib
import shutil
import typing as t

import pytest

from tests.harness import binaries
from tests.harness.sandbox import Sandbox, free_port
from tests.harness.servers import Server
from tests.integration.helpers.growing_primary import GrowingPrimary
from tests.integration.helpers.source import Source

QUIET: t.Final = {
    "listen_addresses": "",
    "shared_preload_libraries": "",
    "session_preload_libraries": "",
    "local_preload_libraries": "",
    "archive_mode": "off",
    "ssl": "off",
    "max_logical_replication_workers": "0",
    "synchronous_standby_names": "",
}


def shown(server: Server, *names: str) -> dict[str, str]:
    """Return the settings that a server runs with."""
    return {name: server.value(f"SHOW {name}") for name in names}


@pytest.mark.majors(14, 18)
def test_a_copy_is_quiet(sandbox: Sandbox, major: int) -> None:
    """In the files, by ALTER SYSTEM: what production loads and listens to is not in force; each can be asked for."""
    source = Source(sandbox, major, shared_preload_libraries="auth_delay", listen_addresses="*")
    source.server.sql("ALTER SYSTEM SET session_preload_libraries = 'auto_explain'")
    source.server.sql("ALTER SYSTEM SET work_mem = '77MB'")
    source.server.sql("SELECT pg_reload_conf()")
    source.backup()
    source.archived()
    with source.copy() as copy:
        assert shown(copy, *QUIET) == QUIET
        assert shown(copy, "work_mem") == {"work_mem": "77MB"}
        assert major < 17 or shown(copy, "event_triggers") == {"event_triggers": "off"}
    wanted = {"listen_addresses": "127.0.0.1", "shared_preload_libraries": "auth_delay"}
    with source.copy("loud", settings=wanted, source_settings=False) as copy:
        assert shown(copy, *QUIET) == {**QUIET, **wanted}
        assert shown(copy, "work_mem") == {"work_mem": "4MB"}


@pytest.mark.majors(14, 18)
def test_the_roles_own_sessions_on_a_copy(sandbox: Sandbox, primary: Server) -> None:
    """What the source's superuser set for roles and databases is not loaded by a copy, checks included."""
    library = sandbox.directory("library") / "evil.so"
    shutil.copy(binaries.prefix(primary.major) / "lib/auto_explain.so", library)
    library.chmod(0o755)
    world = GrowingPrimary(sandbox, primary)
    world.write(1, 2, 3)
    world.back_up("one")
    for what in ("ROLE postgres", "DATABASE postgres"):
        primary.sql(f"ALTER {what} SET session_preload_libraries = '{library}'")
    world.archive_all()
    library.unlink()
    copy = Server(primary.major, "restored", sandbox.directory("restored"), free_port())
    sandbox.servers.append(copy)
    checks = [{"query": "SELECT count(*) FROM numbers", "expected": 3}]
    host = world.host(
        "pg_recover",
        data_directory=str(copy.data),
        tablespace_directory=str(copy.directory / "spaces"),
        restore_as="copy",
        port=copy.port,
        settings={"unix_socket_directories": str(copy.socket_directory)},
        login_unix_socket=str(copy.socket_directory),
        checks=checks,
        sync=False,
    )
    world.run("restore", {"db": host}).ok()
    quiet = copy.connect(options="-c session_preload_libraries=")
    with contextlib.closing(quiet), quiet.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'pgfleet%'")
        assert cursor.fetchall() == [(0,)]
