"""Guests and the cards that they get: what each model can do, and how a guest is started. Pure."""
from __future__ import annotations

from collections.abc import Iterator

from kvmnet.errors import Problem
from kvmnet.spec import overlays
from kvmnet.spec.cpus import NONE, numbers
from kvmnet.spec.guests import Model, Nic, Offloads, Pin, Vm
from kvmnet.spec.networks import Mode
from kvmnet.spec.pools import PlacedNic
from kvmnet.spec.rules.subject import VIRTIO, Subject, wrong

MOST_MTU = {
    Model.PCNET: 1500,  # drivers/net/ethernet/amd/pcnet32.c: no change of MTU beyond ETH_DATA_LEN
    Model.RTL8139: 1500,  # QEMU's 8139 (C+) buffers; 8139cp takes 4096, 8139too 1770: 1500 is common to all
    Model.E1000: 16110,  # drivers/net/ethernet/intel/e1000/e1000_main.c: MAX_JUMBO_FRAME_SIZE - 18
    Model.E1000E: 9212,  # drivers/net/ethernet/intel/e1000e: 82574, 9234 - 22
    Model.VMXNET3: 9000,  # drivers/net/vmxnet3/vmxnet3_defs.h: VMXNET3_MAX_MTU
}
"""Largest MTU in bytes that a model's drivers take; virtio has no limit of its own."""
LEAST_IPV6_MTU = 1280
"""Bytes (RFC 8200, 5)."""
MOST_TX_RING = 256
"""Entries; QEMU refuses more unless the backend is vhost-user or vdpa (hw/net/virtio-net.c,
virtio_net_max_tx_queue_size)."""

_NEED_CSUM = {"tso4": "csum", "tso6": "csum", "ufo": "csum",
              "guest_tso4": "guest_csum", "guest_tso6": "guest_csum", "guest_ufo": "guest_csum"}
"""Offloads that need another one (virtio 1.2, 5.1.3.1)."""


def models(subject: Subject) -> Iterator[Problem]:
    """What is asked of a NIC and its model cannot do."""
    for item in subject.nics:
        nic = item.nic
        if subject.is_vf(item):
            continue
        if nic.model not in VIRTIO:
            for option, said in _virtio_options(nic):
                yield wrong(f"{item.path}.{option}", f"{nic.model} has no {said}; only virtio has",
                            f"remove {option}, or write model: virtio")
        elif nic.rss and (nic.queues == 1 or nic.vhost == "on"):
            why, cure = (("with one queue there is none to choose", "write queues: auto, or remove rss") if nic.queues == 1 else
                         ("vhost does it by eBPF only, which a QEMU without privileges cannot load", "write vhost: auto, or remove rss"))
            yield wrong(f"{item.path}.rss", why, cure)
        elif nic.tx_ring and nic.tx_ring > MOST_TX_RING:
            yield wrong(f"{item.path}.tx_ring", f"QEMU refuses a transmit ring of {nic.tx_ring} entries on a tap: "
                        "it needs a vhost-user backend", f"write tx_ring: {MOST_TX_RING} or remove it")
        for option, needed in _NEED_CSUM.items():
            if getattr(nic.offloads, option) and getattr(nic.offloads, needed) is False:
                yield wrong(f"{item.path}.offloads.{option}", f"{option} needs {needed}, which is off",
                            f"remove {needed}: false, or write {option}: false")


def _virtio_options(nic: Nic) -> Iterator[tuple[str, str]]:
    """Options of *nic* that only virtio has, with what they are."""
    if nic.queues not in (1, "auto"):
        yield "queues", "further queues to set"
    if nic.rx_ring:
        yield "rx_ring", "ring size to set"
    if nic.tx_ring:
        yield "tx_ring", "ring size to set"
    if nic.packed:
        yield "packed", "packed rings"
    if nic.rss:
        yield "rss", "receive side scaling to set"
    if nic.vhost == "on":
        yield "vhost", "in-kernel backend"
    for option in Offloads.model_fields:
        if getattr(nic.offloads, option) is not None:
            yield f"offloads.{option}", "offloads to set"


def mtus(subject: Subject) -> Iterator[Problem]:
    """MTUs that do not fit the way out, the network, the model or IPv6."""
    for name, network in subject.spec.networks.items():
        outer = subject.outer_mtu(network)
        if network.mtu and outer and network.mtu > outer:
            head = overlays.HEADERS[overlays.family(network.vxlan)] if network.vxlan else 0
            less = f", less {head} of its headers" if head else ""
            yield wrong(f"networks.{name}.mtu", f"{network.mtu} is larger than the {outer} of its way out, "
                        f"{subject.device(network) or (network.vxlan and network.vxlan.local)}{less}", f"write mtu: {outer}"
                        + ("" if network.bridge or not network.uplink else f", or uplinks.{network.uplink}.mtu: {network.mtu + head}"))
        if network.mtu and network.mtu < LEAST_IPV6_MTU and network.subnet6:
            yield wrong(f"networks.{name}.mtu", f"IPv6 needs an MTU of at least {LEAST_IPV6_MTU}",
                        f"write mtu: {LEAST_IPV6_MTU}, or remove subnet6")
    for item in subject.nics:
        yield from _nic_mtu(subject, item)


