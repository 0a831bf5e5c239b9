"""What is compared: configurations of a guest's NIC, its network and its guest, and the document that has them all. Pure.

All configurations stand in one document, each with a network and guests of its own, so that they can be measured in
turns without a guest being started between two turns.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product

from kvmnet.errors import KvmnetError
from kvmnet.records import dataclass, field
from kvmnet.spec.cpus import NONE, lists
from kvmnet.spec.guests import Model, Nic, Vm
from kvmnet.spec.knobs import KNOBS
from kvmnet.spec.models import Spec
from kvmnet.spec.networks import Mode

MOST = 16
"""Configurations in one run: each has guests of its own that run all at once."""
PORT = 5199
"""Of the far end of every load, TCP and UDP."""
GROUP = "239.255.51.99"
"""Multicast group of the fan-out (RFC 2365: administratively scoped)."""
WAYS = ("active-backup", "802.3ad", "balance-xor", "rstp")
"""How an uplink of two NICs is made: a bond of that mode, or both as ports of the bridge with RSTP."""
GROUP_RULES = f"ingress: [{{tcp: {PORT}}}, {{udp: {PORT}}}, {{icmp: [echo-request]}}]"
"""Of the group in which NICs with groups=on are: what the loads need."""
OFFLOADS = ("csum", "tso4", "tso6", "ufo", "guest_csum", "guest_tso4", "guest_tso6", "guest_ufo")


SWITCHES = (*OFFLOADS, "mrg_rxbuf")
"""What can be switched off of a virtio card; mergeable receive buffers are no offload, and go with none of them."""


def one_of(*words: str) -> Callable[[str], str | None]:
    return lambda value: None if value in words else f"one of {', '.join(words)}"


def offloads_wrong(value: str) -> str | None:
    if value in ("all", "none") or set(value.split("+")) <= set(SWITCHES):
        return None
    return f"all, none, or those that are switched off, joined by +: {', '.join(SWITCHES)}"


def placed(value: str) -> str | None:
    """CPUs with / between those of one thread and the next."""
    try:
        return "CPUs" if NONE in lists(value.split("/")) else None
    except ValueError as wrong:
        return f"CPUs as 0-3, or 0/1 for one after the other: {wrong}"


def number(least: int, most: int) -> Callable[[str], str | None]:
    return lambda value: None if value.isdigit() and least <= int(value) <= most else f"a number from {least} to {most}"


HEADERS = 50
"""Bytes that VXLAN over IPv4 puts before a frame's packet (RFC 7348)."""
AXES: Mapping[str, Callable[[str], str | None]] = {
    "model": one_of(*(m.value for m in Model)),
    "mode": one_of("nat", "routed", "isolated", "bridge", "macvtap", "vxlan"),
    "uplink": one_of("nic", *WAYS),
    "by": one_of("kvmnet", "bare", "libvirt", "clean-traffic", "ovs"),
    "guard": one_of("full", "mac", "off"),
    "groups": one_of("on", "off"),
    "mtu": number(576, 9000),
    "queues": number(1, 16),
    "vhost": one_of("on", "off"),
    "offloads": offloads_wrong,
    "packed": one_of("on", "off"),
    "rss": one_of("on", "off"),
    "rx_ring": one_of("256", "512", "1024"),
    "cpus": number(1, 32),
    "pin": placed,
    "memory": number(192, 65536),
}
"""What can be varied -> what is wrong with a value, None for nothing."""


def without(offloads: str) -> Sequence[str]:
    """Which offloads a value of that name switches off."""
    return {"all": (), "none": OFFLOADS}.get(offloads, tuple(offloads.split("+")))


