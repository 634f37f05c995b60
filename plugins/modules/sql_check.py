#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sql_check
short_description: Assert what a restored database contains
version_added: 0.2.0
description:
  - Runs queries, each in a read-only transaction, and compares what they return with what is expected. The module runs
    all of them, then fails if one is not as expected.
  - A query runs the code of the database, for example a view's function. So each runs as a role without rights, whose
    own session it is. If O(login_user) is a superuser, or has rights outside the database, a role is made that may read
    everything (C(pg_read_all_data), C(BYPASSRLS)), and is removed at the end.
options:
  checks:
    description:
      - The checks, each a dictionary with C(query) and, optionally, C(name) (default the query), C(database) (default
        O(login_db)) and C(expected).
      - C(expected) is the single value of the result, or a list of all its rows. Each row is a list of values or, for a
        result of one column, a value. Without C(expected) the result must be one value that is true.
      - Values are compared as the text that C(psql -At) prints; numbers also by value, and booleans however they are
        spelled. C(null) is SQL's C(NULL).
    type: list
    elements: dict
    required: true
  timeout:
    description: Maximum duration of one query, and of its wait for a lock; V(0) means no limit.
    type: str
    default: 10 minutes
  check_user:
    description:
      - A role without rights that runs the queries, instead of one that is made. It is needed on a server in recovery,
        where none can be made, and where C(pg_hba.conf) does not let a new role in, neither on the socket nor, with a
        password, on 127.0.0.1.
    type: str
    version_added: 0.3.0
  check_password:
    description: Password of O(check_user).
    type: str
    version_added: 0.3.0
  as_superuser:
    description:
      - Run the queries as O(login_user), whatever its rights. Whoever can create a function, a view or an operator in
        one of the databases may then run programs as the operating system user of the server. The module warns.
    type: bool
    default: false
    version_added: 0.3.0
extends_documentation_fragment:
  - pgfleet.basebackup.login
  - pgfleet.basebackup.login.connects
  - pgfleet.basebackup.durations
  - pgfleet.basebackup.attributes.info
seealso:
  - module: pgfleet.basebackup.recovery_info
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: The shop's data is complete
  pgfleet.basebackup.sql_check:
    login_unix_socket: /run/postgresql
    login_db: shop
    timeout: 60
    checks:
      - name: orders of yesterday
        query: SELECT count(*) > 0 FROM orders WHERE ordered_at::date = current_date - 1
      - name: countries
        query: SELECT code, name FROM countries ORDER BY code LIMIT 2
        expected: [[AD, Andorra], [AE, United Arab Emirates]]
      - query: SELECT count(*) FROM audit_rules
        database: audit
        expected: 17
"""

RETURN = r"""
results:
  description: One for each check, in order.
  type: list
  elements: dict
  returned: when the checks could be run
  contains:
    name:
      description: The check's name.
      type: str
    ok:
      description: Whether the result is as expected.
      type: bool
    value:
      description: The single value, or the first 20 rows; null if the query failed.
      type: raw
    expected:
      description: The expected value; null if none was given.
      type: raw
    msg:
      description: What was found, or why the query failed.
      type: str
  sample:
    - name: orders of yesterday
      ok: true
      value: "t"
      expected:
      msg: "'t', as expected"
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import duration, read_durations, run
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.check_role import rights_of, without_rights
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.checks import require_checks, run_checks
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import (
    Connection,
    login_argument_spec,
)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(
            login_argument_spec(),
            checks={"type": "list", "elements": "dict", "required": True},
            timeout=duration("10 minutes"),
            check_user={"type": "str"},
            check_password={"type": "str", "no_log": True},
            as_superuser={"type": "bool", "default": False},
        ),
        supports_check_mode=True,
    )
    params = module.params

    def work() -> dict[str, object]:
        read_durations(params, may_be_zero="timeout")
        require_checks(params["checks"])
        warnings = []
        if params["as_superuser"]:
            with Connection(params) as connection:
                rights = rights_of(connection)
            warnings = [f"The checks run the code of the databases, and the role {rights}."] if rights else []
            results = run_checks(params, params["checks"], params["timeout"])
        else:
            with without_rights(params, params["check_user"], params["check_password"]) as login:
                results = run_checks(login, params["checks"], params["timeout"])
        bad = [result for result in results if not result["ok"]]
        if bad:
            reasons = "; ".join(f"{result['name']}: {result['msg']}" for result in bad)
            raise BackupError(
                f"{len(bad)} of {len(results)} checks failed: {reasons}", code="checks_failed", results=results
            )
        msg = f"All {len(results)} checks are as expected."
        return {"changed": False, "results": results, "msg": msg, "warnings": warnings}

    run(module, work)


if __name__ == "__main__":
    main()
