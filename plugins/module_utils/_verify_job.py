# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Verification as a whole: which backup, which looks at it, in this process or in one that outlives the task.

Nothing is written to the repository. The record of a detached verification lies in a private folder of the user below
the temporary directory, under a name that the caller chooses; a verification that nobody asks for ends by itself.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._archive import Archive, open_archive
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._job import Job, Recorder
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository import Backup, Cluster
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify import Look, bad_file, wrong_checksums
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify_tool import find_tool, run_tool
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify_wal import bad_wal, required_bytes

FULL, WAL = "full", "wal"
# After that many seconds without a question nobody waits for the answer.
ABANDONED_SECONDS = 900.0
LEFTOVER_SECONDS = 86400.0
_NAMED_IN_MESSAGE = 5


def chosen(cluster: Cluster, backup_id: str) -> Backup:
    """Return the published backup ``backup_id``; ``latest`` is the one that ended last.

    Raises :class:`BackupError`: ``unknown_backup``, ``no_backup``, ``not_published``.
    """
    if backup_id != "latest":
        backup = cluster.get(backup_id)
        if not backup.published:
            raise BackupError(
                f"The backup {backup.id} in {cluster.path} is not published; it cannot be verified.",
                code="not_published",
                hint="pgfleet.basebackup.backup_info tells what it waits for.",
            )
        return backup
    published = cluster.published()
    if not published:
        raise BackupError(
            f"There is no published backup in {cluster.path}.",
            code="no_backup",
            hint="pgfleet.basebackup.backup_info lists what is there.",
        )
    return max(published, key=_ended)


def _ended(backup: Backup) -> tuple[float, str]:
    try:
        return float(backup.load()["stop"]["stopped_at"]), backup.id
    except (BackupError, KeyError, TypeError, ValueError):
        # Its files tell as well when it was published.
        return os.stat(backup.path).st_mtime, backup.id


class Wish(t.NamedTuple):
    """What is to be verified, and how: arguments of ``backup_verify``."""

    levels: t.Sequence[str]
    jobs: int
    archive_directory: t.Optional[str]
    restore_command: t.Optional[str]
    pg_verifybackup: bool
    bin_directory: t.Optional[str]


def verify(
    backup: Backup, wish: Wish, check: t.Callable[[], None], recorder: t.Optional[Recorder] = None
) -> dict[str, t.Any]:
    """Return the part of the module's result that tells of the backup: ``bad_files``, ``files``, ``bytes`` ...

    ``check`` is called ten times a second and stops everything by raising; ``recorder`` is told of the progress.
    Raises :class:`BackupError` when it cannot be verified at all.
    """
    begun = time.monotonic()
    try:
        content = backup.load()
    except BackupError as exc:
        if exc.code != "damaged_backup":
            raise
        return _result(backup, [bad_file("backup.json", "damaged", exc.msg)], begun)
    look = Look(backup, content)
    bad = look.bad_files
    if any(one["path"] == "backup.json" for one in bad):
        # Where the metadata is wrong, so would be all that follows from it.
        return _result(backup, bad, begun)
    included = content.get("wal") == "include"
    reads_wal = WAL in wish.levels or (FULL in wish.levels and included)
    archive = None if included or not reads_wal else _archive(backup, content, wish)
    tool = find_tool(wish.bin_directory, content["server"]["major"]) if wish.pg_verifybackup else None
    files = look.files
    hashed = [one for one in files if one.entry.algorithm] if FULL in wish.levels else []
    hashed_bytes = sum(one.entry.size for one in hashed)
    result: dict[str, t.Any] = {"files": len(files), "bytes": sum(one.entry.size for one in files), "warnings": []}
    if recorder:
        recorder.content.update(total_bytes=hashed_bytes + (required_bytes(content) if reads_wal else 0))

    def progress_from(start: int) -> t.Callable[[int, int], None]:
        def progress(done_bytes: int, done_files: int) -> None:
            if recorder:
                recorder.progress(start + done_bytes, done_files)

        return progress

    if FULL in wish.levels:
        bad += wrong_checksums(hashed, wish.jobs, check, progress_from(0))
        result["unchecked_files"] = len(files) - len(hashed)
        if result["unchecked_files"]:
            result["warnings"].append(
                f"The backup {backup.id} was made without checksums: only the sizes of its files could be checked."
            )
    if reads_wal:
        known = {one["path"] for one in bad}
        found = bad_wal(backup, content, archive, wish.jobs, check, progress_from(hashed_bytes))
        bad += [one for one in found if one["path"] not in known]
        result["wal_files"] = len(content["required_wal"])
    if tool:
        said = run_tool(tool, backup, FULL in wish.levels, included, check)
        result["pg_verifybackup"] = said
        if not said["ok"] and not bad:
            bad.append(bad_file("", "pg_verifybackup", f"pg_verifybackup found what we did not: {said['output']}"))
    return {**_result(backup, bad, begun), **result}


