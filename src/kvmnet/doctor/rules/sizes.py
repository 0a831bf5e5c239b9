"""Rules about MTUs and offloads. Pure."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from kvmnet.doctor.finding import Certainty, Finding, Severity
from kvmnet.doctor.rules.addresses import growth
from kvmnet.doctor.view import Json, View, data, kind, owned, physical, up

OVERHEAD = {"vxlan": (50, 70), "geneve": (50, 70), "gretap": (38, 58)}
"""Kind of tunnel -> bytes that it adds over IPv4 and IPv6: outer IP, UDP or GRE, its header, and the inner Ethernet header."""


def mtu_island(view: View) -> Iterator[Finding]:
    """Ports of one bridge have different MTUs. A bridge forwards a frame to a port only when it fits, and drops it otherwise without telling
    anybody: small packets pass, large ones vanish."""
    for bridge in view.bridges:
        ports = next((group for group in together(view, bridge) if len({p["mtu"] for p in group}) > 1), [])
        sizes = Counter(p["mtu"] for p in ports)
        if not ports:
            continue
        outside = [p["mtu"] for p in ports if physical(p) or kind(p) in ("bond", "vlan", "team", *OVERHEAD)]
        right = min(outside) if outside else max(sizes, key=lambda mtu: (sizes[mtu], mtu))
        odd = [p for p in ports if p["mtu"] != right]
        yield Finding(code="mtu-island", severity=Severity.DEGRADES, where=bridge["ifname"],
                      what=f"ports of {bridge['ifname']} have MTUs {', '.join(str(s) for s in sorted(sizes))}: what is larger than a port takes is dropped",
                      why="A bridge sends no ICMP (is_skb_forwardable() in net/bridge/br_forward.c).", evidence=tuple(f"{p['ifname']} mtu {p['mtu']}" for p in [*odd[:6], *(p for p in ports if p["mtu"] == right)][:8]),
                      fix=("kvmnet apply",) if all(owned(p["ifname"]) for p in odd) else tuple(f"ip link set {p['ifname']} mtu {right}" for p in odd[:20] if not owned(p["ifname"])))


def together(view: View, bridge: Json) -> list[list[Json]]:
    """Ports that reach each other. Where a bridge goes by VLANs those of one VLAN, and trunks only where they take less: they carry what their largest VLAN needs."""
    ports = [p for p in view.ports.get(bridge["ifname"], ()) if up(p)]
    if not data(bridge).get("vlan_filtering"):
        return [ports]
    held = {row["ifname"]: {number for v in row.get("vlans", ()) for number in range(v["vlan"], v.get("vlanEnd", v["vlan"]) + 1)} for row in view.rows("vlans")}
    found: dict[int, list[Json]] = {}
    for port in ports:
        if len(own := held.get(port["ifname"], set())) == 1:
            found.setdefault(next(iter(own)), []).append(port)
    trunks = [p for p in ports if len(held.get(p["ifname"], ())) > 1]
    return [[*group, *(t for t in trunks if vlan in held[t["ifname"]] and t["mtu"] < max(p["mtu"] for p in group))] for vlan, group in found.items()]


def tunnel_mtu(view: View) -> Iterator[Finding]:
    """A tunnel's MTU and its headers are more than the device below takes: large packets are cut in pieces, or lost where that is forbidden."""
    homes = {a["local"]: link for link in view.links.values() for a in link.get("addr_info", ()) if "local" in a}
    for link in view.links.values():
        if kind(link) not in OVERHEAD:
            continue
        told = data(link)
        below = view.links.get(told.get("link", "")) or homes.get(told.get("local", "")) or homes.get(told.get("local6", ""))
        if not below:
            continue
        six = "local6" in told or "remote6" in told or "group6" in told or ":" in str(told.get("remote", ""))
        most = below["mtu"] - OVERHEAD[kind(link)][six]
        if link["mtu"] > most:
            name = link["ifname"]
            lost = told.get("df") in ("set", "inherit")
            yield Finding(code="tunnel-mtu", severity=Severity.DEGRADES if lost else Severity.RISK, where=name,
                          what=f"{name} takes {link['mtu']} bytes, {below['ifname']} below it only {most} and the headers",
                          why="Larger packets are dropped, as the tunnel forbids fragments." if lost else "Larger packets leave as fragments, which many networks drop.",
                          evidence=(f"{name} mtu {link['mtu']}", f"{below['ifname']} mtu {below['mtu']}", f"{kind(link)} adds {OVERHEAD[kind(link)][six]}"),
                          fix=("kvmnet apply",) if owned(name) else (f"ip link set {name} mtu {most}",))


def way_out_mtu(view: View) -> Iterator[Finding]:
    """A routed network of guests has a larger MTU than the way out. That works only as long as ICMP 'fragmentation needed' reaches the guests;
    containers and filters lose it, and large transfers hang."""
    devices = {r["dev"] for r in view.ways_out if r.get("dev") and r.get("table", "main") == "main"}
    least = min((view.links[d]["mtu"] for d in devices if d in view.links), default=0)
    for bridge in view.bridges:
        name = bridge["ifname"]
        if least and bridge["mtu"] > least and name not in devices and view.addresses(bridge) and view.guest_ports(name) and view.forwards(name):
            yield Finding(code="way-out-mtu", severity=Severity.RISK, where=name, certainty=Certainty.LIKELY, what=f"guests of {name} send up to {bridge['mtu']} bytes, the way out takes {least}",
                          why="Only path MTU discovery saves them.", evidence=(f"{name} mtu {bridge['mtu']}", *(f"{d} mtu {view.links[d]['mtu']}" for d in sorted(devices) if d in view.links)),
                          fix=(f"ip link set {name} mtu {least}   # and DHCP option 26, and its ports",))


def merged_frames_forwarded(view: View) -> Iterator[Finding]:
    """Large receive offload is on at a device that forwards (the port of a bridge, or of a router): it merges packets in a way that cannot be
    undone, so what is forwarded is too large or has wrong checksums, and downloads of guests crawl."""
    for name, active in (view.facts.get("offloads") or {}).items():
        link = view.links.get(name, {})
        if "rx-lro" in active and (link.get("master") or (physical(link) and view.forwards(name))):
            yield Finding(code="merged-frames-forwarded", severity=Severity.DEGRADES, where=name, what=f"{name} merges received packets (LRO) and forwards them",
                          why="LRO loses the sizes and headers of the packets that it merges; forwarding needs them (Documentation/networking/segmentation-offloads.rst).",
                          evidence=(f"ethtool -k {name}: large-receive-offload: on",), fix=(f"ethtool -K {name} lro off",))


def checksum_errors(view: View) -> Iterator[Finding]:
    """The host receives packets with wrong checksums, now: an offload that computes them wrongly, or damage on the wire."""
    for group in ("Udp", "Tcp", "Icmp"):
        more = growth(view, f"{group}.InCsumErrors")
        if more:
            yield Finding(code="checksum-errors", severity=Severity.DEGRADES, where=f"{group}.InCsumErrors", what=f"{more} {group.upper()} packets with a wrong checksum within {view.later['seconds']:.1f} s",
                          why="They are dropped.", evidence=(f"{group}.InCsumErrors = {view.counters.get(group + '.InCsumErrors')}, +{more}",),
                          fix=("ethtool -K DEVICE rx off   # to find out which", "kvmnet explain hw csum failure"))
