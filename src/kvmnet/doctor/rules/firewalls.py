"""Rules about firewalls of others: a few packets that guests need are walked through the model of the kernel's hooks. Pure."""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from itertools import islice
from typing import Any

from kvmnet.doctor.finding import Certainty, Finding, Severity
from kvmnet.doctor.hooks import Passage, Rules, at_hook
from kvmnet.doctor.ipsec import Policy, policies
from kvmnet.doctor.judge import Verdict
from kvmnet.doctor.packet import BROADCAST, ICMP, ICMP6, STATES, TCP, UDP, Context, Packet, Tracked, made
from kvmnet.doctor.ruleset import parse
from kvmnet.doctor.view import View, data, kind
from kvmnet.doctor.xtables import LEGACY, with_xtables
from kvmnet.drivers.nftables.wire import CHAIN
from kvmnet.facts import firewalls
from kvmnet.records import replace

OUTSIDE = "192.0.2.1"
"""An address of TEST-NET-1 (RFC 5737): no rule is about it."""
GUEST, ROUTER = "02:00:00:00:00:01", "02:00:00:00:00:02"
HTTPS = (40000, 443)
FAR = {4: OUTSIDE, 6: "2001:db8::1"}


def forward_dropped(view: View) -> Iterator[Finding]:
    """A chain at the forward hook, by its policy or a rule, drops what guests of a routed or translated network send outside, or the answers.
    Docker and ufw set that policy; an accept in another table does not overrule it. A rule that names the bridge itself is taken for meant
    (libvirt closes isolated networks so), unless another one lets the same bridge pass."""
    out = next((r["dev"] for r in view.ways_out if r.get("dev") and ":" not in r.get("gateway", "")), "")
    rules = None
    for bridge in view.bridges:
        name = bridge["ifname"]
        networks = [a.network for a in view.addresses(bridge, "inet")]
        if not out or out == name or not networks or not view.guest_ports(name) or not view.forwards(name):
            continue
        rules = rules or read(view)
        guest = str(networks[0].network_address + 2)
        there, back = made((ROUTER, GUEST), guest, OUTSIDE, TCP, HTTPS), made((GUEST, ROUTER), OUTSIDE, guest, TCP, HTTPS[::-1], answer=True)
        for packet, ends, state, words in ((there, (name, out), "new", "what guests send outside"), (back, (out, name), "established", "answers from outside")):
            for one in lost(view, rules, packet, ends, state, "forward", "forward-dropped", name, words):
                if not any(names(name, reason) for reason in one.evidence) or meant_to_pass(view, name, networks[0]):
                    yield one


def names(device: str, rule: str) -> bool:
    return device in rule.replace('"', " ").replace("{", " ").replace(",", " ").split()


def meant_to_pass(view: View, bridge: str, network: Any) -> bool:
    """Whether any rule lets a bridge (not only from it to itself) or its subnet go somewhere, or translates for it."""
    for text in (str(view.facts.get("nft_text") or ""), *(view.facts.get("xtables") or {}).values()):
        for line in text.splitlines():
            words = line.replace('"', " ").split()
            if (words.count(bridge) == 1 or str(network) in words) and {"accept", "ACCEPT", "masquerade", "MASQUERADE", "snat", "SNAT"} & set(words):
                return True
    return False


def bridge_netfilter(view: View) -> Iterator[Finding]:
    """br_netfilter sends bridged frames through the host's IP rules, and one of them drops what guests of the same bridge send to each other: ARP is
    answered, and nothing else passes."""
    everywhere = view.sysctl("net/bridge/bridge-nf-call-iptables") == "1"
    rules = None
    for bridge in view.bridges:
        name = bridge["ifname"]
        if not (everywhere or data(bridge).get("nf_call_iptables")) or len(view.guest_ports(name)) < 2:
            continue
        rules = rules or read(view)
        network = next((a.network for a in view.addresses(bridge, "inet")), IPv4Network("192.0.2.0/24"))
        packet = made((ROUTER, GUEST), str(network.network_address + 2), str(network.network_address + 3), TCP, HTTPS)
        yield from lost(view, rules, packet, (name, name), "new", "forward", "bridge-netfilter", name, "what guests of one bridge send each other")


