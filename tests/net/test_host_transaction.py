"""The transaction as an operator meets it: the command line as a process of its own, and its exit codes."""
from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from kvmnet.drivers.linux import driver as linux
from kvmnet.drivers.linux.words import Line
from kvmnet.drivers.nftables.driver import NftablesDriver
from kvmnet.drivers.nftables.resources import NicGuard
from kvmnet.engine.driver import Progress, StepFailed
from kvmnet.engine.plan import Step
from kvmnet.errors import ApplyFailed
from kvmnet.host.clock import wait_until
from kvmnet.host.lock import exclusive
from lib.fork import die, in_child
from lib.netns import sh
from lib.world import HOST, OUTSIDE, World, snapshot, unchanged, world

pytestmark = pytest.mark.net

ONE = """
version: 1
uplinks: {wan: {device: eth0}}
networks:
  lan: {mode: nat, uplink: wan, subnet: 192.168.100.0/24}
vms:
  a: {nics: [{network: lan}]}
"""
TWO = """
version: 1
uplinks: {wan: {device: eth0, mtu: 1400}}
networks:
  lan: {mode: nat, uplink: wan, subnet: 192.168.100.0/24, subnet6: "fd00:100::/64"}
  pub: {mode: routed, uplink: wan, subnet: 198.51.100.0/28, proxy: true}
vms:
  a: {nics: [{network: lan}]}
  b: {nics: [{network: pub, model: e1000e}, {network: lan, guard: mac}]}
"""
BRIDGED = """
version: 1
uplinks: {wan: {device: eth0}}
networks:
  lan: {mode: bridge, uplink: wan, subnet: 192.0.2.0/24, gateway: 192.0.2.1}
vms:
  a: {nics: [{network: lan, ip: 192.0.2.50}]}
"""


@pytest.fixture
def net() -> Iterator[World]:
    with world() as made:
        yield made


def code(done: subprocess.CompletedProcess[str], expected: int) -> subprocess.CompletedProcess[str]:
    assert done.returncode == expected, f"exit {done.returncode}: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr + done.stdout
    return done


def test_plan_apply_and_apply_again(net: World) -> None:
    file = net.write(ONE)
    code(net.cli("plan", file), 2)
    assert "kvb-lan" not in sh("ip link"), "a plan changes nothing"
    code(net.cli("apply", "--yes", file), 0)
    assert "Nothing to do" in code(net.cli("plan", file), 0).stdout
    again = json.loads(code(net.cli("apply", "--yes", "--json", file), 0).stdout)
    assert again["outcome"] == "unchanged" and again["changed"] == 0
    assert len(json.loads(net.cli("history", "--json").stdout)) == 1
    code(net.cli("destroy", "--yes"), 0)
    assert "Nothing to do" in code(net.cli("destroy", "--yes"), 0).stderr


def test_without_a_terminal_nothing_is_asked_and_nothing_done(net: World) -> None:
    done = code(net.cli("apply", net.write(ONE)), 64)
    assert "--yes" in done.stderr and "kvb-lan" not in sh("ip link")


def test_an_unconfirmed_change_goes_back_by_itself(net: World) -> None:
    code(net.cli("apply", "--yes", net.write(ONE)), 0)
    before = snapshot()
    done = code(net.cli("apply", "--yes", "--confirm", "8", net.write(TWO)), 0)
    assert "kvmnet confirm" in done.stderr and "kvb-pub" in sh("ip link")
    code(net.cli("apply", "--yes", net.write(ONE)), 12)
    wait_until(lambda: not net.paths.journal.exists(), 20, 0.05)
    unchanged(before)
    rows = json.loads(net.cli("history", "--json").stdout)
    assert [r["status"] for r in rows] == ["rolled-back", "confirmed"] and "not confirmed" in rows[0]["message"]
    code(net.cli("confirm"), 12)