def _nic_mtu(subject: Subject, item: PlacedNic) -> Iterator[Problem]:
    nic, network = item.nic, subject.spec.networks.get(item.nic.network)
    if network is None:
        return
    own = subject.mtu(network)
    path = f"{item.path}.mtu" if nic.mtu else item.path
    if nic.mtu and nic.mtu > own:
        yield wrong(path, f"{nic.mtu} is larger than the {own} of network {nic.network}",
                    f"write at most {own}, or raise networks.{nic.network}.mtu")
    elif (nic.mtu or own) > (most := MOST_MTU.get(nic.model, 65535)):
        yield wrong(path, f"{nic.model} takes an MTU of at most {most}, not {nic.mtu or own}",
                    f"write mtu: {most} here, or model: virtio")
    if nic.mtu and nic.mtu < LEAST_IPV6_MTU and nic.ip6 != "none" and (nic.ip6 or network.subnet6):
        yield wrong(path, f"IPv6 needs an MTU of at least {LEAST_IPV6_MTU}",
                    f"write mtu: {LEAST_IPV6_MTU}, or ip6: none")


def slots(subject: Subject) -> Iterator[Problem]:
    """PCI addresses and boot positions that two NICs of a guest share: QEMU refuses both."""
    seen: dict[tuple[str, str, object], str] = {}
    for item in subject.nics:
        for option in ("pci", "boot"):
            value = getattr(item.nic, option)
            if value is not None and not item.primary:
                first = seen.setdefault((item.vm, option, value), item.path)
                if first != item.path:
                    yield wrong(f"{item.path}.{option}", f"{option} {value} is taken by {first}",
                                "give one of them another")


def drivers(subject: Subject) -> Iterator[Problem]:
    """Who starts a guest, and whether it has all that it needs for that."""
    for name, vm in subject.spec.vms.items():
        path = f"vms.{name}"
        if vm.driver == "qemu" and vm.run is None:
            yield wrong(path, "driver qemu starts the guest itself, and nothing says how",
                        "add run: {image: tiny} or run: {disk: FILE}, or write driver: external")
        if vm.driver == "external" and vm.run is not None:
            yield wrong(f"{path}.run", "run is for guests that kvmnet starts, and driver is external",
                        "remove run, or write driver: qemu")
        if vm.owner and vm.run is not None and vm.driver != "external":
            yield wrong(f"{path}.owner", "owner is for guests that others start; kvmnet opens the tap itself",
                        "remove it; run.user says whom QEMU becomes")
        if vm.run is not None:
            yield from _run(path, vm)


def _run(path: str, vm: Vm) -> Iterator[Problem]:
    run = vm.run
    assert run is not None
    from_network = any(nic.boot is not None for nic in vm.nics)
    if not (run.image or run.kernel or run.disk or from_network):
        yield wrong(f"{path}.run", "nothing to boot from", "add image: tiny, kernel: FILE or disk: FILE")
    if run.image and (run.kernel or run.initrd):
        option = "kernel" if run.kernel else "initrd"
        yield wrong(f"{path}.run.{option}", f"image {run.image} brings its own kernel and initrd",
                    f"remove {option} or image")
    elif run.initrd and not run.kernel:
        yield wrong(f"{path}.run.initrd", "initrd without a kernel", "add kernel: FILE")
    if run.append and not (run.kernel or run.image):
        yield wrong(f"{path}.run.append", "a disk brings its own kernel command line", "remove append, or add kernel:")


def trunks(subject: Subject) -> Iterator[Problem]:
    """Tagged frames on networks where nobody takes them."""
    for item in subject.nics:
        network = subject.spec.networks.get(item.nic.network)
        if network and item.nic.trunk and network.mode in (Mode.NAT, Mode.ROUTED):
            yield wrong(f"{item.path}.trunk", f"tagged frames go nowhere on a network in mode {network.mode}: "
                        "the host routes untagged packets", "use a network in mode bridge or isolated")


def pins(subject: Subject) -> Iterator[Problem]:
    """A thread needs a CPU."""
    for path, sets in _pinned(subject):
        if NONE in sets:
            yield wrong(path, "a thread needs a CPU", "write CPUs, e.g. 0-3, or remove it")


def cpus(subject: Subject) -> Iterator[Problem]:
    """CPUs that kvmnet, and so a guest of its own, may not use."""
    allowed = numbers(subject.facts.cpu_set)
    for path, sets in _pinned(subject):
        if subject.facts.cpu_numbers and (beyond := set().union(*map(numbers, sets)) - allowed):
            yield wrong(path, f"there is no CPU {min(beyond)} here", f"write CPUs of {subject.facts.cpu_set}")


def nodes(subject: Subject) -> Iterator[Problem]:
    """NUMA nodes that this machine has not."""
    for name, vm in subject.spec.vms.items():
        if vm.run and vm.run.nodes and (beyond := numbers(vm.run.nodes) - numbers(subject.facts.nodes)):
            yield wrong(f"vms.{name}.run.nodes", f"there is no NUMA node {min(beyond)} with memory here", f"write nodes of {subject.facts.nodes}, or remove it")


def _pinned(subject: Subject) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name, vm in subject.spec.vms.items():
        for kind in Pin.model_fields if vm.run else ():
            if sets := getattr(vm.run.pin, kind):  # type: ignore[union-attr]
                yield f"vms.{name}.run.pin.{kind}", sets


RULES = (pins, models, mtus, slots, drivers, trunks)
HOST_RULES = (cpus, nodes)
