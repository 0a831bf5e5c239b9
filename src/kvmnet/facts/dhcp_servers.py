"""What running DHCP servers give out, from their command lines and files: dnsmasq. Only reads."""
from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kvmnet.facts.machine import text

Json = dict[str, Any]
LEASES = Path("/var/lib/misc/dnsmasq.leases")
"""Where Debian's dnsmasq keeps leases when it is told nothing."""
MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}", re.I)
ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+")
MOST = 1000
"""dhcp-lease-max of dnsmasq(8) when it is told nothing."""


def dhcp_servers(servers: Iterable[Mapping[str, Any]]) -> list[Json]:
    """Of each dnsmasq that gives out addresses: {pid, interfaces, ranges, hosts, leases, most, port, ra, halted}."""
    found = []
    for server in servers:
        if server["program"] != "dnsmasq":
            continue
        given = settings(server["argv"][1:])
        if ranges := [r for value in given.get("dhcp-range", ()) if (r := addresses_of(value))]:
            file = Path((given.get("dhcp-leasefile") or given.get("dhcp-lease-file") or [str(LEASES)])[-1])
            port = (given.get("port") or ["53"])[-1]
            most = (given.get("dhcp-lease-max") or [str(MOST)])[-1]
            found.append({"pid": server["pid"], "interfaces": [i for value in given.get("interface", ()) for i in value.split(",")], "ranges": ranges,
                          "hosts": list(hosts(given)), "leases": leases(file), "file": str(file), "most": int(most) if most.isdigit() else MOST,
                          "port": int(port) if port.isdigit() else 53, "ra": "enable-ra" in given, **({"halted": True} if server.get("halted") else {})})
    return found


def own_servers(folders: Path, servers: Iterable[Mapping[str, Any]]) -> list[Json]:
    """Networks that kvmnet gives a server for DHCP and DNS, and whether it lives: {network, pid}, 0 for none."""
    pids = {word.partition("=")[2]: server["pid"] for server in servers if server["program"] == "dnsmasq" for word in server["argv"] if word.startswith("--conf-file=")}
    return [{"network": folder.name, "pid": pids.get(str(folder / "conf"), 0)} for folder in (sorted(folders.iterdir()) if folders.is_dir() else ()) if (folder / "conf").exists()]


def settings(words: Iterable[str]) -> dict[str, list[str]]:
    """Option -> values, of a command line and the files that it names."""
    found: dict[str, list[str]] = {}
    words = list(words)
    lines = []
    for at, word in enumerate(words):
        if word.startswith("--"):
            name, equal, value = word[2:].partition("=")
            following = words[at + 1] if at + 1 < len(words) and not words[at + 1].startswith("-") else ""
            lines.append((name, value if equal else following))
        elif word.startswith("-C"):
            lines.append(("conf-file", word[2:] or (words[at + 1] if at + 1 < len(words) else "")))
    for name, value in lines:
        found.setdefault(name, []).append(value)
        if name == "conf-file":
            for line in text(Path(value)).splitlines():
                key, _, rest = line.partition("#")[0].partition("=")
                if key.strip():
                    found.setdefault(key.strip(), []).append(rest.strip())
    return found


def addresses_of(value: str) -> list[str]:
    """First and last address of an IPv4 ``dhcp-range``; [] for one of IPv6, or static."""
    found = [word for word in value.split(",") if ADDRESS.fullmatch(word)]
    return found[:2] if len(found) >= 2 and "static" not in value.split(",") else []


def hosts(given: Mapping[str, list[str]]) -> Iterator[Json]:
    """Reservations: {mac, ip}."""
    lines = list(given.get("dhcp-host", ()))
    for name in ("dhcp-hostsfile", "dhcp-hostsdir"):
        for value in given.get(name, ()):
            path = Path(value)
            for file in sorted(path.iterdir()) if path.is_dir() else [path]:
                lines += text(file).splitlines()
    for line in lines:
        mac, ip = MAC.search(line), ADDRESS.search(line)
        if mac and ip:
            yield {"mac": mac[0].lower(), "ip": ip[0]}


def leases(file: Path) -> list[Json]:
    """Of IPv4: {mac, ip, name, client}; ``client`` is what the guest calls itself, '' when it says nothing."""
    found = []
    for words in (line.split() for line in text(file).splitlines()):
        if len(words) >= 4 and MAC.fullmatch(words[1]) and ADDRESS.fullmatch(words[2]):
            found.append({"mac": words[1].lower(), "ip": words[2], "name": words[3].strip("*"), "client": words[4].strip("*") if len(words) > 4 else ""})
    return found
