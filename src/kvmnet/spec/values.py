"""Values of the document: what is accepted, and the one form that each is kept in. Pure.

A value is a canonical string or integer, so that it goes to JSON as it is and comparing is ``==``.
Every function here takes what the YAML gave and returns the canonical value, or raises ValueError with
a message that says what to write instead.
"""
from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

INFINITE = 2**32 - 1
"""Duration of ``infinite``, in seconds: what DHCP sends for a lease without an end (RFC 2131, 3.3)."""

SHORTEST_LEASE = 120
"""Seconds; dnsmasq silently raises shorter leases to this."""

KEYWORDS = frozenset(["address", "addr", "alias", "allmulti", "altname", "arp", "bond", "brd", "br", "bridge", "broadcast", "carrier", "dev", "down", "dst", "dynamic", "encap", "gateway", "group", "id", "index", "inet", "inet6", "label", "link", "local", "lo", "mac", "mark", "master", "metric", "mode", "mpls", "mtu", "multicast", "name", "netns", "nomaster", "nud", "nexthop", "numrxqueues", "numtxqueues", "onlink", "oif", "iif", "parentdev", "peer", "permanent", "pref", "promisc", "proto", "protocol", "proxy", "qdisc", "qlen", "remote", "root", "router", "scope", "secondary", "src", "state", "table", "tag", "temporary", "to", "tos", "trailers", "txqlen", "txqueuelen", "type", "up", "vf", "via", "vlan", "vrf", "all", "default", "none", "help"])
"""Words that iproute2 reads as its own where a device name stands; ``all`` and ``default`` are sysctl
directories."""

NAME_FORM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
_MAC_FORMS = (re.compile(r"([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}"),
              re.compile(r"([0-9A-Fa-f]{4}\.){2}[0-9A-Fa-f]{4}"), re.compile(r"[0-9A-Fa-f]{12}"))
