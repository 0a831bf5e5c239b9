"""Huge pages and NUMA nodes that are proposed for guests' memory."""
from __future__ import annotations

import pytest

from kvmnet.spec.knobs import Profile
from kvmnet.spec.load import loads
from kvmnet.spec.models import Spec
from kvmnet.tune.memory import memory

HUGE = 2 << 20


def spec(first: str = "", second: str = "") -> Spec:
    return loads(f"""version: 1
uplinks: {{wan: {{device: eth0}}}}
networks:
  lan: {{mode: nat, uplink: wan, subnet: 10.0.0.0/24}}
  cell: {{mode: isolated, subnet: 10.1.0.0/24}}
vms:
  a: {{run: {{image: tiny, memory: 2G{first}}}, nics: [{{network: lan}}]}}
  b: {{run: {{image: tiny, memory: 1G{second}}}, nics: [{{network: cell}}]}}
  small: {{run: {{image: tiny, memory: 256M}}, nics: [{{network: cell}}]}}
  theirs: {{nics: [{{network: lan}}]}}
""", "test").spec


@pytest.mark.parametrize(("free", "total", "lacking"), [
    (1536, 1536, ["", ""]), (1024, 1100, ["", "1024 of 1100 huge pages are free: tuning: {vm.nr_hugepages: 1612}"]),
    (0, 0, ["0 of 0 huge pages are free: tuning: {vm.nr_hugepages: 1024}", "0 of 0 huge pages are free: tuning: {vm.nr_hugepages: 1536}"])])
def test_large_guests_and_what_has_to_be_set_aside(free: int, total: int, lacking: list[str]) -> None:
    found = list(memory(Profile.LATENCY, spec(), HUGE, free, total, 1, {"wan": 0}))
    assert [p.name for p in found] == ["vms.a.run.hugepages", "vms.b.run.hugepages"] and [p.lacking for p in found] == lacking


def test_what_is_not_proposed() -> None:
    assert list(memory(Profile.DENSITY, spec(), HUGE, 9999, 9999, 2, {"wan": 1})) == []
    assert list(memory(Profile.THROUGHPUT, spec(), 0, 0, 0, 1, {})) == [], "a kernel without huge pages"
    assert list(memory(Profile.LATENCY, spec(", hugepages: true, nodes: 0", ", hugepages: true"), HUGE, 9999, 9999, 2, {"wan": 1})) == []


def test_memory_beside_the_nic() -> None:
    found = [(p.name, p.now, p.proposed) for p in memory(Profile.LATENCY, spec(), 0, 0, 0, 2, {"wan": 1})]
    assert found == [("vms.a.run.nodes", "any", "1")], "the other network has no NIC"
