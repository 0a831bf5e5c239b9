"""Abuse limits as data: what a document means, the rules that come of it, elements that are read back as they were."""
from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from kvmnet.adopt.restore_limits import restored
from kvmnet.compile import Compiled, compile_spec
from kvmnet.drivers.nftables import limits as words
from kvmnet.drivers.nftables import members
from kvmnet.drivers.nftables.resources import NftTable, NicLimits
from kvmnet.engine.resource import Key
from kvmnet.facts.model import Facts
from kvmnet.policy import limits
from kvmnet.policy.groups import Tracking
from kvmnet.policy.guard import PASS, guard_table
from kvmnet.spec.allocate import allocate
from kvmnet.spec.limits import HURRY, NEIGHBOURS, PLACES, Limits, effective
from kvmnet.spec.load import loads

DOCUMENT = """
version: 1
networks:
  lan: {mode: isolated, subnet: 10.0.0.0/24, mtu: 1500, limits: %s}
vms:
  a: {nics: [{network: lan, limits: %s}]}
  b: {nics: [{network: lan}]}
"""


def compiled(network: str = "{}", own: str = "{}", **features: str) -> Compiled:
    spec = loads(DOCUMENT % (network, own)).spec
    return compile_spec(spec, Facts(features=features), allocate(spec, {}))


def text(found: Compiled, name: str = "bridge kvmnet") -> str:
    table = found.wanted[Key("nft-table", name)]
    assert isinstance(table, NftTable) and table.text
    return table.text


def of(found: Compiled, tap: str = "kvt-a-0") -> NicLimits:
    limit = found.wanted[Key("nic-limits", tap)]
    assert isinstance(limit, NicLimits)
    return limit


def test_a_document_without_limits_has_the_guard_as_it_was() -> None:
    found = compiled()
    assert text(found) == guard_table().text and not [k for k in found.wanted if k.kind == "nic-limits"]


def test_a_nics_own_go_before_the_networks_one_by_one() -> None:
    network = Limits.model_validate({"send": {"packets": "100/s", "connections": "5/s"}, "burst": 3})
    own = Limits.model_validate({"send": {"packets": "7/s"}, "storms": {"broadcast": "2/s"}})
    assert effective(own, network, 1500) == (
        {"packets": 7, "bytes": 7 * 1518, "connections": 5, "broadcast": 2, "neighbours": NEIGHBOURS}, 3)
    none = Limits.model_validate({"send": {"packets": "none", "connections": "none"}})
    assert effective(none, network, 1500) == ({}, 3)


@pytest.mark.parametrize(("written", "found"), [
    ({"send": {"packets": "10/s", "bytes": "none"}}, {"packets": 10, "neighbours": NEIGHBOURS}),
    ({"send": {"packets": "10/s", "bytes": "1MB/s"}, "neighbours": "none"}, {"packets": 10, "bytes": 1_000_000}),
    ({"receive": {"packets": "10/s"}}, {"receive_packets": 10, "receive_bytes": 15_180}),
    ({"send": {"concurrent": 9}}, {"concurrent": 9, "connections": HURRY}),
    ({"send": {"concurrent": 9, "connections": "none"}}, {"concurrent": 9, "connections": HURRY}),
    ({"receive": {"syn": "5/s"}}, {"syn": 5}),
])
def test_what_follows_from_a_limit(written: dict[str, Any], found: dict[str, int]) -> None:
    assert effective(Limits.model_validate(written), Limits(), 1500)[0] == found


def test_every_limit_has_its_place_its_set_and_its_reason() -> None:
    assert PLACES.keys() == words.SETS.keys() == limits.REASONS.keys()
    assert set(PLACES) <= set(NicLimits.__dataclass_fields__)
    assert len(set(limits.REASONS.values())) == len(limits.REASONS)


def test_only_what_is_used_is_in_the_text() -> None:
    """And what the guard lets pass is counted only where something that is sent is limited."""
    received = text(compiled(own="{receive: {syn: 5/s}}"))
    assert received.startswith(guard_table().text or "-") and "l_packets" not in received and "@l_syn" in received
    sent = text(compiled(own="{storms: {broadcast: 5/s}}"))
    assert PASS not in sent and sent.count("goto budget\n") + sent.count("goto budget;") == 4
    assert "@l_broadcast" in sent and "@l_multicast" not in sent and "l_stations" not in sent


