"""Debian hosts with systemd on this machine, each with an address and an sshd of its own.

systemd-nspawn boots them from one bootstrapped tree, each on an overlay. All of it lives in namespaces of one
process: when that ends, however it ends, the hosts, their mounts and their network are gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

BRIDGE: Final = "hosts0"
NETWORK: Final = "10.91.7"
UPLINK: Final = ("apiary-hosts", "uplink0")
"""A pair of interfaces: the first on this machine, the second in the hosts' network."""
TABLE: Final = "apiary_hosts"
USER: Final = "pi"
_PACKAGES: Final = (
    "systemd,systemd-sysv,libpam-systemd,dbus,openssh-server,sudo,python3,ca-certificates,iproute2,procps"
)


def sh(*words: str | Path, check: bool = True, timeout_s: float = 600) -> str:
    """Run a program; its output. A failure shows what it printed."""
    done = subprocess.run(
        [str(w) for w in words], capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, words))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def bootstrap(folder: Path, suite: str) -> str:
    """Make `folder`/SUITE, the tree that all hosts of a Debian stand on, once; its Python's version."""
    root, key = folder / suite, folder / "key"
    if not key.exists():
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    if (root / "etc/apiary-host-ready").exists():
        return _python(root)
    shutil.rmtree(root, ignore_errors=True)
    print(f"debootstrap {suite} (once)", flush=True)
    mirror = "http://deb.debian.org/debian"
    sh("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", suite, root, mirror, timeout_s=1800)
    sh("chroot", root, "useradd", "--create-home", "--shell", "/bin/bash", USER)
    (root / "etc/sudoers.d/pi").write_text(f"{USER} ALL=(ALL) NOPASSWD: ALL\n")
    ssh = root / f"home/{USER}/.ssh"
    ssh.mkdir(mode=0o700)
    shutil.copy(key.with_suffix(".pub"), ssh / "authorized_keys")
    sh("chroot", root, "chown", "-R", f"{USER}:{USER}", f"/home/{USER}/.ssh")
    # The address comes with the host; the name service is this machine's.
    sh("chroot", root, "systemctl", "enable", "systemd-networkd")
    sh("chroot", root, "systemctl", "disable", "systemd-networkd-wait-online")
    (root / "etc/machine-id").write_text("")
    (root / "etc/apiary-host-ready").touch()
    return _python(root)


def _python(root: Path) -> str:
    return (root / "usr/bin/python3").readlink().name.removeprefix("python")


