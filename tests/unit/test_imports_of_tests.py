# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests take what they share from helpers and from the harness, never from another test."""

from __future__ import annotations

import ast
import pathlib
import re
import typing as t

TESTS: t.Final = pathlib.Path(__file__).resolve().parents[1]
# ansible-test keeps its environments in tests/output.
FILES: t.Final = {
    str(path.relative_to(TESTS)): path
    for path in sorted(TESTS.rglob("*.py"))
    if path.relative_to(TESTS).parts[0] != "output"
}
# What a file below each folder may import of the tests.
ALLOWED: t.Final = {
    "conftest.py": (),
    "harness": ("harness",),
    "unit": ("unit.helpers",),
    "hosts": ("harness", "hosts.helpers"),
    "integration": ("harness", "integration.helpers", "unit.helpers"),
}


def imported(path: pathlib.Path) -> list[str]:
    """Return the modules below tests that a file imports, by their names below it."""
    found = []
    folder = ["tests", *path.parent.relative_to(TESTS).parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(folder[: len(folder) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            found += [f"{module}.{alias.name}" for alias in node.names]
    names = [re.sub(r"^ansible_collections\.pgfleet\.basebackup\.", "", name) for name in found]
    return [name[len("tests.") :] for name in names if name.startswith("tests.")]


def test_no_test_imports_another() -> None:
    forbidden = [
        f"{name} imports {one}"
        for name, path in FILES.items()
        for one in imported(path)
        if not one.startswith(tuple(f"{allowed}." for allowed in ALLOWED.get(name.split("/")[0], ())))
    ]
    assert forbidden == []
