"""Rules about tables and queues that are full. Pure."""
from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from kvmnet.doctor.finding import Certainty, Finding, Severity
from kvmnet.doctor.view import Json, View, kind

NEARLY, FULL = 0.8, 0.97
RECENT = 600
"""Seconds for which a line of the log tells of the present."""
COMPLAINTS = {r"nf_conntrack: .*table full": "the table of connections was full", r"table overflow": "the table of neighbours was full",
              r"transmit queue \d+ timed out|tx (?:unit )?hang": "a NIC did not send", r"no 802\.3ad response": "a bond heard no partner"}
LOST = 0.0001
"""Share of received packets that a CPU may have lost since boot before it is told."""


def neighbour_table(view: View) -> Iterator[Finding]:
    """The table of neighbours is nearly full: then new addresses are not resolved, on any network of the host."""
    for version in (4, 6):
        limit = f"net/ipv{version}/neigh/default/gc_thresh3"
        most, count = view.number(limit), sum((":" in n.get("dst", "")) == (version == 6) for n in view.rows("neighbours"))
        if most and count >= NEARLY * most:
            new = max(8192, 2 * most)
            yield Finding(code="neighbour-table", severity=Severity.BLOCKS if count >= FULL * most else Severity.RISK, where=limit.replace("/", "."), what=f"{count} of {most} IPv{version} neighbours",
                          why="At the limit a new neighbour is refused: ENOBUFS, and 'table overflow' in the log.", evidence=(f"{limit.replace('/', '.')} = {most}", f"{count} entries"),
                          fix=(f"sysctl -w net.ipv{version}.neigh.default.gc_thresh3={new}", f"sysctl -w net.ipv{version}.neigh.default.gc_thresh2={new // 2}"))


def conntrack_table(view: View) -> Iterator[Finding]:
    """The table of connections is nearly full: then packets that begin a new one are dropped, of every guest whose traffic is tracked."""
    count, most = view.number("net/netfilter/nf_conntrack_count"), view.number("net/netfilter/nf_conntrack_max")
    if count is not None and most and count >= NEARLY * most:
        yield Finding(code="conntrack-table", severity=Severity.BLOCKS if count >= FULL * most else Severity.RISK, where="net.netfilter.nf_conntrack_max", what=f"{count} of {most} connections are tracked",
                      why="At the limit new connections are dropped: 'table full, dropping packet'.", evidence=(f"nf_conntrack_count = {count}", f"nf_conntrack_max = {most}"),
                      fix=(f"sysctl -w net.netfilter.nf_conntrack_max={max(262144, 2 * most)}",))


def log_complains(view: View) -> Iterator[Finding]:
    """The kernel's log of the last ten minutes says that a table was full, a NIC hung, or a bond heard no partner. The log is of all network
    namespaces of the host."""
    for row in view.machine.get("log") or ():
        found = next((words for pattern, words in COMPLAINTS.items() if re.search(pattern, row["text"], re.I)), "")
        if found and view.machine.get("uptime", 0) - row["last"] < RECENT:
            yield Finding(code="log-complains", severity=Severity.DEGRADES, where="kernel log", certainty=Certainty.LIKELY, what=f"{found}, says the kernel's log",
                          why="Packets were lost then.", evidence=(f"{row['text']} ({row['times']} times)",), fix=(f"kvmnet explain {shlex.quote(row['text'])}",))


def backlog_overflow(view: View) -> Iterator[Finding]:
    """A CPU drops received packets because its backlog is full: too much for one CPU, or interrupts of all queues on one."""
    now = view.softnet((view.facts.get("counters") or {}).get("softnet_stat", ""))
    then = view.softnet((view.later.get("counters") or {}).get("softnet_stat", "")) if view.later else []
    more = sum(max(0, b[1] - a[1]) for a, b in zip(now, then, strict=False))
    dropped, processed = sum(r[1] for r in now), sum(r[0] for r in now)
    if more or (not view.later and dropped > LOST * processed):
        yield Finding(code="backlog-overflow", severity=Severity.DEGRADES if more else Severity.NOTE, where="softnet", what=(f"{more} received packets were dropped within {view.later['seconds']:.1f} s" if more
                      else f"{dropped} of {processed} received packets were dropped since boot"),
                      why="A CPU had more packets waiting than net.core.netdev_max_backlog.", evidence=tuple(f"cpu{n}: processed {r[0]}, dropped {r[1]}, squeezed {r[2]}" for n, r in enumerate(now) if r[1])[:8],
                      fix=("spread the load first: ethtool -L DEVICE combined N, RPS, irqbalance", "sysctl -w net.core.netdev_max_backlog=5000"))


def port_overflow(view: View) -> Iterator[Finding]:
    """The queue of a guest's port overflows now: the guest (or the thread that serves its card) does not take packets as fast as they come."""
    later = view.later.get("links") or {}
    for name, told in later.items():
        link = view.links.get(name, {})
        before = (link.get("stats64") or {}).get("tx", {}).get("dropped")
        more = told["tx"]["dropped"] - before if before is not None else 0
        if more > 0 and kind(link) in ("tun", "macvtap") and view.holder(name):
            yield Finding(code="port-overflow", severity=Severity.DEGRADES, where=name, what=f"{name} dropped {more} packets for its guest within {view.later['seconds']:.1f} s",
                          why="The ring of the tap is full: the guest is too slow, paused, or its vCPU has no time.", evidence=(f"tx dropped {before}, +{more}", f"held by {view.holder(name)}"),
                          fix=("vhost=on, more queues, rx_queue_size=1024 of the card", "kvmnet doctor   # steal, quota"), certainty=Certainty.PROVED)


def netlink_lost(view: View) -> Iterator[Finding]:
    """A program that listens to changes of the network loses messages: its picture of the host is wrong until it reads everything again."""
    before, after = view.machine.get("netlink_drops", 0), view.later.get("netlink_drops", 0)
    if view.later and after > before:
        yield Finding(code="netlink-lost", severity=Severity.DEGRADES, where="netlink", what=f"listeners lost {after - before} messages within {view.later['seconds']:.1f} s",
                      why="Their receive buffer is full (ENOBUFS).", evidence=(f"Drops in /proc/net/netlink: {before}, then {after}",), fix=("sysctl -w net.core.rmem_max=16777216",))


def netem_left(view: View) -> Iterator[Finding]:
    """A queue that loses, delays or doubles packets on purpose (netem) stands at a device: left behind by a test. Nothing counts these as errors."""
    for row in view.rows("qdiscs"):
        if row.get("kind") == "netem" and (found := netem(row)):
            yield found


def queue_too_small(view: View) -> Iterator[Finding]:
    """A queue at a device takes no packet, or none of full size: its limit is 0, its burst smaller than a packet (tbf), or the txqueuelen of a tap is 0. What a queue drops is counted at
    the queue alone."""
    yield from filter(None, map(roomless, view.links.values()))
    for row in view.rows("qdiscs"):
        if found := narrow(row, int(view.links.get(row.get("dev", ""), {}).get("mtu", 0)), 60):
            yield found


def queue_too_slow(view: View) -> Iterator[Finding]:
    """The rate of a queue at a device (tbf, or the class of an htb for what nothing sorts) is so low that a packet waits for seconds: often bits were written for bytes, or the
    unit was left out (`rate 8` is 8 bits a second)."""
    for row in view.rows("qdiscs"):
        if found := slow(view, row, int(view.links.get(row.get("dev", ""), {}).get("mtu", 0)), 60):
            yield found


UNITS = {"bit": 1, "Kbit": 10**3, "Mbit": 10**6, "Gbit": 10**9, "Tbit": 10**12}
CLASS = re.compile(r"^class htb (?P<id>\S+) (?:root|parent (?P<parent>\S+)) .*?\brate (?P<rate>\d+)(?P<unit>\w+) ceil (?P<ceil>\d+)(?P<cunit>\w+) ", re.M)


def classes(view: View) -> dict[str, dict[str, tuple[str, int, int]]]:
    """Device -> class of its htb -> (parent, rate, ceiling), in bits a second."""
    if "classes" not in view.cached:
        found: dict[str, dict[str, tuple[str, int, int]]] = {}
        for dev, text in (view.facts.get("classes") or {}).items():
            for told in CLASS.finditer(text):
                found.setdefault(dev, {})[told["id"]] = (told["parent"] or "", int(told["rate"]) * UNITS.get(told["unit"], 1), int(told["ceil"]) * UNITS.get(told["cunit"], 1))
        view.cached["classes"] = found
    rows: dict[str, dict[str, tuple[str, int, int]]] = view.cached["classes"]
    return rows


def most(tree: dict[str, tuple[str, int, int]], name: str) -> int:
    """What a class of htb gets at most: its own rate, and what its parents lend it up to its ceiling."""
    parent, rate, ceil = tree[name]
    return max(rate, min(ceil, most(tree, parent))) if parent in tree else rate


def slow(view: View, row: Json, mtu: int, size: int) -> Finding | None:
    """A queue in which a frame of *size*, or one of the device's MTU, waits for more than a second."""
    options, dev, handle = row.get("options") or {}, row.get("dev", ""), str(row.get("handle", ""))
    if not row.get("root") or row.get("kind") not in ("tbf", "htb"):
        return None
    place, certainty, fix = "root", Certainty.PROVED, f"tc qdisc del dev {dev} root"
    if row["kind"] == "tbf":
        rate = 8 * int(options.get("rate") or 0)
    else:
        tree, place = classes(view).get(dev, {}), f"class {handle}{int(str(options.get('default') or '0'), 16):x}"
        name = place.removeprefix("class ")
        if name not in tree:
            return None
        rate, fix = most(tree, name), f"{fix}   # or the rate that was meant: tc class change dev {dev} classid {name} htb rate 100mbit"
        certainty = Certainty.PROVED if all(most(tree, n) <= rate for n in tree) else Certainty.LIKELY     # a filter may send it to another class
    if not rate or 8 * (mtu + 14) <= rate * PATIENCE:
        return None
    return Finding(code="queue-too-slow", severity=Severity.BLOCKS if 8 * size > rate * PATIENCE else Severity.DEGRADES, where=dev, certainty=certainty,
                   what=f"a packet of {mtu + 14} bytes waits {8 * (mtu + 14) / rate:.0f} s in the queue of {dev}: its rate is {rate} bit/s", why="The first packets pass by the burst, then each waits for its turn, and what comes meanwhile is dropped.",
                   evidence=(f"tc qdisc show dev {dev}; tc -s class show dev {dev}: {row['kind']} {handle} {place} rate {rate} bit/s, {row.get('backlog', 0)} bytes wait, dropped {row.get('drops', 0)}",), fix=(fix,))


PATIENCE = 1
"""Seconds that a packet may wait for a rate: more than programs wait for an answer of their first packets."""


def narrow(row: Json, mtu: int, size: int) -> Finding | None:
    """A queue that does not take a frame of *size*, or one of the device's MTU. Only where all packets meet it: at the root, or below a queue that has no other."""
    options, dev, kind = row.get("options") or {}, row.get("dev", ""), row.get("kind")
    if not row.get("root"):
        return None
    most = 0 if kind == "blackhole" or (kind in ("pfifo", "bfifo") and options.get("limit") == 0) else int(options["burst"]) if kind == "tbf" and "burst" in options else None
    if most is None or most >= mtu + 14:
        return None
    return Finding(code="queue-too-small", severity=Severity.BLOCKS if most < size else Severity.DEGRADES, where=dev,
                   what=f"the queue of {dev} takes {'no packet at all' if most == 0 else f'no packet of more than {most} bytes'}", why="What does not fit is dropped, and counted at the queue, not at the device.",
                   evidence=(f"tc -s qdisc show dev {dev}: {kind} {row.get('handle', '')} root {'burst' if kind == 'tbf' else 'limit'} {most}, dropped {row.get('drops', 0)}",), fix=(f"tc qdisc del dev {dev} root",))


def roomless(link: Json) -> Finding | None:
    """A tap keeps what its guest has not taken yet in a ring as long as the device's queue (tun_queue_resize()): of length 0 it takes nothing."""
    if kind(link) not in ("tun", "macvtap") or link.get("txqlen") or "qdisc" not in link:     # ip leaves out a length of 0
        return None
    dev = link["ifname"]
    return Finding(code="queue-too-small", severity=Severity.BLOCKS, where=dev, what=f"{dev} has a queue of length 0: nothing that is sent to its guest fits in", why="A tap's ring for its guest is as long as txqueuelen; what does not fit is dropped, and counted as dropped by the device.",
                   evidence=(f"ip link show {dev}: qlen 0; tx dropped {link.get('stats64', {}).get('tx', {}).get('dropped', 0)}",), fix=(f"ip link set {dev} txqueuelen 1000",))


def netem(row: Json) -> Finding | None:
    """One such queue; None where it does nothing."""
    options = row.get("options") or {}
    loss = float((options.get("loss-random") or {}).get("loss", 0))
    does = [f"{100 * loss:g} % lost" if loss else "", *(f"{100 * float((options.get(word) or {}).get(word, 0)):g} % {shown}" for word, shown in (("duplicate", "doubled"), ("reorder", "out of order"), ("corrupt", "damaged")) if (options.get(word) or {}).get(word)),
            f"{1000 * float(options['delay'].get('delay', 0)):g} ms later" if (options.get("delay") or {}).get("delay") else ""]
    if not any(does):
        return None
    place = "root" if row.get("root") else f"parent {row.get('parent')}"
    return Finding(code="netem-left", severity=Severity.BLOCKS if loss >= 1 else Severity.DEGRADES, where=row["dev"], what=f"a queue of {row['dev']} damages on purpose what is sent by it: {', '.join(d for d in does if d)}",
                   why="netem is a tool for tests; it works on what leaves by the device.", evidence=(f"tc qdisc show dev {row['dev']}: netem {row.get('handle', '')} {place}",), fix=(f"tc qdisc del dev {row['dev']} {place}",))
