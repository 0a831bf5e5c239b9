"""Hardware settings of NICs: claimed one by one, given back one by one, refused with the maximum."""
from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import pytest

from kvmnet.api import Host
from kvmnet.drivers.ethtool.resources import GROUPS, NicFeature, NicTuning
from kvmnet.drivers.ethtool.wire import Asker, read
from kvmnet.errors import ApplyFailed, HostCannot, SpecError
from kvmnet.host import run as host
from kvmnet.host.apart import CLONE_NEWNET, CLONE_NEWNS, libc
from kvmnet.host.paths import Paths
from kvmnet.spec.knobs import Profile
from kvmnet.spec.load import loads
from kvmnet.tune import look
from kvmnet.tune.uplinks import uplinks
from lib.fork import in_child
from lib.netns import sh
from lib.world import World, world

pytestmark = pytest.mark.net

NAMES = {group: names[0] for group, names in GROUPS.items() if len(names) == 1}
"""ethtool prints a group instead of its only feature."""


@pytest.fixture
def net() -> Iterator[World]:
    with world() as made:
        sh("ip link add eth3 numtxqueues 4 numrxqueues 4 type veth peer name f3 numtxqueues 4 numrxqueues 4; ip link set f3 up;"
           "ip link set eth3 up; ethtool -L eth3 rx 1 tx 1")
        yield made


def document(ethtool: str, nic: str = "eth3") -> str:
    return f"version: 1\nuplinks: {{wan: {{device: {nic}, ethtool: {ethtool}}}}}\n"


def features(nic: str) -> dict[str, bool]:
    """By the tool, not by our own reading."""
    (found,) = json.loads(sh(f"ethtool --json -k {nic}"))
    return {NAMES.get(name, name): value["active"] for name, value in found.items() if isinstance(value, dict)}


def channels(nic: str) -> list[int]:
    text = sh(f"ethtool -l {nic}").partition("Current hardware settings:")[2]
    return [int(line.split()[1]) for line in text.splitlines() if line.startswith(("RX:", "TX:"))]


def test_what_is_read_is_what_the_tool_says(net: World) -> None:
    told = features("eth3")
    seen = {r.name.partition(" ")[2]: r.on for r in read(["eth3"], {"eth3": None}) if isinstance(r, NicFeature)}
    assert {n: seen[n] for n in told if n in seen} == {n: on for n, on in told.items() if n in seen}
    assert len(seen) > 40 and len(set(told) & set(seen)) > 40
    with Asker() as asker:
        tuning = asker.tuning("eth3")
    assert [tuning.rx_channels, tuning.tx_channels] == channels("eth3") == [1, 1]
    assert tuning.rx_ring is None and "rx_channels=4" in (tuning.most or ())
    assert list(read(["nothing"], {})) == []


def test_features_and_channels_are_claimed_and_given_back(net: World) -> None:
    before = features("eth3")
    assert before["tx-tcp-segmentation"] and before["rx-gro"] is False
    net.apply(document("{features: {tx-tcp-segmentation: false, rx-gro: true, tx-checksumming: false}, channels: {rx: 4, tx: 2}}"))
    now = features("eth3")
    assert not now["tx-tcp-segmentation"] and now["rx-gro"] and not now["tx-checksum-ip-generic"]
    assert channels("eth3") == [4, 2] and net.drift() == []
    assert {n for n in now if now[n] != before[n]} >= {"tx-tcp-segmentation", "rx-gro", "tx-checksum-ip-generic"}
    sh("ethtool -K eth3 rx-gro off")
    assert net.drift() == ["update nic-feature eth3 rx-gro"]
    net.apply(document("{features: {rx-gro: true}}"))
    now = features("eth3")
    assert now["rx-gro"] and now["tx-tcp-segmentation"] and channels("eth3") == [1, 1], "given back, one by one"
    net.destroy()
    assert features("eth3") == before and channels("eth3") == [1, 1]


def test_one_command_for_all_features_of_a_nic(net: World) -> None:
    steps = net.plan(document("{features: {tx-tcp-segmentation: false, rx-gro: true}, channels: {rx: 4, tx: 2}}")).steps
    commands = [" ".join(c.argv) for c in net.host.engine.dispatch.commands(steps)]
    assert commands == ["ethtool -K eth3 rx-gro on tx-tcp-segmentation off", "ethtool -L eth3 rx 4 tx 2"]


@pytest.mark.parametrize(("told", "message", "hint"), [
    ("{channels: {rx: 5}}", "eth3 takes at most 4", "write 4"),
    ("{channels: {combined: 2}}", "eth3 has no such setting", "remove it"),
    ("{rings: {rx: 512}}", "eth3 has no such setting: its driver does not offer it", "remove it"),
    ("{coalesce: {rx_usecs: 5}}", "eth3 has no such setting", "remove it"),
    ("{pause: {rx: true}}", "eth3 has no such setting", "remove it"),
    ("{features: {rx-grow: true}}", "the kernel knows no feature rx-grow", "did you mean rx-gro"),
    ("{features: {rx-vlan-filter: true}}", "eth3 has it fixed to off", "remove it"),
    ("{features: {ntuple-filters: true}}", "eth3 can change nothing of this group", "ethtool -k eth3"),
])
def test_refused_when_planned(net: World, told: str, message: str, hint: str) -> None:
    with pytest.raises(HostCannot) as refused:
        net.plan(document(told))
    assert message in str(refused.value) and "test.yaml:2:" in str(refused.value) and hint in refused.value.hint


