# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings by ALTER SYSTEM: equal values, values that wait for a restart, and refusals as a whole."""

from __future__ import annotations

import typing as t

import pytest

from tests.harness.modules import Modules, Result, run_module
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, wait_until

NAME = "server_settings"


@pytest.fixture
def server(sandbox: Sandbox, major: int) -> Server:
    """A server that archives nothing."""
    return sandbox.primary(major, archive=False)


@pytest.fixture
def settings(server: Server) -> t.Callable[..., Result]:
    """Run the module with these settings."""
    modules = Modules(server)

    def run(wanted: dict[str, t.Any] | None = None, fails: bool = False, **arguments: t.Any) -> Result:
        check = arguments.pop("check", False)
        return (modules.fails if fails else modules.ok)(NAME, settings=wanted or {}, check=check, **arguments)

    return run


def auto_conf(server: Server) -> str:
    """Return the lines of postgresql.auto.conf, without its comment."""
    lines = (server.data / "postgresql.auto.conf").read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("#"))


@pytest.mark.majors(14, 18)
def test_values_are_declared(server: Server, settings: t.Callable[..., Result]) -> None:
    """Check mode and diff predict; spelling and unit do not matter; a value pending a restart counts as set."""
    before = auto_conf(server)
    wanted = {
        "archive_mode": True,
        "max_connections": 60,
        "work_mem": "8MB",
        "archive_timeout": "5min",
        "log_line_prefix": "it's %m \\ \u00e9 ",
        "log_min_messages": "ERROR",
        "random_page_cost": "1.5",
        "fsync": "off",
        "shared_preload_libraries": "",
        "search_path": "one, two",
    }
    planned = run_module(NAME, {**Modules(server).arguments(NAME), "settings": wanted}, check=True, diff=True)
    assert planned["changed"]
    assert planned["pending_restart"] == ["archive_mode", "max_connections"]
    assert planned["diff"]["before"].count("\n") == planned["diff"]["after"].count("\n") == 8
    assert "max_connections = '50'\n" in planned["diff"]["before"]
    assert "archive_mode is not set\n" in planned["diff"]["before"]
    assert "archive_mode = 'on'\n" in planned["diff"]["after"]
    assert auto_conf(server) == before

    done = settings(wanted)
    assert done["changed"]
    assert {name: done[name] for name in ("configured", "pending_restart")} == {
        name: planned[name] for name in ("configured", "pending_restart")
    }
    assert done["running"]["archive_timeout"] == "5min"
    assert done["running"]["log_line_prefix"] == "it's %m \\ \u00e9 "
    assert (done["running"]["archive_mode"], done["configured"]["archive_mode"]) == ("off", "on")
    assert "fsync" not in auto_conf(server)
    # Two schemas, not one with a comma in its name.
    assert server.value("SHOW search_path") == "one, two"

    same = {
        "ARCHIVE_MODE": "On",
        "max_connections": "60",
        "work_mem": "8192kB",
        "archive_timeout": 300,
        "log_min_messages": "error",
        "random_page_cost": 1.5,
        "fsync": False,
        "search_path": ["one", "two"],
    }
    written = auto_conf(server)
    again = settings(same)
    assert not again["changed"]
    assert again["pending_restart"] == ["archive_mode", "max_connections"]
    assert auto_conf(server) == written

    server.restart()
    assert settings(wanted)["pending_restart"] == []
    back = settings(dict.fromkeys(wanted))
    assert back["changed"]
    assert back["pending_restart"] == ["archive_mode", "max_connections"]
    assert auto_conf(server) == before
    assert not settings(dict.fromkeys(wanted))["changed"]


@pytest.mark.majors(15, 18)
def test_refusals_change_nothing(server: Server, settings: t.Callable[..., Result]) -> None:
    """Unknown names, bad values and missing privileges, each after a good setting, in check mode and for real."""
    server.sql("CREATE ROLE weak LOGIN")
    server.sql("CREATE ROLE granted LOGIN")
    server.sql("GRANT ALTER SYSTEM ON PARAMETER work_mem TO granted")
    server.sql("GRANT EXECUTE ON FUNCTION pg_reload_conf() TO granted")
    before = auto_conf(server)
    good = {"archive_timeout": 300}
    for bad, code in (
        ({"no_such_parameter": 1}, "unknown_setting"),
        ({"basic_archive.archive_directory": "/tmp"}, "unknown_setting"),
        ({'x" = 1; --': 1}, "unknown_setting"),
        ({"block_size": 8192}, "fixed_setting"),
        ({"archive_mode": "sometimes"}, "bad_setting"),
        ({"work_mem": "8 parsecs"}, "bad_setting"),
        ({"max_connections": 10**9}, "bad_setting"),
        ({"max_connections": "8MB"}, "bad_setting"),
        ({"fsync": "perhaps"}, "bad_setting"),
        ({"archive_command": "a\nb"}, "bad_setting"),
        ({"archive_command": {"a": 1}}, "bad_setting"),
    ):
        for check in (True, False):
            assert settings({**good, **bad}, fails=True, check=check)["code"] == code, bad
    # A value that only the server can refuse reverts the earlier changes.
    refused = settings({**good, "work_mem": "8MB", "log_timezone": "Nowhere/Never"}, fails=True)
    assert refused["code"] == "setting_refused"
    assert "log_timezone" in refused["msg"]
    assert auto_conf(server) == before

    for check in (True, False):
        denied = settings({"work_mem": "9MB", **good}, fails=True, check=check, login_user="granted")
        assert "GRANT ALTER SYSTEM ON PARAMETER archive_timeout TO granted" in denied["msg"]
    assert auto_conf(server) == before
    assert settings({"work_mem": "9MB"}, login_user="granted")["changed"]
    assert not settings({"work_mem": "9216kB"}, login_user="granted")["changed"]
    assert settings({"work_mem": None}, login_user="postgres")["changed"]


@pytest.mark.majors(15, 18)
def test_parameters_of_a_library(sandbox: Sandbox, server: Server, settings: t.Callable[..., Result]) -> None:
    """They are known once the library is loaded; one that is not installed is reported."""
    name = "basic_archive.archive_directory"
    directory = sandbox.directory("a 100% \u00e9 wal")
    looked = settings(load=["basic_archive", "no_such_library"], names=[name, "archive_library"])
    assert looked["missing_libraries"] == ["no_such_library"]
    assert looked["configured"] == {name: "", "archive_library": ""}
    wanted = {"archive_library": "basic_archive", name: str(directory)}
    assert settings(wanted, load=["basic_archive"])["configured"] == wanted
    assert not settings(wanted, load=["basic_archive"])["changed"]
    assert server.value("SELECT setting FROM pg_file_settings WHERE name = %s", [name]) == str(directory)


@pytest.mark.majors(18)
def test_what_alter_system_cannot_do(server: Server, settings: t.Callable[..., Result]) -> None:
    """A parameter of the command line, and a server that forbids it."""
    server.stop()
    server.tool("pg_ctl", "-D", server.data, "-l", server.log_file, "-s", "-w", "-o", "-c max_connections=40", "start")
    assert settings({"max_connections": 60}, fails=True)["code"] == "overridden_setting"
    assert not settings({"max_connections": 40})["changed"]
    server.conf(allow_alter_system=False).reload()
    wait_until(lambda: server.value("SHOW allow_alter_system") == "off", "the server has read its configuration")
    for check in (True, False):
        assert settings({"work_mem": "7MB"}, fails=True, check=check)["code"] == "alter_system_off"
