"""Codes of what ``kvmnet why`` alone finds on a path; what the doctor finds as well has one code, and its rule's words."""
from __future__ import annotations

from collections.abc import Mapping

from kvmnet.doctor.explain.entry import Cause, Entry

CODES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "rule-drop": ("A rule or policy of a firewall drops the packet; an accept in another table does not overrule it.", ("add an accept in the chain that is named, before the rule",)),
    "arp-drop": ("A rule drops the question who has the address (ARP, neighbour solicitation), so nothing is ever sent to it.", ("let ARP and ICMPv6 135, 136 pass in that chain",)),
    "limited": ("Rules drop what is above a rate or a number of flows; one packet alone is within them.", ("kvmnet status --drops", "nft list ruleset")),
    "rule-unknown": ("A rule asks for something that only the live system can tell; it may lose the packet.", ("kvmnet why A B   # without --facts a packet is sent",)),
    "detour-astray": ("What comes in by the device, or leaves by it, takes a detour by the queue of its rate, and the device with that queue is down or gone: "
                      "frames that are redirected there are dropped.", ("kvmnet status", "ip link show dev DEV", "tc -s filter show dev DEV ingress")),
    "tc-filter": ("A filter of tc at the device takes or drops the packet, or may: before the bridge and any rule sees it at ingress, behind them at egress.", ("tc -s filter show dev DEV ingress",)),
    "xdp-program": ("An XDP program stands at the device, before everything else; what it does cannot be read.", ("bpftool net show", "ip link set DEV xdpgeneric off   # where nobody needs it")),
    "port-isolated": ("Both ports are isolated: a bridge sends nothing from one such port to another.", ("ip link set PORT type bridge_slave isolated off   # when they are meant to talk",)),
    "port-locked": ("The port is locked (802.1X): it takes frames of MACs alone that are entered by hand.", ("bridge fdb replace MAC dev PORT master static",)),
    "port-no-flood": ("The bridge does not know the MAC, and the port takes no unknown or broadcast frames (flood, bcast_flood off).", ("bridge fdb show", "ip link set PORT type bridge_slave bcast_flood on")),
    "port-state": ("Spanning tree has the port blocking, listening or learning: it forwards nothing.", ("ip -d link show PORT", "ip link set BRIDGE type bridge forward_delay 200")),
    "guest-link-off": ("The carrier of the guest's card is switched off.", ("link: up in the document, or set_link by QEMU's monitor",)),
    "no-answer": ("Nothing on this host is in the way, packets were sent, and no answer came: what is behind the last device that saw them loses it, or the far end does not answer.", ("kvmnet capture",)),
    "kernel-drop": ("Packets that were sent for it show that the kernel drops them, for the reason that it gives; nothing that was read says so.", ("kvmnet why A B --prove",)),
    "guest-firewall": ("Rules inside the guest drop the packet: its own firewall, which nothing on the host overrules.", ("kvmnet vm exec GUEST nft list ruleset",)),
    "guest-other-card": ("The guest's own routes lead by another of its cards than the one that was asked about.", ("kvmnet vm exec GUEST ip route get ADDRESS",)),
    "guest-unseen": ("No port is known to have that address behind it: the guest is silent, off, or has another address.", ("ip neigh show", "kvmnet capture")),
    "link-down": ("A device on the way is down.", ("ip link set DEV up",)),
    "link-missing": ("A device on the way is gone.", ("ip -br link",)),
    "no-carrier": ("A device on the way has no carrier: cable, switch port, or the other end of a veth.", ("ethtool DEV",)),
    "no-uplink": ("The bridge has no port that leads out, and the host has no address on it: guests reach each other only.", ("ip link set NIC master BRIDGE", "or a nat or routed network")),
    "vlan-none": ("The port belongs to no VLAN (no PVID): a bridge that goes by VLANs drops its untagged frames.", ("bridge vlan add dev PORT vid 1 pvid untagged",)),
    "vlan-mismatch": ("The two ports have no VLAN in common.", ("bridge vlan show",)),
    "hairpin": ("The frame would leave by the port that it came by: a bridge does not do that without hairpin.", ("ip link set PORT type bridge_slave hairpin on",)),
    "hairpin-nat": ("The destination was translated and the source was not: the answer goes straight to the asker, who does not know its sender.", ("masquerade what returns to the same bridge (ct status dnat)",)),
    "nat-between-guests": ("NAT changes the source of packets between guests.", ("name the uplink in the rule: oifname UPLINK masquerade",)),
    "nat-unknown": ("A rule translates to an address that only the live system can tell.", ()),
    "no-nat": ("The packet leaves with a private source, and nothing translates it: nobody outside has a route back.", ("nft add rule ip nat post oifname UPLINK masquerade",)),
    "nat-not-own": ("NAT gives the packet a source that this host has not (an address of before, a typing error): nobody answers ARP for it, so answers are lost.", ("ip addr add ADDRESS dev UPLINK", "or masquerade")),
    "arp-off": ("The device asks and answers no ARP (flag NOARP).", ("ip link set DEV arp on",)),
    "ipv6-disabled": ("IPv6 is switched off on the bridge: the host has no address there, and is no router of IPv6.", ("sysctl -w net.ipv6.conf.BRIDGE.disable_ipv6=0",)),
    "no-route": ("The host has no route there.", ("ip route add PREFIX via GATEWAY",)),
    "no-way-back": ("What is beyond the host answers the host's own address and not the one that the packet leaves with: it has no route back to it.", ("ip route add PREFIX via HOST   # on the router beyond", "or masquerade")),
    "sender-refused": ("A machine on the segment answers the host and not the guest: the port that it is behind takes frames of known MACs only (hosting provider, port security, Wi-Fi), or its firewall refuses the guest.", ("a routed or nat network",)),
    "guest-other-way": ("The guest sends by another router than this host.", ("kvmnet vm exec GUEST ip route",)),
    "multipath-hop": ("A route has several next hops, and one of them does not work: the kernel sends some flows there all the same.", ("ip route show", "ip neigh show nud failed")),
    "route-unknown": ("A policy rule asks for something that is not judged; it may send the packet another way.", ("ip rule show",)),
    "question-unanswered": ("Packets to the MAC are answered, the question who has the address is not: so a guest that asks never sends.", ("tcpdump -ni any arp", "bridge -d link show", "sysctl net.ipv4.conf.all.arp_ignore")),
    "queue-keeps": ("Packets did not come out of a queue of the device, whose counters of drops or of waiting packets have grown meanwhile.", ("tc -s qdisc show dev DEV", "tc -s class show dev DEV")),
    "source-unanswered": ("The packet leaves with an address that is in the prefix of the way out and on another segment of this host: the machines there ask who has it, and this host answers only with proxy ARP (IPv6: proxy ND), or where they have a route.",
                          ("ip neigh add proxy ADDRESS dev DEV", "or a route to it by this host, on the router there")),
    "route-without-gateway": ("The default route names a device and no gateway: the host asks on that segment for the MAC of every address, and nobody answers.", ("ip route replace default via GATEWAY dev UPLINK",)),
    "answer-astray": ("The answer comes to this host with the MAC of another machine: the sender has a wrong entry for this host in its neighbour table, or of before.", ("arping -U -I DEV ADDRESS   # tells its neighbours the right MAC",)),
    "tunnel-source": ("A tunnel sends from an address that this host has not: it was made with an address of before.", ("ip -d link show DEV",)),
    "address-not-local": ("An address of the host's is not in its table local, or no policy rule leads there: the host does not take in what is for it.", ("ip rule add pref 0 lookup local", "ip route add local ADDRESS dev DEV table local")),
    "loopback-target": ("The packet is for 127.0.0.0/8 and came by a device: a rule of NAT sends it to a program on loopback, and the kernel drops it.", ("let the program listen on an address of the bridge", "sysctl -w net.ipv4.conf.DEV.route_localnet=1")),
    "own-address": ("The destination is an address of the host itself: the packet ends there.", ("ip addr",)),
    "wrong-segment": ("The route leads to one device, and the guest is behind another.", ("ip route get ADDRESS",)),
    "neighbour-silent": ("Nobody answers ARP or ND for the next hop.", ("ip neigh show nud failed", "VLAN, cable, and whether it is on at all")),
    "arp-ignored": ("The host answers no ARP on that bridge (arp_ignore).", ("sysctl net.ipv4.conf.all.arp_ignore",)),
    "echo-ignored": ("The host answers no ping (icmp_echo_ignore_all; of IPv6 net.ipv6.icmp.echo_ignore_all).", ("sysctl -w net.ipv4.icmp_echo_ignore_all=0",)),
    "nobody-listens": ("The packet arrives and no program listens there.", ("ss -ltunp",)),
    "bond-dead": ("No member of the bond works.", ("cat /proc/net/bonding/BOND",)),
    "macvtap-host": ("The host and a guest behind a macvtap on one of its devices do not reach each other by that device, in any mode.", ("ip link add link NIC name host0 type macvlan mode bridge   # and the host's address there",)),
    "gate-closed": ("The gate of a macvtap drops what no guard has judged: the hook of the guard's rules is gone.", ("kvmnet apply",)),
    "macvtap-private": ("Two macvtaps share a device, and mode private keeps them apart.", ("ip link set DEV type macvtap mode bridge",)),
    "macvtap-vepa": ("Two macvtaps of mode vepa reach each other only by a switch that sends frames back.", ("ip link set DEV type macvtap mode bridge",)),
    "vf-link-off": ("The PF keeps the carrier of the guest's VF off.", ("ip link set PF vf N state auto",)),
    "switch-drop": ("Open vSwitch drops the packet: its flows were asked with ofproto/trace, and the one that it met last is named. In OVN that is an ACL, port security, or what a router does not know.", ("ovs-ofctl dump-flows BRIDGE table=N", "ovn-sbctl lflow-list   # cookie: the beginning of the flow's UUID")),
    "switch-astray": ("Open vSwitch hands the packet to other ports than the one that it is meant for: VLANs (tags of the ports) that differ, a MAC learned behind another port, or flows.", ("ovs-vsctl --columns=name,tag,trunks list port", "ovs-appctl fdb/show BRIDGE")),
    "not-followed": ("A macvtap, VF or foreign switch carries the frames: what happens there cannot be seen from here.", ("kvmnet capture",)),
}
"""Code -> what it means, and the next step."""

PATHS: tuple[Entry, ...] = tuple(
    Entry(name=code, says=(rf"(?<![\w-]){code}(?![\w-])",), means=means,
          causes=(Cause(what="kvmnet why A B shows the hop, the evidence and the commands for this host", cure=cure),), source="docs/guide/troubleshooting.md")
    for code, (means, cure) in CODES.items())
