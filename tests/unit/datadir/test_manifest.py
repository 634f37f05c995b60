# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""backup_manifest: written byte for byte as the server does, read with every kind of damage."""

from __future__ import annotations

import hashlib
import io
import os
import pathlib
import types
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import control as _control
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import manifest as _manifest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.manifest import ManifestFile
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import checksums as _host_checksums
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.timelines import WalRange

IDENTIFIER = 7710880042689923079
SHA = hashlib.sha256(b"").hexdigest()
FILES = [
    ManifestFile(b"base/5/1259", 114688, 1795328986.75, "SHA256", SHA),
    ManifestFile(b"pg_tblspc/16384/PG_18_202506291/5/16390", 0, 0.0, "SHA256", SHA),
    ManifestFile(b"caf\xe9", 7, 1795328986.0, "SHA256", SHA),
    ManifestFile('d\u00e9j\u00e0 "vu" \\ \n\x01\x7f'.encode(), 7, 1795328986.0, "SHA256", SHA),
]
RANGES = [WalRange(2, 0x3000000, 0x3000120), WalRange(1, 0x2000028, 0x3000000)]
BODY = f"""\
{{ "PostgreSQL-Backup-Manifest-Version": 2,
"System-Identifier": 7710880042689923079,
"Files": [
{{ "Path": "base/5/1259", "Size": 114688, "Last-Modified": "2026-11-22 06:29:46 GMT",\
 "Checksum-Algorithm": "SHA256", "Checksum": "{SHA}" }},
{{ "Path": "pg_tblspc/16384/PG_18_202506291/5/16390", "Size": 0, "Last-Modified": "1970-01-01 00:00:00 GMT",\
 "Checksum-Algorithm": "SHA256", "Checksum": "{SHA}" }},
{{ "Encoded-Path": "636166e9", "Size": 7, "Last-Modified": "2026-11-22 06:29:46 GMT",\
 "Checksum-Algorithm": "SHA256", "Checksum": "{SHA}" }},
{{ "Path": "d\u00e9j\u00e0 \\"vu\\" \\\\ \\n\\u0001\x7f", "Size": 7, "Last-Modified": "2026-11-22 06:29:46 GMT",\
 "Checksum-Algorithm": "SHA256", "Checksum": "{SHA}" }}
],
"WAL-Ranges": [
{{ "Timeline": 2, "Start-LSN": "0/3000000", "End-LSN": "0/3000120" }},
{{ "Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/3000000" }}
],
"""


def sealed(body: str) -> bytes:
    """Return a manifest with the right checksum for this content."""
    data = body.encode("utf-8", "surrogatepass")
    return data + b'"Manifest-Checksum": "%s"}\n' % hashlib.sha256(data).hexdigest().encode()


def written(major: int = 18, files: t.Sequence[ManifestFile] | None = None) -> bytes:
    out = io.BytesIO()
    checksum = _manifest.write_manifest(out, major, IDENTIFIER, iter(FILES if files is None else files), RANGES)
    assert out.getvalue().endswith(b'"Manifest-Checksum": "%s"}\n' % checksum.encode())
    return out.getvalue()


def test_the_bytes_are_the_servers() -> None:
    assert written(17) == written(18) == sealed(BODY)
    old = BODY.replace('Version": 2', 'Version": 1').replace(f'"System-Identifier": {IDENTIFIER},\n', "")
    assert written(14) == written(16) == sealed(old)


def test_files_without_checksum() -> None:
    text = written(files=[FILES[0]._replace(algorithm=None, checksum=None)]).decode()
    assert '{ "Path": "base/5/1259", "Size": 114688, "Last-Modified": "2026-11-22 06:29:46 GMT" }\n]' in text


def test_ranges_are_obligatory() -> None:
    with pytest.raises(ValueError, match="range of WAL"):
        _manifest.write_manifest(io.BytesIO(), 18, IDENTIFIER, FILES, [])


