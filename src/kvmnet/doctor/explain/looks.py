"""Questions that entries put to the host. Each returns a Look. Pure."""
from __future__ import annotations

from collections.abc import Callable, Mapping

from kvmnet.doctor.explain.entry import Holds, Look, Sign
from kvmnet.doctor.view import View, carrier, kind, up

Named = Mapping[str, str]
FULL = 0.8
"""Share of a table from which on it counts as full: garbage collection lets it swing."""


def seen(evidence: str) -> Sign:
    return Sign(Holds.SEEN, evidence)


def ruled_out(evidence: str) -> Sign:
    return Sign(Holds.RULED_OUT, evidence)


def unknown(evidence: str) -> Sign:
    return Sign(Holds.UNKNOWN, evidence)


def lacks(*features: str) -> Look:
    """The kernel or a device is without one of *features* (the feature table)."""
    def look(view: View, named: Named) -> Sign:
        table = view.facts.get("features") or {}
        if missing := [f"{name}: {table[name]}" for name in features if table.get(name)]:
            return seen("; ".join(missing))
        asked = [name for name in features if name in table]
        return ruled_out(f"this kernel has {', '.join(asked)}") if asked else unknown("not in the capture")
    return look


def lacks_any(view: View, named: Named) -> Sign:
    """What of everything that kvmnet may use this kernel has not."""
    table = view.facts.get("features") or {}
    missing = [name for name, reason in table.items() if reason]
    if not table:
        return unknown("not in the capture")
    return Sign(Holds.POSSIBLE, f"this host has no {', '.join(missing)}") if missing else ruled_out("this kernel has all that kvmnet looks for")


def setting(name: str, test: Callable[[int], bool], words: str = "") -> Look:
    """The number /proc/sys/*name* passes *test*."""
    def look(view: View, named: Named) -> Sign:
        value = view.number(name)
        if value is None:
            return unknown(f"{name.replace('/', '.')} is not shown in this namespace")
        told = f"{name.replace('/', '.')} = {value}{words}"
        return seen(told) if test(value) else ruled_out(told)
    return look


def grows(counter: str) -> Look:
    """A counter of /proc/net/snmp or netstat is not 0."""
    def look(view: View, named: Named) -> Sign:
        value = view.counters.get(counter)
        if value is None:
            return unknown(f"no counter {counter} in the capture")
        return Sign(Holds.POSSIBLE, f"{counter} = {value} since boot") if value else ruled_out(f"{counter} = 0")
    return look


# -- tables ----------------------------------------------------------------------------------------

def neighbours_full(view: View, named: Named) -> Sign:
    found, shown = [], False
    for version, limit in ((4, "net/ipv4/neigh/default/gc_thresh3"), (6, "net/ipv6/neigh/default/gc_thresh3")):
        count = sum((":" in n["dst"]) == (version == 6) for n in view.rows("neighbours") if "dst" in n)
        most = view.number(limit)
        shown |= most is not None
        found.append((count, most, f"{count} IPv{version} neighbours of {most if most is not None else 'an unseen limit'}"))
    text = ", ".join(words for _, _, words in found)
    if any(most and count >= FULL * most for count, most, _ in found):
        return seen(text)
    return ruled_out(text) if shown else unknown(f"{text} (gc_thresh3 is only shown in the host's first namespace)")


def conntrack_full(view: View, named: Named) -> Sign:
    count, most = view.number("net/netfilter/nf_conntrack_count"), view.number("net/netfilter/nf_conntrack_max")
    if count is None or not most:
        return unknown("connection tracking is not loaded, or not shown in this namespace")
    text = f"{count} of {most} connections"
    return seen(text) if count >= FULL * most else ruled_out(text)


def backlog_dropped(view: View, named: Named) -> Sign:
    rows = view.softnet((view.facts.get("counters") or {}).get("softnet_stat", ""))
    if not rows:
        return unknown("no softnet_stat in the capture")
    dropped = sum(row[1] for row in rows)
    return Sign(Holds.POSSIBLE, f"{dropped} packets dropped by the backlog since boot") if dropped else ruled_out("the backlog dropped nothing since boot")


def output_dropped(view: View, named: Named) -> Sign:
    """Queues of output that were full."""
    chosen = [q for q in view.rows("qdiscs") if q.get("drops") and named.get("dev", q["dev"]) == q["dev"]]
    if chosen:
        return seen("; ".join(f"{q['dev']}: {q['kind']} dropped {q['drops']}" for q in chosen[:5]))
    return ruled_out("no queue of output has dropped a packet") if view.rows("qdiscs") else unknown("no queues in the capture")


def bridge_full(view: View, named: Named) -> Sign:
    counts = {b["ifname"]: len(view.ports.get(b["ifname"], ())) for b in view.bridges}
    if full := [f"{name} has {count} ports" for name, count in counts.items() if count >= 1023]:
        return seen("; ".join(full))
    most = max(counts.items(), key=lambda item: item[1], default=None)
    return ruled_out(f"the largest bridge, {most[0]}, has {most[1]} ports of 1023" if most else "no bridge here")


