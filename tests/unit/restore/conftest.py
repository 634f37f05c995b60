# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A published backup and a directory to restore it to."""

from __future__ import annotations

import os
import pathlib

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import copy as _copy
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import copy as _restore_copy
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import places as _places
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import planner as _planner
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import running as _running

from tests.unit.helpers.published import Published
from tests.unit.helpers.restores import Case, chosen, in_this_process


@pytest.fixture
def published(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    made = Published(tmp_path)
    made.content["server"]["catalog_version"] = 202506291
    made.save()
    monkeypatch.setattr(_planner, "choose_backup", chosen(made))
    # The tests may run as root, which PostgreSQL refuses.
    monkeypatch.setattr(_places, "is_root", lambda: False)
    monkeypatch.setattr(_running, "running_servers", list)
    # Fast enough for hundreds of restores; a crash at a flush is still tested.
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    for module in (_copy, _restore_copy):
        monkeypatch.setattr(module, "run_workers", in_this_process)
    return made


@pytest.fixture
def case(tmp_path: pathlib.Path, published: Published) -> Case:
    folder = tmp_path / "target"
    folder.mkdir()
    return Case(folder, published)
