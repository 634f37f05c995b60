# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the WAL is to be archived: the method, the commands, the parameters, and what prevents it."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import archiving as _archiving
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server.archiving import Archiving, Found, Wanted

HOME: t.Final = "/srv/backups/main"
SCRIPTS: t.Final = "/nonexistent/scripts"
COMMAND: t.Final = "cp %p /wal/%f"


def archiving(
    *, major: int = 18, role: str = "primary", running: str = "on", library: bool = True, **options: t.Any
) -> Archiving:
    """Decide for a server whose parameters, with ``_`` for a dot, and options are given."""
    options = {"home": HOME, "directory": f"{HOME}/wal", "script_directory": SCRIPTS, **options}
    wanted = {name: options.pop(name) for name in Wanted._fields if name in options and name != "archive_mode"}
    wanted["archive_mode"] = options.pop("mode", "on")
    names = {"basic_archive_archive_directory": "basic_archive.archive_directory"}
    configured = {names.get(name, name): value for name, value in options.items()}
    return Archiving(Wanted(**wanted), Found(major, f"{major}.1", role, "/data", configured, running, library))


def codes(decided: Archiving) -> list[str]:
    return [problem["code"] for problem in _archiving.problems_of(decided)]


@pytest.mark.parametrize(
    ("options", "method"),
    [
        ({}, "basic_archive"),
        ({"library": False}, "script"),
        ({"compression": "gzip"}, "script"),
        ({"archive_command": COMMAND}, "own"),
        ({"archive_command": COMMAND, "compression": "gzip"}, "own"),
        ({"archive_library": "pgbackrest"}, "own"),
        # What this collection has set is kept, and improved where more is asked for.
        ({"archive_command": f"python3 {HOME}/pgfleet_wal.py archive {HOME}/wal %p %f"}, "script"),
        ({"archive_library": "basic_archive", "basic_archive_archive_directory": f"{HOME}/wal"}, "basic_archive"),
        (
            {
                "archive_library": "basic_archive",
                "basic_archive_archive_directory": f"{HOME}/wal",
                "compression": "zstd",
            },
            "script",
        ),
        (
            {"archive_library": "basic_archive", "basic_archive_archive_directory": "/srv/backups//main/wal/"},
            "basic_archive",
        ),
        ({"archive_library": "basic_archive", "basic_archive_archive_directory": "/elsewhere"}, "own"),
        # That of another node, with whose files this one was rebuilt; not a neighbour of the repository.
        (
            {"archive_library": "basic_archive", "basic_archive_archive_directory": "/srv/backups/pg1/wal"},
            "basic_archive",
        ),
        ({"archive_library": "basic_archive", "basic_archive_archive_directory": "/srv/backups2/pg1/wal"}, "own"),
        ({"archive_library": "basic_archive", "basic_archive_archive_directory": "/srv/backups/../own/wal"}, "own"),
        ({"archive_library": "basic_archive", "basic_archive_archive_directory": "../srv/backups/pg1/wal"}, "own"),
        ({"archive_library": "pgbackrest", "basic_archive_archive_directory": "/srv/backups/pg1/wal"}, "own"),
        ({"archive_library": "basic_archive", "basic_archive_archive_directory": ""}, "own"),
        # A library counts before a command, as on the server.
        ({"archive_library": "pgbackrest", "archive_command": "pgfleet_wal.py"}, "own"),
        # What is asked for replaces anything.
        ({"archive_command": COMMAND, "method": "basic_archive"}, "basic_archive"),
        ({"method": "own"}, "own"),
    ],
)
def test_method(options: dict[str, t.Any], method: str) -> None:
    assert archiving(**options).method == method


def test_settings() -> None:
    """A library and a command exclude each other, and both are set so that switching the method works."""
    basic = archiving(archive_command="", mode="always", wal_level="minimal").settings()
    assert basic == {
        "archive_mode": "always",
        "archive_command": "",
        "wal_level": "replica",
        "archive_library": "basic_archive",
        "basic_archive.archive_directory": f"{HOME}/wal",
    }
    script = archiving(method="script", wal_level="logical").settings()
    assert list(script) == ["archive_mode", "archive_command", "archive_library"]
    assert (script["archive_mode"], script["archive_library"]) == ("on", "")
    assert list(archiving(major=14, library=False).settings()) == ["archive_mode", "archive_command"]
    assert archiving(archive_command=COMMAND).settings() == {}


@pytest.mark.parametrize(
    ("options", "elsewhere"),
    [
        (
            {"archive_library": "basic_archive", "basic_archive_archive_directory": "/srv/backups/pg1/wal"},
            "/srv/backups/pg1/wal",
        ),
        ({"archive_library": "basic_archive", "basic_archive_archive_directory": f"{HOME}//wal/"}, ""),
        ({"archive_command": f'python3 -I {HOME}/pgfleet_wal.py archive {HOME}/wal "%p" "%f"'}, ""),
        (
            {"archive_command": 'python3 -I /s/pgfleet_wal.py archive \'/srv/it\'"\'"\'s 100%%\' "%p" "%f"'},
            "/srv/it's 100%",
        ),
        ({"archive_command": "/usr/bin/pgfleet_wal.py '"}, ""),
        ({"archive_command": COMMAND}, ""),
        ({}, ""),
    ],
)
def test_a_setting_for_another_node_is_repaired(options: dict[str, t.Any], elsewhere: str) -> None:
    decided = archiving(**options)
    assert decided.elsewhere == elsewhere
    if elsewhere and decided.method == "basic_archive":
        assert decided.settings()["basic_archive.archive_directory"] == f"{HOME}/wal"
    elif elsewhere:
        assert f"{HOME}/wal" in decided.settings()["archive_command"]


