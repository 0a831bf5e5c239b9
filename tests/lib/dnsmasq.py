"""Networks with their dnsmasq in the test's namespace, by the compiler's own services()."""
from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping
from contextlib import suppress
from ipaddress import ip_interface, ip_network
from typing import Any

from kvmnet.drivers.dnsmasq.driver import DnsmasqDriver
from kvmnet.drivers.dnsmasq.process import all_processes, living
from kvmnet.engine.plan import Step, plan
from kvmnet.engine.resource import Key, Resource
from kvmnet.modes.model import NicOnNetwork
from kvmnet.modes.segment import Segment
from kvmnet.modes.services import services
from kvmnet.spec.guests import Nic
from kvmnet.spec.networks import Network
from lib.netns import sh

UPSTREAM = "192.0.2.53"


def nic(mac: str, ip: str = "", hostname: str = "", ip6: str = "", mtu: int = 1500) -> NicOnNetwork:
    return NicOnNetwork(vm=hostname or "vm", nic="nic0", tap=f"kvt-{mac[-5:]}", mac=mac, ip=ip, ip6=ip6,
                        hostname=hostname, mtu=mtu, declared=Nic(network="lan"))


def segment(nics: Iterable[NicOnNetwork] = (), *, name: str = "lan", mtu: int = 1500, address: str | None = None,
            address6: str | None = None, **network: Any) -> Segment:
    """A network of the document's own words, settled: 10.1.0.0/24 behind nat unless they say otherwise."""
    words: dict[str, Any] = {"mode": "nat", "uplink": "wan", **network}
    if not {"subnet", "subnet6"} & words.keys():
        words["subnet"] = "10.1.0.0/24"
    parsed = Network.model_validate(words)
    first = {f: str(ip_network(p)[1]) if p else "" for f, p in ((4, parsed.subnet), (6, parsed.subnet6))}
    return Segment(name=name, network=parsed, bridge=f"kvb-{name}", mtu=mtu,
                   address=first[4] if address is None else address,
                   address6=first[6] if address6 is None else address6, way_out="", nics=tuple(nics))


def wanted(*segments: Segment, resolvers: tuple[str, ...] = (UPSTREAM,)) -> dict[Key, Resource]:
    return {r.key: r for s in segments for r in services(s, resolvers)}


def make_bridge(one: Segment) -> None:
    """The segment's bridge with the host's addresses, as the compiler would make it."""
    sh(f"ip link add {one.bridge} type bridge; ip link set {one.bridge} mtu {one.mtu} up")
    for cidr in filter(None, (one.cidr, one.cidr6)):
        sh(f"ip addr add {cidr} dev {one.bridge} {'nodad' if ip_interface(cidr).version == 6 else ''}")
    sh(f"echo 0 > /proc/sys/net/ipv6/conf/{one.bridge}/accept_dad")


def apply(driver: DnsmasqDriver, want: Mapping[Key, Resource]) -> tuple[Step, ...]:
    """Plan and make it; afterwards nothing may be left to do."""
    seen = driver.observe(want)
    steps = plan(seen.state, want, seen.ours)
    driver.apply(steps, lambda done: None)
    after = driver.observe(want)
    assert plan(after.state, want, after.ours) == ()
    return steps


def stop_all() -> None:
    """End the dnsmasqs of this namespace, whatever the test left."""
    for pid in all_processes():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def pid_of(driver: DnsmasqDriver, network: str) -> int:
    return living(driver.files(network))