# -- devices ---------------------------------------------------------------------------------------

def tap_held(view: View, named: Named) -> Sign:
    """Somebody has the tap of the message open."""
    if dev := named.get("dev"):
        if holder := view.holder(dev):
            return seen(f"{dev} is held by {holder}")
        return ruled_out(f"nobody seen here holds {dev}") if dev in view.links else unknown(f"there is no {dev} now")
    held = [f"{tap} by {view.holder(tap)}" for tap in view.facts.get("taps") or {}]
    return Sign(Holds.POSSIBLE, "held: " + ", ".join(held[:8])) if held else ruled_out("no tap is open")


def queues_differ(view: View, named: Named) -> Sign:
    """The tap was made with or without multi_queue, and its opener wants the other."""
    taps = [link for link in view.links.values() if kind(link) == "tun" and named.get("dev", link["ifname"]) == link["ifname"]]
    if not taps:
        return unknown("there is no such tap now")
    return Sign(Holds.POSSIBLE, "; ".join(
        f"{t['ifname']} has multi_queue {'on' if ((t.get('linkinfo') or {}).get('info_data') or {}).get('multi_queue') else 'off'}" for t in taps[:8]))


def enslaved(view: View, named: Named) -> Sign:
    """The device has a master already."""
    link = view.links.get(named.get("dev", ""))
    if link is None:
        return unknown("the message names no device of this host")
    return seen(f"{link['ifname']} is a port of {link['master']}") if link.get("master") else ruled_out(f"{link['ifname']} has no master")


def exists(view: View, named: Named) -> Sign:
    """A device of that name is here."""
    dev = named.get("dev")
    if not dev:
        return unknown("the message names no device")
    return seen(f"{dev} is there") if dev in view.links else ruled_out(f"there is no {dev}")


def absent(view: View, named: Named) -> Sign:
    """No device of that name is here."""
    dev = named.get("dev")
    if not dev:
        return unknown("the message names no device")
    if dev in view.links:
        return ruled_out(f"{dev} is there")
    from difflib import get_close_matches
    near = get_close_matches(dev, view.links, 3, 0.5)
    return seen(f"there is no {dev} in this network namespace" + (f"; near: {', '.join(near)}" if near else ""))


def down(view: View, named: Named) -> Sign:
    """The device of the message is down, or has no carrier."""
    link = view.links.get(named.get("dev", ""))
    if link is None:
        idle = [name for name, other in view.links.items() if not up(other) and name != "lo"]
        return Sign(Holds.POSSIBLE, "down: " + ", ".join(idle[:8])) if idle else ruled_out("every link is up")
    if up(link) and carrier(link):
        return ruled_out(f"{link['ifname']} is up, with a carrier")
    return seen(f"{link['ifname']} is {'up, without a carrier' if up(link) else 'down'}")


def wireless(view: View, named: Named) -> Sign:
    radios = list(view.machine.get("wireless") or ())
    dev = named.get("dev")
    if dev in radios:
        return seen(f"{dev} is a wireless card")
    if dev:
        return ruled_out(f"{dev} is not wireless")
    return Sign(Holds.POSSIBLE, "wireless: " + ", ".join(radios)) if radios else ruled_out("no card here is wireless")


def address_taken(view: View, named: Named) -> Sign:
    """Two links with one MAC."""
    macs: dict[str, list[str]] = {}
    for link in view.links.values():
        if kind(link) in ("macvlan", "macvtap") or physical_of_macvlan(view, link):
            macs.setdefault(link.get("address", ""), []).append(link["ifname"])
    if twice := [f"{mac}: {', '.join(names)}" for mac, names in macs.items() if len(names) > 1]:
        return seen("; ".join(twice[:4]))
    return ruled_out("no macvlan shares a MAC with its parent or another")


def physical_of_macvlan(view: View, link: Mapping[str, object]) -> bool:
    return any(other.get("link") == link["ifname"] and kind(other) in ("macvlan", "macvtap") for other in view.links.values())


def bridge_mac_on_port(view: View, named: Named) -> Sign:
    """Two ends of one wire in one bridge, or bridges in a ring."""
    from kvmnet.doctor.rules.loops import rings
    found = rings(view)
    return seen("; ".join(" - ".join(ring) for ring in found)) if found else Sign(
        Holds.UNKNOWN, "no ring within this host; it may close beyond the uplink")


# -- services --------------------------------------------------------------------------------------

def port_taken(port: int) -> Look:
    """Somebody listens on *port*."""
    def look(view: View, named: Named) -> Sign:
        rows = [s for s in view.rows("listening") if s["port"] == port]
        if not rows:
            return ruled_out(f"nobody listens on port {port}")
        texts = dict.fromkeys(f"{s['proto']} {s['address']}:{port} {s['program'] or '(owner not visible)'}{' pid ' + str(s['pid']) if s['pid'] else ''}" for s in rows)
        wide = [s for s in rows if s["address"] in ("0.0.0.0", "::")]
        return Sign(Holds.SEEN if wide else Holds.POSSIBLE, "; ".join(list(texts)[:6]))
    return look


