#!/usr/bin/python
# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: wal_archiving
short_description: Enable WAL archiving on a PostgreSQL server, and prove that it works
version_added: 0.3.0
description:
  - Chooses how the server archives its WAL, prepares the archive, sets the parameters by C(ALTER SYSTEM), reloads the
    configuration, and reports what waits for a restart. It never restarts the server.
  - Proves that archiving works. A segment is finished, on a standby's primary, archived, and fetched back by
    RV(restore_command). When nothing was changed, the file that was archived last is fetched back instead.
  - Installs C(pgfleet_wal.py) in O(script_directory). It is the C(archive_command) of
    O(method=script), and the C(restore_command) of O(method=basic_archive) too.
  - An C(archive_command) or C(archive_library) that this module did not set is only checked, unless O(method) replaces
    it.
  - C(basic_archive) with a directory below O(repository), and a command that runs C(pgfleet_wal.py), are this module's
    own. If they name another directory than O(directory), as after a rebuild from another node's files, the module
    repairs them.
options:
  repository:
    description:
      - Absolute path of the directory, on the database host, that holds the backups.
      - It must exist, belong to the user that runs the module and not be writable by everybody. With O(method=own) it
        is not used.
    type: path
    required: true
  cluster:
    description: Name of the database cluster in the repository, a plain file name.
    type: str
    required: true
  directory:
    description:
      - The archive, an absolute path. The default is C(wal) in the cluster's directory of O(repository).
      - It is made with mode 0700 when it does not exist. It must not lie in the data directory.
      - Two clusters must not share one.
    type: path
  script_directory:
    description:
      - The directory for C(pgfleet_wal.py), an absolute path. The default is C(.pgfleet) in the home directory of the
        user that runs the module.
      - It is made with mode 0700. It must not lie in O(repository) or in the data directory, and other users must not
        be able to change it, since the server runs what is there.
    type: path
  method:
    description:
      - V(auto) keeps an C(archive_command) or C(archive_library) that this module did not set (V(own)). Otherwise it
        takes V(basic_archive), or V(script) where that is not installed (always on PostgreSQL 14) or with
        O(compression).
      - V(basic_archive) is PostgreSQL's own C(archive_library), of version 15 and later.
      - V(script) is an C(archive_command) that runs C(pgfleet_wal.py).
      - V(own) only checks what is set.
      - V(basic_archive) and V(script) replace what is set.
    type: str
    choices: [auto, basic_archive, script, own]
    default: auto
  compression:
    description: Compression of the archived segments. An archive may hold files of several kinds.
    type: str
    choices: [none, gzip, zstd]
    default: none
  archive_mode:
    description:
      - With V(always) a standby archives too, from the WAL that it receives; it may share the directory with its
        primary.
      - With V(on) it starts archiving when it is promoted. For a primary both mean the same.
    type: str
    choices: ["on", always]
    default: "on"
  restore_command:
    description:
      - With O(method=own), the command that fetches a file back on the database host, written like PostgreSQL's
        C(restore_command), for example C(cp /srv/wal/%f %p). Without it the module relies on what the server reports.
    type: str
  restart:
    description:
      - Who restarts the server when a parameter needs it. It decides what the message says, and with V(done) what is
        waited for.
      - V(manual) leaves it to the administrator.
      - V(ask) changes nothing if a restart is needed, and returns it in RV(restart_required). So it can be tested that
        a restart is possible before anything is set. Otherwise it does the same as V(planned).
      - V(planned) means that the next task restarts the server.
      - V(done) means that the task before restarted it. The module waits until the server accepts connections
        and runs with the configured C(archive_mode), and proves archiving by a new segment.
    type: str
    choices: [manual, ask, planned, done]
    default: manual
  timeout:
    description: How long to wait for a segment to be archived, and for a restart, for example V(5 minutes).
    type: str
    default: 2 minutes
extends_documentation_fragment:
  - pgfleet.basebackup.login
  - pgfleet.basebackup.login.connects
  - pgfleet.basebackup.durations
  - pgfleet.basebackup.attributes
