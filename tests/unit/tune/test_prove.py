"""What is kept of proposals that were measured."""
from __future__ import annotations

from collections.abc import Sequence

import pytest

from kvmnet.bench.dials import Whose
from kvmnet.bench.matrix import matrix
from kvmnet.bench.model import Machine
from kvmnet.bench.record import Record, Taken, Wish
from kvmnet.bench.scenarios import Place, chosen
from kvmnet.errors import HostCannot, KvmnetError
from kvmnet.host.run import ToolFailed
from kvmnet.spec.knobs import KNOBS, REFUSED, Profile
from kvmnet.tune import prove as module
from kvmnet.tune.proposals import Proposal, settings
from kvmnet.tune.prove import LOADS, TOGETHER, judged, kept, prove


def record(points: Sequence[str], up: float, down: float) -> Record:
    """TCP of a base and others that are *up* and *down* times as fast; the base's twin is like it."""
    made = Record(Wish(tuple(matrix([], [], points, twin=True)), ("tcp-up", "tcp-down"), (Place.HOST,), 6), Machine("", "", 2, {}), {}, "now")
    for number in range(6):
        for scenario, factor in (("tcp-up", up), ("tcp-down", down)):
            for c in range(len(made.wish.configurations)):
                f = (factor if c > 1 else 1.0) * (1 + 0.002 * (number % 3) * (c % 2))
                made.taken.append(Taken(number, scenario, Place.HOST, c, {
                    "seconds": 1.0, "bytes": [round(1e8 * f)], "busy_here": 0.1, "busy_host": 0.1 * f}))
    return made


@pytest.mark.parametrize(("up", "down", "kept"), [(1.4, 1.0, True), (1.0, 1.0, False), (1.4, 0.7, False), (0.7, 0.7, False)])
def test_kept_is_what_helps_and_harms_nothing(up: float, down: float, kept: bool) -> None:
    (proof,) = judged(record(["model=e1000", ""], up, down), "model=e1000", ["model=virtio"])
    assert proof.kept is kept and any("tcp-up" in line for line in proof.said)


def test_nics_that_are_alike_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measured(base: str, points: Sequence[str], profile: Profile, rounds: int, machine: bool) -> Record:
        asked.append((base, list(points)))
        return record([base, *(module.changed(base, p) for p in points)], 1.5, 1.5)

    monkeypatch.setattr(module, "measured", measured)
    same = [Proposal(f"vms.{n}.nics[0].model", "e1000", "virtio", "", "", "", point="model=virtio", base="model=e1000") for n in "abc"]
    others = [Proposal("vms.d.nics[0].queues", "1", "auto", "", "", "", point="queues=2", base="cpus=2"),
              Proposal("vms.d.nics[0].vhost", "off", "auto", "", "", "", lacking="none here", point="vhost=on", base="cpus=2"),
              Proposal("tuning.net.core.rmem_max", "1", "2", "", "", "")]
    found = prove([*same, *others], Profile.THROUGHPUT, 6, lambda line: None)
    assert asked == [("model=e1000", ["model=virtio"]), ("cpus=2", ["queues=2"])]
    assert [(p.change, p.kept) for p in found] == [("model=virtio", True), ("queues=2", True)]


def test_kernel_settings_are_measured_together_against_what_is_set_now(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measured(base: str, points: Sequence[str], profile: Profile, rounds: int, machine: bool) -> Record:
        asked.append((base, list(points), machine))
        return record([base, *(module.changed(base, p) for p in points)], 1.5, 1.5)

    def whose(name: str, value: str) -> Whose:
        if name == "net.ipv4.tcp_congestion_control":
            raise HostCannot("not in a namespace", "a hint")
        return Whose.MACHINE if name.startswith("net.core") else Whose.NAMESPACE

    monkeypatch.setattr(module, "measured", measured)
    monkeypatch.setattr(module, "whose", whose)
    have = {**dict.fromkeys((*KNOBS, *REFUSED), "0"), "net.ipv4.tcp_rmem": "1 2 3", "net.ipv4.tcp_wmem": "1 2 3",
            "net.bridge.bridge-nf-call-iptables": "1", "net.core.netdev_budget": "300", "net.core.netdev_budget_usecs": "8000",
            "net.ipv4.tcp_congestion_control": "cubic"}
    here = list(settings(Profile.THROUGHPUT, have))
    found = prove(here, Profile.THROUGHPUT, 6, lambda line: None)
    names = ["net.bridge.bridge-nf-call-iptables", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"]
    assert asked == [("net.bridge.bridge-nf-call-iptables=1 net.ipv4.tcp_rmem=1/2/3 net.ipv4.tcp_wmem=1/2/3",
                      ["net.bridge.bridge-nf-call-iptables=0", "net.ipv4.tcp_rmem=4096/131072/33554432", "net.ipv4.tcp_wmem=4096/16384/33554432"],
                      False)]
    told = {p.change.partition("=")[0]: p for p in found}
    assert told["net.core.netdev_budget"].said == ("not measured: of the whole machine: measured with --machine",)
    assert told["net.ipv4.tcp_congestion_control"].said == ("not measured: not in a namespace; a hint",)
    assert set(kept(here, found)) == {p.setting for p in here if p.setting in names}
    asked.clear()
    prove(here, Profile.THROUGHPUT, 6, lambda line: None, machine=True)
    assert asked[0][2] and any("net.core.netdev_budget=600" in points for _, points, _ in asked)
    assert all(len(points) <= TOGETHER for _, points, _ in asked)


def test_every_profile_has_loads() -> None:
    assert set(LOADS) == set(Profile)
    assert all(chosen(names.split(",")) for names in LOADS.values())


def test_why_a_measurement_failed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: Sequence[str], timeout: float) -> str:
        assert argv[argv.index("--point") + 1] == "net.ipv4.tcp_rmem=1/2/3" and "--machine" not in argv
        raise ToolFailed(argv, 11, "fetching\nerror: 4 guests need 1024 MiB of memory, 512 MiB are free\n  compare fewer configurations")

    monkeypatch.setattr(module, "run", run)
    with pytest.raises(KvmnetError, match=r"failed: 4 guests need 1024 MiB of memory, 512 MiB are free$"):
        module.measured("net.ipv4.tcp_rmem=1/2/3", ["net.ipv4.tcp_rmem=4/5/6"], Profile.THROUGHPUT, 6, machine=False)
