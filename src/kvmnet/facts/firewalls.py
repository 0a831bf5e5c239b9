"""Foreign firewalls that lose our traffic: which chain, which traffic, and what to add there. Pure.

An accept of ours never overrules a drop in another table at the same hook (nft(8), VERDICT STATEMENTS), so
Docker's, ufw's or firewalld's chains have to let guests pass themselves. A few packets that must pass are
walked through every foreign chain. Only conditions on devices, connection state, protocol and port
are judged; a rule with any other condition is taken for one that does not match.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from fnmatch import fnmatchcase

from kvmnet.drivers.nftables.resources import NftTable
from kvmnet.drivers.nftables.wire import CHAIN, HOOK, base_chains
from kvmnet.engine.driver import Seen
from kvmnet.modes.segment import Segment
from kvmnet.records import dataclass
from kvmnet.spec.names import BRIDGE
from kvmnet.spec.networks import Mode

HOOKS = {"forward": ("prerouting", "forward", "postrouting"), "input": ("prerouting", "input")}
"""Way of a packet -> the hooks that it passes."""
FAMILIES = {4: ("ip", "inet"), 6: ("ip6", "inet")}
DEPTH = 16
"""Most chains within chains that nft allows (NFT_JUMP_STACK_SIZE)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """One packet that has to pass, and how to say so."""

    way: str
    """forward or input."""
    version: int
    iif: str
    oif: str = ""
    state: str = "new"
    proto: str = ""
    port: int = 0
    words: str

    @property
    def bridge(self) -> str:
        """The end of it that is a guest network."""
        return self.oif if self.oif.startswith(BRIDGE) else self.iif


@dataclass(frozen=True, slots=True)
class Finding:
    """A chain of somebody else's that loses packets of ours."""

    table: str
    chain: str
    hook: str
    why: str
    """``policy drop``, or the rule."""
    lost: tuple[str, ...]
    cure: str

    def __str__(self) -> str:
        return (f"{self.table} {self.chain} ({self.why}) drops {', '.join(self.lost)}; kvmnet leaves foreign rules "
                f"alone, and its own still protect the host. To let it pass: {self.cure}")


@dataclass(frozen=True, slots=True)
class Rule:
    conditions: tuple[tuple[str, str, bool], ...]
    """(what, value, whether it is to be equal)."""
    verdict: str
    target: str
    text: str


def packets(segments: Iterable[Segment], bridged: Set[int] = frozenset()) -> list[Packet]:
    """What has to pass for the networks of a document: one packet of each kind. ``bridged``: IP versions
    whose frames pass the IP hooks on every bridge (net.bridge.bridge-nf-call-iptables, -ip6tables)."""
    found = []
    for s in segments:
        if not s.bridge:
            continue
        found += [Packet(way="forward", version=version, iif=s.bridge, oif=s.bridge,
                         words=f"what guests of {s.name} send each other (bridge netfilter is on for all bridges)")
                  for version in sorted(bridged) if not s.parent]
        if not s.bridge.startswith(BRIDGE):
            continue
        for version, address in ((4, s.address), (6, s.address6)):
            if not address:
                continue
            if s.network.dhcp.enabled:
                found.append(Packet(way="input", version=version, iif=s.bridge, proto="udp",
                                    port=67 if version == 4 else 547, words=f"DHCP of {s.name}"))
            if s.network.dns.enabled:
                found.append(Packet(way="input", version=version, iif=s.bridge, proto="udp", port=53,
                                    words=f"DNS of {s.name}"))
            found += through(s, version)
    return found


def through(s: Segment, version: int) -> list[Packet]:
    """What the host forwards for one network and family."""
    if s.network.mode not in (Mode.NAT, Mode.ROUTED) or not s.way_out:
        return []
    asked = s.network.mode is Mode.ROUTED or bool(s.network.forwards)
    return [Packet(way="forward", version=version, iif=s.bridge, oif=s.way_out, words=f"what {s.name} sends outside"),
            Packet(way="forward", version=version, iif=s.way_out, oif=s.bridge, state="new" if asked else "established",
                   words=f"what comes for {s.name} from outside")]


def own_forwards(segments: Iterable[Segment], bridged: Set[int]) -> list[str]:
    """Notes on forwarded ports that their own guest cannot use while bridge netfilter is on everywhere: the
    kernel then bridges what is redirected to the same bridge (br_nf_pre_routing_finish()), and a bridge
    sends no frame back to the port that it came by."""
    return [f"net.bridge.bridge-nf-call-iptables is on for every bridge: guests of {s.name} reach ports forwarded to "
            "others, but not those forwarded to themselves, by the host's address" for s in segments
            if bridged and s.network.forwards]