@dataclass(frozen=True, slots=True)
class Configuration:
    """One point of the matrix."""

    settings: Mapping[str, str] = field(default_factory=dict)
    twin: bool = False
    """The same as the first once more: how far two equals seem to be apart is the noise of the measurement."""

    @property
    def name(self) -> str:
        words = " ".join(f"{k}={v}" for k, v in self.settings.items()) or "defaults"
        if "document" in self.settings:
            words = f"{self.settings['document']} {self.settings['guest']}"
        return f"{words} (again)" if self.twin else words

    def to_json(self) -> dict[str, object]:
        return {"settings": dict(self.settings), "twin": self.twin}

    @property
    def mode(self) -> str:
        return self.settings.get("mode", "nat")


def setting(word: str) -> tuple[str, str]:
    """``NAME=VALUE`` as a pair. Raises KvmnetError."""
    name, equals, value = word.partition("=")
    if not equals or (name not in AXES and name not in KNOBS):
        raise KvmnetError(f"nothing called {name!r} can be varied", f"write NAME=VALUE with one of {', '.join(AXES)}, or a setting that "
                          "the document's tuning: takes")
    if wrong := AXES[name](value) if name in AXES else KNOBS[name].wrong(value.replace("/", " ")):
        raise KvmnetError(f"{name} cannot be {value!r}", f"it is {wrong}")
    return name, value


def axis(word: str) -> list[dict[str, str]]:
    """``NAME=VALUE,VALUE,...``: one dictionary a value."""
    name, _, values = word.partition("=")
    return [dict([setting(f"{name}={value}")]) for value in values.split(",")]


def configuration(text: str) -> Configuration:
    """``NAME=VALUE NAME=VALUE ...`` (blank for the defaults)."""
    return Configuration(dict(setting(word) for word in text.split()))


def matrix(base: Iterable[str], vary: Sequence[str], points: Sequence[str], twin: bool,
           documents: Sequence[Configuration] = ()) -> list[Configuration]:
    """The configurations that were asked for: *documents* as they are, *base* in all others, each *point*, and the product of what is
    varied. The first is what the others are compared to. Raises KvmnetError."""
    common = dict(setting(word) for word in base)
    found = [*documents, *(Configuration({**common, **configuration(text).settings}) for text in points)]
    if vary or not (points or documents):
        found += [Configuration(common | {k: v for part in parts for k, v in part.items()})
                  for parts in product(*map(axis, vary))]
    unique = list({c.name: c for c in found}.values())
    if twin:
        unique.insert(1, Configuration(unique[0].settings, twin=True))
    if len(unique) > MOST:
        raise KvmnetError(f"{len(unique)} configurations are too many: {MOST} at most stand at once", "vary less, in several runs")
    return unique


def switched_off(nic: Nic) -> list[str]:
    """Offloads that the NIC must not use."""
    return [name for name in SWITCHES if getattr(nic.offloads, name) is False]


def words_of(vm: Vm, nic: Nic, spec: Spec) -> str:
    """What a NIC of a document has, in the words that are varied; what is the default is left out."""
    network = spec.networks[nic.network]
    cpus = vm.run.cpus if vm.run else 1
    words = [f"model={nic.model.value}" if nic.model is not Model.VIRTIO else "",
             f"mode={network.mode.value}" if network.mode is not Mode.NAT else "",
             f"guard={nic.guard}" if nic.guard != "full" else "",
             f"mtu={nic.mtu or network.mtu}" if nic.mtu or network.mtu else "",
             f"queues={queues}" if (queues := min(cpus, 8) if nic.queues == "auto" else nic.queues) > 1 else "",
             f"vhost={nic.vhost}" if nic.vhost != "auto" else "",
             f"offloads={'none' if tuple(off) == OFFLOADS else '+'.join(off)}" if (off := switched_off(nic)) else "",
             "packed=on" if nic.packed else "", "rss=on" if nic.rss else "", f"rx_ring={nic.rx_ring}" if nic.rx_ring else "", f"cpus={cpus}" if cpus > 1 else "",
             f"pin={'/'.join(vm.run.pin.vcpus)}" if vm.run and vm.run.pin.vcpus else ""]
    return " ".join(filter(None, words))


