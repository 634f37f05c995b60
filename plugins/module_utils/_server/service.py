# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starting, stopping and restarting a unit of systemd, and the right to do it.

The unit is started by a process of its own, because ``systemctl start`` may take as long as a recovery; what counts is
the unit's main process.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.
"""

from __future__ import annotations

import fnmatch
import os
import pwd
import re
import shutil
import subprocess
import tempfile
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.program import start_detached
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.units import (
    Unit,
    full_name,
    systemctl,
    unit_of,
    user_environment,
)

VERBS = {"started": "start", "stopped": "stop", "restarted": "restart"}
_RUNNING = ("active", "activating", "reloading")
_SUDO_SECONDS = 30


class Service:
    """A unit of the system, or with ``user`` of this user's own manager. Raises :class:`BackupError`.

    Codes: ``no_systemd`` where there is none, ``unit_missing`` for an unknown unit.
    """

    def __init__(self, name: str, user: bool = False) -> None:
        self.name = full_name(name)
        self._user = user
        self._program = systemctl()
        unit = unit_of(self.name, user) if self._program else None
        if unit is None:
            raise BackupError(
                f"On this host systemd does not answer, so the unit {self.name} cannot be used.",
                code="no_systemd",
                hint="For another service manager write your own tasks and set the role's hooks.",
            )
        if not unit.loaded:
            raise BackupError(
                f"There is no unit {self.name} on this host.",
                code="unit_missing",
                hint="List the units: systemctl list-units --all 'postgres*'.",
            )
        self._forms = [self.name[: -len(".service")], self.name] if self.name.endswith(".service") else [self.name]

    def unit(self) -> Unit:
        """Return the unit as it is now."""
        unit = unit_of(self.name, self._user)
        if unit is None:
            raise BackupError(f"The manager systemd does not answer about the unit {self.name}.", code="no_systemd")
        return unit

    def command(self, state: str) -> t.Optional[list[str]]:
        """Return the command for a state that this user may run without a password, None when there is none."""
        verb = VERBS[state]
        if self._user:
            return [self._program, "--user", verb, self.name]
        if os.geteuid() == 0:
            return [self._program, verb, self.name]
        sudo = shutil.which("sudo")
        for form in self._forms if sudo else ():
            words = [self._program, verb, form]
            if _sudo_allows(str(sudo), words):
                return [str(sudo), "-n", *words]
        return None

    def require(self, states: t.Iterable[str]) -> None:
        """Raise :class:`BackupError`, code ``no_right_to_unit``, with the line of sudoers that is missing."""
        missing = [state for state in dict.fromkeys(states) if self.command(state) is None]
        if not missing:
            return
        try:
            account = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            account = f"#{os.geteuid()}"
        commands = [f"{self._program} {VERBS[state]} {self._forms[0]}" for state in missing]
        line = f"{account} ALL=(root) NOPASSWD: " + ", ".join(re.sub(r"([,:=\\])", r"\\\1", one) for one in commands)
        raise BackupError(
            f"The user {account} may not {' or '.join(VERBS[state] for state in missing)} the unit {self.name}.",
            code="no_right_to_unit",
            hint=f"Allow it on that host with: visudo -f /etc/sudoers.d/pgfleet, and the line: {line}",
            sudoers=line,
        )

    def reach(self, state: str, timeout: float) -> Unit:
        """Bring the unit into a state and return it; a started server may still recover.

        Raises :class:`BackupError`: ``unit_failed`` with what systemd says, ``stop_timeout``, ``start_timeout``.
        """
        before = self.unit()
        words = self.command(state)
        if words is None:
            self.require([state])
            raise AssertionError("the right was there")
        folder = tempfile.mkdtemp(prefix="pgfleet-unit-")
        output = os.path.join(folder, "output")
        try:
            environment = user_environment() if self._user else dict(os.environ)
            pid = start_detached(words, environment, "/", output)
            return self._wait(state, before, pid, output, timeout)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _wait(self, state: str, before: Unit, pid: int, output: str, timeout: float) -> Unit:
        deadline = time.monotonic() + timeout
        while True:
            # Asked first: when it has ended the unit is what it will be.
            ended = not os.path.exists(f"/proc/{pid}")
            unit = self.unit()
            if self._reached(state, before, unit, ended):
                return unit
            if ended:
                with open(output, encoding="utf-8", errors="replace") as stream:
                    said = " ".join(stream.read().split())
                raise BackupError(
                    f"The unit {self.name} was not {state}: it is {unit.active} ({unit.result}). It says: {said}.",
                    code="unit_failed",
                    hint=f"Read its journal: journalctl -u {self.name} -e.",
                )
            if time.monotonic() > deadline:
                verb = VERBS[state]
                raise BackupError(
                    f"The unit {self.name} is {unit.active}: systemctl {verb} has not ended within {timeout:g} s.",
                    code="stop_timeout" if unit.main_pid == before.main_pid and before.main_pid else "start_timeout",
                    hint=f"It continues; see how far it is: systemctl status {self.name}.",
                )
            time.sleep(0.2)

    @staticmethod
    def _reached(state: str, before: Unit, unit: Unit, ended: bool) -> bool:
        if state == "stopped":
            return unit.active in ("inactive", "failed") and ended
        # Type=notify has its main process at once and is ready only after recovery.
        if unit.active in _RUNNING and unit.main_pid:
            return state == "started" or unit.main_pid != before.main_pid
        # The units of init scripts have no main process. A server may end at its recovery target.
        return ended and (unit.active == "active" or (unit.active == "inactive" and unit.result == "success"))


def _sudo_allows(sudo: str, words: t.Sequence[str]) -> bool:
    """Return whether sudo runs these words as root without a password.

    ``sudo -l`` with a command says whether it is allowed, but not whether a password is asked for; the list does.
    """
    if _run_sudo([sudo, "-n", "-l", *words]) is None:
        return False
    listed = _run_sudo([sudo, "-n", "-l"])
    return listed is not None and without_password(listed, " ".join(words))


def _run_sudo(words: t.Sequence[str]) -> t.Optional[str]:
    try:
        # pylint: disable=ansible-bad-function  # module_utils have no AnsibleModule, whose run_command this would be
        done = subprocess.run(
            words,
            env=dict(os.environ, LC_ALL="C", LANGUAGE="C"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_SUDO_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def without_password(listed: str, command: str) -> bool:
    """Return whether ``sudo -l`` lists an allowed command as one that asks for no password; the last match counts."""
    free = "!authenticate" in listed.partition("may run the following")[0]
    answer: t.Optional[bool] = None
    # A long rule continues in the next line.
    text = re.sub(r"\n\s{8,}", " ", listed)
    for line in text.splitlines():
        rule = re.match(r"\s+\(([^)]*)\)\s*(.*)", line)
        if not rule or not _runs_as_root(rule.group(1)):
            continue
        asks = not free
        for item in re.split(r"(?<!\\),\s*", rule.group(2)):
            pattern = item.strip()
            while True:
                tag = re.match(r"([A-Z_]+):\s*", pattern)
                if not tag:
                    break
                asks = False if tag.group(1) == "NOPASSWD" else True if tag.group(1) == "PASSWD" else asks
                pattern = pattern[tag.end() :]
            pattern = re.sub(r"\\([,:=\\])", r"\1", pattern)
            # A program without arguments stands for any.
            any_arguments = " " not in pattern and command.startswith(pattern + " ")
            if pattern == "ALL" or any_arguments or fnmatch.fnmatchcase(command, pattern):
                answer = not asks
    # A rule in a form that is not read here, such as a digest, may ask.
    return bool(answer)


def _runs_as_root(users: str) -> bool:
    names = [name.strip() for name in users.partition(":")[0].split(",")]
    return ("ALL" in names or "root" in names or "#0" in names) and "!root" not in names
