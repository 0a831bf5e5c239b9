"""The whole network of a host as one JSON document: ``kvmnet facts``. Only reads.

It is the support bundle, the input of ``why`` and ``doctor``, and the fixture of their rules' tests. Everything is
read in bulk, as the tools print it: one process for each kind of thing, however many NICs there are. What a tool
or this kernel does not have is named in ``missing`` with the reason, so that nobody takes it for empty.
"""
from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kvmnet import __version__
from kvmnet.drivers.ethtool.wire import active_features
from kvmnet.drivers.stp.process import Speaking
from kvmnet.engine.history import History
from kvmnet.errors import HostCannot
from kvmnet.facts import nft
from kvmnet.facts.collect import LIMITS, dhcp_clients, resolvers
from kvmnet.facts.dhcp_servers import dhcp_servers, own_servers
from kvmnet.facts.features import features
from kvmnet.facts.guests import guests
from kvmnet.facts.machine import machine
from kvmnet.facts.processes import processes
from kvmnet.facts.secrets import scrubbed
from kvmnet.facts.switches import switches
from kvmnet.host import run as host
from kvmnet.host.paths import Paths
from kvmnet.host.side import begun, together
from kvmnet.spec.names import tap_name

FORMAT = 1
"""Version of the capture; readers refuse a newer one."""
Json = dict[str, Any]
SECONDS = 10.0
"""Longest that one tool may take."""

TABLES: Mapping[str, tuple[str, ...]] = {
    "links": ("ip", "-j", "-d", "-s", "addr", "show"),
    "routes4": ("ip", "-j", "-d", "-4", "route", "show", "table", "all"),
    "routes6": ("ip", "-j", "-d", "-6", "route", "show", "table", "all"),
    "rules4": ("ip", "-j", "-4", "rule", "show"),
    "rules6": ("ip", "-j", "-6", "rule", "show"),
    "neighbours": ("ip", "-j", "neigh", "show"),
    "proxies": ("ip", "-j", "neigh", "show", "proxy"),
    "netconf": ("ip", "-j", "netconf", "show"),
    "vlans": ("bridge", "-j", "vlan", "show"),
    "fdb": ("bridge", "-j", "-s", "fdb", "show"),
    "mdb": ("bridge", "-j", "-d", "mdb", "show"),
    "qdiscs": ("tc", "-j", "-s", "qdisc", "show"),
}
"""Part -> the command whose JSON it is."""
TEXTS: Mapping[str, tuple[str, ...]] = {
    "nft_text": ("nft", "-a", "-t", "list", "ruleset"),
    "xfrm": ("ip", "xfrm", "policy", "show"),
}
"""Part -> the command whose text it is."""
SAVES: Mapping[str, tuple[str, str]] = {
    "ip": ("iptables-legacy-save", "ip_tables_names"), "ip6": ("ip6tables-legacy-save", "ip6_tables_names"),
    "arp": ("", "arp_tables_names"),
}
"""Family -> program that prints its rules of xtables (legacy), and the file under /proc/net that names the tables in use."""
XTABLES_NFT: Mapping[str, str] = {"ip": "iptables-nft-save", "ip6": "ip6tables-nft-save"}
"""The same rules as nft shows them, with the words of matches that nft does not print."""
OFFLOADS = frozenset({
    "rx-lro", "rx-gro", "rx-gro-hw", "tx-tcp-segmentation", "tx-generic-segmentation", "tx-checksum-ipv4", "tx-checksum-ip-generic",
    "tx-checksum-ipv6", "rx-checksum", "tx-udp-segmentation", "rx-vlan-filter", "rx-vlan-hw-parse", "tx-vlan-hw-insert",
    "tx-scatter-gather", "rx-ntuple-filter", "hw-tc-offload", "tx-tcp-mangleid-segmentation", "tx-tcp6-segmentation",
})
"""Offloads that findings are about (names of the kernel)."""
SYSCTLS = (
    "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables", "net/bridge/bridge-nf-call-arptables", "net/bridge/bridge-nf-filter-vlan-tagged",
    "net/ipv4/icmp_echo_ignore_all", "net/ipv6/icmp/echo_ignore_all", "net/ipv4/ping_group_range", "net/ipv4/ip_default_ttl", "net/ipv4/tcp_max_orphans",
    "net/core/netdev_max_backlog", "net/core/netdev_budget", "net/core/rmem_max", "net/core/wmem_max", "net/core/default_qdisc",
    "net/core/somaxconn", "net/ipv4/tcp_congestion_control", "net/ipv4/neigh/default/gc_thresh1", "net/ipv4/neigh/default/gc_thresh2",
    "net/netfilter/nf_conntrack_count", "net/netfilter/nf_conntrack_tcp_be_liberal", "net/netfilter/nf_conntrack_buckets",
    "net/ipv6/conf/all/disable_ipv6", *LIMITS.values(),
)
"""Settings of the whole host, under /proc/sys."""
DEVICE_SYSCTLS = {
    4: ("accept_local", "arp_ignore", "arp_filter", "arp_announce", "route_localnet", "proxy_arp", "disable_policy", "src_valid_mark"),
    6: ("accept_ra", "disable_ipv6", "accept_dad", "autoconf", "force_forwarding", "proxy_ndp"),
}
"""Settings of one device; read for those with addresses, and for ``all``. rp_filter and forwarding of every device are in
``netconf``."""
COUNTERS = ("snmp", "netstat", "snmp6", "softnet_stat", "stat/nf_conntrack", "xfrm_stat")
"""Files under /proc/net, as text."""


