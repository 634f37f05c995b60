# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role as a declaration: what it does, what it leaves, what check mode reports, and users' own steps."""

from __future__ import annotations

import json
import subprocess
import tarfile

import pytest
import yaml

from tests.harness.checks import data_checksum, restore_and_check
from tests.harness.modules import CLONE
from tests.harness.playbook import RunningPlay, ansible_environment, bin_path
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server
from tests.integration.helpers.files import content, listing
from tests.integration.helpers.leftovers import all_is_well
from tests.integration.helpers.plays import HANDLER, RoleHosts, message, reached, switches, told


@pytest.fixture
def fleet(sandbox: Sandbox) -> RoleHosts:
    """A repository, without hosts yet."""
    return RoleHosts(sandbox)


@pytest.mark.oldest_core
def test_first_run_publishes_and_second_changes_nothing(
    sandbox: Sandbox, fleet: RoleHosts, primary: Server, standby: Server, major: int
) -> None:
    """A primary and its standby as two hosts of one play: check mode, then twice for real."""
    hosts = {"primary": fleet.host(primary), "standby": fleet.host(standby)}
    before = listing(fleet.repository)
    planned = fleet.run(hosts, check=True).ok()
    assert listing(fleet.repository) == before
    for host, server in (("primary", primary), ("standby", standby)):
        assert planned.stats[host]["changed"] == 1
        plan = told(planned, host)
        assert f"{host}: a base backup of the {host} at" in plan
        assert f"From: {server.data}; tablespaces: extra" in plan
        assert "MiB; free: " in plan
        assert f"To: {fleet.repository}/{host}" in plan
        assert "What would stop it: nothing" in plan
    assert "WAL: switched here" in told(planned, "primary")
    assert "WAL: switched on the primary primary" in told(planned, "standby")

    first = fleet.run(hosts).ok()
    for host in hosts:
        assert first.stats[host]["failures"] == first.stats[host]["rescued"] == 0
        assert len(reached(first, host)) <= 10, reached(first, host)
        record = content(fleet.one(host))
        assert record["state"] == "complete"
        assert record["start"]["from_standby"] is (host == "standby")
        assert sorted(record["wal_proof"]["archived"]) == sorted(record["required_wal"])
    assert len(switches(first, "standby")) == 1
    assert switches(first, "primary") == []
    assert HANDLER in first.stdout

    before = listing(fleet.repository)
    second = fleet.run(hosts).ok()
    for host in hosts:
        assert second.stats[host]["changed"] == 0
        assert len(reached(second, host)) == 2, reached(second, host)
        assert "younger than 20 hours" in told(second, host)
    assert switches(second, "standby") == []
    assert listing(fleet.repository) == before
    all_is_well(sandbox, fleet.repository, primary, standby)

    expected = data_checksum(primary)

    def compare(restored: Server) -> None:
        assert data_checksum(restored) == expected

    assert primary.archive is not None
    for host in hosts:
        restore_and_check(sandbox, fleet.one(host), primary.archive, major, compare, name=f"restored-{host}")


def test_variables_in_several_spellings(sandbox: Sandbox, fleet: RoleHosts, primary: Server) -> None:
    """Ages with units, force as a string as AWX passes it, wrong arguments: each as a host of one play."""
    fleet.run({"main": fleet.host(primary)}).ok()
    young = {"minutes": "90m", "words": "2 days", "number": 3600, "fraction": "0.5h", "false": "20 hours"}
    due = {"moment": "0.001s", "forced": "20 hours"}
    hosts = {name: fleet.host(primary, cluster="main", max_age=age) for name, age in {**young, **due}.items()}
    hosts["false"]["pg_backup_force"] = "false"
    hosts["forced"]["pg_backup_force"] = "true"
    hosts["nonsense"] = fleet.host(primary, cluster="main", max_age="a while")
    hosts["choice"] = fleet.host(primary, cluster="main", concurrent="perhaps")
    hosts["nowhere"] = fleet.host(primary)
    del hosts["nowhere"]["pg_backup_repository"]
    before = listing(fleet.repository)
    play = fleet.run(hosts, check=True)
    assert play.rc != 0
    assert {host: play.stats[host]["changed"] for host in young} == dict.fromkeys(young, 0)
    assert {host: play.stats[host]["changed"] for host in due} == dict.fromkeys(due, 1)
    assert "pg_backup_max_age cannot be 'a while'" in message(play, "nonsense")
    assert "nonsense: the backup" in message(play, "nonsense")
    assert "pg_backup_concurrent" in json.dumps(play.of("choice", "failed"))
    assert "pg_backup_repository" in json.dumps(play.of("nowhere", "failed"))
    assert reached(play, "choice") == reached(play, "nowhere") == []
    assert listing(fleet.repository) == before

    forced = fleet.run({"main": fleet.host(primary)}, args=["-e", "pg_backup_force=true", "-e", "pg_backup_jobs=1"])
    assert forced.ok().stats["main"]["changed"] > 0
    assert len(fleet.published("main")) == 2
    all_is_well(sandbox, fleet.repository, primary)


