"""One sitting of ``kvmnet bench run``: a host is made in namespaces of its own, measured, and gone with this process."""
from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from kvmnet.api import Host
from kvmnet.bench.dials import Dials
from kvmnet.bench.document_seats import check as check_document
from kvmnet.bench.documents import DocumentSeat
from kvmnet.bench.ground import Ground, Say, Tools, versions
from kvmnet.bench.machine import machine
from kvmnet.bench.matrix import WAYS, Configuration, Seat
from kvmnet.bench.measure import Bench
from kvmnet.bench.model import Progress
from kvmnet.bench.peers.compared import WHO
from kvmnet.bench.peers.configure import configured
from kvmnet.bench.peers.seats import LACKING
from kvmnet.bench.record import Pen, Record, Wish
from kvmnet.bench.scenarios import SCENARIOS, Place
from kvmnet.errors import HostCannot, KvmnetError, SpecError
from kvmnet.facts.features import features
from kvmnet.guests.accel import probe
from kvmnet.host.paths import Paths
from kvmnet.spec.knobs import KNOBS

RESERVE = 512
"""MiB of the machine's memory that guests leave to others."""


def started(wish: Wish, absent: dict[str, str] | None = None) -> Record:
    """A record in which nothing is measured yet. *absent*: who was to be compared, and why it is not."""
    return Record(wish, machine(()), {}, datetime.now().astimezone().isoformat(timespec="seconds"), absent=absent or {})


def check(wish: Wish) -> None:
    """Raise KvmnetError for what cannot be measured, before anything is made."""
    for c in wish.configurations:
        if "document" in c.settings:
            if any(SCENARIOS[name].loses for name in wish.scenarios):
                raise KvmnetError(f"{c.name}: failover is measured with configurations, not with documents", "write --point 'uplink=WAY mode=bridge'")
            check_document(c, wish.places)
            continue
        check_ways(c, wish)
        if c.mode == "isolated" and Place.OUTSIDE in wish.places:
            raise KvmnetError(f"{c.name}: an isolated network has no outside", "leave --between guest-outside away")
        by = c.settings.get("by", "kvmnet")
        if by != "kvmnet" and c.mode in ("bridge", "macvtap", "vxlan"):
            raise KvmnetError(f"{c.name}: others than kvmnet are compared in modes nat, routed and isolated", "write mode=nat")
        if by != "kvmnet" and (said := LACKING[by]()):
            raise HostCannot(f"{c.name}: {said}", "leave it out; nothing is simulated")
        if by != "kvmnet" and c.settings.get("groups") == "on":
            raise KvmnetError(f"{c.name}: groups are kvmnet's", "leave by away")
        if by != "kvmnet" and any(name in KNOBS for name in c.settings):
            raise KvmnetError(f"{c.name}: kernel settings are varied on kvmnet's host only", "leave by away")
    left = [s for s in map(SCENARIOS.__getitem__, wish.scenarios) if not set(s.places) & set(wish.places)]
    if left and (any(s.loses for s in left) or not wish.tasks()):
        raise KvmnetError(f"{left[0].name} is measured {' or '.join(left[0].places)} only", f"add --between {left[0].places[0]}")
    need = sum(int(c.settings.get("memory", 256)) + 64 for c in wish.configurations) * guests(wish)
    if need + RESERVE > (free := memory_free()):
        raise HostCannot(f"{len(wish.configurations) * guests(wish)} guests need {need} MiB of memory, {free} MiB are free",
                         "compare fewer configurations, or set memory=192")


def check_ways(c: Configuration, wish: Wish) -> None:
    """Raise for an uplink of two ways that cannot be, and for a loss without one."""
    seat = Seat(0, c)
    if seat.ways and (c.mode in ("isolated", "vxlan") or seat.apart):
        raise KvmnetError(f"{c.name}: an uplink of two ways is one of kvmnet's, in the modes nat, routed, bridge and macvtap", f"leave uplink={seat.ways} away")
    if seat.ways == "rstp" and c.mode != "bridge":
        raise KvmnetError(f"{c.name}: RSTP is for networks of mode bridge", "write mode=bridge")
    if seat.ways not in ("", "rstp") and (lacks := features(Paths.from_environment().run / "features.json")["bond"]):
        raise HostCannot(f"{c.name}: {lacks}", "uplink=rstp mode=bridge needs no bond")
    if not seat.ways and any(SCENARIOS[name].loses for name in wish.scenarios):
        raise KvmnetError(f"{c.name}: failover needs an uplink of two ways", f"write uplink=WAY in each configuration; WAY is one of {', '.join(WAYS)}")


def guests(wish: Wish) -> int:
    """Guests of each configuration."""
    return 2 if Place.GUEST in wish.places else 1


def memory_free() -> int:
    """MiB that programs may still take."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    return 1 << 30


def tools(say: Say) -> Tools:
    """What guests and loads need; to be had before this process leaves the machine's network. Raises HostCannot."""
    return Tools.made(Paths.from_environment(), say)


def seat_of(number: int, c: Configuration) -> Seat:
    return DocumentSeat(number, c) if "document" in c.settings else Seat(number, c)


def kernel_settings(wish: Wish) -> dict[str, set[str]]:
    """Kernel settings that are varied -> their values."""
    found: dict[str, set[str]] = {}
    for n, c in enumerate(wish.configurations):
        for name, value in Seat(n, c).kernel.items():
            found.setdefault(name, set()).add(value)
    return found


def sit(record: Record, pen: Pen, folder: Path, have: Tools, progress: Progress, dials: Dials) -> None:
    """Measure what is missing of *record*, on a host made in *folder* and in the namespaces of this process.

    Raises KvmnetError, HostCannot; what was measured until then is in the record.
    """
    for name in ("state", "run", "etc"):
        os.environ[f"KVMNET_{name.upper()}_DIR"] = str(folder / name)
    host = Host()
    seats = [seat_of(n, c) for n, c in enumerate(record.wish.configurations)]
    ground = Ground(seats, guests(record.wish), have, host.paths, folder, dials)
    path = ground.document()
    now = versions(probe(host.paths).name, have.image.version, seats)
    if record.versions and record.taken and dict(record.versions) != now:
        changed = ", ".join(f"{k} {record.versions.get(k)} -> {v}" for k, v in now.items() if record.versions.get(k) != v)
        raise KvmnetError(f"the record was begun with other versions: {changed}", "begin a new run: kvmnet bench run")
    record.versions = now
    record.loads.append(round(os.getloadavg()[0], 2))
    pen.write({"versions": now}, {"load": record.loads[-1]})
    if record.wish.sizes and not record.configured:
        there = [by for by in WHO if by not in record.absent]
        record.configured = configured(there, record.wish.sizes, record.wish.rounds, folder, progress)
        pen.write({"configured": record.configured})
    progress("setting up the host", 0, 0)
    ground.wire()
    try:
        if ground.own:
            host.apply(host.plan(path), reach=("none",))
    except SpecError as wrong:
        told = "; ".join(f"{p.path}: {p.message}" + (f" ({p.hint})" if p.hint else "") for p in wrong.problems)
        raise KvmnetError(f"a configuration that kvmnet refuses: {told}", "leave it out") from wrong
    progress("starting guests", 0, 0)
    if names := [s.guest(n) for s in ground.own for n in range(1, ground.guests + 1)]:
        host.start_guests(names, lambda line: None)
    ground.populate(lambda paths: {name: status.pid for name, status in Host(paths).running().items()})
    Bench(record, pen, ground, progress).run()
