# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Database hosts reached by real ssh, without a container engine or an image.

A host is this machine's file system under an overlay, in its own namespaces, with sshd as its first process.
Its virtual network cable ends at a bridge in the controller's network namespace, which has no route to the outside.
Ansible runs outside; only its ssh enters that namespace.

Processes, networks and mounts of a fleet belong to its namespaces, which belong to processes that die with the process
that created them. So only one directory remains, even after SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import typing as t

from . import binaries
from .sandbox import FAST, archive_command, slot_name, template
from .servers import Server, children_of, wait_until
from .user import me, run

NETWORK: t.Final = "10.77.0"
NAMESPACES: t.Final = ("cgroup", "ipc", "mount", "net", "pid", "uts")
PYTHON: t.Final = "/usr/bin/python3"
SOCKETS: t.Final = "/run/postgresql"
ARCHIVE: t.Final = "/srv/wal"
PROGRAMS: t.Final = {
    "ip": "iproute2", "nsenter": "util-linux", "setfacl": "acl", "sftp": "openssh-client", "ssh": "openssh-client",
    "/usr/sbin/sshd": "openssh-server", "sudo": "sudo", "useradd": "passwd", PYTHON: "python3",
}  # fmt: skip

# The first process of a host: $1 is its name, $2 its directory, $3 the folder for /etc/fleet, $4 the harness cache,
# which may be a separate mount that the overlay would not show.
INIT: t.Final = """\
set -eu
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
echo "$1" >/proc/sys/kernel/hostname
mount -t overlay overlay -o "lowerdir=/,upperdir=$2/upper,workdir=$2/work" "$2/root"
cd "$2/root"
mkdir -p ".$4" .old
mount --bind -o ro "$4" ".$4"
mount -t proc proc proc
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
cp -r "$3" etc/fleet
pivot_root . .old
cd /
umount -l /.old
rmdir /.old
cp /etc/fleet/hosts /etc/hosts
getent passwd postgres >/dev/null || useradd --system --user-group --home-dir /var/lib/postgresql postgres
getent passwd ansible >/dev/null || useradd --create-home --password '*' --shell /bin/sh ansible
echo 'ansible ALL=(postgres) NOPASSWD: ALL' >/etc/sudoers.d/fleet
chmod 0440 /etc/sudoers.d/fleet
mkdir -p /run/sshd
install -d -o postgres -g postgres /run/postgresql
install -d -o postgres -g postgres -m 0700 /var/lib/postgresql /srv/backups /srv/wal
exec env -i "PATH=$PATH" /usr/sbin/sshd -D -e -f /etc/fleet/sshd_config
"""

SSHD: t.Final = """\
HostKey /etc/fleet/host_key
AuthorizedKeysFile /etc/fleet/key.pub
PasswordAuthentication no
KbdInteractiveAuthentication no
PidFile none
Subsystem sftp internal-sftp
"""

SSH: t.Final = """\
IdentitiesOnly yes
IdentityFile {directory}/key
UserKnownHostsFile {directory}/known_hosts
HostKeyAlias fleet
LogLevel ERROR
ServerAliveInterval 1
ServerAliveCountMax 3
"""

# The README's ways to log in as backup: over the socket as the system user postgres, over the network by password.
HBA: t.Final = f"""\
local all postgres peer map=admin
local all backup peer map=backup
host all backup {NETWORK}.0/24 scram-sha-256
host replication replicator {NETWORK}.0/24 scram-sha-256
"""
IDENT: t.Final = """\
admin root postgres
admin postgres postgres
backup postgres backup
"""


def obstacle() -> str:
    """Return why a fleet cannot run on this machine, '' when it can."""
    if os.geteuid() != 0:
        return "hosts with sshd need root"
    missing = sorted({package for program, package in PROGRAMS.items() if not shutil.which(program)})
    if missing:
        return f"hosts with sshd need the packages {' '.join(missing)}"
    overlay = "mount -t overlay overlay -o lowerdir=/,upperdir=/tmp/upper,workdir=/tmp/work /mnt"
    probe = f"mount -t tmpfs tmpfs /tmp && mkdir /tmp/upper /tmp/work && {overlay}"
    done = run([*_unshare(), "sh", "-c", probe], user=me(), check=False)
    return f"hosts with sshd need namespaces and overlayfs: {done.stderr.strip()}" if done.returncode else ""


