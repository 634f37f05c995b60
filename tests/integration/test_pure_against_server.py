# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pure parts agree with PostgreSQL itself: its base backup, its functions, its tools."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import socket
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import control as _control
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import label as _label
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import manifest as _manifest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import tree as _datadir
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import checksums as _host_checksums
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _wal
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import timelines as _timelines

from tests.harness import binaries
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server
from tests.harness.user import own_directory, run, server_user

# In a directory of relations; if versions differ, each name has its own relation number.
RELATION_NAMES = """
    990001 990001_fsm 990001_vm 990001_init 990001.1 990001_vm.2 990001_init.1 990001_foo 990001_ 990001. 990001.1x
    0990002 0990002_init 990003_init 990003.01 990003.0 990003.10 990003.4294967296
    99000000004 99000000004_init 4294967295 4294967295_init 4294967296 4294967296_init
    990005 990005.1 990006_fsm 990007_initial 990007 0 0_init
    t1_2 t1_2_fsm t1_2_vm.3 t1_2_init t1_2.1 t1_2_main t1_2. t1_ t_1 tx_2 t12 t01_02 t1_2_fsm_1 T1_2 t1_2~
    pgsql_tmp1.2 pgsql_tmpdir/x pg_internal.init pg_internal.init.77 pg_internal.ini PG_VERSION.old .DS_Store
""".split()  # noqa: SIM905
ROOT_NAMES = """
    .DS_Store DS_Store backup_label.old backup_manifest.old current_logfiles current_logfiles.tmp log/postgresql.log
    postgresql.auto.conf.tmp postmaster.pid.old tablespace_map.old standby.signal.done sub/backup_label
    sub/backup_manifest/in_it sub/tablespace_map sub/postmaster.pid sub/postmaster.opts sub/990001 sub/990001_init
    sub/t1_2 sub/pg_notify/gone sub/pg_wal/kept sub/pgsql_tmp/gone sub/pg_control sub/global/pg_control
    pg_wal/.DS_Store pg_stat_tmp/global.tmp pg_replslot/stray stats_here/gone sub/stats_here/kept
    base/pgsql_tmp/pgsql_tmp3.0 base/990001 base/990001_init base/pg_snapshots/gone base/odd/990001 base/odd/990001_init
""".split()  # noqa: SIM905


SQL_ASCII = ["--locale=C", "--encoding=SQL_ASCII"]


def owned(path: bytes) -> None:
    if os.geteuid() == 0:
        os.lchown(path, server_user().uid, server_user().gid)


def make_file(path: bytes, size: int = 7) -> None:
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        os.makedirs(directory, mode=0o700)
        while not os.path.exists(os.path.join(directory, b"PG_VERSION")) and os.stat(directory).st_uid == os.geteuid():
            owned(directory)
            directory = os.path.dirname(directory)
    with open(path, "wb") as file:
        file.write(b"x" * size)
    owned(path)


def litter(data: bytes, relation_directories: t.Iterable[bytes]) -> None:
    """Create every file in the data directory that the rules cover."""
    for name in ROOT_NAMES:
        make_file(os.path.join(data, name.encode()))
    for directory in relation_directories:
        for name in RELATION_NAMES:
            make_file(os.path.join(directory, name.encode()))
    make_file(data + b'/caf\xe9 \\ "quoted"\n', 3)
    os.symlink(b"PG_VERSION", data + b"/link_to_file")
    os.symlink(b"base", data + b"/link_to_directory")
    os.symlink(b"nowhere", data + b"/dangling")
    os.symlink(b"/tmp", data + b"/sub/pg_subtrans")
    os.mkfifo(data + b"/fifo", 0o600)
    owned(data + b"/fifo")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as unix:
        unix.bind(data + b"/sub/s")


@pytest.fixture
def server(sandbox: Sandbox, major: int) -> Server:
    """A primary with a link for ``pg_wal`` on odd majors and, on 14, its own directory for temporary statistics.

    Its encoding is SQL_ASCII: other servers refuse a location that is not valid in theirs.
    """
    settings: dict[str, t.Any] = {"stats_temp_directory": "stats_here"} if major == 14 else {}
    server = sandbox.primary(major, archive=False, start=False, initdb=SQL_ASCII, **settings)
    own_directory(server.data / "stats_here")
    if major % 2:
        (server.data / "pg_wal").rename(server.directory / "wal")
        (server.data / "pg_wal").symlink_to(server.directory / "wal")
    return server.start()