def nic_of(spec: Spec, name: str) -> str:
    """The same of the NIC ``VM`` or ``VM/NIC`` of *spec*. Raises KvmnetError for one that it has not, or that cannot be made
    again here."""
    vm, _, wanted = name.partition("/")
    for item in spec.placed:
        if item.vm == vm and wanted in ("", item.name):
            mode = spec.networks[item.nic.network].mode
            if mode is Mode.SRIOV:
                raise KvmnetError(f"{name} is on a network of mode {mode}, which cannot be made again for a measurement",
                                  f"take a NIC of mode {', '.join(m for m in Mode if m is not Mode.SRIOV)}")
            return words_of(spec.vms[vm], item.nic, spec)
    raise KvmnetError(f"the document has no NIC {name}", f"it has {', '.join(f'{i.vm}/{i.name}' for i in spec.placed) or 'none'}")


# The document ----------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Seat:
    """Where one configuration lives: names and addresses of its parts."""

    number: int
    configuration: Configuration

    @property
    def network(self) -> str:
        return f"c{self.number}"

    @property
    def device(self) -> str:
        """The uplink's device on the host."""
        return f"up{self.number}"

    @property
    def members(self) -> tuple[str, ...]:
        """NICs of the host below its uplink: one, or two that can stand in for each other."""
        return (self.device, f"{self.device}b") if self.ways else (self.device,)

    @property
    def ways(self) -> str:
        """How its uplink has two ways, '' for one that has not."""
        found = self.configuration.settings.get("uplink", "nic")
        return "" if found == "nic" else found

    @property
    def prefix(self) -> str:
        """First three numbers of the guests' addresses; of RFC 2544's range for benchmarks, 198.18.0.0/15."""
        return f"198.{19 if self.on_segment else 18}.{self.number}"

    @property
    def on_segment(self) -> bool:
        return self.configuration.mode in ("bridge", "macvtap", "vxlan")

    @property
    def tunnel(self) -> tuple[str, str]:
        """Ends of the tunnel in which its frames go outside, ours first; blank in other modes than vxlan."""
        return (f"198.18.{self.number}.2", f"198.18.{self.number}.1") if self.configuration.mode == "vxlan" else ("", "")

    @property
    def vni(self) -> int:
        return 1000 + self.number

    @property
    def host(self) -> str:
        return f"{self.prefix}.{2 if self.on_segment else 1}"

    @property
    def router(self) -> str:
        """The guests' way out."""
        return self.outside if self.on_segment else self.host

    @property
    def by(self) -> str:
        """Who makes its network."""
        return self.configuration.settings.get("by", "kvmnet")

    @property
    def apart(self) -> bool:
        """Made by others than kvmnet, in a namespace of its own."""
        return self.by != "kvmnet"

    @property
    def length(self) -> int:
        """Of the guests' prefix."""
        return 24

    @property
    def kernel(self) -> dict[str, str]:
        """Kernel settings that hold during its turns; numbers of one are written with / between them."""
        return {k: v.replace("/", " ") for k, v in self.configuration.settings.items() if k in KNOBS}

    @property
    def grouped(self) -> bool:
        """Whether its NICs are in a group, whose rules are judged for each packet."""
        return self.configuration.settings.get("groups") == "on"

    @property
    def uplinked(self) -> bool:
        """Whether the document has an uplink for it."""
        return self.configuration.mode != "isolated" and not self.apart

    @property
    def outside(self) -> str:
        """The machine beyond the uplink."""
        return f"198.19.{self.number}.1"

    def guest(self, which: int) -> str:
        return f"{self.network}g{which}"

    def address(self, which: int) -> str:
        return f"{self.prefix}.{100 + which}"

    def mac(self, which: int) -> str:
        return f"52:54:00:be:{self.number:02x}:{which:02x}"

    @property
    def mtu(self) -> int:
        return int(self.configuration.settings.get("mtu", 1500))