def capture(paths: Paths) -> Json:
    """Everything, side by side. Raises HostCannot when ``ip`` is not there."""
    missing: dict[str, str] = {}
    found: Json = {"format": FORMAT, "kvmnet": __version__, "kernel": os.uname().release,
                   "taken": datetime.now(UTC).isoformat(timespec="seconds")}
    with begun(processes) as held:
        jobs: list[tuple[str, Callable[[], Any]]] = [
            *((name, table_job(argv)) for name, argv in TABLES.items()), *((name, text_job(argv)) for name, argv in TEXTS.items()),
            ("nft", lambda: nft.rules(SECONDS)), ("xtables", xtables), ("ebtables", ebtables)]
        for (name, _), part in zip(jobs, together([kept(job, name, missing) for name, job in jobs]), strict=True):
            found[name] = part
        if found["nft"] and found["nft_text"]:
            found["nft"] = nft.with_flags(found["nft"], found["nft_text"])
        devices = [link["ifname"] for link in found["links"] or ()]
        addressed = [link["ifname"] for link in found["links"] or () if link.get("addr_info")]
        found["offloads"] = active_features(devices, OFFLOADS)
        found["sysctls"] = sysctls(addressed)
        found["filters"] = kept(lambda: filters(found["qdiscs"] or ()), "filters", missing)()
        found["classes"] = kept(lambda: classes(found["qdiscs"] or ()), "classes", missing)()
        found["counters"] = {name: text for name in COUNTERS if (text := read(Path("/proc/net", name)))}
        found["features"] = features(paths.run / "features.json")
        found["resolvers"] = list(resolvers())
        found["dhcp_clients"] = dhcp_clients(devices)
        found["nics"] = own_nics(paths)
        running = held.result()
    found |= {"taps": running.taps, "listening": running.listening, "guests": guests(paths, running), "servers": running.servers}
    found |= kept(lambda: switches(running.servers), "switches", missing)() or {"switches": None, "ovn": None}
    found["leases"] = leases(paths)
    found["trees"] = trees(paths)
    found["dhcp_servers"] = dhcp_servers(running.servers)
    found["own_servers"] = own_servers((paths.run / "dnsmasq").absolute(), running.servers) if os.geteuid() == 0 else []
    found["machine"] = machine(found["links"] or (), running.guests)
    found["missing"] = missing
    return found


def kept(job: Callable[[], Any], name: str, missing: dict[str, str]) -> Callable[[], Any]:
    """*job*, whose failure is written down instead of raised."""
    def call() -> Any:
        try:
            return job()
        except HostCannot as error:
            if name == "links":
                raise
            missing[name] = str(error)
        except host.ToolFailed as error:
            missing[name] = error.detail.splitlines()[0] if error.detail else str(error)
        except ValueError as error:
            missing[name] = f"not what was expected: {error}"
        return None
    return call


def table_job(argv: Sequence[str]) -> Callable[[], Any]:
    def call() -> Any:
        rows = json.loads(host.run(argv, timeout=SECONDS) or "[]")
        return [row for row in rows if row]     # iproute2 prints {} for what it left out
    return call


def text_job(argv: Sequence[str]) -> Callable[[], str]:
    return lambda: scrubbed(host.run(argv, timeout=SECONDS))


def xtables() -> Json:
    """Rules of xtables, family -> text; of a family whose tables are in use but cannot be printed the reason,
    as ``# unknown: ...``: they judge packets all the same."""
    found: Json = {}
    for family, (program, names) in SAVES.items():
        tables = read(Path("/proc/net", names)).split()
        if not tables:
            continue
        if program and not host.missing(program):
            found[family] = scrubbed(host.run((program, "-c"), timeout=SECONDS))
        else:
            found[family] = f"# unknown: {program or 'arptables-legacy'} is not installed; tables in use: {' '.join(tables)}\n"
    for family, program in XTABLES_NFT.items():
        if not host.missing(program):
            found[f"nft-{family}"] = scrubbed(host.run((program, "-c"), timeout=SECONDS))
    return found


