"""Two hosts on this machine, for as long as a test module: alpha and beta, each with a network, a name and an sshd of its own.

They share the file system, as the hosts of a cluster share theirs. A wire (veth) joins them, and can be cut. Everything of
them lives in namespaces that end with the test.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.cluster.needs import alone_in_namespaces, end, need, need_namespaces
from tests.distributed.small_run import ROOT, environment

ADDRESSES = {"alpha": "10.77.0.1", "beta": "10.77.0.2"}
ABSENT = {"gamma": "10.77.0.3"}  # a name and an address at which nobody is
WIRE = "wire"
SSHD = """\
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
StrictModes no
UsePAM no
PidFile none
SetEnv OMP_NUM_THREADS=1
"""
SSH = """\
IdentityFile {folder}/key
UserKnownHostsFile {folder}/known_hosts
"""
START = """\
set -e
cd {folder}
hostname {name}
mount --bind {name}.hosts /etc/hosts
mount --bind ssh_config /etc/ssh/ssh_config
mount -t tmpfs tmpfs /run
mkdir /run/sshd
ip link set lo up
exec /usr/sbin/sshd -D -e -f $PWD/sshd_config
"""


class Host:
    """One of the two."""

    def __init__(self, folder: Path, name: str) -> None:
        (folder / f"{name}.sh").write_text(START.format(folder=folder, name=name))
        with (folder / f"{name}.log").open("w") as log:
            self.root = subprocess.Popen(
                [*alone_in_namespaces("mount", "uts", "net"), "bash", str(folder / f"{name}.sh")],
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.name = name

    def inside(self, *command: str) -> list[str]:
        """`command`, run on this host."""
        (first,) = psutil.Process(self.root.pid).children()
        return ["nsenter", f"--target={first.pid}", "--mount", "--uts", "--net", "--pid", f"--wd={ROOT}", *command]

    def run(self, *command: str, timeout_s: float = 300, **more: str) -> "subprocess.CompletedProcess[str]":
        """Run a command on this host to its end."""
        return subprocess.run(
            self.inside(*command),
            env=environment(**more),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def start(self, log: Path, *command: str, **more: str) -> "subprocess.Popen[bytes]":
        """Start a command on this host; its output goes to `log`."""
        with log.open("w") as file:
            return subprocess.Popen(
                self.inside(*command), env=environment(**more), stdout=file, stderr=subprocess.STDOUT
            )

    def wire(self, state: str) -> None:
        """up or down."""
        done = self.run("ip", "link", "set", WIRE, state)
        assert done.returncode == 0, done.stderr


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """alpha and beta, which can log in to each other; skips the test where there can be none."""
    need("sshd", "ssh", "ssh-keygen", "pdsh", "ip", "unshare", "nsenter", "setpriv")
    need_namespaces()
    _configure(folder)
    hosts = []
    try:
        for name in ADDRESSES:
            hosts.append(Host(folder, name))
        _join(*hosts)
        _wait_until_reachable(*hosts, folder)
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            end(host.root)


def _configure(folder: Path) -> None:
    for key in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    public = (folder / "host_key.pub").read_text()
    known = (f"{name},{address} {public}" for name, address in (ADDRESSES | ABSENT).items())
    (folder / "known_hosts").write_text("".join(known))
    for own in ADDRESSES:  # as Debian sets up a host: to itself, its name is an address that no other can reach
        names = {**ADDRESSES, **ABSENT, own: "127.0.1.1"}
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in names.items())]
        (folder / f"{own}.hosts").write_text("\n".join(lines) + "\n")
    (folder / "sshd_config").write_text(SSHD.format(folder=folder))
    (folder / "ssh_config").write_text(SSH.format(folder=folder))


def _join(alpha: Host, beta: Host) -> None:
    """Lay the wire between them."""
    wire = ["ip", "link", "add", WIRE, "netns", str(alpha.root.pid), "type", "veth"]
    _until(lambda: _namespace(alpha) != _namespace(None) != _namespace(beta), "there are no namespaces")
    subprocess.run([*wire, "peer", "name", WIRE, "netns", str(beta.root.pid)], check=True)
    for host in (alpha, beta):
        enter = ["nsenter", f"--target={host.root.pid}", "--net", "ip"]
        subprocess.run([*enter, "address", "add", f"{ADDRESSES[host.name]}/24", "dev", WIRE], check=True)
        subprocess.run([*enter, "link", "set", WIRE, "up"], check=True)


def _namespace(host: Host | None) -> str:
    """The network namespace of a host, or ours."""
    return os.readlink(f"/proc/{'self' if host is None else host.root.pid}/ns/net")


def _wait_until_reachable(alpha: Host, beta: Host, folder: Path) -> None:
    def reachable() -> bool:
        pairs = ((alpha, alpha), (alpha, beta), (beta, alpha))
        return all(_has_started(one) and one.run("ssh", other.name, "true").returncode == 0 for one, other in pairs)

    logs = (path for path in (folder / "alpha.log", folder / "beta.log"))
    _until(reachable, "no login", *logs)


def _has_started(host: Host) -> bool:
    return bool(psutil.Process(host.root.pid).children())


def _until(condition: Callable[[], bool], otherwise: str, *logs: Path) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, otherwise + "".join(
            f"\n{log.name}: {log.read_text()[-2000:]}" for log in logs
        )
        time.sleep(0.1)
