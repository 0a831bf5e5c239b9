"""What is proposed, for whom and why; nothing is lowered, and no guard is touched."""
from __future__ import annotations

import pytest

from kvmnet.bench.matrix import configuration
from kvmnet.spec.knobs import KNOBS, REFUSED, Profile
from kvmnet.spec.load import loads
from kvmnet.tune.proposals import Proposal, changed, fragment, left_alone, nics, pins, settings

EMPTY: dict[str, str | None] = dict.fromkeys((*KNOBS, *REFUSED), "0")


@pytest.mark.parametrize("knob", KNOBS.values(), ids=lambda k: k.name)
def test_every_knob_is_explained_and_takes_what_is_proposed(knob) -> None:  # type: ignore[no-untyped-def]
    assert knob.why and knob.risk and knob.source.startswith("Linux, Documentation/")
    assert bool(knob.proposed) is (knob.name != "vm.nr_hugepages"), "how many pages there should be only the document knows"
    assert {knob.wrong(value) for value in knob.proposed.values()} <= {""}
    assert knob.name not in REFUSED
    assert knob.wrong("nonsense") and knob.wrong("") and knob.wrong("-1")


def test_what_is_as_proposed_is_not_proposed() -> None:
    for profile in Profile:
        first = list(settings(profile, EMPTY))
        assert first
        after = {**EMPTY, **{p.name.removeprefix("tuning."): p.proposed for p in first}}
        assert list(settings(profile, after)) == []


def test_nothing_is_lowered() -> None:
    have = {**EMPTY, "net.core.rmem_max": "999999999", "net.ipv4.tcp_rmem": "8192 131072 6291456",
            "net.netfilter.nf_conntrack_max": "2000000"}
    found = {p.name: p for p in (*settings(Profile.THROUGHPUT, have), *settings(Profile.ROUTER, have))}
    assert "tuning.net.core.rmem_max" not in found and "tuning.net.netfilter.nf_conntrack_max" not in found
    assert found["tuning.net.ipv4.tcp_rmem"].proposed == "8192 131072 33554432"


def test_what_this_host_cannot_have_is_said() -> None:
    found = {p.name: p for p in settings(Profile.THROUGHPUT, {**EMPTY, "net.core.rmem_max": None}, frozenset({"net.core.wmem_max"}))}
    assert found["tuning.net.core.rmem_max"].lacking == "not in this kernel"
    assert found["tuning.net.core.wmem_max"].lacking == "cannot be written here"
    assert found["tuning.net.ipv4.tcp_rmem"].lacking == ""


def test_what_is_often_named_is_refused_with_the_reason() -> None:
    found = dict(left_alone({**EMPTY, "net.ipv4.tcp_max_orphaned": None}))
    assert "no kernel has it" in found["net.ipv4.tcp_max_orphaned"] and "nothing to do with the MTU" in found["net.core.netdev_max_backlog"]


DOCUMENT = """
version: 1
networks:
  lan: {mode: isolated, subnet: 10.0.0.0/24, mtu: 9000}
  old: {mode: isolated, subnet: 10.0.1.0/24}
vms:
  a: {run: {image: tiny, cpus: 4}, nics: [{network: lan, vhost: 'off', offloads: {csum: false}, guard: mac}]}
  b: {run: {image: tiny}, nics: [{network: old, model: e1000}]}
  c: {run: {image: tiny, cpus: 2}, nics: [{network: old, queues: auto, rx_ring: 1024}]}
  d: {nics: [{network: old, offloads: {csum: false, tso4: false, tso6: false, ufo: false,
              guest_csum: false, guest_tso4: false, guest_tso6: false, guest_ufo: false}}]}
"""


def proposals(profile: Profile, vhost: bool = True) -> dict[str, Proposal]:
    return {p.name: p for p in nics(profile, loads(DOCUMENT).spec, vhost)}


def test_nics_for_throughput() -> None:
    found = proposals(Profile.THROUGHPUT)
    assert {n: (p.now, p.proposed) for n, p in found.items()} == {
        "vms.a.nics[0].queues": ("1", "auto"), "vms.a.nics[0].vhost": ("off", "auto"),
        "vms.a.nics[0].offloads": ("without csum", "QEMU's defaults"), "vms.a.nics[0].rx_ring": ("256", "1024"),
        "vms.b.nics[0].model": ("e1000", "virtio"),
        "vms.d.nics[0].offloads": ("without csum, tso4, tso6, ufo, guest_csum, guest_tso4, guest_tso6, guest_ufo", "QEMU's defaults"),
        "vms.d.nics[0].rx_ring": ("256", "1024")}
    assert found["vms.a.nics[0].queues"].base == "mode=isolated guard=mac mtu=9000 vhost=off offloads=csum cpus=4"
    assert found["vms.a.nics[0].offloads"].point == "offloads=all"
    assert found["vms.d.nics[0].offloads"].point == "offloads=all"


def test_nics_for_other_profiles() -> None:
    assert set(proposals(Profile.LATENCY)) == {"vms.a.nics[0].vhost", "vms.b.nics[0].model"}
    without = proposals(Profile.LATENCY, vhost=False)
    assert "no vhost-net" in without["vms.a.nics[0].vhost"].lacking and not without["vms.b.nics[0].model"].lacking


PINNED = """
version: 1
networks: {n: {mode: isolated, subnet: 10.0.0.0/24}}
vms:
  a: {run: {image: tiny, cpus: 2}, nics: [{network: n, queues: auto}]}
  b: {run: {image: tiny, pin: {vcpus: 0}}, nics: [{network: n}]}
  c: {nics: [{network: n}]}
"""


def test_cpus_for_guests_that_kvmnet_runs_where_one_is_left_for_the_host() -> None:
    spec = loads(PINNED).spec
    (found,) = pins(Profile.LATENCY, spec, 4)
    assert (found.name, found.proposed, found.point, found.base) == ("vms.a.run.pin.vcpus", "[1, 2]", "pin=1/2", "mode=isolated queues=2 cpus=2"), "b has its place"
    assert configuration(changed(found.base, found.point)).settings["pin"] == "1/2"
    assert list(pins(Profile.LATENCY, spec, 3)) == [] == list(pins(Profile.THROUGHPUT, spec, 8))


def test_rss_where_qemu_moves_the_packets_of_several_queues() -> None:
    def proposed(profile: Profile, vhost: bool) -> list[str]:
        return [p.name for p in nics(profile, loads(PINNED).spec, vhost) if p.name.endswith(".rss")]

    assert proposed(Profile.THROUGHPUT, False) == ["vms.a.nics[0].rss"]
    assert proposed(Profile.THROUGHPUT, True) == [] == proposed(Profile.LATENCY, False)


def test_every_point_is_one_that_bench_takes() -> None:
    for p in proposals(Profile.THROUGHPUT).values():
        configuration(p.base)
        if p.point:
            after = configuration(changed(p.base, p.point))
            assert after.settings != configuration(p.base).settings
    assert changed("model=e1000 mtu=9000", "model=virtio") == "mtu=9000" and changed("", "queues=2") == "queues=2"
    assert changed("offloads=none", "offloads=all") == ""


def test_the_fragment_is_a_document_s_part() -> None:
    found = {p.name.removeprefix("tuning."): p.proposed for profile in Profile for p in settings(profile, EMPTY)}
    assert loads("version: 1\n" + fragment(found)).spec.tuning == found and fragment({}) == ""
