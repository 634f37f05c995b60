# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run one module of the collection: in this process (5 ms), in a fork as the server user, or as a program (0.2 s)."""

from __future__ import annotations

import atexit
import codecs
import contextlib
import functools
import importlib
import inspect
import io
import json
import linecache
import os
import pathlib
import shutil
import sys
import tempfile
import traceback
import typing as t
from unittest import mock

import yaml
from ansible.module_utils import basic

from . import binaries
from .sandbox import temporary_directory
from .servers import Server
from .user import ServerUser, run, server_user

COLLECTION: t.Final = "ansible_collections.pgfleet.basebackup"
CLONE: t.Final = pathlib.Path(__file__).resolve().parents[2]

Result = t.Dict[str, t.Any]


@contextlib.contextmanager
def _module_arguments(arguments: t.Mapping[str, t.Any]) -> t.Iterator[None]:
    """Pass arguments to the next AnsibleModule, also on ansible-core 2.18, which has no function for it."""
    try:
        from ansible.module_utils.testing import patch_module_args
    except ImportError:
        content = json.dumps({"ANSIBLE_MODULE_ARGS": dict(arguments)}).encode()
        with mock.patch.object(basic, "_ANSIBLE_ARGS", content):
            yield
    else:
        with patch_module_args(dict(arguments)):
            yield


def _special(check: bool, diff: bool) -> dict[str, t.Any]:
    return {"_ansible_check_mode": check, "_ansible_diff": diff, "_ansible_remote_tmp": "/tmp", "_ansible_verbosity": 0}


def run_module(name: str, arguments: t.Mapping[str, t.Any], *, check: bool = False, diff: bool = False) -> Result:
    """Run a module in this process and return its result. An exception reaches the test."""
    module = importlib.import_module(f"{COLLECTION}.plugins.modules.{name}")
    stdout = io.StringIO()
    umask = os.umask(0o022)
    with _module_arguments({**arguments, **_special(check, diff)}), contextlib.redirect_stdout(stdout):
        try:
            module.main()
        except SystemExit:
            pass
        finally:
            # A module normally runs in its own process and leaves its umask set; the tests must not inherit it.
            os.umask(umask)
    return _parse(stdout.getvalue())


def run_module_as_server(
    name: str, arguments: t.Mapping[str, t.Any], *, check: bool = False, diff: bool = False
) -> Result:
    """Run a module as the server user in a fork of this process: as on a database host, but in 0.02 s."""
    user = server_user()
    if user.is_me:
        return run_module(name, arguments, check=check, diff=diff)
    importlib.import_module(f"{COLLECTION}.plugins.modules.{name}")
    _load_what_is_loaded_late()
    python = binaries.server_python()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer: dict[str, t.Any] = {}
        try:
            os.close(reader)
            os.setgroups([])
            os.setgid(user.gid)
            os.setuid(user.uid)
            os.chdir("/")
            sys.executable = python
            with mock.patch.object(linecache, "checkcache"):
                answer = run_module(name, arguments, check=check, diff=diff)
        except BaseException:  # this process has no caller that would see an exception
            answer = {"harness": traceback.format_exc()}
        finally:
            with os.fdopen(writer, "w") as pipe:
                json.dump(answer, pipe)
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    result: Result = json.loads(text)
    assert "harness" not in result, result["harness"]
    return result


@functools.cache
def _load_what_is_loaded_late() -> None:
    """Load what modules load or read while they run: another account may not be able to read the clone."""
    importlib.import_module("_strptime")
    for codec in ("ascii", "idna", "latin_1", "utf_8"):
        codecs.lookup(codec)
    for script in ("_session.keeper", "_wal.pgfleet_wal"):
        inspect.getsource(importlib.import_module(f"{COLLECTION}.plugins.module_utils.{script}"))
    with _module_arguments(_special(False, False)), contextlib.redirect_stdout(io.StringIO()):
        with contextlib.suppress(SystemExit):
            basic.AnsibleModule(argument_spec={}).exit_json()


