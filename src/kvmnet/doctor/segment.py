"""A frame on a segment: from a port into its bridge, across it, and out by another port (net/bridge). Pure."""
from __future__ import annotations

from kvmnet.doctor.filters import filters
from kvmnet.doctor.finding import Certainty, Severity
from kvmnet.doctor.hooks import kind_of_frame
from kvmnet.doctor.packet import BROADCAST
from kvmnet.doctor.rules.guests import halted
from kvmnet.doctor.rules.sizes import OVERHEAD
from kvmnet.doctor.trees import GATED, kept_shut
from kvmnet.doctor.trip import Trip


def enter(trip: Trip, port: str) -> None:
    """A guest sends a frame: it comes by *port* into the bridge."""
    scene, bridge = trip.scene, trip.scene.bridge_of(port)
    device(trip, port, "port")
    if not bridge:
        if scene.kind(port) in ("tun", "veth") and not scene.master(port) and port not in scene.switched and not scene.addresses_of(port, 4) and not scene.routed(port):
            detached(trip, port)
        return
    trip.context.pkttype = kind_of_frame(trip.packet, scene.mac(port))
    filters(trip, port, "ingress")
    trip.at("netdev", "ingress", iif=port, where=port)
    forwarding(trip, port, vlan_of(trip, port))
    data = scene.port(port)
    source = trip.packet.macs[1]
    if data.get("locked") and (known := scene.found_at(bridge, source, vlan_of(trip, port))) is None:
        trip.blocks("port-locked", port, f"the port is locked, and the bridge does not know {source} behind it",
                    "a locked port takes frames of known MACs only (802.1X)", f"bridge fdb has {known or 'no entry'} for it",
                    fix=(f"bridge fdb replace {source} dev {port} master static",))
    hop = trip.hop(bridge, "bridge", f"frame from {source} to {trip.packet.macs[0]}")
    if not scene.up(bridge):
        trip.blocks("port-down", bridge, f"bridge {bridge} is down", "a bridge that is down forwards nothing", fix=(f"ip link set {bridge} up",))
    if scene.filters_vlans(bridge):
        hop.words += f", VLAN {vlan_of(trip, port) or 'none'}"
        if trip.packet.vlan and trip.packet.vlan not in scene.vlans.get(port, {}):
            trip.blocks("vlan-mismatch", port, f"{port} takes no frames of VLAN {trip.packet.vlan}", "a bridge that goes by VLANs takes a tag only by a port that is in its VLAN",
                        f"bridge vlan show dev {port}: {', '.join(map(str, scene.vlans.get(port, {}))) or 'none'}", fix=(f"bridge vlan add dev {port} vid {trip.packet.vlan}",))
        elif not vlan_of(trip, port):
            trip.blocks("vlan-none", port, "no VLAN takes its untagged frames: the port has no PVID", "a bridge that goes by VLANs drops what belongs to none",
                        fix=(f"bridge vlan add dev {port} vid 1 pvid untagged",))
    if source == scene.mac(bridge):
        trip.blocks("duplicate-mac", port, f"its MAC {source} is that of {bridge} itself", "the bridge takes frames for its own MAC up to the host, and sends none of them to the port (fdb_add_local())", f"ip link show {bridge}: {source}",
                    fix=(f"ip link set {bridge} address ANOTHER   # or another MAC for the guest",))
    own = next((p for p in scene.members.get(bridge, ()) if p != port and scene.mac(p) == source and scene.kind(p) not in ("tun",)), "")
    if own and scene.kind(port) != "veth":
        trip.blocks("duplicate-mac", port, f"its MAC {source} is also that of {own}", "the bridge keeps frames for it to itself", certainty=Certainty.LIKELY)
    ebtables(trip, bridge)
    trip.at_bridge("prerouting", bridge, port, "")


def ebtables(trip: Trip, bridge: str) -> None:
    """Rules of ebtables (legacy) stand beside those of nft, and are not judged."""
    rules = [line for line in str(trip.scene.facts.get("ebtables") or "").splitlines() if line.startswith("-A ") or (line.startswith(":") and " DROP" in line)]
    if rules and not trip.asked:
        trip.blocks("rule-unknown", "ebtables", f"rules of ebtables (legacy) stand at {bridge}, which are not judged here", "they may drop the packet before or after the rules of nft", *rules[:8], certainty=Certainty.UNKNOWN)


