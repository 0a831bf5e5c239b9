"""Rules about bridges, their ports and who is behind them. Pure."""
from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from kvmnet.doctor.finding import Certainty, Finding, Severity
from kvmnet.doctor.rules.loops import rings
from kvmnet.doctor.view import Json, View, carrier, data, kind, owned, physical, port_data, up

DEFAULT_MAC = 0x525400123456
"""MAC of the first card of a QEMU that is told none (qemu(1), -device virtio-net-pci,mac=)."""
HYPERVISORS = ("qemu", "kvm", "cloud-hypervisor", "firecracker", "crosvm")
PORTS = 1023
"""Ports of a bridge (BR_MAX_PORTS - 1, net/bridge/br_private.h)."""
DELAY = 400
"""Forward delay in hundredths of a second that a DHCP client does not outlast twice."""
AGEING = 1000
"""Hundredths of a second below which a quiet guest is forgotten between two packets."""
OWN_ADDRESS = re.compile(r"(?P<bridge>\S+): received packet on (?P<port>\S+) with own address as source address \(addr:(?P<mac>[0-9a-f:]{17})")
RECENT = 600
"""Seconds for which a line of the log tells of the present."""
STATES = {0: "disabled", 1: "listening", 2: "learning", 4: "blocking"}


def duplicate_mac(view: View) -> Iterator[Finding]:
    """Two cards have one MAC. The bridge sends frames to the port that spoke last, so each of the two loses what the other takes;
    DHCP gives both one address. QEMU gives 52:54:00:12:34:56 to every guest that is started without ``mac=``."""
    users: dict[str, list[str]] = defaultdict(list)
    unnamed: dict[int, int] = defaultdict(int)
    for card in view.cards:
        mac = card.mac
        if not mac:
            number = DEFAULT_MAC + unnamed[card.pid]
            mac = ":".join(f"{number:012x}"[i:i + 2] for i in range(0, 12, 2))
            unnamed[card.pid] += 1
        users[mac].append(f"{card.guest} ({card.tap or card.backend})")
    for mac, who in users.items():
        if len(who) > 1:
            yield Finding(code="duplicate-mac", severity=Severity.BLOCKS, where=mac, what=f"{len(who)} guests have the MAC {mac}: {', '.join(who)}",
                          why="A bridge knows one port for each MAC: the guests take each other's frames.", evidence=tuple(who),
                          fix=("give each card a MAC of its own: mac=02:... (QEMU), <mac address=.../> (libvirt); kvmnet gives out stable ones",))
    seen: dict[tuple[str, str], list[str]] = defaultdict(list)
    for n in view.rows("neighbours"):
        if n.get("lladdr", "").startswith("52:54:00:12:34:") and ":" not in n["dst"] and n["lladdr"] not in users:
            seen[n["lladdr"], n["dev"]].append(n["dst"])
    for (mac, dev), addresses in seen.items():
        if len(addresses) > 1:
            yield Finding(code="duplicate-mac", severity=Severity.BLOCKS, where=dev, certainty=Certainty.LIKELY, evidence=tuple(f"{a} lladdr {mac}" for a in addresses),
                          what=f"{', '.join(addresses)} on {dev} all have {mac}, the MAC that QEMU gives when it is told none",
                          why="Two guests that were started without mac= have the same MAC and take each other's frames.", fix=("start each guest with a MAC of its own: mac=02:...",))


def mac_moves(view: View) -> Iterator[Finding]:
    """A MAC was learned at one port and, a moment later, at another of the same bridge. That is a loop, two machines with
    one MAC, or frames that somebody reflects. A guest that migrates does it once; when it does so again and again, the host that it moves to
    announces it before it has left."""
    then = {(r["mac"], r.get("vlan"), r["master"]): r["ifname"] for r in view.rows("fdb") if r.get("master") and r.get("state") != "permanent"}
    for r in view.later.get("fdb") or ():
        before = then.get((r["mac"], r.get("vlan"), r.get("master")))
        if before and before != r["ifname"]:
            yield Finding(code="mac-moves", severity=Severity.DEGRADES, where=r["master"], certainty=Certainty.PROVED,
                          what=f"{r['mac']} moved from {before} to {r['ifname']} within {view.later['seconds']:.1f} s",
                          why="While the bridge believes the wrong port, frames for that machine go there and are lost.",
                          evidence=(f"fdb of {r['master']}: {r['mac']} at {before}, then at {r['ifname']}",),
                          fix=(f"bridge monitor fdb | grep {r['mac']}   # how often, and between which ports", "find the second machine with this MAC, or the loop behind one of the two ports",
                               "where a guest is to move to, and does not run yet: ip link set TAP down   # up once it runs there: QEMU announces it then"))


