"""Rules about bonds and tunnels. Pure."""
from __future__ import annotations

from collections.abc import Iterator

from kvmnet.doctor.finding import Certainty, Finding, Severity
from kvmnet.doctor.view import View, data, kind, port_data, up

NOBODY = "00:00:00:00:00:00"


def bond_partner(view: View) -> Iterator[Finding]:
    """A bond speaks LACP and nobody answers: the switch has no port channel there. It uses one link only, or none."""
    for bond in view.links.values():
        told = data(bond)
        if kind(bond) == "bond" and told.get("mode") == "802.3ad" and up(bond) and (told.get("ad_info") or {}).get("partner_mac", NOBODY) == NOBODY and view.ports.get(bond["ifname"]):
            name = bond["ifname"]
            yield Finding(code="bond-partner", severity=Severity.DEGRADES, where=name, what=f"{name} has no LACP partner", why="Without a partner its members are no aggregate: one is used, and the switch may flood frames back by another.",
                          evidence=("mode 802.3ad", f"partner_mac {NOBODY}"), fix=("configure LACP (active) on the ports of the switch", f"cat /proc/net/bonding/{name}"))


def bond_member_down(view: View) -> Iterator[Finding]:
    """A member of a bond is down: the bond lives on, and the next loss is an outage."""
    for bond in view.links.values():
        if kind(bond) != "bond":
            continue
        members = view.ports.get(bond["ifname"], [])
        lost = [m["ifname"] for m in members if port_data(m).get("mii_status") == "DOWN"]
        if lost:
            yield Finding(code="bond-member-down", severity=Severity.BLOCKS if len(lost) == len(members) else Severity.DEGRADES, where=bond["ifname"], what=f"{', '.join(lost)} of {bond['ifname']} {'is' if len(lost) == 1 else 'are'} down, of {len(members)} members",
                          why="Nothing is left to take over." if len(lost) == len(members) else "Less throughput, and no reserve.", evidence=tuple(f"{m}: mii_status DOWN" for m in lost), fix=tuple(f"ethtool {m}" for m in lost))


def bond_members_apart(view: View) -> Iterator[Finding]:
    """Members of an LACP bond are in different aggregates: they end on different switches, or on ports of different channels. Only one aggregate is used."""
    for bond in view.links.values():
        if kind(bond) != "bond" or data(bond).get("mode") != "802.3ad":
            continue
        ids = {m["ifname"]: port_data(m).get("ad_aggregator_id") for m in view.ports.get(bond["ifname"], []) if port_data(m).get("mii_status") == "UP"}
        if len(set(ids.values())) > 1:
            yield Finding(code="bond-members-apart", severity=Severity.DEGRADES, where=bond["ifname"], what=f"members of {bond['ifname']} are in {len(set(ids.values()))} aggregates, of which one is used",
                          why="LACP joins only links to one partner with one key.", evidence=tuple(f"{m}: aggregate {i}" for m, i in ids.items()), fix=("put the ports of the switch into one channel",))


def bond_unwatched(view: View) -> Iterator[Finding]:
    """A bond watches its members by nothing (miimon and arp_interval are 0): it goes on sending by a link that is dead."""
    for bond in view.links.values():
        told = data(bond)
        if kind(bond) == "bond" and not told.get("miimon") and not told.get("arp_interval"):
            name = bond["ifname"]
            yield Finding(code="bond-unwatched", severity=Severity.RISK, where=name, what=f"{name} does not watch its members", why="A dead link is never left.", evidence=("miimon 0", "arp_interval 0"),
                          fix=(f"ip link set {name} type bond miimon 100",))


def bond_spreads_blindly(view: View) -> Iterator[Finding]:
    """A bond sends by all members in turn (balance-rr, balance-xor, broadcast), which needs a static channel on the switch. Without one the switch sees
    MACs move, and half of the packets are lost."""
    for bond in view.links.values():
        mode = data(bond).get("mode")
        if kind(bond) == "bond" and mode in ("balance-rr", "broadcast", "balance-xor") and len(view.ports.get(bond["ifname"], ())) > 1 and bond.get("master"):
            yield Finding(code="bond-spreads-blindly", severity=Severity.RISK, where=bond["ifname"], certainty=Certainty.UNKNOWN, what=f"{bond['ifname']} ({mode}) needs a static channel on the switch",
                          why="This mode does not ask the switch; whether it has one cannot be seen from here.", evidence=(f"mode {mode}",), fix=("a static channel on the switch, or 802.3ad on both, or active-backup",))


def tunnel_unanswered(view: View) -> Iterator[Finding]:
    """A VXLAN sends, and nothing has ever come by it: the other end has another VNI or another UDP port, does not know this host, or is not there. Each
    host by itself looks right."""
    for link in view.links.values():
        name, now = link["ifname"], (view.later.get("links") or {}).get(link["ifname"])
        if kind(link) != "vxlan" or not now:
            continue
        before, told = link.get("stats64") or {}, data(link)
        sent, came = now.get("tx", {}).get("packets", 0), now.get("rx", {}).get("packets", 0)
        if came == 0 and sent >= ENOUGH and sent > before.get("tx", {}).get("packets", 0):
            port = told.get("port", 4789)
            yield Finding(code="tunnel-unanswered", severity=Severity.RISK, where=name, certainty=Certainty.LIKELY, what=f"{name} has sent {sent} packets, and none has ever come by it",
                          why="A packet with another VNI, or to another port, is dropped by the other end without a word.", evidence=(f"vxlan id {told.get('id')} dstport {port}", f"tx {sent} packets, rx 0"),
                          fix=("ip -d link show type vxlan   # on the other host: the same id and dstport, and this host as a peer", f"tcpdump -ni any udp port {port}   # does anything come, with which vni?"))


ENOUGH = 20
"""Packets that somebody answers, if there is anybody: more than a bridge says of itself when it comes up."""


def tunnel_without_peers(view: View) -> Iterator[Finding]:
    """A VXLAN has no multicast group, no remote and no entry for unknown machines: broadcasts (ARP) go nowhere, so no guest of another host is found."""
    flooded = {r["ifname"] for r in view.rows("fdb") if r.get("mac") == NOBODY}
    for link in view.links.values():
        told = data(link)
        if kind(link) == "vxlan" and not told.get("external") and not any(told.get(k) for k in ("remote", "remote6", "group", "group6")) and link["ifname"] not in flooded:
            name = link["ifname"]
            yield Finding(code="tunnel-without-peers", severity=Severity.BLOCKS, where=name, what=f"{name} sends broadcasts to nobody", why="ARP and ND of guests do not reach the other hosts.",
                          evidence=(f"vxlan id {told.get('id')} without group, remote, and without an entry for {NOBODY}",), fix=(f"bridge fdb append {NOBODY} dev {name} dst ADDRESS_OF_THE_OTHER_HOST",))