def _unshare() -> list[str]:
    # Dies with the process that starts it, and takes the namespaces with it.
    kinds = [f"--{name}" for name in NAMESPACES]
    return ["setpriv", "--pdeathsig", "KILL", "unshare", *kinds, "--fork", "--kill-child", "--propagation=private"]


class Namespace:
    """A process in its own namespaces, and the commands run in them."""

    def __init__(
        self, command: t.Sequence[str | pathlib.Path], log: pathlib.Path, cgroup: pathlib.Path | None = None
    ) -> None:
        """Start ``command`` there as the first process, and ``cgroup`` as the root of its control groups."""
        enter = ["sh", "-c", 'echo $$ >"$0/cgroup.procs"; exec "$@"', str(cgroup)] if cgroup else []
        with log.open("w") as out:
            self._process = subprocess.Popen(
                [*enter, *_unshare(), *command], cwd="/", stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        self.log = log
        self.unshare = self._process.pid
        self.init = int(wait_until(lambda: children_of(self.unshare), "the namespaces are made")[0])
        # Kept open: the kernel reuses the number of a removed namespace for the next one, perhaps another test's.
        self._net = os.open(f"/proc/{self.init}/ns/net", os.O_RDONLY)

    def enter(self, args: t.Sequence[str | os.PathLike[str]], *kinds: str, **kwargs: t.Any) -> str:
        """Run a command of this machine in the namespaces ``kinds`` and return its standard output."""
        kwargs.setdefault("user", me())
        options = [f"--{kind}" for kind in kinds]
        return run(["nsenter", "--target", str(self.init), *options, "--", *args], **kwargs).stdout

    def ip(self, *commands: str) -> None:
        """Run ``ip`` commands in the network namespace."""
        self.enter(["ip", "-batch", "-"], "net", stdin="\n".join(commands))

    def processes(self) -> dict[int, str]:
        """Return the command lines of all processes in the network namespace by their process ids on this machine."""
        found = {}
        own = os.readlink(f"/proc/self/fd/{self._net}")
        for name in filter(str.isdigit, os.listdir("/proc")):
            # Many end before they can be read.
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{name}/ns/net") == own:
                    line = pathlib.Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(name)] = line.decode(errors="replace")
        return found

    def end(self) -> None:
        """Kill every process in the namespaces and wait until all have ended."""
        self._process.kill()
        self._process.wait()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.processes(), f"{self.log} has ended")
        os.close(self._net)


class Host(Namespace):
    """A database host ``name``, reached at ``address``."""

    def __init__(
        self, name: str, address: str, directory: pathlib.Path, etc: pathlib.Path, cgroup: pathlib.Path | None = None
    ) -> None:
        """Start the host in the new folder ``directory``; ``etc`` becomes its /etc/fleet."""
        for folder in (directory, directory / "upper", directory / "work", directory / "root"):
            folder.mkdir()
            folder.chmod(0o755)
        super().__init__(["sh", etc / "init", name, directory, etc, self.lower()], directory / "log", cgroup)
        self.name = name
        self.address = address
        self.upper = directory / "upper"
        """The host's files that differ from this machine's, for reading only: use `path` to write."""

    @staticmethod
    def lower() -> pathlib.Path:
        """Return the directory of this machine that the script of the first process needs besides its own."""
        return binaries.cache_directory()

    def listens(self) -> bool:
        """Whether sshd, which a host starts last, accepts connections."""
        assert self._process.poll() is None, self.log.read_text()
        return ":0016 00000000:0000 0A" in pathlib.Path(f"/proc/{self.init}/net/tcp").read_text()

    def path(self, inside: str) -> pathlib.Path:
        """Return the path on this machine of an absolute path on the host; only root can read it."""
        return pathlib.Path(f"/proc/{self.init}/root{inside}")

    def run(self, args: t.Sequence[str | os.PathLike[str]], user: str = "root", **kwargs: t.Any) -> str:
        """Run a command on the host as ``user``, without ssh, and return its standard output."""
        become = ["setpriv", "--reuid", user, "--regid", user, "--init-groups", "--"]
        return self.enter([*become, *args], *NAMESPACES, **kwargs)

    def outside(self, pid: int) -> int:
        """Return the process id on this machine of the process that is ``pid`` on the host."""
        for candidate in self.processes():
            with contextlib.suppress(OSError):
                status = pathlib.Path(f"/proc/{candidate}/status").read_text()
                if status.partition("NSpid:")[2].splitlines()[0].split()[1:] == [str(pid)]:
                    return candidate
        raise AssertionError(f"{self.name} has no process {pid}")

    def give_psycopg2(self) -> None:
        """Let the host's own Python find psycopg2."""
        site = self.run([PYTHON, "-c", "import site; print(site.getsitepackages()[0])"]).strip()
        packages = next(pathlib.Path(binaries.with_psycopg2(PYTHON)).parent.parent.glob("lib/python*/site-packages"))
        self.run(["mkdir", "-p", site])
        pth = self.path(f"{site}/psycopg2.pth")
        pth.write_text(f"{packages}\n")
        pth.chmod(0o644)

    def take_psycopg2(self) -> None:
        """Let the host's own Python find no psycopg2, even where this machine has it."""
        find = f"{PYTHON} -c 'import psycopg2; print(psycopg2.__path__[0])' 2>/dev/null"
        self.run(["sh", "-c", f'rm -rf "$({find})"'])


