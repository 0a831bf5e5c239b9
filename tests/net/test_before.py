"""A document that is in force is not read again, and yet nothing that changed is missed."""
from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmnet.api import Host
from kvmnet.engine.transaction import Outcome
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from lib.netns import sh

pytestmark = pytest.mark.net

DOCUMENT = """\
version: 1
networks:
  lan: {mode: isolated, subnet: 10.77.0.0/24, subnet6: fd77::/64}
vms:
  a: {nics: [{network: lan}]}
  b: {nics: [{network: lan, guard: mac}]}
"""


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with every document that is compiled."""
    calls: list[str] = []
    really = Host.compile
    monkeypatch.setattr(Host, "compile", lambda *args: calls.append("") or really(*args))
    return calls


@pytest.fixture
def file(netns: None, paths: Paths, tmp_path: Path) -> Path:
    made = tmp_path / "kvmnet.yaml"
    made.write_text(DOCUMENT)
    assert Host().apply_file(made).outcome is Outcome.CONFIRMED
    assert Host().apply_file(made).outcome is Outcome.UNCHANGED
    return made


def test_the_third_apply_does_not_read_the_document(file: Path, compiled: list[str]) -> None:
    assert Host().apply_file(file).outcome is Outcome.UNCHANGED
    assert compiled == []
    Host().change(Host().plan_destroy)


def kill_dnsmasq() -> None:
    pid = int((Paths.from_environment().dnsmasq("lan") / "pid").read_text())
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or ") Z " in Path(f"/proc/{pid}/stat").read_text(), 20)


DRIFT: dict[str, Callable[[], object]] = {
    "port leaves": lambda: sh("ip link set kvt-a-0 nomaster"),
    "tap is gone": lambda: sh("ip link del kvt-b-0"),
    "mtu": lambda: sh("ip link set kvb-lan mtu 1400"),
    "address": lambda: sh("ip address del 10.77.0.1/24 dev kvb-lan"),
    "sysctl": lambda: sh("echo 0 > /proc/sys/net/ipv6/conf/kvb-lan/disable_ipv6; "
                         "echo 1 > /proc/sys/net/ipv6/conf/kvb-lan/accept_ra"),
    "element of the guard": lambda: sh("nft flush set bridge kvmnet mac"),
    "rule of the guard": lambda: sh("nft flush chain bridge kvmnet arp_in"),
    "rule of the host's table": lambda: sh("nft add chain inet kvmnet other"),
    "server dies": kill_dnsmasq,
    "reservation": lambda: (Paths.from_environment().dnsmasq("lan") / "hosts").write_text(""),
}


@pytest.mark.parametrize("hand", DRIFT.values(), ids=DRIFT.keys())
def test_what_another_hand_changed_is_repaired(file: Path, hand: Callable[[], object]) -> None:
    hand()
    assert Host().apply_file(file).outcome is Outcome.CONFIRMED
    assert Host().apply_file(file).outcome is Outcome.UNCHANGED
    Host().change(Host().plan_destroy)


def test_another_document_is_read(file: Path, compiled: list[str]) -> None:
    file.write_text(DOCUMENT.replace("guard: mac", "guard: full"))
    assert Host().apply_file(file).outcome is Outcome.CONFIRMED
    assert compiled
    Host().change(Host().plan_destroy)


@pytest.mark.parametrize("change", ["ip link add d0 type veth peer name d1", "ip address add 192.0.2.1/24 dev lo",
                                    "nft add table ip other"])
def test_another_host_has_the_document_read(file: Path, compiled: list[str], change: str) -> None:
    sh(change)
    assert Host().apply_file(file).outcome is Outcome.UNCHANGED
    assert compiled
    Host().change(Host().plan_destroy)


def test_what_was_kept_may_be_anything(file: Path, compiled: list[str]) -> None:
    kept = Paths.from_environment().run / "before"
    text = kept.read_text()
    for wrong in ("", text[:100], text.split("\n")[0] + "\n[]", text.replace('"link"', '"lonk"')):
        kept.write_text(wrong)
        compiled.clear()
        assert Host().apply_file(file).outcome is Outcome.UNCHANGED
        assert compiled
    Host().change(Host().plan_destroy)