def foreign_tables(seen: Seen) -> list[NftTable]:
    """The tables that are not ours."""
    return [r for r in seen.state.values() if isinstance(r, NftTable) and r.key not in seen.ours]


def blockers(tables: Iterable[NftTable], wanted: Iterable[Packet]) -> list[Finding]:
    """The foreign chains that lose any of the *wanted* packets, in the order of *tables*."""
    wanted = list(wanted)
    found = []
    for table in tables:
        family, name = table.name.split(maxsplit=1)
        if name.startswith("kvmnet") or not (bases := base_chains(table)):
            continue
        chains = {m[1]: [read_rule(line) for line in m[2].splitlines() if line.strip() and not HOOK.search(line)]
                  for m in CHAIN.finditer(table.text or "")}
        for chain in bases:
            lost: dict[str, str] = {}
            bridges: set[str] = set()
            for packet in wanted:
                if chain.hook in HOOKS[packet.way] and family in FAMILIES[packet.version]:
                    verdict = walk(chains, chain.chain, packet) or f"policy {chain.policy}"
                    if verdict not in ("accept", "policy accept"):
                        lost.setdefault(packet.words, verdict)
                        bridges.add(packet.bridge)
            if lost:
                found.append(Finding(table.name, chain.chain, chain.hook, next(iter(lost.values())), tuple(lost),
                                     cure(table.name, chain.chain, chain.hook, chains, bridges)))
    return found


# -- the walk --------------------------------------------------------------------------------------

def walk(chains: Mapping[str, list[Rule]], chain: str, packet: Packet, depth: int = 0) -> str:
    """``accept``, the text of the rule that drops, or '' when the chain ends without a word."""
    for rule in chains.get(chain, ()):
        if not all(holds(what, value, packet) is equal for what, value, equal in rule.conditions):
            continue
        match rule.verdict:
            case "accept":
                return "accept"
            case "drop" | "reject":
                return rule.text
            case "return":
                return ""
            case "jump" | "goto" if depth < DEPTH:
                verdict = walk(chains, rule.target, packet, depth + 1)
                if verdict or rule.verdict == "goto":
                    return verdict
    return ""


CONDITION = re.compile(
    r"(?P<what>iifname|oifname|iif|oif|ct state|meta l4proto|ip protocol|ip6 nexthdr|meta nfproto|tcp dport|udp dport)"
    r" (?P<no>!= )?(?:(?P<vmap>vmap )?\{ (?P<set>[^}]*) \}|(?P<one>\"[^\"]*\"|[^\s{]+))")
NEUTRAL = re.compile(r'counter(?: packets \d+ bytes \d+)?|comment "[^"]*"|log(?: (?:prefix "[^"]*"|level \S+|flags \S+|group \d+))*|'
                     r"limit rate \S+(?: burst \d+ \S+)?(?= log)|# .*$")
VERDICT = re.compile(r"(?P<verdict>accept|drop|reject|return|jump|goto)\b(?: (?P<target>[^\s]+))?.*$")


def read_rule(line: str) -> Rule:
    """One line of nft's listing; with a condition that never holds where there is more than we judge."""
    text = line.strip()
    rest = NEUTRAL.sub(" ", text)
    conditions: list[tuple[str, str, bool]] = []
    verdict, target = "", ""
    while rest := rest.strip():
        if found := CONDITION.match(rest):
            if found["vmap"]:
                return state_map(found["what"], found["set"], text)
            conditions.append((found["what"], found["set"] or found["one"], not found["no"]))
            rest = rest[found.end():]
        elif found := VERDICT.match(rest):
            verdict, target = found["verdict"], found["target"] or ""
            break
        else:
            return Rule((("unknown", "", True),), "", "", text)
    return Rule(tuple(conditions), verdict, target, text)


def state_map(what: str, entries: str, text: str) -> Rule:
    """``ct state vmap { established : accept, ... }`` as the rule for what it accepts."""
    accepted = [key.strip() for key, _, verdict in (e.partition(":") for e in entries.split(","))
                if verdict.strip() == "accept"]
    return Rule(((what, ",".join(accepted), True),), "accept", "", text)