def test_a_confirmed_change_stays_and_an_unconfirmed_one_is_undone_on_request(net: World) -> None:
    code(net.cli("apply", "--yes", "--confirm", "60", net.write(ONE)), 0)
    assert json.loads(code(net.cli("confirm", "--json"), 0).stdout) == {"revision": 1}
    assert not net.paths.journal.exists()
    before = snapshot()
    code(net.cli("apply", "--yes", "--confirm", "60", net.write(TWO)), 0)
    code(net.cli("rollback", "--yes"), 0)
    unchanged(before)


def test_rollback_to_any_revision(net: World) -> None:
    for text in (ONE, BRIDGED, TWO):
        code(net.cli("apply", "--yes", net.write(text)), 0)
    code(net.cli("rollback", "--yes"), 0)
    assert "master kvb-lan" in sh("ip link show eth0")
    code(net.cli("rollback", "--yes", "1"), 0)
    assert net.drift() == [] and "master" not in sh("ip link show eth0")
    done = code(net.cli("rollback", "--yes", "99"), 1)
    assert "99" in done.stderr
    rows = json.loads(net.cli("history", "--json").stdout)
    assert [r["revision"] for r in rows] == [5, 4, 3, 2, 1] and all(r["who"] and r["created"] for r in rows)
    assert rows[-1]["source"].endswith("host.yaml") and rows[-1]["summary"]["create"] > 5


def test_killed_at_any_moment_it_recovers(net: World) -> None:
    """Deaths spread over the run; every recovery brings back the old host or finds the new one."""
    code(net.cli("apply", "--yes", net.write(ONE, "one.yaml")), 0)
    old = snapshot()
    started = time.monotonic()
    code(net.cli("apply", "--yes", net.write(TWO, "two.yaml")), 0)
    took = time.monotonic() - started
    new = snapshot()
    code(net.cli("rollback", "--yes"), 0)
    unchanged(no_macs(old), lambda: no_macs(snapshot()))
    random, ends = Random(7), set()
    for k in range(6):
        process = subprocess.Popen([sys.executable, "-m", "kvmnet.cli.main", "apply", "--yes",
                                    str(net.paths.state.parent / "two.yaml")],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            process.wait(took * (0.1 + 0.15 * k) + random.uniform(0, 0.05))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        code(net.cli("recover"), 0)
        kept = "kvb-pub" in sh("ip link")
        unchanged(no_macs(new) if kept else no_macs(old), lambda: no_macs(snapshot()))
        ends.add(kept)
        if kept:
            code(net.cli("apply", "--yes", net.write(ONE, "one.yaml")), 0)
    assert False in ends
    assert net.drift() == []


def no_macs(shot: dict[str, Any]) -> dict[str, Any]:
    """Without the MACs that the kernel draws for taps."""
    links = json.loads(json.dumps(shot["links"]))
    for link in links:
        if link["ifname"].startswith("kvt-"):
            del link["address"]
    settings = [x for x in shot["forwarding"] if "/kvb-" not in x]  # of bridges of ours, they stay as they were
    return {**shot, "links": links, "forwarding": settings}


def test_a_second_writer_is_refused(net: World) -> None:
    with exclusive(net.paths.lock, "kvmnet apply of somebody else", 0):
        done = code(net.cli("apply", "--yes", net.write(ONE)), 12)
    assert "somebody else" in done.stderr and "kvb-lan" not in sh("ip link")


@pytest.mark.parametrize(("tool", "package"), [("nft", "nftables"), ("dnsmasq", "dnsmasq-base"), ("ip", "iproute2")])
def test_a_missing_tool_is_named_with_its_package(net: World, tool: str, package: str) -> None:
    file = net.write(ONE)
    before = snapshot()
    hidden = "; ".join(f"mount --bind /dev/null {p}" for p in every_place(tool))
    done = subprocess.run(["unshare", "-m", "sh", "-c", f'{hidden}; exec "$@"', "sh", sys.executable, "-m",
                           "kvmnet.cli.main", "apply", "--yes", file], capture_output=True, text=True, check=False)
    code(done, 11)
    assert f"{tool} not found: apt-get install" in done.stderr and package in done.stderr
    unchanged(before)


def test_a_search_path_without_sbin_is_enough(net: World) -> None:
    """Debian's su leaves it so; the tools that kvmnet's own tools start must be found, too."""
    for text in (ONE, TWO):
        code(net.cli("apply", "--yes", net.write(text), path="/usr/local/bin:/usr/bin:/bin"), 0)
    code(net.cli("destroy", "--yes", path="/usr/local/bin:/usr/bin:/bin"), 0)


def every_place(tool: str) -> list[str]:
    path = os.environ["PATH"] + ":/usr/local/sbin:/usr/sbin:/sbin"
    found = [Path(d, tool) for d in path.split(":") if Path(d, tool).exists()]
    return list(dict.fromkeys(str(p.resolve()) for p in found))


def test_a_missing_uplink_is_the_hosts_fault_not_the_documents(net: World) -> None:
    done = code(net.cli("apply", "--yes", net.write(ONE.replace("eth0", "eth7"))), 11)
    assert "eth7" in done.stderr and "eth0" in done.stderr, "and what there is"


def test_an_uplink_that_died_later(net: World) -> None:
    code(net.cli("apply", "--yes", net.write(TWO)), 0)
    sh("ip link del eth0")
    code(net.cli("plan", net.write(TWO)), 11)
    assert "eth0" in code(net.cli("status"), 0).stdout
    code(net.cli("destroy", "--yes"), 0)
    assert "kvb" not in sh("ip link") and "kvmnet" not in sh("nft list tables")


def test_a_saved_plan_is_refused_when_the_host_moved(net: World) -> None:
    saved = str(net.paths.state.parent / "saved.plan")
    code(net.cli("plan", "--out", saved, net.write(TWO)), 2)
    sh("ip link set eth0 mtu 1450")
    done = code(net.cli("apply", "--yes", saved), 12)
    assert "the host changed since" in done.stderr and "link eth0" in done.stderr and "kvb-lan" not in sh("ip link")
    sh("ip link set eth0 mtu 1500")
    code(net.cli("apply", "--yes", saved), 0)
    done = code(net.cli("apply", "--yes", saved), 12)
    code(net.cli("apply", "--yes", net.write("{\"kvmnet-plan\": 1, \"broken", "broken.plan")), 1)


def test_a_full_disk_changes_nothing(net: World) -> None:
    before = snapshot()
    file = net.write(TWO)
    script = ('mkdir -p "$KVMNET_STATE_DIR"; mount -t tmpfs -o size=64k tmpfs "$KVMNET_STATE_DIR"; '
              'dd if=/dev/zero of="$KVMNET_STATE_DIR/full" bs=1k count=100 2>/dev/null; exec "$@"')
    done = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-m", "kvmnet.cli.main", "apply",
                           "--yes", file], capture_output=True, text=True, check=False)
    assert done.returncode not in (0, 2, 14) and "Traceback" not in done.stderr
    assert any(word in done.stderr for word in ("full", "No space left", "disk")), done.stderr
    unchanged(before)
    assert not net.paths.journal.exists()