def locations(server: Server) -> dict[int, bytes]:
    links = os.fsencode(server.data / "pg_tblspc")
    return {int(name): os.readlink(os.path.join(links, name)) for name in os.listdir(links) if name.isdigit()
            and os.path.islink(os.path.join(links, name))}  # fmt: skip


def base_backup(server: Server) -> pathlib.Path:
    """Take a plain base backup with the server's own tool."""
    target = server.directory / "taken"
    options: list[bytes] = []
    for oid, location in locations(server).items():
        options += [b"-T", location + b"=" + os.fsencode(server.directory / f"taken_{oid}")]
    command: list[t.Any] = [
        binaries.tool(server.major, "pg_basebackup"),
        "-D",
        target,
        "-X",
        "none",
        "-c",
        "fast",
        "--no-sync",
    ]
    run([*command, *options], env=server.env)
    return target


def tree(root: bytes) -> tuple[dict[bytes, int], set[bytes]]:
    """Return the regular files with their sizes and the directories of a backup."""
    files: dict[bytes, int] = {}
    directories: set[bytes] = set()
    for directory, names, file_names in os.walk(root, followlinks=True):
        relative = os.path.relpath(directory, root)
        directories |= {os.path.normpath(os.path.join(relative, name)) for name in names}
        for name in file_names:
            files[os.path.normpath(os.path.join(relative, name))] = os.path.getsize(os.path.join(directory, name))
    return files, directories


def catalog_version(server: Server) -> int:
    return int(server.value("SELECT catalog_version_no FROM pg_control_system()"))


def fill(server: Server) -> None:
    """Create relations of each persistence in each kind of tablespace, a slot, and all the litter."""
    server.tablespace("outside", os.fsencode(server.directory) + b"/with space, back\\slash \xe9")
    server.tablespace("inside", server.data / "inside_ts")
    spaces = ["pg_default", "outside", "inside"]
    if server.value("SELECT count(*) FROM pg_settings WHERE name = 'allow_in_place_tablespaces'"):
        server.sql("ALTER SYSTEM SET allow_in_place_tablespaces = on")
        server.reload()
        server.sql("SELECT pg_sleep(0.2)")
        server.sql("CREATE TABLESPACE in_place LOCATION ''")
        spaces.append("in_place")
    for space in spaces:
        server.sql(f"CREATE UNLOGGED TABLE u_{space} (i int PRIMARY KEY, t text) TABLESPACE {space}")
        server.sql(f"INSERT INTO u_{space} SELECT i, repeat('x', 500) FROM generate_series(1, 500) i")
        server.sql(f"VACUUM u_{space}")
    server.sql("SELECT pg_create_physical_replication_slot('stale', true)")
    data = os.fsencode(server.data)
    database = b"%d" % server.value("SELECT oid FROM pg_database WHERE datname = 'postgres'")
    version = _datadir.version_directory(server.major, catalog_version(server))
    directories = [data + b"/global", data + b"/base/" + database]
    for oid in os.listdir(data + b"/pg_tblspc"):
        root = os.path.join(data, b"pg_tblspc", oid)
        directories += [root + b"/" + version + b"/" + database, root + b"/" + version]
        make_file(root + b"/stray")
        make_file(root + b"/PG_9.6_201608131/5/1259")
    litter(data, directories)


