# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's output: a few lines for each step on the screen, and everything in a log."""

from __future__ import annotations

import os
import pathlib
import shlex
import time
import typing as t

from tests.harness.modules import CLONE

# Enough of a log to see what failed: Ansible reports an error in its last lines.
TAIL_LINES: t.Final = 25
LONGEST_LINE: t.Final = 1000


class Output:
    """Numbered headings with the time since the start, and the lines below them, on the screen and in the log."""

    def __init__(self, log: pathlib.Path) -> None:
        """Begin the log ``log``."""
        self.log = log
        self.step = ""
        self._steps = 0
        self._started = time.monotonic()
        log.write_text("")

    @property
    def seconds(self) -> float:
        """Time since the beginning."""
        return time.monotonic() - self._started

    def heading(self, text: str) -> None:
        """Begin the next step."""
        self._steps += 1
        self.step = f"{self._steps}. {text}"
        self._print(f"{self.step}  [{self.seconds:.0f} s]")

    def say(self, text: str) -> None:
        """Print lines that belong to this step."""
        for line in text.splitlines():
            self._print(f"   {line}".rstrip())

    def command(self, *args: str | os.PathLike[str]) -> None:
        """Print a command that the user can repeat."""
        self.say(f"$ {shlex.join([os.fspath(arg) for arg in args])}")

    def _print(self, line: str) -> None:
        print(line, flush=True)
        self.record(f"{line}\n")

    def record(self, text: str) -> None:
        """Write to the log only."""
        with self.log.open("a") as file:
            file.write(text)

    def tail(self) -> str:
        """Return the end of the log, without lines far too long for a screen."""
        lines = self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        return "\n".join(line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..." for line in lines)


def table(rows: t.Sequence[t.Sequence[str]]) -> str:
    """Return rows as aligned columns; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def shortened(path: str | os.PathLike[str]) -> str:
    """Return a path relative to the clone, where the user runs the commands, if it is inside."""
    absolute = pathlib.Path(path)
    return str(absolute.relative_to(CLONE)) if absolute.is_relative_to(CLONE) else str(absolute)
