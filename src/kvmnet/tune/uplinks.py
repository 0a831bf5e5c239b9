"""What a profile would have otherwise of the hardware below uplinks: ``ethtool:`` of the document. Pure."""
from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvmnet.drivers.ethtool.resources import NicTuning, most_of
from kvmnet.spec.cpus import NONE, joined
from kvmnet.spec.hardware import claims, tuned_nics
from kvmnet.spec.knobs import Profile
from kvmnet.spec.models import Spec
from kvmnet.tune.proposals import Proposal

ETHTOOL = "ethtool(8)"
SCALING = "Linux, Documentation/networking/scaling.rst"
SOON = 8
"""Microseconds until an interrupt, for latency: below the time that a packet of 1,500 bytes needs on a wire of 1 Gbit/s."""


def uplinks(profile: Profile, spec: Spec, seen: Mapping[str, NicTuning], cpus: int) -> Iterator[Proposal]:
    """*seen*: NIC -> what its driver says. What the driver does not offer, and what the document says already, is not proposed."""
    for name, uplink in spec.uplinks.items():
        claimed = claims(uplink)
        for nic in tuned_nics(uplink):
            if nic in seen:
                yield from (p for setting, p in of_nic(profile, f"uplinks.{name}", seen[nic], cpus) if setting not in claimed)


def of_nic(profile: Profile, path: str, nic: NicTuning, cpus: int) -> Iterator[tuple[str, Proposal]]:
    """(setting of a NicTuning, what is proposed)."""
    def proposal(place: str, value: str, why: str, source: str, risk: str) -> Proposal:
        where = place if place.startswith("steering.") else f"ethtool.{place}"
        return Proposal(f"{path}.{where}", now(nic, place), value, f"{nic.name}: {why}", source, risk)

    if profile in (Profile.THROUGHPUT, Profile.ROUTER):
        for setting, place in (("rx_ring", "rings.rx"), ("tx_ring", "rings.tx")):
            if (have := getattr(nic, setting)) and (most := most_of(nic, setting)) and have < most:
                yield setting, proposal(place, str(most), "a longer burst fits before a frame is dropped", ETHTOOL,
                                        "the link is down for a moment; packets may wait longer, and the cache holds less of the ring")
        if nic.adaptive_rx is False and nic.rx_usecs:    # a driver without a delay answers 0 and takes nothing
            yield "adaptive_rx", proposal("coalesce.adaptive_rx", "true", "fewer interrupts under load, none later than now without",
                                          ETHTOOL, "delays vary with the load; the driver may refuse it")
    if profile is not Profile.LATENCY:
        for setting, place in (("combined", "channels.combined"), ("rx_channels", "channels.rx")):
            if (have := getattr(nic, setting)) and (most := most_of(nic, setting)) and have < (wanted := min(most, cpus)):
                yield setting, proposal(place, str(wanted), f"a queue for each of {cpus} CPUs: flows are spread over them", SCALING,
                                        "the link is down for a moment; one flow alone becomes no faster")
    if profile is not Profile.LATENCY and nic.rps == (NONE,) and (most_of(nic, "rps") or cpus) < cpus:
        yield "rps", proposal("steering.receive", joined(range(cpus)), f"{most_of(nic, 'rps')} receive queue(s) for {cpus} CPUs: the kernel spreads flows "
                              "that come in over all of them", SCALING, "packets change the CPU, which costs time: worse where one CPU has enough; "
                              "with several queues the NIC spreads them better: ethtool.channels")
    if profile is Profile.LATENCY:
        if nic.rps not in (None, (NONE,)):
            yield "rps", proposal("steering.receive", NONE, "a packet is handled by the CPU that got the interrupt, without waking another", SCALING,
                                  "that CPU may not have enough for all flows")
        if nic.adaptive_rx:
            yield "adaptive_rx", proposal("coalesce.adaptive_rx", "false", "the driver no longer waits by its own judgement", ETHTOOL, "more interrupts")
        if nic.rx_usecs is not None and nic.rx_usecs > SOON:
            yield "rx_usecs", proposal("coalesce.rx_usecs", str(SOON), "a frame is told of sooner", ETHTOOL, "more interrupts, less throughput when busy")


def now(nic: NicTuning, place: str) -> str:
    setting = {"rings.rx": "rx_ring", "rings.tx": "tx_ring", "channels.combined": "combined", "channels.rx": "rx_channels"}.get(
        place, place.removeprefix("coalesce."))
    value = nic.rps if place == "steering.receive" else getattr(nic, setting)
    if isinstance(value, tuple):
        return value[0] if len(value) == 1 else f"[{', '.join(value)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