def test_large_manifests_are_written_in_pieces_and_read_back() -> None:
    class Counting(io.BytesIO):
        largest = calls = 0

        def write(self, data: t.Any) -> int:
            self.largest = max(self.largest, len(data))
            self.calls += 1
            return super().write(data)

    files = [ManifestFile(b"base/5/%d" % number, number, float(number), "SHA256", SHA) for number in range(20000)]
    out = Counting()
    _manifest.write_manifest(out, 18, IDENTIFIER, iter(FILES if files is None else files), RANGES)
    assert out.largest < 1 << 17
    assert out.calls < 100
    manifest = _manifest.parse_manifest(out.getvalue())
    assert manifest == (2, IDENTIFIER, files, RANGES)


@pytest.mark.parametrize("major, version, identifier", [(14, 1, None), (16, 1, None), (17, 2, IDENTIFIER)])
def test_reading_back(tmp_path: pathlib.Path, major: int, version: int, identifier: t.Optional[int]) -> None:
    path = tmp_path / "backup_manifest"
    path.write_bytes(written(major))
    for name in (str(path), os.fsencode(path)):
        manifest = _manifest.read_manifest(name)
        assert manifest.files == [file._replace(mtime=file.mtime // 1) for file in FILES]
        assert (manifest.version, manifest.system_identifier, manifest.ranges) == (version, identifier, RANGES)


def test_other_ways_to_write_the_same() -> None:
    body = BODY.replace(SHA, SHA.upper()).replace("636166e9", "636166E9")
    body = body.replace('"Size": 7', '"Size":7').replace('Start-LSN": "0/2000028', 'Start-LSN": "00000000/02000028')
    assert _manifest.parse_manifest(sealed(body)) == _manifest.parse_manifest(sealed(BODY))


def test_every_flipped_byte_and_every_truncation_is_refused() -> None:
    good = written()
    for position in range(len(good)):
        damaged = bytearray(good)
        damaged[position] ^= 0x20
        # Upper-case hexadecimal digits are allowed.
        if bytes(damaged).lower() != good.lower() or position < len(BODY.encode()):
            with pytest.raises(ValueError):
                _manifest.parse_manifest(bytes(damaged))
        with pytest.raises(ValueError):
            _manifest.parse_manifest(good[:position])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"{}\n",
        sealed(BODY).replace(b"\n", b" "),
        sealed(BODY).replace(b"\n", b"\r\n"),
        sealed(BODY)[:-1],
        sealed(BODY) + b"\n",
        sealed(BODY) + b" ",
        sealed(BODY)[:-2] + b"\n}\n",
        sealed(BODY)[:-3] + b'",\n"x": 1}\n',
        b"\xef\xbb\xbf" + sealed(BODY),
        BODY.encode() + b'"Manifest-Checksum": "%s"}\n' % hashlib.sha256(BODY.encode()[:-1]).hexdigest().encode(),
    ],
    ids=range(12),
)
def test_what_is_around_the_checksum(data: bytes) -> None:
    with pytest.raises(ValueError):
        _manifest.parse_manifest(data)


