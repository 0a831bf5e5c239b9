"""Rules about DHCP and DNS. Pure."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address
from typing import Any

from kvmnet.doctor.finding import Certainty, Finding, Severity
from kvmnet.doctor.view import View

NEARLY = 0.9
EVERYWHERE = ("0.0.0.0", "::")


def resolver_everywhere(view: View) -> Iterator[Finding]:
    """A resolver listens on port 53 of every address: a DNS server for guests on this host cannot start, or answers what is not meant for it."""
    ours = {s["pid"] for s in view.rows("dhcp_servers")}
    wide = [s for s in view.rows("listening") if s["port"] == 53 and s["address"] in EVERYWHERE and s["pid"] not in ours]
    served = {s["address"] for s in view.rows("listening") if s["port"] == 53}
    bridges = [b["ifname"] for b in view.bridges if (found := view.addresses(b, "inet")) and not served & {str(a.ip) for a in found} and view.guest_ports(b["ifname"])]
    if wide and bridges:
        who = wide[0]["program"] or "somebody"
        yield Finding(code="resolver-everywhere", severity=Severity.RISK, where="port 53", what=f"{who} listens on port 53 of every address, also on {', '.join(bridges[:4])}",
                      why="A DNS server for guests gets 'Address already in use'; and guests reach that resolver.", evidence=tuple(f"{s['proto']} {s['address']}:53 {s['program']} pid {s['pid']}" for s in wide[:4]),
                      fix=("bind-interfaces and except-interface=BRIDGE (dnsmasq), interface: lines (unbound), listen-on (bind)",))


def pool_full(view: View) -> Iterator[Finding]:
    """Every address of a DHCP range is leased: new guests get none, those that have one keep it."""
    for server in view.rows("dhcp_servers"):
        taken = [int(IPv4Address(row["ip"])) for row in server["leases"]]
        for first, last in server["ranges"]:
            low, high = int(IPv4Address(first)), int(IPv4Address(last))
            used = sum(low <= n <= high for n in taken)
            if used >= high - low + 1:
                yield Finding(code="pool-full", severity=Severity.BLOCKS, where=place(server), what=f"all {used} addresses of {first} - {last} are leased", why="A guest that asks for one gets no answer: 'no address available'.",
                              evidence=(f"{server['file']}: {used} leases in the range",), fix=("a larger range, or shorter leases", f"dhcp_release {place(server)} ADDRESS MAC   # of guests that are gone"))


def server_dead(view: View) -> Iterator[Finding]:
    """A DHCP server gives out nothing: its process is gone, though the document wants it, or was stopped by a signal; or the device that it is for is not there."""
    for row in view.rows("own_servers"):
        if not row["pid"]:
            yield Finding(code="server-dead", severity=Severity.BLOCKS, where=row["network"], what=f"the server for DHCP and DNS of network {row['network']} does not run", why="Guests that ask for an address get no answer; those that have one lose it when its time is over. Names are not answered either.",
                          evidence=(f"no process has the configuration of {row['network']} open",), fix=("kvmnet apply",))
    for server in view.rows("dhcp_servers"):
        lost = [i for i in server["interfaces"] if i not in view.links and not any(c in i for c in "*:")]
        if server.get("halted"):
            yield Finding(code="server-dead", severity=Severity.BLOCKS, where=place(server), what=f"dnsmasq, pid {server['pid']}, was stopped by a signal", why="Questions wait in its sockets, and nobody answers.", evidence=(f"/proc/{server['pid']}/stat: state T (stopped)",), fix=(f"kill -CONT {server['pid']}",))
        elif lost and len(lost) == len(server["interfaces"]):
            yield Finding(code="server-dead", severity=Severity.DEGRADES, where=place(server), what=f"a DHCP server is for {', '.join(lost)}, and there is no such device", why="It serves no guest: the device was renamed or is gone, or its name was mistyped.", certainty=Certainty.LIKELY,
                          evidence=(f"dnsmasq pid {server['pid']}: interface={', '.join(lost)}; devices: {', '.join(b['ifname'] for b in view.bridges[:6]) or 'no bridge'}",), fix=(f"# interface=BRIDGE in the configuration of dnsmasq pid {server['pid']}, and start it again",))


def lease_limit(view: View) -> Iterator[Finding]:
    """A dnsmasq has nearly as many leases as it takes (1000 when it is told nothing), whatever its range has left."""
    for server in view.rows("dhcp_servers"):
        count, most = len(server["leases"]), server["most"]
        if most and count >= NEARLY * most:
            yield Finding(code="lease-limit", severity=Severity.BLOCKS if count >= most else Severity.RISK, where=place(server), what=f"{count} leases of {most}", why="At the limit dnsmasq refuses new ones: 'no address available'.",
                          evidence=(f"dhcp-lease-max {most}",), fix=("dhcp-lease-max=10000",))


def range_off_subnet(view: View) -> Iterator[Finding]:
    """A DHCP range lies in no subnet of the device that it is for: requests are answered by 'no address range available', that is, not at all."""
    for server in view.rows("dhcp_servers"):
        networks = [a.network for name in server["interfaces"] if name in view.links for a in view.addresses(view.links[name], "inet")]
        for first, last in server["ranges"]:
            if server["interfaces"] and all(i in view.links for i in server["interfaces"]) and not any(ip_address(first) in n and ip_address(last) in n for n in networks):
                yield Finding(code="range-off-subnet", severity=Severity.BLOCKS, where=place(server), what=f"the DHCP range {first} - {last} is in no subnet of {place(server)}", why="dnsmasq gives out addresses of the subnet that a request came from.",
                              evidence=(f"dhcp-range {first},{last}", *(f"{place(server)}: {n}" for n in networks)), fix=("make the range part of the subnet",))


def reserved_is_leased(view: View) -> Iterator[Finding]:
    """An address is reserved for one guest and still leased to another MAC, mostly its predecessor's: the guest does not get it."""
    for server in view.rows("dhcp_servers"):
        holder = {row["ip"]: row for row in server["leases"]}
        for host in server["hosts"]:
            lease = holder.get(host["ip"])
            if lease and lease["mac"] != host["mac"]:
                yield Finding(code="reserved-is-leased", severity=Severity.BLOCKS, where=place(server), what=f"{host['ip']} is reserved for {host['mac']} and leased to {lease['mac']}", why="dnsmasq keeps a lease until it ends: 'not using configured address'.",
                              evidence=(f"{server['file']}: {lease['ip']} {lease['mac']} {lease['name']}",), fix=(f"dhcp_release {place(server)} {host['ip']} {lease['mac']}",))


def two_dhcp_servers(view: View) -> Iterator[Finding]:
    """Two DHCP servers of this host answer on one device: guests take whichever is first, and each refuses (DHCPNAK) what the other gave."""
    found: dict[str, list[Any]] = defaultdict(list)
    for server in view.rows("dhcp_servers"):
        for name in server["interfaces"]:
            found[name].append(server["pid"])
    for name, pids in found.items():
        if len(set(pids)) > 1:
            yield Finding(code="two-dhcp-servers", severity=Severity.DEGRADES, where=name, what=f"{len(pids)} DHCP servers answer on {name}", why="Addresses depend on who is faster.", certainty=Certainty.PROVED,
                          evidence=tuple(f"dnsmasq pid {p}" for p in pids), fix=("stop one of them",))


def place(server: Any) -> str:
    return ",".join(server["interfaces"]) or f"dnsmasq pid {server['pid']}"
