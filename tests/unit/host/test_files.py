# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files and directories: replaced as a whole, flushed, private; and the errors of reading and writing them."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import stat

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import files as _files

from tests.unit.helpers.crashes import crashes


def mode_of(path: pathlib.Path | str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_json_keeps_any_path(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "x.json")
    content = {"path": os.fsdecode(b"caf\xe9"), "n": 1.5, "none": None}
    _files.write_json(path, content)
    assert json.loads(pathlib.Path(path).read_text()) == content
    assert mode_of(path) == 0o600


def test_json_is_replaced_as_a_whole(tmp_path: pathlib.Path) -> None:
    old, new = {"state": "old", "much": "x" * 10000}, {"state": "new"}

    def prepare(folder: pathlib.Path) -> str:
        path = str(folder / "x.json")
        _files.write_json(path, old)
        return path

    seen = set()
    for where, path in crashes(tmp_path, prepare, lambda path: _files.write_json(path, new)):
        content = json.loads(pathlib.Path(path).read_text())
        assert content in (old, new), where
        seen.add(content["state"])
        _files.remove_temporary(os.path.dirname(path))
        _files.write_json(path, new)
        assert (json.loads(pathlib.Path(path).read_text()), os.listdir(os.path.dirname(path))) == (new, ["x.json"]), (
            where
        )
    assert seen == {"old", "new"}


@pytest.mark.parametrize("durable", [True, False])
def test_replaced(tmp_path: pathlib.Path, durable: bool) -> None:
    """The new content has the requested mode, whatever the old file's mode and the umask."""
    path = tmp_path / "x"
    path.write_text("old")
    path.chmod(0o644)
    before = os.umask(0o077)
    try:
        with _files.replacing(str(path), mode=0o640, durable=durable) as stream:
            stream.write(b"new")
            assert path.read_text() == "old"
    finally:
        os.umask(before)
    assert (path.read_text(), mode_of(path), os.listdir(tmp_path)) == ("new", 0o640, ["x"])


def test_not_replaced(tmp_path: pathlib.Path) -> None:
    """A block that fails leaves the old content, and no part of the new one."""
    path = os.fsencode(tmp_path) + b"/x"
    _files.write_bytes(path, b"old")
    with pytest.raises(ZeroDivisionError):
        with _files.replacing(path) as stream:
            stream.write(b"%d" % (1 // 0))
    assert (pathlib.Path(os.fsdecode(path)).read_text(), os.listdir(tmp_path)) == ("old", ["x"])


def test_a_link_is_not_followed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of the temporary file cannot be foreseen; even a link with that name leads nowhere."""
    names = set()
    for _turn in range(3):
        with _files.replacing(str(tmp_path / "x")):
            names |= set(os.listdir(tmp_path)) - {"x"}
    assert len(names) == 3
    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * 2 * count)
    (tmp_path / "other").write_text("old")
    (tmp_path / f"x.{'0' * 16}.tmp").symlink_to(tmp_path / "other")
    with pytest.raises(FileExistsError):
        _files.write_bytes(str(tmp_path / "x"), b"new")
    assert (tmp_path / "other").read_text() == "old"
    (tmp_path / "kept.tmp").touch()
    _files.remove_temporary(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["kept.tmp", "other", "x"]


def test_an_existing_directory_is_no_link(tmp_path: pathlib.Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "other")
    with pytest.raises(FileExistsError):
        _files.make_directory(str(tmp_path / "link"))


def test_directories(tmp_path: pathlib.Path) -> None:
    """New directories are private whatever the umask; an existing one is left unchanged."""
    before = os.umask(0)
    try:
        _files.make_directory(str(tmp_path / "a"))
        _files.new_directory(os.fsencode(tmp_path / "b"))
    finally:
        os.umask(before)
    assert (mode_of(tmp_path / "a"), mode_of(tmp_path / "b")) == (0o700, 0o700)
    (tmp_path / "a").chmod(0o750)
    _files.make_directory(str(tmp_path / "a"))
    assert mode_of(tmp_path / "a") == 0o750
    with pytest.raises(FileExistsError):
        _files.new_directory(str(tmp_path / "a"))


def test_flushing_follows_links_only_where_they_are_expected(tmp_path: pathlib.Path) -> None:
    link = os.fsencode(tmp_path) + b"/link"
    os.symlink(tmp_path, link)
    _files.fsync_path(link)
    with pytest.raises(BackupError) as caught:
        _files.sync_path(link)
    assert (caught.value.code, caught.value.details["errno"]) == ("unwritable", "ELOOP")


@pytest.mark.parametrize(
    "number, code, hint", [(errno.ENOSPC, "disk_full", ""), (errno.EACCES, "unwritable", "This runs as user ")]
)
def test_what_cannot_be_written(tmp_path: pathlib.Path, number: int, code: str, hint: str) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9"
    error = _files.unwritable(path, OSError(number, os.strerror(number)))
    assert (error.code, error.hint.startswith(hint), "caf\\xe9" in error.msg) == (code, True, True)
    assert error.details["errno"] == errno.errorcode[number]
    assert (error.details.get("free", 1) > 0) is True


def test_paths_in_messages() -> None:
    assert _files.printable(b"caf\xe9") == "caf\\xe9"