def test_after_a_restart_boot_applies_the_last_confirmed_revision(net: World) -> None:
    code(net.cli("apply", "--yes", net.write(ONE)), 0)
    mac = allocated(net)
    code(net.cli("apply", "--yes", "--confirm", "600", net.write(TWO)), 0)
    shutil.copytree(net.paths.state, net.paths.state.with_name("kept"))
    kept = net.paths.state.with_name("kept")
    with world() as after:
        shutil.copytree(kept, after.paths.state, dirs_exist_ok=True)
        code(after.cli("boot"), 0)
        assert "kvb-lan" in sh("ip link") and "kvb-pub" not in sh("ip link")
        assert after.drift() == [] and allocated(after) == mac
        rows = json.loads(after.cli("history", "--json").stdout)
        assert [r["status"] for r in rows] == ["confirmed", "rolled-back", "confirmed"]
        assert [r["summary"]["create"] > 0 for r in rows] == [True] * 3
        after.service(after.outside, "outside", 80)
        a = after.guest("a")
        a.lease()
        assert a.tcp(OUTSIDE, 80) == f"outside {HOST}"


def allocated(net: World) -> str:
    document = net.host.current()
    assert document is not None
    _, got = net.host.compile(document, net.host.facts(net.host.engine.observe({}), document))
    return str(sorted(got.items())[0])


