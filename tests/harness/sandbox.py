# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clusters of servers under one temporary directory, all stopped and removed at the end."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import random
import secrets
import shutil
import signal
import socket
import struct
import tempfile
import typing as t

from . import binaries
from .servers import Server, is_alive, wait_until
from .user import own_directory, own_file, run, server_user

Setting = t.Union[str, int, bool]

FAST: t.Final[dict[str, Setting]] = {
    "autovacuum": False,
    "fsync": False,
    "jit": False,
    "listen_addresses": "127.0.0.1",
    "log_line_prefix": "%m [%p] %a ",
    "max_connections": 50,
    "max_wal_senders": 10,
    "shared_buffers": "16MB",
    "wal_level": "replica",
}

# Only the owner of the directory can reach the socket; other accounts must not log in over TCP either.
HBA: t.Final = """\
local all all trust
local replication all trust
host all all 127.0.0.1/32 scram-sha-256
host replication all 127.0.0.1/32 scram-sha-256
"""


def temporary_directory() -> pathlib.Path:
    """Return where sandboxes go: PGFLEET_TMP, else /dev/shm if it is large (twice as fast as a disk), else /tmp."""
    named = os.environ.get("PGFLEET_TMP")
    if named:
        return pathlib.Path(named)
    memory = pathlib.Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= 4 << 30:
        return memory
    return pathlib.Path("/tmp")


def free_port() -> int:
    """Return a port that was free a moment ago, below the kernel's range for outgoing connections."""
    while True:
        port = random.randrange(20000, 32000)  # noqa: S311 - no secret
        with socket.socket() as probe:
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of ``data``, as pg_control has it; slow."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _bit in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def template(major: int, *options: str) -> pathlib.Path:
    """Return a fresh data directory by initdb with ``options``, cached per version and options."""
    user = server_user()
    key = hashlib.sha256("\0".join(options).encode()).hexdigest()[:8]
    with binaries.made_once(f"template-{binaries.VERSIONS[major]}-{user.name}-{key}") as (final, work):
        if work:
            data = own_directory(work / "data")
            locale = [] if any(option.startswith(("--locale", "--lc-")) for option in options) else ["--locale=C.UTF-8"]
            run(
                [binaries.tool(major, "initdb"), "--no-sync", "-U", "postgres", "-A", "trust", *locale, *options, data],
                env=binaries.environment(major),
            )
    return final / "data"


def give_identity(data: pathlib.Path, major: int) -> None:
    """Give a copied template its own system identifier, in pg_control and in its only WAL segment.

    initdb would take ten times as long. (src/include/catalog/pg_control.h, access/xlog_internal.h)
    """
    identity = struct.pack("<Q", secrets.randbits(62))
    control = data / "global" / "pg_control"
    content = bytearray(control.read_bytes())
    at = 292 if major >= 18 else 288
    content[0:8] = identity
    content[at : at + 4] = struct.pack("<I", crc32c(bytes(content[:at])))
    control.write_bytes(content)
    for segment in (data / "pg_wal").glob("0000*"):
        with segment.open("r+b") as file:
            file.seek(24)
            file.write(identity)


