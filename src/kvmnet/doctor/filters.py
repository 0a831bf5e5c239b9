"""Filters of tc at a device, judged for one packet (net/sched/cls_api.c, tcf_classify()). Pure.

Known are the classifiers u32 without hash tables of its own, matchall, flower and programs of classic BPF, and the actions gact, mirred
and police. A program of extended BPF, a chain, an action that changes the packet: unknown, followed both ways, and said where the ends differ.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address, ip_network
from typing import Any

from kvmnet.doctor.cbpf import carried_out
from kvmnet.doctor.finding import Certainty, Finding, Severity
from kvmnet.doctor.packet import ARP, IPV4, IPV6, VLAN, Packet, Special
from kvmnet.doctor.rules.capacity import narrow, netem, roomless, slow
from kvmnet.doctor.trip import Trip
from kvmnet.doctor.view import Json
from kvmnet.drivers.macvtap.resources import PROGRAM
from kvmnet.drivers.tc.resources import PREF
from kvmnet.drivers.tc.wire import parse_filters
from kvmnet.records import dataclass, replace

PROTOCOLS = {"all": 0, "ip": IPV4, "ipv6": IPV6, "arp": ARP, "802.1Q": VLAN}
NUMBERS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}
ENDS = {"drop": "drop", "shot": "drop", "pass": "pass", "ok": "pass", "stolen": "away", "trap": "away"}
"""Control action -> what becomes of the packet; others go on (pipe: next action, continue: next filter)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the filters of one place do with a packet."""

    end: str = "pass"
    """pass, drop, away (redirected to ``to``) or unknown."""
    text: str = ""
    """The filter that decided."""
    to: str = ""
    pref: int = 0
    gate: bool = False
    """It is a macvtap's gate, of kvmnet's own."""
    limits: tuple[str, ...] = ()
    """Policers that let it pass as long as their rate is not reached."""


DIRECT = {0: "pass", 2: "drop", 4: "away", 7: "unknown", 8: "away"}
"""What a program with direct action returns (TC_ACT_*, linux/pkt_cls.h); after all else the next filter decides (cls_bpf_exec_opcode())."""


def judge(rows: Iterable[Json], packet: Packet, mark: int | None = None) -> Outcome:
    """The filters in their order, the first that decides. One of which nobody can tell whether it matches is followed both ways.
    ``mark``: the packet's, None where it is not known."""
    limits: list[str] = []
    doubts: list[Outcome] = []
    final = Outcome()
    for row in rows:
        if "options" not in row or not matches_protocol(row, packet) or is_table(row):
            continue
        if row.get("kind") == "bpf":
            matched, found = by_program(row, packet, mark, limits)
        else:
            matched = CLASSIFIERS.get(str(row.get("kind")), unknown)(row["options"], packet)
            found = acted(row, limits) if matched is not False else Outcome()
        found = replace(found, pref=int(row.get("pref", 0)))
        if matched and found.end != "unknown" and found.text:
            final = found
            break
        if matched is not False and found.text:
            doubts.append(found)
    unsure = next((d for d in doubts if d.end != final.end), None)
    return replace(Outcome("unknown", unsure.text) if unsure else final, limits=tuple(limits))


def is_table(row: Json) -> bool:
    """A hash table of u32, which is no filter itself."""
    return row.get("kind") == "u32" and "ht_divisor" in row["options"] and "match" not in row["options"]


def matches_protocol(row: Json, packet: Packet) -> bool:
    wanted = PROTOCOLS.get(str(row.get("protocol", "all")))
    return wanted is None or wanted in (0, VLAN if packet.tagged else packet.protocol)


def by_program(row: Json, packet: Packet, mark: int | None, limits: list[str]) -> tuple[bool | None, Outcome]:
    """Whether a program matches, and what becomes of the packet; it may decide by itself (direct action)."""
    insns = (row["options"].get("bytecode") or {}).get("insns") or ()
    result = carried_out(insns, packet, mark)
    if not row["options"].get("direct-action"):
        return (None if result is None else bool(result)), acted(row, limits) if result != 0 else Outcome()
    if result is None:
        return None, Outcome("unknown", text(row))
    gate = ",".join(f"{i['code']} {i['jt']} {i['jf']} {i['k']}" for i in insns) == PROGRAM
    return (True, Outcome(DIRECT[result], text(row), gate=gate)) if result in DIRECT else (False, Outcome())