PATH = '"Path": "base/5/1259"'
CHECKSUM = f'"Checksum-Algorithm": "SHA256", "Checksum": "{SHA}"'


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('{ "PostgreSQL', '[ "PostgreSQL', "Expecting"),
        ('"PostgreSQL-Backup-Manifest-Version": 2,\n', "", "begin with its version"),
        (
            f'"PostgreSQL-Backup-Manifest-Version": 2,\n"System-Identifier": {IDENTIFIER},\n',
            f'"System-Identifier": {IDENTIFIER},\n"PostgreSQL-Backup-Manifest-Version": 2,\n',
            "begin with its version",
        ),
        ('Version": 2,', 'Version": 3,', "is not a number up to 2"),
        ('Version": 2,', 'Version": 0,', "version is 0"),
        ('Version": 2,', 'Version": "2",', "is not a number"),
        ('Version": 2,', 'Version": true,', "is not a number"),
        ('Version": 2,', 'Version": 2.0,', "not an integer"),
        ('Version": 2,', 'Version": 1,', "keys"),
        (f'"System-Identifier": {IDENTIFIER},\n', "", "keys"),
        (f": {IDENTIFIER},", f': "{IDENTIFIER}",', "is not a number"),
        (f": {IDENTIFIER},", ": 18446744073709551616,", "is not a number"),
        (f": {IDENTIFIER},", ": -1,", "is not a number"),
        (f": {IDENTIFIER},", ": NaN,", "not an integer"),
        ('"Files"', '"Extra": 1, "Files"', "keys"),
        ('"Files"', '"Files": [], "Files"', "twice"),
        ('"Size": 114688', '"Size": "114688"', "Size is not a number"),
        ('"Size": 114688', '"Size": -1', "Size is not a number"),
        ('"Size": 114688', '"Size": 1e3', "not an integer"),
        ('"Size": 114688', '"Size": 0114688', "Expecting"),
        ('"Size": 114688', '"Size": true', "Size is not a number"),
        ('"Size": 114688, ', "", "keys"),
        ('"Size": 114688', '"Size": 114688, "Size": 114688', "twice"),
        ('"Size": 114688', '"Size": 114688, "Mode": 384', "keys"),
        ("2026-11-22 06:29:46 GMT", "2026-11-22 06:29:46 CET", "the time of"),
        ("2026-11-22 06:29:46 GMT", "2026-13-22 06:29:46 GMT", "month|isoformat"),
        (PATH, '"Path": "./base/5/1259"', "not the path"),
        (PATH, '"Path": "/base/5/1259"', "not the path"),
        (PATH, '"Path": "base//1259"', "not the path"),
        (PATH, '"Path": "base/../1259"', "not the path"),
        (PATH, '"Path": "base/5/"', "not the path"),
        (PATH, '"Path": ""', "not the path"),
        (PATH, '"Path": "base\\u0000"', "not the path"),
        (PATH, '"Path": "\\ud800"', "surrogates not allowed"),
        (PATH, '"Path": "\ud800"', "can't decode"),
        (PATH, '"Path": 5', "not text"),
        (PATH, f'{PATH}, "Encoded-Path": "00"', "keys"),
        (PATH, '"Encoded-Path": "636166e9"', "lists a file twice"),
        (PATH, '"Encoded-Path": "636"', "Odd-length"),
        (PATH, '"Encoded-Path": "6 61"', "Non-hexadecimal"),
        (PATH, '"Encoded-Path": "\u0666\u0666"', "ASCII"),
        ('"Checksum-Algorithm": "SHA256", ', "", "keys"),
        (CHECKSUM, '"Checksum-Algorithm": "SHA256"', "keys"),
        (CHECKSUM, '"Checksum-Algorithm": "NONE", "Checksum": ""', "in hexadecimal"),
        (CHECKSUM, '"Checksum-Algorithm": "MD5", "Checksum": "d41d8cd98f00b204e9800998ecf8427e"', "in hexadecimal"),
        (CHECKSUM, f'"Checksum-Algorithm": "SHA512", "Checksum": "{SHA}"', "in hexadecimal"),
        (CHECKSUM, f'"Checksum-Algorithm": "SHA256", "Checksum": "{SHA[:-1]}g"', "in hexadecimal"),
        (CHECKSUM, f'"Checksum-Algorithm": "SHA256", "Checksum": "{SHA[:-2]}"', "in hexadecimal"),
        ('"Timeline": 2', '"Timeline": 1', "do not join"),
        ('"Timeline": 1', '"Timeline": 2', "do not join"),
        ('"Timeline": 1', '"Timeline": 0', "impossible range"),
        ('"Timeline": 1', '"Timeline": 4294967296', "is not a number"),
        ('"Start-LSN": "0/3000000"', '"Start-LSN": "0/3000001"', "do not join"),
        ('"Start-LSN": "0/2000028"', '"Start-LSN": "0/3000001"', "impossible range"),
        ('"Start-LSN": "0/2000028"', '"Start-LSN": 33554472', "not text"),
        ('"Start-LSN": "0/2000028"', '"Start-LSN": "2000028"', "not an LSN"),
        ('"End-LSN": "0/3000120"', '"End-LSN": "0/2FFFFFF"', "impossible range"),
        ('"End-LSN": "0/3000120" ', '"End-LSN": "0/3000120", "x": 1', "keys"),
    ],
)
def test_wrong_content_with_a_right_checksum(old: str, new: str, message: str) -> None:
    assert BODY.count(old) >= 1
    with pytest.raises(ValueError, match=message):
        _manifest.parse_manifest(sealed(BODY.replace(old, new, 1)))


