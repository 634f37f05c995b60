# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Control groups, rules of sudo, and the units that lead to a data directory, as text."""

from __future__ import annotations

import pathlib

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import owner as _owner
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import service as _service
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import units as _units

DEBIAN = "/system.slice/system-postgresql.slice/postgresql@17-main.service"
COMMAND = "/usr/bin/systemctl stop postgresql@17-main"
RULES = """\
Matching Defaults entries for ansible on pg1:
    env_reset, mail_badpass, secure_path=/usr/bin\\:/bin

User ansible may run the following commands on pg1:
"""


@pytest.mark.parametrize(("groups", "units"), [
    (f"0::{DEBIAN}\n", ("postgresql@17-main.service", "", -1)),
    (f"12:memory:/x.service\n1:name=systemd:{DEBIAN}\n0::/\n", ("postgresql@17-main.service", "", -1)),
    ("0::/user.slice/user-1000.slice/session-3.scope\n", ("", "", -1)),
    ("0::/u.slice/user@101.service/app.slice/mine.service\n", ("user@101.service", "mine.service", 101)),
    ("0::/user.slice/user-101.slice/user@101.service/init.scope\n", ("user@101.service", "", 101)),
    ("0::/machine.slice/systemd-nspawn@c.service/payload/system.slice/pg.service\n", ("pg.service", "", -1)),
    ("0::/system.slice/patroni.service/sub\n", ("patroni.service", "", -1)),
    ("0::/\n", ("", "", -1)),
    ("", ("", "", -1)),
])  # fmt: skip
def test_units_in(groups: str, units: tuple[str, str, int]) -> None:
    assert _owner.units_in(groups) == units


@pytest.mark.parametrize(("rules", "free"), [
    ([f"(root) NOPASSWD: {COMMAND}"], True),
    (["(root) NOPASSWD: /usr/bin/id, " + COMMAND], True),
    (["(ALL : ALL) NOPASSWD: ALL"], True),
    (["(root) NOPASSWD: /usr/bin/systemctl"], True),
    (["(root) NOPASSWD: /usr/bin/systemctl stop postgresql@*"], True),
    (["(root) SETENV: NOPASSWD: ALL"], True),
    (["(postgres) NOPASSWD: ALL"], False),
    (["(ALL : ALL) ALL"], False),
    (["(ALL : ALL) ALL", "(postgres) NOPASSWD: ALL"], False),
    ([f"(root) NOPASSWD: {COMMAND}", "(ALL) ALL"], False),
    (["(ALL) ALL", f"(root) NOPASSWD: {COMMAND}"], True),
    ([f"(root) NOPASSWD: /usr/bin/id, PASSWD: {COMMAND}"], False),
    ([f"(ALL, !root) NOPASSWD: {COMMAND}"], False),
    ([f"(root) NOPASSWD: {COMMAND}.service"], False),
    ([], False),
])  # fmt: skip
def test_whether_sudo_asks_for_a_password(rules: list[str], free: bool) -> None:
    """The last rule that matches counts."""
    listed = RULES + "".join(f"    {rule}\n" for rule in rules)
    assert _service.without_password(listed, COMMAND) is free
    assert _service.without_password(listed.replace("env_reset", "!authenticate"), COMMAND) is (
        free or any("(ALL" in rule and "!root" not in rule for rule in rules)
    )


@pytest.mark.parametrize(("start", "environment", "place"), [
    ("/usr/pgsql-17/bin/postgres -D ${PGDATA}", "PGDATA=/var/lib/pgsql/17/data/ X=1", "/var/lib/pgsql/17/data/"),
    ("/usr/bin/postgres -D /srv/pg", "", "/srv/pg"),
    ("/usr/bin/postgres -D/srv/pg", "", "/srv/pg"),
    ("/usr/bin/postgres --data_directory=/srv/pg -c port=1", "", "/srv/pg"),
    ("/usr/bin/postgres -c data_directory=/srv/pg", "", "/srv/pg"),
    ("/usr/bin/pg_ctl start -D \"$PGDATA\"", "\"PGDATA=/srv/with blank\"", "/srv/with blank"),
    ("/usr/bin/postgres", "PGDATA=/srv/pg", "/srv/pg"),
    ("/usr/bin/postgres 'unbalanced", "", ""),
    ("/usr/bin/true", "", ""),
])  # fmt: skip
def test_the_directory_of_a_unit(start: str, environment: str, place: str) -> None:
    text = f"{{ path={start.split()[0]} ; argv[]={start} ; ignore_errors=no ; start_time=[n/a] ; pid=0 }}"
    unit = _units.Unit("x.service", True, "active", 1, "success", environment, text)
    assert _units.directory_of_unit(unit) == place


def test_the_directory_of_debians_unit(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the configuration; a cluster's name may contain a dash."""
    monkeypatch.setattr(_units, "DEBIAN_CONFIGURATION", str(tmp_path))
    (tmp_path / "17" / "a-b").mkdir(parents=True)
    (tmp_path / "17" / "a-b" / "postgresql.conf").write_text("data_directory = '/srv/a-b'\n")
    unit = _units.Unit("postgresql@17-a-b.service", True, "active", 1, "success", "", "")
    assert _units.directory_of_unit(unit) == "/srv/a-b"
    assert _units.directory_of_unit(unit._replace(name="postgresql@17-other.service")) == ""
