"""VFs without a NIC: what ip says and is told, who gets which, what is made, kept, refused and given back."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvmnet.compile import Compiled, compile_spec
from kvmnet.drivers.linux.resources import Link
from kvmnet.drivers.sriov import notebook, sysfs, wire
from kvmnet.drivers.sriov.driver import SriovDriver, run_lines
from kvmnet.drivers.sriov.resources import VFIO, Pf, Vf, VfPool, vf_name
from kvmnet.engine.borrow import release, remember
from kvmnet.engine.driver import StepFailed
from kvmnet.engine.plan import Create, Delete, Update, apply_to, plan
from kvmnet.engine.resource import Key, Resource
from kvmnet.errors import ConflictError, HostCannot, SpecError
from kvmnet.facts.model import Allocation, Allocations, Facts
from kvmnet.guests.external import libvirt_xml, qemu_arguments
from kvmnet.host.paths import Paths
from kvmnet.spec.allocate import allocate
from kvmnet.spec.checks import require
from kvmnet.spec.load import loads
from kvmnet.spec.vfs import rooms

SHOWN = {"ifname": "ens1", "vfinfo_list": [
    {"vf": 0, "address": "02:aa:00:00:00:01", "vlan_list": [{"vlan": 5, "qos": 3, "protocol": "802.1ad"}], "tx_rate": 100,
     "rate": {"max_tx": 100, "min_tx": 50}, "spoofchk": False, "link_state": "enable", "trust": True},
    {"vf": 1, "address": "00:00:00:00:00:00", "vlan_list": [{}], "rate": {"max_tx": 0, "min_tx": 0}, "link_state": "auto"}]}
"""As iproute2 6.1 prints it; the second VF is of a driver that knows neither spoofchk nor trust."""


def test_what_ip_shows() -> None:
    first, second = wire.parse_vfs(SHOWN)
    assert first == Vf(name="ens1 0", pool="ens1", mac="02:aa:00:00:00:01", vlan=5, qos=3, protocol="802.1ad", max_rate=100,
                       min_rate=50, spoofchk=False, trust=True, carrier="enable")
    assert (second.mac, second.vlan, second.spoofchk, second.trust) == (wire.NO_MAC, 0, False, False)


def test_what_ip_is_told() -> None:
    before = next(wire.parse_vfs(SHOWN))
    after = replace(before, mac="02:aa:00:00:00:02", vlan=6, min_rate=0, spoofchk=True, trust=False, carrier="auto")
    assert [" ".join(words[6:]) for words in wire.lines_of(before, after)] == [
        "mac 02:aa:00:00:00:02", "vlan 6 qos 3 proto 802.1ad", "max_tx_rate 100 min_tx_rate 0", "spoofchk on", "trust off", "state auto"]
    assert wire.lines_of(before, Vf(name="ens1 0", vlan=0, qos=0, protocol="802.1Q")) == [
        ("link", "set", "dev", "ens1", "vf", "0", "vlan", "0")]
    assert wire.lines_of(before, before) == []


# -- documents -------------------------------------------------------------------------------------

NIC = Link(name="ens1", type="physical", mtu=1500, mac="02:00:00:00:00:01", up=True, master="", alias="")
PF = Pf(name="ens1", dev="ens1", total=8, pci="0000:81:00.0", numa=-1, iommu=True)


def vf(number: int, **settings: object) -> Vf:
    found = replace(wire.fresh(Vf(name=vf_name("ens1", number), pool="ens1")), spoofchk=True, pci=f"0000:81:10.{number}", group=(),
                    holder="")
    return replace(found, **settings)  # type: ignore[arg-type]


def facts(*more: Resource, **known: object) -> Facts:
    return Facts(state={r.key: r for r in (NIC, PF, *more)}, features={"iommu": "", "vfio": ""}, **known)  # type: ignore[arg-type]


def split(count: int, *vfs: Vf, made: bool = False) -> tuple[Resource, ...]:
    own = {v.name: v for v in vfs}
    return VfPool(name="ens1", dev="ens1", count=count, made=made), *(own.get(vf_name("ens1", n), vf(n)) for n in range(count))


def text(vfs: str = ", vfs: 4", guests: str = "a: {nics: [{network: n, guard: mac}]}") -> str:
    return f"version: 1\nuplinks: {{x: {{device: ens1{vfs}}}}}\nnetworks: {{n: {{mode: sriov, uplink: x, vlan: 7}}}}\nvms: {{{guests}}}\n"


def compiled(document: str, seen: Facts, existing: Allocations | None = None) -> Compiled:
    read = loads(document, "t.yaml")
    require(read, seen)
    return compile_spec(read.spec, seen, allocate(read.spec, existing or {}, rooms(read.spec, seen.state)))


def wanted(made: Compiled, kind: str) -> dict[str, Resource]:
    return {k.name: r for k, r in made.wanted.items() if k.kind == kind and isinstance(r, Resource)}


def steps(document: str, seen: Facts) -> list[str]:
    made = compiled(document, seen)
    ours = {k for k, r in seen.state.items() if any(isinstance(p, VfPool) and p.made for p in seen.state.values())
            and k.kind in (Vf.kind, VfPool.kind)}
    return [f"{type(s).__name__} {s.key}" for s in plan(dict(seen.state), {k: r for k, r in made.wanted.items() if k.kind in
                                                               (Vf.kind, VfPool.kind, "link")}, ours, made.borrowed)]


def test_vfs_are_made_and_all_of_them_told() -> None:
    made = compiled(text(), facts())
    assert wanted(made, "vf-pool")["ens1"] == VfPool(name="ens1", dev="ens1", count=4, made=True)
    vfs = wanted(made, "vf")
    assert len(vfs) == 4
    given = vfs["ens1 0"]
    assert isinstance(given, Vf)
    assert (given.vlan, given.spoofchk, given.trust, given.carrier, given.driver) == (7, True, False, "auto", VFIO)
    idle = vfs["ens1 3"]
    assert isinstance(idle, Vf)
    assert (idle.mac, idle.vlan, idle.trust, idle.driver, idle.spoofchk) == (None, 0, False, "", None)
    assert steps(text(), facts()) == ["Create vf-pool ens1", *(f"Create vf ens1 {n}" for n in range(4))]
    assert not wanted(made, "nic-guard") and not [k for k in made.wanted if k.name.startswith("kvt-")]


def test_vfs_of_others_are_borrowed_one_by_one() -> None:
    seen = facts(*split(6, vf(0, holder="its NIC ens1v0 is up", driver="igbvf"), vf(1, driver="igbvf")))
    made = compiled(text(), seen)
    assert not wanted(made, "vf-pool"), "there are enough"
    assert list(wanted(made, "vf")) == ["ens1 1"], "the first that nobody uses"
    assert steps(text(), seen) == ["Update vf ens1 1"]
    assert made.notes == ["ens1 has 6 VFs that kvmnet did not make: they are used as they are, and stay"]
    given_back = release(remember({}, seen.state, plan(dict(seen.state), {k: made.wanted[k] for k in [Key("vf", "ens1 1")]}, set(),
                                                      made.borrowed), set(), made.borrowed), {}, seen.state)
    back = given_back.wanted[Key("vf", "ens1 1")]
    assert isinstance(back, Vf) and back.driver == "igbvf" and back.vlan == 0


def test_more_vfs_than_there_are_only_when_nobody_uses_those() -> None:
    free = facts(*split(2))
    assert steps(text(), free) == ["Delete vf-pool ens1", "Create vf-pool ens1", *(f"Create vf ens1 {n}" for n in range(4))]
    with pytest.raises(ConflictError, match=r"has to lose its present 2 first, and others use VF 1 \(its NIC v1 is up\)"):
        compiled(text(), facts(*split(2, vf(1, holder="its NIC v1 is up"))))


def test_what_was_there_before_ours_comes_back() -> None:
    seen = facts(*split(2, vf(1, mac="02:00:00:00:00:99", driver="igbvf")))
    made = compiled(text(), seen)
    mine = {k: r for k, r in made.wanted.items() if k.kind in (Vf.kind, VfPool.kind)}
    work = plan(dict(seen.state), mine, set(), made.borrowed)
    lent = remember({}, seen.state, work, set(), made.borrowed)
    now = apply_to(seen.state, work)
    ours = {k for k in now if k.kind in (Vf.kind, VfPool.kind)}
    back = release(lent, {}, now, ours)
    after = apply_to(now, plan(now, back.wanted, ours, back.borrowed))
    pool, second = after[Key("vf-pool", "ens1")], after[Key("vf", "ens1 1")]
    assert isinstance(pool, VfPool) and isinstance(second, Vf)
    assert (pool.count, pool.made, second.mac, second.driver) == (2, False, "02:00:00:00:00:99", "igbvf")
    assert Key("vf", "ens1 3") not in after


def test_destroy_takes_ours_away_and_a_guest_lets_go_first() -> None:
    made = compiled(text(guests="a: {run: {image: tiny}, nics: [{network: n, guard: mac}]}"), facts(running={"a": ("nic0",)}))
    now = {k: r for k, r in made.wanted.items() if isinstance(r, Resource) and k.kind in ("vf", "vf-pool", "guest-nic")}
    gone = plan(now, {}, set(now))
    assert [f"{type(s).__name__} {s.key}" for s in gone] == ["Delete guest-nic a/nic0", "Delete vf-pool ens1"]


def test_a_vf_that_a_guest_gives_up_forgets_what_it_was_told() -> None:
    both = compiled(text(guests="a: {nics: [{network: n, guard: 'off', trust: true}]}, b: {nics: [{network: n, guard: mac}]}"), facts())
    now = {k: r for k, r in both.wanted.items() if isinstance(r, Resource) and k.kind in ("vf", "vf-pool")}
    state = facts(*(replace(r, pci="x", group=(), holder="") if isinstance(r, Vf) else r for r in now.values()))
    one = compiled(text(guests="b: {nics: [{network: n, guard: mac}]}"), state,
                   {("a", "nic0", "n"): Allocation("02:00:00:00:00:05", "", "", 0), ("b", "nic0", "n"): Allocation("02:00:00:00:00:06", "", "", 1)})
    (step,) = [s for s in plan(dict(state.state), {k: r for k, r in one.wanted.items() if k.kind in ("vf", "vf-pool")}, set(now),
                               one.borrowed) if s.key.name == "ens1 0"]
    assert isinstance(step, Update)
    assert {n: new for n, (_, new) in step.changes.items()} == {"vlan": 0, "trust": False, "driver": ""}


# -- who gets which --------------------------------------------------------------------------------

def numbers(document: str, existing: Allocations, room: dict[str, list[int]] | None = None) -> dict[str, int]:
    found = allocate(loads(document, "t.yaml").spec, existing, room)
    return {key[0]: given.vf for key, given in found.items()}


def test_a_nic_keeps_its_vf() -> None:
    guests = "a: {nics: [{network: n, guard: mac}]}, b: {nics: [{network: n, guard: mac, vf: 0}]}"
    first = allocate(loads(text(guests=guests), "t").spec, {})
    assert {k[0]: a.vf for k, a in first.items()} == {"a": 1, "b": 0}
    more = "c: {nics: [{network: n, guard: mac}]}, a: {nics: [{network: n, guard: mac}]}"
    assert numbers(text(guests=more), first) == {"a": 1, "b": 0, "c": 2}, "b is gone, and its VF remembered"
    assert numbers(text(", vfs: 2", more), first) == {"a": 1, "b": -1, "c": 0}, "no other is left"
    assert numbers(text(guests=more), first, {"x": [2, 3]}) == {"c": 2, "a": 3, "b": 0}, "somebody else took its VF"
    with pytest.raises(SpecError) as wrong:
        numbers(text(guests=more), first, {"x": [2]})
    assert "1 can be used, and 2 NICs want one" in wrong.value.problems[0].message


def test_the_card_that_stands_by_has_the_same_mac() -> None:
    document = ("version: 1\nuplinks: {x: {device: ens1, vfs: 1}}\nnetworks: {n: {mode: sriov, uplink: x}, lan: {mode: isolated, "
                "subnet: 10.0.0.0/24}}\nvms: {a: {run: {image: tiny}, nics: [{network: n, guard: mac, failover: lan}]}}\n")
    made = compiled(document, facts())
    standby, primary = made.guest_nics["a"]
    assert (standby.name, standby.standby, standby.model, primary.name, primary.pair) == (
        "a/nic0-standby", True, "virtio", "a/nic0", "a/nic0-standby")
    given = wanted(made, "vf")["ens1 0"]
    assert isinstance(given, Vf) and given.mac == standby.mac
    guard = wanted(made, "nic-guard")[standby.tap or ""]
    assert given.mac in str(guard) and "10.0.0.2" in str(guard), "the guard of the tap binds it to both"
    words = " ".join(qemu_arguments(standby) + qemu_arguments(replace(primary, host="0000:81:10.0")))
    assert "failover=on" in words and "vfio-pci,id=kvmnet-nic0,host=0000:81:10.0,failover_pair_id=kvmnet-nic0-standby" in words
    assert "<address domain='0x0000'" in libvirt_xml(replace(primary, host="0000:81:10.0")).replace('"', "'")


# -- what the host lacks ---------------------------------------------------------------------------

@pytest.mark.parametrize(("seen", "said", "todo"), [
    (facts(replace(PF, total=3)), "ens1 has at most 3 VFs, not 4", "write vfs: 3"),
    (facts(replace(PF, iommu=False)), "behind no IOMMU", "intel_iommu=on"),
    (Facts(state={NIC.key: NIC}), "ens1 cannot be split into VFs", "SR-IOV may be switched off"),
    (replace(facts(), features={"iommu": "", "vfio": "no vfio"}), "no vfio", "full kernel"),
])
def test_a_host_that_cannot(seen: Facts, said: str, todo: str) -> None:
    with pytest.raises(HostCannot) as cannot:
        compiled(text(), seen)
    assert said in str(cannot.value) and "t.yaml:2:" in str(cannot.value) and todo in cannot.value.hint


def test_no_vfs_and_none_asked_for() -> None:
    with pytest.raises(HostCannot, match="ens1 has no VFs yet"):
        compiled(text(""), facts())


def test_a_group_with_others_is_refused() -> None:
    with pytest.raises(HostCannot, match=r"shares its IOMMU group with 0000:81:11.0 \(igb\)"):
        compiled(text(guests="a: {nics: [{network: n, guard: mac, vf: 2}]}"), facts(*split(4, vf(2, group=("0000:81:11.0 (igb)",)))))


def test_a_declared_vf_that_somebody_uses() -> None:
    with pytest.raises(ConflictError, match="a NIC has VF 2 "):
        compiled(text(guests="a: {nics: [{network: n, guard: mac, vf: 2}]}"), facts(*split(4, vf(2, holder="its NIC v2 is up"))))


# -- files -----------------------------------------------------------------------------------------

def test_notes_are_of_this_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sriov.json"
    assert notebook.read(path) == notebook.Notes()
    with notebook.noting(path) as notes:
        notes.made["0000:81:00.0"] = 4
        notes.bound.add("0000:81:10.1")
        notes.quiet.add("0000:81:00.0")
    assert notebook.read(path) == notes
    monkeypatch.setattr(notebook, "boot_id", lambda: "another")
    assert notebook.read(path) == notebook.Notes()
    path.write_text("{broken")
    assert notebook.read(path) == notebook.Notes()


def test_groups_and_holders_in_sysfs(tmp_path: Path) -> None:
    def device(name: str, driver: str, kind: str = "0x020000") -> Path:
        made = tmp_path / "devices" / name
        (made / "net").mkdir(parents=True)
        (made / "class").write_text(f"{kind}\n")
        (tmp_path / "drivers" / driver).mkdir(parents=True, exist_ok=True)
        if driver:
            (made / "driver").symlink_to(tmp_path / "drivers" / driver)
        (tmp_path / "groups/7/devices").mkdir(parents=True, exist_ok=True)
        (made / "iommu_group").symlink_to(tmp_path / "groups/7")
        (tmp_path / "groups/7/devices" / name).symlink_to(made)
        return made

    ours = device("0000:81:10.0", VFIO)
    assert sysfs.strangers(ours) == () and sysfs.group_of(ours) == "7"
    device("0000:81:10.1", VFIO), device("0000:80:01.0", "pcieport", "0x060400"), device("0000:81:10.3", "")
    assert sysfs.strangers(ours) == ()
    other = device("0000:81:10.2", "igbvf")
    assert sysfs.strangers(ours) == ("0000:81:10.2 (igbvf)",)
    assert sysfs.holder_of(other, False) == "bound to igbvf, with no NIC in this network namespace"
    nic = other / "net/v2"
    nic.mkdir()
    (nic / "flags").write_text("0x1002\n")
    assert sysfs.holder_of(other, False) == ""
    (nic / "flags").write_text("0x1003\n")
    assert sysfs.holder_of(other, False) == "its NIC v2 is up"
    (nic / "master").symlink_to(tmp_path / "drivers/igbvf")
    assert sysfs.holder_of(other, False) == "its NIC v2 belongs to igbvf"
    assert sysfs.holder_of(ours, False) == "bound to vfio-pci, not by kvmnet" and sysfs.holder_of(ours, True) == ""


def test_the_commands_are_those_of_a_new_vf(tmp_path: Path) -> None:
    made = compiled(text(", vfs: 1"), facts())
    pool, given = wanted(made, "vf-pool")["ens1"], wanted(made, "vf")["ens1 0"]
    driver = SriovDriver(Paths(tmp_path, tmp_path))
    shown = [(" ".join(c.argv), c.stdin) for c in driver.commands([Create(pool), Create(given)])]
    folder = "/sys/class/net/ens1/device"
    assert shown == [(f"tee {folder}/sriov_drivers_autoprobe", "0\n"), (f"tee {folder}/sriov_numvfs", "1\n"),
                     ("ip -batch -", f"link set dev ens1 vf 0 mac {given.mac}\nlink set dev ens1 vf 0 vlan 7 qos 0 proto 802.1Q\n"
                      "link set dev ens1 vf 0 spoofchk on\n"),
                     (f"tee {folder}/virtfn0/driver_override", "vfio-pci\n"), ("tee /sys/bus/pci/drivers_probe", "ADDRESS-OF-VF-0\n")]
    assert [" ".join(c.argv) for c in driver.commands([Delete(pool)])] == [f"tee {folder}/sriov_numvfs"]


# -- a NIC of files --------------------------------------------------------------------------------

@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a NIC that can be split, in a /sys of files."""
    folder = tmp_path / "sys/bus/pci/devices/0000:81:00.0"
    (folder / "net/ens1").mkdir(parents=True)
    for name, text in (("sriov_numvfs", "0"), ("sriov_totalvfs", "8"), ("sriov_drivers_autoprobe", "1"), ("numa_node", "1")):
        (folder / name).write_text(f"{text}\n")
    monkeypatch.setattr(sysfs, "SYS", tmp_path / "sys")
    for function in (sysfs.pf_devices, sysfs.device_of, sysfs.vf_device):
        monkeypatch.setattr(function, "__defaults__", (tmp_path / "sys",))
    monkeypatch.setattr(sysfs, "bus_name", lambda dev: "0000:81:00.0" if dev == "ens1" else "")
    return folder


