# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of every session of ours: what the owner of a role or of a database has set does not reach it.

Private to pgfleet.basebackup. Room ``_server``: a PostgreSQL server, its settings and process; it knows no repository.

``ALTER ROLE … SET`` and ``ALTER DATABASE … SET`` take effect before the first statement of a session; only the start
packet overrides them. A search path lets functions of others replace the system's, a role takes rights away, a time-out
ends a backup, ``local_preload_libraries`` loads code. Sources: PostgreSQL, "Setting Parameters", "Client Connection
Defaults", CVE-2018-1058.
"""

from __future__ import annotations

import os
import re
import typing as t

# The first statement of every session.
EMPTY_SEARCH_PATH = "SELECT pg_catalog.set_config('search_path', '', false)"

# Any role may set each of these, in every supported version: a role without rights could not connect otherwise.
SETTINGS: dict[str, str] = {
    "role": "none",
    "search_path": "",
    "local_preload_libraries": "",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    # Rows that a policy hides are an error, not absent.
    "row_security": "off",
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "transform_null_equals": "off",
    # A query that is refused is an answer, and not the end of the session.
    "exit_on_error": "off",
    # What these sessions write must not wait for a standby that is away.
    "synchronous_commit": "local",
}

# Version 17 and later; another server would refuse the connection.
TRANSACTION_TIMEOUT = ("transaction_timeout", "0")
HAS_TRANSACTION_TIMEOUT = 170000

# The roles add these on a copied server, whose libraries and triggers they keep from the session. Only a superuser may.
_OF_A_COPY = re.compile(r"-c (session_preload_libraries=|event_triggers=off)(?= |$)")

_SPECIAL = re.compile(r"([\\\s])")


def packet(
    given: t.Optional[str] = None, without: t.Container[str] = (), more: t.Optional[t.Mapping[str, str]] = None
) -> str:
    """Return libpq's ``options`` with :data:`SETTINGS` but ``without`` some, then ``more``.

    ``given`` are the user's options (default PGOPTIONS); they can set the role, and everything that is not set here.
    """
    role = {"role": SETTINGS["role"]}
    ours = {
        name: value for name, value in {**SETTINGS, **(more or {})}.items() if name not in role and name not in without
    }
    own = os.environ.get("PGOPTIONS", "") if given is None else given
    return " ".join(part for part in (_switches(role), own, _switches(ours)) if part)


def for_any_role(options: str) -> str:
    """Return ``options`` without those that only a superuser may set."""
    return _OF_A_COPY.sub("", options)


def _switches(settings: t.Mapping[str, str]) -> str:
    return " ".join(f"-c {name}={_SPECIAL.sub(_escaped, value)}" for name, value in settings.items())


def _escaped(match: t.Match[str]) -> str:
    return "\\" + match.group(1)