def runs(*programs: str) -> Look:
    """One of *programs* does not run here."""
    def look(view: View, named: Named) -> Sign:
        found = [f"{s['program']} (pid {s['pid']})" for s in view.rows("servers") if s["program"] in programs]
        return ruled_out(f"runs: {', '.join(found)}") if found else seen(f"no {' or '.join(programs)} runs in this network namespace")
    return look


def no_route(view: View, named: Named) -> Sign:
    defaults = [r for part in ("routes4", "routes6") for r in view.rows(part) if r.get("dst") == "default" and r.get("type", "unicast") == "unicast"]
    if not defaults:
        return seen("there is no default route")
    return Sign(Holds.POSSIBLE, "default: " + ", ".join(f"via {r.get('gateway', 'link')} dev {r.get('dev', '?')}" for r in defaults[:4]))


def refusing_route(view: View, named: Named) -> Sign:
    found = [f"{r['type']} {r['dst']} (table {r.get('table', 'main')})" for part in ("routes4", "routes6") for r in view.rows(part)
             if r.get("type") in ("unreachable", "prohibit", "blackhole")]
    return Sign(Holds.POSSIBLE, "; ".join(found[:6])) if found else ruled_out("no route refuses")


def failed_neighbours(view: View, named: Named) -> Sign:
    found = [f"{n['dst']} on {n.get('dev')}" for n in view.rows("neighbours") if {"FAILED", "INCOMPLETE"} & set(n.get("state", ()))]
    return Sign(Holds.POSSIBLE, f"no answer to ARP or ND: {', '.join(found[:6])}") if found else ruled_out("every neighbour that was asked has answered")


def rejecting_rules(view: View, named: Named) -> Sign:
    """Rules of a firewall that answer with an error."""
    lines = [line.strip() for line in str(view.facts.get("nft_text") or "").splitlines() if "reject" in line]
    texts = view.facts.get("xtables") or {}
    lines += [line for text in texts.values() for line in text.splitlines() if "-j REJECT" in line]
    return Sign(Holds.POSSIBLE, f"{len(lines)} rules reject: {lines[0]}") if lines else ruled_out("no rule rejects")


def forwarding_off(view: View, named: Named) -> Sign:
    four, six = view.number("net/ipv4/ip_forward"), view.number("net/ipv6/conf/all/forwarding")
    text = f"net.ipv4.ip_forward = {four}, net.ipv6.conf.all.forwarding = {six}"
    return seen(text) if four == 0 else ruled_out(text) if four else unknown(text)


def mtus(view: View, named: Named) -> Sign:
    """MTUs that differ among the ports of one bridge."""
    found = []
    for bridge in view.bridges:
        sizes = {p["mtu"] for p in view.ports.get(bridge["ifname"], ())} | {bridge["mtu"]}
        if len(sizes) > 1:
            found.append(f"{bridge['ifname']}: {', '.join(str(s) for s in sorted(sizes))}")
    return seen("different MTUs on one bridge: " + "; ".join(found)) if found else ruled_out("every bridge has one MTU")


def vhost_off(view: View, named: Named) -> Sign:
    found = [f"{c.guest}: {c.tap or c.model}" for c in view.cards if c.backend == "tap" and not c.vhost]
    return seen("without vhost: " + ", ".join(found[:6])) if found else ruled_out("every tap of a running guest has vhost") if view.cards else unknown("no guest runs here")


def emulated(view: View, named: Named) -> Sign:
    found = [f"{c.guest}: {c.model}" for c in view.cards if not c.model.startswith(("virtio", "vmxnet3", "igb"))]
    return seen(", ".join(found[:6])) if found else ruled_out("no running guest has an emulated card")


def active_backup(view: View, named: Named) -> Sign:
    found = [link["ifname"] for link in view.links.values() if kind(link) == "bond"
             and ((link.get("linkinfo") or {}).get("info_data") or {}).get("mode") == "active-backup"]
    return seen(f"active-backup: {', '.join(found)}") if found else ruled_out("no bond in mode active-backup")


def throttled(view: View, named: Named) -> Sign:
    found = [f"{row['guest']}: cut off in {row['throttled']} of {row['periods']} periods" for row in (view.machine.get("throttled") or {}).values() if row["throttled"]]
    if found:
        return seen("; ".join(found[:4]))
    return ruled_out("no quota has cut off a guest") if view.machine else unknown("not in the capture")


def netlink_lost(view: View, named: Named) -> Sign:
    """A listener of netlink has lost messages."""
    if "netlink_drops" not in view.machine:
        return unknown("not in the capture")
    count = view.machine["netlink_drops"]
    return seen(f"listeners of this namespace have lost {count} messages") if count else ruled_out("no listener that lives has lost a message")
