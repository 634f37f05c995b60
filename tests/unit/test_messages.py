# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages and hints are sentences: a capital at the start, a full stop at the end, or a command after a colon."""

from __future__ import annotations

import ast
import pathlib
import re
import typing as t

import pytest

ROOT: t.Final = pathlib.Path(__file__).resolve().parents[2]
# Stands for a value in the checked text.
VALUE: t.Final = "\0"
# A capital, a value, or a name in its own spelling: archive_mode, backup.json, pg_control.
BEGINS: t.Final = re.compile(rf"[A-Z{VALUE}]|\w+[._]\w|pgfleet\b")
ENDS: t.Final = re.compile(
    r"""[.?!]"?\Z            # a full stop
    | (\A|:\s|-\s)\0+\Z      # only a value, or another program's message, after a colon or a dash
    | :\s[^.]*[\w\0')/]\Z    # a command after a colon
    | :\s.*;\Z               # SQL after a colon
    """,
    re.VERBOSE,
)


def text_of(node: t.Optional[ast.expr]) -> t.Optional[str]:
    """Return a literal with VALUE for each placeholder, None if it is not a literal."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = text_of(node.left), text_of(node.right)
        return (VALUE if left is None else left) + (VALUE if right is None else right)
    return None


def branches(node: t.Optional[ast.expr]) -> t.Iterator[str]:
    """Yield the possible texts of an expression."""
    if isinstance(node, ast.IfExp):
        yield from branches(node.body)
        yield from branches(node.orelse)
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from branches(value)
    else:
        text = text_of(node)
        if text:
            yield text


def definitions(trees: t.Iterable[ast.Module]) -> dict[str, list[str]]:
    """Return the parameters of each function and class with a parameter msg or hint."""
    found = {}
    for tree in trees:
        for node in ast.walk(tree):
            owner = node.name if isinstance(node, ast.ClassDef) else ""
            for item in node.body if isinstance(node, (ast.ClassDef, ast.Module)) else ():
                if isinstance(item, ast.FunctionDef):
                    names = [one.arg for one in item.args.args if one.arg != "self"]
                    if {"msg", "hint"} & set(names):
                        found[owner if item.name == "__init__" else item.name] = names
    return found


def texts(tree: ast.Module, known: t.Mapping[str, t.Sequence[str]]) -> t.Iterator[tuple[int, str, str]]:
    """Yield line, kind (msg, hint) and text of each message in a file."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        names = known.get(getattr(node.func, "attr", getattr(node.func, "id", "")))
        if names is None:
            continue
        given = {
            **dict(zip(names, node.args, strict=False)),
            **{one.arg: one.value for one in node.keywords if one.arg},
        }
        for kind in ("msg", "hint"):
            for text in branches(given.get(kind)):
                yield node.lineno, kind, text


TREES: t.Final = {
    path: ast.parse(path.read_text())
    for folder in ("module_utils", "modules")
    for path in sorted((ROOT / "plugins" / folder).rglob("*.py"))
}
KNOWN: t.Final = definitions(TREES.values())


@pytest.mark.parametrize("path", TREES, ids=lambda path: str(path.relative_to(ROOT / "plugins")))
def test_style(path: pathlib.Path) -> None:
    wrong = [
        f"{line}: {kind}: {text.replace(VALUE, '{}')}"
        for line, kind, text in texts(TREES[path], KNOWN)
        if not BEGINS.match(text) or not ENDS.search(text) or "{" in text
    ]
    assert wrong == []


def test_the_messages_are_found() -> None:
    assert sum(1 for tree in TREES.values() for _text in texts(tree, KNOWN)) > 300


@pytest.mark.parametrize(
    "text, is_good",
    [
        ("The backup is void.", True),
        ("{x} is void.", True),
        ("archive_mode is off.", True),
        ("Cannot connect: {x}", True),
        ("As a superuser: GRANT pg_monitor TO {x};", True),
        ("Make it: install -d {x}", True),
        ("{x}", True),
        ("the backup is void.", False),
        ("The backup is void", False),
        ("The backup {x}", False),
        ("fuser -v {x}", False),
    ],
)
def test_what_is_good(text: str, is_good: bool) -> None:
    text = text.replace("{x}", VALUE)
    assert bool(BEGINS.match(text) and ENDS.search(text)) == is_good
