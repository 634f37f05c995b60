# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the directories that a restore wants to write to are fit for it, and nobody else's.

Sources: PostgreSQL, "Recovering Using a Continuous Archive Backup"; checkDataDir of miscinit.c for owner and mode.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import os
import stat
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import paths as _paths
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import printable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.paths import inside, nearest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.units import readable_bytes
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import neighbours as _neighbours
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import old_wal as _old_wal
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.layout import Layout, Space
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.plan import Plan
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.record import CLUSTER, EMPTY, INTERRUPTED
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import running as _running


def place_of(location: bytes, version: bytes) -> bytes:
    """Return where a tablespace is whose link leads to ``location``.

    That is its parent when a crash came while it was set aside, after its link and before its directory.
    """
    set_aside = os.path.basename(location).startswith(b"replaced-")
    return os.path.dirname(location) if set_aside and not os.path.exists(location + b"/" + version) else location


def is_root() -> bool:
    """Tell whether this user is the one that PostgreSQL refuses to run as."""
    return os.geteuid() == 0


class Places:
    """The checks of one plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._data = plan.data
        self._params = plan.params
        # Through a link one would see another cluster's.
        linked = os.path.islink(plan.data + b"/pg_tblspc")
        self._old_spaces: dict[int, bytes] = {} if linked else _running.tablespaces_of(plan.data)

    def check_target(self) -> None:
        """Check the data directory: owner, content, and that nobody else is in it."""
        plan, data = self._plan, self._data
        if is_root():
            plan.refuse(
                "running_as_root",
                "This runs as root; what is restored must belong to the operating system user of the server.",
                "Use become_user: postgres.",
            )
        self._check_directory(data)
        pid = _running.server_in(data, plan.servers)
        if pid is not None:
            plan.refuse("server_running", f"A PostgreSQL server runs in {printable(data)} (process {pid}).", "Stop it.")
        for server in plan.servers:
            if pid != server.pid and (inside(data, server.data_directory) or inside(server.data_directory, data)):
                plan.refuse(
                    "overlap",
                    f"The data directory, {printable(data)}, and the running server in"
                    f" {printable(server.data_directory)} overlap.",
                    "Name another place.",
                )
        self._check_alone("The data directory", data)
        self._check_content()

    def _check_alone(self, name: str, real: bytes, *others: bytes) -> bool:
        """Refuse a place that overlaps with what holds backups and WAL, with ``others``, or lies in another cluster."""
        plan = self._plan
        known = [*_neighbours.holdings(plan), *(("another place of this restore", one) for one in others)]
        overlapping = [f"{what}, {printable(one)}," for what, one in known if inside(real, one) or inside(one, real)]
        around = _neighbours.cluster_around(real)
        if around and around != self._data:
            overlapping.append(f"the cluster in {printable(around)}")
        for what in overlapping[:1]:
            plan.refuse("overlap", f"{name}, {printable(real)}, and {what} overlap.", "Name another place.")
        return not overlapping

    def check_saved_wal(self) -> None:
        """Check where the WAL goes that must not be lost."""
        plan = self._plan
        if not plan.save_to:
            return
        real = os.path.realpath(plan.save_to)
        wal = _old_wal.directory_of(self._data)
        taken = [*plan.places.roots, *(space.real for space in plan.places.spaces), *([wal] if wal else [])]
        if not self._check_alone("save_wal_to", real + b"/x", *taken):
            return
        self._check_directory(real)
        # What an interrupted restore has saved is its own.
        if plan.wish.get("save_wal_to") != os.fsdecode(plan.save_to):
            there = [name for name in plan.unarchived if os.path.lexists(real + b"/" + os.fsencode(name))]
            if there:
                plan.refuse(
                    "saved_wal_exists", f"{printable(real)} has a file {there[0]} already.", "Name another place."
                )

    def _check_directory(self, path: bytes) -> None:
        """Refuse a directory that this user may not have, or not make."""
        if os.path.lexists(path):
            status = os.stat(path)
            if not stat.S_ISDIR(status.st_mode):
                self._plan.refuse("not_a_directory", f"{printable(path)} is not a directory.", "Name another place.")
            elif status.st_uid != os.geteuid():
                self._plan.refuse(
                    "wrong_owner",
                    f"{printable(path)} belongs to the user {status.st_uid}, this runs as {os.geteuid()}:"
                    " PostgreSQL does not start in another user's directory.",
                    f"chown {os.geteuid()} {printable(path)}, or become_user.",
                )
            return
        parent = nearest(os.path.dirname(path))
        if not os.access(parent, os.W_OK | os.X_OK):
            self._plan.refuse(
                "not_writable",
                f"{printable(path)} cannot be made: the user {os.geteuid()} may not write to {printable(parent)}.",
                f"install -d -m 0700 -o <the server's user> {printable(path)}",
            )

    def _check_content(self) -> None:
        plan, data = self._plan, self._data
        if plan.state in (EMPTY, INTERRUPTED):
            return
        if not self._params["delta"] and not self._params["replace"]:
            plan.refuse(
                "not_empty",
                f"The data directory {printable(data)} is not empty.",
                "delta: true keeps the files that are right and replaces the others, replace: true moves it aside.",
            )
        elif self._params["replace"]:
            self._check_movable()
        elif plan.state != CLUSTER:
            plan.refuse(
                "not_a_data_directory",
                f"{printable(data)} has no PG_VERSION: it is not a data directory, and delta would empty it.",
                "replace: true moves it aside.",
            )
        else:
            control = plan.old_control()
            known = plan.cluster.system_identifier()
            if control is not None and known is not None and str(control.system_identifier) != known:
                plan.refuse(
                    "other_cluster",
                    f"{printable(data)} holds the cluster with system identifier {control.system_identifier},"
                    f" the backups are of {known}.",
                    "replace: true moves it aside.",
                )

    def _check_movable(self) -> None:
        data = self._data
        if os.path.ismount(data) or _paths.mounts_below(data):
            why = "it is a mount point or has one inside"
        elif not os.access(os.path.dirname(data), os.W_OK | os.X_OK):
            why = f"the user {os.geteuid()} may not write to {printable(os.path.dirname(data))}"
        else:
            return
        self._plan.refuse(
            "cannot_move_aside",
            f"{printable(data)} cannot be moved aside: {why}.",
            "Use delta: true, or move its content away yourself.",
        )

    # -- tablespaces and pg_wal ------------------------------------------------------------------------------------

    def make_layout(self) -> None:
        """Decide where everything goes, and check those places. Raises BackupError, code ``bad_mapping``."""
        plan = self._plan
        spaces = self._spaces()
        for space in spaces:
            self._check_space_of(space, [one for one in spaces if one.oid != space.oid])
        self._find_left_over(spaces)
        waldir = self._waldir([space.real + b"/" + plan.version() for space in spaces])
        mounts = set() if plan.replaces else _paths.mounts_below(self._data) - {self._data + b"/pg_wal"}
        mounts = mounts.union(*(_paths.mounts_below(space.real) for space in spaces))
        layout = Layout(self._data, plan.version(), spaces, waldir, mounts, bool(self._params["allow_group_access"]))
        for mount in mounts:
            if any(inside(layout.place(file.entry.path), mount) for file in plan.files):
                plan.refuse(
                    "nested_mount",
                    f"{printable(mount)} is a mount point, and the backup has files there.",
                    "Unmount it, or restore elsewhere.",
                )
        plan.layout = layout

    def _spaces(self) -> list[Space]:
        originals = {
            int(oid): location.encode("utf-8", "surrogateescape")
            for oid, location in self._plan.content["stop"]["tablespaces"].items()
        }
        wanted = self._params["tablespace_mapping"]
        mapping = {os.fsencode(str(key)): os.fsencode(value) for key, value in wanted.items()}
        folder = self._params["tablespace_directory"]
        spaces = []
        for oid, original in sorted(originals.items()):
            location = os.path.join(os.fsencode(folder), b"%d" % oid) if folder else original
            for key in (b"%d" % oid, original, original + b"/"):
                location = mapping.pop(key, location)
            if not os.path.isabs(location):
                raise BackupError(f"{printable(location)} is not an absolute path.", code="bad_mapping")
            location = os.path.normpath(location)
            spaces.append(Space(oid, original, location, os.path.realpath(location)))
        if mapping:
            known = ", ".join(f"{one.oid} at {printable(one.original)}" for one in spaces) or "none"
            raise BackupError(
                f"tablespace_mapping: the backup has no {', '.join(map(printable, sorted(mapping)))}.",
                code="bad_mapping",
                hint=f"It has {known}.",
            )
        return spaces

    def _check_space_of(self, space: Space, others: t.Sequence[Space]) -> None:
        plan = self._plan
        real = space.real
        name = f"The tablespace {space.oid}"
        remap = "Name another place in tablespace_mapping or tablespace_directory."
        user = self._user_of(real)
        if user:
            plan.refuse(
                "tablespace_in_use",
                f"{name} cannot be restored to {printable(space.location)}: it is in use by {user}.",
                remap,
                oid=space.oid,
            )
            return
        above = [self._data] if inside(self._data, real) else []
        if not self._check_alone(name, real, *above, *(one.real for one in others)):
            return
        if inside(real, self._data) and space.location != space.original:
            plan.refuse("overlap", f"{name} must not lie in the data directory.", remap)
        else:
            self._check_directory(real)
        if not _old_wal.is_empty(real + b"/" + plan.version()) and not self._is_own(space, real):
            plan.refuse(
                "tablespace_not_empty",
                f"{name} cannot be restored to {printable(space.location)}: it is not empty.",
                remap,
                oid=space.oid,
            )

    def _user_of(self, real: bytes) -> str:
        """Return who else has its data in a directory."""
        plan = self._plan
        wanted = _paths.identity(real)
        for server in plan.servers:
            if _paths.same(server.identity, _paths.identity(self._data)):
                continue
            places = {
                path: known for path, known in server.tablespaces.items() if _paths.same(known, wanted) or path == real
            }
            if places or inside(real, server.data_directory):
                return f"the running server in {printable(server.data_directory)}"
        source = os.path.realpath(os.fsencode(plan.content["server"]["data_directory"]))
        if source != self._data and real in map(os.path.realpath, _running.tablespaces_of(source).values()):
            return f"the cluster in {printable(source)}"
        return ""

    def _is_own(self, space: Space, real: bytes) -> bool:
        """Tell whether what lies there is that of the cluster, or interrupted restore, in the data directory."""
        plan = self._plan
        if plan.wish.get("spaces", {}).get(str(space.oid)) == os.fsdecode(space.location):
            return True
        wanted = self._params["delta"] or self._params["replace"]
        if plan.state in (EMPTY, INTERRUPTED):
            # The data directory is lost, its tablespaces are not.
            return bool(wanted)
        linked = self._old_spaces.get(space.oid)
        return bool(wanted) and linked is not None and os.path.realpath(place_of(linked, plan.version())) == real

    def _find_left_over(self, spaces: t.Sequence[Space]) -> None:
        """Find the tablespaces of the old cluster that must not stay where replay may create them again."""
        plan = self._plan
        if plan.state == EMPTY and self._params["replace"]:
            version = plan.version()
            plan.aside += [
                (one.oid, one.location) for one in spaces if not _old_wal.is_empty(one.real + b"/" + version)
            ]
        if plan.state not in (CLUSTER, INTERRUPTED):
            return
        kept = set() if plan.replaces else {space.oid for space in spaces}
        for oid, location in sorted(self._old_spaces.items()):
            place = place_of(location, plan.version())
            if oid in kept or _old_wal.is_empty(place + b"/" + plan.version()):
                continue
            user = self._user_of(os.path.realpath(place))
            if user:
                plan.warnings.append(f"{printable(location)} is in use by {user} and is left alone.")
            else:
                plan.aside.append((oid, location))

    def _waldir(self, spaces: t.Sequence[bytes]) -> t.Optional[bytes]:
        plan, data = self._plan, self._data
        link = data + b"/pg_wal"
        own = os.path.realpath(link) if os.path.islink(link) and not plan.replaces else None
        waldir = os.path.normpath(os.fsencode(self._params["waldir"])) if self._params["waldir"] else own
        if waldir is None:
            return None
        for real in sorted({os.path.realpath(waldir), own or os.path.realpath(waldir)}):
            user = _neighbours.user_of_wal(plan, real)
            if user:
                plan.refuse(
                    "waldir_in_use",
                    f"The directory of pg_wal, {printable(real)}, is in use by {user}.",
                    f"Name another waldir, and remove the link {printable(link)} if it leads there.",
                )
                return waldir
            if not self._check_alone("The directory of pg_wal", real, data, *spaces):
                return waldir
        real = os.path.realpath(waldir)
        if self._params["waldir"] and os.path.ismount(link):
            plan.refuse(
                "nested_mount",
                f"{printable(link)} is a mount point and cannot become a link to waldir.",
                "Leave waldir out, or unmount it.",
            )
        self._check_directory(real)
        if real != own and not _old_wal.is_empty(real):
            plan.refuse(
                "waldir_not_empty",
                f"The directory for pg_wal, {printable(waldir)}, is not empty.",
                "Name another one, or move its files away; WAL that was not archived may be among them.",
            )
        return waldir

    # -- room ------------------------------------------------------------------------------------------------------

    def check_space(self) -> None:
        """Compare what is needed with what is free, file system by file system."""
        plan, layout = self._plan, self._plan.places
        needed: dict[int, list[t.Any]] = {}

        def add(place: bytes, size: int) -> None:
            parent = nearest(place)
            device = os.stat(parent).st_dev
            system = needed.setdefault(device, [parent, 0])
            system[1] += size

        roots: dict[bytes, int] = dict.fromkeys(layout.roots, 0)
        wal = layout.waldir or layout.data
        for file in plan.files:
            path = file.entry.path
            there = plan.survey.existing.get(path)
            place = layout.place(path)
            root = wal if path.startswith(b"pg_wal/") else layout.data
            if path.startswith(b"pg_tblspc/"):
                root = next((one for one in layout.roots[1:] if inside(place, one)), layout.data)
            roots[root] += max(0, file.entry.size - (there.size if there else 0))
        segment = plan.content["server"]["wal_segment_size"]
        roots[wal] += len(plan.used) * segment
        for root, size in roots.items():
            add(root, size)
        if plan.save_to and os.stat(nearest(plan.save_to)).st_dev != os.stat(nearest(wal)).st_dev:
            add(plan.save_to, len(plan.unarchived) * segment)
        for place, size in needed.values():
            system = os.statvfs(place)
            free = system.f_bavail * system.f_frsize
            plan.room.append({"directory": printable(place), "needed": size, "free": free})
            if size > free:
                plan.refuse(
                    "disk_full",
                    f"{readable_bytes(size)} are needed at {printable(place)}, {readable_bytes(free)} are free.",
                    "Make room there, or restore to another file system.",
                    needed=size,
                    free=free,
                )
