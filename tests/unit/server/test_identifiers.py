# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names as SQL, and the settings of our sessions as libpq takes them."""

from __future__ import annotations

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.hardened import SETTINGS, for_any_role, packet
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.identifiers import identifier


@pytest.mark.parametrize(
    "name, quoted",
    [
        ("backup", "backup"),
        ("backup_2", "backup_2"),
        ("Backup", '"Backup"'),
        ("2nd", '"2nd"'),
        ("a-b", '"a-b"'),
        ("", '""'),
        ("user", '"user"'),
        ("public", '"public"'),
        ('x" TO y; --', '"x"" TO y; --"'),
        ("x\n", '"x\n"'),
        ("größe", '"größe"'),
    ],
)
def test_identifier(name: str, quoted: str) -> None:
    assert identifier(name) == quoted


def test_the_packet_has_every_setting_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGOPTIONS", raising=False)
    words = packet().split(" -c ")
    assert len(words) == len(SETTINGS)
    assert "default_transaction_isolation=read\\ committed" in words
    assert "-c search_path= " in packet()


def test_our_settings_come_after_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one counts; the role is the user's choice."""
    text = packet("-c role=backup -c search_path=mine", more={"transaction_timeout": "0"})
    assert text.startswith("-c role=none -c role=backup -c search_path=mine -c search_path= ")
    assert text.endswith("-c transaction_timeout=0")
    assert "search_path" not in packet("", ("search_path",))
    monkeypatch.setenv("PGOPTIONS", "-c jit=off")
    assert " -c jit=off " in packet()
    assert "jit" not in packet("")


def test_what_only_a_superuser_may_set_is_left_out() -> None:
    given = "-c session_preload_libraries= -c jit=off -c event_triggers=off"
    assert for_any_role(given).split() == ["-c", "jit=off"]
    assert for_any_role(packet("")) == packet("")