def vlan_of(trip: Trip, port: str) -> int:
    """VLAN of a frame that comes by a port; 0 where the bridge does not go by them, and for none."""
    scene = trip.scene
    if not scene.filters_vlans(scene.bridge_of(port) or port):
        return 0
    return trip.packet.vlan or scene.pvid(port)


def device(trip: Trip, dev: str, what: str) -> None:
    """A device that the packet needs: there, up, with a carrier."""
    scene = trip.scene
    kind = scene.kind(dev)
    if dev not in scene.links:
        trip.hop(dev, what, "not there")
        trip.blocks("link-missing", dev, f"there is no device {dev}", "what was behind it is gone", certainty=Certainty.PROVED)
        return
    held = scene.holder(dev)
    trip.hop(dev, what, ", ".join(w for w in (kind, "up" if scene.up(dev) else "down", f"MTU {scene.mtu(dev)}", f"held by {held}" if held else "",
                                              f"in {scene.master(dev)}" if scene.master(dev) else "") if w))
    if not scene.up(dev):
        trip.blocks("port-down" if scene.bridge_of(dev) or kind == "bridge" else "link-down", dev, f"{dev} is down", "a device that is down sends and receives nothing", scene.drops(dev), fix=(f"ip link set {dev} up",))
    elif not scene.carrier(dev):
        no_carrier(trip, dev, kind)
    if kind in ("tun", "macvtap"):
        guest(trip, dev)


def no_carrier(trip: Trip, dev: str, kind: str) -> None:
    if kind == "tun" and (held := trip.scene.holder(dev)):
        trip.blocks("tap-carrier-off", dev, f"the carrier of {dev} is switched off, though {held} has it open", "somebody took it away on the host's side (ip link set carrier off), or the program did; the bridge sends nothing to a port without a carrier", f"{dev}: {' '.join(trip.scene.flags(dev))}", trip.scene.drops(dev),
                    fix=(f"ip link set {dev} carrier on",))
    elif kind == "tun":
        trip.blocks("tap-idle", dev, "nobody has this tap open", "the guest does not run, or uses another device", trip.scene.drops(dev))
    elif kind == "veth":
        trip.blocks("no-carrier", dev, "its other end is down", "both ends of a veth must be up", f"{dev}: {' '.join(trip.scene.flags(dev))}", fix=("ip link set PEER up, in the namespace of its other end",))
    elif kind == "bridge":
        return  # a bridge without an active port: what follows says which
    else:
        trip.blocks("uplink-without-carrier" if trip.scene.bridge_of(dev) else "no-carrier", dev, f"{dev} has no carrier", "the cable, the switch port or the other end is down", f"operstate {trip.scene.links[dev].get('operstate')}",
                    trip.scene.drops(dev))


def guest(trip: Trip, tap: str) -> None:
    """What QEMU says of the card behind a tap."""
    for machine in trip.scene.part("guests"):
        if machine.get("halted") and tap in (machine.get("taps") or {}).values():
            trip.find(halted(machine))
        for nic in machine.get("nics", ()):
            if nic.get("tap") != tap:
                continue
            if machine.get("status") not in ("running", "", None):
                trip.blocks("guest-stopped", str(machine.get("name")), f"the guest is {machine['status']}", "its processors stand still: it neither sends nor answers",
                            fix=(f"kvmnet vm start {machine.get('name')}",))
            if nic.get("link") is False:
                trip.blocks("guest-link-off", str(nic.get("name")), "the carrier of the guest's card is switched off", "the guest sees no link")


def detached(trip: Trip, port: str) -> None:
    scene = trip.scene
    bridges = [b for b in scene.members if not scene.alias(b).startswith("kvmnet uplink")]
    wanted = next((scene.network_of(n["network"]) for n in scene.nics if n["tap"] == port), "") or (bridges[0] if len(bridges) == 1 else "BRIDGE")
    trip.blocks("tap-detached", port, f"{port} is in no bridge", "nothing takes its frames: the bridge was made anew, or the port taken out", f"ip link show {port}: no master",
                fix=(f"ip link set {port} master {wanted} up",))


