"""What guests see themselves: the script for a guest's agent, run by a shell on a guest's place."""
from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kvmnet.check.guests import prove_guests
from kvmnet.check.model import Claim, Subject, Verdict
from kvmnet.check.probe import await_addresses
from kvmnet.check.prove import prove
from kvmnet.drivers.nftables.driver import NftablesDriver
from kvmnet.engine.plan import Create
from kvmnet.errors import KvmnetError
from kvmnet.host.paths import Paths
from kvmnet.policy.guard import nic_guard
from lib.applied import Applied, applied
from lib.netns import named_netns, new_netns, sh

pytestmark = pytest.mark.net

DOCUMENT = """
version: 1
uplinks:
  wan: {device: wan0}
networks:
  lan: {mode: nat, uplink: wan, subnet: 10.1.0.0/24, subnet6: "fd00:1::/64"}
vms:
  web1: {nics: [{network: lan}]}
  web2: {nics: [{network: lan}]}
"""


@dataclass(frozen=True)
class Hall:
    """Two shells on the places of web1 and web2."""

    here: Applied
    rooms: dict[str, str]
    tools: Path

    @property
    def subject(self) -> Subject:
        return replace(self.here.subject, running=("web1", "web2"), execute=self.execute)

    def execute(self, name: str, program: Sequence[str] | str, paths: Paths, timeout: float) -> tuple[int, str, str]:
        assert isinstance(program, str)
        done = subprocess.run(["ip", "netns", "exec", self.rooms[name], "busybox", "env", "-i", f"PATH={self.tools}",
                               str(self.tools / "sh"), "-c", program.replace("PATH=$PATH:/sbin:/usr/sbin\n", "")],
                              capture_output=True, text=True, timeout=timeout, check=False)
        return done.returncode, done.stdout, done.stderr

    def claims(self) -> dict[tuple[str, str], Claim]:
        return {(c.subject, c.name): c for c in prove_guests(self.subject)}

    def fallen(self) -> set[tuple[str, str]]:
        return {k for k, c in self.claims().items() if c.verdict is Verdict.FAIL}


@contextmanager
def place(here: Applied, nic: int, stack: ExitStack) -> Iterator[str]:
    """A namespace in the stead of a guest, its port in the stead of the guest's tap."""
    n = here.compiled.segments["lan"].nics[nic]
    with named_netns(f"kvt-g{nic}-{here.upstream[-8:]}") as room:
        sh(f"ip link del {n.tap}; ip link add {n.tap} mtu 1500 type veth peer name eth0 address {n.mac} netns {room}")
        sh(f"ip link set {n.tap} master kvb-lan up; ip -n {room} link set eth0 up;"
           f"ip -n {room} addr add {n.ip}/24 dev eth0; ip -n {room} addr add {n.ip6}/64 dev eth0 nodad;"
           f"ip -n {room} route add default via 10.1.0.1; ip -n {room} -6 route add default via fd00:1::1")
        yield room


