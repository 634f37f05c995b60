# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/errors.md is the register of error codes: exactly the codes that can be raised have an entry."""

from __future__ import annotations

import ast
import pathlib
import re
import typing as t

import pytest
import yaml

ROOT: t.Final = pathlib.Path(__file__).resolve().parents[2]
REGISTER: t.Final = ROOT / "docs" / "errors.md"
ROLES: t.Final = ("pg_archive", "pg_backup", "pg_drill", "pg_recover")

# Codes with a variable part, and its values.
COMPOSED: t.Final = {
    "no_privilege_{}": ("backup_start", "backup_stop", "pg_monitor", "pg_read_all_settings", "switch_wal"),
    "{}_failed": ("copy", "restore", "verification"),
    "{}_killed": ("copy", "restore", "verification"),
}


def entries() -> dict[str, str]:
    """Return the text of each entry of the register."""
    _head, *parts = re.split(r"^### ", REGISTER.read_text(), flags=re.MULTILINE)
    pairs = (part.split("\n", 1) for part in parts)
    return {title.strip("`"): text.strip() for title, text in pairs}


class Codes:
    """The codes that a set of modules can raise, and those that it compares against."""

    def __init__(self, trees: t.Mapping[str, ast.Module]) -> None:
        self.raised: dict[str, str] = {}
        self.compared: dict[str, str] = {}
        self.unknown: list[str] = []
        self._parameters: dict[str, int] = {}
        self._constants: dict[str, ast.expr] = {}
        for tree in trees.values():
            self._definitions(tree)
        for name, tree in trees.items():
            for node in ast.walk(tree):
                self._visit(node, name)

    def _definitions(self, tree: ast.Module) -> None:
        for node in ast.walk(tree):
            owner = node.name if isinstance(node, ast.ClassDef) else ""
            for item in node.body if isinstance(node, (ast.ClassDef, ast.Module)) else ():
                if isinstance(item, ast.FunctionDef):
                    names = [argument.arg for argument in item.args.args]
                    if "code" in names:
                        called = owner if item.name == "__init__" else item.name
                        self._parameters[called] = names.index("code") - (1 if names[0] == "self" else 0)
                if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
                    self._constants[item.targets[0].id] = item.value

    def _visit(self, node: ast.AST, name: str) -> None:
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            at = self._parameters.get(called)
            if not given and at is not None and at < len(node.args):
                given = [node.args[at]]
            for value in given:
                self._add(value, name)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "code":
                    self._add(value, name)
        elif isinstance(node, ast.Assign) and any(
            isinstance(one, ast.Name) and one.id == "code" for one in node.targets
        ):
            self._add(node.value, name)
        elif isinstance(node, ast.Compare) and getattr(node.left, "attr", "") == "code":
            for value in node.comparators:
                found = self._constants.get(value.id, value) if isinstance(value, ast.Name) else value
                for one in ast.walk(found):
                    if isinstance(one, ast.Constant) and isinstance(one.value, str):
                        self.compared.setdefault(one.value, name)

    def _add(self, value: ast.expr, name: str) -> None:
        if isinstance(value, ast.IfExp):
            self._add(value.body, name)
            self._add(value.orelse, name)
        elif isinstance(value, ast.BoolOp):
            for part in value.values:
                self._add(part, name)
        elif isinstance(value, ast.Constant) and isinstance(value.value, str):
            self.raised.setdefault(value.value, name)
        elif isinstance(value, ast.JoinedStr):
            pattern = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in value.values)
            if pattern not in COMPOSED:
                self.unknown.append(f"{name}: {pattern}")
            for part_name in COMPOSED.get(pattern, ()):
                self.raised.setdefault(pattern.format(part_name), name)


def trees() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in sorted((ROOT / "plugins").rglob("*.py"))
    }


def codes_of_roles() -> dict[str, str]:
    """Return the codes that a role itself adds to a list of problems."""
    return {
        code: str(path.relative_to(ROOT))
        for path in sorted((ROOT / "roles").rglob("*.yml"))
        for code in re.findall(r"""['"]?\bcode['"]?: ['"]([a-z_0-9]+)['"]""", path.read_text())
    }


CODES: t.Final = Codes(trees())


def test_every_code_is_registered() -> None:
    raised = {**codes_of_roles(), **CODES.raised}
    missing = {code: where for code, where in raised.items() if code not in entries()}
    assert missing == {}, "Write an entry in docs/errors.md: what the code means and what to do."


def test_every_entry_is_raised() -> None:
    raised = {**codes_of_roles(), **CODES.raised}
    assert [code for code in entries() if code not in raised] == []


def test_every_composed_code_is_known() -> None:
    assert CODES.unknown == []


def test_no_comparison_with_a_code_that_is_never_raised() -> None:
    assert {code: where for code, where in CODES.compared.items() if code not in CODES.raised} == {}


def test_the_register_is_sorted_and_each_code_stands_once() -> None:
    titles = re.findall(r"^### `(\w+)`$", REGISTER.read_text(), flags=re.MULTILINE)
    assert titles == sorted(set(titles))


@pytest.mark.parametrize("code", entries())
def test_an_entry_says_what_it_means_and_what_to_do(code: str) -> None:
    meaning, action = re.split(r"\n\n\*What to do:\* ", entries()[code])
    assert all(text[0].isupper() or text[0] == "`" for text in (meaning, action))
    assert meaning.endswith((".", ".)"))
    assert action.endswith((".", ".)"))


def test_the_register_names_variables_of_the_roles() -> None:
    named = set(re.findall(rf"`((?:{'|'.join(ROLES)})_[a-z_]+)\b(?!\()", REGISTER.read_text()))
    known = set()
    for role in ROLES:
        specs = yaml.safe_load((ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text())
        known.update(specs["argument_specs"]["main"]["options"])
    assert sorted(named - known) == []


@pytest.mark.parametrize(
    "text",
    [
        'raise BackupError("m", code="made_up")',
        'raise BackupError("m", "made_up")',
        'def refuse(code, msg): pass\nrefuse("made_up", "m")',
        'class Plan:\n def refuse(self, code, msg): pass\nPlan().refuse("made_up", "m")',
        'raise BackupError("m", code=record.get("code") or "made_up")',
        'code = "made_up" if held else "lost"',
        'LOST = {"code": "made_up"}',
    ],
)
def test_a_code_is_found_however_it_is_written(text: str) -> None:
    definition = "class BackupError(Exception):\n def __init__(self, msg, code): pass\n"
    assert Codes({"one.py": ast.parse(definition + text)}).raised.get("made_up") == "one.py"
