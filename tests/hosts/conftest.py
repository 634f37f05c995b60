# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One booted fleet for the tests of a module."""

from __future__ import annotations

import pathlib
import typing as t

import pytest

from tests.harness import systemd
from tests.harness.sandbox import Sandbox
from tests.hosts.helpers.world import World

HERE: t.Final = pathlib.Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give these tests more time: each runs whole playbooks, and a module's first one boots the hosts."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="module")
def booted() -> t.Iterator[World]:
    """Four hosts with their clusters, created once."""
    if reason := systemd.obstacle():
        pytest.skip(reason)
    with Sandbox() as sandbox, systemd.SystemdFleet(sandbox.root / "fleet", "pg1", "pg2", "pg3", "pg4") as fleet:
        yield World(sandbox, fleet)


@pytest.fixture
def world(booted: World) -> t.Iterator[World]:
    """The fleet, whose servers must all be well before and after the test."""
    booted.healthy()
    yield booted
    booted.healthy()
