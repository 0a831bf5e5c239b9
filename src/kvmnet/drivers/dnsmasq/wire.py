"""The text of dnsmasq's files: reservations, configuration, leases, log, sockets in the way. Pure.

Sources: dnsmasq(8) 2.90; src/option.c (dhcp-host), src/lease.c (lease file), proc(5) (net/udp, net/tcp).
"""
from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address

from kvmnet.drivers.dnsmasq.resources import Reservation
from kvmnet.records import dataclass

MARK = "# kvmnet: written by kvmnet, which replaces it; do not edit"
"""First line of every file that we write."""
OWN = "# kvmnet: where this process keeps its files"
"""Line of a configuration after which the driver's own options stand."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What a DHCP server has lent: one line of its lease file."""

    expiry: int
    """Seconds since 1970; 0 for never."""
    mac: str
    """Hardware address; '' when an IPv6 client's DUID does not tell."""
    ip: str
    hostname: str
    """'' when the client has none."""
    client: str = ""
    """Client id (IPv4) or DUID (IPv6) in hex, '*' for none."""
    iaid: int | None = None
    """IPv6 identity association; None for IPv4."""
    temporary: bool = False
    """The IPv6 address is a temporary one (IA_TA)."""

    @property
    def line(self) -> str:
        """The line of dnsmasq's lease file."""
        head = self.mac if self.iaid is None else f"{'T' * self.temporary}{self.iaid}"
        return f"{self.expiry} {head} {self.ip} {self.hostname or '*'} {self.client}"


# -- configuration ---------------------------------------------------------------------------------

def config_text(lines: Iterable[str], own: Iterable[str]) -> str:
    """A configuration file: the network's lines, then the driver's own."""
    return "\n".join((MARK, *lines, OWN, *own, ""))


def parse_config(text: str) -> tuple[str, ...] | None:
    """The network's lines of a configuration; None when the file is not (wholly) ours."""
    lines = text.splitlines()
    if not lines or lines[0] != MARK or OWN not in lines:
        return None
    return tuple(lines[1:lines.index(OWN)])


def served_link(lines: Iterable[str]) -> str:
    """The link that a configuration serves; '' for none."""
    return next((line.partition("=")[2] for line in lines if line.startswith("interface=")), "")


DOMAIN = "# kvmnet: in the routing domain "
"""Begins a comment that says where the process runs, which is no setting of dnsmasq's."""


def domain_of(lines: Iterable[str]) -> str:
    """Device of the routing domain that a process serves in; '' for none."""
    return next((line.removeprefix(DOMAIN) for line in lines if line.startswith(DOMAIN)), "")


def lent_freely(lines: Iterable[str]) -> frozenset[int]:
    """The address families (4, 6) in which a configuration also lends what nobody reserved."""
    return frozenset(6 if ":" in line else 4 for line in lines
                     if line.startswith("dhcp-range=") and ",static," not in line and ",ra-" not in line)


_AT_LINE = re.compile(r" at line (\d+) of \S+")


def explain_syntax(message: str, text: str) -> str:
    """What ``dnsmasq --test`` said, with the line that it means instead of a number."""
    lines = text.splitlines()

    def quote(found: re.Match[str]) -> str:
        number = int(found[1])
        return f" in {lines[number - 1]!r}" if 0 < number <= len(lines) else found[0]

    return _AT_LINE.sub(quote, message).removeprefix("dnsmasq: ").strip()


# -- reservations ----------------------------------------------------------------------------------

_LEASE_TIME = re.compile(r"\d+[wdhmsWDHMS]?|infinite|ignore", re.IGNORECASE)


def reads_as_lease_time(hostname: str) -> bool:
    """dnsmasq would take *hostname* in a dhcp-host line for a lease time or a keyword."""
    return _LEASE_TIME.fullmatch(hostname) is not None


def reservation_line(r: Reservation) -> str:
    """One line of a dhcp-hostsfile."""
    parts = [r.name.partition(" ")[2], *(f"set:{t}" for t in r.tags or ())]
    if r.ip6:
        parts.append(f"[{r.ip6}]")
    parts += [p for p in (r.ip, r.hostname) if p]
    return ",".join(parts)


def parse_reservation(network: str, line: str) -> Reservation:
    mac, *parts = line.split(",")
    tags, ip, ip6, hostname = [], "", "", ""
    for part in parts:
        if part.startswith("set:"):
            tags.append(part[4:])
        elif part.startswith("["):
            ip6 = part[1:-1]
        elif _is_ipv4(part):
            ip = part
        else:
            hostname = part
    return Reservation(name=f"{network} {mac}", server=network, hostname=hostname, ip=ip, ip6=ip6,
                       tags=tuple(tags))


def _is_ipv4(text: str) -> bool:
    return text.count(".") == 3 and text.replace(".", "").isdigit()


def hosts_text(reservations: Iterable[Reservation]) -> str:
    """A dhcp-hostsfile, in the order of the names so that equal states are equal files."""
    return "\n".join((MARK, *sorted(map(reservation_line, reservations)), ""))


def parse_hosts(network: str, text: str) -> dict[str, Reservation]:
    """The reservations of a dhcp-hostsfile by MAC."""
    found = (parse_reservation(network, line) for line in text.splitlines() if line and not line.startswith("#"))
    return {r.name.partition(" ")[2]: r for r in found}