def test_checksums_on_some_files_only() -> None:
    with pytest.raises(ValueError, match="some files have a checksum"):
        _manifest.parse_manifest(sealed(BODY.replace(", " + CHECKSUM, "", 1)))
    assert _manifest.parse_manifest(sealed(BODY.replace(", " + CHECKSUM, ""))).files[0].algorithm is None


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("Files", "[]", "no files"),
        ("Files", "{}", "empty"),
        ("Files", "[1]", "not a list of objects"),
        ("Files", "null", "not a list of objects"),
        ("WAL-Ranges", "[]", "no range of WAL"),
        ("WAL-Ranges", '[{"Timeline": 1, "Start-LSN": "0/1", "End-LSN": "0/1"}]', "no range of WAL"),
        ("Files", "[" * 100000, "recursion"),
    ],
    ids=range(7),
)
def test_lists(tmp_path: pathlib.Path, key: str, value: str, message: str) -> None:
    start = BODY.index(f'"{key}"')
    end = BODY.index("\n],\n", start) + 3
    path = tmp_path / "backup_manifest"
    path.write_bytes(sealed(BODY[:start] + f'"{key}": {value},' + BODY[end:]))
    with pytest.raises(BackupError, match=message) as caught:
        _manifest.read_manifest(str(path))
    assert caught.value.code == "bad_manifest"
    assert str(path) in caught.value.msg


def test_no_manifest(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BackupError, match="No such file") as caught:
        _manifest.read_manifest(str(tmp_path / "backup_manifest"))
    assert caught.value.code == "unreadable"


@pytest.mark.parametrize("algorithm", ["SHA224", "SHA256", "SHA384", "SHA512"])
def test_hashes(algorithm: str) -> None:
    digest = _host_checksums.new_hash(algorithm)
    assert digest is not None
    digest.update(b"1234")
    digest.update(memoryview(b"56789"))
    assert digest.hexdigest() == getattr(hashlib, algorithm.lower())(b"123456789").hexdigest()


def test_no_hash() -> None:
    assert _host_checksums.new_hash("NONE") is None
    for algorithm in ("sha256", "MD5", ""):
        with pytest.raises(BackupError, match="Unknown checksum algorithm"):
            _host_checksums.new_hash(algorithm)


class SlowCrc32c:
    """The library's class in pure Python."""

    def __init__(self) -> None:
        self.data = b""

    def update(self, data: t.Any) -> None:
        self.data += bytes(data)

    def digest(self) -> bytes:
        return _control.crc32c(self.data).to_bytes(4, "big")


@pytest.mark.parametrize("library", ["installed", "substitute"])
def test_crc32c_is_the_little_endian_value(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    if library == "substitute" or _host_checksums.crc32c is None:
        monkeypatch.setattr(_host_checksums, "crc32c", types.SimpleNamespace(CRC32CHash=SlowCrc32c))
    digest = _host_checksums.new_hash("CRC32C")
    assert digest is not None
    digest.update(b"1234")
    digest.update(b"56789")
    assert digest.hexdigest() == "839206e3"


def test_without_the_library_for_crc32c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_host_checksums, "crc32c", None)
    monkeypatch.setattr(_host_checksums.sys, "executable", "/opt/python")
    with pytest.raises(BackupError, match="package crc32c, which /opt/python does not have") as caught:
        _host_checksums.new_hash("CRC32C")
    assert "/opt/python -m pip install crc32c" in caught.value.hint
