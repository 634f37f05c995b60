# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal of a copy: a line for each file that is complete, so that an interrupted copy can be continued.

Private to pgfleet.basebackup. Room ``_backup``: the steps of a backup, from start to publish; it knows no restore.
"""

from __future__ import annotations

import json
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.manifest import ManifestFile
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import printable, unreadable


def read_journal(journal: bytes) -> t.Iterator[ManifestFile]:
    """Yield the files that ``copy_cluster`` recorded, each path once; none without a journal. A torn last line, which a
    killed process leaves, is skipped. Raises BackupError, code ``unreadable``."""
    try:
        with open(journal, "rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    yield parse_line(line)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise unreadable(journal, exc) from exc
    except (ValueError, TypeError) as exc:
        raise BackupError(f"{printable(journal)} is damaged: {exc}", code="unreadable") from exc


def journal_line(file: ManifestFile) -> bytes:
    """Return the line of the journal for a copied file: the fields of ManifestFile in their order."""
    return json.dumps([file.path.decode("utf-8", "surrogateescape"), *file[1:]]).encode("ascii") + b"\n"


def parse_line(line: bytes) -> ManifestFile:
    """Return the file of a line by ``journal_line``. Raises ValueError or TypeError for anything else."""
    path, size, mtime, algorithm, checksum = json.loads(line)
    # One check for each file of a million: by hand, not with _host/fields.py.
    number = isinstance(mtime, (int, float)) and not isinstance(mtime, bool)
    if not (isinstance(path, str) and isinstance(size, int) and not isinstance(size, bool) and size >= 0 and number):
        raise ValueError(f"{line[:200]!r} does not describe a file")
    for word in (algorithm, checksum):
        if word is not None and not (isinstance(word, str) and word.isalnum() and word.isascii()):
            raise ValueError(f"{word!r} is neither an algorithm nor a checksum")
    name = path.encode("utf-8", "surrogateescape")
    if b"\0" in name or not {b"", b".", b".."}.isdisjoint(name.split(b"/")):
        raise ValueError(f"{path!r} is not the path of a file in a backup")
    return ManifestFile(name, size, mtime, algorithm, checksum)