@pytest.fixture
def hall(paths: Paths, tmp_path: Path) -> Iterator[Hall]:
    """The guests have busybox, as small guests do, and nothing else."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "sh").symlink_to("/bin/dash")    # busybox's own shell finds its applets without a PATH
    for name in ("ip", "ping", "nslookup", "cat", "grep", "sed", "echo"):
        (tools / name).symlink_to(shutil.which("busybox") or "busybox")
    with new_netns(), applied(DOCUMENT, paths) as here, ExitStack() as stack:
        rooms = {f"web{i + 1}": stack.enter_context(place(here, i, stack)) for i in range(2)}
        await_addresses({"kvb-lan"})
        yield Hall(here, rooms, tools)


def test_what_a_guest_sees(hall: Hall) -> None:
    claims = hall.claims()
    assert {k for k, c in claims.items() if c.verdict is not Verdict.PASS} == set()
    assert {name for subject, name in claims if subject == "web1/nic0"} == {
        "address4", "address6", "gateway4", "gateway6", "outside4", "outside6", "reaches web2 by IPv4", "reaches web2 by IPv6",
        "mtu4", "mtu6", "mtu-outside4", "mtu-outside6", "dns"}
    assert claims["web1/nic0", "dns"].evidence == "web2.lan is 10.1.0.3 by 10.1.0.1"


BROKEN: dict[str, tuple[Callable[[Hall], object], set[str]]] = {
    "no address": (lambda h: sh(f"ip -n {h.rooms['web1']} -4 addr flush dev eth0"),
                   {"address4", "gateway4", "outside4", "mtu4", "dns", "reaches web2 by IPv4"}),
    "small MTU": (lambda h: sh(f"ip -n {h.rooms['web1']} link set eth0 mtu 1400"), {"mtu4", "mtu6", "mtu-outside4", "mtu-outside6"}),
    "uplink down": (lambda h: sh(f"ip -n {h.here.upstream} link set eth0 down"), {"outside4", "outside6"}),
    "peer away": (lambda h: sh(f"ip -n {h.rooms['web2']} link set eth0 down"), {"reaches web2 by IPv4", "reaches web2 by IPv6"}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_each_claim_fails_when_it_is_not_so(hall: Hall, what: str) -> None:
    break_it, wanted = BROKEN[what]
    break_it(hall)
    assert {name for nic, name in hall.fallen() if nic == "web1/nic0"} == wanted


def test_a_guest_without_tools_is_skipped_and_never_passed(hall: Hall) -> None:
    for name in ("ping", "nslookup"):
        (hall.tools / name).unlink()
    claims = hall.claims()
    assert claims["web1/nic0", "gateway4"].verdict is Verdict.SKIP
    assert claims["web1/nic0", "gateway4"].evidence == "the guest has no ping"
    assert claims["web1/nic0", "dns"].verdict is Verdict.SKIP
    assert {name for (_, name), c in claims.items() if c.verdict is Verdict.PASS} == {"address4", "address6"}


def test_isolated_guests_do_not_reach_each_other(hall: Hall) -> None:
    segment = hall.here.compiled.segments["lan"]
    network = segment.network.model_copy(update={"isolated_ports": True})
    subject = replace(hall.subject, segments={"lan": replace(segment, network=network)})
    wrong = {c.name for c in prove_guests(subject) if c.verdict is Verdict.FAIL}
    assert wrong == {*(f"apart from {vm} by IPv{n}" for vm in ("web1", "web2") for n in (4, 6))}
    for nic in segment.nics:
        sh(f"bridge link set dev {nic.tap} isolated on")
    claims = prove_guests(subject)
    assert [c for c in claims if c.verdict is Verdict.FAIL] == []
    assert "does not answer, others do" in next(c.evidence for c in claims if c.name == "apart from web2 by IPv4")


def test_a_guest_that_cannot_be_asked_leaves_the_word_to_the_probes(hall: Hall) -> None:
    def execute(name: str, program: Sequence[str] | str, paths: Paths, timeout: float) -> tuple[int, str, str]:
        if name == "web1":
            raise KvmnetError(f"guest {name}: no agent answers within 20 s")
        return 127, "", "sh: not found"

    report = prove(replace(hall.subject, execute=execute), lambda *_: None)
    asked = {c.subject: c for c in report.claims if c.name == "agent"}
    assert asked.keys() == {"web1/nic0", "web2/nic0"}
    assert all(c.verdict is Verdict.SKIP for c in asked.values())
    assert "no agent answers" in asked["web1/nic0"].evidence and "not found" in asked["web2/nic0"].evidence
    assert any(c.subject == "probe" and c.verdict is Verdict.PASS for c in report.claims)


def test_a_guest_whose_guard_is_wrong_is_noticed(hall: Hall) -> None:
    """Its own frames are dropped: the probes cannot see that, the guest does."""
    tap = hall.here.compiled.segments["lan"].nics[0].tap
    driver = NftablesDriver(hall.here.engine.paths)
    driver.observe({})
    driver.apply([Create(nic_guard(tap, "full", ["02:00:00:00:00:99"], [], bridge="kvb-lan"))], lambda done: None)
    report = prove(hall.subject, lambda *_: None)
    wrong = {(c.subject, c.name) for c in report.claims if c.verdict is Verdict.FAIL}
    assert {("web1/nic0", "gateway4"), ("web1/nic0", "gateway6"), ("web2/nic0", "reaches web1 by IPv4")} <= wrong
    assert not [w for w in wrong if w[0] == "probe"]
