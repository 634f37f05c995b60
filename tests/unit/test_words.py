# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages name an option as the user set it: by the role's variable when a role called the module."""

from __future__ import annotations

import ast
import functools
import importlib
import pathlib
import re
import typing as t

import pytest
import yaml
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import VARIABLES, option

ROOT: t.Final = pathlib.Path(__file__).resolve().parents[2]
PLUGINS: t.Final = ROOT / "plugins"
PREFIX: t.Final = "ansible_collections.pgfleet.basebackup.plugins."
ROLES: t.Final = ("pg_archive", "pg_backup", "pg_drill", "pg_recover")
MODULES: t.Final = sorted(path.stem for path in (PLUGINS / "modules").glob("*.py"))

Task = t.Dict[str, t.Any]


def test_a_module_called_directly_names_its_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLES, raising=False)
    assert option("delta") == "delta"
    monkeypatch.setenv(VARIABLES, "")
    assert option("delta") == "delta"


def test_a_module_called_by_a_role_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLES, "pg_backup_ timeout=archive_timeout")
    assert [option("wal"), option("timeout")] == ["pg_backup_wal", "pg_backup_archive_timeout"]


def test_a_role_without_a_variable_leaves_the_option_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLES, "pg_drill_ login_host=")
    assert [option("login_host"), option("login_user")] == ["login_host", "pg_drill_login_user"]


def variables_of(role: str) -> set[str]:
    specs = yaml.safe_load((ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text())
    return set(specs["argument_specs"]["main"]["options"])


def tasks_of(role: str) -> t.Iterator[tuple[str, Task]]:
    """Yield each task of a role, blocks included, with the option names that its environment gives to modules."""
    folder = ROOT / "roles" / role / "tasks"
    files = {path.name: yaml.safe_load(path.read_text()) or [] for path in sorted(folder.glob("*.yml"))}
    words: dict[str, str] = {}

    def walk(tasks: t.Iterable[Task], inherited: str) -> t.Iterator[tuple[str, Task]]:
        for task in tasks:
            own = task.get("environment", {}).get(VARIABLES, inherited)
            yield own, task
            include = task.get("ansible.builtin.include_tasks")
            if isinstance(include, dict):
                own = include.get("apply", {}).get("environment", {}).get(VARIABLES, own)
                include = include["file"]
            if include in files:
                words.setdefault(include, own)
            for key in ("block", "rescue", "always"):
                yield from walk(task.get(key, ()), own)

    left = ["main.yml"]
    words["main.yml"] = ""
    while left:
        name = left.pop()
        yield from walk(files[name], words[name])
        left += [other for other in words if other in files and other != name and other in files]
        del files[name]
        left = [other for other in dict.fromkeys(left) if other in files]


def calls_of(role: str) -> t.Iterator[tuple[str, str, dict[str, t.Any]]]:
    """Yield option names, module and arguments for each of our modules that a role calls or sets defaults for."""
    for words, task in tasks_of(role):
        for holder in (task, task.get("module_defaults", {})):
            for key, arguments in holder.items():
                if key.startswith(("pgfleet.basebackup.", "group/pgfleet.basebackup.")):
                    yield words, key.rpartition(".")[2], arguments or {}


@pytest.mark.parametrize("role", ROLES)
def test_the_words_of_a_role_are_its_variables(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages name an argument that is one variable of the role by that variable."""
    wrong = {}
    for words, module, arguments in calls_of(role):
        monkeypatch.setenv(VARIABLES, words)
        for name, value in arguments.items():
            match = re.match(r"\{\{ (\w+)( \| [^}]*)? \}\}\Z", str(value))
            if match and match.group(1) in variables_of(role) and option(name) != match.group(1):
                wrong[f"{module}.{name}"] = f"{option(name)} instead of {match.group(1)}"
    assert wrong == {}


def imports_of(path: pathlib.Path) -> set[pathlib.Path]:
    """Return the collection's files that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PREFIX):
            base = PLUGINS / (node.module or "")[len(PREFIX) :].replace(".", "/")
            for candidate in (base.with_suffix(".py"), *(base / f"{alias.name}.py" for alias in node.names)):
                if candidate.exists():
                    found.add(candidate)
    return found


@functools.cache
def named_options(module: str) -> dict[str, str]:
    """Return the options that a module or its imports name in messages, each with its file."""
    left, seen = [PLUGINS / "modules" / f"{module}.py"], set()
    found: dict[str, str] = {}
    while left:
        path = left.pop()
        if path in seen:
            continue
        seen.add(path)
        left += imports_of(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "option":
                for argument in node.args:
                    if isinstance(argument, ast.Constant):
                        found.setdefault(str(argument.value), str(path.relative_to(ROOT)))
    return found


@functools.cache
def options_of(module: str) -> frozenset[str]:
    """Return the options of a module, and become_user, which every task and, as a variable, every role has."""
    package = f"{PREFIX}modules.{module}"
    spec: dict[str, t.Any] = {}

    class Stop(Exception):
        """The module has passed its arguments."""

    def take(argument_spec: dict[str, t.Any], **_more: t.Any) -> t.NoReturn:
        spec.update(argument_spec)
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module(package), "AnsibleModule", take)
        with pytest.raises(Stop):
            importlib.import_module(package).main()
    return frozenset({*spec, "become_user"})


@pytest.mark.parametrize("role", ROLES)
def test_each_option_that_is_named_is_a_variable(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = {}
    modules = {
        (words, name) for words, name, _arguments in calls_of(role) if (PLUGINS / "modules" / f"{name}.py").exists()
    }
    for words, module in sorted(modules):
        monkeypatch.setenv(VARIABLES, words)
        for name in named_options(module).keys() & options_of(module):
            # An option without a variable keeps its own name.
            if option(name) not in {*variables_of(role), name}:
                unknown[f"{module}: {option(name)}"] = named_options(module)[name]
    assert unknown == {}


@pytest.mark.parametrize("module", MODULES)
def test_each_option_that_is_named_exists(module: str) -> None:
    """Shared code may name an option of another module, that of an earlier step."""
    known = frozenset().union(*(options_of(one) for one in MODULES))
    assert [name for name in named_options(module) if name not in known] == []
