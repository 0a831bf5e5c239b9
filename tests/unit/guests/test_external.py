"""What external guests are told: QEMU arguments and libvirt XML."""
from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from kvmnet.drivers.qemu.devices import MODELS, OFFLOADS
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.guests.external import libvirt_xml, qemu_arguments

NIC = GuestNic(name="db/nic0", vm="db", tap="kvt-db-0", model="virtio", mac="52:54:00:00:00:01", link=True,
               host_mtu=1500, queues=4, rx_ring=1024, tx_ring=256, packed=True, vhost=True, bootindex=0, pci="05.1",
               offloads=tuple(sorted(set(OFFLOADS) - {"tso4", "csum", "mrg_rxbuf", "guest_tso6"})))
PLAIN = replace(NIC, model="e1000e", host_mtu=0, queues=1, rx_ring=0, tx_ring=0, packed=False, vhost=False,
                bootindex=-1, pci="", offloads=())


def test_qemu_opens_the_tap_by_name() -> None:
    assert qemu_arguments(NIC) == [
        "-netdev", "tap,id=kvmnet-nic0.tap,ifname=kvt-db-0,script=no,downscript=no,queues=4,vhost=on",
        "-device", "virtio-net-pci,id=kvmnet-nic0,netdev=kvmnet-nic0.tap,addr=05.1,disable-legacy=on,"
                   "mac=52:54:00:00:00:01,mq=on,vectors=10,host_mtu=1500,rx_queue_size=1024,packed=on,csum=off,"
                   "host_tso4=off,guest_tso6=off,mrg_rxbuf=off,bootindex=0"]
    assert qemu_arguments(PLAIN) == [
        "-netdev", "tap,id=kvmnet-nic0.tap,ifname=kvt-db-0,script=no,downscript=no,vhost=off",
        "-device", "e1000e,id=kvmnet-nic0,netdev=kvmnet-nic0.tap,mac=52:54:00:00:00:01,romfile="]


def test_libvirt_keeps_its_hands_off_the_tap() -> None:
    root = ET.fromstring(libvirt_xml(NIC))
    found = {child.tag: dict(child.attrib) for child in root}
    assert root.attrib == {"type": "ethernet"}
    assert found["target"] == {"dev": "kvt-db-0", "managed": "no"}
    assert found["mac"] == {"address": "52:54:00:00:00:01"} and found["mtu"] == {"size": "1500"}
    assert found["driver"] == {"name": "vhost", "queues": "4", "rx_queue_size": "1024", "packed": "on"}
    assert found["boot"] == {"order": "1"}      # libvirt counts from 1
    assert found["address"] == {"type": "pci", "domain": "0x0000", "bus": "0x00", "slot": "0x05", "function": "0x1"}
    sides = {child.tag: dict(child.attrib) for child in root.iterfind("driver/*")}
    assert sides == {"host": {"csum": "off", "tso4": "off", "mrg_rxbuf": "off"}, "guest": {"tso6": "off"}}
    assert "link" not in found


def test_a_card_without_settings_is_short() -> None:
    assert libvirt_xml(PLAIN) == """\
<interface type='ethernet'>
  <mac address="52:54:00:00:00:01"/>
  <target dev="kvt-db-0" managed="no"/>
  <model type="e1000e"/>
</interface>
"""
    assert '<link state="down"/>' in libvirt_xml(replace(PLAIN, link=False))


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_a_name_in_libvirt(model: str) -> None:
    root = ET.fromstring(libvirt_xml(replace(PLAIN, model=model)))
    (found,) = root.iterfind("model")
    assert found.attrib["type"] == MODELS[model].libvirt != ""