@pytest.mark.majors(14, 15, 16, 17, 18)
def test_scan_finds_what_pg_basebackup_takes(server: Server) -> None:
    fill(server)
    with contextlib.closing(server.connect()) as session, session.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE t (i int PRIMARY KEY, t text)")
        cursor.execute("CREATE TEMP TABLE t2 (i int PRIMARY KEY, t text) TABLESPACE outside")
        cursor.execute("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 100) i")
        taken = base_backup(server)
        scan = _datadir.scan(
            os.fsencode(server.data), server.major, catalog_version(server), stats_temp_directory=b"stats_here"
        )
    files, directories = tree(os.fsencode(taken))
    control = files.pop(b"global/pg_control")
    assert control == _control.CONTROL_FILE_SIZE
    for name in (b"backup_label", b"backup_manifest"):
        del files[name]

    assert {entry.path: entry.size for entry in scan.files} == files
    assert set(scan.directories) == directories
    assert len(scan.files) == len(files)
    assert len(scan.directories) == len(directories)
    assert scan.total_bytes == sum(files.values())
    for entry in scan.files:
        assert os.stat(entry.source, follow_symlinks=False).st_size == entry.size
    assert {(special.path, special.kind) for special in scan.specials} == {
        (b"link_to_file", "symlink"),
        (b"link_to_directory", "symlink"),
        (b"dangling", "symlink"),
        (b"fifo", "fifo"),
        (b"sub/s", "socket"),
    }
    assert {space.oid: space.location for space in scan.tablespaces if not space.in_place} == locations(server)


