# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The locations to which tablespaces are restored, and whether these are free.

Private to pgfleet.basebackup. Room ``_restore``: which backup, the plan, the restore; it knows nothing of ``_backup``.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import paths as _paths
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import printable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.paths import inside
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.findings import Findings
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.layout import Space, is_empty
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.neighbours import Surroundings, user_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.places import check_alone, check_directory
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.record import (
    CLUSTER,
    EMPTY,
    INTERRUPTED,
    Destination,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import running as _running

_REMAP = f"Choose a different place in {option('tablespace_mapping')} or {option('tablespace_directory')}."

# Tablespaces to move aside: oid and location.
LeftOver = t.Tuple[t.Tuple[int, bytes], ...]


def map_tablespaces(
    originals: t.Mapping[int, bytes], wanted: t.Mapping[str, str], folder: t.Optional[str]
) -> list[Space]:
    """Return the new locations of tablespaces with these original locations, by oid.

    ``wanted`` has new locations by oid or original location; ``folder`` is the directory for all others.
    Raises BackupError, code ``bad_mapping``.
    """
    mapping = {os.fsencode(str(key)): os.fsencode(value) for key, value in wanted.items()}
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
            f"{option('tablespace_mapping')}: the backup has no {', '.join(map(printable, sorted(mapping)))}.",
            code="bad_mapping",
            hint=f"It has {known}.",
        )
    return spaces


def place_of(location: bytes, version: bytes) -> bytes:
    """Return the location of a tablespace whose link leads to ``location``.

    It is the parent when a crash interrupted setting it aside, between its link and its directory.
    """
    set_aside = os.path.basename(location).startswith(b"replaced-")
    return os.path.dirname(location) if set_aside and not os.path.exists(location + b"/" + version) else location


class TablespaceChecks:
    """The checks of the locations of tablespaces.

    ``source`` is the data directory of the backup's server, ``version`` the name of the server's directory in each
    tablespace, ``takes_over`` whether the old cluster's files may be overwritten or moved aside, ``replaces`` whether
    they are moved aside.
    """

    def __init__(
        self,
        findings: Findings,
        around: Surroundings,
        destination: Destination,
        source: bytes,
        version: bytes,
        takes_over: bool,
        replaces: bool,
    ) -> None:
        self._findings = findings
        self._around = around
        self._destination = destination
        self._source = source
        self._version = version
        self._takes_over = takes_over
        self._replaces = replaces
        # A link would lead to another cluster's tablespaces.
        linked = os.path.islink(destination.data + b"/pg_tblspc")
        self._old: dict[int, bytes] = {} if linked else _running.tablespaces_of(destination.data)

    def check(self, spaces: t.Sequence[Space]) -> None:
        """Refuse locations that are in use, overlap, or are not empty."""
        for space in spaces:
            self._check(space, [one.real for one in spaces if one.oid != space.oid])

    def _check(self, space: Space, others: t.Sequence[bytes]) -> None:
        findings, data, real = self._findings, self._destination.data, space.real
        name = f"The tablespace {space.oid}"
        user = self._user_of(real)
        if user:
            findings.refuse(
                "tablespace_in_use",
                f"{name} cannot be restored to {printable(space.location)}: it is in use by {user}.",
                _REMAP,
                oid=space.oid,
            )
            return
        above = [data] if inside(data, real) else []
        if not check_alone(findings, self._around, name, real, *above, *others):
            return
        if inside(real, data) and space.location != space.original:
            findings.refuse("overlap", f"{name} must not lie in the data directory.", _REMAP)
        else:
            check_directory(findings, real)
        if not self._is_empty(real) and not self._is_own(space):
            findings.refuse(
                "tablespace_not_empty",
                f"{name} cannot be restored to {printable(space.location)}: it is not empty.",
                _REMAP,
                oid=space.oid,
            )

    def _is_empty(self, place: bytes) -> bool:
        return is_empty(place + b"/" + self._version)

    def _user_of(self, real: bytes) -> str:
        """Return which other cluster has its data in a directory, "" for none."""
        # A restore uses the server's directory in it; only that of another server must not be it, or lie around it.
        place = real + b"/" + self._version
        user = user_of(self._around, place)
        if user:
            return user
        source, known = self._source, _paths.identity(real)
        locations = [] if source == self._around.data else _running.tablespaces_of(source).values()
        if any(_paths.same(_paths.identity(one), known) for one in locations):
            return f"the cluster in {printable(source)}"
        return ""

    def _is_own(self, space: Space) -> bool:
        """Return whether its files belong to the cluster, or interrupted restore, in the data directory."""
        destination = self._destination
        if destination.request.spaces.get(str(space.oid)) == os.fsdecode(space.location):
            return True
        if destination.state in (EMPTY, INTERRUPTED):
            # The old data directory does not exist any more, but its tablespaces do: where it had them. In another
            # place nothing says whose files they are, and they are at most moved aside.
            moves_aside = self._replaces and destination.state == EMPTY
            return moves_aside or (self._takes_over and space.location == space.original)
        linked = self._old.get(space.oid)
        if linked is None or not self._takes_over:
            return False
        return os.path.realpath(place_of(linked, self._version)) == space.real

    def left_over(self, spaces: t.Sequence[Space]) -> LeftOver:
        """Return the tablespaces of the old cluster that must be moved, because replay may create them again there."""
        state = self._destination.state
        found = []
        if state == EMPTY and self._replaces:
            found = [(one.oid, one.location) for one in spaces if not self._is_empty(one.real)]
        if state not in (CLUSTER, INTERRUPTED):
            return tuple(found)
        kept = set() if self._replaces and state == CLUSTER else {space.oid for space in spaces}
        for oid, location in sorted(self._old.items()):
            place = place_of(location, self._version)
            if oid in kept or self._is_empty(place):
                continue
            user = self._user_of(os.path.realpath(place))
            if user:
                self._findings.warn(f"{printable(location)} is in use by {user} and is left alone.")
            else:
                found.append((oid, location))
        return tuple(found)
