"""The process: death, half-done work, conflicts, and the state that observe reports."""
from __future__ import annotations

import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kvmnet.drivers.dnsmasq import driver as subject
from kvmnet.drivers.dnsmasq.driver import DnsmasqDriver
from kvmnet.drivers.dnsmasq.resources import DnsmasqServer, Reservation
from kvmnet.engine.driver import StepFailed
from kvmnet.engine.plan import Create, Delete, Update, apply_to, before_image, plan
from kvmnet.engine.resource import Key, Resource
from kvmnet.host.clock import wait_until
from lib.dhcp import client
from lib.dhcp6 import Client6, duid_uuid, solicit_router
from lib.dns import Answer, ask
from lib.dnsmasq import apply, make_bridge, nic, pid_of, segment, wanted
from lib.netns import inside, new_netns, sh

pytestmark = pytest.mark.daemon
MAC, OTHER = "52:54:00:00:00:01", "52:54:00:00:00:02"
SERVER = Key("dnsmasq", "lan")


def running(driver: DnsmasqDriver) -> bool | None:
    server = driver.observe({}).state[SERVER]
    assert isinstance(server, DnsmasqServer)
    return server.running


def test_apply_twice_and_destroy(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1")])
    make_bridge(lan)
    assert {type(s) for s in apply(driver, wanted(lan))} == {Create}
    pid = pid_of(driver, "lan")
    assert apply(driver, wanted(lan)) == ()
    assert pid_of(driver, "lan") == pid
    apply(driver, {})
    assert not Path(f"/proc/{pid}").exists() or subject.process.conf_of(pid) == ""
    assert not driver.paths.dnsmasq("lan").exists()
    assert driver.observe({}).state == {}


def test_killed_process_is_seen_and_healed(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1")])
    make_bridge(lan)
    apply(driver, wanted(lan))
    os.kill(pid_of(driver, "lan"), signal.SIGKILL)
    wait_until(lambda: pid_of(driver, "lan") == 0, 20)
    assert running(driver) is False
    [step] = apply(driver, wanted(lan))
    assert isinstance(step, Update) and step.key == SERVER
    assert ask("10.1.0.1", "web1.lan") is not None


def test_lost_pid_file(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1")])
    make_bridge(lan)
    apply(driver, wanted(lan))
    pid = pid_of(driver, "lan")
    driver.files("lan").pid.unlink()
    assert (pid_of(driver, "lan"), running(driver)) == (pid, True)


def test_process_that_does_not_end_by_itself(driver: DnsmasqDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject.process, "PATIENCE", 0.3)
    lan = segment([nic(MAC, "10.1.0.10", "web1")])
    make_bridge(lan)
    apply(driver, wanted(lan))
    pid = pid_of(driver, "lan")
    os.kill(pid, signal.SIGSTOP)
    apply(driver, {})
    wait_until(lambda: subject.process.conf_of(pid) == "", 20)


def test_pid_of_another_process_is_not_ours(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1")])
    make_bridge(lan)
    apply(driver, wanted(lan))
    pid = pid_of(driver, "lan")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid_of(driver, "lan") == 0, 20)
    driver.files("lan").pid.write_text(str(os.getpid()))
    assert running(driver) is False
    apply(driver, {})


def test_process_in_another_namespace_is_not_ours(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1")])
    make_bridge(lan)
    apply(driver, wanted(lan))
    with new_netns():
        assert running(driver) is False
    assert running(driver) is True


def test_crash_between_file_and_reload(driver: DnsmasqDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1")])
    make_bridge(lan)
    apply(driver, wanted(lan))
    pid = pid_of(driver, "lan")
    want = wanted(segment([nic(MAC, "10.1.0.10", "web1"), nic(OTHER, "10.1.0.11", "web2")]))
    with monkeypatch.context() as patch:
        patch.setattr(subject.process, "reload", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            apply(driver, want)
    assert running(driver) is False
    [step] = apply(driver, want)
    assert isinstance(step, Update)
    assert pid_of(driver, "lan") == pid
    with client(lan.bridge, OTHER) as guest:
        assert guest.lease4()["ip"] == "10.1.0.11"


def test_rollback_by_the_before_image(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1")])
    make_bridge(lan)
    apply(driver, wanted(lan))
    before = driver.observe({})
    want = wanted(segment([nic(OTHER, "10.1.0.11", "web2")], dhcp={"ntp": ["10.1.0.3"]}))
    steps = plan(before.state, want, before.ours)
    driver.apply(steps, lambda done: None)
    image = before_image(before.state, steps, before.ours)
    now = driver.observe(image)
    driver.apply(plan(now.state, image, now.ours), lambda done: None)
    assert driver.observe({}).state == before.state


def test_steps_may_come_one_by_one(driver: DnsmasqDriver) -> None:
    """Other drivers' steps can stand between a server and its reservations."""
    lan = segment([nic(MAC, "10.1.0.10", "web1"), nic(OTHER, "10.1.0.11", "web2")])
    make_bridge(lan)
    for want in (wanted(lan), wanted(segment([nic(MAC, "10.1.0.12", "web1")], dhcp={"ntp": ["10.1.0.3"]})), {}):
        seen = driver.observe(want)
        for step in plan(seen.state, want, seen.ours):
            driver.apply([step], lambda done: None)
        assert driver.observe(want).state == want


@pytest.mark.parametrize("kind", (socket.SOCK_DGRAM, socket.SOCK_STREAM))
def test_taken_port_names_its_holder(driver: DnsmasqDriver, kind: socket.SocketKind) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1")])
    make_bridge(lan)
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind(("0.0.0.0", 53))
        if kind == socket.SOCK_STREAM:
            other.listen()
        with pytest.raises(StepFailed) as failed:
            apply(driver, wanted(lan))
    assert failed.value.key == SERVER
    assert "10.1.0.1: Address already in use" in failed.value.detail
    name = Path("/proc/self/comm").read_text().strip()
    assert f"{name} (pid {os.getpid()}) holds" in failed.value.hint and "0.0.0.0 port 53" in failed.value.hint
    apply(driver, wanted(lan))


def test_taken_dhcp_port_names_its_holder(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1")])
    make_bridge(lan)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", 67))
        with pytest.raises(StepFailed) as failed:
            apply(driver, wanted(lan))
    assert "Address already in use" in failed.value.detail and "port 67" in failed.value.hint


def test_bad_option_is_quoted(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1")], dhcp={"options": {"nonsense": "1"}})
    make_bridge(lan)
    with pytest.raises(StepFailed, match=r"dhcp-option=option:nonsense,1"):
        apply(driver, wanted(lan))
    assert running(driver) is False
    apply(driver, {})


def test_unreachable_run_directory(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1")])
    make_bridge(lan)
    driver.paths.run.chmod(0o700)
    with pytest.raises(StepFailed) as failed:
        apply(driver, wanted(lan))
    assert f"chmod o+x {driver.paths.run}" in failed.value.hint


def test_relative_run_directory(driver: DnsmasqDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(driver.paths.run)
    here = DnsmasqDriver(replace(driver.paths, run=Path()))
    make_bridge(segment())
    apply(here, wanted(segment([nic(MAC, "10.1.0.10", "web1")])))
    apply(here, wanted(segment([nic(MAC, "10.1.0.11", "web1")])))
    assert ask("10.1.0.1", "web1.lan") == Answer(0, ["10.1.0.11"])


def test_runs_without_root(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1")])
    make_bridge(lan)
    apply(driver, wanted(lan))
    status = Path(f"/proc/{pid_of(driver, 'lan')}/status").read_text()
    uid = subject.process.service_user().pw_uid
    assert uid != 0 and f"Uid:\t{uid}\t{uid}" in status


def test_log_is_bounded(driver: DnsmasqDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past its limit the log does not grow, the server lives on, and the next reload empties it."""
    monkeypatch.setattr(subject.process, "LOG_LIMIT", 4096)
    lan = segment([nic(MAC, "10.1.0.10", "web1")])
    make_bridge(lan)
    apply(driver, wanted(lan))
    pid, log = pid_of(driver, "lan"), driver.files("lan").log
    with client(lan.bridge, MAC) as guest:
        for _ in range(40):
            if log.stat().st_size >= 8192:
                break
            guest.lease4()
        assert log.stat().st_size == 8192
        assert guest.lease4()["ip"] == "10.1.0.10"
        apply(driver, wanted(segment([nic(MAC, "10.1.0.12", "web1")])))
        assert (log.stat().st_size < 4096, pid_of(driver, "lan")) == (True, pid)
        assert guest.lease4()["ip"] == "10.1.0.12"


def test_thousand_reservations(driver: DnsmasqDriver) -> None:
    nics = [nic(f"52:54:00:00:{i // 256:02x}:{i % 256:02x}", f"10.1.{1 + i // 250}.{1 + i % 250}", f"vm{i}") for i in range(1000)]
    small, large = (segment(n, subnet="10.1.0.0/16") for n in ((), nics))
    make_bridge(small)
    apply(driver, wanted(small))
    pid = pid_of(driver, "lan")
    want = wanted(large)
    seen = driver.observe(want)
    steps = plan(seen.state, want, seen.ours)
    start = time.process_time()    # a busy machine takes its time
    driver.apply(steps, lambda done: None)
    took = time.process_time() - start
    assert (len(steps), pid_of(driver, "lan")) == (1000, pid)
    assert driver.observe(want).state == want
    assert took < 0.5, f"{took:.3f} s"
    print(f"1,000 reservations in {took:.3f} s")


def test_more_leases_than_dnsmasq_lends_by_default(driver: DnsmasqDriver) -> None:
    nics = [nic(f"52:54:00:00:{i // 256:02x}:{i % 256:02x}", f"10.1.{1 + i // 250}.{1 + i % 250}", f"vm{i}") for i in range(1100)]
    lan = segment(nics, subnet="10.1.0.0/16")
    make_bridge(lan)
    apply(driver, wanted(lan))
    apply(driver, {SERVER: replace(wanted(lan)[SERVER], running=False),
                   **{k: r for k, r in wanted(lan).items() if k != SERVER}})
    held = "".join(f"2000000000 {n.mac} {n.ip} {n.hostname} *\n" for n in nics[1:])
    driver.files("lan").leases.write_text(held)
    apply(driver, wanted(lan))
    assert len(subject.leases(driver.paths, "lan")) == 1099
    with client(lan.bridge, nics[0].mac) as guest:
        assert guest.lease4()["ip"] == nics[0].ip


states = st.dictionaries(
    st.integers(1, 6),
    st.tuples(st.integers(2, 9), st.sampled_from(("", "fd00:1::a", "fd00:1::b")), st.sampled_from(("", "web", "db")),
              st.sampled_from(((), ("mtu1400",), ("mtu1300", "mtu1400")))),
    max_size=5)


@settings(max_examples=25, deadline=None, phases=(Phase.reuse, Phase.generate),
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sequence=st.lists(states, min_size=1, max_size=4))
def test_any_sequence_of_reservations(
        driver: DnsmasqDriver, sequence: list[dict[int, tuple[int, str, str, tuple[str, ...]]]]) -> None:
    """Whatever came before, what is wanted is what is seen, and one process serves it all."""
    lan = segment([], subnet="10.1.0.0/24", subnet6="fd00:1::/64")
    if lan.bridge not in sh("ip -br link"):
        make_bridge(lan)
    base = wanted(lan)
    apply(driver, base)
    pid = pid_of(driver, "lan")
    for state in sequence:
        want: dict[Key, Resource] = dict(base)
        for number, (last, ip6, hostname, tags) in state.items():
            one = Reservation(name=f"lan 52:54:00:00:00:{number:02x}", server="lan", ip=f"10.1.{number}.{last}",
                              ip6=ip6 and f"{ip6}{number}", hostname=hostname and f"{hostname}{number}", tags=tags)
            want[one.key] = one
        seen = driver.observe(want)
        steps = apply(driver, want)
        assert driver.observe(want).state == want == apply_to(seen.state, steps)
        assert not any(isinstance(s, Delete) and s.key == SERVER for s in steps)
    assert pid_of(driver, "lan") == pid
    assert sh(f"grep -c '^52:' {driver.files('lan').hosts}", check=False).strip() == str(len(sequence[-1]))


def test_link_made_anew_by_others(driver: DnsmasqDriver) -> None:
    """The living process serves it: no restart is needed."""
    nics = [nic(MAC, "10.1.0.10", "web1", ip6="fd00:1::10")]
    lan = segment(nics, subnet="10.1.0.0/24", subnet6="fd00:1::/64")
    make_bridge(lan)
    apply(driver, wanted(lan))
    pid = pid_of(driver, "lan")
    sh(f"ip link del {lan.bridge}")
    make_bridge(lan)
    assert apply(driver, wanted(lan)) == ()
    with client(lan.bridge, MAC) as guest:
        assert guest.lease4()["ip"] == "10.1.0.10"
        with inside(guest.netns), Client6(duid_uuid(b"\x11")) as six:
            reply, advert = six.lease(), solicit_router()
    assert reply and reply.addresses == ["fd00:1::10"] and advert
    assert wait_until(lambda: ask("10.1.0.1", "web1.lan", seconds=1), 20) == Answer(0, ["10.1.0.10"])
    assert pid_of(driver, "lan") == pid


@pytest.mark.parametrize("name", ("conf", "names", "hosts"))
def test_files_changed_by_others(driver: DnsmasqDriver, name: str) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1")])
    make_bridge(lan)
    apply(driver, wanted(lan))
    file = driver.paths.dnsmasq("lan") / name
    text = file.read_text()
    file.write_text(text + {"conf": "log-queries\n", "names": "10.1.0.66 evil\n", "hosts": f"{OTHER},10.1.0.66\n"}[name])
    assert running(driver) is False
    assert apply(driver, wanted(lan))
    assert file.read_text() == text


def test_stock_dnsmasq_beside_ours(driver: DnsmasqDriver, tmp_path: Path) -> None:
    """A distribution's dnsmasq listens on every address; told to keep off our links it does not disturb."""
    lan = segment([nic(MAC, "10.1.0.10", "web1")])
    make_bridge(lan)
    argv = f"dnsmasq --conf-file=/dev/null --no-resolv --no-hosts --address=/x.example/192.0.2.7 --pid-file={tmp_path}/pid"
    sh(argv)
    with pytest.raises(StepFailed) as failed:
        apply(driver, wanted(lan))
    pid = (tmp_path / "pid").read_text().strip()
    assert f"dnsmasq (pid {pid}) holds tcp 0.0.0.0 port 53" in failed.value.hint
    os.kill(int(pid), signal.SIGTERM)
    wait_until(lambda: subject.process.conf_of(int(pid)) == "", 20)
    sh(argv + " --bind-interfaces --interface=lo")
    apply(driver, wanted(lan))
    assert (ask("127.0.0.1", "x.example"), ask("10.1.0.1", "web1.lan")) == (Answer(0, ["192.0.2.7"]), Answer(0, ["10.1.0.10"]))


def test_commands_are_what_is_written(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1")])
    make_bridge(lan)
    both = segment([nic(MAC, "10.1.0.10", "web1"), nic(OTHER, "10.1.0.11", "web2")])
    for want, last in ((wanted(lan), "sh"), (wanted(both), "pkill"), ({}, "rm")):
        seen = driver.observe(want)
        steps = plan(seen.state, want, seen.ours)
        commands = driver.commands(steps)
        driver.apply(steps, lambda done: None)
        written = {c.argv[1]: c.stdin for c in commands if c.argv[0] == "tee"}
        assert {name: Path(name).read_text() for name in written} == written
        assert commands[-1].argv[0] == last
        assert {k for c in commands for k in c.keys} == {s.key for s in steps}
    assert not driver.paths.dnsmasq("lan").exists()


def test_address_that_comes_later(driver: DnsmasqDriver) -> None:
    """An address that moves to the bridge from its uplink comes last in a plan."""
    lan = segment([nic(MAC, "10.1.0.10", "web1", ip6="fd00:1::10")], subnet="10.1.0.0/24", subnet6="fd00:1::/64")
    make_bridge(lan)
    sh(f"ip addr del {lan.cidr} dev {lan.bridge}; ip addr del {lan.cidr6} dev {lan.bridge}")
    apply(driver, wanted(lan))
    pid = pid_of(driver, "lan")
    assert ask("10.1.0.1", "web1.lan", seconds=0.2) is None
    sh(f"ip addr add {lan.cidr} dev {lan.bridge}; ip addr add {lan.cidr6} dev {lan.bridge} nodad")
    with client(lan.bridge, MAC) as guest:
        assert guest.lease4()["ip"] == "10.1.0.10"
        with inside(guest.netns), Client6(duid_uuid(b"\x11")) as six:
            reply = six.lease()
    assert reply and reply.addresses == ["fd00:1::10"]
    assert ask("10.1.0.1", "web1.lan") == Answer(0, ["10.1.0.10"])
    assert pid_of(driver, "lan") == pid
