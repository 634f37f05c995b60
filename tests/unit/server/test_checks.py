# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Assertions about the content of a database, without a server."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import checks


class MadeUpConnection:
    """A connection whose queries all return true."""

    asked: t.ClassVar[list[tuple[t.Any, ...]]] = []

    def __init__(self, _params: t.Mapping[str, t.Any], **_options: t.Any) -> None:
        self.asked.clear()

    def __enter__(self) -> MadeUpConnection:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def rows(self, *query: t.Any) -> None:
        self.asked.append(query)

    def restore_search_path(self) -> None:
        pass

    def texts(self, _query: str) -> list[list[str]]:
        return [["t"]]


@pytest.mark.parametrize("timeout, milliseconds", [(0.0005, "1"), (1.5, "1500"), (0.0, "0")])
def test_a_short_timeout_is_a_limit(timeout: float, milliseconds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 ms would be no limit."""
    monkeypatch.setattr(checks, "Connection", MadeUpConnection)
    (found,) = checks.run_checks({"login_db": "postgres"}, [{"query": "SELECT true"}], timeout)
    assert found["ok"] is True
    assert MadeUpConnection.asked[-1][1] == ("statement_timeout", milliseconds)
