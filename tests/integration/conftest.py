# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers for the integration tests.

A test that uses the fixture ``major``, directly or indirectly, runs on the majors of its mark
``@pytest.mark.majors(15, 18)``, without a mark on the newest. ``PG=15`` in the environment selects one of these; tests
without a mark run on it.
"""

from __future__ import annotations

import os
import pathlib
import typing as t

import pytest

from tests.harness import binaries
from tests.harness.modules import Modules
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on each major that its mark names."""
    if "major" not in metafunc.fixturenames:
        return
    wanted = [int(word) for word in os.environ.get("PG", "").replace(",", " ").split()]
    mark = metafunc.definition.get_closest_marker("majors")
    majors = [major for major in mark.args if not wanted or major in wanted] if mark else wanted or [binaries.NEWEST]
    metafunc.parametrize("major", majors, ids=[f"pg{major}" for major in majors], scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect, instead of skipping, what PG excludes: in CI a skip is a failure."""
    none = [item for item in items if "NOTSET" in item.name]
    if none:
        config.hook.pytest_deselected(items=none)
        items[:] = [item for item in items if item not in none]


@pytest.fixture
def sandbox() -> t.Iterator[Sandbox]:
    """An empty sandbox, removed with all its servers after the test."""
    with Sandbox() as box:
        yield box


@pytest.fixture
def primary(sandbox: Sandbox, major: int) -> Server:
    """A primary with a WAL archive and one tablespace."""
    return sandbox.primary(major, tablespaces=["extra"])


@pytest.fixture
def standby(sandbox: Sandbox, primary: Server) -> Server:
    """A streaming standby of ``primary``."""
    return sandbox.standby(primary)


@pytest.fixture
def repository(sandbox: Sandbox) -> pathlib.Path:
    """An empty repository owned by the server user."""
    return sandbox.directory("repository")


@pytest.fixture
def modules(primary: Server, repository: pathlib.Path) -> Modules:
    """The modules with the login of ``primary``, the repository and the cluster ``main``."""
    return Modules(primary, repository=str(repository), cluster="main")


@pytest.fixture
def standby_modules(standby: Server, repository: pathlib.Path) -> Modules:
    """The modules with the login of ``standby``, the repository and the cluster ``main``."""
    return Modules(standby, repository=str(repository), cluster="main")
