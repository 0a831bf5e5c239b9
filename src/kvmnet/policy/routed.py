"""What the host routes or sends to a guest, judged by the guest's groups and tenant before connection tracking notes it. Pure.

A flow enters the kernel's table when its first packet has passed inet postrouting; the bridge's output hook, which knows the
receiver's port, comes later. What it refuses there would leave a flow behind, and whatever the receiver then sends with these
addresses and ports would pass as its reply: past ``egress``, and past the tenants of both. So the same rules are asked at the end of
inet postrouting, behind address translation, where the packet is the one that the bridge will see; there the receiver is known
by its bridge and its address, the sender by the number in the mark. What passes is counted by the bridge alone.

Prefixes of NICs and addresses that several may use (``Stretch``) are looked up behind single addresses, as intervals in the text: they
are few. NICs that share one must be judged alike (``spec.rules.groups.told_apart``); where they are not, nothing begins there.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network
from string import Template
from typing import TypeAlias
from zlib import crc32

from kvmnet.drivers.nftables.resources import NftTable
from kvmnet.drivers.nftables.tables import ROUTED
from kvmnet.policy.flows import Policy, Rule
from kvmnet.policy.groups import ALWAYS, LOGGED, Matches, Tracking, chain, ends, kinds, sender
from kvmnet.policy.marks import GUEST, NIC
from kvmnet.records import dataclass, replace
from kvmnet.spec.bounds import MOST_GROUPS

FAMILIES = ((4, "ip"), (6, "ip6"))
Network: TypeAlias = IPv4Network | IPv6Network
Judged: TypeAlias = tuple[str, tuple[str, ...], bool]
"""Tenant, groups, and whether what they refuse is logged."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Addresses on a bridge that a NIC may use beside its own, or that several may."""

    bridge: str
    prefix: Network
    number: int
    """The NIC's; of several the first one's, for what is counted."""
    judged: Judged | None
    """None: NICs that are judged differently share it, so nobody's rules hold."""

    @property
    def place(self) -> str:
        return f'"{self.bridge}" . {self.prefix}'

    @property
    def chain(self) -> str:
        return f"to_{crc32(repr(self.judged).encode()):08x}"


TEXT = Template("""\
set withheld { typeof meta mark; size 262144; flags dynamic,timeout; counter; timeout 1d; }
${sets}
chain postrouting {
    type filter hook postrouting priority 200; policy accept;
    ct state != new accept
${crossing}
${always}
    meta nfproto ipv4 goto judge4
    meta nfproto ipv6 goto judge6
}
""".replace("${crossing}\n", "${crossing}"))
JUDGE = Template("""\
chain judge${v} {
    oifname . ${ip} daddr vmap @tenant${v}
    udp sport ${served} accept
${into}
    oifname . ${ip} daddr vmap @end${v}
${stretches}
}
""")
SERVED = {4: "67 udp dport 68", 6: "547 udp dport 546"}
REASONS = {"unheard": 19, "unheard_tenant": 20}
"""Chain -> number of its reason (``policy.guard.REASONS``)."""
SHIFT = 16
"""Bits of the NIC's number below the reason's, in what is counted."""


def routed_table(policy: Policy, tracking: Tracking, zones: Mapping[str, int], sets: Iterable[str],
                 stretches: Sequence[Stretch]) -> NftTable:
    """``zones``: bridge -> zone of what only crosses it, which bridge netfilter lets come by here too: it has been judged.
    ``stretches`` do not overlap."""
    crossing = ", ".join(f'"{bridge}" . {zone}' for bridge, zone in sorted(zones.items()))
    crosses = tracking is Tracking.NETFILTER and bool(crossing)
    lines = list(set_lines(policy, sets))
    if crosses:
        lines.append(f"set crossing {{ typeof oifname . ct zone; elements = {{ {crossing} }}; }}")
    parts = [TEXT.substitute(sets="\n".join(lines), always=ALWAYS, crossing="    oifname . ct zone @crossing accept\n" if crosses else "").rstrip()]
    for v, ip in FAMILIES:
        into = "\n".join(f"    oifname . {ip} daddr vmap @in{v}_{n}" for n in range(1, MOST_GROUPS + 1))
        parts.append(JUDGE.substitute(v=v, ip=ip, served=SERVED[v], into=into, stretches="\n".join(
            f"    {line}" for line in interval(v, "vmap", stretches, lambda s: f"goto {s.chain}"))).replace("\n\n", "\n").rstrip())
    parts += group_chains(policy)
    parts += stretch_chains(stretches)
    parts += refusals(stretches)
    return NftTable(name=ROUTED, text="\n".join(parts) + "\n")


