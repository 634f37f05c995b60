# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a restore will do, and every reason why it must not; nothing is touched.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils import (
    _archive,
    _control,
    _live,
    _restore_conf,
    _restore_neighbours,
    _restore_wal,
    _target,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._choose import Chosen, choose
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import printable, version_directory
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._manifest import ManifestFile
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository import Cluster, read_json
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore_copy import read_verified
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore_places import (
    CLUSTER,
    EMPTY,
    INTERRUPTED,
    OTHER,
    Places,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore_tree import (
    CONTROL,
    RECORD,
    WORK,
    WRITTEN,
    Layout,
    Survey,
    backup_directories,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify import Found, Look
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import parse_lsn

WISH = "wish.json"
# Says that nothing of the old cluster is in pg_wal any more.
WAL_SAVED = b"wal_saved"
# DBState in pg_control of a server in recovery: shut down in recovery, in archive recovery.
_IN_RECOVERY = (2, 5)
# What tells one restore from another; the other arguments say how it is done.
_WISH = (
    "repository cluster backup_id data_directory recovery_target recovery_target_time recovery_target_lsn"
    " recovery_target_xid recovery_target_name recovery_target_inclusive recovery_target_timeline"
    " recovery_target_action archive_directory restore_command tablespace_mapping tablespace_directory waldir"
    " allow_group_access restore_as primary_conninfo primary_slot_name port settings config_file"
)


def digest_of(params: t.Mapping[str, t.Any]) -> str:
    """Return what is the same for two calls that want the same; it does not tell passwords."""
    wish = json.dumps({name: params[name] for name in _WISH.split()}, sort_keys=True)
    return hashlib.sha256(wish.encode("ascii")).hexdigest()


def read_record(data: bytes) -> dict[str, t.Any]:
    """Return the record of the finished restore of this very directory, {} when there is none.

    That of a copy of the directory does not count, nor one of a restore that was not finished.
    """
    try:
        record = read_json(os.fsdecode(data + b"/" + RECORD))
        place = os.stat(data)
        if [record["device"], record["inode"]] != [place.st_dev, place.st_ino]:
            return {}
        return record if os.path.lexists(data + b"/" + CONTROL) else {}
    except (OSError, ValueError, KeyError):
        return {}


def read_wish(data: bytes) -> dict[str, t.Any]:
    """Return what the restore that works, or has worked, in ``data`` has written down of itself, {} when none has."""
    try:
        return read_json(os.path.join(os.fsdecode(data), os.fsdecode(WORK), WISH))
    except (OSError, ValueError):
        return {}


def state_of(data: bytes) -> str:
    """Return what the target directory is: EMPTY or absent, an INTERRUPTED restore, a CLUSTER, or OTHER."""
    if _restore_wal.is_empty(data, WORK):
        return EMPTY
    if os.path.isfile(data + b"/" + WORK + b"/" + os.fsencode(WISH)) and not os.path.lexists(data + b"/" + CONTROL):
        return INTERRUPTED
    return CLUSTER if os.path.lexists(data + b"/PG_VERSION") else OTHER


class Plan:
    """The plan of one restore, made by reading alone.

    ``refusals`` are the reasons why it must not be done, ``warnings`` what its administrator should know. The rest is
    set as far as the refusals let it be known: ``chosen``, ``content`` and ``files`` of the backup, ``layout``,
    ``survey`` of what is there, ``control`` and ``settings`` of the restored server, ``unarchived`` and ``used`` WAL.
    """

    def __init__(self, cluster: Cluster, params: t.Mapping[str, t.Any]) -> None:
        self.params = params
        self.cluster = cluster
        self.digest = digest_of(params)
        self.data = os.path.realpath(os.fsencode(params["data_directory"]))
        self.refusals: list[BackupError] = []
        self.warnings: list[str] = []
        self.chosen: t.Optional[Chosen] = None
        self.archive: t.Optional[_archive.Archive] = None
        self.layout: t.Optional[Layout] = None
        self.files: list[Found] = []
        self.small: dict[bytes, Found] = {}
        self.directories: list[bytes] = []
        self.survey = Survey({}, [])
        self.settings: dict[str, t.Any] = {}
        self.parameters: list[dict[str, t.Any]] = []
        self.config_files_outside: list[str] = []
        self.unarchived: list[str] = []
        self.used: list[tuple[bytes, str]] = []
        self.wal_from: list[bytes] = []
        self.save_to = b""
        self.moved = b""
        self.aside: list[tuple[int, bytes]] = []
        self.room: list[dict[str, t.Any]] = []
        self.data_directory_setting = False
        self.target = _target.parse_target(params)
        self.state = OTHER
        self._guard(self._find_state)
        self.record = read_record(self.data)
        # That of an interrupted restore; when a cluster is there it is nobody's.
        self.wish = read_wish(self.data) if self.state in (EMPTY, INTERRUPTED) else {}
        self.servers = _live.running_servers()

    @property
    def content(self) -> dict[str, t.Any]:
        """The metadata of the chosen backup."""
        return self.choice.content

    @property
    def choice(self) -> Chosen:
        """What was chosen, for steps that come after the choice."""
        return t.cast(Chosen, self.chosen)

    @property
    def places(self) -> Layout:
        """The layout, for steps that come after it was made."""
        return t.cast(Layout, self.layout)

    @property
    def is_done(self) -> bool:
        """Tell whether this very restore has been finished here."""
        return (
            self.chosen is not None
            and (not self.params["force"] or self.record.get("run_id") == (self.params["run_id"] or ""))
            and self.record.get("digest") == self.digest
            and self.record["backup_id"] == self.chosen.backup.id
        )

    @property
    def replaces(self) -> bool:
        """Tell whether what is there is moved aside first."""
        return bool(self.params["replace"]) and self.state in (CLUSTER, OTHER)

    def make(self) -> None:
        """Make the plan."""
        self._guard(self._choose)
        if self.is_done:
            return
        self._guard(self._check_record)
        places = Places(self)
        self._guard(places.check_target)
        if self.chosen is None:
            return
        self._guard(self._look)
        self._guard(self._check_wal)
        self._guard(places.make_layout)
        if self.layout is None:
            return
        self._guard(self._survey)
        self._guard(self._old_wal)
        self._guard(places.check_saved_wal)
        self._guard(lambda: _restore_conf.check(self))
        self._guard(lambda: _restore_neighbours.check_relatives(self))
        self._guard(places.check_space)

    def _guard(self, step: t.Callable[[], object]) -> None:
        """A refusal is noted, so that all of them are told at once."""
        try:
            step()
        except BackupError as exc:
            self.refusals.append(exc)

    def refuse(self, code: str, msg: str, hint: str = "", **details: t.Any) -> None:
        """Note a reason why this must not be done."""
        self.refusals.append(BackupError(msg, code=code, hint=hint, **details))

    def _find_state(self) -> None:
        self.state = state_of(self.data)

    def _choose(self) -> None:
        known = self.cluster.system_identifier()
        size = 16 << 20
        for backup in self.cluster.published():
            try:
                size = int(backup.load()["server"]["wal_segment_size"])
            except (BackupError, KeyError, TypeError, ValueError):
                continue
        directory, command = self.params["archive_directory"], self.params["restore_command"]
        default = os.path.join(self.cluster.path, "wal")
        if not directory and not command and os.path.isdir(default):
            directory = default
        self.archive = _archive.open_archive(directory, command, size, int(known) if known else None)
        self.chosen = choose(self.cluster, self.params["backup_id"], self.target, self._with_server())
        self.warnings += self.chosen.warnings
        if self.content.get("kind", "full") != "full":
            raise BackupError(
                f"The backup {self.chosen.backup.id} is not a full one.", code="not_full", hint="Combine it first."
            )

    def _with_server(self) -> t.Optional[_archive.Archive]:
        """Return the archive with what only the cluster in the target directory has, where that will be used."""
        own = _restore_wal.directory_of(self.data)
        places = [os.fsencode(place) for place in self.wish.get("wal_from", [])] + ([own] if own else [])
        uses = self.params["restore_as"] == "primary" and self.record.get("restore_as") != "copy"
        if uses and places and isinstance(self.archive, _archive.DirectoryArchive):
            return _restore_wal.WithServer(self.archive, places)
        return self.archive

    def _check_record(self) -> None:
        """Require that ``backup.json`` is what was written, as far as it is used here; else there is no backup."""
        if self.chosen is None:
            return
        backup, content = self.chosen.backup, self.content
        try:
            int(content["server"]["system_identifier"]), os.path.join(content["server"]["data_directory"], "")
            self.version(), self.specials(), list(content["server"].get("config_files_outside") or [])
            float(content["copy"]["bytes"]), float(content["copy"].get("seconds") or 0)
            [(int(oid), os.fsencode(location)) for oid, location in content["stop"]["tablespaces"].items()]
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            self.chosen = None
            raise BackupError(
                f"The backup {backup.path} is damaged: backup.json is not what was written: {exc!r}",
                code="damaged_backup",
                hint="Restore another backup.",
            ) from exc

    def _look(self) -> None:
        """Look at the backup as far as its files need not be read."""
        backup, content = self.choice.backup, self.content
        look = Look(backup, content)
        if look.bad_files:
            first = look.bad_files[0]
            self.refuse(
                "damaged_backup",
                f"The backup {backup.id} is damaged: {first['path']}: {first['msg']} ({len(look.bad_files)} in all)",
                "Restore another backup.",
                bad_files=look.bad_files,
            )
        for file in look.files:
            if file.entry.path in WRITTEN:
                self.small[file.entry.path] = file
                self._guard(functools.partial(read_verified, file))
            elif not file.entry.path.startswith(WORK + b"/"):
                self.files.append(file)
        if content.get("wal") == "include":
            self._add_included_wal()
        if any(file.entry.algorithm is None for file in self.files):
            self.warnings.append(f"The backup {backup.id} has no checksums: its files cannot be verified.")
        self.directories = backup_directories(os.fsencode(backup.path))
        self.config_files_outside = list(content["server"].get("config_files_outside") or [])

    def _check_wal(self) -> None:
        """Look into the first page of the WAL files that are needed: those of another cluster have the same names."""
        if isinstance(self.archive, _archive.DirectoryArchive):
            directory, server = os.fsencode(self.archive.directory), self.content["server"]
            size, identifier = server["wal_segment_size"], int(server["system_identifier"])
            for name in self.choice.wal_needed:
                self._guard(functools.partial(_restore_wal.check_header, directory, name, size, identifier))

    def _add_included_wal(self) -> None:
        checksums = self.content["wal_proof"].get("sha256") or {}
        for name in self.content["wal_proof"]["archived"]:
            place = os.fsencode(self.choice.backup.file("data", "pg_wal", name))
            path = b"pg_wal/" + os.fsencode(name)
            checksum = checksums.get(name)
            entry = ManifestFile(path, os.stat(place).st_size, 0, "SHA256" if checksum else None, checksum)
            self.files.append(Found(entry, place))

    def specials(self) -> set[bytes]:
        """Return the symbolic links of the source, which are not in the backup; where they are they may stay."""
        found = self.content["copy"].get("special_files") or []
        return {one["path"].encode("utf-8", "surrogateescape") for one in found if one["kind"] == "symlink"}

    def _survey(self) -> None:
        # What is to be set aside is not there any more.
        if not self.replaces and not (self.params["replace"] and self.state == EMPTY):
            wanted = {file.entry.path for file in self.files}
            self.survey = self.places.survey(wanted, set(self.directories), self.specials())

    def _old_wal(self) -> None:
        """Find the WAL of the replaced cluster that only it has."""
        source = _restore_wal.directory_of(self.data)
        size = self.content["server"]["wal_segment_size"]
        # That of a copy for tests is nobody's.
        if self.record.get("restore_as") == "copy":
            return
        self.wal_from = [os.fsencode(place) for place in self.wish.get("wal_from", [])]
        if self.params["replace"] and self.state == EMPTY and not self.wish:
            self.wal_from += self._moved_before()
        places = list(self.wal_from)
        # The file that says so does not count when a server may have run since.
        saved = self.state == INTERRUPTED and os.path.exists(self.data + b"/" + WORK + b"/" + WAL_SAVED)
        if source is not None and not saved:
            self.unarchived = _restore_wal.unarchived(source, size, self._is_archived)
            places.append(source)
        if self.wish.get("save_wal_to"):
            self.save_to = os.fsencode(self.wish["save_wal_to"])
        elif self.unarchived and not self.replaces:
            now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
            default = f"{os.fsdecode(self.data)}.saved_wal-{now}"
            while os.path.lexists(default):
                default += "x"
            self.save_to = os.fsencode(self.params["save_wal_to"] or default)
        if self.params["restore_as"] == "primary":
            self._use(places, size)

    def _is_archived(self, name: str) -> bool:
        """Tell whether a WAL file that the old cluster has marked as done is in the archive, as far as can be told.

        A standby marks so what it streams, whether its primary could archive it or not.
        """
        if isinstance(self.archive, _archive.DirectoryArchive):
            return self.archive.has(name)
        control = self.old_control()
        return control is not None and control.state not in _IN_RECOVERY

    def _moved_before(self) -> list[bytes]:
        """Return the WAL of what was moved aside by a call that died before it could say so."""
        parent, name = os.path.split(self.data)
        names = os.listdir(parent) if os.path.isdir(parent) else []
        found = [one for one in names if one.startswith(name + b".replaced-")]
        place = _restore_wal.directory_of(parent + b"/" + max(found)) if found else None
        return [place] if place else []

    def _use(self, places: t.Sequence[bytes], size: int) -> None:
        start = parse_lsn(self.content["start"]["start_lsn"])
        identifier = int(self.content["server"]["system_identifier"])
        included = {os.path.basename(file.entry.path) for file in self.files if file.entry.path.startswith(b"pg_wal/")}
        seen: set[str] = set()
        for place in places:
            names = _restore_wal.unarchived(place, size, self._is_archived)
            for name in _restore_wal.usable(place, names, self.archive, self.choice.path, start, size, identifier):
                if name not in seen and os.fsencode(name) not in included:
                    seen.add(name)
                    self.used.append((place, name))

    def old_control(self) -> t.Optional[_control.ControlFile]:
        """Return the control file of the cluster in the target directory, None when it has none that is good."""
        try:
            return _control.read_control(self.data + b"/" + CONTROL, attempts=1)
        except BackupError:
            return None

    def version(self) -> bytes:
        """Return the name of the server's directory in each tablespace."""
        server = self.content["server"]
        return version_directory(server["major"], server["catalog_version"])

    # -- what is told of it ----------------------------------------------------------------------------------------

    def told(self, equal: t.Optional[tuple[int, int]] = None) -> dict[str, t.Any]:
        """Return the module's result as far as it is known before the work.

        ``equal`` are number and bytes of the files that are right; without it those of the right size are taken.
        """
        total = sum(file.entry.size for file in self.files)
        sizes = [file.entry.size for file in self.files if self._may_keep(file)]
        number, kept = equal or (len(sizes), sum(sizes))
        saved = self.save_to or (self.wal_from[-1] if self.moved and self.unarchived else b"")
        plan: dict[str, t.Any] = {
            "bytes": total,
            "files": len(self.files),
            "keep_files": number,
            "keep_bytes": kept,
            "replace_files": len(self.survey.existing) - number,
            "remove_files": len(self.survey.surplus),
            "copy_files": len(self.files) - number,
            "copy_bytes": total - kept,
            "room": self.room,
            "moved_aside": printable(self.moved) if self.moved else None,
            "refusals": [{"code": one.code, "msg": one.msg, "hint": one.hint} for one in self.refusals],
            "warnings": list(self.warnings),
            "parameters": self.parameters,
            "saved_wal": printable(saved) if saved else None,
            "unarchived_wal": self.unarchived,
            "used_wal": sorted(name for _place, name in self.used),
            "config_files_outside": self.config_files_outside,
            "restore_command": self.settings.get("restore_command"),
        }
        result: dict[str, t.Any] = {
            "data_directory": os.fsdecode(self.data),
            "restore_as": self.params["restore_as"],
            "target": _target.in_words(self.target),
            "plan": plan,
        }
        if self.chosen is not None:
            copy = self.content["copy"]
            rate = copy["bytes"] / copy["seconds"] if copy.get("seconds") else 0
            until = self.choice.recoverable_until_us
            plan.update(
                wal_needed=self.choice.wal_needed,
                wal_missing=self.choice.wal_missing,
                estimated_seconds=round((total - kept) / rate, 1) if rate else None,
                recoverable_until=None if until is None else _target.format_time(until),
            )
            result.update(backup_id=self.choice.backup.id, why=self.choice.why)
        if self.layout is not None:
            result["tablespaces"] = {str(space.oid): printable(space.location) for space in self.layout.spaces}
        return result

    def _may_keep(self, file: Found) -> bool:
        there = self.survey.existing.get(file.entry.path)
        return there is not None and there.size == file.entry.size