def flows_half_seen(view: View) -> Iterator[Finding]:
    """Packets come by of which connection tracking has not seen the beginning (answers without a question: the way there does not pass this host, the
    way back does), it calls them invalid, and a rule drops these: connections stand still after their first packet, pings pass."""
    more = invalid(view.later.get("counters") or {}) - invalid(view.facts.get("counters") or {}) if view.later else 0
    if more < MANY:
        return
    rules = read(view)
    out = next((r["dev"] for r in view.ways_out if r.get("dev") and ":" not in r.get("gateway", "")), "")
    for bridge in view.bridges:
        name = bridge["ifname"]
        networks = [a.network for a in view.addresses(bridge, "inet")]
        if not out or out == name or not networks or not view.guest_ports(name):
            continue
        guest = str(networks[0].network_address + 2)
        for packet, ends in ((made((GUEST, ROUTER), OUTSIDE, guest, TCP, HTTPS[::-1], answer=True), (out, name)), (made((ROUTER, GUEST), guest, OUTSIDE, TCP, HTTPS[::-1], answer=True), (name, out))):
            if any(lost(view, rules, packet, ends, "established", "forward", "", name, "")):
                continue
            dropped = list(lost(view, rules, packet, ends, "invalid", "forward", "flows-half-seen", name, f"answers from {ends[0]} whose question it has not seen"))
            for found in dropped:
                yield replace(found, severity=Severity.RISK, why="The way there and the way back differ: only one of them passes this host. Both have to, or the rule must let such packets pass.",
                              evidence=(*found.evidence, f"/proc/net/stat/nf_conntrack: invalid +{more} within {view.later['seconds']:.1f} s"))
            if dropped:
                break


MANY = 5
"""Invalid packets between two looks that are more than strays (late resets, scans)."""


def invalid(counters: Mapping[str, str]) -> int:
    """Packets that connection tracking could not place so far, of all processors."""
    lines = [line.split() for line in (counters.get("stat/nf_conntrack") or "").splitlines()]
    return sum(int(row[lines[0].index("invalid")], 16) for row in lines[1:]) if lines and "invalid" in lines[0] else 0


def input_dropped(view: View) -> Iterator[Finding]:
    """A chain drops what guests ask of the host's DHCP server: they get no address, although the server runs and its log is empty."""
    rules = None
    for server in view.rows("dhcp_servers"):
        for name in server["interfaces"]:
            if name in view.links:
                rules = rules or read(view)
                packet = made((BROADCAST, GUEST), "0.0.0.0", "255.255.255.255", UDP, (68, 67))
                yield from lost(view, rules, packet, (name, ""), "new", "input", "input-dropped", name, "requests for an address (DHCP)")


def tunnel_blocked(view: View) -> Iterator[Finding]:
    """A chain drops what other hosts send to a tunnel of this one (UDP 4789 for VXLAN, 6081 for Geneve; often TCP was opened instead): guests of
    this host reach each other, and nobody on the other hosts."""
    homes = {a["local"]: link["ifname"] for link in view.links.values() for a in link.get("addr_info", ()) if "local" in a}
    rules = None
    for link in view.links.values():
        told = data(link)
        remote, local = told.get("remote", ""), told.get("local", "")
        flooded = next((r["dst"] for r in view.rows("fdb") if r.get("ifname") == link["ifname"] and r.get("dst")), "") if kind(link) == "vxlan" else ""
        remote = remote or flooded
        if kind(link) not in ("vxlan", "geneve") or not remote or ":" in remote:
            continue
        dev = told.get("link") or homes.get(local) or next((r.get("dev", "") for r in view.ways_out if ":" not in r.get("gateway", "")), "")
        own = local or next((str(a.ip) for a in view.addresses(view.links.get(dev, {}), "inet")), "")
        if dev and own:
            rules = rules or read(view)
            packet = made((ROUTER, GUEST), remote, own, UDP, (HTTPS[0], int(told.get("port") or (4789 if kind(link) == "vxlan" else 6081))))
            yield from lost(view, rules, packet, (dev, ""), "new", "input", "tunnel-blocked", dev, f"what {remote} sends to the tunnel {link['ifname']}")


