"""DHCP, router advertisements and DNS: one dnsmasq per network, its reservations in one file.

A network's files stand in ``RUN/dnsmasq/NETWORK``; what it has lent in ``STATE/leases/NETWORK``.
The lease file outlives its server: a guest keeps its address when the network is made anew, and
leases that do not fit any more are dropped then.

A change of reservations rewrites one file and has the living process read it (SIGHUP). The digest of
what it has read is kept, so that a crash between the two is seen as ``running=False``. When its link
is made anew by others, dnsmasq binds to it again by itself.
"""
from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import blake2s
from pathlib import Path

from kvmnet.drivers.dnsmasq import process, wire
from kvmnet.drivers.dnsmasq.process import Files
from kvmnet.drivers.dnsmasq.resources import DnsmasqServer, Reservation
from kvmnet.drivers.dnsmasq.wire import Lease
from kvmnet.engine.driver import Command, Progress, Seen
from kvmnet.engine.plan import Create, Delete, Step, Update
from kvmnet.engine.resource import Key, Wanted
from kvmnet.host.clock import wait_until
from kvmnet.host.files import make_directory, readable_errors
from kvmnet.host.paths import Paths
from kvmnet.host.run import ToolFailed, missing, run
from kvmnet.host.side import Begun, together
from kvmnet.records import dataclass, field

LANES = 4
"""Networks whose servers are started or told at a time."""
FEW = 16
"""Stale leases that are released one by one; for more, a restart is quicker."""


@dataclass(slots=True)
class Work:
    """The steps of one network."""

    steps: list[Step] = field(default_factory=list)
    stop: bool = False
    fresh: bool = False
    """Nothing of what lies in the run directory counts: it is of a server that goes, or that died being made."""
    server: DnsmasqServer | None = None
    """The server as it shall be, when a step is about it."""
    changes: dict[str, Reservation | None] = field(default_factory=dict)
    """MAC -> reservation, None for none."""


