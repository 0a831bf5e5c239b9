"""Kernel settings in the document, on a real kernel: borrowed, seen to drift, and given back."""
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmnet.errors import HostCannot
from lib.netns import sh
from lib.world import World, world

pytestmark = pytest.mark.net

PROBING, WINDOW = "net.ipv4.tcp_mtu_probing", "net.ipv4.tcp_rmem"
HEAD = "version: 1\nnetworks: {lan: {mode: isolated, subnet: 10.7.0.0/24}}\n"


@pytest.fixture(scope="module")
def host() -> Iterator[World]:
    with world() as made:
        yield made


def value(name: str) -> str:
    return " ".join(sh(f"sysctl -n {name}").split())


def test_borrowed_mended_and_given_back(host: World) -> None:
    before = value(PROBING), value(WINDOW)
    assert before != ("2", "4096 90000 5000000")
    host.apply(f"{HEAD}tuning: {{{PROBING}: 2, {WINDOW}: 4096   90000 5000000}}\n")
    assert (value(PROBING), value(WINDOW)) == ("2", "4096 90000 5000000")
    assert host.drift() == []
    sh(f"sysctl -qw {PROBING}=0")
    assert ["net/ipv4/tcp_mtu_probing" in line for line in host.drift()] == [True]
    host.apply(f"{HEAD}tuning: {{{WINDOW}: 4096 90000 6000000}}\n")
    assert (value(PROBING), value(WINDOW)) == (before[0], "4096 90000 6000000"), "what is not claimed any more is as it was"
    host.host.apply(host.host.plan_destroy())
    assert (value(PROBING), value(WINDOW)) == before


def test_what_the_machine_keeps_for_itself_is_refused_before_anything_is_changed(host: World) -> None:
    """The namespace has no net.core.netdev_budget."""
    with pytest.raises(HostCannot, match=r"tuning\.net\.core\.netdev_budget: this host has no such setting"):
        host.plan(f"{HEAD}tuning: {{net.core.netdev_budget: 600}}\n")


def test_the_command_proposes_and_its_part_of_a_document_is_applied(host: World) -> None:
    shown = host.cli("tune", "--json", "--profile", "throughput")
    assert shown.returncode == 0, shown.stderr
    found = {p["name"]: p for p in json.loads(shown.stdout)["proposals"]}
    assert found[f"tuning.{PROBING}"]["now"] == "0" and found["tuning.net.core.netdev_budget"]["lacking"] == "not in this kernel"
    part = host.cli("tune", "--yaml").stdout
    assert f"  {PROBING}: 1\n" in part and "netdev_budget" not in part
    file = Path(host.write(HEAD, "written.yaml"))
    told = host.cli("tune", str(file), "--write")
    assert told.returncode == 0 and "kvmnet rollback takes it back" in told.stderr, told.stderr
    assert file.read_text() == f"{HEAD}\n{part}", "what it prints is what it writes"
    host.apply(file.read_text())
    assert value(PROBING) == "1" and host.drift() == []
    again = json.loads(host.cli("tune", "--json").stdout)["proposals"]
    assert [p["name"] for p in again if not p["lacking"]] == []
    host.host.apply(host.host.plan_destroy())
    assert value(PROBING) == "0"