def test_a_repository_behind_a_link(tmp_path: pathlib.Path) -> None:
    """The repository's real path counts, too."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for repository, present in (("link", "real"), ("real", "link")):
        decided = archiving(
            home=f"{tmp_path}/{repository}/main",
            directory=f"{tmp_path}/{repository}/main/wal",
            archive_library="basic_archive",
            basic_archive_archive_directory=f"{tmp_path}/{present}/pg1/wal",
        )
        assert decided.elsewhere == f"{tmp_path}/{present}/pg1/wal"


def test_facts() -> None:
    script = archiving(method="script", compression="zstd", mode="always")
    assert script.means() == f"pgfleet_wal.py into {HOME}/wal (zstd)"
    assert (script.facts()["compression"], script.facts()["archive_mode"]) == ("zstd", "always")
    own = archiving(archive_command=COMMAND, restore_command="cp /wal/%f %p", running="on", compression="gzip")
    assert own.means() == "the archive_command of this server"
    assert own.facts() == {
        "method": "own",
        "directory": "",
        "compression": "none",
        "archive_mode": "on",
        "archive_command": COMMAND,
        "archive_library": "",
        "restore_command": "cp /wal/%f %p",
    }
    assert archiving(archive_library="pgbackrest").means() == "the library pgbackrest of this server"
    basic = archiving()
    assert basic.means() == f"basic_archive into {HOME}/wal"
    assert (basic.facts()["archive_command"], basic.facts()["archive_library"]) == ("", "basic_archive")
    assert "pgfleet_wal.py restore" in basic.facts()["restore_command"]


def test_who_archives() -> None:
    """A standby only with always; of one's own archiving the value that the server runs with counts."""
    assert archiving().archives()
    assert not archiving(role="standby").archives()
    assert archiving(role="standby", mode="always").archives()
    assert archiving(role="standby", archive_command=COMMAND, running="always").archives()
    assert not archiving(role="standby", archive_command=COMMAND, running="on", mode="always").archives()


def test_problems_of_own() -> None:
    assert codes(archiving(archive_command=COMMAND)) == codes(archiving(archive_library="pgbackrest")) == []
    assert codes(archiving(method="own")) == ["archive_command_empty"]
    assert codes(archiving(archive_command=COMMAND, running="off")) == ["archive_mode_off"]
    for command in ("/bin/true", " true ", "cd .", ":"):
        assert codes(archiving(archive_command=command)) == ["archive_command_discards"]
    assert codes(archiving(archive_library="pgbackrest", archive_command="/bin/true")) == []


def test_problems_of_ours(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert codes(archiving()) == []
    assert codes(archiving(method="basic_archive", library=False)) == ["basic_archive_missing"]
    assert codes(archiving(method="basic_archive", compression="gzip")) == ["no_compression"]
    monkeypatch.setattr(_archiving.shutil, "which", lambda name: None)
    assert codes(archiving(compression="zstd")) == ["tool_missing"]
    assert codes(archiving(compression="gzip")) == []
    file = tmp_path / "file"
    file.touch()
    assert codes(archiving(directory=str(file))) == ["archive_unwritable"]
    for inside in ("/data", "/data/wal", "/data/../data/wal"):
        assert codes(archiving(directory=inside)) == ["archive_inside_cluster"]
    assert codes(archiving(directory="/data2")) == []
    link = tmp_path / "link"
    link.symlink_to("/data/wal")
    assert codes(archiving(directory=str(link))) == ["archive_inside_cluster", "unsafe_directory"]
    for scripts in ("", "scripts", "/data/scripts", "/srv/backups/main", str(file)):
        assert codes(archiving(script_directory=scripts)) == ["bad_script_directory"]


def test_problems_name_the_variables_of_the_role(monkeypatch: pytest.MonkeyPatch) -> None:
    decided = archiving(method="basic_archive", compression="gzip")
    (plain,) = _archiving.problems_of(decided)
    assert plain["hint"] == "Use method=script with compression."
    monkeypatch.setenv("PGFLEET_VARIABLES", "pg_archive_")
    (named,) = _archiving.problems_of(decided)
    assert named["hint"] == "Use pg_archive_method=script with pg_archive_compression."


@pytest.mark.parametrize(
    ("name", "last"),
    [
        (None, ""),
        ("000000010000000000000007", "000000010000000000000007"),
        ("000000010000000000000007.00000028.backup", "000000010000000000000007"),
        ("000000010000000000000007.partial", ""),
        ("00000002.history", "00000002.history"),
    ],
)
def test_last_segment(name: str | None, last: str) -> None:
    assert _archiving.last_segment({"last_archived_wal": name}) == last


def test_commands_run_as_the_server_runs_them(tmp_path: pathlib.Path) -> None:
    """Quotes, blanks and percent signs in the paths survive PostgreSQL's and the shell's reading."""
    home = tmp_path / "it's 100%f mine"
    (home / "wal").mkdir(parents=True)
    paths = {"home": str(home), "directory": f"{home}/wal", "script_directory": str(home)}
    decided = archiving(method="script", compression="gzip", **paths)
    script = home / "pgfleet_wal.py"
    script.write_text("import sys\nprint(sys.argv[1:])\n")

    def answer(command: str) -> subprocess.CompletedProcess[str]:
        line = command.replace("%%", "\0").replace("%p", "path to").replace("%f", "name").replace("\0", "%")
        return subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=False)

    archived = answer(decided.command)
    assert archived.stdout == f"{['archive', '--compress', 'gzip', f'{home}/wal', 'path to', 'name']}\n"
    assert answer(decided.restore_command).stdout == f"{['restore', f'{home}/wal', 'name', 'path to']}\n"
    assert sys.executable in decided.command
    script.unlink()
    # With the 2 of Python the server would take the file for missing.
    assert answer(decided.restore_command).returncode == 255