attributes:
  check_mode:
    support: full
    details:
      - What prevents archiving is returned in RV(problems) instead of a failure. Nothing is proven.
  diff_mode:
    support: full
notes:
  - The module must run as the server's operating system user. The role that it logs in as must be a superuser, for
    C(ALTER SYSTEM) and C(LOAD).
  - A run that changed something and then failed has RV(ignore:changed=true) in its failure.
seealso:
  - module: pgfleet.basebackup.wal_archive_info
  - module: pgfleet.basebackup.server_settings
  - module: pgfleet.basebackup.server_state
  - name: Continuous Archiving
    description: What WAL archiving is.
    link: https://www.postgresql.org/docs/current/continuous-archiving.html
author:
  - pgfleet.basebackup contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: WAL archiving is enabled and works
  pgfleet.basebackup.wal_archiving:
    repository: /srv/backups
    cluster: main
  become: true
  become_user: postgres
  register: archiving

- name: Restart where it is needed
  ansible.builtin.service:
    name: postgresql@18-main
    state: restarted
  when: archiving.restart_required

- name: Prove it
  pgfleet.basebackup.wal_archiving:
    repository: /srv/backups
    cluster: main
    restart: done
  become: true
  become_user: postgres
  when: archiving.restart_required
"""

RETURN = r"""
method:
  description: How the WAL is archived, V(basic_archive), V(script) or V(own).
  type: str
  returned: success
  sample: script
directory:
  description: The archive; empty with RV(method=own).
  type: str
  returned: success
  sample: /srv/backups/main/wal
compression:
  description: The compression of new files.
  type: str
  returned: success
  sample: none
archive_mode:
  description: The C(archive_mode) that is set.
  type: str
  returned: success
  sample: "on"
archive_command:
  description: The C(archive_command) that is set; empty with a library.
  type: str
  returned: success
  sample: /usr/bin/python3 -I /var/lib/postgresql/.pgfleet/pgfleet_wal.py archive /srv/backups/main/wal "%p" "%f"
archive_library:
  description: The C(archive_library) that is set; empty with a command.
  type: str
  returned: success
  sample: ""
restore_command:
  description: The C(restore_command) that fetches a file back; empty when none is known.
  type: str
  returned: success
  sample: >-
    [ -r /var/lib/postgresql/.pgfleet/pgfleet_wal.py ] || exit 255; /usr/bin/python3 -I
    /var/lib/postgresql/.pgfleet/pgfleet_wal.py restore /srv/backups/main/wal "%f" "%p"
archives:
  description: Whether this server itself archives. A standby does so only with C(archive_mode=always).
  type: bool
  returned: success
problems:
  description: What prevents archiving. Outside check mode it is a failure.
  type: list
  elements: dict
  returned: success, and when there is a problem
  contains:
    code:
      description: A stable word for programs.
      type: str
    msg:
      description: What is wrong.
      type: str
    hint:
      description: What to do.
      type: str
restart_required:
  description: Whether C(archive_mode) waits for a restart.
  type: bool
  returned: success
pending_restart:
  description: All parameters of the server that wait for a restart.
  type: list
  elements: str
  returned: success
  sample: [archive_mode]
proven:
  description: Whether a file was archived, and with RV(restore_command) fetched back.
  type: bool
  returned: success
segment:
  description: The file that was archived; empty when nothing is proven.
  type: str
  returned: success
  sample: "000000010000000000000007"
role:
  description: What the server is, V(primary) or V(standby).
  type: str
  returned: success
system_identifier:
  description: The cluster's system identifier, the same on all its nodes.
  type: str
  returned: success
data_directory:
  description: The server's data directory.
  type: str
  returned: success
  sample: /var/lib/postgresql/18/main