class HostServer(Server):
    """PostgreSQL on a host. Its directory and socket are paths on this machine, which root can read and connect to."""

    def __init__(self, host: Host, major: int, upstream: Server | None = None) -> None:
        """Name the server; nothing is created yet."""
        super().__init__(major, host.name, host.path(f"/var/lib/postgresql/{major}"), 5432, upstream=upstream)
        self.host = host
        host.run(["mkdir", "-m", "0700", self._inside(self.directory)], user="postgres")

    def _inside(self, path: object) -> str:
        return str(path).removeprefix(str(self.host.path("")))

    @property
    def socket_directory(self) -> pathlib.Path:
        """Where the Unix socket is."""
        return self.host.path(SOCKETS)

    @property
    def pid(self) -> int | None:
        """None: the host has its own process ids, so no signal may be sent to this one."""
        return None

    def tool(self, name: str, *args: str | os.PathLike[str], **kwargs: t.Any) -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's programs on the host."""
        env = {key: self._inside(value) for key, value in {**self.env, **kwargs.pop("env", {})}.items()}
        command = [binaries.tool(self.major, name), *map(self._inside, args)]
        out = self.host.run(command, user="postgres", env=env, **{**kwargs, "check": True})
        return subprocess.CompletedProcess(command, 0, out, "")

    def make_primary(self, replication_password: str) -> HostServer:
        """Initialise and start a primary with an archive, and with the role ``replicator`` for standbys."""
        data = self._inside(self.data)
        self.host.run(["cp", "-r", "--preserve=mode", template(self.major), data])
        self.host.run(["chown", "-R", "postgres:postgres", data])
        (self.data / "pg_hba.conf").write_text(HBA)
        (self.data / "pg_ident.conf").write_text(IDENT)
        archive = archive_command(pathlib.Path(ARCHIVE))
        settings = {**FAST, "listen_addresses": "*", "archive_mode": True, "archive_command": archive}
        # Otherwise each checkpoint is spread, and a backup starts with one.
        self.conf(**settings, unix_socket_directories=SOCKETS, checkpoint_completion_target=0)
        self.start()
        self.sql("CREATE ROLE replicator LOGIN REPLICATION PASSWORD %s", [replication_password])
        self.archive = self.host.path(ARCHIVE)
        return self

    def make_standby(self, replication_password: str) -> HostServer:
        """Create a standby by pg_basebackup over the network, start it and wait until it streams."""
        upstream = self.upstream
        assert upstream
        conninfo = f"host={upstream.name} user=replicator application_name={self.name}"
        password = {"PGPASSWORD": replication_password}
        slot = ["-C", "-S", slot_name(self.name)]
        self.tool(
            "pg_basebackup", "-D", self.data, "-R", *slot, "-c", "fast", "--no-sync", "-d", conninfo, env=password
        )
        self.start()
        streaming = f"SELECT 1 FROM pg_stat_replication WHERE state = 'streaming' AND application_name = '{self.name}'"
        wait_until(lambda: upstream.sql(streaming), f"{self.name} streams")
        self.catch_up()
        return self