def ebtables() -> str:
    """Rules of ebtables (legacy), '' without."""
    program = next((p for p in ("ebtables-legacy-save", "ebtables-save") if not host.missing(p)), "")
    return scrubbed(host.run((program,), timeout=SECONDS)) if program else ""


def filters(qdiscs: Sequence[Mapping[str, Any]]) -> list[Json]:
    """Filters of tc at the devices that have a place for them, in one batch: ``{dev, direction, filters}``."""
    asked = [(q["dev"], way) for q in qdiscs if q["kind"] in ("clsact", "ingress")
             for way in (("ingress", "egress") if q["kind"] == "clsact" else ("ingress",))]
    if not asked:
        return []
    text = host.run(("tc", "-j", "-s", "-b", "-"), timeout=SECONDS,
                    stdin="".join(f"filter show dev {dev} {way}\n" for dev, way in asked))
    decoder, at, found = json.JSONDecoder(object_pairs_hook=with_matches), 0, []
    for dev, way in asked:
        at = len(text) - len(text[at:].lstrip())
        rows, at = decoder.raw_decode(text, at) if at < len(text) else ([], at)
        found.append({"dev": dev, "direction": way, "filters": rows})
    return found


def classes(qdiscs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Device -> classes of its htb, in one batch, as text: iproute2 6.1 has no JSON of them. They do not name their device; the queue at the root stands in front of each one's."""
    devices = [q["dev"] for q in qdiscs if q["kind"] == "htb" and q.get("root")]
    text = host.run(("tc", "-b", "-"), timeout=SECONDS, stdin="".join(f"qdisc show dev {dev} root\nclass show dev {dev}\n" for dev in devices)) if devices else ""
    return dict(zip(devices, re.split(r"^(?=qdisc htb .* root )", text, flags=re.M)[1:], strict=True)) if devices else {}


def with_matches(pairs: list[tuple[str, Any]]) -> Json:
    """An object of tc: u32 repeats the key ``match``, all of which are kept in ``matches``."""
    found = dict(pairs)
    if "match" in found:
        found["matches"] = [value for key, value in pairs if key == "match"]
    return found


def sysctls(devices: Sequence[str], root: Path = Path("/proc/sys")) -> dict[str, str]:
    """Setting -> value, of those that this kernel shows."""
    names = list(SYSCTLS)
    for version, settings in DEVICE_SYSCTLS.items():
        names += [f"net/ipv{version}/conf/{dev}/{name}" for dev in ("all", *devices) for name in settings]
    return {name: value for name in names if (value := read(root / name).strip())}


def read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return ""


def own_nics(paths: Paths) -> list[Json]:
    """NICs of the documents that were applied here, with their addresses; also those that are gone."""
    if not paths.database.exists():
        return []
    return [{"vm": vm, "nic": nic, "network": network, "tap": tap_name(vm, nic), "mac": got.mac, "ip": got.ip, "ip6": got.ip6}
            for (vm, nic, network), got in History(paths.database).allocations().items()]


def trees(paths: Paths) -> list[Json]:
    """Spanning trees that kvmnet speaks: for each bridge which VLANs go by which, and what its process tells; empty when it is dead."""
    found = []
    for folder in sorted((paths.run / "trees").glob("*")):
        speaking = Speaking(folder)
        with suppress(ValueError):
            wish = json.loads(speaking.config())
            instances = [" ".join((number, *vlans)) for number, _, *vlans in (text.split() for text in wish.get("instances") or ())]
            found.append({"bridge": folder.name, "protocol": wish["protocol"], "instances": instances, "untagged": wish.get("untagged") or 0,
                          **(speaking.state() or {"trees": {}, "ports": {}})})
    return found


def leases(paths: Paths) -> list[Json]:
    """What DHCP servers of ours and of libvirt have lent: ``{mac, ip, name, file}``."""
    found = []
    for folder, pattern in ((paths.state / "leases", "*"), (Path("/var/lib/libvirt/dnsmasq"), "*.leases"), (Path("/var/lib/misc"), "dnsmasq.leases")):
        for file in sorted(folder.glob(pattern)) if folder.is_dir() else ():
            for words in (line.split() for line in read(file).splitlines()):
                if len(words) >= 4 and re.fullmatch(r"[0-9a-f:]{17}", words[1]):
                    found.append({"mac": words[1], "ip": words[2], "name": words[3], "file": str(file)})
    return found
