"""What guests see themselves: one script in each, through its agent, all at the same time. It only reads, for at most ``SECONDS``.

A guest is taken as it is: without ``ip`` its addresses are those that the agent tells; what it has no tool for is missing, never
taken for empty.
"""
from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from kvmnet.drivers.qemu.agent import Agent, AgentError
from kvmnet.facts.processes import LISTEN, readable
from kvmnet.facts.secrets import scrubbed

Json = dict[str, Any]
SECONDS = 3.0
"""For the whole of one guest; emulated ones are slow."""
MARK = "@@kvmnet"
MOST = 400_000
"""Bytes of a guest's firewall rules."""
FORWARDS = "net/ipv4/ip_forward"
SETTINGS = (FORWARDS, "net/ipv4/tcp_congestion_control", "net/core/default_qdisc", "net/ipv4/tcp_rmem", "net/ipv4/tcp_wmem")
"""Of the guest's kernel, below /proc/sys."""
SCRIPT = f"""\
PATH=$PATH:/sbin:/usr/sbin
has() {{ command -v "$1" > /dev/null 2>&1; }}
get() {{ v=; [ -r "$2" ] && read -r v < "$2"; echo "$1 $v"; }} 2> /dev/null
for l in /sys/class/net/*; do
  [ -e "$l/device" ] || [ -d "$l/bridge" ] || [ -d "$l/bonding" ] || continue
  n=${{l##*/}}
  echo "{MARK} link $n"
  get mac "$l/address"; get mtu "$l/mtu"; get flags "$l/flags"; get carrier "$l/carrier"; get set "$l/addr_assign_type"
  [ -e "$l/master" ] && m=$(readlink "$l/master") && echo "master ${{m##*/}}"
  [ -e "$l/device" ] || continue
  d=$(readlink -f "$l/device/driver"); echo "driver ${{d##*/}}"
  set -- "$l"/queues/tx-*; echo "queues $#"
  get features "$l/device/features"
  if has ethtool; then echo "{MARK} channels $n"; ethtool -l "$n"; echo "{MARK} offloads $n"; ethtool -k "$n"; fi 2> /dev/null
done
if has ip; then
  echo "{MARK} addr"; ip -o addr | head -n 1000
  echo "{MARK} route4"; ip -4 route | head -n 1000; echo "{MARK} route6"; ip -6 route | head -n 1000
  echo "{MARK} rule"; ip rule; echo "{MARK} neigh"; ip neigh | head -n 1000
  echo "{MARK} tools"; echo ip
fi 2> /dev/null
for p in tcp:0A tcp6:0A udp:07 udp6:07; do echo "{MARK} listen ${{p%:*}}"; grep " ${{p#*:}} " "/proc/net/${{p%:*}}" | head -n 500; done 2> /dev/null
echo "{MARK} settings"; for s in {" ".join(SETTINGS)}; do get $s "/proc/sys/$s"; done
echo "{MARK} resolver"; cat /etc/resolv.conf 2> /dev/null
if has nft; then echo "{MARK} nft"; nft -j list ruleset; echo "{MARK} nft_text"; nft -a -t list ruleset; fi 2> /dev/null | head -c {MOST}
echo
if has iptables-legacy-save && [ -s /proc/net/ip_tables_names ]; then echo "{MARK} xtables"; iptables-legacy-save -c; fi 2> /dev/null | head -c {MOST}
echo
echo "{MARK} end"
"""
BITS: Mapping[int, str] = {
    0: "csum", 1: "guest_csum", 3: "mtu", 7: "guest_tso4", 8: "guest_tso6", 9: "guest_ecn", 10: "guest_ufo", 11: "host_tso4", 12: "host_tso6", 13: "host_ecn", 14: "host_ufo",
    15: "mrg_rxbuf", 16: "status", 17: "ctrl_vq", 18: "ctrl_rx", 19: "ctrl_vlan", 21: "guest_announce", 22: "mq", 32: "version_1", 33: "access_platform", 34: "packed",
    54: "guest_uso4", 55: "guest_uso6", 56: "host_uso", 57: "hash_report", 60: "rss", 62: "standby",
}
"""Bit of a virtio network device's features -> its name (include/uapi/linux/virtio_net.h, virtio_config.h)."""
ADDRESS = re.compile(r"^\d+: (?P<dev>[^\s@:]+)(?:@\S+)?:?\s+(?P<family>inet6?) (?P<local>[^/\s]+)(?:\s+peer\s+\S+?)?(?:/(?P<length>\d+))?(?P<rest>.*)$")
OFFLOADS = {"tx-checksumming": "tx-checksum", "rx-checksumming": "rx-checksum", "tcp-segmentation-offload": "tso", "generic-receive-offload": "gro", "scatter-gather": "sg"}
"""Word of ethtool -k -> ours."""
KINDS = frozenset({"blackhole", "unreachable", "prohibit"})


