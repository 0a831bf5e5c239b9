"""Values: every accepted spelling is kept in one form, which is itself accepted and stays as it is."""
from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_network
from statistics import median
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmnet.spec import values
from kvmnet.spec.load import loads

PARSERS: list[Callable[[Any], Any]] = [
    values.name, values.network_name, values.domain, values.interface, values.line, values.mac, values.address,
    values.address4, values.address6, values.network4, values.network6, values.prefix, values.range4,
    values.range6, values.duration, values.size, values.pci_slot, values.vlan_ranges]
ANYTHING = (st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.lists(st.integers(), max_size=3)
            | st.from_regex(r"\A[0-9a-fA-F:./-]{1,20}\Z"))


@given(st.sampled_from(PARSERS), ANYTHING)
@settings(deadline=None, max_examples=600)
def test_a_value_or_a_reason(parse: Callable[[Any], Any], given: object) -> None:
    try:
        kept = parse(given)
    except ValueError as reason:
        assert str(reason)
        assert "\n" not in str(reason)
        return
    assert parse(kept) == kept


@given(st.binary(min_size=6, max_size=6).filter(lambda raw: not raw[0] & 1 and any(raw)))
def test_macs_in_every_spelling(raw: bytes) -> None:
    wanted = raw.hex(":")
    for spelling in (wanted, wanted.upper(), raw.hex("-"), raw.hex(), raw.hex(".", 2)):
        assert values.mac(spelling) == wanted


@given(st.binary(min_size=6, max_size=6).filter(lambda raw: raw[0] & 1))
def test_multicast_macs_are_nobodys(raw: bytes) -> None:
    with pytest.raises(ValueError, match="multicast"):
        values.mac(raw.hex(":"))


@given(st.ip_addresses(), st.integers(0, 128))
def test_prefixes_lose_no_bit_in_silence(address: IPv4Address | IPv6Address, length: int) -> None:
    length = min(length, address.max_prefixlen)
    text = f"{address}/{length}"
    right = str(ip_network(text, strict=False))
    parse = values.network4 if address.version == 4 else values.network6
    try:
        assert parse(text) == right == str(ip_network(text))
    except ValueError as reason:
        assert str(reason) == f"{text} has host bits; write {right}" or "not a prefix of hosts" in str(reason)


@pytest.mark.parametrize("device", ["eth0", "ens18", "wlp3s0", "bond0.100", "enp0s31f6", "br-lan", "br0", "vmbr0", "lan"])
def test_usual_device_names(device: str) -> None:
    assert values.interface(device) == device


@pytest.mark.parametrize("device", ["br", "dev", "type", "lo", "all", "default", ".", "..", "a b", "a/b", "a:b", "",
                                    "sixteen-bytes-xx", "-x", "a\tb", "\u00e4" * 8, 'a"b', "a%d"])
def test_device_names_that_do_harm(device: str) -> None:
    with pytest.raises(ValueError):
        values.interface(device)


def test_loading_is_no_slower_than_reading_yaml() -> None:
    """Reading and validating 1,000 guests, against PyYAML with libyaml that only reads them (measured: half
    of its time). Medians of interleaved runs."""
    text = ("version: 1\nnetworks:\n  lan: {mode: isolated, subnet: 10.0.0.0/16}\nvms:\n"
            + "".join(f"  vm{i}:\n    nics:\n      - {{network: lan, ip: 10.0.{i // 200}.{i % 200 + 2}, queues: auto}}\n"
                      for i in range(1000)))
    loader = getattr(yaml, "CSafeLoader", None)
    if loader is None:
        pytest.skip("PyYAML without libyaml")
    ours, bare = [], []
    for _ in range(5):
        start = time.process_time()
        loads(text)
        middle = time.process_time()
        yaml.load(text, Loader=loader)
        ours.append(middle - start)
        bare.append(time.process_time() - middle)
    assert median(ours) < 2 * median(bare)