def forwarding(trip: Trip, port: str, vlan: int) -> None:
    """State of a port by the spanning tree. ``vlan``: of the frame inside of the bridge."""
    scene = trip.scene
    state = str(scene.port(port).get("state", "forwarding"))
    bridge = scene.bridge_of(port)
    if not (scene.up(port) and scene.carrier(port) and scene.up(bridge)):
        return
    if GATED in scene.alias(bridge):
        kept_shut(trip, port, bridge, state, vlan)
        return
    if state == "forwarding":
        return
    data = scene.data(bridge)
    waits = state in ("listening", "learning")
    delay = int(data.get("forward_delay", 0)) // 100
    trip.blocks("port-state", port, f"the port is {state}", f"the spanning tree lets it wait {2 * delay} s after it came up; DHCP clients give up before" if waits else
                "the spanning tree has found another way, or the port was set so", f"stp_state {data.get('stp_state')}, forward_delay {delay} s",
                fix=(f"ip link set {bridge} type bridge stp_state 0", f"bridge link set dev {port} state 3") if waits else (f"ip link set {port} type bridge_slave state 3",) if not data.get("stp_state") else ())


def cross(trip: Trip, bridge: str, port: str, expected: str) -> str:
    """The bridge looks for the destination. Gives the port by which the frame leaves, '' when it goes up to the host.
    ``port``: where it came in, '' from the host. ``expected``: the port that the destination is behind, '' for the host."""
    scene = trip.scene
    destination = trip.packet.macs[0]
    if int(destination[:2], 16) & 1:
        return flooded(trip, bridge, port, expected, "bcast_flood" if destination == BROADCAST else "mcast_flood")
    found = scene.found_at(bridge, destination, vlan_of(trip, port or bridge))
    if found is None and scene.filters_vlans(bridge):
        found = scene.found_at(bridge, destination, 0)
    if found is None:
        return flooded(trip, bridge, port, expected, "flood")
    there, entry = found
    if there == bridge:
        there = ""
    if there != expected and expected in scene.links:
        if not there and entry and entry.get("mac") == scene.mac(str(entry.get("ifname"))) and entry["ifname"] != bridge:
            trip.blocks("duplicate-mac", entry["ifname"], f"{entry['ifname']}, another port of {bridge}, has the MAC {destination} itself", "a bridge takes frames for the MACs of its own ports for the host's: they never reach the guest", f"ip link show {entry['ifname']}: {destination}",
                        fix=(f"ip link set {entry['ifname']} address fe:{destination[3:]}",))
            return expected
        trip.blocks("guest-learned-elsewhere", bridge, f"{bridge} sends frames for {destination} to {there or 'the host'}, but it is behind {expected}",
                    "the entry is local (permanent, which bridge fdb writes where neither static nor dynamic is said): the bridge takes the MAC for one of the host's own" if not there and entry else
                    "the bridge learned the MAC there (a loop, a reflection, a second guest with the same MAC), or somebody wrote it",
                    f"bridge fdb: {destination} dev {entry.get('ifname', there or bridge)} {entry.get('state', '')} {' '.join(entry.get('flags', ()))}".rstrip(),
                    fix=(f"bridge fdb del {destination} dev {entry.get('ifname', there or bridge)} master", f"bridge fdb replace {destination} dev {expected} master static sticky"))
        return expected
    if there == port and port and not scene.port(port).get("hairpin"):
        trip.blocks("hairpin", port, f"both ends are behind {port}", "a bridge sends no frame back by the port that it came by", f"{destination} dev {there}",
                    fix=(f"bridge link set dev {port} hairpin on",))
    return there