def masquerade_everywhere(view: View) -> Iterator[Finding]:
    """A rule translates every packet that the host forwards, also between guests and from outside to them, as it names neither a device nor a
    destination: guests see the host as the sender of everything, and servers among them refuse or log the wrong peer."""
    out = sorted({r["dev"] for r in view.ways_out if r.get("dev") and r.get("table", "main") == "main" and ":" not in r.get("gateway", "")}) or ["UPLINK"]
    for item in view.rows("nft"):
        rule = item.get("rule") or {}
        chain = rule.get("chain", "")
        if str(rule.get("table", "")).startswith("kvmnet") or not any("masquerade" in e for e in rule.get("expr", ()) if isinstance(e, dict)):
            continue
        if not any(bounds(e) for e in rule["expr"]):
            place = f"{rule['family']} {rule['table']} {chain}"
            yield Finding(code="masquerade-everywhere", severity=Severity.RISK, where=place, what="a rule of masquerade has no bounds: it translates what guests send each other, too",
                          why="Every forwarded packet gets the address of the host as its sender.", evidence=(f"{place} handle {rule.get('handle')}: masquerade without oifname and without daddr",),
                          fix=(f"nft 'replace rule {place} handle {rule.get('handle')} oifname {{ {', '.join(out)} }} {written(view, place, rule.get('handle'))}'",))
    for family, text in (view.facts.get("xtables") or {}).items():
        for line in text.splitlines() if not family.startswith("nft-") else ():
            if "-A POSTROUTING" in line and "-j MASQUERADE" in line and not re.search(r" -[od] ", line):
                tool, rest = f"{'ip6tables' if family == 'ip6' else 'iptables'}-legacy -t nat", line.partition("-A POSTROUTING ")[2].strip()
                yield Finding(code="masquerade-everywhere", severity=Severity.RISK, where=f"{family} nat POSTROUTING", what="a rule of masquerade has no bounds: it translates what guests send each other, too",
                              why="Every forwarded packet gets the address of the host as its sender.", evidence=(line.strip(),), fix=(
                                  *(f"{tool} -A POSTROUTING -o {dev} {rest}" for dev in out), f"{tool} -D POSTROUTING {rest}"))


def written(view: View, place: str, handle: object) -> str:
    """A rule as it was listed, without what says that it leaves by any device but lo."""
    text = re.search(rf"^table {re.escape(place.rpartition(' ')[0])} \{{.*?^\}}", str(view.facts.get("nft_text") or ""), re.M | re.S)
    line = re.search(rf"^\s*(.*) # handle {handle}$", text[0], re.M) if text else None
    return re.sub(r'oifname != "?lo"? ', "", line[1]) if line else "masquerade"


def ipsec_policy(view: View) -> Iterator[Finding]:
    """A policy of IPsec with the action block loses what guests send or get, or what they and the host send each other: no route and no rule of a firewall shows it."""
    known = policies(str(view.facts.get("xfrm") or ""))
    for policy in (p for p in known if p.blocks):
        for name, network in ((b["ifname"], a.network) for b in view.bridges if view.guest_ports(b["ifname"]) for a in view.addresses(b)):
            packet = of_policy(policy, network)
            if packet and next((p for p in known if p.direction == policy.direction and (p is policy or p.wants(packet))), None) is policy:
                yield Finding(code="ipsec-policy", severity=Severity.BLOCKS, where="ipsec", certainty=Certainty.LIKELY, what=f"a policy of IPsec drops what goes from {policy.source} to {policy.target} (dir {policy.direction}), which guests of {name} need",
                              why="Policies stand beside routes and firewalls. If that is meant, all is well.", evidence=(f"ip xfrm policy show: {policy.text}",), fix=(policy.end,))
                break


def of_policy(policy: Policy, network: IPv4Network | IPv6Network) -> Packet | None:
    """A packet of a policy's that a guest of *network* sends or gets; None where it takes none."""
    ends = [ip_network(end, strict=False) for end in (policy.source, policy.target)]
    if ends[0].version != network.version or not any(end.overlaps(network) for end in ends):  
        return None
    near = next(n for n, end in enumerate(ends) if end.overlaps(network))    
    far = ends[1 - near]
    places = [str(next(islice(max(ends[near], network, key=lambda n: n.prefixlen).hosts(), 1, 2), ends[near].network_address)), str(far.network_address) if far.prefixlen else FAR[network.version]]
    return made((ROUTER, GUEST), places[near], places[1 - near], ICMP if network.version == 4 else ICMP6, (7, 0))


