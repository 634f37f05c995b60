# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A source with backups, and servers to which they are restored."""

from __future__ import annotations

import contextlib
import pathlib
import typing as t

from tests.harness.modules import Modules, Result
from tests.harness.sandbox import Sandbox, free_port
from tests.harness.servers import Server, wait_until
from tests.harness.user import own_directory
from tests.integration.helpers.files import listing
from tests.integration.helpers.steps import Steps


class Source:
    """A primary with an archive, its backups in ``repository``, and servers to which they are restored."""

    def __init__(self, sandbox: Sandbox, major: int, **options: t.Any) -> None:
        """Start the primary with ``options`` of `Sandbox.primary`, by default with small segments."""
        self.sandbox, self.major = sandbox, major
        self.repository = sandbox.directory("repository")
        self.server = sandbox.primary(major, **{"initdb": ["--wal-segsize=1"], **options})
        self.cluster = self.repository / "main"

    @property
    def archive(self) -> pathlib.Path:
        """The archive of the current primary."""
        assert self.server.archive is not None
        return self.server.archive

    def modules(self, server: Server | None = None, **common: t.Any) -> Modules:
        """Return the modules, run as the server user, with the login of a server."""
        known = {"repository": str(self.repository), "cluster": "main"}
        archive = {"archive_directory": str(self.server.archive)} if self.server.archive else {}
        return Modules(server or self.server, as_server=True, **{**known, **archive, **common})

    def backup(self, backup_id: str = "one", server: Server | None = None, **start: t.Any) -> pathlib.Path:
        """Take a whole backup and return its published directory; for a standby, switch WAL on the primary."""
        source = server or self.server
        common = {"archive_directory": None}
        steps = Steps(self.modules(source, **common), source, backup_id)
        steps.start(**start)
        if start.get("wal") == "include":
            steps.ok("backup_copy")
            steps.ok("backup_stop")
            steps.ok("backup_publish")
        else:
            steps.finish(self.modules(**common) if source is not self.server else None)
        return steps.published

    def archived(self, server: Server | None = None) -> None:
        """Wait until all WAL written so far is archived."""
        source = server or self.server
        name = source.value("SELECT pg_walfile_name(pg_create_restore_point('end'))")
        source.sql("SELECT pg_switch_wal()")
        wait_until(lambda: list(self.archive.glob(f"{name}*")), f"{name} is archived: {source.log[-1000:]}")

    # -- restores ------------------------------------------------------------------------------------------------

    def place(self, name: str = "copy", data: str = "data") -> Server:
        """Return a server that does not exist yet."""
        place = _Place(self.major, name, self.sandbox.directory(name), free_port())
        place.data_name = data
        return place

    def options(self, place: Server, **options: t.Any) -> dict[str, t.Any]:
        """Return the arguments for a copy next to the other servers; None removes an argument."""
        settings = {"unix_socket_directories": str(place.socket_directory), **options.pop("settings", {})}
        wanted = {
            "data_directory": str(place.data), "port": place.port, "restore_as": "copy", "sync": False,
            "tablespace_directory": str(place.directory / "tablespaces"), "settings": settings, **options,
        }  # fmt: skip
        return {name: value for name, value in wanted.items() if value is not None}

    def run(self, place: Server, *, check: bool = False, **options: t.Any) -> Result:
        """Run the module and return its result, failed or not."""
        return self.modules().run("backup_restore", check=check, **self.options(place, **options))

    def restored(self, place: Server, *, check: bool = False, **options: t.Any) -> Result:
        """Restore and require success."""
        return self.modules().ok("backup_restore", check=check, **self.options(place, **options))

    def refused(self, place: Server, *codes: str, **options: t.Any) -> Result:
        """Require a refusal for exactly these reasons, also in check mode, and that nothing is touched."""
        before = self._idle()
        planned = self.run(place, check=True, **options)
        answer = self.run(place, **options)
        assert answer.get("failed"), answer
        assert "Traceback" not in str(answer.get("exception", "")), answer
        now = self._idle()
        assert now == before, sorted(path for path in {*before, *now} if before.get(path) != now.get(path))
        if not planned.get("failed"):
            assert planned["restorable"] is False, planned
            assert not planned["changed"]
            assert {one["code"] for one in planned["plan"]["refusals"]} <= set(codes), planned["plan"]["refusals"]
        else:
            assert planned["code"] in codes
        assert answer["code"] in codes, answer
        return answer

    def _idle(self) -> dict[str, tuple[int, ...]]:
        """Return the files of the sandbox, except those that running servers and their archivers write."""
        lively = {server.directory for server in self.sandbox.servers if server.running} | {self.sandbox.root}
        lively |= {server.archive for server in self.sandbox.servers if server.running and server.archive}
        names = tuple(f"{path}/" for path in lively - {self.sandbox.root})
        found = listing(self.sandbox.root)
        return {
            path: one for path, one in found.items() if not path.startswith(names) and pathlib.Path(path) not in lively
        }

    def started(self, place: Server) -> Server:
        """Start the restored server and wait until its recovery has ended."""
        if place not in self.sandbox.servers:
            self.sandbox.servers.append(place)
        place.start()
        wait_until(
            lambda: not place.running or not place.in_recovery,
            f"{place.name} recovers: {place.log[-2000:]}",
            timeout=60,
        )
        assert place.running, place.log[-2000:]
        return place

    @contextlib.contextmanager
    def copy(self, name: str = "copy", **options: t.Any) -> t.Iterator[Server]:
        """Yield a restored and recovered copy; stop it at the end."""
        place = self.place(name)
        self.restored(place, **options)
        yield self.started(place)
        place.stop("immediate")


class _Place(Server):
    """A server whose data directory can have any name."""

    data_name = "data"

    @property
    def data(self) -> pathlib.Path:
        """The data directory."""
        return self.directory / self.data_name


def numbers(server: Server) -> set[int]:
    """Return the rows of the table ``numbers``."""
    return {number for (number,) in server.sql("SELECT n FROM numbers")}


def directory(path: pathlib.Path) -> pathlib.Path:
    """Create a directory of the server user with its parents."""
    return own_directory(path)