_DURATION = re.compile(r"([0-9]{1,9})([smhdw]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SIZE = re.compile(r"([0-9]{1,12})([kKmMgGtT]?)(i?[bB])?")
_BYTES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_RATE = re.compile(r"([0-9]{1,9})([kmg])bit")
_KILOBITS = {"k": 1, "m": 1000, "g": 1_000_000}
_PER_SECOND = re.compile(r"([0-9]{1,9})([kKmM]?)/s")
_BYTES_PER_SECOND = re.compile(r"([0-9]{1,12})([kKmMgG]?)B?/s")
_THOUSANDS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_PCI = re.compile(r"(?:0000:00:)?([0-9A-Fa-f]{1,2})(?:\.([0-9A-Fa-f]))?")
_VLANS = re.compile(r"([0-9]{1,4})(?:\s*-\s*([0-9]{1,4}))?")


def shown(value: object) -> str:
    """*value* as an error message names it: short, and on one line."""
    if value is None:
        return "an empty value"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = str(value)
    text = "".join(c if c.isprintable() else "?" for c in text[:60]) + ("..." if len(text) > 60 else "")
    return text or '""'


def _text(value: object, wanted: str) -> str:
    """*value* as text; a number is taken as it was written."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{shown(value)} is not {wanted}")


# Names

def name(value: object) -> str:
    """A name of the document: one DNS label, underscores allowed (RFC 1123, 2.1)."""
    text = _text(value, "a name")
    if not NAME_FORM.fullmatch(text):
        raise ValueError(f"{shown(text)} is not a name: 1 to 63 letters (a-z), digits, - and _, "
                         "beginning with a letter or digit")
    return text


def network_name(value: object) -> str:
    """Name of a network or of a NIC within its guest: as ``name``, at most 32 characters."""
    text = name(value)
    if len(text) > 32:
        raise ValueError(f"{shown(text)} is too long for this name: {len(text)} characters, at most 32")
    return text


def domain(value: object) -> str:
    """A DNS domain: labels joined by dots, in lower case, without the last dot (RFC 1035, 2.3.1)."""
    text = _text(value, "a domain").rstrip(".").lower()
    if len(text) > 253 or not all(NAME_FORM.fullmatch(label) for label in text.split(".")):
        raise ValueError(f"{shown(value)} is not a domain: labels of letters, digits and - joined by dots")
    return text


def interface(value: object) -> str:
    """Name of a network device: what the kernel takes (net/core/dev.c, dev_valid_name) and iproute2 does
    not read as a word of its own."""
    text = _text(value, "a device name")
    if not text or text in (".", "..") or any(c in "/:%\"'\\" or not c.isprintable() or c.isspace() for c in text):
        raise ValueError(f"{shown(text)} is not a device name: no spaces, / or : and not . or ..")
    if len(text.encode("utf-8", "surrogatepass")) > 15:
        raise ValueError(f"{shown(text)} is too long for a device name: at most 15 bytes")
    if text in KEYWORDS or text.startswith("-"):
        raise ValueError(f"{text} cannot be used as a device name: iproute2 reads it as a word of its own; "
                         "rename the device")
    return text


def line(value: object) -> str:
    """One line of text without control characters: it goes into a configuration file."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"{shown(value)} is not text; put it in quotes")
    text = str(value)
    if not text.isprintable():
        raise ValueError("text must be one line without control characters")
    return text


def setting(value: object) -> str:
    """A kernel setting's value as the kernel prints it: numbers or words, one space between them."""
    return " ".join(line(value).split())


# Addresses

def mac(value: object) -> str:
    """A unicast MAC address, in lower case with colons."""
    text = _text(value, "a MAC address")
    if not _MAC.fullmatch(text):
        if not any(form.fullmatch(text) for form in _MAC_FORMS):
            raise ValueError(f"{shown(text)} is not a MAC address; write six pairs of hex digits, "
                             "e.g. 52:54:00:12:34:56")
        digits = re.sub(r"[^0-9a-f]", "", text.lower())
        text = ":".join(digits[i:i + 2] for i in range(0, 12, 2))
    if text == "00:00:00:00:00:00":
        raise ValueError("a MAC address of all zeros belongs to nobody")
    if int(text[1], 16) & 1:
        raise ValueError(f"{text} is a multicast address (its first byte is odd); a NIC needs a unicast one, "
                         "e.g. 52:54:00:12:34:56")
    return text


def address4(value: object) -> str:
    """An IPv4 address that a host can have."""
    text = _text(value, "an IPv4 address")
    try:
        address = IPv4Address(text)
    except AddressValueError:
        raise ValueError(f"{shown(text)} is not an IPv4 address" + _why_not4(text)) from None
    return str(_unicast(address))


def _why_not4(text: str) -> str:
    if "/" in text:
        return f"; write the address without the prefix length: {shown(text.split('/')[0])}"
    if re.fullmatch(r"[0-9.]+", text) and any(len(part) > 1 and part[0] == "0" for part in text.split(".")):
        return ": leading zeros are ambiguous (octal?); write it without them"
    if ":" in text:
        return "; it looks like IPv6, which has an option of its own"
    if text.lower() in ("no", "off", "false"):
        return "; write none for no address"
    return ", e.g. 192.168.1.10"


def address6(value: object) -> str:
    """An IPv6 address that a host can have, compressed (RFC 5952)."""
    text = _text(value, "an IPv6 address")
    try:
        if "%" in text:
            raise AddressValueError
        address = IPv6Address(text)
    except AddressValueError:
        if "/" in text:
            why = f"; write the address without the prefix length: {shown(text.split('/')[0])}"
        elif "%" in text:
            why = ": no %device here"
        else:
            why = "; write none for no address" if text.lower() in ("no", "off", "false") else ", e.g. fd00:1::10"
        raise ValueError(f"{shown(text)} is not an IPv6 address{why}") from None
    return str(_unicast(address))


def _unicast(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    what = ("multicast" if address.is_multicast else "unspecified" if address.is_unspecified
            else "loopback" if address.is_loopback else "broadcast" if str(address) == "255.255.255.255" else "")
    if what:
        raise ValueError(f"{address} is a {what} address; no host on a network can have it")
    return address


def address(value: object) -> str:
    """An IPv4 or IPv6 address of a host."""
    text = _text(value, "an IP address")
    return address6(text) if ":" in text else address4(text)


def group(value: object) -> str:
    """A multicast address, IPv4 or IPv6 (RFC 5771, RFC 4291, 2.7)."""
    text = _text(value, "a multicast address")
    try:
        found = ip_address(text)
    except ValueError:
        found = None
    if found is None or not found.is_multicast:
        raise ValueError(f"{shown(value)} is not a multicast address, e.g. 239.1.1.1 or ff05::100")
    return str(found)


def network4(value: object) -> str:
    """An IPv4 prefix without host bits."""
    return _network(_text(value, "an IPv4 prefix"), IPv4Network, "IPv4", "192.168.1.0/24")


def network6(value: object) -> str:
    """An IPv6 prefix without host bits, compressed."""
    return _network(_text(value, "an IPv6 prefix"), IPv6Network, "IPv6", "fd00:1::/64")


def _network(text: str, kind: type[IPv4Network] | type[IPv6Network], family: str, example: str) -> str:
    if "/" not in text:
        raise ValueError(f"{shown(text)} has no prefix length; write ADDRESS/LENGTH, e.g. {example}")
    host, _, length = text.partition("/")
    try:
        if not length.isascii() or not length.isdigit() or len(length) > 3:
            raise ValueError
        found = kind(f"{host}/{int(length)}", strict=False)
    except ValueError:
        raise ValueError(f"{shown(text)} is not an {family} prefix, e.g. {example}") from None
    given = IPv4Address(host) if kind is IPv4Network else IPv6Address(host)
    if given != found.network_address:
        raise ValueError(f"{text} has host bits; write {found}")
    if found.network_address.is_multicast or found.network_address.is_loopback:
        raise ValueError(f"{found} is not a prefix of hosts (multicast or loopback)")
    return str(found)


def prefix(value: object) -> str:
    """An address, or a prefix of either family without host bits. A single address has no slash."""
    text = _text(value, "an address or prefix")
    if "/" not in text:
        return address(text)
    found = network6(text) if ":" in text else network4(text)
    single = "/128" if ":" in found else "/32"
    return found.removesuffix(single) if found.endswith(single) else found


def cidr(value: object) -> str:
    """An address of a host with its prefix length; the host bits stay."""
    text = _text(value, "an address with its prefix length")
    own, slash, length = text.partition("/")
    parsed = address(own)
    if not slash:
        raise ValueError(f"{shown(text)} needs its prefix length, e.g. {parsed}/{64 if ':' in parsed else 24}")
    most = 128 if ":" in parsed else 32
    if not (length.isascii() and length.isdigit() and 1 <= int(length) <= most):
        raise ValueError(f"{shown(length)} is not a prefix length: a number from 1 to {most}")
    return f"{parsed}/{int(length)}"


def range4(value: object) -> str:
    """IPv4 addresses FIRST-LAST, both included."""
    return _range(value, address4, IPv4Address, "192.168.1.100-192.168.1.200")


def range6(value: object) -> str:
    """IPv6 addresses FIRST-LAST, both included."""
    return _range(value, address6, IPv6Address, "fd00:1::100-fd00:1::1ff")


def _range(value: object, parse: Callable[[object], str], kind: Callable[[str], IPv4Address | IPv6Address],
           example: str) -> str:
    text = _text(value, "a range of addresses")
    first, dash, last = (part.strip() for part in text.partition("-"))
    if not dash:
        raise ValueError(f"{shown(text)} is not a range; write FIRST-LAST, e.g. {example}")
    if parse is address4 and last.isascii() and last.isdigit() and "." in first:
        raise ValueError(f"{shown(text)}: write the whole last address, e.g. "
                         f"{first}-{shown(first.rpartition('.')[0])}.{shown(last)}")
    first, last = parse(first), parse(last)
    if int(kind(first)) > int(kind(last)):
        raise ValueError(f"{first}-{last} runs backwards; write {last}-{first}")
    return f"{first}-{last}"


# Numbers

def duration(value: object) -> int:
    """A lease time in seconds: 43200, 12h, 30m, 45s, 1d or infinite."""
    text = _text(value, "a duration").lower()
    if text == "infinite":
        return INFINITE
    found = _DURATION.fullmatch(text)
    if not found:
        raise ValueError(f"{shown(text)} is not a duration; write e.g. 12h, 30m, 90s or infinite")
    seconds = int(found[1]) * _SECONDS[found[2]]
    if not SHORTEST_LEASE <= seconds < INFINITE:
        raise ValueError(f"{shown(text)} is out of range: from 2m to 7101w, or infinite")
    return seconds


def size(value: object) -> int:
    """An amount of memory in bytes: 256M, 2G."""
    text = _text(value, "a size")
    found = _SIZE.fullmatch(text)
    if not found:
        raise ValueError(f"{shown(text)} is not a size; write e.g. 256M or 2G")
    amount = int(found[1]) * _BYTES[found[2].lower()]
    if amount < 2**20:
        raise ValueError(f"{shown(text)} is {amount} bytes; write a unit, e.g. {found[1]}M")
    if amount > 2**50:
        raise ValueError(f"{shown(text)} is more memory than any machine has")
    return amount


def bit_rate(value: object) -> int:
    """A rate in kbit/s: 500kbit, 100mbit, 2gbit. tc tells no more digits than these of a class back."""
    text = _text(value, "a rate").lower()
    found = _RATE.fullmatch(text)
    if not found:
        raise ValueError(f"{shown(text)} is not a rate in bits per second; write e.g. 500kbit, 100mbit or 2gbit")
    rate = int(found[1]) * _KILOBITS[found[2]]
    if not 64 <= rate <= 200_000_000:
        raise ValueError(f"{shown(text)} is out of range: from 64kbit to 200gbit")
    if rate >= 1_000_000 and rate % 1000:
        raise ValueError(f"{shown(text)} is too fine: from 1gbit on in whole mbit, e.g. {rate // 1000}mbit")
    return rate


def burst(value: object) -> int:
    """An amount of data that passes at once in bytes, in whole steps of 4 KiB: 64k, 1m."""
    text = _text(value, "an amount of data")
    found = _SIZE.fullmatch(text)
    if not found:
        raise ValueError(f"{shown(text)} is not an amount of data; write e.g. 64k or 1m")
    amount = int(found[1]) * _BYTES[found[2].lower()]
    if not 4096 <= amount <= 2**26:
        raise ValueError(f"{shown(text)} is out of range: from 4k to 64m bytes")
    return -(-amount // 4096) * 4096


def per_second(value: object) -> int:
    """Packets, frames or flows a second: 20000/s, 20k/s; 0 for none."""
    return _frequency(value, _PER_SECOND, "20000/s", 10**9)


def bytes_per_second(value: object) -> int:
    """Bytes a second in powers of ten: 100MB/s, 1GB/s; 0 for none."""
    return _frequency(value, _BYTES_PER_SECOND, "100MB/s", 10**12)


def _frequency(value: object, form: re.Pattern[str], example: str, most: int) -> int:
    text = _text(value, f"a number a second, e.g. {example}")
    if text == "none":
        return 0
    found = form.fullmatch(text)
    if not found:
        raise ValueError(f"{shown(text)} is not a number a second; write e.g. {example}, or none")
    number = int(found[1]) * _THOUSANDS[found[2].lower()]
    if not 1 <= number <= most:
        raise ValueError(f"{shown(text)} is out of range: from 1/s to {most}/s, or none")
    return number


def count(value: object) -> int:
    """A number of things from 1 to 10 million; 0 for none."""
    text = _text(value, "a number")
    if text == "none":
        return 0
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 10**7):
        raise ValueError(f"{shown(text)} is not a number from 1 to {10**7}; write e.g. 5000, or none")
    return int(text)


DSCPS = {"ef": 46, "va": 44, **{f"cs{n}": 8 * n for n in range(8)},
         **{f"af{c}{d}": 8 * c + 2 * d for c in range(1, 5) for d in range(1, 4)}}
"""Name -> its code point (RFC 2474, RFC 2597, RFC 3246, RFC 5865)."""


def dscp(value: object) -> int:
    """A DSCP as a number: 46 or ef."""
    text = _text(value, "a DSCP").lower()
    if text in DSCPS:
        return DSCPS[text]
    if not (text.isascii() and text.isdigit() and int(text) < 64):
        raise ValueError(f"{shown(value)} is not a DSCP: a number from 0 to 63, or a name such as ef, af11 or cs3")
    return int(text)


def dscps(value: object) -> tuple[int, ...]:
    """DSCPs, sorted, each once."""
    found = tuple(sorted({dscp(item) for item in (value if isinstance(value, (list, tuple)) else (value,))}))
    if not found:
        raise ValueError("no DSCP at all; write at least one, e.g. [10]")
    return found


def pci_slot(value: object) -> str:
    """SLOT.FUNCTION in hex with two and one digits; slot 00 is the host bridge."""
    text = _text(value, "a PCI address")
    found = _PCI.fullmatch(text)
    if not found:
        raise ValueError(f"{shown(text)} is not a PCI address; write SLOT or SLOT.FUNCTION in hex, e.g. 05 or 05.0")
    slot, function = int(found[1], 16), int(found[2] or "0", 16)
    if not 1 <= slot <= 0x1F or function > 7:
        raise ValueError(f"{shown(text)} is out of range: slots 01 to 1f, functions 0 to 7")
    return f"{slot:02x}.{function}"


def vlan_ranges(value: object) -> tuple[int, ...]:
    """VLAN ids 1..4094 from numbers and ranges such as 20-29; sorted, each once."""
    items: Iterable[object] = value if isinstance(value, (list, tuple)) else (value,)
    ids: set[int] = set()
    for item in items:
        text = _text(item, "a VLAN id")
        for part in text.split(","):
            found = _VLANS.fullmatch(part.strip())
            if not found:
                raise ValueError(f"{shown(text)} is not a VLAN id or range; write e.g. [10, 20-29]")
            first, last = int(found[1]), int(found[2] or found[1])
            if not 1 <= first <= last <= 4094:
                raise ValueError(f"{shown(text)} is not in 1 to 4094, first before last")
            ids.update(range(first, last + 1))
    return tuple(sorted(ids))


# Tunnels

def wireguard_key(value: object) -> str:
    """A public key of WireGuard: 32 bytes in base64, in the one spelling that wg(8) prints."""
    text = _text(value, "a key")
    try:
        raw = b64decode(text, validate=True)
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise ValueError(f"{shown(text)} is not a public key of WireGuard: 32 bytes in base64, as wg pubkey prints them")
    return b64encode(raw).decode()


def endpoint(value: object) -> str:
    """ADDRESS:PORT or [ADDRESS6]:PORT."""
    text = _text(value, "an endpoint")
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536) or (":" in bare) != (bare != host):
        raise ValueError(f"{shown(text)} is not an endpoint; write ADDRESS:PORT or [ADDRESS]:PORT, e.g. 192.0.2.7:51820")
    try:
        found = address(bare)
    except ValueError as wrong:
        raise ValueError(f"{wrong}; an endpoint is an address: a name could lead elsewhere tomorrow") from None
    return f"[{found}]:{int(port)}" if ":" in found else f"{found}:{int(port)}"


def any_prefix(value: object) -> str:
    """A prefix of either family, the default route among them. A single address has its length, too, as wg(8) prints it."""
    text = _text(value, "an address or prefix")
    if text in ("0.0.0.0/0", "::/0"):
        return text
    found = prefix(text)
    return found if "/" in found else f"{found}/{128 if ':' in found else 32}"


def prefixes(value: object) -> tuple[str, ...]:
    """Prefixes, sorted, each once."""
    return tuple(sorted({any_prefix(item) for item in (value if isinstance(value, (list, tuple)) else (value,))}))


def secret_file(value: object) -> str:
    """Path of a file that holds a secret: absolute, since commands are run from anywhere."""
    text = line(value)
    if not text.startswith("/") or any(c.isspace() for c in text):
        raise ValueError(f"{shown(text)} is not the path of a file; write it from / on, without spaces")
    return text


def record_file(value: object) -> str:
    """Path of the files of a record: absolute, and of pcapng."""
    text = line(value)
    if not text.startswith("/") or ".." in text.split("/") or not text.endswith(".pcapng") or text.endswith("/.pcapng"):
        raise ValueError(f"{shown(text)} is not the path of a record; write it from / on, with .pcapng at its end")
    return text


# Rules of groups

ICMP_TYPES: dict[str, tuple[int | None, int | None]] = {
    "echo-request": (8, 128), "echo-reply": (0, 129), "destination-unreachable": (3, 1), "packet-too-big": (None, 2),
    "time-exceeded": (11, 3), "parameter-problem": (12, 4), "timestamp-request": (13, None), "timestamp-reply": (14, None),
}
"""Name -> its number in ICMP and in ICMPv6 (RFC 792, RFC 4443)."""
PROTOCOLS = {"icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "dccp": 33, "gre": 47, "esp": 50, "ah": 51, "icmpv6": 58,
             "ospf": 89, "ipip": 4, "ipv6": 41, "pim": 103, "vrrp": 112, "l2tp": 115, "sctp": 132, "udplite": 136}
"""Name -> number (IANA, assigned internet protocol numbers)."""
ALL_PORTS = "0-65535"


def ports(value: object) -> tuple[str, ...]:
    """Ports and ranges, sorted and merged; ``any`` for all."""
    if value == "any":
        return (ALL_PORTS,)
    found = []
    for item in value if isinstance(value, (list, tuple)) else (value,):
        text = _text(item, "a port")
        first, _dash, last = text.partition("-")
        if not all(part.isascii() and part.isdigit() and 0 < int(part) < 65536 for part in (first, last or first)):
            raise ValueError(f"{shown(text)} is not a port or a range of ports from 1 to 65535; write e.g. [80, 8000-8099] or any")
        if int(last or first) < int(first):
            raise ValueError(f"{shown(text)} runs backwards; write {last}-{first}")
        found.append((int(first), int(last or first)))
    if not found:
        raise ValueError("no port at all; write any for all of them, or remove it")
    merged: list[tuple[int, int]] = []
    for low, high in sorted(found):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(high, merged[-1][1])
        else:
            merged.append((low, high))
    return tuple(str(low) if low == high else f"{low}-{high}" for low, high in merged)


def icmp_types(value: object) -> tuple[str, ...]:
    """Names of types, sorted; () for all of them."""
    if value is True or value == "any":
        return ()
    items = value if isinstance(value, (list, tuple)) else (value,)
    if wrong := [item for item in items if not isinstance(item, str) or item not in ICMP_TYPES]:
        raise ValueError(f"{shown(wrong[0])} is not an ICMP type; write true for all, or of {', '.join(ICMP_TYPES)}")
    if not items:
        raise ValueError("no ICMP type at all; write true for all of them, or remove it")
    return tuple(sorted(set(items)))


def protocols(value: object) -> tuple[int, ...]:
    """IP protocols as numbers, sorted."""
    found = set()
    for item in value if isinstance(value, (list, tuple)) else (value,):
        text = _text(item, "a protocol")
        if text not in PROTOCOLS and not (text.isascii() and text.isdigit() and int(text) < 256):
            raise ValueError(f"{shown(text)} is not an IP protocol; write a number below 256, or one of "
                             f"{', '.join(PROTOCOLS)}")
        found.add(PROTOCOLS[text] if text in PROTOCOLS else int(text))
    return tuple(sorted(found))


def peer(value: object) -> str:
    """An end of a rule: any, an address or prefix, group:NAME, set:NAME or tenant:NAME."""
    text = _text(value, "a sender or receiver")
    kind, colon, rest = text.partition(":")
    if text == "any":
        return text
    if colon and kind in ("group", "set", "tenant"):
        return f"{kind}:{name(rest)}"
    try:
        if text in ("0.0.0.0/0", "::/0"):
            return text
        return prefix(text)
    except ValueError as wrong:
        raise ValueError(f"{wrong}; or write any, group:NAME, set:NAME or tenant:NAME") from None


def peers(value: object) -> tuple[str, ...]:
    """Ends of a rule, sorted, each once."""
    return tuple(sorted({peer(item) for item in (value if isinstance(value, (list, tuple)) else (value,))}))


# Sources of mirrors, and which of their frames

_VLAN_OF = re.compile(r"vlan:([0-9]{1,4})@(.+)")


def mirrored(value: object) -> str:
    """Whose frames are copied: GUEST, GUEST/NIC, network:NAME, group:NAME, uplink:NAME or vlan:NUMBER@UPLINK."""
    text = _text(value, "a source of frames")
    if found := _VLAN_OF.fullmatch(text):
        if not 1 <= int(found[1]) <= 4094:
            raise ValueError(f"{found[1]} is no VLAN id from 1 to 4094")
        return f"vlan:{int(found[1])}@{name(found[2])}"
    kind, colon, rest = text.partition(":")
    if colon:
        if kind not in ("network", "group", "uplink"):
            raise ValueError(f"{shown(text)} is no source; write GUEST, GUEST/NIC, network:NAME, group:NAME, uplink:NAME or "
                             "vlan:NUMBER@UPLINK")
        return f"{kind}:{name(rest)}"
    return "/".join(name(part) for part in text.split("/", 1))


def expression(value: object) -> str:
    """An expression in the language of pcap-filter, as kvmnet knows it."""
    text = line(value)
    from kvmnet.bpf import language  # few documents have one

    try:
        language.parse(text)
    except ValueError as wrong:
        raise ValueError(f"{shown(text)}: {wrong}; see pcap-filter(7), or write fields such as {{tcp: 80}}") from None
    return text
