# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who runs a server: a systemd unit, Patroni or another supervisor, a container, or nobody since pg_ctl has ended.

It is seen in /proc, which needs no rights: the control group names the unit, the parents are the supervisors.
``systemctl show``, which needs none either, says which process the unit calls its own.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.
"""

from __future__ import annotations

import contextlib
import os
import re
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.units import unit_of

SYSTEMD, SYSTEMD_USER, PATRONI, SUPERVISOR = "systemd", "systemd_user", "patroni", "supervisor"
CONTAINER, NONE = "container", "none"

# Programs that start a stopped server again, or act when it stops. Some are no parent of it.
_SUPERVISORS = frozenset(
    (
        *("pacemakerd", "pacemaker-execd", "lrmd", "pg_autoctl", "repmgrd", "stolon-keeper", "supervisord", "circusd"),
        *("runsv", "runsvdir", "s6-supervise", "s6-svscan", "supervise", "svscan", "supervise-daemon", "procd"),
        *("monit", "god", "nomad"),
    )
)
_PATRONI = "patroni"
# These name the data directory in their configuration.
_CONFIGURED = frozenset((_PATRONI, "repmgrd", "pg_autoctl", "stolon-keeper"))
_LARGEST = 1 << 20
_LOGINS = frozenset(("sshd", "sshd-session", "login", "cron", "crond", "atd"))
_INIT = frozenset(("systemd", "init"))
# Units in which people and timers start programs: that a server was started there by hand says nothing.
_SESSIONS = re.compile(
    r"(user@\d+|sshd?(@.*)?|cron|crond|atd|getty@.*|serial-getty@.*|console-getty|.*ssh.*)\.service\Z"
)
# With these as its main process a unit still is the server's alone.
_WRAPPERS = frozenset(
    (
        *("sh", "bash", "dash", "ash", "ksh", "zsh", "env", "nice", "ionice", "chpst"),
        *("su", "sudo", "runuser", "setpriv", "gosu", "numactl"),
    )
)


class Owner(t.NamedTuple):
    """Who runs a server.

    ``kind`` is ``systemd`` (a unit of the system), ``systemd_user`` (of a user's manager), ``patroni``, ``supervisor``
    (another program that starts a stopped server again, or acts when it stops), ``container`` (the server belongs to
    a process 1 that is no init system, or to another namespace) or ``none`` (started by hand, with ``pg_ctl``).
    ``unit`` is the systemd unit, ``program`` the name and ``pid`` the process of the supervisor; empty and None where
    there is none.
    """

    kind: str
    unit: str = ""
    program: str = ""
    pid: t.Optional[int] = None


class _Process(t.NamedTuple):
    pid: int
    parent: int
    session: int
    program: str


def owner_of(pid: int) -> Owner:
    """Return who runs the server whose main process is ``pid``. Raises OSError when that has ended."""
    if _in_another_namespace(pid):
        return Owner(CONTAINER)
    chain = _ancestors(pid)
    server, parents = chain[0], chain[1:]
    if server.pid == 1:
        return Owner(CONTAINER, program=server.program, pid=1)
    unit, user_unit, manager = _units_of(pid)
    for process in parents:
        # As process 1 it also collects the orphans of others.
        if process.program in _LOGINS or process.pid == 1:
            break
        if process.program == _PATRONI or process.program in _SUPERVISORS:
            kind = PATRONI if process.program == _PATRONI else SUPERVISOR
            return Owner(kind, user_unit or unit, process.program, process.pid)
    if user_unit or unit:
        found = _owner_by_unit(server, parents, unit, user_unit, manager)
        if found is not None:
            return found
    return _owner_by_parent(server, parents)


def manager_of(data_directory: str) -> t.Optional[Owner]:
    """Return a manager that runs on this host and whose command or configuration names ``data_directory``.

    Such a one acts on a server that is not its child, or does not run: Patroni after its own restart, repmgrd.
    """
    place = re.compile(rb"(?<![^\s'\"=:])" + re.escape(os.fsencode(data_directory.rstrip("/"))) + rb"/?(?![^\s'\",#])")
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            pid = int(name)
            program = _program(pid)
            if program in _CONFIGURED and any(place.search(text) for text in _said_by(pid)):
                return Owner(
                    PATRONI if program == _PATRONI else SUPERVISOR, _units_of(pid)[1] or _units_of(pid)[0], program, pid
                )
    return None


def is_in_unit(pid: int, unit: str) -> bool:
    """Return whether a process is in the control group of a unit, of the system or of a user's manager."""
    try:
        return unit in _units_of(pid)
    except OSError:
        return False


def _said_by(pid: int) -> t.Iterator[bytes]:
    """Yield command line and environment of a process, and the files that its command line names."""
    with open(f"/proc/{pid}/cmdline", "rb") as stream:
        words = stream.read().split(b"\0")
    yield b"\n".join(words)
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as stream:
        yield stream.read().replace(b"\0", b"\n")
    for word in words[1:]:
        path = b"/proc/%d/cwd/" % pid + word.rpartition(b"=")[2]
        with contextlib.suppress(OSError, ValueError):
            files = [os.path.join(path, one) for one in os.listdir(path)] if os.path.isdir(path) else [path]
            for one in files:
                if os.path.isfile(one):
                    with open(one, "rb") as stream:
                        yield stream.read(_LARGEST)


def _owner_by_unit(
    server: _Process, parents: t.Sequence[_Process], unit: str, user_unit: str, manager: int
) -> t.Optional[Owner]:
    """Return the owner when the server belongs to a unit, None when it was only started from one."""
    name = user_unit or unit
    kind = SYSTEMD_USER if user_unit else SYSTEMD
    # Only the user's own manager can be asked.
    found = unit_of(name, bool(user_unit)) if not user_unit or manager == os.geteuid() else None
    main = found.main_pid if found is not None else 0
    if main == server.pid:
        return Owner(kind, name)
    if _SESSIONS.match(name) or name in _units_of(os.getpid())[:2]:
        return None
    if not main:
        return Owner(kind, name)
    try:
        process = _process(main)
    except OSError:
        return Owner(kind, name)
    if process.program == _PATRONI:
        return Owner(PATRONI, name, process.program, process.pid)
    if process.program in _WRAPPERS and process.pid in [parent.pid for parent in parents]:
        return Owner(kind, name)
    return Owner(SUPERVISOR, name, process.program, process.pid)


def _owner_by_parent(server: _Process, parents: t.Sequence[_Process]) -> Owner:
    """Return the owner of a server without a unit. ``pg_ctl`` starts it in a session of its own, and ends."""
    if not parents:
        return Owner(NONE)
    parent = parents[0]
    if parent.pid == 1:
        if parent.program in _INIT or server.session == server.pid:
            return Owner(NONE)
        kind = SUPERVISOR if parent.program in _SUPERVISORS else CONTAINER
        return Owner(kind, program=parent.program, pid=1)
    # A process that collects orphans, as the user's manager does, or the shell from which this very module runs.
    if parent.program in _INIT or parent.pid in [process.pid for process in _ancestors(os.getpid())]:
        return Owner(NONE)
    return Owner(SUPERVISOR, program=parent.program, pid=parent.pid)


def _in_another_namespace(pid: int) -> bool:
    """Return whether a process has process ids of its own, in a namespace below that of this process."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as stream:
        found = re.search(r"^NSpid:(.*)$", stream.read(), re.MULTILINE)
    return found is not None and len(found.group(1).split()) > 1


def _ancestors(pid: int) -> list[_Process]:
    """Return a process and its parents, up to process 1. Of one that is hidden from this user only the id is known."""
    found = [_process(pid)]
    while found[-1].parent > 0:
        try:
            found.append(_process(found[-1].parent))
        except OSError:
            found.append(_Process(found[-1].parent, 0, 0, ""))
    return found


def parent_of(pid: int) -> int:
    """Return the parent of a process, 0 when it is not on this host."""
    try:
        return _process(pid).parent
    except (OSError, ValueError, IndexError):
        return 0


def _process(pid: int) -> _Process:
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
        # The name is in parentheses and may contain any character.
        fields = stream.read().rpartition(")")[2].split()
    return _Process(pid, int(fields[1]), int(fields[3]), _program(pid))


def _program(pid: int) -> str:
    """Return the name of a process's program; of a script, the script's."""
    with open(f"/proc/{pid}/cmdline", "rb") as stream:
        words = [os.path.basename(os.fsdecode(word)) for word in stream.read().split(b"\0")]
    if re.match(r"(python|pypy|perl|ruby)[0-9.]*\Z", words[0]):
        scripts = [word for word in words[1:] if word and not word.startswith("-")]
        return scripts[0] if scripts else words[0]
    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as stream:
        return stream.read().rstrip("\n")


def _units_of(pid: int) -> tuple[str, str, int]:
    """Return the unit of the system in whose control group a process is, that of a user's manager, and that user."""
    with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as stream:
        return units_in(stream.read())


def units_in(groups: str) -> tuple[str, str, int]:
    """Return the units in the text of /proc/<pid>/cgroup; empty texts and -1 stand for none."""
    # Version 1 has a hierarchy for systemd alone, version 2 only one for all.
    lines = [line.split(":", 2) for line in groups.splitlines()]
    for path in [path for _number, kind, path in lines if kind in ("", "name=systemd")]:
        services = [part for part in path.split("/") if part.endswith(".service")]
        for number, service in enumerate(services):
            manager = re.match(r"user@(\d+)\.service\Z", service)
            if manager:
                below = services[number + 1 :]
                return service, below[-1] if below else "", int(manager.group(1))
        if services:
            # In a container the paths of its host may come first.
            return services[-1], "", -1
    return "", "", -1
