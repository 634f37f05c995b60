# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """How a module reaches the server: the vocabulary of community.postgresql."""

    DOCUMENTATION = r"""
options:
  login_host:
    description:
      - Host of the PostgreSQL server. Without it the local Unix socket is used.
      - If the value is not given, E(PGHOST) is used.
    type: str
  login_port:
    description:
      - Port of the PostgreSQL server.
      - If the value is not given, E(PGPORT) is used.
    type: int
    default: 5432
  login_user:
    description:
      - Role to log in as. It needs no superuser rights; see M(pgfleet.basebackup.server_info) for the C(GRANT)s.
      - If the value is not given, E(PGUSER) is used.
    type: str
    default: postgres
  login_password:
    description:
      - Password of O(login_user). A C(~/.pgpass) of the operating system user works too.
      - If the value is not given, E(PGPASSWORD) is used.
    type: str
  login_unix_socket:
    description:
      - Directory of the server's Unix socket, for local connections.
      - It is used when O(login_host) is not given or is V(localhost).
    type: path
  login_db:
    description:
      - Database to connect to. The privilege to run the backup functions is granted per database.
      - If the value is not given, E(PGDATABASE) is used.
    type: str
    default: postgres
  ssl_mode:
    description:
      - Whether, and with what priority, TLS is negotiated with the server. See libpq's C(sslmode).
      - If the value is not given, E(PGSSLMODE) is used.
    type: str
    choices: [allow, disable, prefer, require, verify-ca, verify-full]
    default: prefer
  ca_cert:
    description:
      - File with the certificates of the authorities that may sign the server's certificate, libpq's C(sslrootcert).
      - If the value is not given, E(PGSSLROOTCERT) is used.
    type: path
  ssl_cert:
    description:
      - File with the client's certificate.
      - If the value is not given, E(PGSSLCERT) is used.
    type: path
  ssl_key:
    description:
      - File with the client's private key.
      - If the value is not given, E(PGSSLKEY) is used.
    type: path
  connect_params:
    description:
      - Further libpq connection parameters, for example V(connect_timeout) (10 seconds here) or V(options).
      - The settings that the collection's own sessions need, an empty C(search_path) among them, override those in
        V(options); the role can be set there.
      - Host, port, user, password, database and client encoding are refused here; they have their own options.
        V(sslpassword) is refused as well, because it is a secret and would be logged; use a key without a passphrase.
    type: dict
    default: {}
"""

    CONNECTS = r"""
options: {}
requirements:
  - psycopg2 on the host that runs the module
notes:
  - Connect to the server itself. A pooling proxy (PgBouncer, Odyssey) cannot keep a session and is refused.
"""

    UNUSED = r"""
options: {}
notes:
  - The module does not connect to the server. It accepts the login options so that they can be set as defaults of the
    action group.
"""
