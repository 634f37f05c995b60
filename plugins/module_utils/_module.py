# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shared by the modules: arguments, the backup that the handle names, and how a result or an error ends the task.

Private to pgfleet.basebackup. Room ``_module``: arguments and results that the modules share; only modules import it.
"""

from __future__ import annotations

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.activity import claim
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.units import seconds
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import (
    Backup,
    Cluster,
    Repository,
    check_name,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.connection import login_argument_spec

PASSWORDS = ("login_password", "check_password")
MASK = "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"


def cluster_argument_spec() -> dict[str, t.Any]:
    """Return the arguments of the ``handle`` documentation fragment."""
    return {"repository": {"type": "path", "required": True}, "cluster": {"type": "str", "required": True}}


def handle_argument_spec() -> dict[str, t.Any]:
    """Return the arguments of the ``handle`` documentation fragment with ``backup_id`` and ``owner``.

    The login arguments are accepted too, so that they can be set as defaults of the whole action group.
    """
    return dict(
        cluster_argument_spec(),
        **login_argument_spec(),
        backup_id={"type": "str", "required": True},
        owner={"type": "str"},
    )


def archive_argument_spec(command: bool = True) -> dict[str, t.Any]:
    """Return the arguments of the ``archive`` documentation fragment, with ``restore_command`` if ``command``."""
    arguments: dict[str, t.Any] = {"archive_directory": {"type": "path"}}
    return {**arguments, "restore_command": {"type": "str"}} if command else arguments


def recovery_target_argument_spec() -> dict[str, t.Any]:
    """Return the arguments of the ``recovery_target`` documentation fragment."""
    return {
        "recovery_target": {"type": "str"},
        "recovery_target_time": {"type": "str"},
        "recovery_target_lsn": {"type": "str"},
        "recovery_target_xid": {"type": "str"},
        "recovery_target_name": {"type": "str"},
        "recovery_target_inclusive": {"type": "bool", "default": True},
        "recovery_target_timeline": {"type": "str", "default": "latest"},
        "recovery_target_action": {"type": "str", "choices": ["pause", "promote", "shutdown"], "default": "promote"},
    }


def detached_argument_spec(run_id: bool = False) -> dict[str, t.Any]:
    """Return the arguments of the ``detached`` documentation fragment, with the option ``run_id`` if that is true."""
    arguments: dict[str, t.Any] = {
        "progress_interval": duration("10 seconds"),
        "wait_timeout": duration("0"),
    }
    return {**arguments, "run_id": {"type": "str"}} if run_id else arguments


def duration(default: t.Optional[str] = None) -> dict[str, t.Any]:
    """Return the specification of an option that :func:`read_durations` reads."""
    return {"type": "str", "default": default}


def read_durations(params: dict[str, t.Any], positive: str = "", may_be_zero: str = "") -> None:
    """Replace the durations with these names by their seconds; one that was not given stays None.

    Raises :class:`BackupError`, code ``bad_duration``.
    """
    for name in (*positive.split(), *may_be_zero.split()):
        if params[name] is None:
            continue
        given, params[name] = params[name], seconds(params[name], name)
        if params[name] == 0 and name in positive.split():
            raise BackupError(f"{option(name)} must be longer than 0, not {given}.", code="bad_duration")


def require_positive(params: t.Mapping[str, t.Any], *names: str) -> None:
    """Raise :class:`BackupError` unless the numbers ``names`` are above zero."""
    for name in names:
        if params[name] <= 0:
            raise BackupError(f"{option(name)} must be greater than 0, not {params[name]}.", code="bad_number")


def cluster_of(module: AnsibleModule) -> Cluster:
    """Return the cluster that the module's handle names, checked."""
    check_name(module.params["cluster"], "The cluster name")
    return Repository(module.params["repository"]).cluster(module.params["cluster"])


def backup_of(module: AnsibleModule, claimed: bool = True) -> t.Optional[Backup]:
    """Return the backup that the module's handle names, None in check mode when it does not exist.

    In check mode the earlier steps have not made it. Otherwise an unfinished backup is claimed for ``owner``, unless
    any run may do the step.
    """
    cluster = cluster_of(module)
    check_name(module.params["backup_id"], "The backup_id")
    if module.check_mode:
        return cluster.find(module.params["backup_id"])
    backup = cluster.get(module.params["backup_id"])
    if claimed and not backup.published:
        claim(backup, module.params["owner"])
    return backup


def handle(module: AnsibleModule) -> dict[str, t.Any]:
    """Return the handle for the module's result."""
    return {name: module.params[name] for name in ("repository", "cluster", "backup_id")}


def run(module: AnsibleModule, work: t.Callable[[], dict[str, t.Any]]) -> t.NoReturn:
    """Run ``work``, and end the module with its result or its error."""
    os.umask(0o077)
    shown = _without_masks(module)
    try:
        result = work()
    except BackupError as exc:
        module.fail_json(**exc.as_result(), **shown)
    except OSError as exc:
        where = f"{exc.filename}: " if exc.filename else ""
        module.fail_json(msg=f"{where}{exc.strerror or exc}", code="os_error", errno=exc.errno, **shown)
    for warning in result.pop("warnings", ()):
        module.warn(warning)
    module.exit_json(**result, **shown)
    raise AssertionError("exit_json returned")


def _without_masks(module: AnsibleModule) -> dict[str, t.Any]:
    """Keep Ansible from masking the passwords in a result, and return the part of the result that has them, masked.

    Ansible replaces a secret wherever its characters occur: with the password ``repo`` the path ``/srv/repository``
    would come back as another one, with ``2026`` the id of a backup, and with ``archive`` the code of an error. No
    result of ours has a password but among its arguments.
    """
    secrets = {name: module.params[name] for name in PASSWORDS if module.params.get(name)}
    # The connection string of a standby, where it is an argument, stays masked.
    module.no_log_values.difference_update(secrets.values())
    arguments = {**module.params, **dict.fromkeys(secrets, MASK)}
    return {"invocation": {"module_args": arguments}}
