"""One dnsmasq process: find it, start it, have it read its reservations again, stop it.

A process is ours when it runs in this network namespace and its command line names a configuration
below our run directory; a pid file alone proves nothing, since pids are used again.
"""
from __future__ import annotations

import contextlib
import os
import pwd
import select
import signal
import socket
from collections.abc import Mapping
from pathlib import Path

from kvmnet.drivers.dnsmasq import wire
from kvmnet.engine.driver import StepFailed
from kvmnet.engine.resource import Key
from kvmnet.host.clock import wait_until
from kvmnet.host.run import ToolFailed, find, run
from kvmnet.host.sockets import bind_raw
from kvmnet.records import dataclass

LOG_LIMIT = 8 * 2**20
"""Bytes after which the log is emptied at the next reload, and (twice that) never grows: a guest can
make its server write a line per packet, and /run is memory. Beyond, dnsmasq falls back to syslog
(src/log.c)."""
PATIENCE = 10.0
"""Seconds within which a dnsmasq starts, reads its files or ends."""


@dataclass(frozen=True, slots=True)
class Files:
    """Where the dnsmasq of one network keeps what."""

    run: Path
    leases: Path

    @property
    def conf(self) -> Path:
        return self.run / "conf"

    @property
    def hosts(self) -> Path:
        """Reservations, as a dhcp-hostsfile."""
        return self.run / "hosts"

    @property
    def names(self) -> Path:
        """Names of reservations, as a hosts(5) file."""
        return self.run / "names"

    @property
    def pid(self) -> Path:
        return self.run / "pid"

    @property
    def log(self) -> Path:
        return self.run / "log"

    @property
    def read(self) -> Path:
        """Digest of the reservations and names that the living process has read."""
        return self.run / "read"

    @property
    def owners(self) -> Path:
        """The reservations under which the leases were lent, also when the server is gone."""
        return self.leases.with_suffix(".hosts")

    @property
    def domain(self) -> Path:
        """Number of the routing domain's device that the process was started in; without a file in none."""
        return self.run / "domain"

    def options(self) -> tuple[str, ...]:
        """The driver's own lines of the configuration."""
        return (f"pid-file={self.pid}", f"log-facility={self.log}", f"dhcp-leasefile={self.leases}",
                f"dhcp-hostsfile={self.hosts}", f"addn-hosts={self.names}", f"user={service_user().pw_name}")


def service_user() -> pwd.struct_passwd:
    """The user that the process becomes: the distribution's own for dnsmasq, else nobody."""
    try:
        return pwd.getpwnam("dnsmasq")
    except KeyError:
        return pwd.getpwnam("nobody")


def start_argv(files: Files, vrf: str = "") -> tuple[str, ...]:
    """The command that starts the process; it returns once dnsmasq listens. ``vrf``: the routing domain that its
    sockets are in."""
    script = f'trap "" XFSZ; ulimit -f {2 * LOG_LIMIT // 512}; exec "$@"'
    domain = ("ip", "vrf", "exec", vrf) if vrf else ()
    return (*domain, "sh", "-c", script, "dnsmasq", find("dnsmasq") or "dnsmasq", f"--conf-file={files.conf}")


# -- which process ---------------------------------------------------------------------------------

def living(files: Files) -> int:
    """Pid of our process, or 0."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(files.pid.read_text())
        if serves(pid, files):
            return pid
    return next((pid for pid, conf in all_processes().items() if conf == str(files.conf)), 0)


def serves(pid: int, files: Files) -> bool:
    return conf_of(pid) == str(files.conf) and here(pid)


def conf_of(pid: int) -> str:
    """The configuration that a living dnsmasq was started with, or ''."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        dead = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return ""
    if dead or Path(os.fsdecode(words[0])).name != "dnsmasq":
        return ""
    return next((os.fsdecode(w[12:]) for w in words if w.startswith(b"--conf-file=")), "")


def here(pid: int) -> bool:
    """The process is in the network namespace of this thread."""
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino == Path("/proc/thread-self/ns/net").stat().st_ino
    except OSError:
        return False


def all_processes() -> Mapping[int, str]:
    """Every dnsmasq of this network namespace with its configuration."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (conf := conf_of(int(entry.name))) and here(int(entry.name)):
            found[int(entry.name)] = conf
    return found


# -- start, reload, stop ---------------------------------------------------------------------------

def start(key: Key, files: Files, link: str, vrf: str = "") -> int:
    """Start the process and return its pid. ``link``: what it serves, ``vrf``: the routing domain of that. Raises
    StepFailed with dnsmasq's own words."""
    check_reachable(key, files)
    try:
        run(["dnsmasq", "--test", f"--conf-file={files.conf}"], timeout=PATIENCE)
    except ToolFailed as wrong:
        raise StepFailed(key, wire.explain_syntax(wrong.detail, files.conf.read_text())) from wrong
    files.pid.unlink(missing_ok=True)
    files.domain.unlink(missing_ok=True)
    files.log.unlink(missing_ok=True)
    try:
        run(start_argv(files, vrf), timeout=PATIENCE)
        pid = wait_until(lambda: living(files), PATIENCE)
        if vrf:
            serve_in_domain(key, files, pid, link, vrf)
        return pid
    except ToolFailed as wrong:
        detail = wrong.detail.removeprefix("dnsmasq: ").strip()
        raise StepFailed(key, f"dnsmasq does not start: {detail}", advice(detail)) from wrong
    except TimeoutError as late:
        raise StepFailed(key, f"dnsmasq ended right after its start: {last_words(files)}") from late