def test_boot_on_a_host_without_a_revision_does_nothing(net: World) -> None:
    before = snapshot()
    code(net.cli("boot"), 0)
    unchanged(before)


def test_a_wrong_document_is_told_whole(net: World) -> None:
    wrong = ONE.replace("mode: nat", "mode: natt").replace("network: lan", "network: lam, modle: virtio")
    done = code(net.cli("apply", "--yes", net.write(wrong)), 10)
    assert "nat" in done.stderr and "model" in done.stderr and "host.yaml:5:" in done.stderr
    assert "kvb-lan" not in sh("ip link")
    code(net.cli("plan", "/nonexistent.yaml"), 1)
    code(net.cli("plan", str(net.paths.state.parent)), 1)


GUESTS = 25
MANY = f"""
version: 1
networks:
  lan: {{mode: isolated, subnet: 192.168.100.0/24}}
vms: {{{', '.join(f'g{number}: {{nics: [{{network: lan}}]}}' for number in range(GUESTS))}}}
"""


def test_taps_are_made_before_their_turn_and_go_with_the_change(net: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the steps before; what fails meanwhile, in them or in the taps, and a death, leave none."""
    planned = net.plan(MANY)
    commands = net.host.engine.dispatch.commands(planned.steps)
    at, = (at for at, command in enumerate(commands) if "tuntap" in command.stdin)
    assert [words.split()[:2] for words in commands[at].stdin.splitlines()] == [["tuntap", "add"]] * GUESTS
    assert sum(command.stdin.count("master kvb-lan") for command in commands) == GUESTS
    kinds = [{key.kind for key in command.keys} for command in commands]
    assert "sysctl" in set().union(*kinds[:at]) - set().union(*kinds[at:]) and not any("nic-guard" in kind for kind in kinds[:at])
    guarded, = (command for command, kind in zip(commands, kinds, strict=True) if "nic-guard" in kind)
    assert guarded.argv[0] == "nft" and all(f'"kvt-g{number}-0" . 0x' in guarded.stdin for number in range(GUESTS))
    before, guards, batch = snapshot(), NftablesDriver.begin, linux.run_batch

    def taps() -> int:
        return sh("ip -br link").count("kvt-g")

    def stopped(act: Callable[[], object]) -> Callable[[NftablesDriver, Sequence[Step], Progress], None]:
        """The guards' turn, which comes before that of the taps as ports: all of these are there."""
        def begin(driver: NftablesDriver, steps: Sequence[Step], progress: Progress) -> None:
            if any(step.key.kind == NicGuard.kind for step in steps):
                wait_until(lambda: taps() == GUESTS, 60)
                act()
            guards(driver, steps, progress)
        return begin

    def refuse() -> None:
        raise StepFailed(None, "refused here")

    def refuse_taps(lines: Iterable[Line], tool: str = "ip") -> None:
        held = [*lines]
        batch(held[:3], tool)
        if any("tuntap" in line.words for line in held[3:]):
            raise StepFailed(held[3].key, "no more taps")
        batch(held[3:], tool)
    monkeypatch.setattr(NftablesDriver, "begin", stopped(refuse))
    with pytest.raises(ApplyFailed, match="refused here"):
        net.apply(MANY)
    unchanged(before)
    monkeypatch.setattr(NftablesDriver, "begin", stopped(die))
    assert in_child(lambda: net.apply(MANY)) == -signal.SIGKILL and taps() == GUESTS
    assert net.host.recover().startswith("rolled back")
    unchanged(before)
    monkeypatch.setattr(NftablesDriver, "begin", guards)
    monkeypatch.setattr(linux, "run_batch", refuse_taps)
    with pytest.raises(ApplyFailed, match="no more taps"):
        net.apply(MANY)
    unchanged(before)
    monkeypatch.setattr(linux, "run_batch", batch)
    net.apply(MANY)
    assert net.drift() == [] and taps() == GUESTS and sh("ip -br link show master kvb-lan").count("kvt-g") == GUESTS
    net.destroy()
    unchanged(before)
