"""What this host's kernel can do: feature -> probe -> reason ('' when it can).

Its readers are the compiler's choices, the checks of a document, the doctor's rules and the tests'
skips. Everything that needs an object is tried in a network namespace of its own, which vanishes with
the process; the answers are kept in the run directory for as long as the same kernel runs with the
same modules installed. A probe may make the kernel load a module, as using the feature would.
"""
from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from kvmnet.host import run as host
from kvmnet.host.process import boot_id

PROBES: dict[str, str] = {
    "bridge": "ip link add b0 type bridge",
    "bridge-vlan-filtering": "ip link set b0 type bridge vlan_filtering 1",
    "bridge-vlan-multicast": "ip link set b0 type bridge mcast_vlan_snooping 1",
    "bridge-netfilter": "ip link set b0 type bridge nf_call_iptables 0",
    "port": "ip tuntap add dev t0 mode tap && ip link set t0 master b0",
    "bridge-vlan-states": "bridge vlan add dev t0 vid 9 && bridge vlan set dev t0 vid 9 state blocking",
    "port-isolated": "ip link set t0 type bridge_slave isolated on && ip -d link show t0 | grep -q 'isolated on'",
    "port-locked": "ip link set t0 type bridge_slave locked on && ip -d link show t0 | grep -q 'locked on'",
    "nft": "nft add table inet t",
    "nft-bridge": "nft 'add table bridge t; add chain bridge t c { type filter hook prerouting priority 0; }'",
    "nft-bridge-ibrname": "nft 'add rule bridge t c meta ibrname x accept'",
    "nft-bridge-reject": "nft 'add rule bridge t c reject'",
    "nft-element-limits": "nft 'add set bridge t s { typeof iifname; limit rate over 1/second burst 1 packets; }; "
                          "add element bridge t s { \"x\" limit rate over 5/second burst 5 packets }'",
    "bridge-conntrack": "nft 'add rule bridge t c ct state established accept'",
    "conntrack": "nft 'add chain inet t c; add rule inet t c ct state established accept'",
    "nft-synproxy": "nft 'add chain inet t d { type filter hook forward priority 0; }; "
                    "add rule inet t d synproxy mss 1460 wscale 7 timestamp sack-perm'",
    "nft-netdev-egress": "nft 'add table netdev t; add chain netdev t c "
                         "{ type filter hook egress device t0 priority 0; }'",
    "tc-bpf": "tc qdisc add dev t0 clsact && tc filter add dev t0 egress protocol all prio 1 bpf da bytecode "
              "'1,6 0 0 4294967295'",
    "ifb": "ip link add i0 type ifb",
    "tc-tbf": "tc qdisc add dev t0 root handle 1: tbf rate 1mbit burst 16k limit 64k && tc qdisc del dev t0 root",
    "tc-htb": "tc qdisc add dev t0 root handle 1: htb && tc qdisc del dev t0 root",
    "tc-fq-codel": "tc qdisc add dev t0 root handle 1: fq_codel && tc qdisc del dev t0 root",
    "tc-fq": "tc qdisc add dev t0 root handle 1: fq && tc qdisc del dev t0 root",
    "tc-cake": "tc qdisc add dev t0 root handle 1: cake && tc qdisc del dev t0 root",
    "tc-noqueue": "tc qdisc add dev t0 root handle 1: noqueue && tc qdisc del dev t0 root",
    "tc-mq": "ip link add q0 numtxqueues 2 type veth peer name q1 && tc qdisc add dev q0 root handle 1: mq",
    "tc-redirect": "tc qdisc replace dev t0 clsact && tc filter add dev t0 ingress protocol all prio 2 u32 match u32 0 0 "
                   "action mirred egress redirect dev b0",
    "tc-skbedit": "tc qdisc replace dev t0 clsact && tc filter add dev t0 ingress protocol all prio 3 u32 match u32 0 0 "
                  "action skbedit priority 6c00:10 pipe action mirred egress redirect dev b0",
    "tc-mirror": "tc qdisc replace dev t0 clsact && tc filter add dev t0 egress protocol all pref 2 bpf bytecode "
                 "'1,6 0 0 4294967295' action mirred egress mirror dev b0 continue",
    "vlan": "ip link add link b0 name v0 type vlan id 10",
    "bond": "test -e /sys/module/bonding || modprobe -qn bonding",
    "macvlan": "ip link add link b0 name m0 type macvlan mode bridge",
    "macvtap": "ip link add link b0 name m1 type macvtap mode bridge",
    "vxlan": "ip link add x0 type vxlan id 1 dstport 4789",
    "gre": "test -e /sys/module/ip_gre || modprobe -qn ip_gre",
    "vrf": "ip link add r0 type vrf table 100",
    "vrf-exec": "ip link set r0 up && ip vrf exec r0 true",
    "wireguard": "ip link add w0 type wireguard",
    "vfio": "test -e /sys/bus/pci/drivers/vfio-pci || modprobe -qn vfio-pci",
    "ipv6": "test -d /proc/sys/net/ipv6/conf/all",
    "ipv6-force-forwarding": "test -e /proc/sys/net/ipv6/conf/all/force_forwarding",
}
"""Feature -> shell command that succeeds when the kernel can, in this order, in one scratch namespace.

A bond is not made: the module, when the kernel loads it by itself, makes a bond0 in the host's own
namespace (drivers/net/bonding/bond_main.c, max_bonds).
"""