def test_a_vlan_has_no_hardware() -> None:
    from kvmnet.facts.model import Facts
    from kvmnet.spec.checks import require
    with pytest.raises(SpecError):
        require(loads("version: 1\nuplinks: {v: {device: eth0, vlan: 5, ethtool: {rings: {rx: 64}}}}\n", "x"), Facts())


def test_what_the_driver_refuses_is_taken_back_and_its_words_are_shown(net: World) -> None:
    """A peer with fewer queues that are up: veth refuses more than it has (veth_set_channels() in drivers/net/veth.c)."""
    sh("ethtool -K eth3 rx-gro on")
    before = features("eth3")
    with pytest.raises(ApplyFailed) as failed:
        net.host.apply(net.plan(document("{features: {rx-gro: false}, channels: {rx: 0, tx: 1}}")))
    assert "nic-tuning eth3" in str(failed.value) and "ethtool -L eth3" in str(failed.value)
    assert "rolled back" in str(failed.value) and features("eth3") == before


def test_reading_costs_no_program(net: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "run", lambda *a, **k: pytest.fail("a program was started"))
    start = perf_counter()
    assert sum(isinstance(r, NicTuning) for r in read(["eth3"] * 50, {"eth3": None})) == 50
    print(f"\n50 NICs read with all features: {(perf_counter() - start) * 1000:.1f} ms")


def test_what_tune_proposes_is_what_the_driver_takes(net: World) -> None:
    """One receive queue of four for two processors: two are proposed, applied, and then nothing is."""
    def proposed(text: str) -> dict[str, tuple[str, str]]:
        spec = loads(text).spec
        return {p.name: (p.now, p.proposed) for p in uplinks(Profile.THROUGHPUT, spec, look.hardware(spec), 2)}

    assert proposed(document("{}")) == {"uplinks.wan.ethtool.channels.rx": ("1", "2")}
    text = document("{channels: {rx: 2}}")
    net.host.apply(net.plan(text))
    assert channels("eth3")[0] == 2 and proposed(text) == {}
    net.host.apply(net.host.plan_destroy())
    assert channels("eth3")[0] == 1


def with_its_own_sysfs(work: Callable[[], None]) -> int:
    """*work* in a process whose /sys is that of its network, as on a host."""
    def there() -> None:
        assert not libc.unshare(CLONE_NEWNET | CLONE_NEWNS)
        sh("mount --make-rprivate / && mount -t sysfs sysfs /sys")
        work()
    return in_child(there)


def steered() -> list[str]:
    """By the kernel's files, not by our own reading: receive and send masks of the four queues."""
    return sh("cat /sys/class/net/e4/queues/rx-*/rps_cpus /sys/class/net/e4/queues/tx-*/xps_cpus").split()


def claimed_and_given_back(folder: Path) -> None:
    here = Host(Paths(folder / "state", folder / "run"))
    sh("ip link add e4 numtxqueues 4 numrxqueues 4 type veth peer name f4 numtxqueues 4 numrxqueues 4; ip link set f4 up; ip link set e4 up; "
       "ethtool -L e4 rx 4 tx 4; echo 2 > /sys/class/net/e4/queues/rx-2/rps_cpus; echo 1 > /sys/class/net/e4/queues/tx-0/xps_cpus")
    before, file = steered(), folder / "d.yaml"
    assert before == ["0", "0", "2", "0", "1", "0", "0", "0"]

    def apply(steering: str) -> None:
        file.write_text(f"version: 1\nuplinks: {{wan: {{device: e4, steering: {steering}}}}}\n")
        here.apply(here.plan(file), reach=("none",))
        assert not here.plan(file).steps, "nothing is left to do"

    apply("{receive: 0-1, send: [0, 1]}")
    assert steered() == ["3", "3", "3", "3", "1", "2", "1", "2"]
    sh("echo 0 > /sys/class/net/e4/queues/rx-1/rps_cpus")
    assert [s.key.name for s in here.plan(file).steps] == ["e4"], "drift is seen"
    apply("{send: [1, 0]}")
    assert steered() == [*before[:4], "2", "1", "2", "1"], "what is no longer claimed is given back"
    file.write_text("version: 1\nuplinks: {wan: {device: e4, steering: {interrupts: 0}}}\n")
    with pytest.raises(HostCannot, match="no interrupts of its own"):
        here.plan(file)
    here.destroy(reach=("none",))
    assert steered() == before
    spec = loads(file.read_text()).spec
    assert not [p for p in uplinks(Profile.ROUTER, spec, look.hardware(spec), 8) if "steering" in p.name], "somebody has set it already"
    assert ("uplinks.wan.steering.receive", "[none, none, 1]", "none") in [(p.name, p.now, p.proposed) for p in uplinks(Profile.LATENCY, spec, look.hardware(spec), 8)]
    sh("echo 0 > /sys/class/net/e4/queues/rx-2/rps_cpus")
    assert ("uplinks.wan.steering.receive", "none", "0-7") in [(p.name, p.now, p.proposed) for p in uplinks(Profile.ROUTER, spec, look.hardware(spec), 8)]


def test_cpus_of_queues_are_claimed_and_given_back(tmp_path: Path) -> None:
    assert with_its_own_sysfs(lambda: claimed_and_given_back(tmp_path)) == 0


def test_another_network_s_sysfs_says_nothing(net: World) -> None:
    """/sys is the machine's, whose lo is not this one's."""
    with Asker() as asker:
        assert asker.tuning("eth3").rps is None
