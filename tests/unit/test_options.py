# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of modules and variables of roles: all write durations in the same way."""

from __future__ import annotations

import importlib
import pathlib
import re
import typing as t

import pytest
import yaml
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.units import seconds

ROOT: t.Final = pathlib.Path(__file__).resolve().parents[2]
MODULES: t.Final = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("*.py"))
ROLES: t.Final = sorted(path.parents[1].name for path in (ROOT / "roles").glob("pg_*/meta/argument_specs.yml"))
DURATION: t.Final = re.compile(r"(_|^)(timeout|interval|max_age|takeover_after|growth_window)$")

Options = t.Dict[str, t.Dict[str, t.Any]]


def documentation_of(module: str) -> dict[str, t.Any]:
    """Return the documentation of a module, with the options of its fragments."""
    package = "ansible_collections.pgfleet.basebackup.plugins"
    found = yaml.safe_load(importlib.import_module(f"{package}.modules.{module}").DOCUMENTATION)
    found.setdefault("options", {})
    for name in found.get("extends_documentation_fragment", ()):
        file, part = (*name.split(".")[2:], "documentation")[:2]
        fragment = importlib.import_module(f"{package}.doc_fragments.{file}").ModuleDocFragment
        found["options"].update(yaml.safe_load(getattr(fragment, part.upper())).get("options", {}))
    return t.cast("dict[str, t.Any]", found)


def options_of_role(role: str) -> Options:
    specs = yaml.safe_load((ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text())
    return t.cast(Options, specs["argument_specs"]["main"]["options"])


def durations(options: Options) -> Options:
    return {name: option for name, option in options.items() if DURATION.search(name)}


def readable(option: t.Mapping[str, t.Any]) -> bool:
    """Whether an option takes text and its default is a duration."""
    default = option.get("default")
    return option["type"] == "str" and (default is None or (isinstance(default, str) and seconds(default, "it") >= 0))


@pytest.mark.parametrize("module", MODULES)
def test_durations_of_modules(module: str) -> None:
    documentation = documentation_of(module)
    found = durations(documentation["options"])
    assert [name for name, option in found.items() if not readable(option)] == []
    assert ("pgfleet.basebackup.durations" in documentation["extends_documentation_fragment"]) == bool(found)


@pytest.mark.parametrize("role", ROLES)
def test_durations_of_roles(role: str) -> None:
    assert [name for name, option in durations(options_of_role(role)).items() if not readable(option)] == []


@pytest.mark.parametrize("role", ROLES)
def test_defaults_of_roles_are_the_documented_ones(role: str) -> None:
    written = yaml.safe_load((ROOT / "roles" / role / "defaults" / "main.yml").read_text())
    documented = {name: option["default"] for name, option in options_of_role(role).items() if "default" in option}
    assert {name: written.get(name) for name in documented} == documented
