"""One guest with a card of every model: it reaches the host, is changed live, and ends in each way."""
from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from kvmnet.drivers.qemu.arguments import TINY_WORDS
from kvmnet.drivers.qemu.driver import GuestNicDriver
from kvmnet.drivers.qemu.folder import folder
from kvmnet.drivers.qemu.process import OWN_USERS, kill, writers_of
from kvmnet.drivers.qemu.qmp import Monitor
from kvmnet.drivers.qemu.resources import GuestNic, GuestThreads
from kvmnet.drivers.qemu.sockets import connect
from kvmnet.drivers.qemu.threads import ThreadsDriver
from kvmnet.engine.driver import StepFailed
from kvmnet.engine.plan import Create, Delete, Step, Update, plan
from kvmnet.engine.resource import Key, diff
from kvmnet.errors import HostCannot, KvmnetError
from kvmnet.guests.accel import Accel
from kvmnet.guests.image import Image
from kvmnet.guests.launch import Ending, execute, guests, running, start, stop, wait_for_agent
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from kvmnet.host.process import Process, start_time
from kvmnet.spec.cpus import in_turn, joined
from kvmnet.spec.guests import Vm
from lib.fork import die, in_child
from lib.guests import booted
from lib.netns import sh
from lib.qemu import PATIENCE

pytestmark = pytest.mark.guest

TCG = Accel("tcg", "tests")
ALL_ON = ("csum", "guest_csum", "guest_tso4", "guest_tso6", "guest_ufo", "mrg_rxbuf", "tso4", "tso6", "ufo")
MODELS = ("virtio", "virtio-transitional", "e1000e", "e1000", "pcnet", "rtl8139", "vmxnet3")


FIRST, LAST = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))


def vm(disk: Path | None = None) -> Vm:
    return Vm.model_validate({"nics": [{"network": "lan"}], "run": {
        "memory": "384M", "cpus": 2, "append": "kvmnet.dhcp=0", "accel": "tcg", "image": "tiny",
        "disk": str(disk) if disk else None, "nodes": 0, "pin": {"vcpus": [LAST, FIRST], "qemu": FIRST}}})


def nic(name: str, number: int, model: str = "virtio", **settings: object) -> GuestNic:
    virtio = model.startswith("virtio")
    neutral: dict[str, object] = {
        "link": True, "host_mtu": 1500 if virtio else 0, "queues": 1, "rx_ring": 256 if virtio else 0,
        "tx_ring": 256 if virtio else 0, "packed": False, "rss": False, "offloads": tuple(sorted(ALL_ON)) if virtio else (),
        "vhost": False, "bootindex": -1, "pci": ""}
    vm_name = name.partition("/")[0]
    return GuestNic(name=name, vm=vm_name, tap=f"kvt-{vm_name}-{number}", model=model,   # type: ignore[arg-type]
                    mac=f"52:54:00:00:{len(vm_name):02x}:{number:02x}", **(neutral | settings))


CARDS = (
    nic("web/nic0", 0, queues=2, packed=True, rss=True, rx_ring=512, host_mtu=1400, offloads=("csum", "guest_csum", "mrg_rxbuf")),
    *(nic(f"web/nic{i}", i, model) for i, model in enumerate(MODELS[1:], 1)),
    nic("web/nic7", 7, link=False),
    nic("web/nic8", 8, pci="05.0"),
)


def make_tap(card: GuestNic) -> None:
    several = "multi_queue" if (card.queues or 1) > 1 else ""
    sh(f"ip tuntap add {card.tap} mode tap {several}; ip link set {card.tap} master br0 up")


def in_guest(paths: Paths, script: str, name: str = "web") -> str:
    code, out, err = execute(name, script, paths)
    assert code == 0, f"{script}: {code}: {out}{err}"
    return out


def reaches_host(paths: Paths, card: GuestNic) -> None:
    """Ping the bridge through this very card: its address is the guest's only one meanwhile."""
    in_guest(paths, f"""d=$(nic {card.mac}) && ip addr add 10.9.0.2/24 dev $d
        n=0; while ! ping -c1 -W1 -I $d 10.9.0.1 > /dev/null; do n=$((n+1)); [ $n = 15 ] && exit 1; done
        ip addr del 10.9.0.2/24 dev $d""")
    assert (card.mac or "") in sh("ip neigh show 10.9.0.2"), "the answer came through another card"
    sh("ip neigh flush dev br0")