def test_unknown_macs_are_those_that_nobody_of_the_network_has() -> None:
    found = compiled(own="{storms: {unknown: 5/s}}")
    a, b = of(found), of(found, "kvt-b-0")
    assert (a.unknown, b.unknown) == (5, 0) and a.zone == b.zone != 0
    assert len({*(a.stations or ()), *(b.stations or ())}) == 2
    assert f"{a.zone:#010x} . {'02:'}" in text(found), "the host's own MAC is known"
    assert dict(members.elements(b)) == {"bridge kvmnet l_stations": f"{b.zone:#010x} . {(b.stations or ('',))[0]}"}


def test_flows_are_told_by_the_bridge_or_by_marks_of_the_host() -> None:
    """Where bridges track, all is in the guard's table; elsewhere the host counts and the bridge refuses what bears its mark."""
    flows = "{send: {connections: 5/s, concurrent: 9}}"
    bridge, host = compiled(own=flows, **{"bridge-conntrack": ""}), compiled(own=flows, **{"bridge-conntrack": "no"})
    assert (of(bridge).counted, of(host).counted) == ("bridge", "host")
    assert "ct count over 1; }" in text(bridge) and "ct count" not in text(bridge, "inet kvmnet")
    assert "ct count" not in text(host) and "ct count over 9" in text(host, "inet kvmnet")
    assert {name for name, _ in members.elements(of(host))} == {"bridge kvmnet l_connections"}
    for found in (bridge, host):
        assert text(found).index("@l_connections meta") < text(found).index("meta mark set 47")


FULL = NicLimits(name="kvt-a", table="bridge kvmnet", **{name: n + 1 for n, name in enumerate(words.SETS)}, burst=2,
                 stations=("02:00:00:00:00:01",), zone=7, counted="bridge")


def listed(item: NicLimits) -> dict[str, list[Any]]:
    """What nft 1.0.6 answers in JSON when *item* is loaded."""
    sets: dict[str, list[Any]] = {}
    for name, element in members.elements(item):
        key, _, bears = element.partition(" limit rate over ")
        nic, _, count = key.partition(" ct count over ")
        nic = nic.strip('"')
        if name.endswith("l_stations"):
            zone, mac = key.split(" . ")
            found: Any = {"concat": [int(zone, 0), mac]}
        elif count:
            found = {"elem": {"val": nic, "ct count": {"val": int(count), "inv": True}}}
        elif bears:
            rate, _, burst = bears.partition(" burst ")
            limit: dict[str, Any] = {"rate": int(rate.split("/")[0].split()[0]), "burst": int(burst.split()[0]), "per": "second",
                                     "inv": True}
            if "bytes" in burst:
                size, unit = (limit["burst"] // 1024, "kbytes") if limit["burst"] % 1024 == 0 else (limit["burst"], "bytes")
                limit |= {"burst": size, "rate_unit": "bytes", "burst_unit": unit}
            found = {"elem": {"val": nic, "limit": limit}}
        else:
            found = nic
        sets.setdefault(name.split()[-1], []).append(found)
    return sets


@pytest.mark.parametrize("item", [FULL, replace(FULL, counted="host"), replace(FULL, bytes=100_000_000, unknown=0, burst=60)])
def test_elements_are_read_back_as_they_were_written(item: NicLimits) -> None:
    sets = json.loads(json.dumps(listed(item)))
    assert members.listed("bridge kvmnet", sets) == set(members.elements(item))


def test_a_change_replaces_one_element_by_its_key() -> None:
    """nft says nothing when an element is added once more with another limit, and keeps the old one."""
    assert members.change([FULL], [replace(FULL, syn=99)]) == [
        'delete element bridge kvmnet l_syn { "kvt-a" }',
        'add element bridge kvmnet l_syn { "kvt-a" limit rate over 99/second burst 198 packets }']
    assert members.change([FULL], [replace(FULL, concurrent=77)])[0] == 'delete element bridge kvmnet l_concurrent { "kvt-a" }'


def test_two_packets_of_the_largest_size_always_have_room() -> None:
    assert words.words("bytes", 1000, 1) == " limit rate over 1000 bytes/second burst 130072 bytes"
    assert words.words("bytes", 10**9, 1) == " limit rate over 1000000000 bytes/second burst 1 bytes"
    assert words.words("bytes", 10**6, 3) == " limit rate over 1000000 bytes/second burst 2000000 bytes"


def test_restored_limits_mean_the_same() -> None:
    found = Limits.model_validate(restored(replace(FULL, stations=(), zone=0)))
    values, burst = effective(found, Limits(), 1500)
    assert values == {name: getattr(FULL, name) for name in words.SETS} and burst == 2
    assert restored(None) == {}


def test_back_ends_differ_in_who_knows_the_flows_alone() -> None:
    assert limits.OLD.keys() == set(Tracking)
