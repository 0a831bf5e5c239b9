"""kvmnet check on real guests: what they see themselves stands beside what the probes show."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kvmnet.check.model import Claim, Subject, Verdict
from kvmnet.check.prove import prove
from kvmnet.guests.accel import Accel
from kvmnet.guests.image import Image
from kvmnet.guests.launch import execute, start, stop, wait_for_agent
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from kvmnet.spec.load import loads
from lib.applied import Applied, applied
from lib.netns import new_netns, sh
from lib.qemu import PATIENCE

pytestmark = pytest.mark.guest

RUN = "{memory: 256M, image: tiny, accel: tcg}"
DOCUMENT = f"""
version: 1
uplinks:
  wan: {{device: wan0}}
networks:
  lan: {{mode: nat, uplink: wan, subnet: 10.1.0.0/24, subnet6: "fd00:1::/64"}}
  iso: {{mode: isolated, subnet: 10.2.0.0/24, mtu: 1400}}
vms:
  web1: {{run: {RUN}, nics: [{{network: lan}}, {{network: iso, model: e1000e}}]}}
  web2: {{run: {RUN}, nics: [{{network: lan, model: e1000e}}, {{network: iso}}]}}
"""


@pytest.fixture(scope="module")
def here(tiny: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Applied]:
    with TemporaryDirectory(prefix="kvmnet-run-") as run, new_netns():
        Path(run).chmod(0o755)    # dnsmasq gives up root and reads its files there again
        yield from guests(Paths(tmp_path_factory.mktemp("check"), Path(run)))


def guests(paths: Paths) -> Iterator[Applied]:
    with applied(DOCUMENT, paths) as found:
        vms = loads(DOCUMENT).spec.vms
        try:
            for name, vm in vms.items():
                start(name, vm, found.compiled.guest_nics[name], paths, Accel("tcg", "tests"), lambda line: None)
            for name in vms:
                wait_for_agent(name, paths, PATIENCE)
                nics = [n for s in found.compiled.segments.values() for n in s.nics if n.vm == name]
                for address in (a for n in nics for a in (n.ip, n.ip6) if a):
                    wait_until(lambda: address in execute(name, "ip -o addr", paths)[1], 20, 0.2)  # noqa: B023
            yield found
        finally:
            for name in vms:
                stop(name, paths, 5)


def subject(here: Applied) -> Subject:
    return replace(here.subject, running=("web1", "web2"), execute=execute)


def claims(here: Applied) -> dict[tuple[str, str, str], Claim]:
    report = prove(subject(here), lambda *_: None)
    return {(c.network, c.subject, c.name): c for c in report.claims}


def test_two_networks_and_two_guests(here: Applied) -> None:
    found = claims(here)
    assert {k: c.evidence for k, c in found.items() if c.verdict is not Verdict.PASS} == {}
    for nic, peer in (("web1/nic0", "web2"), ("web2/nic0", "web1")):
        assert {name for network, by, name in found if (network, by) == ("lan", nic)} == {
            "address4", "address6", "gateway4", "gateway6", "outside4", "outside6", "mtu4", "mtu6", "mtu-outside4",
            "mtu-outside6", "dns",
            f"reaches {peer} by IPv4", f"reaches {peer} by IPv6"}
    assert "1400 bytes" in found["iso", "web1/nic1", "mtu4"].evidence
    assert {k.split()[0] for k in here.left()} <= {"guest-nic"}    # compiled before the guests ran


def test_a_dead_uplink_is_seen_by_guests_and_probes(here: Applied) -> None:
    sh(f"ip -n {here.upstream} link set eth0 down")
    try:
        wrong = {k for k, c in claims(here).items() if c.verdict is Verdict.FAIL}
    finally:
        sh(f"ip -n {here.upstream} link set eth0 up; ip -n {here.upstream} -6 addr replace 2001:db8:1::1/64 dev eth0 nodad")
    assert wrong == {("lan", by, f"outside{n}") for by in ("probe", "web1/nic0", "web2/nic0") for n in (4, 6)}