def bridge_ring(view: View) -> Iterator[Finding]:
    """Wires (pairs of veth) join bridges of this host in a ring, and spanning tree is off: the first broadcast goes round for ever."""
    for ring in rings(view):
        a, one, other, b = ring
        yield Finding(code="bridge-ring", severity=Severity.BLOCKS, where=one, what=f"the wire {one} - {other} closes a ring " + (f"in {a}" if a == b else f"of bridges ({a}, {b})"),
                      why="Broadcasts circle without end, fill every queue, and the bridges learn every machine at the wrong port.",
                      evidence=(f"{one} master {a}", f"{other} master {b}", "stp_state 0"), fix=(f"ip link set {one} down",))


def frames_come_back(view: View) -> Iterator[Finding]:
    """The kernel's log says that a bridge received frames with its own MAC as sender: what it sent came back, by a loop beyond
    the uplink, a bond that the switch does not know, or a machine with the same MAC."""
    found: dict[tuple[str, str], list[Json]] = defaultdict(list)
    for row in view.machine.get("log") or ():
        told = OWN_ADDRESS.search(row["text"])
        if not told or view.machine.get("uptime", 0) - row["last"] > RECENT or view.links.get(told["port"], {}).get("master") != told["bridge"]:
            continue
        own = (view.links[told["bridge"]], *view.ports[told["bridge"]])
        if told["mac"] in {link.get("address") for link in own}:  # another namespace has links of these names, too
            found[told["bridge"], told["port"]].append(row)
    for (bridge, port), rows in found.items():
        yield Finding(code="frames-come-back", severity=Severity.DEGRADES, where=port, certainty=Certainty.LIKELY,
                      what=f"{bridge} gets its own frames back by {port} ({sum(r['times'] for r in rows)} lines in the kernel's log in the last {RECENT // 60} minutes)",
                      why="Frames that come back make the bridge learn guests at the wrong port.", evidence=tuple(r["text"] for r in rows[:3]),
                      fix=("kvmnet explain received packet with own address", f"ip link set {port} down   # to see whether it ends"))


def tap_detached(view: View) -> Iterator[Finding]:
    """A guest holds a tap that belongs to no bridge, has no address and no route: nothing forwards its frames. It happens when
    a bridge is deleted and made again: the ports do not come back by themselves."""
    routed = {r.get("dev") for r in view.routes if r.get("protocol") != "kernel"}
    for tap, held in (view.facts.get("taps") or {}).items():
        link = view.links.get(tap)
        if not link or link.get("master") or tap in view.switched or tap in routed or view.addresses(link) or not held["program"].startswith(HYPERVISORS):
            continue
        bridges = ", ".join(b["ifname"] for b in view.bridges) or "none is left"
        yield Finding(code="tap-detached", severity=Severity.BLOCKS, where=tap, what=f"{tap} of a running guest is a port of no bridge",
                      why="Frames that the guest sends end at the tap.", evidence=(f"held by {view.holder(tap)}", "no master, no address, no route", f"bridges: {bridges}"),
                      fix=("kvmnet apply",) if owned(tap) else (f"ip link set {tap} master BRIDGE", f"ip link set {tap} up"))


def tap_idle(view: View) -> Iterator[Finding]:
    """A persistent tap is a port of a bridge and nobody has it open: left over by a guest that is gone, or waiting for one. It
    costs a copy of every broadcast and one of the bridge's 1023 ports."""
    taps = view.facts.get("taps")
    for bridge in view.bridges:
        idle = [p["ifname"] for p in view.ports.get(bridge["ifname"], ()) if taps is not None and kind(p) == "tun" and data(p).get("type") == "tap"
                and up(p) and not carrier(p) and p["ifname"] not in taps and not owned(p["ifname"])]
        if idle:
            yield Finding(code="tap-idle", severity=Severity.NOTE, where=bridge["ifname"], what=f"{len(idle)} taps of {bridge['ifname']} are held by nobody: {', '.join(idle[:6])}",
                          why="Nothing is behind them now.", evidence=tuple(f"{name}: no carrier, no holder" for name in idle[:6]),
                          fix=tuple(f"ip link del {name}   # when its guest is gone for good" for name in idle[:6]), certainty=Certainty.LIKELY)


