# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make sanity``: ansible-test's checks and units, on a copy of the tree under ansible_collections."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import typing as t

from ansible_test._internal import python_requirements

from tests.harness import binaries
from tests.harness.modules import CLONE

CACHE: t.Final = CLONE / ".cache" / "sanity"

# ansible-test fetches pip for its environments from its own server; this installs the same version from PyPI.
GET_PIP: t.Final = """\
import subprocess, sys
packages = [word for word in sys.argv[1:] if not word.startswith("-")]
command = [{python!r}, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", sys.executable]
sys.exit(subprocess.call(command + ["install"] + packages))
"""


def copy_tree() -> pathlib.Path:
    """Copy all files that git tracks or would add to an empty folder, and return it."""
    target = CACHE / "ansible_collections" / "pgfleet" / "basebackup"
    shutil.rmtree(target, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=CLONE, stdout=subprocess.PIPE, check=True
    )
    for name in filter(None, listed.stdout.split(b"\0")):
        source, copy = os.path.join(os.fsencode(CLONE), name), os.path.join(os.fsencode(target), name)
        if os.path.lexists(source):
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            shutil.copy2(source, copy, follow_symlinks=False)
    # Its own repository: ansible-test would otherwise ask the clone's, which ignores the copy.
    subprocess.run(["git", "init", "--quiet"], cwd=target, check=True)
    subprocess.run(["git", "add", "--all"], cwd=target, check=True)
    return target


def environment() -> dict[str, str]:
    """Return the environment: a home in the cache, and PATH with real interpreters before any shims."""
    home = CACHE / "home"
    cache = home / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    pip = python_requirements.get_venv_packages(t.cast("t.Any", _ThisPython()))["pip"]
    (cache / f"get_pip_{pip.replace('.', '_')}.py").write_text(GET_PIP.format(python=sys.executable))
    real = [str(pathlib.Path(path).parent) for path in reversed(binaries.interpreters().values())]
    path = [str(pathlib.Path(sys.executable).parent), *dict.fromkeys(real), os.environ.get("PATH", os.defpath)]
    return {**os.environ, "HOME": str(home), "PATH": os.pathsep.join(path)}


class _ThisPython:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"


def main() -> int:
    """Run all parts, even after a failure; return 1 if one failed."""
    tree, env = copy_tree(), environment()
    this = _ThisPython.version
    others = [version for version in binaries.interpreters() if version != this and version not in ("3.7", "3.8")]
    runs = [
        ["sanity", "--color", "no", "--venv", "--python", this, *sys.argv[1:]],
        ["units", "--color", "no", "--venv", "--python", this],
    ]
    if others:
        targets = [word for version in others for word in ("--target-python", version)]
        runs.insert(1, ["sanity", "--color", "no", "--test", "import", "--test", "compile",
                        "--controller", f"origin:python={this}", *targets])  # fmt: skip
    failed = [run for run in runs if subprocess.run(["ansible-test", *run], cwd=tree, env=env, check=False).returncode]
    for run in failed:
        print("failed: ansible-test " + " ".join(run), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