def ask(socket: Path) -> Json:
    """The inside of a guest: ``{"agent": ""}`` and what it told, or the reason why nothing."""
    try:
        with Agent.open(socket, SECONDS / 3) as agent:
            agent.timeout = SECONDS
            with suppress(AgentError):
                told = agent.run(["/bin/sh", "-c", SCRIPT], SECONDS)
                if f"{MARK} end" in told.out:
                    return {"agent": ""} | parse(told.out)
            return {"agent": ""} | interfaces(agent.execute("guest-network-get-interfaces"))
    except AgentError as error:
        return {"agent": str(error)}


def interfaces(rows: Sequence[Mapping[str, Any]]) -> Json:
    """Of an agent that runs no programs: addresses alone (qga/qapi-schema.json)."""
    return {"links": [{"name": r["name"], "mac": str(r.get("hardware-address", "")).lower(), "addresses": [
        {"local": a["ip-address"], "prefixlen": a["prefix"]} for a in r.get("ip-addresses", ())]} for r in rows if r.get("hardware-address")]}


# -- what the script wrote -------------------------------------------------------------------------

def parse(text: str) -> Json:
    """What a guest said. Parts that it could not tell are not there."""
    parts = sections(text)
    links = {name.partition(" ")[2]: link(name.partition(" ")[2], body) for name, body in parts.items() if name.startswith("link ")}
    for name, body in parts.items():
        kind, _, dev = name.partition(" ")
        if kind in MORE and dev in links and (told := MORE[kind](body)):
            links[dev][kind] = told
    found: Json = {"links": list(links.values()), "resolvers": [words[1] for words in (line.split() for line in parts.get("resolver", ())) if len(words) > 1 and words[0] == "nameserver"]}
    if "tools" in parts:
        for dev, row in addresses(parts.get("addr", ())):
            if dev in links:
                links[dev].setdefault("addresses", []).append(row)
        for each in links.values():
            each.setdefault("addresses", [])
        found["routes"] = [r for version in (4, 6) for line in parts.get(f"route{version}", ()) if (r := route(line.split(), version))]
        found["neighbours"] = [n for line in parts.get("neigh", ()) if (n := neighbour(line.split()))]
        found["rules"] = len([line for line in parts.get("rule", ()) if line.strip()])
    if settings := {name.replace("/", "."): " ".join(value.split()) for name, _, value in (line.partition(" ") for line in parts.get("settings", ())) if value.strip()}:
        found["settings"] = settings
    found["listening"] = [row for name, body in parts.items() if name.startswith("listen ") for row in sockets(name.partition(" ")[2], body)]
    for name in ("nft_text", "xtables"):
        if any(parts.get(name, ())):
            found[name] = scrubbed("\n".join(parts[name]))
    with suppress(ValueError):
        if any(parts.get("nft", ())):
            found["nft"] = json.loads(scrubbed("\n".join(parts["nft"]))).get("nftables", [])
    return found