def tap_carrier_off(view: View) -> Iterator[Finding]:
    """A program has a tap open, and the tap has no carrier all the same: somebody took it away on the host's side. A bridge sends nothing to such a port."""
    for name in view.facts.get("taps") or {}:
        link = view.links.get(name, {})
        if kind(link) == "tun" and up(link) and not carrier(link):
            yield Finding(code="tap-carrier-off", severity=Severity.BLOCKS, where=name, what=f"the carrier of {name} is switched off, though {view.holder(name)} has it open", why="A bridge sends nothing to a port without a carrier, and takes nothing from it.",
                          evidence=(f"ip link show {name}: {' '.join(link.get('flags', ()))}",), fix=(f"ip link set {name} carrier on",))


def port_down(view: View) -> Iterator[Finding]:
    """A port of a bridge is down although a guest holds it, or although it is the uplink: nothing passes it."""
    for bridge in view.bridges:
        for p in view.ports.get(bridge["ifname"], ()):
            name = p["ifname"]
            if not up(p) and (view.holder(name) or physical(p)):
                yield Finding(code="port-down", severity=Severity.BLOCKS, where=name, what=f"{name}, a port of {bridge['ifname']}, is down",
                              why="A port that is down is disabled in the bridge.", evidence=(f"flags {','.join(p['flags'])}", f"held by {view.holder(name)}" if view.holder(name) else "leads out of the host"),
                              fix=("kvmnet apply",) if owned(name) else (f"ip link set {name} up",))
        if not up(bridge) and view.ports.get(bridge["ifname"]):
            name = bridge["ifname"]
            yield Finding(code="port-down", severity=Severity.BLOCKS, where=name, what=f"the bridge {name} is down and has {len(view.ports[name])} ports",
                          why="A bridge that is down forwards nothing between its ports.", evidence=(f"flags {','.join(bridge['flags'])}",),
                          fix=("kvmnet apply",) if owned(name) else (f"ip link set {name} up",))


def uplink_without_carrier(view: View) -> Iterator[Finding]:
    """The way out of a bridge with guests has no carrier: cable, switch port or the far end."""
    for bridge in view.bridges:
        for p in view.ports.get(bridge["ifname"], ()):
            if up(p) and not carrier(p) and (physical(p) or kind(p) in ("bond", "team")):
                yield Finding(code="uplink-without-carrier", severity=Severity.BLOCKS, where=p["ifname"], what=f"{p['ifname']}, the way out of {bridge['ifname']}, has no carrier",
                              why="Guests reach each other and nothing else.", evidence=(f"operstate {p.get('operstate', '')}", f"flags {','.join(p['flags'])}"),
                              fix=(f"ethtool {p['ifname']}", "cable, transceiver, and the port of the switch"))


def stp_delay(view: View) -> Iterator[Finding]:
    """Spanning tree with a long delay at a bridge with guests: a port that comes up passes nothing for twice the forward delay (30 s
    with the default), and DHCP or PXE of a guest that boots gives up before."""
    for bridge in view.bridges:
        ports = view.guest_ports(bridge["ifname"])
        delay = data(bridge).get("forward_delay", 0)
        if data(bridge).get("stp_state") and delay >= DELAY and ports:
            waiting = [f"{p['ifname']} {state}" for p in ports if (state := state_of(p)) in ("listening", "learning")]
            name = bridge["ifname"]
            yield Finding(code="stp-delay", severity=Severity.DEGRADES, where=name, what=f"guests of {name} wait {delay / 50:.0f} s for the network after they start",
                          why="With spanning tree a port listens and learns for one forward delay each before it forwards; DHCP gives up meanwhile.",
                          evidence=(f"stp_state 1, forward_delay {delay / 100:.0f} s", *waiting[:5]),
                          fix=("kvmnet apply",) if owned(name) else (f"ip link set {name} type bridge forward_delay 200",))


