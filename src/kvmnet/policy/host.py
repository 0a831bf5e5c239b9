"""The host's own table, ``inet kvmnet``: what guests may do with the host and through it. Pure.

* input: from guests the host answers DHCP, DNS, ND and echo, what the document allows, and its own
  connections' replies. Nothing else. DHCP and DNS are those of the guest's own network: a resolver
  that the host has on another address would be a way out. Guests are known by the mark that their
  guard set, and by their bridge where nobody else is on it: others may overwrite marks.
* forward: between bridges of ours and anything else only where the document says so. Pairs of
  devices are one set lookup, also for replies: an ICMP error can be forged from any network, and
  what was open must not outlive its permission. What passes is marked, so that the keeper can drop
  what no rule saw. On a bridge that took an uplink others pass as they did before.
* An uplink that forwards only because of us leads to guests, and to nothing else of the host's.
* taps also refuses a guest's address as source on any other device.
  Frames that only cross a bridge come by here where bridge netfilter is on; a packet for the host's own
  MAC is no such frame: the host would send it back out, past the isolation of ports.
* taps: a packet that comes in on a tap itself, not on its bridge, went past the guard (LLDP's address).
* nat: masquerade only towards the uplink; forwarded ports work from outside, from the guests
  themselves (hairpin) and from the host.

Chains stand before priority filter: a drop here is final, an accept leaves the word to the
host's own firewall (an accept in one table never overrules a drop in another).
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import ip_network

from kvmnet.drivers.nftables.resources import NftTable
from kvmnet.modes.segment import HostPolicy
from kvmnet.policy import vrf
from kvmnet.policy.marks import GUEST, ROUTED
from kvmnet.policy.overlay import overlay_chains, tunnel_chain
from kvmnet.policy.synproxy import Proxied

NAME = "inet kvmnet"
PROTOCOLS = {4: "ipv4", 6: "ipv6"}

BASE = f"""\
chain taps {{
type filter hook prerouting priority -400; policy accept;
iifname "kvt-*" counter drop
ip saddr @inside4 iifname != "lo" iifname . ip saddr != @sources4 counter drop
ip6 saddr @inside6 iifname != "lo" iifname . ip6 saddr != @sources6 counter drop
}}
chain forward {{
type filter hook forward priority -10; policy accept;
iifname @outer goto segment
iifname "kvb-*" goto guests
oifname "kvb-*" oifname != @outer goto judge
iifname . meta nfproto @lent ct state new goto transit
oifname @outer goto pass
}}
chain segment {{
iifname . oifname @bridged iifname . ether daddr != @routers goto pass
oifname "kvb-*" oifname != @outer goto judge
meta mark & {GUEST:#010x} == {GUEST:#010x} goto refuse
iifname . meta nfproto @lent ct state new goto transit
goto pass
}}
chain transit {{
ct status dnat goto pass
counter drop
}}
chain guests {{
iifname . oifname @bridged iifname . ether daddr != @routers goto pass
iifname . ip saddr != @sources4 counter drop
iifname . ip6 saddr != @sources6 counter drop
goto judge
}}
chain judge {{
iifname . oifname @paths ct state {{ established, related }} goto pass
ct state invalid drop
iifname . oifname @reach goto pass
iifname . oifname @handed ct status dnat goto pass
goto refuse
}}
chain refuse {{
counter reject with icmpx type admin-prohibited
}}
chain pass {{
meta mark set meta mark | {ROUTED:#010x}
accept
}}
chain input {{
type filter hook input priority -10; policy accept;
meta mark & {GUEST:#010x} == {GUEST:#010x} goto host
iifname @hosted goto host
}}
chain host {{
ct state vmap {{ established : goto pass, related : goto pass, invalid : drop }}
iifname . meta l4proto . th dport @services fib daddr . iif type {{ local, broadcast, multicast }} goto pass
iifname . meta l4proto . th dport @allowed goto pass
icmp type echo-request goto pass
icmpv6 type {{ echo-request, nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, mld-listener-report, mld2-listener-report }} goto pass
ct status dnat iifname . ct original ip daddr @metadata goto pass
counter drop
}}
"""


def host_table(policy: HostPolicy, groups: str = "", proxied: Proxied | None = None) -> NftTable:
    """The whole table for the merged policy of all networks. ``groups``: chains that groups and tenants add. ``proxied``: whose
    connections from outside the host answers first."""
    proxied = proxied or Proxied()
    given = {(device, forward[5]) for device in policy.inward for forward in policy.forwards}
    given |= {(device, forward[6]) for forward in policy.vrf_forwards for device in (forward[0], forward[6])}
    given -= {(bridge, bridge) for bridge in policy.apart}
    body = [
        named_set("reach", "ifname . ifname", pairs(policy.reach)),
        named_set("bridged", "ifname . ifname", (f'"{b}" . "{b}"' for b in policy.bridged)),
        named_set("routers", "ifname . ether_addr", (f'"{b}" . {mac}' for b, mac in policy.routers)),
        named_set("paths", "ifname . ifname", pairs({p for a, b in (*policy.reach, *given) for p in ((a, b), (b, a))})),
        named_set("handed", "ifname . ifname", pairs(given)),
        named_set("outer", "ifname", (f'"{b}"' for b in policy.outer)),
        named_set("lent", "ifname . nf_proto", (f'"{d}" . {PROTOCOLS[v]}' for d, v in policy.lent)),
        named_set("inside4", "ipv4_addr", (p for p in policy.inside if ":" not in p), "interval"),
        named_set("inside6", "ipv6_addr", (p for p in policy.inside if ":" in p), "interval"),
        named_set("hosted", "ifname", (f'"{b}"' for b in policy.hosted)),
        named_set("sources4", "ifname . ipv4_addr", prefixes(policy.sources, 4), "interval"),
        named_set("sources6", "ifname . ipv6_addr", prefixes(policy.sources, 6), "interval"),
        named_set("services", "ifname . inet_proto . inet_service",
                  (f'"{d}" . {proto} . {port}' for d, proto, port in policy.services)),
        named_set("allowed", "ifname . inet_proto . inet_service",
                  (f'"{d}" . {proto} . {port}' for d, proto, port in policy.allowed)),
        named_set("metadata", "ifname . ipv4_addr", (f'"{d}" . {asked}' for d, asked, *_ in policy.metadata)),
        *vrf_sets(policy),
        proxied.text().rstrip(),
        base_of(policy, proxied),
        *vrf.chains(policy),
        *overlay_chains(policy.overlays),
        *tunnel_chain(policy.tunnels),
        groups.rstrip(),
        *nat_chains(policy),
    ]
    return NftTable(name=NAME, text="\n".join(part for part in body if part) + "\n")


def base_of(policy: HostPolicy, proxied: Proxied) -> str:
    """The chains that every document has, with a way to those of routing domains where there are any."""
    text = BASE.rstrip()
    if passed := proxied.judged():
        text = text.replace(INVALID, "\n".join((*passed, INVALID)), 1)
    if not vrf.is_used(policy):
        return text
    for before, line in (('ip saddr @inside4 iifname != "lo"', vrf.TAPS), ('iifname @outer goto segment', vrf.FORWARD),
                         (f"meta mark & {GUEST:#010x} == {GUEST:#010x} goto host", vrf.INPUT)):
        text = text.replace(before, f"{line}\n{before}", 1)
    return text


def vrf_sets(policy: HostPolicy) -> list[str]:
    if not vrf.is_used(policy):
        return []
    elsewhere = list(vrf.elsewhere(policy))
    return [
        named_set("vrf_devices", "ifname", (f'"{d}"' for d in vrf.devices(policy))),
        named_set("vrf_elsewhere4", "ifname . ipv4_addr", prefixes(elsewhere, 4), "interval"),
        named_set("vrf_elsewhere6", "ifname . ipv6_addr", prefixes(elsewhere, 6), "interval"),
        named_set("vrf_served4", "ifname . ipv4_addr", prefixes(policy.vrf_served, 4), "interval"),
        named_set("vrf_served6", "ifname . ipv6_addr", prefixes(policy.vrf_served, 6), "interval"),
    ]


INVALID = "ct state invalid drop"


def pairs(devices: Iterable[tuple[str, str]]) -> list[str]:
    return [f'"{a}" . "{b}"' for a, b in devices]


def named_set(name: str, key: str, elements: Iterable[str], flags: str = "") -> str:
    listed = sorted(set(elements))
    lines = [f"set {name} {{", f"type {key}"]
    if flags:
        lines.append(f"flags {flags}")
    if listed:
        lines.append("elements = { " + ", ".join(listed) + " }")
    return "\n".join((*lines, "}"))


def prefixes(pairs: Iterable[tuple[str, str]], family: int) -> list[str]:
    """Elements of an interval set; a prefix inside another of the same bridge is left out."""
    by_device: dict[str, list[str]] = {}
    for device, prefix in pairs:
        if ip_network(prefix).version == family:
            by_device.setdefault(device, []).append(prefix)
    out = []
    for device, found in by_device.items():
        nets = sorted((ip_network(p) for p in set(found)), key=lambda n: (n.network_address, n.prefixlen))
        last = None
        for net in nets:  # what lies inside another comes right after it
            if last is None or not net.subnet_of(last):  # type: ignore[arg-type]
                out.append(f'"{device}" . {net}')
                last = net
    return out


def nat_chains(policy: HostPolicy) -> list[str]:
    """Address translation; no chain at all when the document needs none."""
    if not (policy.masquerade or policy.forwards or policy.metadata or policy.vrf_forwards):
        return []
    redirect = [*metadata_rules(policy), *forward_rules(policy, from_guests_and_outside), *domain_rules(policy)]
    local = forward_rules(policy, from_host)
    source = [
        *(f'iifname "{bridge}" oifname "{bridge}" ct status dnat masquerade'
          for bridge in sorted({f[5] for f in policy.forwards})),
        # Behind a routing domain the input device is the domain's, not the bridge.
        *(f'oifname "{bridge}" {family(prefix)} saddr {prefix} ct status dnat masquerade'
          for bridge, prefix in sorted(policy.vrf_hairpin)),
        *(f'oifname "{out}" {family(prefix)} saddr {prefix} masquerade'
          for out, prefix in sorted(policy.masquerade)),
    ]
    return [
        chain("dstnat", "nat", "prerouting", -100, redirect),
        chain("localnat", "nat", "output", -100, local),
        chain("srcnat", "nat", "postrouting", 100, source),
    ]


def chain(name: str, kind: str, hook: str, priority: int, rules: Iterable[str]) -> str:
    listed = list(rules)
    if not listed:
        return ""
    return "\n".join((f"chain {name} {{", f"type {kind} hook {hook} priority {priority}; policy accept;",
                      *listed, "}"))


def metadata_rules(policy: HostPolicy) -> list[str]:
    return [f'iifname "{bridge}" ip daddr {asked} tcp dport {port} dnat ip to {host}:{to_port}'
            for bridge, asked, port, host, to_port in sorted(policy.metadata)]


def forward_rules(policy: HostPolicy, where: Callable[[HostPolicy, str, int], str]) -> list[str]:
    """One lookup per family for ports on any address, one rule for each port on a named address."""
    rules: list[str] = []
    for version in (4, 6):
        chosen = [f for f in sorted(policy.forwards) if ip_network(f[3]).version == version]
        if not chosen:
            continue
        scope = where(policy, "", version)
        anywhere = [f"{proto} . {port} : {guest} . {to}" for host, proto, port, guest, to, _ in chosen if not host]
        if anywhere:
            rules.append(f"{scope} dnat {word(version)} to meta l4proto . th dport map "
                         "{ " + ", ".join(anywhere) + " }")
        rules += [f"{where(policy, host, version)} {proto} dport {port} dnat {word(version)} to {target(guest, to)}"
                  for host, proto, port, guest, to, _ in chosen if host]
    return rules


def domain_rules(policy: HostPolicy) -> list[str]:
    """Forwarded ports in routing domains, by the device that packets come in by and the address that they are for."""
    return [f'iifname {{ "{out}", "{bridge}" }} {family(host)} daddr {host} {proto} dport {port} dnat {family(host)} to {target(guest, to)}'
            for out, host, proto, port, guest, to, bridge in sorted(policy.vrf_forwards)]


def from_guests_and_outside(policy: HostPolicy, address: str, version: int) -> str:
    devices = "{ " + ", ".join(f'"{d}"' for d in sorted(policy.inward)) + " }"
    return f"iifname {devices} {local_address(policy, address, version)}"


def from_host(policy: HostPolicy, address: str, version: int) -> str:
    loopback = "ip daddr != 127.0.0.0/8 " if version == 4 else "ip6 daddr != ::1 "
    return loopback + local_address(policy, address, version)


def local_address(policy: HostPolicy, address: str, version: int) -> str:
    """Packets to an address of the host that is not its address on a guest network."""
    if address:
        return f"{word(version)} daddr {address}"
    own = [a for a in sorted(policy.own) if ip_network(a).version == version]
    spare = f"{word(version)} daddr != {{ {', '.join(own)} }} " if own else ""
    return f"{spare}fib daddr type local"


def word(version: int) -> str:
    return "ip" if version == 4 else "ip6"


def family(prefix: str) -> str:
    return word(ip_network(prefix).version)


def target(guest: str, port: int) -> str:
    return f"[{guest}]:{port}" if ":" in guest else f"{guest}:{port}"
