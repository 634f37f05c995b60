# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules share: durations, numbers, the handle, and how an error reaches the task."""

from __future__ import annotations

import errno
import os
import pathlib
import types
import typing as t

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgfleet.basebackup.plugins.module_utils import _module
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import activity as _work
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError

from tests.unit.helpers.backups import make_backup, make_cluster


def test_durations_are_read_in_place() -> None:
    params = {"timeout": "15 min", "interval": "0.5", "max_age": None, "cluster": "main"}
    _module.read_durations(params, positive="interval", may_be_zero="timeout max_age")
    assert params == {"timeout": 900.0, "interval": 0.5, "max_age": None, "cluster": "main"}


@pytest.mark.parametrize("text", ["0", "0 h", "soon"])
def test_a_refused_duration_is_named(text: str) -> None:
    with pytest.raises(BackupError, match=r"^interval .*\.$") as caught:
        _module.read_durations({"timeout": "0", "interval": text}, positive="interval", may_be_zero="timeout")
    assert caught.value.code == "bad_duration"


@pytest.mark.parametrize("number", [0, -1, -0.5])
def test_not_positive(number: float) -> None:
    _module.require_positive({"jobs": 1, "other": number}, "jobs")
    with pytest.raises(BackupError) as caught:
        _module.require_positive({"jobs": 1, "other": number}, "jobs", "other")
    assert (caught.value.code, "other" in caught.value.msg) == ("bad_number", True)


class Ended(Exception):
    """The end of a module, with its result."""

    def __init__(self, **said: t.Any) -> None:
        super().__init__()
        self.said = said


class MadeUpModule:
    """An AnsibleModule as far as these functions need one."""

    def __init__(self, check_mode: bool = False, **params: t.Any) -> None:
        self.params, self.check_mode = params, check_mode
        self.no_log_values = {"secret", "host=a password=b"}
        self.warnings: list[str] = []
        self.warn = self.warnings.append

    def fail_json(self, **said: t.Any) -> t.NoReturn:
        raise Ended(failed=True, **said)

    def exit_json(self, **said: t.Any) -> t.NoReturn:
        raise Ended(**said)


def run(module: MadeUpModule, work: t.Callable[[], dict[str, t.Any]]) -> dict[str, t.Any]:
    with pytest.raises(Ended) as caught:
        _module.run(t.cast("AnsibleModule", module), work)
    return caught.value.said


def test_run() -> None:
    module = MadeUpModule()
    old = os.umask(0)
    try:
        assert run(module, lambda: {"changed": True, "warnings": ["careful"]}) == {
            "changed": True,
            "invocation": {"module_args": {}},
        }
        assert os.umask(0) == 0o077
    finally:
        os.umask(old)
    assert module.warnings == ["careful"]


def test_run_that_fails() -> None:
    def fail(error: Exception) -> dict[str, t.Any]:
        raise error

    module = MadeUpModule()
    old = os.umask(0o022)
    try:
        said = run(module, lambda: fail(BackupError("No.", code="no", hint="Do.", free=1)))
        del said["invocation"]
        assert said == {"failed": True, "msg": "No. Do.", "code": "no", "hint": "Do.", "free": 1}
        said = run(module, lambda: fail(OSError(errno.ENOSPC, "No space left on device", "/srv/backups/x")))
        assert said["msg"] == "/srv/backups/x: No space left on device"
        assert (said["code"], said["errno"]) == ("os_error", errno.ENOSPC)
        # A defect is a traceback, not a message that hides it.
        with pytest.raises(KeyError):
            _module.run(t.cast("AnsibleModule", module), lambda: fail(KeyError("x")))
    finally:
        os.umask(old)


def test_a_password_is_hidden_and_nothing_else() -> None:
    """What looks like it remains: paths, ids, codes."""
    module = MadeUpModule(login_password="secret", repository="/srv/secretary", primary_conninfo="host=a password=b")
    said = run(module, lambda: {"repository": module.params["repository"]})
    assert said["repository"] == "/srv/secretary"
    assert said["invocation"]["module_args"]["login_password"] == _module.MASK
    # Ansible masks these in the whole result.
    assert module.no_log_values == {"host=a password=b"}


def backup_of(**params: t.Any) -> t.Any:
    return _module.backup_of(t.cast("AnsibleModule", MadeUpModule(**params)))


def test_handle(tmp_path: pathlib.Path) -> None:
    cluster = make_cluster(tmp_path)
    backup = make_backup(cluster, state="complete")
    known = {"repository": cluster.repository.path, "cluster": "main", "backup_id": "b1"}
    assert backup_of(**known, owner="me").id == "b1"
    with pytest.raises(BackupError) as caught:
        backup_of(**known, owner="another")
    assert caught.value.code == "taken_over"
    # In check mode nothing is claimed, and results of earlier steps do not exist.
    before = os.stat(backup.file("owner.json")).st_ino
    assert backup_of(**known, owner="another", check_mode=True).id == "b1"
    assert backup_of(**{**known, "backup_id": "b2"}, owner="me", check_mode=True) is None
    assert os.stat(backup.file("owner.json")).st_ino == before
    with pytest.raises(BackupError) as caught:
        backup_of(**{**known, "backup_id": "b2"}, owner="me")
    assert caught.value.code == "unknown_backup"
    # A published backup belongs to no run, and nothing is written into it.
    backup.publish()
    assert backup_of(**known, owner="another").published
    assert not os.path.exists(os.path.join(cluster.backups, "b1", "owner.json"))


@pytest.mark.parametrize("name", ["../x", "", "a/b", "."])
def test_handle_that_leads_elsewhere(tmp_path: pathlib.Path, name: str) -> None:
    cluster = make_cluster(tmp_path)
    for check_mode in (False, True):
        for wrong in ("cluster", "backup_id"):
            given = {"repository": cluster.repository.path, "cluster": "main", "backup_id": "b1", wrong: name}
            with pytest.raises(BackupError) as caught:
                backup_of(**given, owner=None, check_mode=check_mode)
            assert caught.value.code == "bad_name"


def test_module_is_a_module() -> None:
    """The fake module has no attribute that a real one lacks."""
    for name in ("fail_json", "exit_json", "warn"):
        assert isinstance(getattr(AnsibleModule, name), types.FunctionType)
    assert _work.host_name()