class Machine:
    """One host: boots, runs commands over SSH, may be killed as by a power cut and booted again."""

    def __init__(
        self, name: str, number: int, *, base: Path, work: Path, key: Path, binds: Sequence[str] = ()
    ):
        self.name = name
        self.address = f"{NETWORK}.{number}"
        self.base, self.key, self.binds = base, key, binds
        self.folder = work / name
        self.root = self.folder / "root"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def boot(self, wait_s: float = 60) -> None:
        """Start it and wait until it lets SSH in."""
        if not self.root.is_mount():
            self._mount()
        # Each in a control group of its own: two systemds on one tree would meet in each other's services.
        groups = [str(g / "apiary-hosts" / self.name) for g in _hierarchies()]
        enter = 'for g in $GROUPS_; do mkdir -p "$g" && echo $$ > "$g/cgroup.procs"; done; exec "$@"'
        command = [
            "sh", "-c", enter.replace("$GROUPS_", " ".join(groups)), "sh",
            "systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit",
            f"--directory={self.root}", f"--machine={self.name}", f"--hostname={self.name}",
            f"--network-bridge={BRIDGE}", "--resolv-conf=copy-host", "--console=pipe",
            *self.binds,
        ]  # fmt: skip
        log = (self.folder / "console.log").open("ab")
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + wait_s
        while self.ssh("true", check=False, timeout_s=10).returncode != 0:
            if time.monotonic() > end or self._process.poll() is not None:
                tail = (self.folder / "console.log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self.name} does not boot:\n{tail}")
            time.sleep(0.3)

    def ssh(
        self, command: str, *, check: bool = True, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command there as root."""
        words = ["ssh", *self.ssh_options(), f"{USER}@{self.address}", "sudo", "sh", "-c", quoted(command)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=False)
        if check and done.returncode != 0:
            raise RuntimeError(f"{self.name}: {command}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def type(self, command: str) -> subprocess.CompletedProcess[str]:
        """As somebody who has logged in, without root's rights but those of sudo."""
        words = ["ssh", *self.ssh_options(), f"{USER}@{self.address}", command]
        return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)

    def put(self, path: str, text: str) -> None:
        """Write a file there, as root."""
        words = ["ssh", *self.ssh_options(), f"{USER}@{self.address}", "sudo", "tee", path]
        subprocess.run(words, input=text, text=True, stdout=subprocess.DEVNULL, check=True, timeout=30)

    def ssh_options(self) -> list[str]:
        return ["-i", str(self.key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
                "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=5", "-o", "BatchMode=yes"]  # fmt: skip

    def kill(self) -> None:
        """As by a power cut: SIGKILL to its first process takes all others with it."""
        assert self._process is not None
        (leader,) = children(self._process.pid)
        os.kill(leader, signal.SIGKILL)
        self._process.wait(30)

    def destroy(self) -> None:
        """It burns down: killed, and its disk is gone. Nothing where there is none."""
        if self.running:
            self.kill()
        if self.root.is_mount():
            sh("umount", self.root)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _mount(self) -> None:
        upper, scratch = self.folder / "upper", self.folder / "scratch"
        for folder in (upper, scratch, self.root):
            folder.mkdir(parents=True, exist_ok=True)
        layers = f"lowerdir={self.base},upperdir={upper},workdir={scratch}"
        sh("mount", "-t", "overlay", "overlay", "-o", layers, self.root)
        network = self.root / "etc/systemd/network/10-host0.network"
        network.write_text(
            "[Match]\nName=host0\n\n[Network]\nLinkLocalAddressing=no\n"
            f"Address={self.address}/24\nGateway={NETWORK}.1\n"
        )
        (self.root / "etc/hostname").write_text(f"{self.name}\n")
        (self.root / "etc/hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n")


def _hierarchies() -> list[Path]:
    """Where systemd keeps its control groups: version 2, or version 1 with or without 2 beside it."""
    top = Path("/sys/fs/cgroup")
    if (top / "cgroup.procs").exists():
        return [top]
    return [g for g in (top / "systemd", top / "unified") if (g / "cgroup.procs").exists()]


def _leave_no_groups() -> None:
    for top in _hierarchies():
        for folder, _, _ in os.walk(top / "apiary-hosts", topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()


def quoted(command: str) -> str:
    """`command` as one word for a shell."""
    return "'" + command.replace("'", "'\\''") + "'"


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descendants(pid: int) -> list[int]:
    """A process, its children, theirs, and so on."""
    return [pid, *(found for child in children(pid) for found in descendants(child))]


def in_namespaces(module: str, arguments: Sequence[str]) -> int:
    """Run `python -m MODULE --inside ...` with processes, mounts and a network of its own, with a way out."""
    # Mounts of our own only: the rest of the machine does not see them, and they end with us.
    command = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
               sys.executable, "-m", module, "--inside", *arguments]  # fmt: skip
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with _alone(), _way_out():
        child = subprocess.Popen(command)
        try:
            (inner,) = _first_child(child)
            sh("ip", "link", "add", UPLINK[0], "type", "veth", "peer", "name", UPLINK[1], "netns", str(inner))
            sh("ip", "address", "add", "10.91.6.1/30", "dev", UPLINK[0])
            sh("ip", "link", "set", UPLINK[0], "up")
            sh("ip", "route", "add", f"{NETWORK}.0/24", "via", "10.91.6.2")
            return child.wait()
        finally:
            # The first process of a namespace takes all of it along.
            child.kill()
            child.wait(30)
            _leave_no_groups()


def join_network(wait_s: float = 10) -> None:
    """Inside: the bridge that the hosts hang on, and the way out."""
    end = time.monotonic() + wait_s
    while UPLINK[1] not in sh("ip", "-o", "link"):
        if time.monotonic() > end:
            raise RuntimeError("the uplink did not come")
        time.sleep(0.05)
    for words in (
        "link set lo up",
        f"address add 10.91.6.2/30 dev {UPLINK[1]}",
        f"link set {UPLINK[1]} up",
        f"link add {BRIDGE} type bridge",
        f"address add {NETWORK}.1/24 dev {BRIDGE}",
        f"link set {BRIDGE} up",
        "route add default via 10.91.6.1",
    ):
        sh("ip", *words.split())
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _first_child(process: subprocess.Popen[bytes]) -> list[int]:
    end = time.monotonic() + 10
    while not (found := children(process.pid)):
        if time.monotonic() > end or process.poll() is not None:
            raise RuntimeError("unshare did not start: are you root?")
        time.sleep(0.05)
    return found


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """The addresses are fixed, so there can be one such network on this machine at a time."""
    with Path("/run/apiary-hosts.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("another `make hosts` runs on this machine")
        yield


@contextlib.contextmanager
def _way_out() -> Iterator[None]:
    """The hosts' packages go out with this machine's address while this lasts."""
    forward = Path("/proc/sys/net/ipv4/ip_forward")
    before = forward.read_text()
    rules = (
        f"table ip {TABLE}\ndelete table ip {TABLE}\ntable ip {TABLE} {{\nchain out {{\n"
        "type nat hook postrouting priority srcnat\n"
        f'ip saddr {{ 10.91.6.0/30, {NETWORK}.0/24 }} oifname != "{UPLINK[0]}" masquerade\n}}\n}}\n'
    )
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    forward.write_text("1")
    try:
        yield
    finally:
        forward.write_text(before)
        sh("nft", "delete", "table", "ip", TABLE, check=False)
        sh("ip", "link", "delete", UPLINK[0], check=False)
