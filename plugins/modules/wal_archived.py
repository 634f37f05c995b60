#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: wal_archived
short_description: Wait until the WAL that a base backup needs is archived
version_added: 0.1.0
description:
  - Waits until each file of O(required_wal) is archived, and fails after O(timeout), naming the first missing one.
    Nothing is lost then; the same call later continues to wait.
  - Without O(archive_directory) and O(restore_command) it asks the server whose archiver is responsible, by the
    server's own rules. That is the primary, or a standby with C(archive_mode=always). A standby with C(archive_mode=on)
    marks streamed segments as done without archiving them, and is refused. Segments of an older timeline than the
    server's are refused as well, because the server may have received them in that way.
  - With O(archive_directory) or O(restore_command) it fetches each file and checks its size, position and system
    identifier, which is the stronger proof. It then asks no server.
options:
  required_wal:
    description: The files, as returned by M(pgfleet.basebackup.backup_stop).
    type: list
    elements: str
    required: true
  system_identifier:
    description: The cluster's identifier; required with O(archive_directory) and O(restore_command).
    type: str
  wal_segment_size:
    description:
      - Size of a WAL segment in bytes. Only for O(archive_directory) and O(restore_command); the server knows its own.
    type: int
    default: 16777216
  timeout:
    description: How long to wait, a duration; V(0) checks once.
    type: str
    default: 10 minutes
  interval:
    description: Duration between two checks.
    type: str
    default: 1 second
extends_documentation_fragment:
  - pgfleet.basebackup.archive
  - pgfleet.basebackup.archive.command
  - pgfleet.basebackup.login
  - pgfleet.basebackup.login.connects
  - pgfleet.basebackup.durations
  - pgfleet.basebackup.attributes.info
notes:
  - O(restore_command) is stored in the backup's record as part of the proof, so it must not contain a secret.
seealso:
  - module: pgfleet.basebackup.backup_publish
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Wait until the primary has archived what the backup needs
  pgfleet.basebackup.wal_archived:
    required_wal: "{{ stop.required_wal }}"
    system_identifier: "{{ stop.system_identifier }}"
    timeout: 900
  register: proof

- name: The same, proven by fetching each file
  pgfleet.basebackup.wal_archived:
    required_wal: "{{ stop.required_wal }}"
    system_identifier: "{{ stop.system_identifier }}"
    wal_segment_size: "{{ stop.wal_segment_size }}"
    restore_command: cp /srv/wal/%f %p
  register: proof
"""

RETURN = r"""
proof:
  description: The proof that M(pgfleet.basebackup.backup_publish) requires.
  type: dict
  returned: success
  contains:
    archived:
      description: The files that are proven to be archived.
      type: list
      elements: str
    method:
      description: V(server), V(archive_directory) or V(restore_command).
      type: str
    source:
      description: The server, directory or command that was asked.
      type: str
    system_identifier:
      description: The cluster's identifier.
      type: str
    proven_at:
      description: Time of the proof, in seconds since the epoch.
      type: float
missing:
  description: Files that are not archived.
  type: list
  elements: str
  returned: on timeout, and in check mode
archiver:
  description: The archiver's last success and failure, as in M(pgfleet.basebackup.server_info).
  type: dict
  returned: on timeout, if a server was asked
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import (
    archive_argument_spec,
    duration,
    read_durations,
    run,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.archiver import (
    archiver_report,
    archiver_words,
    archives_itself,
    missing_on_server,
    require_cluster,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import (
    Connection,
    login_argument_spec,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.facts import server_info
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archived import (
    missing_by_command,
    missing_in_directory,
    require_wal_names,
    wait_archived,
)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(
            login_argument_spec(),
            **archive_argument_spec(),
            required_wal={"type": "list", "elements": "str", "required": True},
            system_identifier={"type": "str"},
            wal_segment_size={"type": "int", "default": 16777216},
            timeout=duration("10 minutes"),
            interval=duration("1 second"),
        ),
        mutually_exclusive=[("archive_directory", "restore_command")],
        required_by={"archive_directory": ["system_identifier"], "restore_command": ["system_identifier"]},
        supports_check_mode=True,
    )
    params = module.params
    names = params["required_wal"]

    def late(missing: list[str], where: str, advice: str, **details: object) -> BackupError:
        return BackupError(
            f"The WAL file {missing[0]} was not archived within {params['timeout']:g} s ({len(missing)} of {len(names)}"
            f" are missing): {where}",
            code="wal_not_archived",
            hint=f"{advice} The backup is kept; run it again to go on waiting.",
            missing=missing,
            **details,
        )

    def from_archive() -> tuple[str, str, str]:
        size = params["wal_segment_size"]
        require_wal_names(names, size)
        if not params["system_identifier"].isdigit():
            raise BackupError("system_identifier must be a number.", code="bad_number")
        identifier = int(params["system_identifier"])
        method = "archive_directory" if params["archive_directory"] else "restore_command"
        source = params[method]
        missing_in = missing_in_directory if params["archive_directory"] else missing_by_command
        missing = wait_archived(
            lambda wanted: missing_in(source, wanted, size, identifier), names, params["timeout"], params["interval"]
        )
        if missing:
            raise late(missing, f"looked for by {method}: {source}.", "Check the process that fills the archive.")
        return method, source, params["system_identifier"]

    def from_server() -> tuple[str, str, str]:
        with Connection(params) as connection:
            info = server_info(connection)
            require_wal_names(names, info["wal_segment_size"])
            require_cluster(info, params["system_identifier"])
            if not archives_itself(info):
                raise BackupError(
                    f"The standby at {info['address']} has archive_mode={info['archiving']['mode']}: it"
                    f" does not archive, the primary does.",
                    code="not_the_archiver",
                    hint=f"Ask the primary, or set {option('archive_directory')} or {option('restore_command')}.",
                )
            missing = wait_archived(
                lambda wanted: missing_on_server(connection, info, wanted), names, params["timeout"], params["interval"]
            )
            if missing:
                report = archiver_report(connection)
                raise late(
                    missing,
                    archiver_words(info["address"], report),
                    "Look at archive_command, the archive's free space and the server's log; on an idle"
                    " primary switch the WAL.",
                    archiver=report,
                )
            return "server", info["address"], info["system_identifier"]

    def work() -> dict[str, object]:
        read_durations(params, positive="interval", may_be_zero="timeout")
        if module.check_mode:
            params["timeout"] = 0
        by_archive = params["archive_directory"] or params["restore_command"]
        try:
            method, source, identifier = from_archive() if by_archive else from_server()
        except BackupError as exc:
            if module.check_mode and exc.code == "wal_not_archived":
                return {
                    "changed": False,
                    "missing": exc.details["missing"],
                    "msg": f"Not archived yet: {exc.details['missing'][0]}.",
                }
            raise
        proof = {
            "archived": names,
            "method": method,
            "source": source,
            "system_identifier": identifier,
            "proven_at": time.time(),
        }
        return {
            "changed": False,
            "proof": proof,
            "msg": f"All {len(names)} WAL files that the backup needs are archived.",
        }

    run(module, work)


if __name__ == "__main__":
    main()
