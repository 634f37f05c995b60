# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role pg_backup decides and reports, given results of its modules."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
import yaml
from ansible_collections.pgfleet.basebackup.plugins.plugin_utils._pg_backup import BackupRun

PROBLEM: t.Final = {"code": "repository", "msg": "It does not exist.", "hint": "Create it."}
PRIMARY: t.Final = {
    "delegate": "a", "login_host": "db1", "login_port": 6000, "login_unix_socket": "", "name": "a", "problems": [],
}  # fmt: skip
UNFINISHED: t.Final = {"backup_id": "b0", "state": "running", "owner": "me run 1", "since": "2026-01-01T00:00:00Z",
                       "percent": 50, "silent_seconds": 3}  # fmt: skip


def server(role: str = "primary", **more: t.Any) -> dict[str, t.Any]:
    return {
        "role": role, "address": "db:5432", "version": "18.3", "data_directory": "/data", "size": 40 << 20,
        "tablespaces": [{"name": "extra"}], "repository_free_bytes": None, "archiving": {"mode": "on"},
        "problems": [], **more,
    }  # fmt: skip


def entry(**more: t.Any) -> dict[str, t.Any]:
    """Return backup_info's entry for the cluster."""
    fresh = {"fresh": True, "newest": "b9", "newest_age_seconds": 5400.0, "unfinished": []}
    return {"clusters": [{**fresh, **more}]}


def started(state: str = "running", **more: t.Any) -> dict[str, t.Any]:
    return {"backup_id": "b1", "state": state, "skipped_busy": False, "wal": "archive", "repository": "/srv",
            "directory": "/srv/main/in_progress/b1", "msg": "Started.", **more}  # fmt: skip


FACTS: t.Final[dict[str, t.Any]] = {
    "host": "db", "repository": "/srv", "cluster": "main", "owner": "me run 2", "force": False,
    "max_age": "20 hours", "wal": "archive", "concurrent": "skip", "takeover_after": 30, "external_archive": False,
    "login_host": "", "login_port": 5432, "login_unix_socket": "", "login_user": "backup", "server": server(),
    "catalogue": {},
    "primary_named": "", "primary_is_host": False, "primary": {}, "primary_answer": {},
    "start": {}, "stop": {}, "switch": {}, "publish": {}, "abort": {},
    "failed_task": "", "failed_result": {},
}  # fmt: skip


def decide(**more: t.Any) -> dict[str, t.Any]:
    """Return the decision for a host ``db``; the defaults are the state at the start of the role."""
    return BackupRun({**FACTS, **more}).answer()


@pytest.mark.parametrize(
    "catalogue, force, due",
    [
        (entry(), False, False),
        (entry(), True, True),
        (entry(fresh=False), False, True),
        ({"clusters": []}, False, True),
        ({"skipped": True}, False, True),
    ],
)
def test_due(catalogue: dict[str, t.Any], force: bool, due: bool) -> None:
    assert decide(catalogue=catalogue, force=force)["due"] is due


def test_result_without_a_backup_to_take() -> None:
    msg = "The backup b9 is 1.5 hours old, younger than 20 hours."
    assert decide(catalogue=entry())["result"] == {"changed": False, "backup_id": "b9", "directory": "", "msg": msg}
    assert decide(catalogue=entry(fresh=False, newest=None))["result"]["backup_id"] == ""


@pytest.mark.parametrize("wal, role, needs", [("archive", "standby", True), ("archive", "primary", False),
                                              ("include", "standby", False), ("none", "standby", False)])  # fmt: skip
def test_needs_the_primary(wal: str, role: str, needs: bool) -> None:
    assert decide(wal=wal, server=server(role))["needs_primary"] is needs


@pytest.mark.parametrize("wal, state, role, waits, switches", [
    ("archive", "running", "standby", True, True),
    ("archive", "stopped", "primary", True, False),
    ("archive", "complete", "standby", False, False),
    ("include", "running", "standby", False, False),
])  # fmt: skip
def test_needs_the_archive_and_the_switch(wal: str, state: str, role: str, waits: bool, switches: bool) -> None:
    """The backup's own wal mode counts; a complete backup is already proven."""
    answer = decide(start=started(state, wal=wal), server=server(role))
    assert (answer["needs_archive"], answer["needs_switch"]) == (waits, switches)


def test_in_hand() -> None:
    assert decide()["in_hand"] is False
    assert decide(start=started())["in_hand"] is True
    assert decide(start=started(skipped_busy=True))["in_hand"] is False
    assert decide(start={"failed": True, "msg": "Refused."})["in_hand"] is False


def test_archiver() -> None:
    """The primary's archiver for a standby that does not archive itself; otherwise the host's own."""
    own = {"delegate": "db", "login_host": "", "login_port": 5432, "login_unix_socket": ""}
    theirs = {name: PRIMARY[name] for name in own}
    assert decide()["archiver"] == own
    assert decide(server=server("standby"), primary=PRIMARY)["archiver"] == theirs
    always = server("standby", archiving={"mode": "always"})
    assert decide(server=always, primary=PRIMARY)["archiver"] == own
    assert decide(server=server("standby"), primary=PRIMARY, external_archive=True)["archiver"] == own