def set_lines(policy: Policy, sets: Iterable[str]) -> Iterator[str]:
    for v, ip in FAMILIES:
        key = f"typeof oifname . {ip} daddr"
        yield f"map nic{v} {{ {key} : meta mark; }}"
        for name in (f"tenant{v}", f"end{v}", *(f"in{v}_{n}" for n in range(1, MOST_GROUPS + 1))):
            yield f"map {name} {{ {key} : verdict; }}"
        yield f"set logged{v} {{ {key}; }}"
        yield from (f"set r{v}_{name} {{ {key}; }}" for name in policy.groups)
        yield from (f"set a{v}_{name} {{ type ipv{v}_addr; flags interval; }}" for name in sets)
    yield from (f"set g_{name} {{ typeof meta mark; }}" for name in policy.groups)
    yield from (f"set n_{name} {{ typeof meta mark; }}" for name in policy.tenants)


def group_chains(policy: Policy) -> Iterator[str]:
    for name, rules in policy.groups.items():
        yield chain(f"in_{name}", [f"{words} accept".strip() for rule in rules.ingress for words in matches(rule)])
    for name, crossings in policy.tenants.items():
        yield chain(f"t_{name}", [
            f"meta mark & {GUEST:#010x} == 0 return", f"meta mark & {NIC:#010x} @n_{name} return",
            *(f"{words} return".strip() for rule in crossings for words in matches(rule)), "goto unheard_tenant"])


def stretch_chains(stretches: Iterable[Stretch]) -> Iterator[str]:
    for name, judged in {s.chain: s.judged for s in stretches}.items():
        tenant, groups, logged = judged or ("", (), False)
        lines = [f"jump t_{tenant}"] if tenant else []
        lines += [f"jump in_{group}" for group in groups]
        if groups or not judged:
            lines += [f'{LOGGED} "kvmnet refused to a guest: "'] if logged else []
            lines.append("goto unheard")
        yield chain(name, lines)


def interval(v: int, word: str, stretches: Iterable[Stretch], value: Callable[[Stretch], str]) -> list[str]:
    """A look for the packet's bridge and destination among *stretches* of one family; nothing where there are none."""
    items = [f"{s.place} : {value(s)}" for s in stretches if s.prefix.version == v]
    return [f"oifname . {dict(FAMILIES)[v]} daddr {word} {{ {', '.join(items)} }}"] if items else []


def matches(rule: Rule) -> Iterator[str]:
    """As ``groups.matches``; the group that the receiver must be in is known by bridge and address here."""
    for version, only in receivers(rule.to):
        for other, kind in kinds(rule):
            for third, end in ends(rule.peers, sender):
                if len({version, other, third} - {0}) < 2:
                    yield f"{only} {end} {kind}".strip()


def receivers(to: str) -> Matches:
    name = to.partition(":")[2]
    return [(v, f"oifname . {ip} daddr @r{v}_{name}") for v, ip in FAMILIES] if to else [(0, "")]


def refusals(stretches: Sequence[Stretch]) -> Iterator[str]:
    """Refused packets, counted by the receiver's number and the reason."""
    for name, reason in REASONS.items():
        yield chain(name, (
            *(f'oifname . {ip} daddr @logged{v} {LOGGED} "kvmnet refused to a guest: "' for v, ip in FAMILIES),
            *(f"meta mark set oifname . {ip} daddr map @nic{v} meta mark set meta mark | {reason << SHIFT:#010x} goto withhold"
              for v, ip in FAMILIES),
            *(f"meta mark set {line} meta mark set meta mark | {reason << SHIFT:#010x} goto withhold"
              for v, _ in FAMILIES for line in interval(v, "map", stretches, lambda s: f"{s.number:#010x}")), "drop"))
    yield chain("withhold", ("update @withheld { meta mark }", "drop"))


def apart(claims: Iterable[Stretch]) -> list[Stretch]:
    """*claims* of single NICs as stretches that do not overlap, without those that nobody judges."""
    found: list[Stretch] = []
    for claim in sorted(claims, key=lambda s: (s.bridge, s.prefix.version, int(s.prefix.network_address), s.prefix.prefixlen, s.number)):
        last = found[-1] if found else None
        if last is None or last.bridge != claim.bridge or not within(claim.prefix, last.prefix):
            found.append(claim)
        elif last.judged != claim.judged:
            found[-1] = replace(last, judged=None)
    return [s for s in found if s.judged is None or s.judged[0] or s.judged[1]]


def within(inner: Network, outer: Network) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]