def test_check_mode_reports_what_would_stop_it(
    sandbox: Sandbox, fleet: RoleHosts, standby: Server, primary: Server
) -> None:
    """On the very first run, with problems of all kinds; nothing is written and no host fails."""
    primary.sql("CREATE ROLE weak LOGIN")
    standby.catch_up()
    missing = sandbox.root / "missing"
    hosts = {
        "no_repository": fleet.host(primary, repository=str(missing)),
        "inside": fleet.host(primary, repository=str(primary.data / "base")),
        "weak": fleet.host(primary, login_user="weak"),
        "lonely": fleet.host(standby, primary="127.0.0.1:1"),
        "unreachable": fleet.host(standby, primary="gone"),
        "misled": fleet.host(standby, primary="lonely"),
        "gone": {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1},
    }
    before = {place: listing(place) for place in (fleet.repository, primary.data / "base")}
    play = fleet.run(hosts, check=True, args=["--limit", "!gone"]).ok()
    for host, code, words in (
        ("no_repository", "repository", str(missing)),
        ("inside", "repository_inside_cluster", "must not contain itself"),
        ("weak", "no_privilege_backup_start", "GRANT EXECUTE ON FUNCTION"),
        ("lonely", "primary_unknown", "127.0.0.1:1"),
        ("unreachable", "primary_unknown", "127.0.0.1"),
        ("misled", "not_primary", "is a standby"),
    ):
        text = told(play, host)
        assert play.stats[host]["changed"] == 0, host
        assert "cannot be taken" in text, host
        assert code in text, host
        assert words in text, host
    assert {place: listing(place) for place in before} == before
    assert not missing.exists()


def test_hooks(sandbox: Sandbox, fleet: RoleHosts, primary: Server, major: int) -> None:
    """All five hooks, a copy by cp instead of backup_copy, and a failure of each hook."""
    note = {
        "ansible.builtin.shell": "echo '{{ __hook }}' '{{ pg_backup_handle.backup_id | default(\"-\") }}'"
        f" >> {sandbox.root}/{{{{ inventory_hostname }}}}.notes",
        "changed_when": True,
    }
    hooks = {
        hook: fleet.tasks(hook, {**note, "vars": {"__hook": hook}})
        for hook in ("before_start", "before_stop", "after_publish", "on_failure")
    }
    copy = (
        "cp -a {{ __pg_backup_server.data_directory }}/. {{ pg_backup_handle.directory }}/data/"
        " && for link in {{ pg_backup_handle.directory }}/data/pg_tblspc/*; do"
        " cp -a $(readlink $link)/. {{ pg_backup_handle.directory }}/tablespaces/$(basename $link)/ || exit 1; done"
    )
    make = "mkdir -p {{ pg_backup_handle.directory }}/data {{ pg_backup_handle.directory }}/tablespaces"
    oid = primary.value("SELECT oid FROM pg_tablespace WHERE spcname = 'extra'")
    hooks["copy"] = fleet.tasks(
        "copy",
        {"ansible.builtin.shell": f"{make}/{oid} && {copy}", "changed_when": True},
        {**note, "vars": {"__hook": "copy"}},
    )
    wrong = fleet.tasks("wrong", {"name": "Go wrong on purpose", "ansible.builtin.fail": {"msg": "as wanted"}})
    all_hooks = {f"hook_{name}": path for name, path in hooks.items()}
    hosts = {"good": fleet.host(primary, **all_hooks)}
    for name in ("before_start", "copy", "before_stop", "after_publish"):
        hosts[name] = fleet.host(primary, **{**all_hooks, f"hook_{name}": wrong})
    hosts["on_failure"] = fleet.host(primary, hook_before_start=wrong, hook_on_failure=wrong)
    primary.pgbench_init()
    expected = data_checksum(primary)
    play = fleet.run(hosts)

    def notes(host: str) -> list[str]:
        path = sandbox.root / f"{host}.notes"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []

    assert play.stats["good"]["failures"] == 0
    order = ["before_start", "copy", "before_stop", "after_publish"]
    assert notes("good") == order
    assert content(fleet.one("good"))["copy"]["by"] == "user"
    for number, name in enumerate(order):
        assert notes(name) == [*order[:number], "on_failure"]
        text = message(play, name)
        assert f"{name}: the backup" in text
        assert "Go wrong on purpose" in text
        assert "as wanted" in text
        assert fleet.unfinished(name) == []
        assert len(fleet.published(name)) == (name == "after_publish")
    assert "The backup is published." in message(play, "after_publish")
    assert "was given up" in message(play, "copy")
    assert "on_failure: the backup" in message(play, "on_failure")
    all_is_well(sandbox, fleet.repository, primary)

    def compare(restored: Server) -> None:
        assert data_checksum(restored) == expected

    assert primary.archive is not None
    restore_and_check(sandbox, fleet.one("good"), primary.archive, major, compare)