def holds(what: str, value: str, packet: Packet) -> bool | None:
    """Whether a condition holds for *packet*; None, which is neither, when it cannot be judged."""
    values = [v.strip().strip('"') for v in value.split(",")]
    match what:
        case "iifname" | "iif":
            return any(fnmatchcase(packet.iif, v) for v in values)
        case "oifname" | "oif":
            return any(fnmatchcase(packet.oif, v) for v in values)
        case "ct state":
            return packet.state in values
        case "meta l4proto" | "ip protocol" | "ip6 nexthdr":
            return packet.proto in values if packet.proto else None
        case "meta nfproto":
            return f"ipv{packet.version}" in values
        case "tcp dport" | "udp dport":
            return what.startswith(packet.proto) and any(within(packet.port, v) for v in values) if packet.proto else None
    return None


def within(port: int, text: str) -> bool:
    """Whether a port is in nft's spelling of one or a range; names that we do not know are not."""
    first, _, last = {"domain": "53", "bootps": "67", "dhcpv6-server": "547"}.get(text, text).partition("-")
    return first.isdigit() and (last or first).isdigit() and int(first) <= port <= int(last or first)


# -- what to do ------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Service:
    """What alone is to be let in to the host itself."""

    proto: str
    port: int
    source: str = ""
    """'' for everybody."""


def admit(table: str, chain: str, chains: Iterable[str], dev: str, service: Service) -> tuple[str, ...]:
    """Commands of the firewall's own tool, or of nft, that let a service of the host's hear *dev*, and open nothing else."""
    family, name = table.split(maxsplit=1)
    proto, port, source = service.proto, service.port, service.source
    version = "6" if ":" in source else "4"
    if name == "firewalld":
        sender = f' source address="{source}"' if source else ""
        zone = f"$(firewall-cmd --get-zone-of-interface={dev} || firewall-cmd --get-default-zone)"
        return (f"firewall-cmd --permanent --zone={zone} --add-rich-rule='rule family=\"ipv{version}\"{sender} port port=\"{port}\" protocol=\"{proto}\" accept'", "firewall-cmd --reload")
    if any(c.startswith(("ufw-", "ufw6-")) for c in chains):
        return (f"ufw allow in on {dev} proto {proto} from {source or 'any'} to any port {port}",)
    if name == "filter" and family in ("ip", "ip6") and chain.isupper():
        return (f"{'ip6tables' if family == 'ip6' else 'iptables'} -I {chain} {through_xtables(dev, service)}",)
    sender = f"{'ip6' if version == '6' else 'ip'} saddr {source} " if source else ""
    return (f"nft insert rule {table} {chain} iifname '\"{dev}\"' {sender}{proto} dport {port} accept",)


def through_xtables(dev: str, service: Service) -> str:
    """The end of a rule of iptables that lets a service hear *dev*."""
    return f"-i {dev} {f'-s {service.source} ' if service.source else ''}-p {service.proto} --dport {service.port} -j ACCEPT"


def cure(table: str, chain: str, hook: str, chains: Mapping[str, list[Rule]], bridges: Iterable[str]) -> str:
    """Commands of the firewall's own tool, or of nft, that let our bridges pass."""
    family, name = table.split(maxsplit=1)
    through = hook in ("forward", "postrouting")
    networks = sorted({f"{BRIDGE}NETWORK" if b.startswith(BRIDGE) else b for b in bridges})
    if name == "firewalld":
        commands = [f"firewall-cmd --permanent --zone=trusted --add-interface={b}" for b in networks]
        commands.append("firewall-cmd --reload")
    elif any(c.startswith(("ufw-", "ufw6-")) for c in chains):
        commands = [f"ufw route allow {way} on {b}" for b in networks for way in ("in", "out")] if through else \
            [f"ufw allow in on {b}" for b in networks]
    elif name == "filter" and family in ("ip", "ip6") and chain.isupper():
        tool = "ip6tables" if family == "ip6" else "iptables"
        place = "DOCKER-USER" if hook == "forward" and "DOCKER-USER" in chains else chain
        patterns = [f"{BRIDGE}+" if b.startswith(BRIDGE) else b for b in networks]
        commands = [f"{tool} -I {place} {way} {p} -j ACCEPT" for p in patterns for way in (("-i", "-o") if through else ("-i",))]
    else:
        patterns = [f"{BRIDGE}*" if b.startswith(BRIDGE) else b for b in networks]
        commands = [f"nft insert rule {table} {chain} {way} '\"{p}\"' accept" for p in patterns
                    for way in (("iifname", "oifname") if through else ("iifname",))]
    return " and ".join(commands)