def content(card: Path) -> tuple[str, str]:
    return tuple((card / name).read_text().strip() for name in ("sriov_numvfs", "sriov_drivers_autoprobe"))  # type: ignore[return-value]


def test_no_driver_of_the_host_takes_vfs_of_ours(card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = SriovDriver(Paths(tmp_path, tmp_path))
    monkeypatch.setattr("kvmnet.drivers.sriov.driver.vfs_of", lambda dev: [])
    pool = VfPool(name="ens1", dev="ens1", count=4, made=True)
    driver.apply([Create(pool)], lambda count: None)
    assert content(card) == ("4", "0")
    seen = driver.observe({})
    assert seen.state[Key("vf-pool", "ens1")] == pool and Key("vf-pool", "ens1") in seen.ours
    assert seen.state[Key("pf", "ens1")] == Pf(name="ens1", dev="ens1", total=8, pci="", numa=1, iommu=False)
    (card / "sriov_numvfs").write_text("6\n")
    assert driver.observe({}).ours == set(), "somebody else made others"
    driver.apply([Delete(replace(pool, count=6))], lambda count: None)
    assert content(card) == ("0", "1"), "as it was"
    driver.apply([Create(replace(pool, made=False))], lambda count: None)
    assert content(card) == ("4", "1") and driver.observe({}).ours == set(), "what is given back is not ours"


def test_vfs_that_cannot_be_made_leave_nothing(card: Path, tmp_path: Path) -> None:
    driver = SriovDriver(Paths(tmp_path, tmp_path))
    (card / "sriov_numvfs").unlink()
    (card / "sriov_numvfs").mkdir()
    with pytest.raises(StepFailed, match=r"echo 4 > .*sriov_numvfs: Is a directory"):
        driver.apply([Create(VfPool(name="ens1", dev="ens1", count=4, made=True))], lambda count: None)
    assert (card / "sriov_drivers_autoprobe").read_text().strip() == "1"
    assert notebook.read(tmp_path / "sriov.json") == notebook.Notes()


def test_a_nic_that_is_gone(card: Path, tmp_path: Path) -> None:
    driver = SriovDriver(Paths(tmp_path, tmp_path))
    with pytest.raises(StepFailed, match="ens9 cannot be split into VFs, or is gone"):
        driver.apply([Create(VfPool(name="ens9", dev="ens9", count=4, made=True))], lambda count: None)
    driver.apply([Delete(VfPool(name="ens9", dev="ens9", count=4, made=True))], lambda count: None)
    with pytest.raises(StepFailed, match="there is no such NIC, or it cannot be split"):
        driver.apply([Update(PF, PF)], lambda count: None)


def test_what_a_driver_does_not_do_is_said_in_the_document_s_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(lines: object) -> None:
        raise StepFailed(Key("vf", "ens1 0"), "Operation not supported (ip link set dev ens1 vf 0 spoofchk on)")

    monkeypatch.setattr("kvmnet.drivers.sriov.driver.run_batch", refuse)
    with pytest.raises(StepFailed) as failed:
        run_lines([])
    assert failed.value.hint == "the NIC's driver does not do this to a VF: remove guard: mac (write guard: off)"
