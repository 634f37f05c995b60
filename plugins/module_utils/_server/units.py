# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Units of systemd: what they run, and the data directory that they lead to. Nothing here needs rights.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.conf import read_settings
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.paths import identity, same

# Debian's postgresql-common: postgresql@<version>-<cluster>, whose configuration is in this directory.
_DEBIAN = re.compile(r"postgresql@(\d+)-(.+)\.service\Z")
DEBIAN_CONFIGURATION = "/etc/postgresql"
_NAMES = ("postgres*", "pgsql*")
_PROPERTIES = "LoadState,ActiveState,SubState,MainPID,Type,Result,Environment,ExecStart,CanStart"
_SECONDS = 20


class Unit(t.NamedTuple):
    """A unit: ``name`` with ``.service``; ``active`` as in ``systemctl is-active``; ``main_pid`` 0 for none."""

    name: str
    loaded: bool
    active: str
    main_pid: int
    result: str
    environment: str
    start: str


def full_name(unit: str) -> str:
    """Return the name of a service with its suffix."""
    return unit if re.search(r"\.[a-z]+\Z", unit) else unit + ".service"


def systemctl() -> str:
    """Return the path of ``systemctl``, "" when this host has none."""
    for folder in ("/usr/bin", "/bin"):
        if os.access(folder + "/systemctl", os.X_OK):
            return folder + "/systemctl"
    return ""


def user_environment() -> dict[str, str]:
    """Return the environment in which ``systemctl --user`` finds this user's manager."""
    return dict(os.environ, XDG_RUNTIME_DIR=f"/run/user/{os.geteuid()}")


def ask(words: t.Sequence[str], user: bool = False) -> t.Optional[str]:
    """Return what ``systemctl`` prints, None when there is none or systemd does not answer."""
    program = systemctl()
    if not program:
        return None
    try:
        # pylint: disable=ansible-bad-function  # module_utils have no AnsibleModule, whose run_command this would be
        done = subprocess.run(
            [program, *(["--user"] if user else []), *words],
            env=user_environment() if user else dict(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "surrogateescape") if done.returncode == 0 else None


def unit_of(name: str, user: bool = False) -> t.Optional[Unit]:
    """Return a unit, with ``loaded`` false when there is none of this name; None when systemd does not answer."""
    text = ask(["show", "--property=" + _PROPERTIES, "--", full_name(name)], user)
    if text is None:
        return None
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, _equal, value = line.partition("=")
        values.setdefault(key, value)
    main = values.get("MainPID", "0")
    return Unit(
        name=full_name(name),
        loaded=values.get("LoadState") == "loaded",
        active=values.get("ActiveState", ""),
        main_pid=int(main) if main.isdigit() else 0,
        result=values.get("Result", ""),
        environment=values.get("Environment", ""),
        start=values.get("ExecStart", ""),
    )


def directory_of_unit(unit: Unit) -> str:
    """Return the data directory that a unit starts a server on, "" when that cannot be seen."""
    debian = _DEBIAN.match(unit.name)
    if debian:
        config = os.path.join(DEBIAN_CONFIGURATION, debian.group(1), debian.group(2), "postgresql.conf")
        return directory_in(config)
    found = re.search(r"argv\[\]=(.*?) ; ", unit.start)
    if not found:
        return ""
    try:
        variables = dict(word.partition("=")[::2] for word in shlex.split(unit.environment))
        words = shlex.split(found.group(1))
    except ValueError:
        return ""
    words = [re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda one: variables.get(one[1] or one[2], ""), word) for word in words]
    config = directory = ""
    for number, word in enumerate(words):
        value = words[number + 1] if number + 1 < len(words) else ""
        if word == "-D" or word == "--pgdata":
            directory = value
        elif word.startswith(("-D/", "-D=")):
            directory = word[2:].lstrip("=")
        elif re.match(r"(--)?(config[-_]file|data[-_]directory)=", word):
            key, _equal, value = word.lstrip("-").partition("=")
            config, directory = (value, directory) if key.startswith("config") else (config, value)
    if config and not directory:
        return directory_in(config)
    return directory or variables.get("PGDATA", "")


def directory_in(config_file: str) -> str:
    """Return ``data_directory`` of a configuration file, "" when it has none or cannot be read."""
    try:
        return read_settings(config_file, "/nonexistent").get("data_directory", "")
    except BackupError:
        return ""


def unit_for(data_directory: str) -> str:
    """Return the unit of the system that starts the server of ``data_directory``, "" when none is found.

    Debian's clusters are found by their configuration files, others among the units whose name begins like
    PostgreSQL's.
    """
    wanted = identity(data_directory)

    def leads_here(place: str) -> bool:
        return bool(place) and (same(identity(place), wanted) or os.path.normpath(place) == data_directory)

    for version in _entries(DEBIAN_CONFIGURATION):
        for cluster in _entries(os.path.join(DEBIAN_CONFIGURATION, version)):
            config = os.path.join(DEBIAN_CONFIGURATION, version, cluster, "postgresql.conf")
            if leads_here(directory_in(config)):
                name = f"postgresql@{version}-{cluster}.service"
                unit = unit_of(name)
                if unit is not None and unit.loaded:
                    return name
    listed = ask(["list-units", "--all", "--type=service", "--plain", "--no-legend", "--no-pager", *_NAMES]) or ""
    files = ask(["list-unit-files", "--type=service", "--plain", "--no-legend", "--no-pager", *_NAMES]) or ""
    names = {line.split()[0] for text in (listed, files) for line in text.splitlines() if line.split()}
    for name in sorted(name for name in names if name.endswith(".service") and "@." not in name):
        unit = unit_of(name)
        if unit is not None and unit.loaded and leads_here(directory_of_unit(unit)):
            return name
    return ""


def _entries(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []
