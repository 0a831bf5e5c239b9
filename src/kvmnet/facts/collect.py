"""Facts of the host, read in bulk. Only reads."""
from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path

from kvmnet.drivers.ethtool.wire import read as hardware
from kvmnet.drivers.files.driver import services_in_use
from kvmnet.drivers.kinds import from_json, to_json
from kvmnet.drivers.linux.driver import LinuxDriver
from kvmnet.drivers.linux.resources import Address, Link, Route, Sysctl
from kvmnet.drivers.nftables.resources import NftTable
from kvmnet.drivers.wireguard.secrets import trouble
from kvmnet.engine.borrow import load_originals
from kvmnet.engine.driver import Seen
from kvmnet.engine.journal import Codec
from kvmnet.engine.resource import Key, Resource
from kvmnet.facts.features import features
from kvmnet.facts.lldp import link_neighbours
from kvmnet.facts.model import Facts
from kvmnet.host import run as host
from kvmnet.host.netlink import rules_name_devices
from kvmnet.host.paths import Paths
from kvmnet.host.process import namespace_id
from kvmnet.modes.uplink import uplink_sysctls
from kvmnet.spec.cpus import cpus, joined, numbers

LIMITS = {
    "gc_thresh3": "net/ipv4/neigh/default/gc_thresh3",
    "gc_thresh3_6": "net/ipv6/neigh/default/gc_thresh3",
    "nf_conntrack_max": "net/netfilter/nf_conntrack_max",
}
"""Limit -> where it is under /proc/sys. Those that this namespace does not show are left out."""

SWITCHES = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
"""IP version -> the switch that makes the whole host a router."""

CLIENTS = ("dhclient", "udhcpc", "dhcpcd", "systemd-networkd", "NetworkManager", "connmand")
WHOLE_HOST = frozenset({"dhcpcd", "systemd-networkd", "NetworkManager", "connmand"})
"""Daemons that look after every device unless their command line names one."""


def facts_of(seen: Seen, paths: Paths, *, users: Iterable[str] = (), uplinks: Collection[str] = (),
             tuned: Sequence[str] = (), secrets: Sequence[str] = (), settings: Sequence[str] = (),
             running: Mapping[str, tuple[str, ...]] | None = None) -> Facts:
    """Facts for compiling. ``seen``: everything observed. ``users``: names that the document gives.
    ``uplinks``: devices that join a bridge: what names them elsewhere is read too. ``tuned``: NICs whose hardware
    settings are read. ``secrets``: files that are looked at, not into. ``settings``: paths under /proc/sys that
    are read. ``running``: guests that run -> their NICs."""
    links = {r.name: r for r in seen.state.values() if isinstance(r, Link)}
    return Facts(
        state={**seen.state, **device_settings(links, seen, set(uplinks)),
               **{r.key: r for r in hardware(tuned, dict.fromkeys(tuned))},
               **{s.key: s for s in LinuxDriver(settings).observe_sysctls({}, links)}},
        features=features(paths.run / "features.json"),
        cpus=len(os.sched_getaffinity(0)),
        cpu_set=joined(os.sched_getaffinity(0)),
        cpu_numbers=cpu_numbers(),
        nodes=memory_nodes(),
        running=dict(running or {}),
        resolvers=resolvers(),
        users=uids(users),
        secrets={file: trouble(Path(file)) for file in secrets},
        limits=limits(),
        routing=routing(paths),
        services=services_in_use(paths),
        dhcp_clients=dhcp_clients(links) if any(
            isinstance(r, Address) and r.dynamic == "dhcp" for r in seen.state.values()) else {},
        link_neighbours=link_neighbours(paths),
        wireless=wireless(links),
        rules=policy_rules() if uplinks and rules_name_devices() else (),
        ruleset=foreign_ruleset(seen) if uplinks else "")


def wireless(links: Mapping[str, Link], root: Path = Path("/sys/class/net")) -> frozenset[str]:
    return frozenset(name for name, link in links.items() if link.type == "physical" and (root / name / "phy80211").exists())


def cpu_numbers() -> int:
    """One more than the largest number of a CPU that this machine may have."""
    with contextlib.suppress(OSError, ValueError):
        return max(numbers(Path("/sys/devices/system/cpu/possible").read_text().strip())) + 1
    return 0


def memory_nodes() -> str:
    """NUMA nodes that have memory; 0 of a kernel that knows none."""
    with contextlib.suppress(OSError, ValueError):
        return cpus(Path("/sys/devices/system/node/has_memory").read_text().strip())
    return "0"


def device_settings(links: Mapping[str, Link], seen: Seen, uplinks: Set[str]) -> dict[Key, Resource]:
    """Settings of the host's own devices that hold addresses, are ports of our bridges or are to be, and of
    the bridges that took them."""
    addressed = {r.dev for r in seen.state.values() if isinstance(r, Address)}
    asked: dict[str, None] = {}
    for link in links.values():
        if link.key in seen.ours or link.type == "loopback":
            continue
        master = link.master if link.master and Key(Link.kind, link.master) in seen.ours else ""
        if master or link.name in addressed or link.name in uplinks:
            asked.update(dict.fromkeys(uplink_sysctls(link.name, master or "default")))
    return {s.key: s for s in LinuxDriver(asked).observe_sysctls({}, links)}


def resolvers(etc: Path = Path("/etc/resolv.conf"),
              behind: Path = Path("/run/systemd/resolve/resolv.conf")) -> tuple[str, ...]:
    """Nameservers that others can use too: those behind a local stub (systemd-resolved), not the stub."""
    found = nameservers(etc)
    if found and all(a.startswith("127.") or a == "::1" for a in found):
        return nameservers(behind) or found
    return found


def nameservers(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    words = (line.split() for line in text.splitlines())
    return tuple(dict.fromkeys(w[1] for w in words if len(w) > 1 and w[0] == "nameserver"))


def uids(names: Iterable[str]) -> dict[str, int]:
    """User name -> uid, of those that exist."""
    found = {}
    for name in names:
        with contextlib.suppress(KeyError):
            found[name] = pwd.getpwnam(name).pw_uid
    return found


def limits(root: Path = Path("/proc/sys")) -> dict[str, int]:
    found = {}
    for name, path in LIMITS.items():
        with contextlib.suppress(OSError, ValueError):
            found[name] = int((root / path).read_text(encoding="ascii"))
    return found


def bridge_netfilter(root: Path = Path("/proc/sys/net/bridge")) -> frozenset[int]:
    """IP versions whose frames pass the IP hooks on every bridge of this namespace."""
    found = set()
    for version, name in ((4, "bridge-nf-call-iptables"), (6, "bridge-nf-call-ip6tables")):
        with contextlib.suppress(OSError):
            if (root / name).read_text(encoding="ascii").strip() == "1":
                found.add(version)
    return frozenset(found)


def routing(paths: Paths, root: Path = Path("/proc/sys")) -> frozenset[int]:
    """IP versions that the host forwards, and that it did before we switched anything on."""
    lent = load_originals(paths.originals, Codec(to_json, from_json))
    found = set()
    for version, name in SWITCHES.items():
        before = lent.get(Key(Sysctl.kind, name))
        value = before.value.value if before and isinstance(before.value, Sysctl) else None
        with contextlib.suppress(OSError):
            if (value or (root / name).read_text(encoding="ascii").strip()) != "0":
                found.add(version)
    return frozenset(found)


def dhcp_clients(links: Iterable[str], proc: Path = Path("/proc")) -> dict[str, str]:
    """Device -> DHCP daemon of this network namespace that looks after it; '' for one that does for all."""
    devices, found = set(links), {}
    here = namespace_id() if proc == Path("/proc") else None
    for pid, words in command_lines(proc):
        if Path(words[0]).name == "busybox":
            words = words[1:] or words
        name = Path(words[0]).name
        if name not in CLIENTS or (here is not None and namespace_of(proc, pid) != here):
            continue
        named = devices.intersection(words[1:])
        for device in named or ({""} if name in WHOLE_HOST else set()):
            found[device] = f"{name}, pid {pid}"
    return found


def command_lines(proc: Path) -> Iterator[tuple[int, list[str]]]:
    for entry in proc.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if words[0]:
                    yield int(entry.name), words


def namespace_of(proc: Path, pid: int) -> int | None:
    try:
        return (proc / str(pid) / "ns" / "net").stat().st_ino
    except OSError:
        return None


def policy_rules() -> tuple[str, ...]:
    """Policy rules of both families, as ``ip rule`` prints them."""
    return tuple(line.strip() for family in ("-4", "-6")
                 for line in host.run(("ip", family, "rule", "show")).splitlines())


def foreign_ruleset(seen: Seen) -> str:
    """nftables of the host without our tables and without the contents of sets."""
    return "".join(f"table {r.name} {{\n{r.text}}}\n" for r in seen.state.values()
                   if isinstance(r, NftTable) and not r.name.split()[1].startswith("kvmnet"))


def default_device() -> str | None:
    """Device of the host's IPv4 default route, or None."""
    routes = (r for r in LinuxDriver().observe({}).state.values() if isinstance(r, Route))
    return next((r.dev for r in routes if r.dst == "default" and r.family == 4 and r.dev), None)