def serve_in_domain(key: Key, files: Files, pid: int, link: str, vrf: str) -> None:
    """Let the process hear router solicitations, and note where it is. Raises StepFailed.

    ``ip vrf exec`` puts every socket into the domain, which is right for all but one: neighbour discovery stays on the link
    itself (vrf_ip6_rcv() in drivers/net/vrf.c), where a raw socket of the domain hears nothing. dnsmasq has no option for it.
    """
    try:
        bind_raw(pid, socket.IPPROTO_ICMPV6, link)
        files.domain.write_text(str(socket.if_nametoindex(vrf)))
    except OSError as error:
        raise StepFailed(key, f"dnsmasq (pid {pid}) cannot serve in {vrf}: {error.strerror}",
                         "Linux 5.6 with CAP_SYS_PTRACE is needed for it") from error


def in_domain(files: Files, vrf: str) -> bool:
    """Whether the process was started in the routing domain as it is now: sockets stay bound to a device that is gone."""
    try:
        noted = files.domain.read_text()
    except OSError:
        noted = ""
    try:
        return noted == (str(socket.if_nametoindex(vrf)) if vrf else "")
    except OSError:
        return False


def check_reachable(key: Key, files: Files) -> None:
    """After a reload the files are read without root's rights."""
    user = service_user()
    for directory in (files.run, *files.run.parents):
        info = directory.stat()
        bit = 0o100 if info.st_uid == user.pw_uid else 0o010 if info.st_gid == user.pw_gid else 0o001
        if not info.st_mode & bit:
            raise StepFailed(key, f"user {user.pw_name}, as whom dnsmasq runs, cannot enter {directory}",
                             f"chmod o+x {directory}, or choose another KVMNET_RUN_DIR")


def reload(key: Key, files: Files, pid: int) -> None:
    """Have the process read its reservations, and wait until it says so. Raises StepFailed."""
    empty_log(files, pid)
    before = files.log.stat().st_size if files.log.exists() else 0
    said = f"read {files.hosts}".encode()

    def has_read() -> bool:
        with contextlib.suppress(FileNotFoundError), files.log.open("rb") as log:
            log.seek(before)
            return said in log.read()
        return False

    try:
        os.kill(pid, signal.SIGHUP)
        wait_until(has_read, PATIENCE, 0.002)
    except (ProcessLookupError, TimeoutError) as gone:
        raise StepFailed(key, f"dnsmasq (pid {pid}) has not read {files.hosts}: {last_words(files)}") from gone


def empty_log(files: Files, pid: int) -> None:
    """Empty a log that has grown long, and have the process open it again if it gave it up."""
    size = files.log.stat().st_size if files.log.exists() else 0
    if size <= LOG_LIMIT and has_open(pid, files.log):
        return
    if size:
        os.truncate(files.log, 0)
    os.kill(pid, signal.SIGUSR2)
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: has_open(pid, files.log), PATIENCE, 0.002)


def has_open(pid: int, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return any(str(fd.readlink()) == str(path) for fd in Path(f"/proc/{pid}/fd").iterdir())
    return False


def stop(key: Key, files: Files) -> None:
    """End the process, by force if need be. Raises StepFailed when it cannot be ended."""
    files.read.unlink(missing_ok=True)
    while pid := living(files):
        if not any(ends(pid, files, number) for number in (signal.SIGTERM, signal.SIGKILL)):
            raise StepFailed(key, f"dnsmasq (pid {pid}) does not end")


def ends(pid: int, files: Files, number: signal.Signals) -> bool:
    """Send a signal and wait for the end: its command line goes while it still has its sockets (do_exit() in kernel/exit.c)."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            if not serves(pid, files):    # it ended meanwhile, and this is another
                return True
            signal.pidfd_send_signal(handle, number)
            waiting = select.poll()
            waiting.register(handle, select.POLLIN)
            return bool(waiting.poll(PATIENCE * 1000))
        finally:
            os.close(handle)
    return True


# -- what went wrong -------------------------------------------------------------------------------

def last_words(files: Files) -> str:
    """The last line of the log, without its date."""
    try:
        lines = files.log.read_text(errors="replace").splitlines()
    except OSError:
        return "no log"
    return lines[-1].partition("]: ")[2] or lines[-1] if lines else "nothing in its log"


def advice(message: str) -> str:
    """What to do about an error of dnsmasq's start."""
    if "Address already in use" in message:
        holders = "; ".join(dict.fromkeys(holding(wire.in_the_way(message, sockets_here()))))
        return (f"{holders}: stop it, or have it leave this address alone (dns.enabled: false on the network "
                "when another resolver shall serve it)" if holders
                else "another server holds the port: ss -lunp shows who")
    if "Permission denied" in message:
        return "AppArmor or SELinux may confine dnsmasq: see the kernel's log (dmesg)"
    return ""


def sockets_here() -> list[wire.Socket]:
    found = []
    for protocol in ("udp", "udp6", "tcp", "tcp6"):
        with contextlib.suppress(OSError):
            found += wire.parse_sockets(protocol, Path(f"/proc/thread-self/net/{protocol}").read_text())
    return found


def holding(sockets: list[wire.Socket]) -> list[str]:
    """Each of *sockets* with the process that has it open."""
    wanted = {f"socket:[{s.inode}]": s for s in sockets}
    owner: dict[int, str] = {}
    for entry in Path("/proc").iterdir() if wanted else ():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                for fd in (entry / "fd").iterdir():
                    if (held := wanted.get(str(fd.readlink()))) is not None:
                        owner[held.inode] = f"{(entry / 'comm').read_text().strip()} (pid {entry.name})"
    return [f"{owner.get(s.inode, 'a process outside our view')} holds {s.protocol} {s.address} port {s.port}"
            for s in sockets]
