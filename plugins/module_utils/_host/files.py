# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small files made durable, and the errors of reading and writing them.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
import shutil
import stat
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError

_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def write_file(path: bytes, data: bytes, sync: bool) -> None:
    """Write a small new file of mode 0600, and with ``sync`` make it and its name durable. Raises BackupError."""
    writer = _create(path)
    try:
        os.fchmod(writer, 0o600)
        _write(writer, memoryview(data), path)
    finally:
        _close(writer, path)
    if sync:
        sync_path(path)
        sync_path(os.path.dirname(path))


def sync_path(path: bytes) -> None:
    """Make a file or a directory durable. Raises BackupError, code ``unwritable`` or ``disk_full``."""
    try:
        descriptor = os.open(path, _READ_FLAGS | os.O_NOFOLLOW)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as exc:
        raise unwritable(path, exc) from exc


def unreadable(path: bytes, error: OSError) -> BackupError:
    """Return the failure to read ``path``; when access is denied it names the user who may not."""
    hint = ""
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = f"The copy runs as {_user()}: run it as the operating system user of the server."
    return _failure("read", path, error, "unreadable", hint)


def unwritable(path: bytes, error: OSError) -> BackupError:
    """Return the failure to write ``path``: code ``disk_full``, with the bytes ``free``, or ``unwritable``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _failure("write", path, error, "disk_full", "", free=_free(path))
    hint = f"The copy runs as {_user()}." if error.errno in (errno.EACCES, errno.EPERM) else ""
    return _failure("write", path, error, "unwritable", hint)


def _failure(verb: str, path: bytes, error: OSError, code: str, hint: str, **details: t.Any) -> BackupError:
    name = errno.errorcode.get(error.errno or 0, str(error.errno))
    msg = f"cannot {verb} {printable(path)}: {error.strerror}"
    return BackupError(msg, code=code, hint=hint, path=printable(path), errno=name, **details)


def _user() -> str:
    number = os.geteuid()
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user {number}"


def _free(path: bytes) -> int:
    try:
        system = os.statvfs(os.path.dirname(path))
    except OSError:
        return 0
    return system.f_bavail * system.f_frsize


def _create(path: bytes) -> int:
    try:
        try:
            return os.open(path, _CREATE_FLAGS, 0o600)
        except FileExistsError:
            # Never written over: a process that was given up may still hold it open, and a link would lead elsewhere.
            os.unlink(path)
            return os.open(path, _CREATE_FLAGS, 0o600)
    except OSError as exc:
        raise unwritable(path, exc) from exc


def _write(writer: int, data: memoryview, path: bytes) -> None:
    try:
        count = os.write(writer, data)
        while count < len(data):
            data = data[count:]
            count = os.write(writer, data)
    except OSError as exc:
        raise unwritable(path, exc) from exc


def _close(writer: int, path: bytes) -> None:
    # Quotas and network file systems tell only here that data has no place.
    try:
        os.close(writer)
    except OSError as exc:
        raise unwritable(path, exc) from exc


def printable(path: bytes) -> str:
    """Return ``path`` as text for messages: bytes that are not UTF-8 become ``\\xNN``."""
    return path.decode("utf-8", "backslashreplace")


def fsync_path(path: str) -> None:
    """Make a file or directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: str, content: bytes) -> None:
    """Replace ``path`` by ``content``, as a whole and durably, with mode 0600."""
    temporary = path + ".tmp"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(temporary, path)
    fsync_path(os.path.dirname(path))


def write_json(path: str, content: t.Mapping[str, t.Any]) -> None:
    """Replace ``path`` by ``content`` as JSON; text with surrogate escapes survives."""
    write_bytes(path, json.dumps(content, indent=2, sort_keys=True).encode("ascii") + b"\n")


def read_json(path: str) -> dict[str, t.Any]:
    """Read what :func:`write_json` wrote. Raises OSError, or ValueError when it is not a JSON object."""
    with open(path, "rb") as stream:
        content = json.load(stream)
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return content


def read_small(path: str, most: int) -> bytes:
    """Read a regular file of at most ``most`` bytes, no link. Raises OSError, also for what is none such."""
    handle = os.open(path, _READ_FLAGS | os.O_NOFOLLOW)
    with os.fdopen(handle, "rb") as stream:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", path)
        data = stream.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"More than {most} bytes", path)
    return data


def make_directory(path: str) -> None:
    """Make a directory of mode 0700, unless it is there, and make its name durable."""
    if not os.path.isdir(path):
        # Another run's first backup may make it at this moment.
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        os.chmod(path, 0o700)
        fsync_path(os.path.dirname(path))


def remove(path: str) -> None:
    """Remove a file, a link or a whole directory, when it is there. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