def names_text(reservations: Iterable[Reservation]) -> str:
    """A hosts(5) file: the names stand also before, or without, a lease."""
    lines = (f"{a} {r.hostname}" for r in reservations if r.hostname for a in (r.ip, r.ip6) if a)
    return "\n".join((MARK, *sorted(lines), ""))


# -- leases ----------------------------------------------------------------------------------------

def parse_leases(text: str) -> tuple[list[Lease], str]:
    """The leases of a lease file, and the server's own DUID ('' when it has none). Lines that make no
    sense are left out, as dnsmasq leaves them out."""
    leases, duid = [], ""
    for line in text.splitlines():
        words = line.split(" ")
        if words[0] == "duid" and len(words) > 1:
            duid = words[1]
        elif len(words) >= 5 and words[0].isdecimal() and (":" not in words[2] or words[1].lstrip("T").isdecimal()):
            leases.append(_lease(*words[:5]))
    return leases, duid


def _lease(expiry: str, head: str, ip: str, hostname: str, client: str) -> Lease:
    hostname = "" if hostname == "*" else hostname
    if ":" in ip:
        return Lease(int(expiry), duid_mac(client), ip, hostname, client, int(head.lstrip("T")), head[0] == "T")
    return Lease(int(expiry), head.rpartition("-")[2].lower(), ip, hostname, client)


def leases_text(leases: Iterable[Lease], duid: str) -> str:
    """A lease file: IPv4, then the server's DUID, then IPv6, as dnsmasq writes it."""
    leases = list(leases)
    v4 = [x.line for x in leases if x.iaid is None]
    v6 = [x.line for x in leases if x.iaid is not None]
    return "".join(line + "\n" for line in (*v4, *([f"duid {duid}"] if duid else []), *v6))


def duid_mac(duid: str) -> str:
    """The Ethernet address inside a DUID-LLT or DUID-LL (RFC 8415, 11.2 and 11.4); '' when it has none."""
    parts = duid.lower().split(":")
    for head, length in ((["00", "01", "00", "01"], 14), (["00", "03", "00", "01"], 10)):
        if parts[:4] == head and len(parts) == length:
            return ":".join(parts[-6:])
    return ""


def stale(leases: Iterable[Lease], wanted: Mapping[str, Reservation], old: Mapping[str, Reservation],
          free: Collection[int] = ()) -> list[Lease]:
    """Leases that keep a reservation from being served, or that nobody may hold any more.

    IPv4: the address is reserved for another MAC, or the MAC has another address reserved, or nothing
    is reserved for it and its family is not in *free* (lent without reservation). IPv6, where a DUID
    need not tell the MAC: likewise, with the owner that the address had under *old*.
    """
    owner = {a: mac for mac, r in wanted.items() for a in (r.ip, r.ip6) if a}
    before = {a: mac for mac, r in old.items() for a in (r.ip, r.ip6) if a}
    found = []
    for lease in leases:
        holder = lease.mac if lease.iaid is None else lease.mac or before.get(lease.ip, "")
        if lease.ip in owner:
            wrong = owner[lease.ip] != holder
        elif lease.iaid is not None:
            wrong = 6 not in free or lease.ip in before
        else:
            wrong = 4 not in free or bool((mine := wanted.get(lease.mac)) and mine.ip)
        if wrong:
            found.append(lease)
    return found


# -- who is in the way -----------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Socket:
    """A bound socket of /proc/net/{udp,tcp}[6]."""

    protocol: str
    address: str
    port: int
    inode: int


_LISTEN = {"tcp": "0A", "udp": "07"}


def parse_sockets(protocol: str, text: str) -> list[Socket]:
    """The bound UDP or listening TCP sockets of one /proc/net table."""
    found = []
    for line in text.splitlines()[1:]:
        words = line.split()
        if words[3] == _LISTEN[protocol.rstrip("6")]:
            address, _, port = words[1].partition(":")
            found.append(Socket(protocol.rstrip("6"), _address(address), int(port, 16), int(words[9])))
    return found


def _address(text: str) -> str:
    """An address of /proc/net: 32-bit words, each in the byte order of a little-endian host."""
    raw = bytes.fromhex(text)
    swapped = b"".join(raw[i:i + 4][::-1] for i in range(0, len(raw), 4))
    return str(IPv4Address(swapped) if len(swapped) == 4 else IPv6Address(swapped))


_BUSY = re.compile(r"(?:socket for|bind to address) ([0-9a-fA-F:.]+): ")


def in_the_way(message: str, sockets: Iterable[Socket]) -> list[Socket]:
    """The sockets that can have caused an 'Address already in use' of dnsmasq."""
    found = _BUSY.search(message)
    wanted = found[1] if found else "0.0.0.0"
    addresses = {wanted, "::"} if ":" in wanted else {wanted, "0.0.0.0", "::"}
    if "DHCPv6" in message:
        addresses = {"::"}
    ports = {547} if "DHCPv6" in message else {67} if "DHCP" in message else {69} if "TFTP" in message else {53}
    near = {s for s in sockets if s.port in ports and s.address in addresses}
    return sorted(near, key=lambda s: (s.port, s.protocol, s.address))