MISSING: dict[str, str] = {
    "port-isolated": "the kernel or iproute2 is older than Linux 4.18",
    "port-locked": "the kernel or iproute2 is older than Linux 5.18",
    "bridge-netfilter": "the kernel lacks bridge netfilter (CONFIG_BRIDGE_NETFILTER)",
    "nft-element-limits": "the kernel or nft cannot give each element of a set a limit (Linux 5.7, nft 0.9.5)",
    "bridge-conntrack": "the kernel lacks connection tracking for bridges (CONFIG_NF_CONNTRACK_BRIDGE)",
    "nft-bridge-ibrname": "the kernel lacks bridge names in nftables (CONFIG_NFT_BRIDGE_META)",
    "nft-bridge-reject": "the kernel lacks reject in bridges (CONFIG_NFT_BRIDGE_REJECT)",
    "bridge-vlan-filtering": "the kernel lacks VLANs in bridges (CONFIG_BRIDGE_VLAN_FILTERING)",
    "bridge-vlan-multicast": "the kernel or iproute2 cannot snoop multicast for each VLAN (Linux 5.15)",
    "bridge-vlan-states": "the kernel or iproute2 has no states of VLANs (Linux 5.6, CONFIG_BRIDGE_VLAN_FILTERING)",
    "nft-synproxy": "the kernel lacks the proxy for TCP connections (CONFIG_NFT_SYNPROXY)",
    "nft-netdev-egress": "the kernel lacks the egress hook (Linux 5.16, CONFIG_NETFILTER_EGRESS)",
    "tc-bpf": "the kernel lacks BPF classifiers (CONFIG_NET_CLS_BPF, CONFIG_NET_CLS_ACT), or tc is missing",
    "ifb": "the kernel lacks devices for shaping what comes in (CONFIG_IFB)",
    "tc-tbf": "the kernel lacks the token bucket filter (CONFIG_NET_SCH_TBF), or tc is missing",
    "tc-htb": "the kernel lacks hierarchical token buckets (CONFIG_NET_SCH_HTB), or tc is missing",
    "tc-fq-codel": "the kernel lacks fair queues (CONFIG_NET_SCH_FQ_CODEL), or tc is missing",
    "tc-fq": "the kernel lacks queues for each flow (CONFIG_NET_SCH_FQ), or tc is missing",
    "tc-cake": "the kernel lacks cake (CONFIG_NET_SCH_CAKE), or tc is missing",
    "tc-noqueue": "the kernel cannot be told to have no queue (Linux 4.3), or tc is missing",
    "tc-mq": "the kernel cannot be told to have a queue of its own for each of a NIC's, or tc is missing",
    "tc-redirect": "the kernel lacks redirection of frames (CONFIG_NET_CLS_U32, CONFIG_NET_ACT_MIRRED), or tc is missing",
    "tc-skbedit": "the kernel cannot write a class into frames (CONFIG_NET_ACT_SKBEDIT)",
    "tc-mirror": "the kernel lacks BPF classifiers or mirrors (CONFIG_NET_CLS_BPF, CONFIG_NET_ACT_MIRRED), or tc is missing",
    "vlan": "the kernel lacks VLAN devices (CONFIG_VLAN_8021Q)",
    "bond": "the kernel lacks bonds (CONFIG_BONDING)",
    "macvlan": "the kernel lacks macvlan (CONFIG_MACVLAN)",
    "macvtap": "the kernel lacks macvtap (CONFIG_MACVTAP)",
    "vxlan": "the kernel lacks VXLAN (CONFIG_VXLAN)",
    "gre": "the kernel lacks GRE (CONFIG_NET_IPGRE)",
    "vrf": "the kernel lacks VRFs (CONFIG_NET_VRF)",
    "vrf-exec": "programs cannot run in a VRF here: it needs BPF for control groups (CONFIG_CGROUP_BPF, cgroup2)",
    "wireguard": "the kernel lacks WireGuard (CONFIG_WIREGUARD)",
    "vfio": "the kernel cannot hand PCI devices to guests (CONFIG_VFIO_PCI)",
    "ipv6": "IPv6 is switched off (ipv6.disable=1)",
    "ipv6-force-forwarding": "the kernel is older than Linux 6.17",
}
"""Feature -> what its absence means, where the tool's own message does not say it."""

