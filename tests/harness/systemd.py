# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Database hosts as users have them: Debian with systemd and packaged PostgreSQL, reached by real ssh.

Each host has `debian.base` below an overlay, and is otherwise built like those of `fleet`. The data directories and
/srv are directories of this machine, because files below an overlay have other device numbers than their directories.
The control groups and files of the hosts outlive a killed test run; a process that waits for its end removes them.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import typing as t

from . import debian
from .fleet import Fleet, Host
from .fleet import obstacle as obstacle_of_hosts
from .servers import wait_until
from .user import me, run

SHARED: t.Final = "/srv/backups"

# The first process of a host: $1 is its name, $2 its directory, $3 the folder with its configuration, $4 the base.
INIT: t.Final = """\
set -eu
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
echo "$1" >/proc/sys/kernel/hostname
mount -t overlay overlay -o "lowerdir=$4,upperdir=$2/upper,workdir=$2/work" "$2/root"
cd "$2/root"
mkdir .old
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
for node in null zero full random urandom tty; do
    touch "dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
cp -a var/lib/postgresql "$2/data"
mount --bind "$2/data" var/lib/postgresql
mkdir "$2/srv"
mount --bind "$2/srv" srv
mkdir srv/backups
mount --bind "$3/shared" srv/backups
cp "$3/hosts" etc/hosts
echo "$1" >etc/hostname
mkdir -m 0700 home/ansible/.ssh
cp "$3/key.pub" home/ansible/.ssh/authorized_keys
chown -R --reference home/ansible home/ansible/.ssh
pivot_root . .old
cd /
umount -l /.old
rmdir /.old
exec env -i "PATH=$PATH" container=pgfleet /lib/systemd/systemd
"""

# The end of its input says that the test run has ended. Removes control groups below $1 and files below $2.
REMOVE: t.Final = """\
read -r _ || :
groups=$1; files=$2
for _ in $(seq 100); do
    find "$groups" -depth -type d -exec rmdir {} + 2>/dev/null
    [ -e "$groups" ] || break
    sleep 0.1
done
rm -rf "$files"
"""


def control_groups() -> pathlib.Path | None:
    """Return where this machine has mounted its version 2 control groups, alone or beside those of version 1."""
    for line in pathlib.Path("/proc/self/mounts").read_text().splitlines():
        _device, path, kind, options = line.split()[:4]
        if kind == "cgroup2" and "rw" in options.split(","):
            return pathlib.Path(path)
    return None


def obstacle() -> str:
    """Return why such hosts cannot run on this machine, '' when they can."""
    reason = obstacle_of_hosts()
    if not reason and not shutil.which("mmdebstrap"):
        reason = "hosts with systemd need the package mmdebstrap"
    if not reason and not control_groups():
        reason = "hosts with systemd need a writable mount of version 2 control groups"
    return reason


class SystemdHost(Host):
    """A host whose first process is systemd."""

    @staticmethod
    def lower() -> pathlib.Path:
        """Return the base."""
        return debian.base()

    def is_up(self) -> bool:
        """Whether the host has booted and lets users log in."""
        assert self._process.poll() is None, self.log.read_text()
        done = run([*self.command("systemctl", "is-system-running")], user=me(), check=False)
        return done.stdout.strip() in ("running", "degraded") and self.listens()

    def command(self, *args: str) -> list[str]:
        """Return a command of this machine that runs ``args`` as root on the host, without ssh."""
        kinds = [f"--{kind}" for kind in ("cgroup", "ipc", "mount", "net", "pid", "uts")]
        return ["nsenter", "--target", str(self.init), *kinds, "--", *args]

    def sh(self, script: str, user: str = "root", **kwargs: t.Any) -> str:
        """Run a shell script on the host as ``user``, without ssh, and return its standard output."""
        return self.run(["sh", "-euc", script], user=user, **kwargs)

    def write(self, path: str, text: str, owner: str = "root", mode: int = 0o644) -> None:
        """Write a file of ``owner`` on the host, and its directories."""
        self.sh(
            f'mkdir -p "$(dirname {path})" && cat >{path} && chown {owner}: {path} && chmod {mode:o} {path}', stdin=text
        )

    def allow(self, *lines: str) -> None:
        """Let sudo permit the login user these lines, for example ``(postgres) NOPASSWD: ALL``, and nothing else."""
        text = "".join(f"ansible ALL={line}\n" for line in lines)
        self.sh("visudo -c -q -f -", stdin=text)
        self.write("/etc/sudoers.d/ansible", text, mode=0o440)


class SystemdFleet(Fleet):
    """Hosts with systemd; they share the directory /srv/backups, as over a network file system."""

    init = INIT

    def __init__(self, directory: pathlib.Path, *names: str) -> None:
        """Start the hosts ``names`` in the new folder ``directory``. See `obstacle` first."""
        root = control_groups()
        assert root
        self._groups = root / f"pgfleet-{os.getpid()}-{directory.parent.name}"
        # Apart from the terminal and from this process group, which a killed run takes with it.
        self._remover = subprocess.Popen(
            ["sh", "-c", REMOVE, "sh", self._groups, directory], stdin=subprocess.PIPE, start_new_session=True
        )
        self._groups.mkdir()
        super().__init__(directory, *names)

    def _start(self, names: t.Sequence[str]) -> None:
        super()._start(names)
        for name in names:
            wait_until(self[name].is_up, f"{name} has booted", timeout=60)

    def __getitem__(self, name: str) -> SystemdHost:
        host = self.hosts[name]
        assert isinstance(host, SystemdHost)
        return host

    def new_host(self, name: str, address: str, etc: pathlib.Path) -> SystemdHost:
        """Boot a host in a control group below ours."""
        group = self._groups / name
        group.mkdir()
        host = SystemdHost(name, address, self.directory / name, etc, group)
        # unshare itself stays outside: a group with processes of its own cannot hand its controllers down.
        (self._groups / "cgroup.procs").write_text(str(host.unshare))
        return host

    def prepare(self, etc: pathlib.Path) -> str:
        """Make the shared directory, and return the key that all hosts have from the base."""
        postgres = (debian.base() / "var/lib/postgresql").stat()
        shared = etc / "shared"
        shared.mkdir()
        os.chown(shared, postgres.st_uid, postgres.st_gid)
        shared.chmod(0o700)
        return (debian.base() / "etc/ssh/ssh_host_ed25519_key.pub").read_text()

    def close(self) -> None:
        """End the hosts, then the controller with its ssh processes, and remove files and control groups."""
        for part in reversed(self._parts):
            part.end()
        assert self._remover.stdin
        self._remover.stdin.close()
        self._remover.wait()
        assert not self._groups.exists(), f"{self._groups} is in use"