def do(driver: GuestNicDriver, *steps: Step) -> int:
    done: list[int] = []
    driver.apply(steps, done.append)
    return sum(done)


@pytest.fixture(scope="module")
def web(host: Paths) -> Iterator[Paths]:
    for card in CARDS:
        make_tap(card)
    try:
        disk = host.run / "disk.qcow2"
        disk.parent.mkdir(parents=True)
        sh(f"qemu-img create -q -f qcow2 {disk} 4M; chmod 600 {disk}")
        booted("web", lambda: start("web", vm(disk), CARDS, host, TCG, lambda line: None), host)
        yield host
    finally:
        stop("web", host, timeout=0.1)


@pytest.mark.parametrize("card", [*CARDS[:7], CARDS[8]], ids=[*MODELS, "pinned"])
def test_every_model_reaches_the_host(web: Paths, card: GuestNic) -> None:
    reaches_host(web, card)


def test_threads_are_placed_and_let_go(web: Paths) -> None:
    """As the kernel has it, not by our own reading."""
    driver, every = ThreadsDriver(web), joined(os.sched_getaffinity(0))

    def places() -> dict[str, str]:
        main = running(web)["web"].pid
        found = {}
        for task in Path(f"/proc/{main}/task").iterdir():
            with suppress(FileNotFoundError):  # a worker that has just ended
                name = (task / "comm").read_text().strip()
                if name.startswith("CPU ") or task.name == str(main):  # a new worker bears the name of its maker for a moment
                    found[name] = (task / "status").read_text().split("Cpus_allowed_list:")[1].split()[0]
        return found

    first = driver.observe({}).state[Key(GuestThreads.kind, "web")]
    assert first == GuestThreads(name="web", vcpus=in_turn([str(LAST), str(FIRST)]), vhost=(every,), qemu=(str(FIRST),))
    assert sorted(places().values()) == sorted([str(LAST), str(FIRST), str(FIRST)]), places()
    moved = replace(first, vcpus=(str(FIRST),))
    assert [c.argv[:3] for c in driver.commands([Update(first, moved)])] == [("taskset", "-pc", str(FIRST))] * 3
    driver.apply([Update(first, moved)], lambda n: None)
    assert driver.observe({}).state == {moved.key: moved} and set(places().values()) == {str(FIRST)}
    sh(f"taskset -apc {every} {running(web)['web'].pid}")
    assert driver.observe({}).state != {moved.key: moved}, "drift is seen"
    driver.apply([Update(first, moved)], lambda n: None)
    driver.apply([Delete(moved)], lambda n: None)
    assert driver.observe({}).state == {} and set(places().values()) == {every}


def test_its_memory_is_of_the_node_that_was_asked_for(web: Paths) -> None:
    kept = [line for line in Path(f"/proc/{running(web)['web'].pid}/numa_maps").read_text().splitlines() if " bind:" in line]
    assert len(kept) == 1 and " bind:0 " in kept[0], "the guest's memory, and nothing else of QEMU"


def test_the_guest_sees_what_was_asked_for(web: Paths) -> None:
    first = CARDS[0]
    seen = in_guest(web, f"""cd /sys/class/net/$(nic {first.mac}); cat mtu; ls -d queues/rx-* | wc -l
        printf '%s\\n' $(cat device/features | fold -w1)""").split()
    assert seen[:2] == ["1400", "2"]
    bits = seen[2:]
    assert bits[34] == "1", "VIRTIO_F_RING_PACKED"
    assert bits[60] == "1", "VIRTIO_NET_F_RSS"
    assert bits[7] == "0" and bits[11] == "0", "VIRTIO_NET_F_GUEST_TSO4, HOST_TSO4 were turned off"
    assert bits[0] == "1" and bits[15] == "1", "VIRTIO_NET_F_CSUM, MRG_RXBUF stay on"
    assert in_guest(web, f"cat /sys/class/net/$(nic {CARDS[7].mac})/carrier").strip() == "0"
    assert "0000:00:05.0" in in_guest(web, f"readlink -f /sys/class/net/$(nic {CARDS[8].mac})/device")