"""

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.preflight import (
    data_directory_problems,
    repository_problems,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._module import (
    cluster_argument_spec,
    duration,
    read_durations,
    run,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import archiving as _archiving
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.archive_proof import (
    Proof,
    must_force,
    prove,
    wait_restarted,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import (
    Connection,
    login_argument_spec,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.facts import server_info
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.settings import Parameters, as_lines, running
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.place import Place
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.script import COMPRESSIONS, default_directory


def wanted_of(params: t.Mapping[str, t.Any]) -> _archiving.Wanted:
    """Return the options as the decisions take them. Raises :class:`BackupError`, code ``bad_path``."""
    home = os.path.join(params["repository"], params["cluster"])
    directory = params["directory"] or os.path.join(home, "wal")
    if not os.path.isabs(directory):
        raise BackupError(f"{option('directory')} must be an absolute path, not {directory}.", code="bad_path")
    names = ("method", "compression", "archive_mode")
    options = {name: params[name] for name in names}
    scripts = params["script_directory"] or default_directory()
    return _archiving.Wanted(home, directory, scripts, restore_command=params["restore_command"] or "", **options)


class Run:
    """One call of the module over a connection."""

    def __init__(self, module: AnsibleModule, connection: Connection) -> None:
        self.params = module.params
        self.check_mode = module.check_mode
        self.connection = connection
        # Whether this call began to change something.
        self.touched = False
        self.info = server_info(connection)
        libraries = [_archiving.BASIC_ARCHIVE] if self.info["major"] >= 15 else []
        self.parameters = Parameters(connection, _archiving.NAMES, libraries)
        found = _archiving.Found(
            major=self.info["major"],
            version=self.info["version"],
            role=self.info["role"],
            data_directory=self.info["data_directory"],
            configured={name: self.parameters.value(name) for name in _archiving.NAMES},
            running_mode=running(connection, ["archive_mode"])["archive_mode"] or "off",
            has_basic_archive=bool(libraries) and not self.parameters.missing_libraries,
        )
        self.archiving = _archiving.Archiving(wanted_of(self.params), found)

    def problems(self) -> list[dict[str, str]]:
        """Return what prevents archiving."""
        problems = _archiving.problems_of(self.archiving)
        if self.archiving.method == _archiving.OWN:
            # Nothing is written here, but the server on this host would be restarted for the one that was asked.
            return problems if self.params["restart"] == "manual" else data_directory_problems(self.info) + problems
        found, free = repository_problems(self.info, self.params["repository"], self.params["cluster"])
        # A repository that is too small for a backup may hold an archive.
        return (found if free is None else []) + data_directory_problems(self.info) + problems

    def change(self) -> tuple[bool, list[dict[str, str]], list[str]]:
        """Prepare the archive and set the parameters; return whether that changes anything, the diff, what waits."""
        changes = self.parameters.plan(self.archiving.settings())
        diff = []
        if changes:
            self.parameters.require_rights(changes, reload=True)
            before, after = as_lines(changes, after=False), as_lines(changes, after=True)
            diff = [{"before_header": "parameters", "after_header": "parameters", "before": before, "after": after}]
        wanted = self.archiving.wanted
        place = (
            None
            if self.archiving.method == _archiving.OWN
            else Place(wanted.home, wanted.directory, wanted.script_directory)
        )
        if place:
            diff = place.diff() + diff
        pending = self.parameters.pending_restart(changes)
        if self.params["restart"] == "ask" and "archive_mode" in pending and not self.check_mode:
            return False, [], pending
        if diff and not self.check_mode:
            self.touched = True
            if place:
                place.make()
            if changes:
                self.parameters.apply(changes)
                self.parameters.reload()
                pending = self.parameters.pending_restart()
        return bool(diff), diff, pending

    def prove(self, changed: bool) -> Proof:
        """Prove that the server archives."""
        return prove(
            self.params,
            self.connection,
            self.info,
            self.archiving.restore_command,
            force=changed or self.params["restart"] == "done",
            timeout=self.params["timeout"],
            means=self.archiving.means(),
        )

    def result(self) -> dict[str, t.Any]:
        """Do everything and return the module's result; a failure says whether something was changed before."""
        try:
            return self._result()
        except BackupError as exc:
            exc.details["changed"] = self.touched or exc.details.get("changed", False)
            raise
        except OSError as exc:
            where = f"{exc.filename}: " if exc.filename else ""
            said = f"{where}{exc.strerror or exc}"
            raise BackupError(said, code="os_error", errno=exc.errno, changed=self.touched) from exc

    def _result(self) -> dict[str, t.Any]:
        problems = self.problems()
        if problems and not self.check_mode:
            said = " ".join(f"{one['msg']} {one['hint']}".strip() for one in problems)
            raise BackupError(said, code=problems[0]["code"], problems=problems)
        changed, diff, pending = (False, [], self.parameters.pending_restart()) if problems else self.change()
        restart_required = "archive_mode" in pending
        archives = self.archiving.archives()
        provable = archives and not restart_required and not problems
        proof = self.prove(changed) if provable and not self.check_mode else Proof("", False, "")
        forced = provable and self.check_mode and (changed or must_force(self.info["archiving"]))
        story = [f"WAL is {'to be ' if self.check_mode and changed else ''}archived by {self.archiving.means()}."]
        if self.archiving.elsewhere:
            story.append(self.repair_words())
        if problems:
            story.append("What prevents it:")
            story += [f"{one['msg']} {one['hint']}".strip() for one in problems]
        if restart_required:
            story.append(self.restart_words(pending))
        if not archives:
            story.append("This standby leaves archiving to the primary; it starts when it is promoted.")
        if forced:
            story.append("A segment would be forced through the archive.")
        if proof.msg:
            story.append(proof.msg)
        return {
            "changed": changed or proof.switched,
            "msg": " ".join(story),
            "diff": diff,
            **self.archiving.facts(),
            "archives": archives,
            "problems": problems,
            "restart_required": restart_required,
            "pending_restart": pending,
            "proven": bool(proof.segment),
            "segment": proof.segment,
            "data_directory": self.info["data_directory"],
            "role": self.info["role"],
            "system_identifier": self.info["system_identifier"],
        }

    def repair_words(self) -> str:
        """Return where the server archived to by a setting that was meant for another node."""
        repaired = "is to be" if self.check_mode else "is"
        return (
            f"Its setting archived into {self.archiving.elsewhere}, which is not the archive of this server;"
            f" a copy of another node has the settings of that node. It {repaired} repaired."
        )

    def restart_words(self, pending: list[str]) -> str:
        """Return what waits for a restart, and who makes it."""
        needed = f"A restart is needed for {', '.join(pending)}"
        if self.check_mode and self.params["restart"] != "manual":
            return f"{needed}; it would be made."
        if self.params["restart"] == "ask":
            return f"{needed}; nothing is changed before it is known to be possible."
        if self.params["restart"] == "planned":
            return f"{needed}; it is made next."
        variable = option("restart")
        allow = "" if variable == "restart" else f", or allow it: {variable}=true"
        return f"{needed}; until then the WAL is not archived this way. Restart the server{allow}."


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=dict(
            login_argument_spec(),
            **cluster_argument_spec(),
            directory={"type": "path"},
            script_directory={"type": "path"},
            method={"type": "str", "choices": list(_archiving.METHODS), "default": "auto"},
            compression={"type": "str", "choices": list(COMPRESSIONS), "default": "none"},
            archive_mode={"type": "str", "choices": ["on", "always"], "default": "on"},
            restore_command={"type": "str"},
            restart={"type": "str", "choices": ["manual", "ask", "planned", "done"], "default": "manual"},
            timeout=duration("2 minutes"),
        ),
        supports_check_mode=True,
    )

    def work() -> dict[str, t.Any]:
        read_durations(module.params, positive="timeout")
        if module.params["restart"] == "done" and not module.check_mode:
            wait_restarted(module.params, module.params["timeout"])
        with Connection(module.params) as connection:
            return Run(module, connection).result()

    run(module, work)


if __name__ == "__main__":
    main()