def document(seats: Sequence[Seat], guests: int, kernel: str, initrd: str, words: str) -> str:
    """The document with every seat and *guests* guests on each, that boot *kernel* and *initrd* with *words*."""
    lines = ["version: 1"]
    if any(s.uplinked for s in seats):
        lines.append("uplinks:")
    lines += [f"  u{s.number}: {{{uplink(s)}}}" for s in seats if s.uplinked]
    lines.append("networks:")
    lines += [f"  {s.network}: {{{network(s)}}}" for s in seats]
    lines.append("vms:")
    for seat in seats:
        for which in range(1, guests + 1):
            chosen = seat.configuration.settings
            pin = f", pin: {{vcpus: ['{chosen['pin'].replace('/', chr(39) + ', ' + chr(39))}']}}" if "pin" in chosen else ""
            run = (f"{{kernel: {kernel}, initrd: {initrd}, cpus: {chosen.get('cpus', 1)}, memory: {chosen.get('memory', 256)}M, "
                   f"append: '{words} kvmnet.name={seat.guest(which)} kvmnet.dhcp=0'{pin}}}")
            lines += [f"  {seat.guest(which)}:", f"    run: {run}", f"    nics: [{{{nic(seat, which)}}}]"]
    if any(s.grouped for s in seats):
        lines.append(f"groups: {{bench: {{{GROUP_RULES}}}}}")
    return "\n".join(lines) + "\n"


def uplink(seat: Seat) -> str:
    """Addresses of a bond are the document's, those of a NIC are the host's (``Ground.wire``)."""
    if seat.ways == "rstp":
        return f"device: {seat.device}, redundant: {{{seat.members[1]}: {{}}}}"
    if not seat.ways:
        return f"device: {seat.device}" + (f", mtu: {seat.mtu + HEADERS}" if seat.tunnel[1] else "")
    own = "" if seat.on_segment else f", addresses: [198.19.{seat.number}.2/24]"
    return f"members: [{', '.join(seat.members)}], bond: {seat.ways}{own}"


def network(seat: Seat) -> str:
    mode = "isolated" if seat.apart else seat.configuration.mode
    parts = [f"mode: {mode}", f"subnet: {seat.prefix}.0/24", f"mtu: {seat.mtu}", "dhcp: {enabled: false}", "dns: {enabled: false}",
             f"allow: [{{protocol: tcp, port: {PORT}}}, {{protocol: udp, port: {PORT}}}]"]
    if seat.uplinked:
        parts.append(f"uplink: u{seat.number}")
    if seat.ways == "rstp":
        parts.append("stp: rstp, stp_options: {hello: 1}")
    if seat.tunnel[1]:
        parts.append(f"vxlan: {{vni: {seat.vni}, peers: [{seat.tunnel[1]}]}}")
    if seat.on_segment:
        parts += [f"address: {seat.host}", *([] if seat.tunnel[1] else [f"gateway: {seat.router}"]), f"pool: {seat.prefix}.100-{seat.prefix}.199"]
    return ", ".join(parts)


def nic(seat: Seat, which: int) -> str:
    chosen = seat.configuration.settings
    parts = [f"network: {seat.network}", f"mac: '{seat.mac(which)}'", f"ip: {seat.address(which)}"]
    parts += [f"{name}: {chosen[name]}" for name in ("model", "queues", "rx_ring") if name in chosen]
    if "guard" in chosen:
        parts.append(f"guard: '{chosen['guard']}'")
    if seat.grouped:
        parts.append("groups: [bench]")
    if "vhost" in chosen:
        parts.append(f"vhost: '{chosen['vhost']}'")
    parts += [f"{name}: {'true' if chosen[name] == 'on' else 'false'}" for name in ("packed", "rss") if name in chosen]
    if off := without(chosen.get("offloads", "all")):
        parts.append(f"offloads: {{{', '.join(f'{name}: false' for name in off)}}}")
    return ", ".join(parts)
