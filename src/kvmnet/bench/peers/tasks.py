"""What is configured while the clock runs, by whom and how. Pure but for the files that the commands read.

Everybody starts from the same: the tools and daemons are running, the files are written. Ours is the whole process of ``kvmnet apply``,
which also plans, records, looks again and could take it back; the others do none of that.
"""
from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address

from kvmnet.bench.peers import bare, ovs
from kvmnet.bench.peers.libvirt import Libvirt
from kvmnet.bench.peers.ovs import OpenVswitch
from kvmnet.bench.peers.space import Space
from kvmnet.records import dataclass
from kvmnet.spec.names import bridge_name, tap_name

DEVICE, LAN, BRIDGE = "up0", "10.200.0", "br0"
TASKS: Mapping[str, str] = {
    "networks": "{networks} networks with NAT and DHCP",
    "ports": "{nics} open NICs on a network",
    "guards": "{nics} NICs bound to their addresses",
}
"""Task -> words."""


@dataclass(frozen=True, slots=True)
class Call:
    """A program in a space."""

    argv: tuple[str, ...]
    stdin: str = ""


@dataclass(frozen=True, slots=True)
class Way:
    """How one of them does a task."""

    prepare: tuple[Call, ...]
    timed: tuple[Call, ...]
    undo: tuple[Call, ...]
    proof: Call
    """What is printed by it names all of..."""
    named: tuple[str, ...]
    """...these afterwards, and not all of them before."""


def call(*argv: str, stdin: str = "") -> Call:
    return Call(argv, stdin)


def lines(text: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in text)


def tap(number: int) -> str:
    return f"t{number}"


def mac(number: int) -> str:
    return f"52:54:00:be:ff:{number:02x}"


def address(number: int) -> str:
    return f"{LAN}.{100 + number}"


def subnet(number: int) -> str:
    return f"10.{200 + number // 200}.{number % 200 + 1}"


def taps(nics: int) -> Call:
    return call("ip", "-batch", "-", stdin=lines(f"tuntap add {tap(n)} mode tap" for n in range(nics)))


LINKS = call("ip", "-o", "link")


def no_taps(nics: int) -> Call:
    return call("ip", "-batch", "-", stdin=lines(f"link del {tap(n)}" for n in range(nics)))


# kvmnet ----------------------------------------------------------------------------------------

def kvmnet(space: Space, networks: int, nics: int) -> dict[str, Way]:
    here = space.folder

    def command(*words: str) -> Call:
        environment = [f"KVMNET_{name}_DIR={here / name.lower()}" for name in ("STATE", "RUN", "ETC")]
        return call("env", "-i", f"PATH={os.environ.get('PATH', '')}", *environment, sys.executable, "-m", "kvmnet.cli.main", *words)

    def apply(file: str) -> Call:
        return command("apply", str(here / file), "--yes", "--reach", "none")

    texts = {"networks": many(networks), "empty": guests(0, ""), "open": guests(nics, "off"), "guarded": guests(nics, "full")}
    for name, text in texts.items():
        (here / f"{name}.yaml").write_text(text)
    gone = command("destroy", "--yes", "--reach", "none")
    made = tuple(tap_name(f"g{n}", "nic0") for n in range(nics))
    return {"networks": Way((), (apply("networks.yaml"),), (gone,), LINKS, tuple(bridge_name(f"n{n}") for n in range(networks))),
            "ports": Way((apply("empty.yaml"),), (apply("open.yaml"),), (gone,), LINKS, made),
            "guards": Way((apply("open.yaml"),), (apply("guarded.yaml"),), (gone,), call("nft", "list", "table", "bridge", "kvmnet"),
                          tuple(f'"{name}" . {int(IPv4Address(address(n))):#x}' for n, name in enumerate(made)))}


def many(networks: int) -> str:
    head = ["version: 1", f"uplinks: {{wan: {{device: {DEVICE}}}}}", "networks:"]
    return lines((*head, *(f"  n{n}: {{mode: nat, uplink: wan, subnet: {subnet(n)}.0/24}}" for n in range(networks))))


def guests(nics: int, guard: str) -> str:
    head = ["version: 1", f"networks: {{lan: {{mode: isolated, subnet: {LAN}.0/24, dhcp: {{enabled: false}}, dns: {{enabled: false}}}}}}"]
    vms = [f"  g{n}: {{nics: [{{network: lan, mac: '{mac(n)}', ip: {address(n)}, guard: '{guard}'}}]}}" for n in range(nics)]
    return lines((*head, *(["vms:", *vms] if vms else [])))


# Bare tools ------------------------------------------------------------------------------------

SERVE = ("for n in {numbers}; do dnsmasq --conf-file=/dev/null --user=root --bind-interfaces --except-interface=lo --interface=b$n "
         "--pid-file={here}/d$n.pid --dhcp-leasefile={here}/d$n.leases --dhcp-range=$(cat {here}/d$n.range) --no-resolv --no-hosts; done")


