# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of README.md and docs/restore.md, so that tests run what users read."""

from __future__ import annotations

import re
import shlex
import textwrap
import typing as t

import yaml

from tests.harness.modules import CLONE

RESTORE: t.Final = "docs/restore.md"
TIME: t.Final = "2026-11-22 03:14:00+00"


def block(language: str) -> str:
    """Return the README's first block in ``language``."""
    found = re.search(rf"^```{language}\n(.*?)^```", (CLONE / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


def backup_playbook() -> list[dict[str, t.Any]]:
    """Return the README's backup.yml."""
    found: list[dict[str, t.Any]] = yaml.safe_load(block("yaml"))
    return found


def commands(text: str) -> list[list[str]]:
    """Return the words of each command of a shell block, without comments."""
    lines = textwrap.dedent(text).replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def of_readme(playbook: str, *options: str, check: bool = False) -> list[str]:
    """Return the arguments of the README's ansible-playbook command that runs ``playbook``, with or without --check.

    The README shows some commands only with it.
    """
    found = [words[1:] for words in commands(block("sh")) if words[:2] == ["ansible-playbook", playbook]]
    assert found, playbook
    words = [word for word in found[-1] if word != "--check"]
    return [*words, *options, *(["--check"] if check else [])]


def below(heading: str) -> list[list[str]]:
    """Return the commands of the indented block below a heading of docs/restore.md."""
    text = (CLONE / RESTORE).read_text()
    part = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0] if heading else text
    found = re.search(r"^    .*\n(?:    .*\n)*", part, re.MULTILINE)
    assert found, heading
    return commands(found[0])


def advice(case: str) -> list[str]:
    """Return the options that the table of docs/restore.md adds to its command when ``case`` has happened."""
    (row,) = [line for line in (CLONE / RESTORE).read_text().splitlines() if line.startswith(f"| {case}")]
    quoted = re.findall(r"`(-e [^`]*)`", row.split("|")[3])
    return [word for one in quoted for word in shlex.split(one)]


def restore(cluster: str, options: list[str], check: bool = False, **replaced: str) -> list[str]:
    """Return the arguments of the command of docs/restore.md with ``options``; ``replaced`` hosts have other names."""
    ((_program, *words),) = below("")
    words = [word for word in words if word != "--check"]
    hosts = {"db1": cluster, **replaced}
    words = [re.sub(r"\bdb\d\b", lambda found: hosts[found[0]], word) for word in [*words, *options]]
    return [*words, *(["--check"] if check else [])]
