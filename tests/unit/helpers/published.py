# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A published backup of a few small files."""

from __future__ import annotations

import hashlib
import io
import json
import pathlib
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import manifest as _manifest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify import quick as _verify
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify import verification as _verify_job
from ansible_collections.pgfleet.basebackup.plugins.module_utils._verify.verification import Options
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _wal
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import timelines as _timelines

from tests.unit.helpers.backups import IDENTIFIER, make_cluster, metadata
from tests.unit.helpers.control_files import control_file

MB: t.Final = 1 << 20
LOCATION: t.Final = b"/srv/caf\xe9"
LABEL: t.Final = b"""\
START WAL LOCATION: 0/2000028 (file 000000010000000000000002)
CHECKPOINT LOCATION: 0/2000060
BACKUP METHOD: streamed
BACKUP FROM: %s
START TIME: 2026-11-22 03:00:00 UTC
LABEL: nightly
START TIMELINE: 1
"""


class Published:
    """A published backup of a cluster with a tablespace whose location is not valid UTF-8."""

    def __init__(self, folder: pathlib.Path, backup_id: str = "b1", **more: t.Any) -> None:
        self.cluster = make_cluster(folder)
        ranges = more.pop("ranges", [_timelines.WalRange(1, 0x2000028, 0x2000120)])
        wal_files = more.pop("wal_files", {})
        self.path = pathlib.Path(self.cluster.backups, backup_id)
        self.files: dict[str, bytes] = {
            "data/PG_VERSION": b"18\n",
            "data/backup_label": LABEL % (b"standby" if more.get("standby") else b"primary"),
            "data/tablespace_map": b"16385 %s\n" % LOCATION,
            "data/global/pg_control": more.pop("control", control_file()),
            "data/base/5/1259": bytes(8192),
            "data/base/5/2600": b"x" * 10000,
            "data/pg_tblspc/16390/PG_18_202506291/5/7": b"in place",
            "tablespaces/16385/PG_18_202506291/5/9": b"space",
        }
        for name in _verify._DIRECTORIES:
            (self.path / "data" / name).mkdir(parents=True, exist_ok=True)
        entries = []
        for name, data in self.files.items():
            place = self.path / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
            path = name.replace("data/", "").replace("tablespaces/", "pg_tblspc/").encode()
            entries.append(_manifest.ManifestFile(path, len(data), 0, "SHA256", hashlib.sha256(data).hexdigest()))
        for name, data in wal_files.items():
            (self.path / "data/pg_wal" / name).write_bytes(data)
        (self.path / "data/pg_tblspc/16385").symlink_to("../../tablespaces/16385")
        out = io.BytesIO()
        checksum = _manifest.write_manifest(out, 18, int(IDENTIFIER), entries, ranges)
        (self.path / "data/backup_manifest").write_bytes(out.getvalue())
        content = metadata("complete", backup_id=backup_id)
        content["server"]["wal_segment_size"] = MB
        content["start"]["from_standby"] = bool(more.pop("standby", False))
        content["stop"].update(
            timeline=ranges[0].timeline,
            stop_lsn=_wal.format_lsn(ranges[0].end),
            wal_ranges=[
                {"timeline": one.timeline, "start": _wal.format_lsn(one.start), "end": _wal.format_lsn(one.end)}
                for one in ranges
            ],
            manifest_checksum=checksum,
            tablespaces={"16385": LOCATION.decode("utf-8", "surrogateescape")},
        )
        content["required_wal"] = _timelines.required_wal(ranges, MB)
        self.content = {**content, **more}
        self.save()

    def save(self) -> None:
        (self.path / "backup.json").write_text(json.dumps(self.content))

    @property
    def backup(self) -> Backup:
        return Backup(self.cluster, self.path.name, published=True)

    def quick(self) -> set[tuple[str, str]]:
        return {(one["path"], one["problem"]) for one in _verify.quick(self.backup, self.backup.load())}

    def verify(self, *levels: str, **wish: t.Any) -> dict[str, t.Any]:
        given = dict.fromkeys(Options._fields, None) | {"levels": levels, "jobs": 2} | wish
        return _verify_job.verify(self.backup, Options(**given), lambda: None)

    def bad(self, *levels: str, **wish: t.Any) -> set[tuple[str, str]]:
        return {(one["path"], one["problem"]) for one in self.verify(*levels, **wish)["bad_files"]}
