# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files and directories: made, replaced and flushed to disk, and the errors of reading and writing them.

``AnyPath`` is text or bytes. Functions for bytes raise BackupError, those for either raise OSError.

Private to pgfleet.basebackup. Room ``_host``: files, locks, workers and detached processes; it knows no PostgreSQL.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
import re
import secrets
import stat
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError

AnyPath = t.TypeVar("AnyPath", str, bytes)
READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TEMPORARY = re.compile(r".+\.[0-9a-f]{16}\.tmp\Z", re.DOTALL)


def write_file(path: bytes, data: bytes, sync: bool) -> None:
    """Write a small new file of mode 0600, and with ``sync`` make it and its name durable. Raises BackupError."""
    writer = create(path)
    try:
        os.fchmod(writer, 0o600)
        write_all(writer, memoryview(data), path)
    finally:
        close(writer, path)
    if sync:
        sync_path(path)
        sync_path(os.path.dirname(path))


def sync_path(path: bytes) -> None:
    """Make a file or a directory durable. Raises BackupError, code ``unwritable`` or ``disk_full``."""
    try:
        fsync_path(path, follow=False)
    except OSError as exc:
        raise unwritable(path, exc) from exc


def unreadable(path: bytes, error: OSError) -> BackupError:
    """Return the failure to read ``path``; when access is denied it names the user who may not."""
    hint = ""
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = f"This runs as {_user()}: run it as the owner of the files."
    return _failure("read", path, error, "unreadable", hint)


def unwritable(path: bytes, error: OSError) -> BackupError:
    """Return the failure to write ``path``: code ``disk_full``, with the bytes ``free``, or ``unwritable``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _failure("write", path, error, "disk_full", "", free=_free(path))
    hint = f"This runs as {_user()}." if error.errno in (errno.EACCES, errno.EPERM) else ""
    return _failure("write", path, error, "unwritable", hint)


def _failure(verb: str, path: bytes, error: OSError, code: str, hint: str, **details: t.Any) -> BackupError:
    name = errno.errorcode.get(error.errno or 0, str(error.errno))
    msg = f"Cannot {verb} {printable(path)}: {error.strerror}."
    return BackupError(msg, code=code, hint=hint, path=printable(path), errno=name, **details)


def _user() -> str:
    return f"user {user_name(os.geteuid())}"


def user_name(number: int) -> str:
    """Return the name of the operating system user with this id, else the id."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _free(path: bytes) -> int:
    try:
        system = os.statvfs(os.path.dirname(path))
    except OSError:
        return 0
    return system.f_bavail * system.f_frsize


def create(path: bytes) -> int:
    """Create a file of mode 0600, replacing an existing one, and return its descriptor. Raises BackupError."""
    try:
        try:
            return os.open(path, _CREATE_FLAGS, 0o600)
        except FileExistsError:
            # Never overwrite it: an abandoned process may still have it open, and a link would lead elsewhere.
            os.unlink(path)
            return os.open(path, _CREATE_FLAGS, 0o600)
    except OSError as exc:
        raise unwritable(path, exc) from exc


def write_all(writer: int, data: memoryview, path: bytes) -> None:
    """Write all of ``data`` to a descriptor. Raises BackupError as :func:`unwritable`."""
    try:
        count = os.write(writer, data)
        while count < len(data):
            data = data[count:]
            count = os.write(writer, data)
    except OSError as exc:
        raise unwritable(path, exc) from exc


def close(writer: int, path: bytes) -> None:
    """Close a descriptor that was written to. Raises BackupError as :func:`unwritable`."""
    # Quotas and network file systems report only here that there is no space.
    try:
        os.close(writer)
    except OSError as exc:
        raise unwritable(path, exc) from exc


def printable(path: bytes) -> str:
    """Return ``path`` as text for messages: bytes that are not UTF-8 become ``\\xNN``."""
    return path.decode("utf-8", "backslashreplace")


def fsync_path(path: AnyPath, follow: bool = True) -> None:
    """Flush a file or directory to disk; ``follow`` allows a symbolic link. Raises OSError."""
    handle = os.open(path, READ_FLAGS if follow else READ_FLAGS | os.O_NOFOLLOW)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing(path: AnyPath, *, mode: int = 0o600, durable: bool = True) -> t.Iterator[t.BinaryIO]:
    """Replace the file ``path`` as a whole: the block writes to a temporary file, which is then renamed.

    With ``durable`` content and name are on disk afterwards. When the block raises, ``path`` stays as it was and the
    temporary file is removed; one that a crash leaves is removed by :func:`remove_temporary`. Raises OSError.
    """
    # An unforeseeable name, and never an existing file: it could lead elsewhere.
    suffix = f".{secrets.token_hex(8)}.tmp"
    temporary = path + (suffix if isinstance(path, str) else suffix.encode("ascii"))
    handle = os.open(temporary, _CREATE_FLAGS, 0o600)
    try:
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(handle, mode)
            yield stream
            stream.flush()
            if durable:
                os.fsync(handle)
        os.rename(temporary, path)
    except Exception:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if durable:
        fsync_path(os.path.dirname(path))


def is_temporary(name: str) -> bool:
    """Return whether :func:`replacing` gives its temporary files such a name."""
    return bool(_TEMPORARY.match(name))


def remove_temporary(directory: str) -> None:
    """Remove what a crash of :func:`replacing` left in ``directory``, which has no other writer now. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        for name in filter(is_temporary, os.listdir(directory)):
            os.unlink(os.path.join(directory, name))


def write_bytes(path: AnyPath, content: bytes) -> None:
    """Replace ``path`` by ``content``, durably, with mode 0600. Raises OSError."""
    with replacing(path) as stream:
        stream.write(content)


def write_json(path: str, content: t.Mapping[str, t.Any]) -> None:
    """Replace ``path`` by ``content`` as JSON; text with surrogate escapes survives. Raises OSError."""
    write_bytes(path, json.dumps(content, indent=2, sort_keys=True).encode("ascii") + b"\n")


def read_small(path: str, most: int, users: t.Optional[t.AbstractSet[int]] = None) -> bytes:
    """Read a regular file of at most ``most`` bytes, not through a link. Raises OSError for any other file.

    With ``users`` it must belong to one of them and not be writable for others.
    """
    handle = os.open(path, READ_FLAGS | os.O_NOFOLLOW)
    with os.fdopen(handle, "rb") as stream:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", path)
        if users is not None and (status.st_uid not in users or status.st_mode & 0o022):
            raise OSError(errno.EPERM, f"Another user ({user_name(status.st_uid)} or its group) can change it", path)
        data = stream.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"More than {most} bytes", path)
    return data


def new_directory(path: AnyPath) -> None:
    """Make a directory of mode 0700, whatever the umask, and flush its name. Raises OSError, also when it exists."""
    os.mkdir(path, 0o700)
    os.chmod(path, 0o700)
    fsync_path(os.path.dirname(path))


def make_directory(path: AnyPath) -> None:
    """Make a directory as :func:`new_directory` does, unless it exists. Raises OSError, also for a link to one."""
    try:
        new_directory(path)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise
