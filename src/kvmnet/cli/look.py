"""Commands that look: status, history, check."""
from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from kvmnet.cli.output import Bar, json_option, print_json, say, table
from kvmnet.cli.picture import Node, picture

if TYPE_CHECKING:
    from kvmnet.api import Host
    from kvmnet.queues import ClassStatus, RateStatus
    from kvmnet.status import NetworkStatus, NicStatus, Status, TunnelPeerStatus, UplinkStatus

SIGNS = {"ok": "up", "up": "up", "idle": "idle", "running": "up", "stopped": "idle"}
CLIPPED = 40
"""NICs listed one by one before the rest is counted; --all lists every one."""


def host() -> Host:
    from kvmnet.api import Host
    return Host()


@click.command()
@click.option("--drops", is_flag=True, help="Only the frames that the guard, groups and limits refused, by guest and reason.")
@click.option("--rules", is_flag=True, help="Only what the rules of groups and tenants let begin, by rule.")
@click.option("--rates", is_flag=True, help="Only rates, by network, guest and direction: what was dropped, what waits.")
@click.option("--all", "everything", is_flag=True, help="Every NIC, however many.")
@json_option
def status(drops: bool, rules: bool, rates: bool, everything: bool, as_json: bool) -> int:
    """What the document wants and what the host has, at a glance. Where the two differ (drift), it says so."""
    from kvmnet.status import status as look
    found = look(host())
    if found is None:
        print_json(None) if as_json else say("No document is applied on this host. kvmnet init writes one.")
        return 0
    if as_json:
        print_json(found.to_json())
    elif drops:
        show_drops(found)
    elif rules:
        show_rules(found)
    elif rates:
        show_rates(found)
    else:
        show(found, everything)
    return 0


def show(found: Status, everything: bool) -> None:
    from kvmnet.status import problems
    click.echo(click.style(f"revision {found.revision}", bold=True)
               + f"  from {found.source}, applied {found.applied} by {found.by}")
    if found.unconfirmed is not None:
        click.echo(click.style(f"not confirmed: goes back in {found.unconfirmed:.0f} s unless `kvmnet confirm`", fg="yellow"))
    click.echo()
    click.echo(picture(trees(found)))
    show_nics(found, everything)
    if found.mirrors:
        table("", ("mirror", "from", "to", "copies", "bytes", "lost", "state"),
              [(m.name, " ".join(m.sources), m.receiver, str(m.frames), str(m.bytes), str(m.lost), m.state) for m in found.mirrors])
    if found.trees:
        table("", ("bridge", "root", "port", "role", "state", "cost", "speaks"),
              [(t.bridge + (f" instance {t.instance}" if t.instance else ""), t.root if t.root_port else "itself", name, p.role, p.state,
                str(p.cost), p.speaks) for t in found.trees for name, p in t.ports.items()])
    if found.drift:
        click.echo(click.style(f"drift: {len(found.drift)} difference(s) from the document", fg="yellow"))
        for line in found.drift[:10]:
            click.echo(f"  {line}")
        click.echo("  kvmnet plan shows them; kvmnet apply mends them")
    else:
        click.echo(click.style("no drift: the host is as the document says", fg="green"))
    for line in problems(found):
        click.echo(click.style(f"attention: {line}", fg="red"))
    for note in found.notes:
        click.echo(f"note: {note}")


def trees(found: Status) -> list[Node]:
    """Uplinks with their networks below, then networks without one."""
    roots = []
    for uplink in found.uplinks:
        node = Node("uplink", uplink.device, (f"uplink {uplink.name}", *uplink.addresses, f"mtu {uplink.mtu}", uplink.vfs, *queue_words(uplink)),
                    "up" if uplink.state == "up" else "broken")
        node.children = [Node("nic", nic, ("member of the bond",), "up" if state == "up" else "broken")
                         for nic, state in uplink.members.items() if nic != uplink.device]
        node.children += [Node("neighbour", there.name, (f"at {nic}", f"port {there.port}", there.address), "up")
                          for nic, heard in uplink.neighbours.items() for there in heard]
        for tunnel in (t for t in found.tunnels if t.uplink == uplink.name):
            node.words = (*node.words, f"public key {tunnel.key}" if tunnel.key else "")
            node.children += [peer_node(peer) for peer in tunnel.peers]
        node.children += [network_node(n, found) for n in found.networks if n.uplink == uplink.name]
        roots.append(node)
    roots += [network_node(n, found) for n in found.networks if not n.uplink]
    return roots


def queue_words(uplink: UplinkStatus) -> Iterator[str]:
    """How frames wait at its NICs, where the document says it."""
    for nic, queue in uplink.queues.items():
        yield f"{queue.discipline}{f' of {nic}' if len(uplink.queues) > 1 else ''}" + (f", {queue.dropped} dropped" if queue.dropped else "")


def peer_node(peer: TunnelPeerStatus) -> Node:
    """A peer that has not been heard for longer than its keys live (180 s, WireGuard's white paper, 6.1) may be idle only."""
    if peer.handshake is None:
        words, sign = ("no handshake yet",), "idle"
    else:
        words, sign = (f"handshake {peer.handshake} s ago",), "up" if peer.handshake < 180 else "idle"
    return Node("peer", peer.name, (peer.endpoint, *words, f"received {peer.received} B", f"sent {peer.sent} B"), sign)


def network_node(network: NetworkStatus, found: Status) -> Node:
    words = (network.mode, f"vrf {network.vrf}" if network.vrf else "", network.overlay, network.bridge, *network.addresses, f"mtu {network.mtu}",
             f"DHCP {network.dhcp}" if network.dhcp != "none" else "")
    node = Node("network", network.name, words, "up" if network.state == "up" else "broken")
    node.children = [Node("guest", n.guest if n.nic == "nic0" else f"{n.guest}/{n.nic}",
                          (n.model, n.ip, n.ip6, n.tap), SIGNS.get(n.state, "broken"))
                     for n in found.nics if n.network == network.name]
    return node


def show_nics(found: Status, everything: bool) -> None:
    shown = found.nics if everything else found.nics[:CLIPPED]
    table("", ("guest", "nic", "network", "mac", "address", "lease", "sends", "receives", "refused", "limited", "backend", "state"),
          [nic_row(n) for n in shown], spare=("mac", "network", "lease", "receives", "sends", "refused", "limited", "backend", "nic"))
    if len(found.nics) > len(shown):
        click.echo(f"… and {len(found.nics) - len(shown)} more (--all shows them)")


def nic_row(n: NicStatus) -> tuple[str, ...]:
    return (n.guest, n.nic, n.network, n.mac, " ".join(a for a in (n.ip, n.ip6) if a), n.lease,
            bits(n.sends), bits(n.receives), str(sum(n.refused.values()) - n.limited or ""), str(n.limited or ""), n.backend, n.state)


def bits(rate: float) -> str:
    """A rate in bit/s with a fitting unit."""
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if rate < 1000:
            return f"{rate:.0f} {unit}"
        rate /= 1000
    return f"{rate:.1f} Gbit/s"


def show_drops(found: Status) -> None:
    rows = [(f"{n.guest}/{n.nic}", str(count), reason) for n in found.nics for reason, count in n.refused.items()]
    if rows:
        table("refused in the last day", ("nic", "frames", "why"), rows)
    else:
        click.echo("nothing was refused in the last day")


def show_rules(found: Status) -> None:
    if found.rules:
        table("what began a flow since the rules last changed", ("group", "direction", "rule", "packets", "bytes"),
              [(r.group, r.direction, "any" if r.position < 0 else str(r.position), str(r.packets), str(r.bytes))
               for r in found.rules])
    else:
        click.echo("the document has no groups and no tenants")


def show_rates(found: Status) -> None:
    rows = [(f"network {n.name}", direction, bits(r.rate), "", *waits(r)) for n in found.networks for direction, r in n.rates.items()]
    rows += [(f"tenant {t.name}", direction, bits(r.rate), bits(t.receives if direction == "in" else t.sends), *waits(r))
             for t in found.tenants for direction, r in t.rates.items()]
    rows += [(f"{n.guest}/{n.nic}", direction, bits(r.rate), bits(n.receives if direction == "in" else n.sends), *waits(r))
             for n in found.nics for direction, r in n.rates.items()]
    if rows:
        table("rates, seen from the guest", ("of", "direction", "at most", "now", "dropped", "waiting"), rows)
        for network in found.networks:
            if network.classes:
                table(f"what guests of {network.name} share by its way out", ("of", "direction", "at least", "at most", "priority", "now", "dropped", "waiting"),
                      [(c.name, c.direction, bits(c.least), bits(c.most), str(c.priority), bits(c.now), *waits(c)) for c in network.classes])
    else:
        click.echo("no NIC, no network and no tenant has a rate")


def waits(rate: RateStatus | ClassStatus) -> tuple[str, str]:
    return str(rate.dropped or ""), f"{rate.waiting} bytes" if rate.waiting else ""


@click.command()
@click.option("--limit", "-n", default=20, show_default=True, help="Newest revisions shown.")
@json_option
def history(limit: int, as_json: bool) -> int:
    """Who applied what, when, from which file."""
    rows = host().history(limit)
    if as_json:
        print_json([{"revision": r.number, "created": r.created, "who": r.who, "source": r.source,
                     "status": r.status.value, "summary": dict(r.summary), "message": r.message} for r in rows])
        return 0
    table("", ("revision", "when", "who", "from", "+ ~ -", "status", "message"),
          [(str(r.number), r.created, r.who, r.source, " ".join(str(r.summary.get(k, 0)) for k in
            ("create", "update", "delete")), r.status.value, r.message) for r in rows], spare=("who", "+ ~ -", "from"))
    return 0


@click.command()
@click.option("--outside", multiple=True, metavar="ADDRESS",
              help="An address beyond the uplink that answers pings; the next hop of the default route if not given.")
@click.option("--rates", is_flag=True, help="Also measure the rates of NICs whose guest does not run: a second or two each, at a third more "
              "than the rate.")
@click.option("--all", "everything", is_flag=True, help="A row for every forged frame.")
@json_option
def check(outside: tuple[str, ...], rates: bool, everything: bool, as_json: bool) -> int:
    """Prove with packets what the applied document promises.

    A probe with a guarded port on every network asks for addresses, sends pings and forged frames; guests
    that run are asked through their agent. Exits with 1 when a claim fails.
    """
    from rich.text import Text

    from kvmnet.check.model import COLUMNS
    bar = Bar(as_json)
    try:
        report = host().check(outside, bar.show, rates=rates)
    finally:
        bar.end()
    if as_json:
        print_json(report.to_json())
        return report.exit_code
    colours = {"pass": "green", "fail": "red", "skip": "yellow"}
    table("", COLUMNS, [(*row[:3], Text(row[3], colours[row[3]]), row[4]) for row in (report.every_row() if everything else report.rows())])
    click.echo(click.style(report.summary, fg="red" if report.exit_code else "green", bold=True))
    return report.exit_code
