# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run ansible-playbook as users do, on local hosts that represent database servers."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import typing as t

import yaml

from . import binaries
from .modules import CLONE
from .servers import Server
from .user import own_directory, server_user


def bin_path(name: str) -> str:
    """Return the path of a program of the current Python environment."""
    return str(pathlib.Path(sys.executable).parent / name)


def ansible_environment(directory: pathlib.Path) -> dict[str, str]:
    """Return the environment for Ansible's programs, without the caller's configuration and home."""
    config = directory / "ansible.cfg"
    config.touch()
    env = {key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "PG", "PYTHON"))}
    env.update(
        PATH=f"{pathlib.Path(sys.executable).parent}:{env.get('PATH', os.defpath)}",
        ANSIBLE_CALLBACKS_ENABLED="harness_events",
        ANSIBLE_CALLBACK_PLUGINS=str(CLONE / "tests/harness/callback"),
        ANSIBLE_COLLECTIONS_PATH=str(pathlib.Path(sys.prefix) / "collections"),
        ANSIBLE_CONFIG=str(config),
        ANSIBLE_HOME=str(directory / "ansible-home"),
        ANSIBLE_HOST_KEY_CHECKING="0",
        ANSIBLE_LOCALHOST_WARNING="0",
        ANSIBLE_NOCOLOR="1",
        LC_ALL="C.UTF-8",
        PGFLEET_EVENTS=str(directory / "events.jsonl"),
        # Ansible leaves flushing to Python. Output to a file would show live progress only at the next task.
        PYTHONUNBUFFERED="1",
    )
    return env


def host_vars(server: Server, *, tcp: bool = False) -> dict[str, t.Any]:
    """Return the variables of a local host: connection, interpreter, become method.

    Also its login as ``pg_backup_login_*``, over the socket or over TCP with the password. The play decides whether to
    become; for an ordinary user, who is the server user, ``ansible_become: false`` switches it off.
    """
    user = server_user()
    variables: dict[str, t.Any] = {
        "ansible_connection": "local",
        "ansible_python_interpreter": binaries.server_python(),
        # Not in the user's home, which may not exist and which tests must not touch.
        "ansible_remote_tmp": str(own_directory(server.directory / "ansible-tmp")),
        "pg_backup_become_user": user.name,
    }
    if user.is_me:
        variables.update(ansible_become=False, pg_backup_become=False)
    else:
        # su exists on every system; the account may have no login shell.
        variables.update(ansible_become_method="su", ansible_become_flags="-s /bin/sh")
    variables.update({f"pg_backup_{key}": value for key, value in server.login(tcp=tcp).items()})
    return variables


@dataclasses.dataclass
class Play:
    """A finished run: exit code, all output, the recap of each host and each result in order."""

    rc: int
    stdout: str
    stats: dict[str, dict[str, int]]
    events: list[dict[str, t.Any]]

    def of(self, host: str, outcome: str | None = None) -> list[dict[str, t.Any]]:
        """Return a host's results: ``{host, task, action, outcome, changed, result}``."""
        return [event for event in self.events if event["host"] == host and outcome in (None, event["outcome"])]

    def ok(self) -> Play:
        """Require exit code 0."""
        assert self.rc == 0, self.stdout[-12000:]
        return self


class RunningPlay:
    """A run in its own process group."""

    def __init__(self, command: list[str], directory: pathlib.Path) -> None:
        """Start ``command``; its output, events and temporary files go to ``directory``."""
        self.directory = directory
        self.output = directory / "output"
        with self.output.open("w") as out:
            self.process = subprocess.Popen(
                command, cwd=CLONE, env=ansible_environment(directory), stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    @property
    def stdout(self) -> str:
        """The output so far."""
        return self.output.read_text(errors="replace")

    def signal(self, number: int = signal.SIGKILL, group: bool = False) -> None:
        """Send a signal to ansible-playbook, or also to its workers and local modules."""
        (os.killpg if group else os.kill)(self.process.pid, number)

    def wait(self, timeout: float = 180) -> Play:
        """Wait for the end; at the time limit kill the whole group and fail the test."""
        try:
            rc = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise AssertionError(f"ansible-playbook took more than {timeout:g} s:\n{self.stdout[-12000:]}") from None
        events_file = self.directory / "events.jsonl"
        lines = events_file.read_text().splitlines() if events_file.exists() else []
        events = [json.loads(line) for line in lines]
        stats: dict[str, dict[str, int]] = next((event["stats"] for event in events if "stats" in event), {})
        return Play(rc, self.stdout, stats, [event for event in events if "stats" not in event])


def start_playbook(
    playbook: str | pathlib.Path | list[dict[str, t.Any]],
    inventory: t.Mapping[str, t.Mapping[str, t.Any]],
    *,
    directory: pathlib.Path,
    groups: t.Mapping[str, t.Sequence[str]] | None = None,
    extra_vars: t.Mapping[str, t.Any] | None = None,
    check: bool = False,
    args: t.Sequence[str] = (),
) -> RunningPlay:
    """Start ansible-playbook and return at once.

    ``playbook`` is a path, a name such as ``pgfleet.basebackup.backup``, or a list of plays. ``inventory`` is
    ``{host: variables}``, see `host_vars`. Files go to a new folder in ``directory``.
    """
    work = pathlib.Path(tempfile.mkdtemp(prefix="play-", dir=directory))
    hosts = {name: dict(variables) for name, variables in inventory.items()}
    children: dict[str, t.Any] = {
        group: {"hosts": {name: {} for name in names}} for group, names in (groups or {}).items()
    }
    inventory_file = work / "inventory.yml"
    inventory_file.write_text(yaml.safe_dump({"all": {"hosts": hosts, "children": children}}))
    if isinstance(playbook, list):
        path = work / "playbook.yml"
        path.write_text(yaml.safe_dump(playbook, sort_keys=False))
        playbook = path
    command = [bin_path("ansible-playbook"), str(playbook), "-i", str(inventory_file), *args]
    if extra_vars:
        command += ["-e", json.dumps(extra_vars)]
    if check:
        command.append("--check")
    return RunningPlay(command, work)


def run_playbook(
    playbook: str | pathlib.Path | list[dict[str, t.Any]],
    inventory: t.Mapping[str, t.Mapping[str, t.Any]],
    *,
    directory: pathlib.Path,
    timeout: float = 180,
    **kwargs: t.Any,
) -> Play:
    """Run ansible-playbook to its end. Takes the arguments of `start_playbook` and a time limit in seconds."""
    return start_playbook(playbook, inventory, directory=directory, **kwargs).wait(timeout)