def acted(row: Json, limits: list[str]) -> Outcome:
    """What the actions of a filter that matches do; without any it is classified, and passes. Without text: the next filter decides."""
    for action in row["options"].get("actions", ()):
        kind, control = str(action.get("kind", "")), str((action.get("control_action") or {}).get("type", ""))
        if kind == "mirred":
            if action.get("mirred_action") == "redirect":
                return Outcome("away", text(row), str(action.get("to_dev", "")))
        elif kind == "police":
            limits.append(text(row))
        elif kind == "gact" and (action.get("prob") or {}).get("random_type", "none") in ("none", ""):
            if control in ENDS:
                return Outcome(ENDS[control], text(row))
            if control == "continue":
                return Outcome()
            if control not in ("pipe", ""):
                return Outcome("unknown", text(row))
        elif kind in ("skbedit", "connmark", "sample", "ctinfo"):
            continue
        else:
            return Outcome("unknown", text(row))
    return Outcome("pass", text(row))


def text(row: Json) -> str:
    actions = [f"{a.get('kind')} {a.get('mirred_action') or (a.get('control_action') or {}).get('type') or ''}{' to ' + a['to_dev'] if a.get('to_dev') else ''}".strip() for a in row["options"].get("actions", ())]
    keys = row["options"].get("keys") or [f"{m.get('value')}/{m.get('mask')} at {m.get('off')}" for m in matches(row["options"])]
    shown = " ".join(f"{k} {v}" for k, v in keys.items()) if isinstance(keys, Mapping) else ", ".join(keys)
    return f"protocol {row.get('protocol')} pref {row.get('pref')} {row.get('kind')} {shown}{': ' if actions else ''}{', '.join(actions)}".strip()


# -- classifiers: True, False, None where it cannot be told ----------------------------------------

def matches(options: Json) -> list[Json]:
    """Matches of u32: tc repeats the key in one object, and a capture keeps them all in ``matches``."""
    some = options.get("matches") or ([options["match"]] if "match" in options else [])
    return [m for m in some if isinstance(m, Mapping)]


def u32(options: Json, packet: Packet) -> bool | None:
    if "link" in options or not matches(options) or any(m.get("offmask") for m in matches(options)):
        return None
    for match in matches(options):
        mask, wanted = int(str(match["mask"]), 16), int(str(match["value"]), 16)
        found = packet.bits("nh", int(match.get("off", 0)) * 8, 32)
        if mask and (isinstance(found, Special) or found & mask != wanted):
            return False
    return True


def flower(options: Json, packet: Packet) -> bool | None:
    known: bool | None = True
    for key, value in (options.get("keys") or {}).items():
        said = FLOWER[key](value, packet) if key in FLOWER else None
        if said is False:
            return False
        known = None if said is None else known
    return known


def unknown(options: Json, packet: Packet) -> bool | None:
    return None


CLASSIFIERS: Mapping[str, Callable[[Json, Packet], bool | None]] = {"u32": u32, "flower": flower, "matchall": lambda options, packet: True}


def within(address: str) -> Callable[[Any, Packet], bool | None]:
    def look(value: Any, packet: Packet) -> bool | None:
        own = getattr(packet, address)
        try:
            network = ip_network(str(value), strict=False)
        except ValueError:
            return None
        return bool(own) and ip_address(own).version == network.version and ip_address(own) in network
    return look


def port(place: int) -> Callable[[Any, Packet], bool | None]:
    def look(value: Any, packet: Packet) -> bool | None:
        first, _, last = str(value).partition("-")
        return int(first) <= packet.ports[place] <= int(last or first) if first.isdigit() and (last or first).isdigit() else None
    return look


def mac(place: int) -> Callable[[Any, Packet], bool | None]:
    return lambda value, packet: None if "/" in str(value) else packet.macs[place] == str(value).lower()


FLOWER: Mapping[str, Callable[[Any, Packet], bool | None]] = {
    "eth_type": lambda value, packet: packet.protocol == {"ipv4": IPV4, "ipv6": IPV6, "arp": ARP}[value] if value in ("ipv4", "ipv6", "arp") else None,
    "ip_proto": lambda value, packet: packet.upper is not None and packet.upper[0] == NUMBERS[value] if value in NUMBERS else None,
    "src_ip": within("source"), "dst_ip": within("target"), "src_port": port(0), "dst_port": port(1), "dst_mac": mac(0), "src_mac": mac(1),
    "vlan_id": lambda value, packet: packet.vlan == int(value) if str(value).isdigit() else None,
}
"""Key of flower (tc-flower(8)) -> whether the packet has that."""


# -- on the path -----------------------------------------------------------------------------------