@pytest.mark.majors(14, 15, 16, 17, 18)
def test_manifest_is_the_servers(server: Server) -> None:
    fill(server)
    taken = base_backup(server)
    path = os.fsencode(taken / "backup_manifest")
    manifest = _manifest.read_manifest(path)
    identifier = int(server.system_identifier)
    assert manifest.system_identifier == (identifier if server.major >= 17 else None)
    out = io.BytesIO()
    _manifest.write_manifest(out, server.major, identifier, manifest.files, manifest.ranges)
    assert out.getvalue() == pathlib.Path(os.fsdecode(path)).read_bytes()

    files, _directories = tree(os.fsencode(taken))
    del files[b"backup_manifest"]
    assert {file.path: file.size for file in manifest.files} == files
    for algorithm in _host_checksums.ALGORITHMS:
        mine = [describe(os.fsencode(taken), name, algorithm) for name in files]
        with open(path, "wb") as file:
            _manifest.write_manifest(file, server.major, identifier, mine, manifest.ranges)
        assert _manifest.read_manifest(path).files == [file._replace(mtime=file.mtime // 1) for file in mine]
        server.tool("pg_verifybackup", "-n", taken)
    with open(os.path.join(taken, "PG_VERSION"), "r+b") as damaged:
        damaged.write(b"9")
    assert server.tool("pg_verifybackup", "-n", taken, check=False).returncode == 0, "only sizes were recorded"


def describe(root: bytes, name: bytes, algorithm: str) -> _manifest.ManifestFile:
    path = os.path.join(root, name)
    digest = _host_checksums.new_hash(algorithm)
    status = os.stat(path)
    if digest is None:
        return _manifest.ManifestFile(name, status.st_size, status.st_mtime, None, None)
    with open(path, "rb") as file:
        digest.update(file.read())
    return _manifest.ManifestFile(name, status.st_size, status.st_mtime, algorithm, digest.hexdigest())


@pytest.mark.majors(14, 15, 16, 17, 18)
def test_label_and_map_are_understood(server: Server) -> None:
    server.tablespace("odd", os.fsencode(server.directory) + b"/new\nline \\ \r \xe9")
    server.tablespace("plain")
    label = "\u00e9t\u00e9 'quoted' \\ 100 %"
    start_call, stop_call = "pg_backup_start(%s, true)", "pg_backup_stop(false)"
    if server.major == 14:
        start_call, stop_call = "pg_start_backup(%s, true, false)", "pg_stop_backup(false, false)"
    with contextlib.closing(server.connect()) as session, session.cursor() as cursor:
        session.set_client_encoding("UTF8")
        cursor.execute(f"SELECT {start_call}", [label])
        start = _wal.parse_lsn(cursor.fetchone()[0])
        raw = "encode(convert_to({}, 'SQL_ASCII'), 'hex')"
        cursor.execute(f"SELECT lsn, {raw.format('labelfile')}, {raw.format('spcmapfile')} FROM {stop_call}")
        stop, label_file, map_file = cursor.fetchone()
    parsed = _label.parse_backup_label(bytes.fromhex(label_file))
    assert (parsed.start_lsn, parsed.method, parsed.backup_from) == (start, "streamed", "primary")
    assert (parsed.label, parsed.start_timeline, parsed.incremental_from_lsn) == (label.encode(), 1, None)
    size = 16 << 20
    assert parsed.start_wal_file == _wal.segment_name(1, _wal.segment_of(start, size), size)
    assert start <= parsed.checkpoint_lsn < _wal.parse_lsn(stop)
    spaces = _label.parse_tablespace_map(bytes.fromhex(map_file))
    assert spaces == locations(server)
    assert _label.format_tablespace_map(spaces) == bytes.fromhex(map_file)


@pytest.mark.majors(14, 15, 16, 17, 18)
@pytest.mark.parametrize("size", [1 << 20, 16 << 20, 64 << 20])
def test_control_file_and_segments(sandbox: Sandbox, major: int, size: int) -> None:
    options = [f"--wal-segsize={size >> 20}"] + ["-k"] * (size == 1 << 20)
    server = sandbox.primary(major, initdb=options, wal_keep_size=str(4 * size >> 20) + "MB")
    control = _control.read_control(os.fsencode(server.data / "global" / "pg_control"))
    assert server.sql(
        "SELECT system_identifier::text, pg_control_version, catalog_version_no, data_page_checksum_version,"
        " bytes_per_wal_segment FROM pg_control_system(), pg_control_init()"
    ) == [
        (str(control.system_identifier), control.control_version, control.catalog_version,
         control.data_checksum_version, size)
    ]  # fmt: skip
    assert (control.state, control.control_version) == (6, 1300 if major < 17 else 100 * major)

    start = _wal.parse_lsn(server.lsn())
    assert server.value("SELECT pg_walfile_name(%s)", [_wal.format_lsn(start)]) == _wal.segment_name(
        1, _wal.segment_of(start, size), size
    )
    for _turn in range(3):
        server.switch_wal()
    stop = _wal.parse_lsn(server.lsn())
    needed = _timelines.required_wal(_timelines.wal_ranges(1, start, 1, stop, []), size)
    names = sorted(path.name for path in (server.data / "pg_wal").iterdir() if _wal.is_segment_name(path.name))
    assert needed == names[names.index(needed[0]) :][: len(needed)]
    assert len(needed) == stop // size - start // size + (stop % size > 0)
    for name in needed:
        with (server.data / "pg_wal" / name).open("rb") as file:
            first = file.read(64)
        _wal.check_segment(first, name, size, control.system_identifier)
        header = _wal.parse_segment_header(first)
        assert (header.timeline, header.segment_size, header.block_size) == (1, size, 8192)


@pytest.mark.majors(14, 18)
def test_switch_of_timelines(sandbox: Sandbox, major: int) -> None:
    size = 1 << 20
    primary = sandbox.primary(major, initdb=["--wal-segsize=1"])
    standby = sandbox.standby(primary)
    primary.switch_wal()
    # Committed, so that the standby gets it and the timelines diverge in the middle of a segment.
    primary.sql("CREATE TABLE in_the_middle ()")
    standby.catch_up()
    start = _wal.parse_lsn(standby.lsn())
    standby.promote()
    for _turn in range(2):
        standby.switch_wal()
    stop = _wal.parse_lsn(standby.lsn())
    wal = standby.data / "pg_wal"
    history = _timelines.parse_history((wal / _wal.history_name(2)).read_text())
    assert [entry.timeline for entry in history] == [1]
    switch = history[0].end
    assert start <= switch < stop
    ranges = _timelines.wal_ranges(1, start, 2, stop, history)
    assert ranges == [_timelines.WalRange(2, switch, stop), _timelines.WalRange(1, start, switch)]
    assert _timelines.timeline_at(switch, 2, history) == 1
    assert _timelines.timeline_at(switch + 1, 2, history) == 2
    needed = _timelines.required_wal(ranges, size)
    assert needed[-1] == "00000002.history"
    identifier = int(standby.system_identifier)
    for name in needed[:-1]:
        _wal.check_segment((wal / name).read_bytes()[:40], name, size, identifier)
    # The segment with the switch: the header on the new timeline's file still names the old one.
    first = _wal.parse_segment_header((wal / _wal.segment_name(2, switch // size, size)).read_bytes()[:40])
    assert first.timeline == 1