def test_what_is_observed_is_what_was_wanted(web: Paths) -> None:
    driver = GuestNicDriver(web)
    seen = driver.observe({})
    wanted = {card.key: card for card in CARDS}
    assert {key: diff(seen.state[key], card) for key, card in wanted.items()} == {key: {} for key in wanted}
    assert plan(seen.state, wanted, seen.ours) == ()
    assert seen.ours == set(wanted) and driver.warnings == []


def test_qemu_has_no_privilege(web: Paths) -> None:
    status = dict(line.split(":\t", 1) for line in
                  Path(f"/proc/{running(web)['web'].pid}/status").read_text().splitlines())
    [uid] = set(status["Uid"].split())
    assert int(uid) in OWN_USERS, "its own, not one that other guests have"
    lent = {str(Path(d).stat().st_gid) for d in ("/dev/kvm", "/dev/vhost-net") if Path(d).exists()} - {"0"}
    assert "0" not in status["Gid"].split() and set(status["Groups"].split()) <= lent
    assert status["Seccomp"] == "2" and status["NoNewPrivs"] == "1"
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0


def test_nobody_else_may_reach_its_sockets(web: Paths) -> None:
    home = folder(web, "web")
    assert home.path.stat().st_mode & 0o077 == 0
    assert {p.stat().st_mode & 0o077 for p in (home.monitor, home.agent, home.console)} == {0}


@pytest.mark.parametrize("model", MODELS)
def test_cards_are_plugged_and_unplugged_live(web: Paths, model: str) -> None:
    card = nic("web/extra", 20 + MODELS.index(model), model, queues=2 if model == "virtio" else 1)
    make_tap(card)
    driver = GuestNicDriver(web)
    assert do(driver, Create(card)) == 1
    in_guest(web, f"for i in $(seq 400); do nic {card.mac} && exit; usleep 50000; done; exit 1")
    seen = driver.observe({}).state[card.key]
    assert diff(seen, card) == {}
    reaches_host(web, card)
    assert do(driver, Delete(seen)) == 1
    assert card.key not in driver.observe({}).state
    assert execute("web", f"nic {card.mac}", web).code == 1, "the guest still has it"
    sh(f"ip link del {card.tap}")


def test_carrier_changes_live(web: Paths) -> None:
    card, driver = CARDS[1], GuestNicDriver(web)
    carrier = f"cat /sys/class/net/$(nic {card.mac})/carrier"
    assert in_guest(web, carrier).strip() == "1"
    do(driver, Update(card, replace(card, link=False)))
    assert in_guest(web, f"for i in $(seq 50); do [ $({carrier}) = 0 ] && exit; usleep 20000; done; exit 1") == ""
    assert driver.observe({}).state[card.key].link is False      # type: ignore[attr-defined]
    do(driver, Update(replace(card, link=False), card))
    reaches_host(web, card)


def test_a_card_without_its_tap_fails_and_leaves_nothing(web: Paths) -> None:
    driver = GuestNicDriver(web)
    before = driver.observe({}).state
    with pytest.raises(StepFailed, match="no tap kvt-web-99"):
        do(driver, Create(nic("web/lost", 99)))
    taken = replace(nic("web/taken", 98), tap=CARDS[1].tap)
    with pytest.raises(StepFailed, match="opened by another program"):
        do(driver, Create(taken))
    assert driver.observe({}).state == before
    assert "kvt-web-99" not in sh("ip -br link")


def test_a_card_that_qemu_refuses_leaves_no_backend(web: Paths) -> None:
    bad = nic("web/bad", 60, tx_ring=1000)
    make_tap(bad)
    driver = GuestNicDriver(web)
    with pytest.raises(StepFailed, match="tx_queue_size"):
        do(driver, Create(bad))
    good = replace(bad, tx_ring=256)
    do(driver, Create(good))       # neither its id nor its tap is taken
    do(driver, Delete(good))


