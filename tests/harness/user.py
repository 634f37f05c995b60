# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The operating system user that the test servers run as."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import pwd
import subprocess
import typing as t

Arg = t.Union[str, bytes, "os.PathLike[str]"]


@dataclasses.dataclass(frozen=True)
class ServerUser:
    """An account; ``uid`` and ``gid`` are those of its processes and files."""

    name: str
    uid: int
    gid: int

    @property
    def is_me(self) -> bool:
        """Whether this process already runs as the user."""
        return os.geteuid() == self.uid


@functools.cache
def server_user() -> ServerUser:
    """Return the current user or, because PostgreSQL refuses to run as root, an account that exists everywhere.

    ``PGFLEET_USER`` names another one. Tests never create an account.
    """
    if os.geteuid() != 0:
        entry = pwd.getpwuid(os.geteuid())
        return ServerUser(entry.pw_name, entry.pw_uid, entry.pw_gid)
    for name in filter(None, (os.environ.get("PGFLEET_USER"), "postgres", "nobody")):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return ServerUser(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise RuntimeError("PostgreSQL does not run as root: set PGFLEET_USER to an unprivileged account")


def me() -> ServerUser:
    """Return the user of this process, for commands that must not run as the server user."""
    return ServerUser("", os.geteuid(), os.getegid())


def clean_environment(extra: t.Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment without the caller's PG* and PYTHON* variables and locale."""
    env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "HOME": "/nonexistent", "TZ": "UTC"}
    env.update(extra or {})
    return env


def _credentials(user: ServerUser | None) -> dict[str, t.Any]:
    user = user or server_user()
    return {} if user.is_me else {"user": user.uid, "group": user.gid, "extra_groups": []}


def run(
    args: t.Sequence[Arg],
    *,
    user: ServerUser | None = None,
    env: t.Mapping[str, str] | None = None,
    stdin: str | None = None,
    check: bool = True,
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run a command as ``user`` (default: the server user) from ``/`` and return it with its output as text.

    With ``check`` a non-zero exit raises ``AssertionError`` that shows both streams.
    """
    done = subprocess.run(
        args,
        env=clean_environment(env),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        cwd="/",
        timeout=timeout,
        check=False,
        **_credentials(user),
    )
    if check and done.returncode != 0:
        command = " ".join(os.fsdecode(arg) for arg in args)
        raise AssertionError(f"exit {done.returncode}: {command}\n{done.stdout}\n{done.stderr}")
    return done


def popen(
    args: t.Sequence[Arg],
    *,
    user: ServerUser | None = None,
    env: t.Mapping[str, str] | None = None,
    **kwargs: t.Any,
) -> subprocess.Popen[str]:
    """Start a command as ``user`` (default: the server user) from ``/``; the caller must end it."""
    kwargs.setdefault("cwd", "/")
    return subprocess.Popen(
        args, env=clean_environment(env), stdin=subprocess.DEVNULL, text=True, **_credentials(user), **kwargs
    )


def own_directory(path: pathlib.Path, mode: int = 0o700, user: ServerUser | None = None) -> pathlib.Path:
    """Create a directory of the server user (its parents must exist), whatever the umask, and return it."""
    user = user or server_user()
    path.mkdir(exist_ok=True)
    if os.geteuid() == 0:
        os.chown(path, user.uid, user.gid)
    path.chmod(mode)
    return path


def own_file(path: pathlib.Path, text: str, mode: int = 0o600, user: ServerUser | None = None) -> pathlib.Path:
    """Write a file of the server user and return it."""
    user = user or server_user()
    path.write_text(text)
    if os.geteuid() == 0:
        os.chown(path, user.uid, user.gid)
    path.chmod(mode)
    return path