def tree_silent(view: View) -> Iterator[Finding]:
    """Nobody speaks for a spanning tree of kvmnet's own any more: what is shut stays shut, and a way that is lost is not replaced."""
    for row in view.rows("trees"):
        if not row["trees"] and row["bridge"] in view.links:
            yield Finding(code="tree-silent", severity=Severity.DEGRADES, where=row["bridge"],
                          what=f"nobody speaks {row['protocol'].upper()} for {row['bridge']}: its ports stay as they are",
                          why="Its process has ended. All its open ports but one have shut by themselves, since neighbours that hear nobody open their own.",
                          evidence=("no process of kvmnet holds it",), fix=("kvmnet apply",))


def state_of(port: Json) -> str:
    told = port_data(port).get("state")
    return STATES.get(told, str(told)) if isinstance(told, int) else str(told or "")


def bridge_mac_floats(view: View) -> Iterator[Finding]:
    """A bridge with an address has the MAC of one of its guests' ports: it was never pinned. When that port goes, or one with a lower
    MAC comes, the MAC of the gateway changes, and every guest keeps the old one in its ARP cache for half a minute."""
    # A bridge of kvmnet's is made with its MAC; that of an uplink's segment has the uplink's.
    pinned = view.machine.get("address_set") or {}
    for bridge in view.bridges:
        ports = view.ports.get(bridge["ifname"], ())
        lowest = min(ports, key=lambda p: p.get("address", "~"), default=None)
        name = bridge["ifname"]
        if lowest is None or pinned.get(name, owned(name)) or lowest.get("address") != bridge.get("address") or kind(lowest) not in ("tun", "veth") or not view.addresses(bridge):
            continue
        yield Finding(code="bridge-mac-floats", severity=Severity.RISK, where=name, certainty=Certainty.PROVED if name in pinned else Certainty.LIKELY,
                      what=f"the MAC of {name} is that of its port {lowest['ifname']}, and changes with its ports",
                      why="A bridge that was given no MAC takes the lowest of its ports (br_stp_recalculate_bridge_id()).",
                      evidence=(f"{name} {bridge['address']}", f"{lowest['ifname']} {lowest['address']}"), fix=(f"ip link set {name} address {bridge['address']}",))


def bridge_full(view: View) -> Iterator[Finding]:
    """A bridge has nearly, or exactly, the 1023 ports that it can have."""
    for bridge in view.bridges:
        count = len(view.ports.get(bridge["ifname"], ()))
        if count >= PORTS - 23:
            yield Finding(code="bridge-full", severity=Severity.RISK if count < PORTS else Severity.BLOCKS, where=bridge["ifname"],
                          what=f"{bridge['ifname']} has {count} of {PORTS} ports", why="The next guest is refused: Exchange full.", evidence=(f"{count} links with master {bridge['ifname']}",),
                          fix=("spread the guests over two networks",))


def ageing_short(view: View) -> Iterator[Finding]:
    """A bridge forgets machines after a few seconds (or at once): frames for one that is quiet go to every port, where others read them."""
    for bridge in view.bridges:
        age = data(bridge).get("ageing_time", 30000)
        if age < AGEING and len(view.ports.get(bridge["ifname"], ())) > 2:
            yield Finding(code="ageing-short", severity=Severity.RISK, where=bridge["ifname"], what=f"{bridge['ifname']} forgets a MAC after {age / 100:g} s",
                          why="Frames for a forgotten MAC are flooded: every guest of the bridge can read them.", evidence=(f"ageing_time {age}",),
                          fix=(f"ip link set {bridge['ifname']} type bridge ageing_time 30000",))