def test_a_guest_that_does_not_let_go_fails_the_step(web: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvmnet.drivers.qemu.driver.UNPLUG_TIMEOUT", 0.4)
    monkeypatch.setattr("kvmnet.drivers.qemu.driver.UNPLUG_RETRY", 0.2)
    card, driver = nic("web/slow", 61), GuestNicDriver(web)
    make_tap(card)
    do(driver, Create(card))
    in_guest(web, f"for i in $(seq 400); do nic {card.mac} && exit; usleep 50000; done; exit 1")
    monitor = folder(web, "web").monitor
    with Monitor.open(monitor) as line:
        line.execute("stop")
    with pytest.raises(StepFailed, match="did not let go of the card") as caught:
        do(driver, Delete(card))
    assert "hung" in caught.value.hint
    assert card.key in driver.observe({}).state
    with Monitor.open(monitor) as line:
        line.execute("cont")
        line.wait_event("DEVICE_DELETED", 30, device="kvmnet-slow")
    assert card.key not in driver.observe({}).state
    do(driver, Create(card))       # the backend that was left behind is in nobody's way
    monkeypatch.undo()
    in_guest(web, f"for i in $(seq 400); do nic {card.mac} && exit; usleep 50000; done; exit 1")
    do(driver, Delete(card))


def test_the_disk_is_writable_though_it_is_root_s(web: Paths) -> None:
    assert in_guest(web, "cat /sys/block/vda/size").strip() == str(4 * 2**20 // 512)
    in_guest(web, "echo written > /dev/vda && sync")
    disk = web.run / "disk.qcow2"
    assert b"written" in disk.read_bytes() and disk.stat().st_mode & 0o077 == 0


def test_cards_that_are_not_ours_are_left_alone(web: Paths) -> None:
    with Monitor.open(folder(web, "web").monitor) as monitor:
        monitor.execute("netdev_add", {"type": "hubport", "id": "theirs", "hubid": 1})
        monitor.execute("device_add", {"driver": "e1000", "id": "theirs", "netdev": "theirs", "bus": "kvmnet-pci",
                                       "romfile": ""})
    assert all("theirs" not in key.name for key in GuestNicDriver(web).observe({}).state)


def test_programs_run_with_their_outputs_apart(web: Paths) -> None:
    assert execute("web", ["/bin/sh", "-c", "echo out; echo err >&2; exit 3"], web) == (3, "out\n", "err\n")
    with pytest.raises(KvmnetError, match="still runs in the guest"):
        execute("web", "sleep 60", web, timeout=3)
    assert execute("web", "hostname", web).out == "web\n"       # the cut-off conversation leaves no trace


def test_console_is_logged_and_answers(web: Paths) -> None:
    home = folder(web, "web")
    assert "kvmnet guest web is up" in home.console_log.read_text(errors="replace")
    with connect(home.console) as line:
        line.sendall(b"\necho $((6*7))-typed\n")
        wait_until(lambda: "42-typed" in home.console_log.read_text(errors="replace"), 20)


def test_a_monitor_that_hangs_is_reported_in_time(web: Paths) -> None:
    """Another client holds the monitor: the last known NICs are shown, changes fail clearly."""
    holder = Monitor.open(folder(web, "web").monitor)
    driver = GuestNicDriver(web)
    try:
        seen = driver.observe({})
    finally:
        holder.stream.close()
    assert set(seen.state) == {c.key for c in CARDS}
    assert len(driver.warnings) == 1 and "guest web" in driver.warnings[0]
    assert driver.observe({}).state.keys() == seen.state.keys() and not driver.warnings


# Last in the file: these end the guest or start others ------------------------------------------

def test_starting_twice_is_the_same_guest(web: Paths) -> None:
    before = running(web)["web"]
    assert start("web", vm(), CARDS, web, TCG, lambda line: None) == before
    assert before.nics == tuple(c.name.partition("/")[2] for c in CARDS)


def test_stop_shuts_the_guest_down(web: Paths) -> None:
    assert stop("web", web) == Ending.SHUT_DOWN
    assert running(web) == {} == guests(web)
    assert stop("web", web) == Ending.NOT_RUNNING
    assert "Power down" in folder(web, "web").console_log.read_text(errors="replace")
    with pytest.raises(KvmnetError, match="does not run"):
        execute("web", "true", web)
    with pytest.raises(StepFailed, match="does not run"):
        do(GuestNicDriver(web), Create(CARDS[1]))


def test_a_killed_qemu_is_noticed_and_can_be_started_again(host: Paths) -> None:
    card = nic("db/nic0", 0)
    make_tap(card)
    pid = start("db", vm(), [card], host, TCG, lambda line: None).pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: "db" not in running(host), 20)
    status = guests(host)["db"]
    assert not status.alive and status.reason
    assert GuestNicDriver(host).observe({}).state == {}
    with pytest.raises(KvmnetError, match="does not run: its QEMU is gone"):
        execute("db", "true", host)
    again = start("db", vm(), [card], host, TCG, lambda line: None)
    assert again.alive and again.pid != pid
    kill(Process(pid, 1))                      # a reused pid is not ours: nothing happens
    assert stop("db", host, timeout=0.1) in (Ending.QUIT, Ending.KILLED)     # it still boots: no agent


def test_a_start_that_was_cut_short_is_made_good(host: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the process file, and killed before the guest was let run."""
    card = nic("cut/nic0", 0)
    make_tap(card)
    home = folder(host, "cut")
    for point in ("kvmnet.drivers.qemu.folder.GuestFolder.save_process", "kvmnet.guests.launch.release"):
        with monkeypatch.context() as patch:
            patch.setattr(point, die)
            assert in_child(lambda: start("cut", vm(), [card], host, TCG, lambda line: None)) == -signal.SIGKILL
        (left,) = writers_of(home.errors)
        assert start("cut", vm(), [card], host, TCG, lambda line: None).pid != left
        assert start_time(left) is None, "the QEMU of the first start is still there"
        assert stop("cut", host, timeout=0.1) in (Ending.QUIT, Ending.KILLED)


def test_an_interrupted_start_leaves_nothing(host: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    card = nic("int/nic0", 0)
    make_tap(card)

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kvmnet.guests.launch.release", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start("int", vm(), [card], host, TCG, lambda line: None)
    assert writers_of(folder(host, "int").errors) == [] and "int" not in guests(host)


def test_files_that_only_root_may_read_are_booted(host: Paths, tiny: Image, tmp_path: Path) -> None:
    for file in (tiny.kernel, tiny.initrd):
        shutil.copy(file, tmp_path)
        (tmp_path / file.name).chmod(0o600)
    run = {"kernel": str(tmp_path / "kernel"), "initrd": str(tmp_path / "initrd"), "append": TINY_WORDS,
           "memory": "256M"}
    make_tap(nic("own/nic0", 0))
    try:
        start("own", Vm.model_validate({"nics": [{"network": "lan"}], "run": run}), [nic("own/nic0", 0)], host, TCG,
              lambda line: None)
        wait_for_agent("own", host, PATIENCE)
    finally:
        stop("own", host, 0.1)


def test_what_cannot_start_says_why_and_leaves_nothing(host: Paths) -> None:
    card = nic("bad/nic0", 0, rx_ring=777)
    make_tap(card)
    with pytest.raises(HostCannot, match="rx_queue_size"):
        start("bad", vm(), [card], host, TCG, lambda line: None)
    assert "bad" not in guests(host)
    with pytest.raises(HostCannot, match="no tap kvt-bad-5"):
        start("bad", vm(), [nic("bad/nic0", 5)], host, TCG, lambda line: None)
    missing = Vm.model_validate({"nics": [{"network": "lan"}], "run": {"kernel": "/nonexistent"}})
    with pytest.raises(HostCannot, match="/nonexistent"):
        start("bad", missing, [nic("bad/nic0", 0)], host, TCG, lambda line: None)
    with pytest.raises(HostCannot, match="KVM is wanted, but"):
        wants = Vm.model_validate({"nics": [{"network": "lan"}], "run": {"accel": "kvm"}})
        start("bad", wants, [], host, Accel("tcg", "there is no /dev/kvm"), lambda line: None)
    assert socket.if_nametoindex("kvt-bad-0")