@pytest.mark.parametrize("rolling", [False, True])
def test_other_hosts_continue_by_default(fleet: RoleHosts, primary: Server, rolling: bool) -> None:
    """A host without a server fails alone, or with ``serial`` and ``max_fail_percentage`` ends the play."""
    hosts = {"a_broken": fleet.host(primary, login_port=1), "b_good": fleet.host(primary)}
    variables = {"pg_backup_serial": "1", "pg_backup_max_fail_percentage": "0"} if rolling else {}
    play = fleet.run(hosts, check=True, extra_vars=variables)
    assert play.rc != 0
    assert 'a_broken: the backup of the cluster a_broken failed at "gather | Check the server"' in message(
        play, "a_broken"
    )
    assert ("would be taken" in told(play, "b_good")) is not rolling


def test_installed_from_the_artifact(sandbox: Sandbox, fleet: RoleHosts, primary: Server) -> None:
    """Built, installed elsewhere and run by its full name; the artifact has no tests or tools of the clone."""
    work = sandbox.directory("artifact", mode=0o755)
    env = {**ansible_environment(work), "ANSIBLE_COLLECTIONS_PATH": str(work / "here")}
    version = yaml.safe_load((CLONE / "galaxy.yml").read_text())["version"]
    artifact = str(work / f"pgfleet-basebackup-{version}.tar.gz")
    for command in (
        ["build", str(CLONE), "--output-path", str(work)],
        ["install", artifact, "-p", str(work / "here"), "--offline"],
    ):
        subprocess.run([bin_path("ansible-galaxy"), "collection", *command], env=env, cwd=work, check=True)
    with tarfile.open(artifact) as archive:
        names = [member.name for member in archive.getmembers() if member.isfile()]
    wanted = ("playbooks/backup.yml", "roles/pg_backup/tasks/main.yml", "plugins/modules/backup_start.py", "README.md")
    assert set(wanted) <= set(names)
    unwanted = [name for name in names if name.startswith(("tests", "extensions", "requirements", "Makefile", "."))]
    assert unwanted == []
    assert [name for name in names if "/." in name or "__pycache__" in name] == []

    inventory = work / "inventory.json"
    inventory.write_text(json.dumps({"all": {"hosts": {"db": fleet.host(primary)}}}))
    command = ["env", f"ANSIBLE_COLLECTIONS_PATH={work / 'here'}", bin_path("ansible-playbook"), "-i", str(inventory)]
    play = RunningPlay([*command, "pgfleet.basebackup.backup", "-e", "pg_backup_hosts=all"], work).wait().ok()
    assert play.stats["db"]["changed"] > 0
    assert fleet.one("db")


def test_steps_of_a_users_own_play(sandbox: Sandbox, fleet: RoleHosts, primary: Server) -> None:
    """The modules without the role, with the copy in the background (``async``)."""
    handle = {"repository": str(fleet.repository), "cluster": "own", "backup_id": "by-hand"}
    login = {key: f"{{{{ pg_backup_{key} }}}}" for key in primary.login()}
    tasks = [
        {"backup_start": {"repository": handle["repository"], "cluster": "own", "backup_id": "by-hand", "fast": True}},
        {"backup_copy": handle, "async": 60, "poll": 0, "register": "copy"},
        {
            "ansible.builtin.async_status": {"jid": "{{ copy.ansible_job_id }}"},
            "register": "done",
            "until": "done is finished",
            "retries": 100,
            "delay": 0.2,
        },
        {"backup_stop": handle, "register": "stop"},
        {
            "wal_archived": {"required_wal": "{{ stop.required_wal }}", "interval": 0.1,
                             "system_identifier": "{{ stop.system_identifier }}"},
            "register": "archived",
        },
        {"backup_publish": {**handle, "proof": "{{ archived.proof }}"}},
    ]  # fmt: skip
    play = {
        "hosts": "all",
        "gather_facts": False,
        "collections": ["pgfleet.basebackup"],
        "become": "{{ pg_backup_become | default(true) }}",
        "become_user": "{{ pg_backup_become_user }}",
        "vars": {"ansible_async_dir": "{{ ansible_remote_tmp }}/async"},
        "module_defaults": {"group/pgfleet.basebackup.basebackup": login},
        "tasks": tasks,
    }
    done = fleet.run({"db": fleet.host(primary)}, playbook=[play]).ok()
    finished = done.of("db")[-4]["result"]
    assert finished["finished"]
    assert finished["files"] > 900
    assert fleet.one("own").name == "by-hand"
    all_is_well(sandbox, fleet.repository, primary)