def test_paths_are_those_of_the_modules() -> None:
    """The variable may begin with ``~`` or lead through a link, which the module has resolved on the host."""
    begun = started(repository="/home/me/backups", directory="/home/me/backups/main/in_progress/b1")
    answer = decide(repository="~/backups", start=begun)
    handle = {"repository": "/home/me/backups", "cluster": "main", "owner": "me run 2", "backup_id": "b1"}
    assert answer["handle"] == {**handle, "directory": "/home/me/backups/main/in_progress/b1"}
    assert answer["result"] == {"changed": False, "backup_id": "b1", "directory": "", "msg": "Started."}
    place = "/home/me/backups/main/backups/b1"
    done = decide(repository="~/backups", start=begun, publish={"directory": place, "msg": "Published."})
    assert done["handle"] == {**handle, "directory": place}
    assert done["result"] == {"changed": True, "backup_id": "b1", "directory": place, "msg": "Published."}
    busy = started(skipped_busy=True)
    del busy["directory"]
    assert decide(start=busy)["handle"]["directory"] == ""


def test_plan_of_a_primary() -> None:
    answer = decide(catalogue=entry(fresh=False))
    assert answer["plan"] == [
        "db: a base backup of the primary at db:5432 (PostgreSQL 18.3) would be taken.",
        "From: /data; tablespaces: extra",
        "Size: 40.0 MiB; free: unknown",
        "To: /srv/main",
        "WAL: switched here",
        "Unfinished: none",
        "What would stop it: nothing",
    ]


def test_plan_of_a_standby_with_problems() -> None:
    """The primary's problems count; unfinished backups are described; failed ones do not matter."""
    catalogue = entry(fresh=False, unfinished=[UNFINISHED, {**UNFINISHED, "backup_id": "old", "state": "failed"}])
    answer = decide(server=server("standby", problems=[PROBLEM]), catalogue=catalogue,
                    primary={**PRIMARY, "name": "", "problems": [{**PROBLEM, "code": "not_primary"}]})  # fmt: skip
    assert answer["plan"][0].endswith("cannot be taken.")
    assert answer["plan"][4:7] == [
        "WAL: switched on the primary (not found)",
        "Unfinished: b0",
        "What would stop it: repository, not_primary",
    ]
    assert answer["plan"][7].startswith("me run 1 has been working on the backup b0 since 2026-01-01T00:00:00Z")
    assert "(state running, 50 % copied, last active 3 s ago)" in answer["plan"][7]
    assert answer["plan"][8:] == [
        "repository: It does not exist. Create it.",
        "not_primary: It does not exist. Create it.",
    ]


@pytest.mark.parametrize(
    "wal, text", [("include", "included in the backup"), ("none", "left to you, nothing is proven")]
)
def test_plan_without_the_archive(wal: str, text: str) -> None:
    answer = decide(wal=wal, server=server("standby"), primary={**PRIMARY, "problems": [PROBLEM]})
    assert f"WAL: {text}" in answer["plan"]
    assert answer["stoppers"] == []


def test_refusal() -> None:
    """A primary that cannot be used is refused, but a backup already begun is not given up for it."""
    wrong = {**PRIMARY, "problems": [PROBLEM]}
    standby = server("standby")
    assert "It does not exist. Create it." in decide(server=standby, primary=wrong)["refusal"]
    assert decide(server=standby, primary=wrong, catalogue=entry(unfinished=[UNFINISHED]))["refusal"] == ""
    assert decide(server=standby, primary=PRIMARY)["refusal"] == ""
    assert decide(primary=wrong)["refusal"] == ""


FAILED: t.Final = {"failed_task": "Copy the files", "failed_result": {"msg": "The disk is full."}}
STOP: t.Final = {"stop_lsn": "0/3000000"}
PUBLISHED: t.Final = {"directory": "/srv/main/backups/b1", "msg": "y"}


@pytest.mark.parametrize("start, stop, gives_up", [
    ({}, {}, False),
    (started(), {}, True),
    (started("copied"), {"failed": True}, True),
    (started(), STOP, False),
    (started("stopped"), {}, False),
    (started(skipped_busy=True), {}, False),
])  # fmt: skip
def test_gives_up(start: dict[str, t.Any], stop: dict[str, t.Any], gives_up: bool) -> None:
    """The role gives up only a backup that is void without its session: a stopped one waits for the next run."""
    assert decide(start=start, stop=stop, **FAILED)["gives_up"] is gives_up


@pytest.mark.parametrize("more, outcome", [
    ({}, ""),
    ({"start": started(), "abort": {"msg": "The backup b1 was given up."}}, " The backup b1 was given up."),
    ({"start": started(), "stop": STOP}, " It is stopped and kept; the next run continues it."),
    ({"start": started("stopped")}, " It is stopped and kept; the next run continues it."),
    ({"start": started(), "stop": STOP, "publish": PUBLISHED}, " The backup is published."),
    ({"start": started("stopped"), "failed_result": {"msg": "The disk is full.", "code": "void"}}, ""),
])  # fmt: skip
def test_failure(more: dict[str, t.Any], outcome: str) -> None:
    result = decide(**{**FAILED, **more})["failure"]
    backup = "the backup b1" if "start" in more else "the backup"
    assert result["msg"] == f'db: {backup} of the cluster main failed at "Copy the files": The disk is full.{outcome}'
    assert result["changed"] is ("publish" in more)
    assert result["directory"] == ("/srv/main/backups/b1" if "publish" in more else "")


def test_failure_of_the_handler() -> None:
    """ansible-core 2.18 does not report it to a rescue, later versions do."""
    switch = {"failed": True, "msg": "permission denied for function pg_switch_wal"}
    text = decide(start=started(), stop=STOP, switch=switch)["failure"]["msg"]
    assert 'failed at "Switch WAL on the primary": permission denied for function pg_switch_wal It is' in text


def test_facts_of_the_role() -> None:
    """The role passes exactly the facts that the code reads."""
    path = pathlib.Path(__file__).resolve().parents[3] / "roles" / "pg_backup" / "vars" / "main.yml"
    assert set(yaml.safe_load(path.read_text())["__pg_backup_facts"]) == set(FACTS)