def with_bare_tools(space: Space, networks: int, nics: int) -> dict[str, Way]:
    here, every = space.folder, range(networks)
    for n in every:
        (here / f"d{n}.range").write_text(f"{subnet(n)}.10,{subnet(n)}.99\n")
    links = lines(x for n in every for x in (f"link add b{n} type bridge", f"addr add {subnet(n)}.1/24 dev b{n}", f"link set b{n} up"))
    rules = "add table ip bare\nadd chain ip bare out { type nat hook postrouting priority 100; }\n" + lines(
        f"add rule ip bare out ip saddr {subnet(n)}.0/24 oifname {DEVICE} masquerade" for n in every)
    serve = SERVE.format(numbers=" ".join(map(str, every)), here=here)
    made = Way((), (call("ip", "-batch", "-", stdin=links), call("nft", "-f", "-", stdin=rules), call("sh", "-c", serve)),
               (call("sh", "-c", f"kill $(cat {here}/d*.pid)"), call("nft", "flush", "ruleset"),
                call("ip", "-batch", "-", stdin=lines(f"link del b{n}" for n in every))), LINKS, tuple(f"b{n}:" for n in every))
    ports = lines(x for n in range(nics) for x in (f"tuntap add {tap(n)} mode tap", *bare.ports([tap(n)], 1500, BRIDGE)))
    bridge, gone = call("ip", "link", "add", BRIDGE, "up", "type", "bridge"), call("ip", "link", "del", BRIDGE)
    made_ports, names = call("ip", "-batch", "-", stdin=ports), tuple(f"{tap(n)}:" for n in range(nics))
    return {"networks": made, "ports": Way((bridge,), (made_ports,), (no_taps(nics), gone), LINKS, names),
            "guards": Way((bridge, made_ports), (call("nft", "-f", "-", stdin=lines(binding(nics))),),
                          (call("nft", "flush", "ruleset"), no_taps(nics), gone), call("nft", "list", "ruleset"), tuple(map(address, range(nics))))}


def binding(nics: int) -> Iterator[str]:
    """Rules by hand: a NIC's MAC, its address in IPv4 and ARP, nothing else but DHCP."""
    yield "table bridge bare {"
    for name, type_ in (("macs", "ifname . ether_addr"), ("addresses", "ifname . ipv4_addr")):
        values = (mac(n) if name == "macs" else address(n) for n in range(nics))
        yield f"set {name} {{ type {type_}; elements = {{ {', '.join(f'{tap(n)} . {v}' for n, v in enumerate(values))} }} }}"
    yield "chain c { type filter hook prerouting priority -300;"
    yield f'iifname != "t*" accept; iifname {BRIDGE} accept'
    yield "iifname . ether saddr != @macs drop"
    yield "ether type arp iifname . arp saddr ip @addresses accept"
    yield "ether type ip ip saddr 0.0.0.0 udp dport 67 accept"
    yield "ether type ip iifname . ip saddr @addresses accept"
    yield "drop"
    yield "}"
    yield "}"


# libvirt ---------------------------------------------------------------------------------------

def with_libvirt(made: Libvirt, networks: int, nics: int) -> dict[str, Way]:
    """Ports are none of its tasks: it makes a tap only as a part of starting a guest."""
    def virsh(driver: str, commands: Iterable[str]) -> Call:
        return call(*made.argv(driver, "; ".join(commands)))

    names = [f"n{n}" for n in range(networks)]
    files = [made.network(name, f"v{n}", subnet(n), "nat", 1500) for n, name in enumerate(names)]
    bindings = [made.binding(n, tap(n), mac(n), address(n)) for n in range(nics)]
    up = lines(x for n in range(nics) for x in bare.ports([tap(n)], 1500, BRIDGE))
    return {
        "networks": Way((), (virsh("network", [c for name, f in zip(names, files, strict=True) for c in (f"net-define {f}", f"net-start {name}")]),),
                        (virsh("network", [c for name in names for c in (f"net-destroy {name}", f"net-undefine {name}")]),), LINKS, tuple(f"v{n}:" for n in range(networks))),
        "guards": Way((call("ip", "link", "add", BRIDGE, "up", "type", "bridge"), taps(nics), call("ip", "-batch", "-", stdin=up)),
                      (virsh("nwfilter", (f"nwfilter-binding-create {f}" for f in bindings)),),
                      (virsh("nwfilter", (f"nwfilter-binding-delete {tap(n)}" for n in range(nics))), no_taps(nics),
                       call("ip", "link", "del", BRIDGE)), call("ebtables", "-t", "nat", "-L"), tuple(f"{tap(n)} " for n in range(nics)))}


# Open vSwitch ----------------------------------------------------------------------------------

def with_open_vswitch(made: OpenVswitch, nics: int) -> dict[str, Way]:
    """Networks are none of its tasks: it has neither NAT by itself nor DHCP."""
    def vsctl(*words: str) -> Call:
        return call(*made.argv(["ovs-vsctl", "--timeout=60", *words]))

    bridge, gone = vsctl(*ovs.add_bridge()), vsctl("del-br", ovs.BRIDGE)
    up = call("ip", "-batch", "-", stdin=lines(f"link set {tap(n)} up" for n in range(nics)))
    ports = (taps(nics), up, vsctl(*ovs.add_ports([tap(n) for n in range(nics)])))
    return {"ports": Way((bridge,), ports, (gone, no_taps(nics)), vsctl("list-ports", ovs.BRIDGE), tuple(f"{tap(n)}\n" for n in range(nics))),
            "guards": Way((bridge, *ports), (call(*made.argv(["ovs-ofctl", "add-flows", ovs.BRIDGE, "-"]), stdin=lines(flows(nics))),),
                          (gone, no_taps(nics)), call(*made.argv(["ovs-ofctl", "dump-flows", ovs.BRIDGE])), tuple(map(address, range(nics))))}


def flows(nics: int) -> Iterator[str]:
    for n in range(nics):
        at = f"in_port={tap(n)}"
        yield f"priority=20,arp,{at},dl_src={mac(n)},arp_sha={mac(n)},arp_spa={address(n)},actions=normal"
        yield f"priority=20,ip,{at},dl_src={mac(n)},nw_src={address(n)},actions=normal"
        yield f"priority=20,udp,{at},dl_src={mac(n)},nw_src=0.0.0.0,tp_dst=67,actions=normal"
        yield f"priority=10,{at},actions=drop"