def wireless_port(view: View) -> Iterator[Finding]:
    """Guests have MACs of their own on a wireless card, by a macvtap or a bridge. An access point takes frames from the MAC of its station alone, so theirs
    are lost. The kernel lets a card be the port of a bridge only as an access point or with 4addr, where it can work: then that is a note."""
    radios = set(view.machine.get("wireless") or ())
    why = "802.11 with three addresses has no place for the MAC of a guest behind the station."
    for link in view.links.values():
        name, below = link["ifname"], link.get("link", "")
        if below in radios and kind(link) in ("macvtap", "macvlan") and data(link).get("mode") != "passthru":
            yield Finding(code="wireless-port", severity=Severity.BLOCKS, where=name, certainty=Certainty.LIKELY, what=f"{name} has a MAC of its own on {below}, a wireless card", why=why,
                          evidence=(f"/sys/class/net/{below}/phy80211", f"{name}: {kind(link)} on {below}, {link.get('address')}"), fix=("use a nat or routed network over it",))
        elif name in radios and kind(view.links.get(link.get("master", ""), {})) == "bridge":
            yield Finding(code="wireless-port", severity=Severity.NOTE, where=name, certainty=Certainty.LIKELY, what=f"{name} is a wireless card and a port of {link['master']}: guests need it to be an access point, or 4addr on both ends", why=why,
                          evidence=(f"/sys/class/net/{name}/phy80211",), fix=(f"iw dev {name} info   # type AP, or 4addr: on", "else a nat or routed network over it"))


def guest_learned_elsewhere(view: View) -> Iterator[Finding]:
    """The MAC of a guest is known at another port than its tap: reflected frames, a static entry, a second machine with its MAC, or a guest that has
    moved here and was not announced. Frames for it go there. Or it was written as one of the host's own (permanent)."""
    macs = {link.get("address") for link in view.links.values()}
    for r in view.rows("fdb"):
        home = view.homes.get(r["mac"])
        port = view.links.get(r["ifname"], {})
        if r.get("state") == "permanent" and r.get("master") and r["mac"] not in macs and kind(port) in ("tun", "veth"):
            yield Finding(code="guest-learned-elsewhere", severity=Severity.BLOCKS, where=r["ifname"], what=f"{r['master']} takes {r['mac']}, written for {r['ifname']}, for a MAC of the host's own",
                          why="An entry that is permanent is local: frames for it go up to the host, never out by the port. bridge fdb writes such where neither static nor dynamic is said.",
                          evidence=(f"fdb: {r['mac']} dev {r['ifname']} permanent; no device of the host has that MAC",), fix=(f"bridge fdb del {r['mac']} dev {r['ifname']} master", f"bridge fdb replace {r['mac']} dev {r['ifname']} master static"))
            continue
        if not home or r["ifname"] == home or r.get("state") == "permanent" or not r.get("master") or view.links.get(home, {}).get("master") != r["master"]:
            continue
        static = r.get("state") == "static"
        yield Finding(code="guest-learned-elsewhere", severity=Severity.BLOCKS if static else Severity.DEGRADES, where=r["ifname"],
                      what=f"{r['master']} sends frames for {r['mac']} to {r['ifname']}, while the guest is behind {home}", why="Frames for the guest leave by the wrong port.",
                      evidence=(f"fdb: {r['mac']} dev {r['ifname']} {r.get('state') or 'learned'}",), fix=(f"bridge fdb del {r['mac']} dev {r['ifname']} master",))


def tap_has_guest_mac(view: View) -> Iterator[Finding]:
    """A tap has the MAC of the guest behind it. A bridge takes frames for the MACs of its own ports for the host's: they never reach the guest."""
    for mac, tap in view.homes.items():
        link = view.links.get(tap, {})
        if link.get("address") == mac and link.get("master"):
            yield Finding(code="tap-has-guest-mac", severity=Severity.BLOCKS, where=tap, what=f"{tap} has the MAC of its own guest, {mac}",
                          why="Frames for the MAC of a port are delivered to the host, not to the port.", evidence=(f"link/ether {mac} on {tap}",),
                          fix=(f"ip link set {tap} address fe:{mac[3:]}",))


def proxy_arp(view: View) -> Iterator[Finding]:
    """proxy_arp is on at a bridge with guests: the host answers ARP for every address that it has a route to elsewhere, also
    for addresses of guests, and takes their traffic."""
    for bridge in view.bridges:
        name = bridge["ifname"]
        if view.sysctl(f"net/ipv4/conf/{name}/proxy_arp") == "1" and view.guest_ports(name):
            yield Finding(code="proxy-arp", severity=Severity.RISK, where=name, what=f"the host answers ARP on {name} in the name of others", evidence=(f"net.ipv4.conf.{name}.proxy_arp = 1",),
                          why="A guest whose address has a more special route elsewhere resolves to the host's MAC.", fix=(f"sysctl -w net.ipv4.conf.{name}.proxy_arp=0",))
