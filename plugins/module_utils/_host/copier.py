# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copying and hashing files that other processes may be writing.

A file is copied to exactly the size that it had when it was opened: bytes appended later are ignored, and bytes cut off
later are replaced by zeros. The caller must be able to repair both.

Private to pgfleet.basebackup. Room ``_host``: files, locks, workers and detached processes; it knows no PostgreSQL.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.checksums import Hash, new_hash
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import (
    READ_FLAGS,
    close,
    create,
    printable,
    unreadable,
    unwritable,
    write_all,
)

# Larger pieces fall out of the processor's cache between being read, hashed and written.
_CHUNK = 256 * 1024
_RANGE = 8 << 20

# Bytes of a large file between two reports, and bytes that may still be unwritten at its fsync.
_REPORT = 8 << 20
_WRITE_BEHIND = 32 << 20
_FICLONE = 0x40049409

_NO_COPY_RANGE = frozenset(
    (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.ETXTBSY, errno.EIO)
)


class Copied(t.NamedTuple):
    """``size`` in bytes, ``mtime`` of the source in whole seconds since 1970, ``checksum`` in hexadecimal or None."""

    size: int
    mtime: int
    checksum: t.Optional[str]


class FileCopier:
    """Copies or hashes files one after the other; belongs to one process, whose umask must leave the owner's bits.

    ``advance`` is called with the number of bytes done since it was last called, at least every 8 MB and at each
    file's end. With ``sync`` the kernel starts writing to disk early, so that the caller's fsync is short.
    """

    def __init__(self, algorithm: str, sync: bool, advance: t.Callable[[int], None]) -> None:
        self._algorithm = algorithm
        self._sync = sync
        self._advance = advance
        self._buffer = memoryview(bytearray(_CHUNK))
        # Pairs of file systems between which the kernel has refused to clone or to copy ranges.
        self._no_clone: set[tuple[int, int]] = set()
        self._no_range: set[tuple[int, int]] = set()

    def copy(self, source: bytes, target: bytes, followed: bool = False) -> t.Optional[Copied]:
        """Copy ``source`` to a new file ``target`` of mode 0600; an existing one is replaced.

        Return None when the source has vanished. ``followed`` allows symbolic links on the way to the source. Raises
        BackupError, code ``unreadable``, ``unwritable`` or ``disk_full``; the target may then be incomplete.
        """
        try:
            reader = os.open(source, READ_FLAGS if followed else READ_FLAGS | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise unreadable(source, exc) from exc
        try:
            status = os.fstat(reader)
            if not stat.S_ISREG(status.st_mode):
                raise BackupError(f"{printable(source)} is no longer a regular file.", code="unreadable")
            writer = create(target)
            try:
                checksum = self._fill(_Pair(reader, writer, source, target, status))
                if self._sync:
                    _start_writing(writer)
            finally:
                close(writer, target)
        finally:
            os.close(reader)
        return Copied(status.st_size, int(status.st_mtime), checksum)

    def hash(self, path: bytes) -> Copied:
        """Hash a file that is not being changed. Raises BackupError, code ``unreadable``, when it cannot be read."""
        try:
            reader = os.open(path, READ_FLAGS | os.O_NOFOLLOW)
        except OSError as exc:
            raise unreadable(path, exc) from exc
        try:
            status = os.fstat(reader)
            return Copied(status.st_size, int(status.st_mtime), self._hash(reader, path, status.st_size))
        finally:
            os.close(reader)

    def _fill(self, pair: _Pair) -> t.Optional[str]:
        if self._clone(pair):
            # The source may have changed since: the checksum must be that of the copy.
            return self._hash(pair.writer, pair.target, pair.size)
        done = self._copy_range(pair) if self._algorithm == "NONE" else 0
        return self._copy_chunks(pair, done)

    def _clone(self, pair: _Pair) -> bool:
        if pair.devices in self._no_clone or not pair.size:
            return False
        try:
            fcntl.ioctl(pair.writer, _FICLONE, pair.reader)
            os.ftruncate(pair.writer, pair.size)
        except OSError:
            # For any reason: if it matters, the copy below fails too, with a better message.
            self._no_clone.add(pair.devices)
            # Only if needed: ext4 writes a file that was truncated to nothing to the disk when it is closed.
            if os.fstat(pair.writer).st_size:
                os.ftruncate(pair.writer, 0)
            return False
        return True

    def _copy_range(self, pair: _Pair) -> int:
        """Let the kernel copy as far as it can, and return the number of bytes; both file offsets have moved there."""
        done = reported = 0
        while done < pair.size and pair.devices not in self._no_range:
            try:
                count = os.copy_file_range(pair.reader, pair.writer, min(pair.size - done, _RANGE))
            except OSError as exc:
                if exc.errno not in _NO_COPY_RANGE:
                    raise unwritable(pair.target, exc) from exc
                self._no_range.add(pair.devices)
                break
            if count == 0:  # the end of a file that shrank, or a file system that does not support it
                break
            done += count
            if done - reported >= _REPORT and done < pair.size:
                self._advance(done - reported)
                reported = done
                if self._sync:
                    _start_writing(pair.writer)
        self._advance(done - reported)
        return done

    def _copy_chunks(self, pair: _Pair, done: int) -> t.Optional[str]:
        digest = new_hash(self._algorithm)
        size, buffer = pair.size, self._buffer
        reported = written_behind = done
        while done < size:
            piece = buffer[: min(size - done, _CHUNK)]
            try:
                count = os.readv(pair.reader, [piece])
            except OSError as exc:
                raise unreadable(pair.source, exc) from exc
            if count == 0:
                piece[:] = bytes(len(piece))
                count = len(piece)
            piece = piece[:count]
            if digest is not None:
                digest.update(piece)
            write_all(pair.writer, piece, pair.target)
            done += count
            if done - reported >= _REPORT and done < size:
                self._advance(done - reported)
                reported = done
                if self._sync and done - written_behind >= _WRITE_BEHIND:
                    _start_writing(pair.writer)
                    written_behind = done
        self._advance(done - reported)
        return None if digest is None else digest.hexdigest()

    def _hash(self, descriptor: int, path: bytes, size: int) -> t.Optional[str]:
        digest: t.Optional[Hash] = new_hash(self._algorithm)
        if digest is None:
            self._advance(size)
            return None
        done = reported = 0
        while done < size:
            try:
                count = os.readv(descriptor, [self._buffer[: min(size - done, _CHUNK)]])
            except OSError as exc:
                raise unreadable(path, exc) from exc
            if count == 0:
                raise BackupError(f"{printable(path)} became shorter while it was read.", code="unreadable")
            digest.update(self._buffer[:count])
            done += count
            if done - reported >= _REPORT and done < size:
                self._advance(done - reported)
                reported = done
        self._advance(done - reported)
        return digest.hexdigest()


class _Pair:
    """A source and its copy, both open."""

    __slots__ = ("devices", "reader", "size", "source", "target", "writer")

    def __init__(self, reader: int, writer: int, source: bytes, target: bytes, status: os.stat_result) -> None:
        self.reader = reader
        self.writer = writer
        self.source = source
        self.target = target
        self.size = status.st_size
        self.devices = (status.st_dev, os.fstat(writer).st_dev)


def _start_writing(writer: int) -> None:
    """Ask the kernel to begin writing to disk, which this advice does for pages that it cannot drop yet."""
    os.posix_fadvise(writer, 0, 0, os.POSIX_FADV_DONTNEED)