class Sandbox:
    """A directory that the server user can reach, and the servers in it.

    As a context manager it stops every server and removes the directory at the end, whatever happened.
    """

    def __init__(self, root: pathlib.Path | None = None) -> None:
        """Use ``root``, whose parents the server user can enter, or a new directory in `temporary_directory`."""
        self.root = root or pathlib.Path(tempfile.mkdtemp(prefix="pgfleet-", dir=temporary_directory()))
        self.root.mkdir(parents=True, exist_ok=True)
        own_directory(self.root)
        self.servers: list[Server] = []
        self._cleanups: list[t.Callable[[], object]] = []

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self, remove: bool = True) -> None:
        """Run the callbacks of `on_close`, stop all servers at once, remove the directory."""
        for cleanup in reversed(self._cleanups):
            with contextlib.suppress(Exception):
                cleanup()
        # An immediate shutdown, unlike SIGKILL, still removes the shared memory.
        pids = [pid for server in self.servers if (pid := server.pid)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGQUIT)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not any(is_alive(pid) for pid in pids), "all servers stopped", timeout=20)
        for server in self.servers:
            server.kill()
        if remove:
            shutil.rmtree(self.root, ignore_errors=True)

    def on_close(self, cleanup: t.Callable[[], object]) -> None:
        """Call ``cleanup`` before the servers are stopped."""
        self._cleanups.append(cleanup)

    def directory(self, name: str, mode: int = 0o700) -> pathlib.Path:
        """Return a directory of the server user in the sandbox; create it if it does not exist."""
        return own_directory(self.root / name, mode)

    def _new(self, major: int, name: str, **kwargs: t.Any) -> Server:
        taken = {server.name for server in self.servers}
        unique = name if name not in taken else f"{name}-{len(self.servers)}"
        server = Server(major, unique, self.directory(unique), free_port(), **kwargs)
        self.servers.append(server)
        return server

    def _start(self, server: Server, **settings: Setting) -> Server:
        """Start; use another port if this one has been taken."""
        for _attempt in range(5):
            server.conf(port=server.port, unix_socket_directories=str(server.socket_directory), **settings)
            try:
                return server.start()
            except AssertionError:
                if "could not bind" not in server.log:
                    raise
                server.log_file.unlink()
                server.port = free_port()
        raise AssertionError("no free port found")

    def primary(
        self,
        major: int = binaries.NEWEST,
        *,
        name: str = "primary",
        archive: bool = True,
        tablespaces: t.Sequence[str] = (),
        initdb: t.Sequence[str] = (),
        start: bool = True,
        **settings: Setting,
    ) -> Server:
        """Return a running primary with its own system identifier.

        With ``archive`` it has ``archive_mode=on`` and a command that copies to ``server.archive`` under a temporary
        name and renames (see ``Server.break_archive``). ``Server.tablespace`` creates ``tablespaces``. ``initdb``
        are options such as ``--wal-segsize=1`` or ``-k``. ``settings`` go last into postgresql.conf.
        """
        server = self._new(major, name, password=secrets.token_hex(8))
        run(["cp", "-a", template(major, *initdb), server.data])
        give_identity(server.data, major)
        own_file(server.data / "pg_hba.conf", HBA)
        defaults = dict(FAST)
        if archive:
            server.archive = self.directory(f"{server.name}-archive")
            defaults.update(archive_mode=True, archive_command=archive_command(server.archive))
        self.configure_and_start(server, start, {**defaults, **settings})
        if start:
            server.sql("ALTER ROLE postgres PASSWORD %s", [server.password])
        for tablespace in tablespaces:
            server.tablespace(tablespace)
        return server

    def configure_and_start(self, server: Server, start: bool, settings: t.Mapping[str, Setting]) -> None:
        """Write the settings and, if requested, start."""
        if start:
            self._start(server, **settings)
        else:
            server.conf(port=server.port, unix_socket_directories=str(server.socket_directory), **settings)

    def standby(
        self,
        upstream: Server,
        *,
        name: str = "standby",
        archive_mode: str = "on",
        tcp: bool = True,
        **settings: Setting,
    ) -> Server:
        """Return a streaming standby of ``upstream`` (itself a primary or a standby), once it streams.

        It shares the upstream's archive; with ``archive_mode="always"`` it gets its own. Existing tablespaces are
        mapped into its own directory. Its primary_conninfo names 127.0.0.1 and holds the password, or names the socket
        directory without ``tcp``. A replication slot of its name retains the WAL on the upstream while it is down.
        """
        server = self._new(
            upstream.major, name, upstream=upstream, archive=upstream.archive, password=upstream.password
        )
        mappings: list[str] = []
        for oid_name, location in upstream.sql(
            "SELECT spcname, pg_tablespace_location(oid) FROM pg_tablespace WHERE pg_tablespace_location(oid) LIKE '/%'"
        ):
            target = server.directory / "tablespaces" / oid_name
            own_directory(target.parent)
            mappings += ["-T", f"{location}={target}".replace("\\", "\\\\")]
        host = "127.0.0.1" if tcp else str(upstream.socket_directory)
        conninfo = f"host={host} port={upstream.port} user={upstream.user} application_name={server.name}"
        upstream.tool(
            "pg_basebackup", "-D", server.data, "-R", "-c", "fast", "--no-sync", "-X", "stream", *mappings,
            "-C", "-S", slot_name(server.name), "-d", conninfo, env={"PGPASSWORD": upstream.password} if tcp else {},
        )  # fmt: skip
        own: dict[str, Setting] = {"archive_mode": archive_mode if upstream.archive else "off"}
        if archive_mode == "always":
            server.archive = self.directory(f"{server.name}-archive")
            own["archive_command"] = archive_command(server.archive)
        self._start(server, **{**own, **settings})
        wait_until(
            lambda: upstream.sql(
                "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming' AND application_name = %s", [server.name]
            ),
            f"{server.name} streams from {upstream.name}: {server.log[-500:]}",
            timeout=120,
        )
        server.catch_up(timeout=120)
        return server


def slot_name(standby: str) -> str:
    """Return the name of the replication slot that a standby streams from."""
    return standby.replace("-", "_")


def archive_command(archive: pathlib.Path) -> str:
    """Return a command that never overwrites a file and never leaves a partial one under a segment's name.

    It fails while ``<archive>.broken`` exists.
    """
    target = f'"{archive}/%f"'
    return (
        f'test ! -e "{archive}.broken" && test ! -f {target} && cp "%p" "{archive}/.%f.tmp" && '
        f'mv "{archive}/.%f.tmp" {target}'
    )
