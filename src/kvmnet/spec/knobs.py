"""Kernel settings of the whole host that ``tuning:`` takes: what each is for, what a profile would have, and what it risks. Pure.

Guests have TCP stacks and sockets of their own: what is set here for sockets helps the host's own connections (migration,
storage, backups), not what guests send. What carries guests' packets is said to.
"""
from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from kvmnet.records import dataclass, field

NET = "Linux, Documentation/admin-guide/sysctl/net.rst"
IP = "Linux, Documentation/networking/ip-sysctl.rst"
CONNTRACK = "Linux, Documentation/networking/nf_conntrack-sysctl.rst"
MOST = 2**31 - 1


class Profile(StrEnum):
    THROUGHPUT = "throughput"
    LATENCY = "latency"
    DENSITY = "density"
    ROUTER = "router"


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting under /proc/sys, by its name with dots."""

    name: str
    why: str
    risk: str
    source: str
    proposed: Mapping[Profile, str]
    """Profile -> value; '' is none."""
    least: int = 0
    most: int = MOST
    count: int = 1
    """Numbers that it has; with three they rise."""
    words: tuple[str, ...] = ()
    """Where it is a word: those that are known."""
    raise_only: bool = field(default=False)
    """A host that has more already keeps it."""
    traffic: bool = field(default=False)
    """Loads of guests can show what it brings; limits and buffers that nobody fills show nothing."""

    @property
    def path(self) -> str:
        return self.name.replace(".", "/")

    def wrong(self, value: str) -> str:
        """What is wrong with *value*, '' for nothing."""
        if self.words:
            return "" if value in self.words else f"one of {', '.join(self.words)}"
        parts = value.split()
        if len(parts) != self.count or not all(p.isdigit() for p in parts):
            return "a number" if self.count == 1 else f"{self.count} numbers, e.g. {next(iter(self.proposed.values()), '')}"
        numbers = [int(p) for p in parts]
        if not all(self.least <= n <= self.most for n in numbers):
            return f"from {self.least} to {self.most}"
        return "" if numbers == sorted(numbers) else "rising: least, default, most"

    def better(self, now: str, value: str) -> bool:
        """Whether *value* is a change for the better of what is set *now*."""
        if now == value:
            return False
        if self.raise_only and not self.wrong(now):
            return any(int(a) < int(b) for a, b in zip(now.split(), value.split(), strict=True))
        return True


def everywhere(value: str) -> dict[Profile, str]:
    return dict.fromkeys(Profile, value)


T, L, D, R = Profile.THROUGHPUT, Profile.LATENCY, Profile.DENSITY, Profile.ROUTER

KNOBS: Mapping[str, Knob] = {k.name: k for k in (
    *(Knob(f"net.bridge.bridge-nf-call-{tool}",
           f"bridged frames no longer pass {tool} on their way: carries guests' packets, which cost 0.72 of the rate there (measured, with connection tracking)",
           f"rules in {tool} no longer see bridged frames: Docker's, Kubernetes' and libvirt's nwfilter need them", NET,
           {T: "0", L: "0", D: "0"}, most=1, traffic=tool == "iptables") for tool in ("iptables", "ip6tables", "arptables")),
    Knob("net.core.netdev_budget", "packets that a CPU takes from its NICs before it looks at other work: carries guests' packets",
         "other work on that CPU waits longer", NET, {T: "600", R: "600"}, least=1, most=100000, raise_only=True, traffic=True),
    Knob("net.core.netdev_budget_usecs", "microseconds of the same", "other work on that CPU waits longer", NET,
         {T: "16000", R: "16000"}, least=1, most=1000000, raise_only=True, traffic=True),
    Knob("net.core.bpf_jit_enable", "filters and eBPF programs run as machine code: carries guests' packets where there are some",
         "none that is known; Debian's kernel has it on", NET, everywhere("1"), most=2),
    Knob("net.netfilter.nf_conntrack_max", "connections that NAT, groups and stateful rules can follow: beyond it new ones are dropped",
         "up to 320 bytes of memory for each", CONNTRACK, {D: "1048576", R: "1048576"}, least=1024, raise_only=True),
    Knob("net.netfilter.nf_conntrack_buckets", "hash buckets of that table: with few each look-up walks a list",
         "8 bytes of memory for each", CONNTRACK, {D: "262144", R: "262144"}, least=1024, most=2**24, raise_only=True),
    Knob("net.netfilter.nf_conntrack_tcp_timeout_established", "a connection whose ends died is forgotten after a day, not after five",
         "connections that are silent for longer and send no keepalives are cut", CONNTRACK, {D: "86400", R: "86400"}, least=60),
    *(Knob(f"net.{family}.neigh.default.gc_thresh{number}", f"neighbours ({what}) {words}: every guest and every far end is one",
           "memory, 0.5 KiB for each; a scan on the network can fill it", IP, {D: value, R: value}, least=1, most=2**20, raise_only=True)
      for family, what in (("ipv4", "ARP"), ("ipv6", "ND"))
      for number, words, value in ((1, "that are never cleared away", "4096"), (2, "from which on clearing begins after 5 s", "8192"),
                                   (3, "at most", "16384"))),
    Knob("vm.nr_hugepages", "memory in large pages that is set aside for guests (run: {hugepages: true}): fewer TLB misses",
         "it is taken from everything else of the host; less than asked for when memory is in pieces: then the change is taken back",
         "Linux, Documentation/admin-guide/mm/hugetlbpage.rst", {}),
    Knob("net.core.rmem_max", "receive buffer in bytes that a program of the host may ask for: UDP servers, tunnels in user space",
         "memory of programs that ask for much", NET, {T: "16777216"}, least=4096, raise_only=True),
    Knob("net.core.wmem_max", "send buffer of the same", "memory of programs that ask for much", NET, {T: "16777216"}, least=4096,
         raise_only=True),
    Knob("net.ipv4.tcp_rmem", "receive window of the host's own TCP over long and fast ways: migration, storage",
         "up to 32 MiB of memory for a connection", IP, {T: "4096 131072 33554432"}, least=1, count=3, raise_only=True,
         traffic=True),
    Knob("net.ipv4.tcp_wmem", "send window of the same", "up to 32 MiB of memory for a connection", IP, {T: "4096 16384 33554432"},
         least=1, count=3, raise_only=True, traffic=True),
    Knob("net.ipv4.tcp_congestion_control", "the host's own TCP keeps its speed where a few packets are lost",
         "takes more than its share from cubic in short queues", IP, {T: "bbr"},
         words=("reno", "cubic", "bbr", "dctcp", "westwood", "htcp", "vegas", "illinois"), traffic=True),
    Knob("net.ipv4.tcp_mtu_probing", "the host's own TCP finds the MTU where ICMP is dropped", "none that is known", IP, {T: "1", R: "1"},
         most=2),
    Knob("net.core.busy_read", "microseconds for which a reading socket of the host polls its NIC before it sleeps",
         "a CPU is kept busy", NET, {L: "50"}, most=100000, traffic=True),
    Knob("net.core.busy_poll", "the same for poll and select", "a CPU is kept busy", NET, {L: "50"}, most=100000, traffic=True),
)}

REFUSED: Mapping[str, str] = {
    "net.ipv4.tcp_max_orphaned": "no kernel has it; tcp_max_orphans counts closed connections of the host's own programs, no guest's",
    "net.ipv4.tcp_max_orphans": "counts closed connections of the host's own programs; guests' connections are not the host's",
    "net.core.netdev_max_backlog": "the queue of RPS, veth and loopback: NICs with NAPI and taps do not use it, and it has nothing to do "
                                   "with the MTU",
    "net.core.default_qdisc": "counts only for links that are made later, and BBR needs no fq since Linux 4.13; write qdisc: at an uplink or a NIC",
    "net.core.rps_sock_flow_entries": "steers to the CPU of the host's program that reads: packets of guests have none",
    "net.core.somaxconn": "the host's own listening sockets; 4096 since Linux 5.4",
    "net.ipv4.tcp_tw_reuse": "the host's own connections; guests' connections are not the host's",
    "net.ipv4.tcp_tw_recycle": "gone since Linux 4.12, and it broke clients behind NAT",
    "net.ipv4.ip_forward": "kvmnet sets forwarding where a network needs it, for two devices at a time",
    "net.ipv4.tcp_timestamps": "without timestamps TCP measures worse and cannot tell old packets on fast ways (RFC 7323)",
    "net.ipv4.tcp_sack": "without it every lost packet costs a round trip more (RFC 2018)",
    "net.core.optmem_max": "ancillary data of the host's own sockets",
    "vm.swappiness": "no network setting",
}
"""Settings that lists on the web name for this -> why they are not proposed."""


def reason(name: str) -> str:
    """Why a setting is not taken; '' when nothing is known of it."""
    return REFUSED.get(name, "")