class Fleet:
    """Hosts on one network and a controller that reaches them; a context manager that removes everything."""

    init = INIT

    def __init__(self, directory: pathlib.Path, *names: str) -> None:
        """Start the hosts ``names`` in the new folder ``directory``. See `obstacle` first."""
        self.directory = directory
        self._parts: list[Namespace] = []
        self.hosts: dict[str, Host] = {}
        # The users of the hosts must be able to read what this user creates.
        umask = os.umask(0o022)
        try:
            directory.mkdir()
            self._start(names)
        except BaseException:
            self.close()
            raise
        finally:
            os.umask(umask)

    def _start(self, names: t.Sequence[str]) -> None:
        ssh = self.directory / "ssh"
        etc = self.directory / "etc"
        addresses = {name: f"{NETWORK}.{number}" for number, name in enumerate(names, 11)}
        for folder in (ssh, etc):
            folder.mkdir()
        for key in (ssh / "key", etc / "host_key"):
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], user=me())
        shutil.copy(ssh / "key.pub", etc)
        (etc / "init").write_text(self.init)
        (etc / "sshd_config").write_text(SSHD)
        lines = [f"{address} {name}\n" for name, address in {"localhost": "127.0.0.1", **addresses}.items()]
        (etc / "hosts").write_text("".join(lines))
        (ssh / "config").write_text(SSH.format(directory=ssh))
        (ssh / "known_hosts").write_text(f"fleet {self.prepare(etc)}")

        self.controller = Namespace(["sleep", "infinity"], self.directory / "log")
        self._parts.append(self.controller)
        bridge = f"address add {NETWORK}.1/24 dev fleet"
        self.controller.ip("link set lo up", "link add fleet type bridge", bridge, "link set fleet up")
        for name in ("ssh", "sftp"):
            enter = ssh / f"enter-{name}"
            enter.write_text(f'#!/bin/sh\nexec nsenter --target {self.controller.init} --net -- {name} "$@"\n')
            enter.chmod(0o755)

        for name, address in addresses.items():
            host = self.new_host(name, address, etc)
            self._parts.append(host)
            self.hosts[name] = host
            self.controller.ip(
                f"link add {name} type veth peer name eth0 netns {host.init}", f"link set {name} master fleet up"
            )
            host.ip("link set lo up", f"address add {address}/24 dev eth0", "link set eth0 up")
        for host in self.hosts.values():
            wait_until(host.listens, f"{host.name} has sshd")

    def new_host(self, name: str, address: str, etc: pathlib.Path) -> Host:
        """Start a host."""
        return Host(name, address, self.directory / name, etc)

    def prepare(self, etc: pathlib.Path) -> str:
        """Complete the configuration of the hosts and return the public key that all of them have."""
        return (etc / "host_key.pub").read_text()

    def cut(self, host: Host, cut: bool = True) -> None:
        """Pull the network cable of a host, or plug it in again."""
        self.controller.ip(f"link set {host.name} {'down' if cut else 'up'}")

    def ssh_processes(self) -> dict[int, str]:
        """Return the command lines of the controller's ssh processes, including those that hold a connection open."""
        return {pid: line for pid, line in self.controller.processes().items() if "ssh" in line}

    def host_vars(self, host: Host, *, pipelining: bool) -> dict[str, t.Any]:
        """Return the inventory's variables of a host. Connections outlive a play, because of ControlPersist."""
        ssh = self.directory / "ssh"
        return {
            "ansible_connection": "ssh",
            "ansible_control_path_dir": str(self.directory / "cp"),
            "ansible_host": host.address,
            "ansible_pipelining": pipelining,
            "ansible_python_interpreter": PYTHON,
            "ansible_sftp_executable": str(ssh / "enter-sftp"),
            "ansible_ssh_common_args": f"-F {ssh / 'config'}",
            "ansible_ssh_executable": str(ssh / "enter-ssh"),
            "ansible_user": "ansible",
        }

    def close(self) -> None:
        """End the hosts, then the controller with its ssh processes, and remove the folder."""
        for part in reversed(self._parts):
            part.end()
        shutil.rmtree(self.directory)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