def bounds(expression: Any) -> bool:
    """Whether a condition of a rule is about the device or network that a packet leaves by or goes to, or about a mark."""
    left = (expression.get("match") or {}).get("left") if isinstance(expression, dict) else None
    words = str(left)
    if (expression.get("match") or {}).get("op") == "!=" and "oif" in words and (expression["match"].get("right")) == "lo":
        return False
    return any(word in words for word in ("oif", "'daddr'", "mark", "fib", "status")) if left is not None else False


# -- the walk --------------------------------------------------------------------------------------

def read(view: View) -> Rules:
    return Rules(with_xtables(parse(view.rows("nft"), str(view.facts.get("nft_text") or "")), view.facts.get("xtables") or {}))


def lost(view: View, rules: Rules, packet: Packet, ends: tuple[str, str], state: str, hook: str, code: str, where: str, words: str) -> Iterator[Finding]:
    """A finding for each chain of others that drops *packet* between prerouting and *hook*."""
    context = Context(packet=packet, iif=ends[0], pkttype=0, flow=Tracked(state=STATES[state]))
    passages = at_hook(rules, context, "ip", "prerouting")
    context.oif = ends[1]
    passages += at_hook(rules, context, "ip", hook)
    for passage in passages:
        family, table, chain = passage.chain.split()[:3]
        if passage.verdict is Verdict.DROP and table.startswith(LEGACY):
            tool = f"{'ip6tables' if family == 'ip6' else 'iptables'}-legacy -I {chain}"
            commands = [f"{tool} {firewalls.through_xtables(where, service(packet))}"] if hook == "input" else [f"{tool} {way} {where} -j ACCEPT" for way in ("-i", "-o")]
            yield finding(code, where, words, f"{family} {table.removeprefix(LEGACY)} (legacy)", chain, passage.hook, said(passage), commands)
        elif passage.verdict is Verdict.DROP and not table.startswith("kvmnet"):
            yield finding(code, where, words, f"{family} {table}", chain, passage.hook, said(passage), nft_cure(view, f"{family} {table}", chain, passage.hook, where, service(packet) if hook == "input" else None))


def finding(code: str, where: str, words: str, table: str, chain: str, hook: str, reasons: Sequence[str], fix: Sequence[str]) -> Finding:
    return Finding(code=code, severity=Severity.BLOCKS, where=where, certainty=Certainty.LIKELY, what=f"{table} {chain} drops {words} ({where})",
                   why=f"Every chain at the hook {hook} must let a packet pass; an accept in one is not final. If that is meant, all is well.",
                   evidence=tuple(f"{table} {chain}: {reason}" for reason in reasons), fix=tuple(fix))


def said(passage: Passage) -> list[str]:
    return [step.text for step in passage.reasons]


def service(packet: Packet) -> firewalls.Service:
    """What a packet for the host itself asks of it: letting that in opens nothing else."""
    source = "" if packet.source in ("0.0.0.0", "::") else packet.source
    return firewalls.Service({TCP: "tcp", UDP: "udp"}[packet.upper[0] if packet.upper else UDP], packet.ports[1], source)


def nft_cure(view: View, table: str, chain: str, hook: str, bridge: str, asked: firewalls.Service | None = None) -> list[str]:
    """What the owner of the table is told: ufw, firewalld, Docker, or nft. ``asked``: the one thing that the host is to hear."""
    text = re.search(rf"^table {re.escape(table)} \{{.*?^\}}", str(view.facts.get("nft_text") or ""), re.M | re.S)
    body = re.sub(r" # handle \d+", "", text[0].partition("\n")[2]) if text else ""
    chains: dict[str, list[firewalls.Rule]] = {m[1]: [] for m in CHAIN.finditer(body)}
    if asked:
        return list(firewalls.admit(table, chain, chains, bridge, asked))
    return firewalls.cure(table, chain, hook, chains, [bridge]).split(" and ")
