# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Proof that a backup is good: verify, restore with plain cp, start, check for corruption, compare the data."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re
import typing as t

from psycopg2 import sql

from . import binaries
from .sandbox import HBA, Sandbox, free_port
from .servers import Server, wait_until
from .user import me, own_file, run, server_user


def verifybackup(data: pathlib.Path, major: int, wal: pathlib.Path | None = None) -> None:
    """Run pg_verifybackup, with the WAL of an archive directory or without WAL."""
    with_wal = ["-w", str(wal)] if wal else ["-n"]
    # As the current user: the backup may belong to an account other than the server's.
    command: list[str | pathlib.Path] = [binaries.tool(major, "pg_verifybackup"), "--exit-on-error", *with_wal, data]
    run(command, env=binaries.environment(major), user=me(), timeout=600)


def amcheck(server: Server) -> None:
    """Run pg_amcheck on every database of a primary: check tables with their TOAST, indexes with their tables."""
    done = server.tool(
        "pg_amcheck", "--all", "--install-missing", "--heapallindexed", "--parent-check", check=False, timeout=600
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), f"pg_amcheck: {done.stdout}{done.stderr}"


def data_checksum(server: Server) -> str:
    """Return a checksum of all rows of all user tables of all databases, the same on every copy of the cluster."""
    total = hashlib.sha256()
    for (database,) in server.sql("SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname"):
        with contextlib.closing(server.connect(database)) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
                " WHERE c.relkind = 'r' AND c.relpersistence = 'p'"
                " AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'"
                ' ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"'
            )
            for schema, table in cursor.fetchall():
                # The sum is independent of the order of the rows, which a restore need not preserve.
                cursor.execute(
                    sql.SQL(
                        "SELECT count(*), coalesce(sum(('x' || substr(md5(r::text), 1, 15))::bit(60)::bigint), 0)"
                        " FROM {} r"
                    ).format(sql.Identifier(schema, table))
                )
                total.update(f"{database}.{schema}.{table}: {cursor.fetchone()}\n".encode())
    return total.hexdigest()


def restore(
    sandbox: Sandbox,
    backup: pathlib.Path,
    archive: pathlib.Path | None,
    major: int,
    *,
    name: str = "restored",
    target: str | None = None,
    start: bool = True,
    **settings: str | int | bool,
) -> Server:
    """Restore a published backup with cp alone and return the server, recovered and writable.

    ``backup`` holds ``data`` and ``tablespaces/<oid>``. The tablespaces go into the new server's directory, and both
    the links and tablespace_map point there, so that the original ones are never touched. The server recovers to
    ``target`` (a value of recovery_target such as ``immediate``) or to the end of the archive, and archives nothing.
    """
    server = Server(major, name, sandbox.directory(name), free_port())
    sandbox.servers.append(server)
    run(["cp", "-a", backup / "data", server.data], user=me())
    own_links = server.directory / "tablespaces"
    if (backup / "tablespaces").is_dir():
        run(["cp", "-a", backup / "tablespaces", own_links], user=me())
        for oid in os.listdir(own_links):
            link = server.data / "pg_tblspc" / oid
            link.unlink(missing_ok=True)
            link.symlink_to(own_links / oid)
        map_file = server.data / "tablespace_map"
        if map_file.exists():
            oids = _oids(map_file.read_bytes())
            map_file.write_bytes(b"".join(b"%s %s/%s\n" % (oid, os.fsencode(own_links), oid) for oid in oids))
    user = server_user()
    if not user.is_me:
        run(["chown", "-R", "-h", f"{user.uid}:{user.gid}", server.directory], user=me())

    # Otherwise a standby's backup would keep connecting to its upstream, and a primary's would archive over it.
    (server.data / "standby.signal").unlink(missing_ok=True)
    auto = server.data / "postgresql.auto.conf"
    own_file(auto, re.sub(r"(?m)^primary_(conninfo|slot_name).*\n?", "", auto.read_text()))
    own_file(server.data / "pg_hba.conf", HBA)
    own_file(server.data / "recovery.signal", "")
    server.conf(
        port=server.port,
        unix_socket_directories=str(server.socket_directory),
        archive_mode=False,
        restore_command=f'cp "{archive}/%f" "%p"' if archive else "false",
        recovery_target=target or "",
        recovery_target_action="promote",
        **settings,
    )
    if start:
        server.start()
        wait_until(lambda: not server.in_recovery, f"{name} out of recovery: {server.log[-2000:]}", timeout=120)
    return server


def _oids(tablespace_map: bytes) -> list[bytes]:
    """Return the OIDs in a tablespace_map, where a backslash escapes a newline in a path."""
    return re.findall(rb"(?:\A|(?<!\\)\n)(\d+) ", tablespace_map)


def restore_and_check(
    sandbox: Sandbox,
    backup: pathlib.Path,
    archive: pathlib.Path,
    major: int,
    expect: t.Callable[[Server], object] | None = None,
    **options: t.Any,
) -> None:
    """Verify a published backup, restore it, run pg_amcheck, call ``expect(server)``, and stop the restored server.

    ``options`` are those of `restore`; ``verify_wal=False`` verifies without WAL.
    """
    verifybackup(backup / "data", major, archive if options.pop("verify_wal", True) else None)
    server = restore(sandbox, backup, archive, major, **options)
    try:
        if expect:
            expect(server)
        amcheck(server)
    finally:
        server.stop("immediate")
