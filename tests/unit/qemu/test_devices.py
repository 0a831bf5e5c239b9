"""A NIC as a backend and a device: the same properties on the command line and over QMP."""
from __future__ import annotations

from dataclasses import replace

import pytest

from kvmnet.drivers.qemu.devices import (
    MODEL_OF_DEVICE,
    MODELS,
    OFFLOADS,
    Handles,
    Place,
    device,
    device_id,
    escape,
    keyval,
    netdev,
    netdev_id,
)
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.spec.guests import Model, Offloads

NIC = GuestNic(name="web/nic0", vm="web", tap="kvt-web-0", model="virtio", mac="52:54:00:00:00:01", link=True,
               host_mtu=9000, queues=1, rx_ring=256, tx_ring=256, packed=False,
               offloads=tuple(sorted(OFFLOADS)), vhost=False, bootindex=-1, pci="")
PORT = Place("kvmnet-port-0")


def test_every_model_and_offload_of_the_document_is_known() -> None:
    assert set(MODELS) == {m.value for m in Model}
    assert set(OFFLOADS) == set(Offloads.model_fields)
    assert MODEL_OF_DEVICE["virtio-net-pci"] == "virtio"


def test_a_plain_card_says_only_what_differs_from_the_default() -> None:
    assert keyval(device(NIC, PORT), "driver") == (
        "virtio-net-pci,id=kvmnet-nic0,netdev=kvmnet-nic0.tap,bus=kvmnet-port-0,disable-legacy=on,"
        "mac=52:54:00:00:00:01,host_mtu=9000,romfile=")
    assert keyval(netdev(NIC, Handles(("7",))), "type") == "tap,id=kvmnet-nic0.tap,fd=7,vhost=off"


@pytest.mark.parametrize(("change", "expected"), [
    ({"queues": 4}, {"mq": True, "vectors": 10}),
    ({"rx_ring": 1024}, {"rx_queue_size": 1024}),
    ({"tx_ring": 512}, {"tx_queue_size": 512}),
    ({"packed": True}, {"packed": True}), ({"rss": True}, {"rss": True}),
    ({"host_mtu": 0}, {"host_mtu": None}),
    ({"offloads": tuple(sorted(set(OFFLOADS) - {"tso4", "guest_csum"}))}, {"host_tso4": False, "guest_csum": False}),
    ({"bootindex": 0}, {"bootindex": 0, "romfile": None}),
    ({"pci": "05.0"}, {}),
])
def test_settings_reach_the_card(change: dict[str, object], expected: dict[str, object]) -> None:
    plain, changed = device(NIC, PORT), device(replace(NIC, **change), PORT)      # type: ignore[arg-type]
    differing = {k: changed.get(k) for k in plain.keys() | changed.keys() if plain.get(k) != changed.get(k)}
    assert differing == expected


@pytest.mark.parametrize("model", [m for m, t in MODELS.items() if not t.virtio])
def test_other_models_get_no_virtio_property(model: str) -> None:
    card = device(replace(NIC, model=model, queues=4, packed=True, rx_ring=1024), PORT)
    assert card.keys() == {"driver", "id", "netdev", "bus", "mac", "romfile"}


def test_several_queues_and_vhost_use_the_plural_forms() -> None:
    several = replace(NIC, queues=2, vhost=True)
    assert netdev(several, Handles(("a", "b"), ("c", "d"))) == {
        "type": "tap", "id": "kvmnet-nic0.tap", "fds": "a:b", "vhost": True, "vhostfds": "c:d"}
    assert netdev(replace(NIC, vhost=True), Handles(("a",), ("c",)))["vhostfd"] == "c"


def test_vhost_is_on_only_with_its_descriptors() -> None:
    """QEMU 7.2 dies by an assertion when it must open /dev/vhost-net itself and cannot."""
    assert netdev(replace(NIC, vhost=True), Handles(("a",)))["vhost"] is False


def test_card_and_backend_have_different_ids() -> None:
    assert device_id(NIC) == "kvmnet-nic0" != netdev_id(NIC)


def test_values_are_escaped() -> None:
    assert [escape(v) for v in (True, False, 5, "a,b")] == ["on", "off", "5", "a,,b"]
