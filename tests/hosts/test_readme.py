# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The README's commands, word for word, on Debian hosts with systemd; the servers must survive each of them."""

from __future__ import annotations

from tests.hosts.helpers.world import World, commands, readme


def command(*words: str) -> list[str]:
    """Return the only command of the README's block that has these words, without ansible-playbook."""
    (found,) = [one for one in commands(readme("sh")) if set(words) <= set(one)]
    return found[1:]


def test_archive_with_restarts(world: World) -> None:
    """The README's first command restarts every server, and leaves all of them up."""
    play = world.play(*command("pgfleet.basebackup.archive"), "-l", "databases")
    world.healthy()
    play.ok()
