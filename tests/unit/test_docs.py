# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the pages name exists: files, headings, modules, variables of roles."""

from __future__ import annotations

import pathlib
import re
import typing as t

import pytest
import yaml

TOP: t.Final = pathlib.Path(__file__).resolve().parents[2]
PAGES: t.Final = [
    path
    for path in (*TOP.glob("*.md"), *TOP.glob("docs/*.md"), *TOP.glob("roles/*/README.md"))
    # Made by antsibull-changelog, and about the past.
    if path.name != "CHANGELOG.md"
]
ROLES: t.Final = [path.parent.name for path in TOP.glob("roles/pg_*/meta")]
# Examples of files that the reader creates.
TO_WRITE: t.Final = {"tests/integration/test_example.py", "changelogs/fragments/slots.yml"}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))


def anchors(page: pathlib.Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ +(.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links(page: pathlib.Path) -> None:
    broken = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _hash, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@each_page
def test_files(page: pathlib.Path) -> None:
    """A path such as ``tests/conftest.py`` exists; ``_wal/archive.py`` is below module_utils."""
    paths = re.findall(r"(?<![\w./])((?:\w+/)+\w+\.(?:py|sh|yml|md))\b", page.read_text())
    roots = (TOP, TOP / "plugins", TOP / "plugins/module_utils")
    ours = [path for path in paths if any((root / path.partition("/")[0]).is_dir() for root in roots)]
    missing = [path for path in ours if not any((root / path).exists() for root in roots)]
    assert set(missing) <= TO_WRITE


@each_page
def test_variables(page: pathlib.Path) -> None:
    """Every variable of a role is an argument of it, its result, its handle or its playbook's."""
    known = set()
    for role in ROLES:
        specs = yaml.safe_load((TOP / "roles" / role / "meta/argument_specs.yml").read_text())
        known |= set(specs["argument_specs"]["main"]["options"])
        known |= {f"{role}_{name}" for name in ("hosts", "serial", "max_fail_percentage", "result", "handle")}
    found = set(re.findall(rf"\b(?:{'|'.join(ROLES)})_\w+", page.read_text()))
    # Without the functions of PostgreSQL, and beginnings such as pg_backup_hook_*.
    unknown = found - known - {"pg_backup_start", "pg_backup_stop"}
    assert [name for name in unknown if not name.endswith("_")] == []


def test_every_module_is_in_the_readme() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (TOP / "README.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(path.stem for path in TOP.glob("plugins/modules/*.py"))


def test_the_tree_of_the_architecture_has_no_other_files() -> None:
    """Each line of the tree is a package and files in it."""
    page = (TOP / "docs/architecture.md").read_text()
    tree = re.findall(r"^ {8}(_\w+)/ +((?:\w+\s+)+?)(?=^ {0,8}\S)", page, re.MULTILINE)
    assert len(tree) > 10
    shown = [f"{package}/{name}.py" for package, names in tree for name in names.split()]
    assert [name for name in shown if not (TOP / "plugins/module_utils" / name).exists()] == []
