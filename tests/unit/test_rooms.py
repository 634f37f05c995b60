# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Imports between the packages of module_utils run one way, as docs/architecture.md draws them."""

from __future__ import annotations

import ast
import pathlib
import re
import typing as t

import pytest

PACKAGE: t.Final = "ansible_collections.pgfleet.basebackup.plugins"
PLUGINS: t.Final = pathlib.Path(__file__).resolve().parents[2] / "plugins"
# What each package may import, apart from itself and _errors.
ALLOWED: t.Final = {
    "_errors": "",
    "_host": "",
    "_wal": "_host",
    "_datadir": "_host _wal",
    "_server": "_host _wal _datadir",
    "_repository": "_host _wal _datadir",
    "_session": "_host _server",
    "_backup": "_host _wal _datadir _server _repository _session",
    "_verify": "_host _wal _datadir _server _repository",
    "_restore": "_host _wal _datadir _server _repository _verify",
    "_drill": "_host _server _repository",
    "_catalogue": "_host _wal _repository _session _backup",
    "_module": "_host _server _repository _backup",
}
# What each package is and may know; the sentence is in each of its files and in the table of docs/architecture.md.
SENTENCES: t.Final = {
    "_errors": "the one exception that reaches the administrator; it imports nothing",
    "_host": "files, locks, workers and detached processes; it knows no PostgreSQL",
    "_wal": "names, records and archives of WAL; it knows no server and no backup",
    "_datadir": "a data directory and the formats of its files; it knows no server",
    "_server": "a PostgreSQL server, its settings and process; it knows no repository",
    "_repository": "backups on disk, their records and their locks; it knows no server",
    "_session": "the session process, starting and asking it; it knows no repository",
    "_backup": "the steps of a backup, from start to publish; it knows no restore",
    "_verify": "whether a published backup is still what was published; it only reads",
    "_restore": "which backup, the plan, the restore; it knows nothing of ``_backup``",
    "_drill": "the scratch directory of a drill; it knows nothing of ``_backup``",
    "_catalogue": "what a repository has, how far it can be recovered; it only reads",
    "_module": "arguments and results that the modules share; only modules import it",
}


def imports_of(path: pathlib.Path) -> set[str]:
    """Return the collection's files, as dotted names below plugins, that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            base = (node.module or "")[len(PACKAGE) + 1 :]
            for alias in node.names:
                below = f"{base}.{alias.name}".strip(".")
                found.add(below if (PLUGINS / (below.replace(".", "/") + ".py")).exists() else base)
    return found


FILES: t.Final = {
    ".".join(path.relative_to(PLUGINS).with_suffix("").parts): imports_of(path)
    for path in sorted((PLUGINS / "module_utils").rglob("*.py"))
}


def package_of(name: str) -> str:
    return name.split(".")[1]


@pytest.mark.parametrize("package", ALLOWED)
def test_arrows(package: str) -> None:
    allowed = {package, "_errors", *ALLOWED[package].split()}
    forbidden = [
        f"{name} imports {other}"
        for name, others in FILES.items()
        for other in sorted(others)
        if package_of(name) == package and (not other.startswith("module_utils.") or package_of(other) not in allowed)
    ]
    assert forbidden == []


def test_every_package_is_drawn() -> None:
    assert {package_of(name) for name in FILES} == set(ALLOWED)


def test_the_page_draws_these_arrows() -> None:
    """The table in docs/architecture.md has each package, what it is and what it may import."""
    page = (PLUGINS.parent / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| `(_\w+)` \| ([^|]*) \|([^|]*)\|$", page, re.MULTILINE)
    assert {name: " ".join(re.findall(r"_\w+", arrows)) for name, _text, arrows in rows} == ALLOWED
    assert {name: text.replace("`", "``") for name, text, _arrows in rows} == SENTENCES


@pytest.mark.parametrize("package", SENTENCES)
def test_every_file_says_its_room(package: str) -> None:
    sentence = f"Private to pgfleet.basebackup. Room ``{package}``: {SENTENCES[package]}."
    files = [PLUGINS / (name.replace(".", "/") + ".py") for name in FILES if package_of(name) == package]
    docstrings = {path.name: ast.get_docstring(ast.parse(path.read_text())) or "" for path in files}
    missing = [name for name, text in docstrings.items() if sentence not in text.split("\n")]
    assert missing == [], f"Their first docstring lacks: {sentence}"


def test_no_circle() -> None:
    left = dict(FILES)
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert sorted(left) == []