class DnsmasqDriver:
    kinds = frozenset(("dnsmasq", "reservation"))
    sees_without_tool = True

    def __init__(self, paths: Paths):
        self.paths = paths
        self.under_way: Begun[None] | None = None

    def unavailable(self) -> str | None:
        return missing("dnsmasq")

    # -- observe -----------------------------------------------------------------------------------

    def observe(self, intent: Wanted) -> Seen:
        """Our servers and their reservations. Other people's dnsmasqs have no name here."""
        self.wait()
        seen = Seen()
        for directory in sorted(self.paths.dnsmasq("x").parent.glob("*")):
            self.observe_network(directory.name, seen)
        seen.ours = set(seen.state)
        return seen

    def observe_network(self, network: str, seen: Seen) -> None:
        files = self.files(network)
        config = wire.parse_config(read(files.conf))
        if config is None:
            return
        vrf = wire.domain_of(config)
        running = (read(files.conf) == wire.config_text(config, files.options()) and bool(process.living(files))
                   and read(files.read) == digest(files) and process.in_domain(files, vrf))
        server = DnsmasqServer(name=network, dev=wire.served_link(config), vrf=vrf, config=config, running=running)
        seen.state[server.key] = server
        for reservation in wire.parse_hosts(network, read(files.hosts)).values():
            seen.state[reservation.key] = reservation

    def files(self, network: str) -> Files:
        # dnsmasq changes to / when it becomes a daemon.
        return Files(self.paths.dnsmasq(network).absolute(), self.paths.leases(network).absolute())

    # -- apply -------------------------------------------------------------------------------------

    def apply(self, steps: Sequence[Step], progress: Progress) -> None:
        self.begin(steps, progress)
        self.wait()

    def begin(self, steps: Sequence[Step], progress: Progress) -> None:
        """As ``apply``, but beside the steps of others that follow, unless a server goes: its link goes next."""
        self.wait()
        if any(work.stop for work in by_network(steps).values()):
            self.work_off(steps)
        else:
            self.under_way = Begun(partial(self.work_off, steps))
        progress(len(steps))

    def wait(self) -> None:
        """Until nothing of ours is under way. Raises StepFailed for what did not work."""
        work, self.under_way = self.under_way, None
        if work is not None:
            work.result()

    def work_off(self, steps: Sequence[Step]) -> None:
        """Networks side by side, in some lanes: a start mostly waits. Those whose server goes come first, for what follows may take
        its address."""
        found = list(by_network(steps).items())
        for several in ([f for f in found if f[1].stop], [f for f in found if not f[1].stop]):
            together([partial(self.one_by_one, several[lane::LANES]) for lane in range(min(LANES, len(several)))])

    def one_by_one(self, several: Sequence[tuple[str, Work]]) -> None:
        for network, work in several:
            self.apply_network(network, work)

    def apply_network(self, network: str, work: Work) -> None:
        files, key = self.files(network), Key("dnsmasq", network)
        if work.stop:
            process.stop(key, files)
        if work.fresh:
            remove(files.run)
            if work.server is None and not any(work.changes.values()):
                return
        known = files.hosts.exists() or bool(work.changes)
        new = changed(network, files, work)
        prepare(files)
        write_reservations(files, new)
        if (server := work.server) is not None:
            text = wire.config_text(server.config or (), files.options())
            if server.running is False or read(files.conf) != text or not process.in_domain(files, server.vrf or ""):
                process.stop(key, files)
                write(files.conf, text)
            if server.running is False:
                return
        if pid := process.living(files):
            acknowledge(key, files, pid, new)
        elif server is not None:
            drop(files, unfit(network, files, new) if known else ())
            begin(key, files)

    # -- what it would run -------------------------------------------------------------------------

    def commands(self, steps: Sequence[Step]) -> Sequence[Command]:
        found: list[Command] = []
        for network, work in by_network(steps).items():
            files = self.files(network)
            keys = tuple(s.key for s in work.steps)
            if work.stop:
                found.append(Command(("pkill", "-TERM", "-F", str(files.pid)), keys=keys))
            if work.stop and work.server is None:
                found.append(Command(("rm", "-r", str(files.run)), keys=keys))
                continue
            if work.changes:
                new = changed(network, files, work).values()
                found.append(Command(("tee", str(files.hosts)), wire.hosts_text(new), keys))
                found.append(Command(("tee", str(files.names)), wire.names_text(new), keys))
            if work.server is not None:
                text = wire.config_text(work.server.config or (), files.options())
                found.append(Command(("tee", str(files.conf)), text, keys))
                found.append(Command(process.start_argv(files, work.server.vrf or ""), keys=keys))
            elif work.changes:
                found.append(Command(("pkill", "-HUP", "-F", str(files.pid)), keys=keys))
        return found


def by_network(steps: Sequence[Step]) -> dict[str, Work]:
    """*steps* by network, each network's summed up: the last word on a reservation counts."""
    found: dict[str, Work] = {}
    for step in steps:
        network, _, mac = step.key.name.partition(" ")
        work = found.setdefault(network, Work())
        work.steps.append(step)
        match step:
            case Create(DnsmasqServer() as server):
                work.server, work.fresh = server, True
            case Update(_, DnsmasqServer() as server):
                work.server = server
            case Delete(DnsmasqServer()):
                work.stop = work.fresh = True
            case Create(Reservation() as after) | Update(_, Reservation() as after):
                work.changes[mac] = after
            case Delete(Reservation()):
                work.changes[mac] = None
    return found


def changed(network: str, files: Files, work: Work) -> dict[str, Reservation]:
    """The reservations of a network, by MAC, as they are after its steps."""
    before = {} if work.fresh else wire.parse_hosts(network, read(files.hosts))
    return {mac: r for mac, r in {**before, **work.changes}.items() if r is not None}


# -- files -----------------------------------------------------------------------------------------