def flooded(trip: Trip, bridge: str, port: str, expected: str, flag: str) -> str:
    """Nobody knows where it is: every port gets it whose flag lets it."""
    data = trip.scene.port(expected) if expected else {}
    if expected and data.get("proxy_arp"):
        trip.blocks("port-no-flood", expected, f"{bridge} sends no questions who has an address, and nothing else that is for all or for an unknown MAC, to {expected} (proxy_arp on)",
                    "a port with proxy_arp is left out of all that is flooded: the bridge means to answer in its place, and does so only for who asks by such a port (br_flood())", f"bridge -d link show dev {expected}: proxy_arp on",
                    fix=(f"ip link set {expected} type bridge_slave proxy_arp off",))
    elif expected and data.get(flag) is False and not (trip.asked and data.get("neigh_suppress")):
        option = {"flood": "flood", "mcast_flood": "mcast_flood", "bcast_flood": "bcast_flood"}[flag]
        trip.blocks("port-no-flood", expected, f"{bridge} does not know where {trip.packet.macs[0]} is, and {expected} gets no such frames ({option} off)",
                    "frames for MACs that the bridge has not learned, and broadcasts, are not sent to this port", f"bridge -d link show dev {expected}: {option} off",
                    fix=(f"bridge link set dev {expected} {option} on",))
    return expected


def leave(trip: Trip, bridge: str, port: str, out: str) -> None:
    """From the bridge out by a port; ``port`` is '' for what the host sends."""
    scene = trip.scene
    if port and scene.port(port).get("isolated") and scene.port(out).get("isolated"):
        trip.hop(out, "port", "isolated")
        first, second = sorted((port, out))
        meant = scene.alias(out).startswith("kvmnet")
        trip.blocks("port-isolated", f"{first}, {second}", f"both {first} and {second} are isolated", "isolated ports reach the others only, not each other" + (": isolated_ports of the document, unless kvmnet status says that another hand has done it (kvmnet apply takes it back)" if meant else ""),
                    f"bridge -d link show dev {second}: isolated on", fix=() if meant else (f"bridge link set dev {second} isolated off",))
    if scene.filters_vlans(bridge):
        vlan = vlan_of(trip, port or bridge)
        if vlan and vlan not in scene.vlans.get(out, {}):
            trip.hop(out, "port", f"VLANs {', '.join(map(str, scene.vlans.get(out, {}))) or 'none'}")
            trip.blocks("vlan-mismatch", out, f"{out} is not in VLAN {vlan} of the frame", "a bridge sends a frame to ports of its VLAN only",
                        f"bridge vlan show dev {out}: {', '.join(map(str, scene.vlans.get(out, {}))) or 'none'}; {port or bridge}: PVID {vlan}",
                        fix=(f"bridge vlan add dev {out} vid {vlan} pvid untagged",))
        elif vlan:      # br_handle_vlan(): before the hook, and before filters at the port ask for the type
            bare = "Egress Untagged" in scene.vlans[out][vlan]
            trip.context.packet = trip.packet.untagged() if bare else trip.packet.tagged_with(vlan)
    trip.context.crossing = bool(port)
    trip.at_bridge("forward" if port else "output", bridge, port, out)
    trip.at_bridge("postrouting", bridge, "", out)
    trip.context.crossing = False
    trip.at("netdev", "egress", oif=out, where=out)     # before tc (__dev_queue_xmit())
    filters(trip, out, "egress")
    device(trip, out, "port")
    forwarding(trip, out, vlan_of(trip, port or bridge))
    too_large(trip, port or bridge, out)


def too_large(trip: Trip, source: str, out: str) -> None:
    """A bridge drops what is larger than the port's MTU, and tells nobody (is_skb_forwardable())."""
    scene = trip.scene
    size = scene.mtu(source)
    if scene.filters_vlans(scene.bridge_of(source)) and len(scene.vlans.get(source, {})) > 1:
        return      # a trunk carries what its largest VLAN needs
    if out in scene.links and scene.mtu(out) < size and not trip.asked:
        trip.blocks("mtu-island", out, f"the MTU of {out} is {scene.mtu(out)}, that of {source} is {size}",
                    f"packets of more than {scene.mtu(out)} bytes are dropped by the bridge without a word; ping and logins work, large transfers hang",
                    f"mtu {source} {size}, {out} {scene.mtu(out)}; {scene.drops(out)}", fix=(f"ip link set {source} mtu {scene.mtu(out)}   # and in the guest behind it (DHCP option 26): {out} is a tunnel",) if scene.kind(out) in OVERHEAD else (f"ip link set {out} mtu {size}",), severity=Severity.DEGRADES)