def filters(trip: Trip, dev: str, direction: str) -> None:
    """What programs and filters at a device do with the packet."""
    if direction == "ingress":
        program(trip, dev)
    else:
        if (left := roomless(trip.scene.links.get(dev, {}))) and not trip.asked:
            trip.find(left)
        for row in trip.scene.part("qdiscs"):
            if row.get("dev") == dev and not trip.asked and (left := stands(trip, row)):
                trip.find(left)
    for place in trip.scene.part("filters"):
        if (place["dev"], place["direction"]) != (dev, direction):
            continue
        for found in parse_filters(dev, place["filters"], direction):
            detour(trip, dev, found.to or "", direction)
        said(trip, dev, direction, judge([f for f in place["filters"] if f.get("pref") != PREF], trip.packet, trip.context.mark if isinstance(trip.context.mark, int) else None))


def stands(trip: Trip, row: Json) -> Finding | None:
    """A queue that loses the packet, or keeps it."""
    mtu, size = trip.scene.mtu(str(row["dev"])), len(trip.packet.frame)
    found = [f for f in ((netem(row),) if row.get("kind") == "netem" else (narrow(row, mtu, size), slow(trip.scene, row, mtu, size))) if f]
    return min(found, key=lambda f: f.rank[:2], default=None)


def said(trip: Trip, dev: str, direction: str, outcome: Outcome) -> None:
    shown = f"tc -s filter show dev {dev} {direction}: {outcome.text}"
    if outcome.limits and not trip.asked:
        trip.blocks("limited", dev, f"a policer at {direction} of {dev} lets the packet pass as long as its rate is not reached", "a rate is used up by other packets, which cannot be told from here", *outcome.limits, severity=Severity.NOTE)
    if outcome.end == "drop" and outcome.gate:
        trip.blocks("gate-closed", dev, f"no guard has judged what is sent by {dev}, so its gate drops it", "a macvtap's gate lets pass what rules at its egress have marked; their hook is gone, or hangs on another device of this name", shown,
                    f"nft list chain netdev kvmnet egress_{dev}", fix=("kvmnet apply",))
    elif outcome.end == "drop":
        trip.blocks("tc-filter", dev, f"a filter of tc drops it at {direction} of {dev}", "filters of tc stand before the bridge and every rule of a firewall at ingress, behind them at egress", shown,
                    fix=(f"tc filter del dev {dev} {direction} pref {outcome.pref}",))
    elif outcome.end == "away" and (not outcome.to or outcome.to == "*" or not trip.scene.up(outcome.to)):
        what = f"{outcome.to}, which is {'down' if outcome.to in trip.scene.links else 'gone'}" if outcome.to not in ("", "*") else "a device that is gone"
        trip.blocks("tc-filter", dev, f"a filter of tc sends it from {direction} of {dev} to {what}", "what is redirected to a device that is not up is dropped", shown, fix=(f"tc filter del dev {dev} {direction} pref {outcome.pref}",))
    elif outcome.end == "away" and trip.scene.kind(outcome.to) == "ifb":
        return      # it comes back from there (drivers/net/ifb.c)
    elif outcome.end == "away":
        trip.blocks("tc-filter", dev, f"a filter of tc takes it away at {direction} of {dev}{', to ' + outcome.to if outcome.to else ''}", "what is redirected does not go on here; what becomes of it there is not followed", shown, certainty=Certainty.LIKELY, fix=(f"tc filter del dev {dev} {direction} pref {outcome.pref}   # where nobody needs it",))
    elif outcome.end == "unknown":
        trip.blocks("tc-filter", dev, f"a filter of tc at {direction} of {dev} may drop or redirect it", "it asks or does what is not judged here (a program of BPF, a chain, a change of the packet); kvmnet why --prove tries it with a packet", shown, certainty=Certainty.UNKNOWN)


def program(trip: Trip, dev: str) -> None:
    """XDP runs before everything else. What a program does cannot be read."""
    told = trip.scene.links.get(dev, {}).get("xdp")
    if told and not trip.asked:
        number = (told.get("prog") or {}).get("id", "?")
        trip.blocks("xdp-program", dev, f"an XDP program stands at {dev}: it may drop or redirect the packet", "it runs before the bridge and every rule; what it does is not judged here; kvmnet why --prove tries it with a packet",
                    f"ip link show {dev}: xdp prog/xdp id {number}", f"bpftool prog show id {number}", certainty=Certainty.UNKNOWN)


def detour(trip: Trip, dev: str, to: str, side: str) -> None:
    """Frames that come in by *dev*, or that it sends, go through the queue of *to* first (rates)."""
    if not trip.scene.up(to):
        what = f"{to} is {'down' if to in trip.scene.links else 'gone'}" if to else "the device with it is gone"
        trip.blocks("detour-astray", dev, f"what {'comes in by' if side == 'ingress' else 'leaves by'} {dev} takes a detour by the queue of its rate, and {what}",
                    "frames that are redirected to a device that is not up are dropped", f"tc -s filter show dev {dev} {side}", fix=("kvmnet apply",))
