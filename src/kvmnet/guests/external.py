"""What a guest that somebody else starts is told about its NIC: QEMU arguments or libvirt XML. Pure.

Sources: qemu(1) -netdev tap and -device; libvirt, Domain XML format, "Generic ethernet connection"
(an unmanaged target keeps libvirt's hands off a tap that exists; of a macvtap, since libvirt 5.7, it opens
/dev/tapN, which udev or devtmpfs makes) and "virtio offloads".
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from shlex import quote
from xml.sax.saxutils import quoteattr

from kvmnet.drivers.qemu.devices import (
    MODELS,
    OFFLOADS,
    PREFIX,
    Properties,
    behind,
    card_properties,
    device_id,
    keyval,
    netdev_id,
    traits_of,
)
from kvmnet.drivers.qemu.resources import GuestNic


def qemu_arguments(nic: GuestNic) -> list[str]:
    """Words for a QEMU command line that opens the tap by its name.

    QEMU must run in this network namespace and be root or the tap's owner.
    """
    if not traits_of(nic).backend:
        card = {"driver": traits_of(nic).device, "id": device_id(nic), **behind(nic)}
        return ["-device", keyval(card | ({"addr": nic.pci} if nic.pci else {}) | card_properties(nic), "driver")]
    backend: Properties = {"type": "tap", "id": netdev_id(nic), "ifname": nic.tap or "",
                           "script": "no", "downscript": "no"}
    if (nic.queues or 1) > 1:
        backend["queues"] = nic.queues or 1
    return words(nic, backend)


def macvtap_arguments(nic: GuestNic, file: str, first: int) -> list[str]:
    """The same for a macvtap: the shell opens its device *file* as descriptors, from the number *first* on.

    QEMU opens no macvtap by itself (net/tap-linux.c knows /dev/net/tun only).
    """
    numbers = [str(first + i) for i in range(nic.queues or 1)]
    backend: Properties = {"type": "tap", "id": netdev_id(nic), "fds" if len(numbers) > 1 else "fd": ":".join(numbers)}
    return words(nic, backend) + [Redirection(f"{number}<>{quote(file)}") for number in numbers]


class Redirection(str):
    """Words for the shell that stand as they are."""


def shell_line(words: Iterable[str]) -> str:
    """*words* for a shell."""
    return " ".join(w if isinstance(w, Redirection) else quote(w) for w in words)


def words(nic: GuestNic, backend: Properties) -> list[str]:
    """The backend with its card."""
    backend["vhost"] = bool(nic.vhost)
    card = {"driver": MODELS[nic.model or "virtio"].device, "id": device_id(nic),
                        "netdev": netdev_id(nic)}
    if nic.pci:
        card["addr"] = nic.pci
    return ["-netdev", keyval(backend, "type"), "-device", keyval(card | card_properties(nic), "driver")]


def libvirt_xml(nic: GuestNic) -> str:
    """An ``<interface>`` for ``virsh attach-device`` or the domain's ``<devices>``; of a VF a ``<hostdev>``, which
    libvirt hands over as it is bound and told already."""
    if nic.vf:
        return hostdev(nic)
    traits = MODELS[nic.model or "virtio"]
    rows = [element("mac", {"address": nic.mac or ""}), element("target", {"dev": nic.tap or "", "managed": "no"}),
            element("model", {"type": traits.libvirt})]
    if traits.virtio:
        rows += driver_element(nic)
        if nic.host_mtu:
            rows.append(element("mtu", {"size": nic.host_mtu}))
    if nic.standby:
        rows += [element("alias", {"name": f"ua-{device_id(nic)}"}), element("teaming", {"type": "persistent"})]
    if nic.link is False:
        rows.append(element("link", {"state": "down"}))
    if nic.bootindex is not None and nic.bootindex >= 0:
        rows.append(element("boot", {"order": nic.bootindex + 1}))    # libvirt counts from 1
    if nic.pci:
        slot, _, function = nic.pci.partition(".")
        rows.append(element("address", {"type": "pci", "domain": "0x0000", "bus": "0x00",
                                        "slot": f"0x{slot}", "function": f"0x{function or 0}"}))
    return "<interface type='ethernet'>\n" + "".join(f"  {row}\n" for row in rows) + "</interface>\n"


def hostdev(nic: GuestNic) -> str:
    domain, bus, rest = (nic.host or "0000:00:00.0").split(":")
    slot, _, function = rest.partition(".")
    where = element("address", {"domain": f"0x{domain}", "bus": f"0x{bus}", "slot": f"0x{slot}", "function": f"0x{function}"})
    pair = f"  {element('teaming', {'type': 'transient', 'persistent': 'ua-' + PREFIX + nic.pair.partition('/')[2]})}\n" if nic.pair else ""
    return ("<hostdev mode='subsystem' type='pci' managed='no'>\n  <driver name='vfio'/>\n"
            f"  <source>{where}</source>\n{pair}</hostdev>\n")


def driver_element(nic: GuestNic) -> list[str]:
    """Back end, queues, rings and offloads of a virtio card, as lines."""
    words: dict[str, object] = {"name": "vhost" if nic.vhost else "qemu"}
    if (nic.queues or 1) > 1:
        words["queues"] = nic.queues
    for name, size in (("rx_queue_size", nic.rx_ring), ("tx_queue_size", nic.tx_ring)):
        if size and size != 256:
            words[name] = size
    if nic.packed:
        words["packed"] = "on"
    if nic.rss:
        words["rss"] = "on"
    off = [prop for name, prop in OFFLOADS.items() if nic.offloads is not None and name not in nic.offloads]
    guest = {p.removeprefix("guest_"): "off" for p in off if p.startswith("guest_")}
    host = {p.removeprefix("host_"): "off" for p in off if not p.startswith("guest_")}
    inner = [f"  {element(side, names)}" for side, names in (("host", host), ("guest", guest)) if names]
    if not inner:
        return [element("driver", words)]
    return [element("driver", words, end=">"), *inner, "</driver>"]


def element(name: str, attributes: Mapping[str, object], end: str = "/>") -> str:
    return f"<{name}" + "".join(f" {k}={quoteattr(str(v))}" for k, v in attributes.items()) + end
