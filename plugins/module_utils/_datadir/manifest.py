# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing and reading ``backup_manifest`` (PostgreSQL's documentation, appendix "Backup Manifest Format").

Private to pgfleet.basebackup. Room ``_datadir``: a data directory and the formats of its files; it knows no server.
"""

from __future__ import annotations

import binascii
import datetime
import hashlib
import json
import os
import re
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.segments import format_lsn, parse_lsn
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.timelines import WalRange

_HEX_DIGITS = {"SHA224": 56, "SHA256": 64, "SHA384": 96, "SHA512": 128, "CRC32C": 8}
_LAST_LINE = re.compile(rb'"Manifest-Checksum": "([0-9a-fA-F]{64})"\}\n')
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d GMT", re.ASCII)
_WRITE_BYTES = 1 << 16


class ManifestFile(t.NamedTuple):
    """One file of a backup: ``path`` in backup terms, ``mtime`` in seconds since 1970, ``checksum`` in hexadecimal.

    ``algorithm`` and ``checksum`` are None together when the file was copied without a checksum.
    """

    path: bytes
    size: int
    mtime: float
    algorithm: t.Optional[str]
    checksum: t.Optional[str]


class Manifest(t.NamedTuple):
    """The contents of a ``backup_manifest``: ``system_identifier`` is None in version 1, ``ranges`` newest first."""

    version: int
    system_identifier: t.Optional[int]
    files: list[ManifestFile]
    ranges: list[WalRange]


def manifest_version(major: int) -> int:
    """Return the version of the manifests that servers of this major version write and their tools accept."""
    return 2 if major >= 17 else 1


def write_manifest(
    out: t.BinaryIO, major: int, system_identifier: int, files: t.Iterable[ManifestFile], ranges: t.Sequence[WalRange]
) -> str:
    """Write a manifest as the server would and return its checksum in hexadecimal.

    ``files`` are iterated once and not kept. ``ranges`` are newest first, as ``wal_ranges`` gives them, and not empty.
    The caller flushes and syncs ``out``.
    """
    if not ranges:
        raise ValueError("a manifest needs a range of WAL")
    digest = hashlib.sha256()
    for chunk in _joined(_pieces(manifest_version(major), system_identifier, files, ranges)):
        digest.update(chunk)
        out.write(chunk)
    checksum = digest.hexdigest()
    out.write(b'"Manifest-Checksum": "' + checksum.encode("ascii") + b'"}\n')
    return checksum


def _pieces(
    version: int, system_identifier: int, files: t.Iterable[ManifestFile], ranges: t.Sequence[WalRange]
) -> t.Iterator[str]:
    """Yield the text of a manifest up to its last line, with the key order and line ends that the tools demand."""
    yield f'{{ "PostgreSQL-Backup-Manifest-Version": {version},\n'
    if version >= 2:
        yield f'"System-Identifier": {system_identifier},\n'
    yield '"Files": ['
    separator = "\n"
    for file in files:
        yield separator + _file_object(file)
        separator = ",\n"
    yield '\n],\n"WAL-Ranges": ['
    separator = "\n"
    for timeline, start, end in ranges:
        lsns = f'"Start-LSN": "{format_lsn(start)}", "End-LSN": "{format_lsn(end)}"'
        yield f'{separator}{{ "Timeline": {timeline}, {lsns} }}'
        separator = ",\n"
    yield "\n],\n"


def _file_object(file: ManifestFile) -> str:
    try:
        path = f'"Path": {json.dumps(file.path.decode("utf-8"), ensure_ascii=False)}'
    except UnicodeDecodeError:
        path = f'"Encoded-Path": "{file.path.hex()}"'
    modified = time.strftime("%Y-%m-%d %H:%M:%S GMT", time.gmtime(file.mtime // 1))
    checksum = ""
    if file.algorithm is not None:
        checksum = f', "Checksum-Algorithm": "{file.algorithm}", "Checksum": "{file.checksum}"'
    return f'{{ {path}, "Size": {file.size}, "Last-Modified": "{modified}"{checksum} }}'


def _joined(pieces: t.Iterable[str]) -> t.Iterator[bytes]:
    """Yield the same text in fewer and larger pieces."""
    waiting: list[str] = []
    length = 0
    for piece in pieces:
        waiting.append(piece)
        length += len(piece)
        if length >= _WRITE_BYTES:
            yield "".join(waiting).encode("utf-8")
            waiting.clear()
            length = 0
    yield "".join(waiting).encode("utf-8")


def read_manifest(path: t.Union[str, bytes]) -> Manifest:
    """Read and check a manifest.

    Raises BackupError: code ``unreadable`` when the file cannot be read, ``bad_manifest`` saying what is wrong.
    Everything that ``pg_verifybackup`` demands is checked, and what it accepts: no range of WAL, ranges that do not
    join, checksums missing on some files, sizes that are text.
    """
    try:
        with open(path, "rb") as manifest:
            data = manifest.read()
    except OSError as exc:
        raise BackupError(f"Cannot read {os.fsdecode(path)!r}: {exc.strerror}.", code="unreadable") from exc
    try:
        return parse_manifest(data)
    except (ValueError, RecursionError) as exc:
        raise BackupError(f"{os.fsdecode(path)!r} is damaged: {exc}", code="bad_manifest") from exc


def parse_manifest(data: bytes) -> Manifest:
    """Return the contents of a manifest. Raises ValueError saying what is wrong."""
    body, newline, _last_line = data.rstrip(b"\n").rpartition(b"\n")
    last = _LAST_LINE.fullmatch(data, len(body) + len(newline))
    if not newline or last is None:
        raise ValueError("it does not end with a line that holds its checksum, and one newline")
    if hashlib.sha256(body + newline).hexdigest() != last.group(1).decode("ascii").lower():
        raise ValueError("its checksum is wrong")
    top = json.loads(
        data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_float=_no_number, parse_constant=_no_number
    )
    if not isinstance(top, dict) or next(iter(top)) != "PostgreSQL-Backup-Manifest-Version":
        raise ValueError("it does not begin with its version")
    version = _integer(top, "PostgreSQL-Backup-Manifest-Version", 2)
    if version not in (1, 2):
        raise ValueError(f"its version is {version}; known are 1 and 2")
    keys = ["PostgreSQL-Backup-Manifest-Version", "Files", "WAL-Ranges", "Manifest-Checksum"]
    _check_keys(top, [*keys, "System-Identifier"] if version == 2 else keys)
    system_identifier = _integer(top, "System-Identifier", 0xFFFFFFFFFFFFFFFF) if version == 2 else None
    files = [_parse_file(item) for item in _objects(top, "Files")]
    if not files:
        raise ValueError("it lists no files")
    if len({file.path for file in files}) != len(files):
        raise ValueError("it lists a file twice")
    if len({file.algorithm is None for file in files}) > 1:
        raise ValueError("some files have a checksum and some have none")
    return Manifest(version, system_identifier, files, _parse_ranges(_objects(top, "WAL-Ranges")))


def _parse_file(item: dict[str, t.Any]) -> ManifestFile:
    path_key = "Encoded-Path" if "Encoded-Path" in item else "Path"
    checksum_keys = ["Checksum-Algorithm", "Checksum"] if "Checksum-Algorithm" in item or "Checksum" in item else []
    _check_keys(item, [path_key, "Size", "Last-Modified", *checksum_keys])
    text = _text(item, path_key)
    path = binascii.unhexlify(text) if path_key == "Encoded-Path" else text.encode("utf-8")
    if b"\0" in path or any(part in (b"", b".", b"..") for part in path.split(b"/")):
        raise ValueError(f"{text!r} is not the path of a file in a backup")
    modified = _text(item, "Last-Modified")
    if _TIME.fullmatch(modified) is None:
        raise ValueError(f"the time of {text!r} is {modified!r}")
    mtime = datetime.datetime.fromisoformat(modified.replace(" GMT", "+00:00")).timestamp()
    algorithm = checksum = None
    if checksum_keys:
        algorithm, checksum = _text(item, "Checksum-Algorithm"), _text(item, "Checksum").lower()
        if len(checksum) != _HEX_DIGITS.get(algorithm) or set(checksum) - set("0123456789abcdef"):
            raise ValueError(f"the checksum of {text!r} is not {algorithm!r} in hexadecimal")
    return ManifestFile(path, _integer(item, "Size", 1 << 62), mtime, algorithm, checksum)


def _parse_ranges(items: list[dict[str, t.Any]]) -> list[WalRange]:
    ranges: list[WalRange] = []
    for item in items:
        _check_keys(item, ["Timeline", "Start-LSN", "End-LSN"])
        start, end = parse_lsn(_text(item, "Start-LSN")), parse_lsn(_text(item, "End-LSN"))
        this = WalRange(_integer(item, "Timeline", 0xFFFFFFFF), start, end)
        if this.timeline == 0 or start > end:
            raise ValueError(f"impossible range of WAL {item}")
        if ranges and not (this.timeline < ranges[-1].timeline and this.end == ranges[-1].start):
            raise ValueError("its ranges of WAL do not join, newest first")
        ranges.append(this)
    if not ranges or ranges[-1].start >= ranges[0].end:
        raise ValueError("it names no range of WAL")
    return ranges


def _no_duplicates(pairs: list[tuple[str, t.Any]]) -> dict[str, t.Any]:
    found = dict(pairs)
    if len(found) != len(pairs) or not found:
        raise ValueError(f"an object is empty or names a key twice: {[key for key, _value in pairs]}")
    return found


def _no_number(text: str) -> t.NoReturn:
    raise ValueError(f"{text} is not an integer")


def _check_keys(item: dict[str, t.Any], expected: t.Sequence[str]) -> None:
    if set(item) != set(expected):
        raise ValueError(f"it has the keys {sorted(item)} where {sorted(expected)} are expected")


def _objects(item: dict[str, t.Any], key: str) -> list[dict[str, t.Any]]:
    value = item[key]
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise ValueError(f"{key} is not a list of objects")
    return value


def _text(item: dict[str, t.Any], key: str) -> str:
    value = item[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} is not text but {value!r}")
    return value


def _integer(item: dict[str, t.Any], key: str, largest: int) -> int:
    value = item[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= largest:
        raise ValueError(f"{key} is not a number up to {largest} but {value!r}")
    return value
