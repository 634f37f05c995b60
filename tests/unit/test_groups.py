# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action groups of meta/runtime.yml: each member accepts all options of its group, and its page says so."""

from __future__ import annotations

import importlib
import pathlib
import typing as t

import pytest
import yaml
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import login_argument_spec

PACKAGE: t.Final = "ansible_collections.pgfleet.basebackup.plugins.modules"
ROOT: t.Final = pathlib.Path(__file__).resolve().parents[2]
MODULES: t.Final = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("*.py"))
GROUPS: t.Final = yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text())["action_groups"]
OPTIONS: t.Final = {
    "basebackup": set(login_argument_spec()),
    "handle": {"repository", "cluster", "backup_id", "owner"},
}


class Started(Exception):
    """The module has passed its arguments."""


def options(name: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the names of the options that a module accepts."""
    module = importlib.import_module(f"{PACKAGE}.{name}")
    accepted: set[str] = set()

    def start(argument_spec: dict[str, t.Any], **_others: t.Any) -> t.NoReturn:
        accepted.update(argument_spec)
        raise Started

    monkeypatch.setattr(module, "AnsibleModule", start)
    with pytest.raises(Started):
        module.main()
    return accepted


@pytest.mark.parametrize("name", MODULES)
def test_members_accept_the_groups_options(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly the modules that accept all options of a group are in it: others would fail with its defaults."""
    accepted = options(name, monkeypatch)
    fits = {group for group, wanted in OPTIONS.items() if wanted <= accepted}
    assert fits == {group for group, members in GROUPS.items() if name in members}


@pytest.mark.parametrize("name", MODULES)
def test_pages_name_the_groups(name: str) -> None:
    """The fragments of a module's page name the groups that it is in."""
    module = importlib.import_module(f"{PACKAGE}.{name}")
    fragments = yaml.safe_load(module.DOCUMENTATION)["extends_documentation_fragment"]
    attributes = [fragment for fragment in fragments if fragment.startswith("pgfleet.basebackup.attributes")]
    # The first fragment wins; that of the steps names both groups.
    assert (attributes[0] == "pgfleet.basebackup.attributes.step") is (name in GROUPS["handle"])
    assert len(attributes) == (2 if name in GROUPS["handle"] else 1)


def test_members_exist() -> None:
    assert set(OPTIONS) == set(GROUPS)
    assert {name for members in GROUPS.values() for name in members} <= set(MODULES)