def sections(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    body: list[str] = []
    for line in text.splitlines():
        if line.startswith(MARK):
            body = found.setdefault(line.removeprefix(MARK).strip(), [])
        else:
            body.append(line)
    return found


def link(name: str, lines: Sequence[str]) -> Json:
    told = {word: value for word, _, value in (line.partition(" ") for line in lines)}
    flags = told.get("flags", "")
    found: Json = {"name": name, "mac": told.get("mac", "").lower(), "up": bool(int(flags, 16) & 1) if re.fullmatch(r"0x[0-9a-f]+", flags) else None,
                   "carrier": {"1": True, "0": False}.get(told.get("carrier", "")), "mac_set": told.get("set") == "3", "hardware": "driver" in told}
    for word in ("mtu", "queues"):
        if told.get(word, "").isdigit():
            found[word] = int(told[word])
    for word in ("master", "driver"):
        if told.get(word):
            found[word] = told[word]
    if told.get("features"):
        found["features"] = [feature for bit, feature in BITS.items() if told["features"][bit:bit + 1] == "1"]
    return found


def channels(lines: Sequence[str]) -> Json:
    """``combined`` queues: {most, now} (ethtool -l, the maximums first)."""
    numbers = [int(line.split()[1]) for line in lines if line.startswith("Combined:") and line.split()[1].isdigit()]
    return {"most": numbers[0], "now": numbers[1]} if len(numbers) == 2 else {}


def offloads(lines: Sequence[str]) -> Json:
    """Offload -> whether it is on."""
    rows = (line.partition(":") for line in lines)
    return {OFFLOADS[word]: value.split()[0] == "on" for word, _, value in rows if word in OFFLOADS and value.split()}


MORE: Mapping[str, Callable[[Sequence[str]], Json]] = {"channels": channels, "offloads": offloads}


def addresses(lines: Sequence[str]) -> list[tuple[str, Json]]:
    """(link, {local, prefixlen, failed}) of ``ip -o addr``, of global scope; ``failed``: somebody else has it (RFC 4862)."""
    found = []
    for line in lines:
        if (row := ADDRESS.match(line)) and " scope link" not in line and " scope host" not in line:
            length = int(row["length"] or (128 if row["family"] == "inet6" else 32))
            found.append((row["dev"], {"local": row["local"], "prefixlen": length, "failed": "dadfailed" in row["rest"].split()}))
    return found


def route(words: Sequence[str], version: int) -> Json:
    """{dst, dev, via, type, metric} of a line of ``ip route``; {} of what goes by several hops or leads nowhere in particular."""
    if not words or words[0] in ("local", "broadcast", "multicast", "anycast", "nexthop"):
        return {}
    kind, rest = (words[0], words[1:]) if words[0] in KINDS else ("unicast", words)
    named = {word: rest[n + 1] for n, word in enumerate(rest[:-1]) if word in ("dev", "via", "metric", "src")}
    if (kind == "unicast" and "dev" not in named) or not rest:
        return {}
    return {"version": version, "dst": rest[0], "type": kind, "dev": named.get("dev", ""), "via": named.get("via", ""), "metric": int(named.get("metric", "0"))}


def sockets(proto: str, lines: Sequence[str]) -> list[Json]:
    """{proto, address, port} of who waits for anybody, of lines of /proc/net/tcp and the like."""
    ends = (line.split()[1].partition(":") for line in lines if len(line.split()) > 3 and line.split()[3] == LISTEN[proto])
    return [{"proto": proto[:3], "address": readable(address), "port": int(port, 16)} for address, _, port in ends]


def neighbour(words: Sequence[str]) -> Json:
    """{ip, dev, mac, state} of a line of ``ip neigh``."""
    if len(words) < 4 or words[1] != "dev":
        return {}
    named = dict(pairwise(words[3:]))
    return {"ip": words[0], "dev": words[2], "mac": named.get("lladdr", "").lower(), "state": words[-1]}