def _result(backup: Backup, bad: t.Sequence[dict[str, str]], begun: float) -> dict[str, t.Any]:
    if not os.path.isdir(backup.path):
        raise BackupError(f"The backup {backup.path} was removed meanwhile.", code="unknown_backup")
    return {
        "backup_id": backup.id,
        "directory": backup.path,
        "bad_files": list(bad),
        "seconds": round(time.monotonic() - begun, 3),
    }


def _archive(backup: Backup, content: t.Mapping[str, t.Any], wish: Wish) -> Archive:
    own = os.path.join(backup.cluster.path, "wal")
    directory = wish.archive_directory or (own if os.path.isdir(own) and not wish.restore_command else None)
    server = content["server"]
    archive = open_archive(
        directory, wish.restore_command, int(server["wal_segment_size"]), int(server["system_identifier"])
    )
    if archive is None:
        raise BackupError(
            f"The backup {backup.id} does not contain its WAL, and no archive is known.",
            code="no_archive",
            hint="Name archive_directory or restore_command.",
        )
    return archive


def damage(result: t.Mapping[str, t.Any]) -> t.Optional[BackupError]:
    """Return the failure that a result with bad files is, else None."""
    bad = result["bad_files"]
    if not bad:
        return None
    named = "; ".join(f"{one['path']}: {one['msg']}" if one["path"] else one["msg"] for one in bad[:_NAMED_IN_MESSAGE])
    more = f"; and {len(bad) - _NAMED_IN_MESSAGE} more" if len(bad) > _NAMED_IN_MESSAGE else ""
    details = {name: value for name, value in result.items() if name != "warnings"}
    return BackupError(
        f"The backup {result['backup_id']} is damaged, bad files: {len(bad)}. {named}{more}",
        code="damaged_backup",
        **details,
    )


class Slices:
    """A detached verification that is asked several times how far it is; ``run_id`` tells it from others."""

    def __init__(self, cluster: Cluster, backup_id: str, run_id: str) -> None:
        self._cluster = cluster
        self._backup_id = backup_id
        name = "\0".join((run_id, cluster.path, backup_id))
        self._top = os.path.join(tempfile.gettempdir(), f"pgfleet-verify-{os.geteuid()}")
        folder = os.path.join(self._top, hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32])
        self.job = Job(folder, "verification", f"the backup {backup_id}", "Verify it again; nothing was changed.")

    def step(self, wish: Wish, seconds: float) -> t.Optional[dict[str, t.Any]]:
        """Return the result when it is there within ``seconds``, else None; the first call begins.

        Raises :class:`BackupError` as :func:`verify`, and when the process was killed.
        """
        if self.job.read():
            os.utime(self.job.lock)
        else:
            self._launch(wish)
        try:
            record = self.job.wait(seconds)
        except BackupError:
            shutil.rmtree(self.job.folder, ignore_errors=True)
            raise
        if record is None:
            return None
        shutil.rmtree(self.job.folder, ignore_errors=True)
        result: dict[str, t.Any] = record["result"]
        return result

    def _launch(self, wish: Wish) -> None:
        backup = chosen(self._cluster, self._backup_id)
        _make_private(self._top)
        _sweep(self._top)
        self.job.make_folder()
        asked = self.job.lock

        def check() -> None:
            try:
                silent = time.time() - os.stat(asked).st_mtime
            except FileNotFoundError:
                silent = ABANDONED_SECONDS
            if silent >= ABANDONED_SECONDS:
                raise BackupError("Nobody has asked for it.", code="abandoned")

        def work(recorder: Recorder) -> dict[str, t.Any]:
            recorder.content.update(backup_id=backup.id)
            return {"result": verify(backup, wish, check, recorder)}

        with self.job.hold() as lock:
            self.job.launch(lock, work)


def _make_private(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise BackupError(
            f"{path} is not a private directory of the user with id {os.geteuid()}.",
            code="temporary_folder",
            hint="Somebody else made it: remove it, or set TMPDIR in the task's environment.",
        )


def _sweep(top: str) -> None:
    """Remove what verifications whose task died have left."""
    for name in os.listdir(top):
        folder = os.path.join(top, name)
        if time.time() - os.lstat(folder).st_mtime > LEFTOVER_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