def read(path: Path) -> str:
    """Text of a file, '' when it does not exist. Raises HostCannot."""
    with readable_errors(path, "read"):
        try:
            return path.read_text(errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return ""


def write(path: Path, text: str) -> None:
    """Replace a file at once: a reader sees the old text or the new one. Raises HostCannot."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with readable_errors(path, "write"):
        try:
            fresh.write_text(text)
            fresh.chmod(0o644)
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)


def prepare(files: Files) -> None:
    """Directories that the service's user can enter, and a lease file that it can write."""
    user = process.service_user()
    for directory in (files.run.parent, files.run, files.leases.parent):
        if not directory.exists():
            make_directory(directory)
            directory.chmod(0o755)
    with readable_errors(files.leases, "write"):
        files.leases.touch()
        os.chown(files.leases, user.pw_uid, user.pw_gid)


def write_reservations(files: Files, reservations: Mapping[str, Reservation]) -> None:
    write(files.names, wire.names_text(reservations.values()))
    write(files.hosts, wire.hosts_text(reservations.values()))


def remove(directory: Path) -> None:
    """A server's files; the configuration goes last, since it is what makes the server seen."""
    with readable_errors(directory, "remove"), contextlib.suppress(FileNotFoundError):
        for entry in sorted(directory.iterdir(), key=lambda p: p.name == "conf"):
            entry.unlink()
        directory.rmdir()


def digest(files: Files) -> str:
    """What a process has to have read to be up to date."""
    return blake2s((read(files.hosts) + read(files.names)).encode()).hexdigest()


def link_of(files: Files) -> str:
    return wire.served_link(wire.parse_config(read(files.conf)) or ())


def domain_of(files: Files) -> str:
    return wire.domain_of(wire.parse_config(read(files.conf)) or ())


def begin(key: Key, files: Files) -> None:
    """Start the process on the files as they are; it reads its reservations on the way."""
    process.start(key, files, link_of(files), domain_of(files))
    settle(files)


def acknowledge(key: Key, files: Files, pid: int, new: Mapping[str, Reservation]) -> None:
    """Have the process read its reservations, unless it has, and free the leases that do not fit them:
    before, so that no name is refused to its new address, and what was lent meanwhile after."""
    if read(files.read) == digest(files):
        return
    freed = release(files, unfit(key.name, files, new))
    process.reload(key, files, pid)
    unwanted = unfit(key.name, files, new)
    if unwanted and not (freed and release(files, unwanted)):
        process.stop(key, files)
        drop(files, unwanted)
        process.start(key, files, link_of(files), domain_of(files))
    settle(files)


def settle(files: Files) -> None:
    """Note that the process has read the reservations, and under which ones it lends from now on."""
    write(files.owners, read(files.hosts))
    write(files.read, digest(files))


# -- leases ----------------------------------------------------------------------------------------

def leases(paths: Paths, network: str) -> list[Lease]:
    """What a network's server has lent. Expiry in seconds since 1970, 0 for never."""
    return wire.parse_leases(read(paths.leases(network)))[0]


def read_leases(files: Files) -> tuple[list[Lease], str]:
    return wire.parse_leases(read(files.leases))


def unfit(network: str, files: Files, new: Mapping[str, Reservation]) -> list[Lease]:
    """Leases that do not fit the reservations *new*."""
    free = wire.lent_freely(wire.parse_config(read(files.conf)) or ())
    old = wire.parse_hosts(network, read(files.owners))
    return wire.stale(read_leases(files)[0], new, old, free)


def drop(files: Files, unwanted: Sequence[Lease]) -> None:
    """Take leases out of the file of a server that is not running."""
    if not unwanted:
        return
    held, duid = read_leases(files)
    gone = set(unwanted)
    write(files.leases, wire.leases_text((x for x in held if x not in gone), duid))
    user = process.service_user()
    os.chown(files.leases, user.pw_uid, user.pw_gid)


def release(files: Files, unwanted: Sequence[Lease]) -> bool:
    """Free leases of a running server by a release message each, as their clients would. False when they
    are too many for that, when the tools are missing or when the server has not heard."""
    if not unwanted:
        return True
    if len(unwanted) > FEW or missing("dhcp_release", "dhcp_release6"):
        return False
    link = link_of(files)
    duid = read_leases(files)[1]
    gone = {(x.ip, x.mac, x.client) for x in unwanted}
    try:
        for lease in unwanted:
            run(release_argv(link, lease, duid), timeout=process.PATIENCE)
        return wait_until(lambda: gone.isdisjoint((x.ip, x.mac, x.client) for x in read_leases(files)[0]), 1, 0.005)
    except (ToolFailed, TimeoutError):
        return False


def release_argv(link: str, lease: Lease, server: str) -> tuple[str, ...]:
    if lease.iaid is None:
        return ("dhcp_release", link, lease.ip, lease.mac, lease.client)
    return ("dhcp_release6", "--iface", link, "--ip", lease.ip, "--iaid", str(lease.iaid),
            "--client-id", lease.client, "--server-id", server)
