# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exclusion rules of a backup that depend on names only."""

from __future__ import annotations

import os
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import tree as _datadir

MAJORS = [14, 15, 16, 17, 18]
CATALOG = 202506291

RELATIONS = [
    # name, as 14 to 16 split it, as 17 and later do
    ("1259", ("1259", ""), ("1259", "")),
    ("1259_fsm", ("1259", "fsm"), ("1259", "fsm")),
    ("1259_vm.1", ("1259", "vm"), ("1259", "vm")),
    ("1259_init", ("1259", "init"), ("1259", "init")),
    ("1259.131072", ("1259", ""), ("1259", "")),
    ("01259", ("01259", ""), None),
    ("0", ("0", ""), None),
    ("1259.0", ("1259", ""), None),
    ("1259.01", ("1259", ""), None),
    ("4294967295", ("4294967295", ""), ("4294967295", "")),
    ("4294967296", ("4294967296", ""), None),
    ("1259.4294967295", ("1259", ""), ("1259", "")),
    ("1259.4294967296", ("1259", ""), None),
    ("99999999999", None, None),
    ("1259_main", None, None),
    ("1259_", None, None),
    ("1259_init_fsm", None, None),
    ("1259.", None, None),
    ("1259.1.2", None, None),
    ("1259.1_fsm", None, None),
    ("1259 ", None, None),
    ("1259\n", None, None),
    ("", None, None),
    ("t1_1259", None, None),
    ("PG_VERSION", None, None),
    ("\u0661\u0662", None, None),
]


@pytest.mark.parametrize("name, old, new", RELATIONS)
def test_relation_names(name: str, old: t.Optional[t.Tuple[str, str]], new: t.Optional[t.Tuple[str, str]]) -> None:
    for major in MAJORS:
        expected = new if major >= 17 else old
        found = _datadir.parse_relation(os.fsencode(name), major)
        assert found == (expected and tuple(map(os.fsencode, expected)))


@pytest.mark.parametrize(
    "name, expected",
    [
        ("t3_16384", True),
        ("t0_1", True),
        ("t3_16384_fsm", True),
        ("t3_16384_init.1", True),
        ("t3_16384.01", True),
        ("t3_16384_main", False),
        ("t3_16384.", False),
        ("t3_", False),
        ("t_3", False),
        ("t3", False),
        ("T3_16384", False),
        ("t3_16384\n", False),
        ("xt3_16384", False),
        ("t3_16384_vm_1", False),
    ],
)
def test_temporary_relation_names(name: str, expected: bool) -> None:
    assert _datadir.is_temporary_relation(os.fsencode(name)) is expected


@pytest.mark.parametrize(
    "path, expected",
    [
        ("base/5", True),
        ("base/05", True),
        (f"pg_tblspc/16384/PG_18_{CATALOG}/5", True),
        ("base", False),
        ("base/pgsql_tmp", False),
        ("global", False),
        ("5", False),
        ("base/5/5", False),
        (f"pg_tblspc/16384/PG_17_{CATALOG}/5", False),
        (f"pg_tblspc/16384/PG_18_{CATALOG}", False),
        ("pg_tblspc/16384", False),
        ("base/\u0665", False),
    ],
)
def test_database_directories(path: str, expected: bool) -> None:
    version = _datadir.version_directory(18, CATALOG)
    assert _datadir.is_database_directory(os.fsencode(path), version) is expected