DEVICES: dict[str, tuple[str, str]] = {
    "tun": ("/dev/net/tun", "modprobe tun; in a container the device must be passed in"),
    "iommu": ("/sys/kernel/iommu_groups/0", "add intel_iommu=on or amd_iommu=on to the kernel command line, and switch VT-d "
              "or AMD-Vi on in the firmware"),
    "vhost-net": ("/dev/vhost-net", "modprobe vhost_net; in a container the device must be passed in"),
}
"""Feature -> (file that is there then, what to do when it is missing). Looked up each time: they come and go."""


PATIENCE = 600
"""Seconds for all probes together: 1 s, or 15 s in the lab, and a machine that is busy takes many times as long."""


def features(cache: Path) -> dict[str, str]:
    """Every feature with '' when this host has it, else the reason why not. ``cache``: file to keep the
    answers in; it may be missing or unwritable."""
    known = {name: device_reason(*device) for name, device in DEVICES.items()}
    return known | probed(cache, identity(), probe)


def device_reason(path: str, cure: str) -> str:
    return "" if Path(path).exists() else f"{path} is missing: {cure}"


def identity() -> str:
    """What the answers hold for: this boot, this kernel, these modules, these probes."""
    release = os.uname().release
    try:
        modules = Path(f"/lib/modules/{release}/modules.dep").stat().st_mtime_ns
    except OSError:
        modules = 0
    return f"{boot_id()} {release} {modules} {' '.join(PROBES)}"


def probed(cache: Path, identity: str, ask: Callable[[], Mapping[str, str] | None]) -> dict[str, str]:
    """The cached answers for *identity*, or those of *ask*, which are then kept."""
    try:
        saved = json.loads(cache.read_text(encoding="utf-8"))
        if saved["identity"] == identity:
            return {str(k): str(v) for k, v in saved["features"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # no cache, or a broken one: it is made anew
    answers = ask()
    if answers is None:
        return dict.fromkeys(PROBES, "cannot be tried: not root, or no network namespaces here")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        fresh = cache.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps({"identity": identity, "features": dict(answers)}), encoding="utf-8")
        fresh.replace(cache)
    except OSError:
        pass  # asked again next time
    return dict(answers)


def probe() -> dict[str, str] | None:
    """Try every probe in a namespace of its own; None when there can be none."""
    script = "".join(f'if out=$({{ {command}; }} 2>&1); then echo "{name}"; '
                     f'else echo "{name} $(echo "$out" | head -n 1)"; fi\n' for name, command in PROBES.items())
    try:
        text = host.run(("unshare", "--net", "sh", "-s"), stdin=f"{script}echo done\n", timeout=PATIENCE)
    except host.ToolFailed:
        return None
    lines = dict(line.partition(" ")[::2] for line in text.splitlines())
    if "done" not in lines:
        return None
    return {name: reason_of(name, lines, text) for name in PROBES}


def reason_of(name: str, lines: Mapping[str, str], text: str) -> str:
    if name in text.splitlines():
        return ""
    said = lines.get(name, "").strip()
    return MISSING.get(name) or said or "the probe failed and said nothing"