def run_module_as(
    name: str,
    arguments: t.Mapping[str, t.Any],
    *,
    python: str,
    user: ServerUser | None = None,
    env: t.Mapping[str, str] | None = None,
    check: bool = False,
    timeout: float = 120,
) -> Result:
    """Run a module with another interpreter as ``user`` (default: the server user), as a target host would."""
    stdin = json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, **_special(check, diff=False)}})
    done = run(
        [python, "-m", f"{COLLECTION}.plugins.modules.{name}"],
        user=user,
        env={**(env or {}), "PYTHONPATH": str(payload()), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=stdin,
        check=False,
        timeout=timeout,
    )
    if not done.stdout.strip().startswith("{"):
        raise AssertionError(f"{name} under {python}, exit {done.returncode}: {done.stdout}\n{done.stderr}")
    return _parse(done.stdout)


def _parse(stdout: str) -> Result:
    result = json.loads(stdout.strip().splitlines()[-1])
    assert isinstance(result, dict), stdout
    assert "Traceback" not in str(result.get("exception", "")) or result.get("failed"), result["exception"]
    return result


@functools.cache
def payload() -> pathlib.Path:
    """Return a folder that any user can read with what Ansible would send: module_utils and our plugins.

    The environment and the clone may lie in a home directory that others cannot enter.
    """
    root = pathlib.Path(tempfile.mkdtemp(prefix="pgfleet-payload-", dir=temporary_directory()))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    ansible = pathlib.Path(basic.__file__).parent
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ansible, root / "ansible" / "module_utils", ignore=ignore)
    (root / "ansible" / "__init__.py").write_text("")
    shutil.copytree(CLONE / "plugins", root / COLLECTION.replace(".", "/") / "plugins", ignore=ignore)
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return root


def target_pythons() -> list[str]:
    """Return the oldest and the newest interpreter found that this ansible-core's modules support, with psycopg2.

    They may lie in the current user's home: run them as that user, see `tests.harness.user.me`.
    """
    minimum = tuple(getattr(basic, "_PY_MIN", (3, 8)))
    usable = [
        path
        for version, path in binaries.interpreters().items()
        if tuple(int(part) for part in version.split(".")) >= minimum
    ]
    return [binaries.with_psycopg2(path) for path in dict.fromkeys([usable[0], usable[-1]])]


@functools.cache
def options_of(name: str) -> frozenset[str]:
    """Return the names of a module's options, from its documentation and the fragments it extends."""
    documentation = yaml.safe_load(importlib.import_module(f"{COLLECTION}.plugins.modules.{name}").DOCUMENTATION)
    names = set(documentation.get("options") or {})
    for fragment in documentation.get("extends_documentation_fragment") or []:
        if fragment.startswith("pgfleet.basebackup."):
            file, _dot, attribute = fragment[len("pgfleet.basebackup.") :].partition(".")
            module = importlib.import_module(f"{COLLECTION}.plugins.doc_fragments.{file}")
            text = getattr(module.ModuleDocFragment, (attribute or "documentation").upper())
            names.update(yaml.safe_load(text).get("options") or {})
    return frozenset(names)


class Modules:
    """Modules with common arguments: each module gets those that it documents."""

    def __init__(
        self, server: Server | None = None, *, tcp: bool = False, as_server: bool = False, **common: t.Any
    ) -> None:
        """Take the login of ``server`` and further common arguments such as ``repository`` and ``cluster``.

        With ``as_server`` the modules run as the server user, who then owns what they write.
        """
        self._run = run_module_as_server if as_server else run_module
        self.common = {**(server.login(tcp=tcp) if server else {}), **common}

    def arguments(self, name: str, **arguments: t.Any) -> dict[str, t.Any]:
        """Return the arguments for the module ``name``."""
        known = options_of(name)
        return {**{key: value for key, value in self.common.items() if key in known}, **arguments}

    def run(self, name: str, *, check: bool = False, **arguments: t.Any) -> Result:
        """Run the module and return the result, failed or not."""
        return self._run(name, self.arguments(name, **arguments), check=check)

    def ok(self, name: str, *, check: bool = False, **arguments: t.Any) -> Result:
        """Run the module and require success."""
        result = self.run(name, check=check, **arguments)
        assert not result.get("failed"), f"{name}: {result.get('msg')} {result}"
        return result

    def fails(self, name: str, *, check: bool = False, **arguments: t.Any) -> Result:
        """Run the module and require that it fails with a message, not a traceback."""
        result = self.run(name, check=check, **arguments)
        assert result.get("failed"), f"{name} did not fail: {result}"
        assert "Traceback" not in str(result.get("exception", "")), result
        return result
