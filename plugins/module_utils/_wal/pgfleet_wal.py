# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Store WAL files in a directory, and fetch them back: PostgreSQL's archive_command and restore_command.

    pgfleet_wal.py archive [--compress none|gzip|zstd] <directory> %p %f
    pgfleet_wal.py restore <directory> %f %p

``archive`` exits with 0 only when the whole file is on the disk under its own name, or that name with .gz or .zst. If
the same content is already stored, it exits with 0, too. It never overwrites other content, and then exits with 1.

``restore`` exits with 1 when the archive does not have the file, which is how PostgreSQL learns where the WAL ends. For
a damaged or unreadable file, or an archive that cannot be entered, it exits with 200: above 125 PostgreSQL stops the
recovery, where 1 would end it early and lose the later WAL.

Standard library only, Python 3.8 or newer; zstd and lz4 by their commands. (PostgreSQL, "Continuous Archiving and
Point-in-Time Recovery".)

Private to pgfleet.basebackup. Room ``_wal``: names, records and archives of WAL; it knows no server and no backup.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import importlib
import itertools
import os
import re
import struct
import sys
import time
import typing as t

FAILED = 1
ABSENT = 1
UNUSABLE = 200

CHUNK = 1 << 20
LOCK_SECONDS = 60
# The archiver must keep up with the server: higher levels take two to ten times as long to save a tenth.
GZIP_LEVEL = 1
SUFFIXES = {"none": "", "gzip": ".gz", "zstd": ".zst"}
# By suffix: the module that opens it, or the command that decompresses it. Files of other programs can be fetched, too.
MODULES = {"": "io", ".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}
COMMANDS = {".zst": "zstd", ".lz4": "lz4"}

NAME = re.compile(r"[0-9A-F]{8}(\.history|[0-9A-F]{16}(\.partial|\.[0-9A-F]{8}\.backup)?)")
# XLogLongPageHeaderData: magic, flags, timeline, address, remaining length, system identifier, segment size, page size.
HEADER = struct.Struct("=HHIQI4xQII")
# The errors of file systems without hard links.
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)


class Refused(Exception):
    """The reason, for the server's log, why a file is not stored or not fetched."""


def is_segment(name: str) -> bool:
    """Return whether ``name`` is a complete segment's; only those are compressed and have a known size."""
    return len(name) == 24


def find(directory: str, name: str) -> t.Optional[t.Tuple[str, str]]:
    """Return the path and the suffix under which ``name`` is stored, None when it is not. Raises OSError."""
    # An archive that is not mounted has no directory: that must not pass for a missing file.
    os.stat(os.path.join(directory, "."))
    for suffix in (*MODULES, *COMMANDS):
        path = os.path.join(directory, name + suffix)
        with contextlib.suppress(FileNotFoundError):
            os.lstat(path)
            return path, suffix
    return None


def pieces(path: str, suffix: str = "") -> t.Iterator[bytes]:
    """Yield the content of ``path``, decompressed, in pieces of ``CHUNK`` bytes."""
    try:
        if suffix in MODULES:
            with importlib.import_module(MODULES[suffix]).open(path, "rb") as stream:
                yield from iter(lambda: stream.read(CHUNK), b"")
            return
        subprocess = importlib.import_module("subprocess")
        with subprocess.Popen([COMMANDS[suffix], "-dcq", path], stdout=subprocess.PIPE) as process:
            yield from iter(lambda: process.stdout.read(CHUNK), b"")
    except Exception as exc:  # each format has its own errors, and they do not name the file
        raise Refused(f"{path} cannot be read: {exc}") from exc
    if process.returncode != 0:
        raise Refused(f"{path} cannot be read: {COMMANDS[suffix]} ended with {process.returncode}")


def sync(path: str) -> None:
    """Flush a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def alone(directory: str) -> t.Iterator[None]:
    """Hold the archive's lock: a primary and a standby with archive_mode=always may share the directory."""
    descriptor = os.open(os.path.join(directory, ".pgfleet_wal.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + LOCK_SECONDS
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as exc:
                if exc.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
            if time.monotonic() >= deadline:
                raise Refused(f"another archiver has held the lock of {directory} for {LOCK_SECONDS} s")
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def write(descriptor: int, source: str, compression: str) -> None:
    """Write the content of ``source``, compressed, to ``descriptor``."""
    if compression == "zstd":
        subprocess = importlib.import_module("subprocess")
        with open(source, "rb") as content:
            done = subprocess.run(["zstd", "-qc"], stdin=content, stdout=descriptor, check=False)
        if done.returncode != 0:
            raise Refused(f"zstd ended with {done.returncode}")
        return
    with contextlib.ExitStack() as stack:
        stream: t.Any = stack.enter_context(os.fdopen(descriptor, "wb", closefd=False))
        if compression == "gzip":
            gzip = importlib.import_module("gzip")
            stream = stack.enter_context(gzip.GzipFile("", "wb", GZIP_LEVEL, stream, mtime=0))
        for piece in pieces(source):
            stream.write(piece)


def store(directory: str, source: str, name: str, compression: str) -> None:
    """Store the content of ``source`` as ``name`` once all of it is on the disk. The caller holds the lock."""
    # One temporary file for each host that archives here; the next run removes what a crash leaves.
    temporary = os.path.join(directory, f".pgfleet_wal.{os.uname().nodename}.tmp")
    target = os.path.join(directory, name + SUFFIXES[compression])
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    try:
        # Always a new file: what a crash left may be a hard link to a stored file.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            write(descriptor, source, compression)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            # Unlike rename it never replaces a file, not even one of a host that the lock does not reach.
            os.link(temporary, target)
        except OSError as exc:
            if exc.errno not in NO_LINKS:
                raise
            os.rename(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    sync(directory)


def archive(directory: str, source: str, name: str, compression: str) -> int:
    """Store the file ``source`` as ``name`` and return 0. Raises OSError and :class:`Refused`."""
    if not NAME.fullmatch(name):
        raise Refused(f"{name!r} is not the name of a WAL file")
    with alone(directory):
        stored = find(directory, name)
        if stored is None:
            store(directory, source, name, compression if is_segment(name) else "none")
        elif all(one == other for one, other in itertools.zip_longest(pieces(*stored), pieces(source))):
            # The server repeats the call when it crashed before it recorded the answer, or before this sync.
            sync(stored[0])
            sync(directory)
        else:
            raise Refused(f"{stored[0]} has other content; it is not overwritten")
    return 0


def check_segment(name: str, first: bytes, length: int) -> None:
    """Raise :class:`Refused` unless ``first`` begins the segment ``name`` and ``length`` is what its header says."""
    if len(first) < HEADER.size:
        raise Refused(f"{name} has {length} bytes only")
    _magic, _flags, timeline, address, _rest, _identifier, size, _page = HEADER.unpack_from(first)
    if size != length or size & (size - 1):
        raise Refused(f"{name} has {length} bytes, its header says {size}")
    number = int(name[8:16], 16) * ((1 << 32) // size) + int(name[16:], 16)
    # A new timeline's first segment begins as a copy of its parent's.
    if address != number * size or not 0 < timeline <= int(name[:8], 16):
        raise Refused(f"{name} holds another segment: timeline {timeline}, address {address:X}")


def restore(directory: str, name: str, target: str) -> int:
    """Fetch ``name`` to the file ``target`` and return 0, or 1 when it is not stored. Raises OSError and others."""
    stored = find(directory, name)
    if stored is None:
        return ABSENT
    first, length = b"", 0
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            for piece in pieces(*stored):
                first = first or piece
                length += len(piece)
                stream.write(piece)
        if is_segment(name):
            check_segment(name, first, length)
        elif length == 0:
            raise Refused(f"{stored[0]} is empty")
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(target)
        raise
    return 0


def main(arguments: t.Sequence[str]) -> int:
    """Run one subcommand and return the exit code; failures are reported on standard error, the server's log."""
    bad = UNUSABLE if arguments[:1] == ["restore"] else FAILED
    parser = argparse.ArgumentParser("pgfleet_wal.py", description="Archive and restore WAL files.")
    commands = parser.add_subparsers(dest="command", required=True)
    to_archive = commands.add_parser("archive", help="for archive_command")
    to_archive.add_argument("--compress", choices=sorted(SUFFIXES), default="none")
    to_restore = commands.add_parser("restore", help="for restore_command")
    for parts, names in ((to_archive, ("directory", "source", "name")), (to_restore, ("directory", "name", "target"))):
        for name in names:
            parts.add_argument(name)
    try:
        options = parser.parse_args(arguments)
        if options.command == "archive":
            return archive(options.directory, options.source, options.name, options.compress)
        return restore(options.directory, options.name, options.target)
    except SystemExit as exc:
        return 0 if exc.code in (None, 0) else bad
    except Exception as exc:  # whatever it is, the server needs the right exit code
        # pylint: disable-next=ansible-bad-function  # a program by itself: the server reads its standard error
        print(f"pgfleet_wal.py {' '.join(arguments)}: {exc or type(exc).__name__}", file=sys.stderr)
        return bad


if __name__ == "__main__":
    # pylint: disable-next=ansible-bad-function  # and its exit code
    sys.exit(main(sys.argv[1:]))
