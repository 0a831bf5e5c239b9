"""Documents compiled for one known host, compared with what is kept here.

KVMNET_GOLDEN=write makes the kept files anew; the difference is then read as any other change.
"""
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
import pytest

from kvmnet.cli.plan_text import plan_text
from kvmnet.compile import Compiled, compile_spec
from kvmnet.drivers.kinds import from_json, to_json
from kvmnet.drivers.linux.resources import Address, Link, Route, Sysctl
from kvmnet.drivers.nftables.resources import NftTable
from kvmnet.drivers.sriov.resources import Pf
from kvmnet.engine.plan import Step, apply_to, plan
from kvmnet.engine.resource import Absent, Resource
from kvmnet.facts.model import Facts
from kvmnet.planned import step_json
from kvmnet.policy.host import BASE
from kvmnet.policy.host import NAME as HOST_TABLE
from kvmnet.spec.allocate import allocate
from kvmnet.spec.checks import require
from kvmnet.spec.knobs import KNOBS
from kvmnet.spec.load import load

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DOCUMENTS = {p.stem: p for p in (*sorted((ROOT / "examples").glob("*.yaml")), *sorted(HERE.glob("*.yaml")))}
VARIES = {"guard-keeper": "version", "nft-table": "text"}
"""Settings that follow from the program and not from the document: their own tests look at them."""


def nic(name: str, mtu: int = 1500) -> Link:
    return Link(name=name, type="physical", mtu=mtu, mac=f"52:54:00:00:00:0{name[-1]}", up=True, master="", alias="")


SEEN = {r.key: r for r in (
    nic("eth0"), nic("eth1", 9000), nic("eth2", 9000), nic("eth3", 9000),
    Pf(name="eth3", dev="eth3", total=63, pci="0000:81:00.0", numa=1, iommu=True),
    *(Sysctl(name=KNOBS[name].path, value="1024") for name in load(ROOT / "examples" / "tuning.yaml").spec.tuning),
    Link(name="vmbr0", type="bridge", mtu=1500, mac="52:54:00:00:00:99", up=True, master="", alias=""),
    Address(name="eth0 192.0.2.2/24", dev="eth0", scope="global", label="eth0", broadcast="", peer="", flags=(), dynamic=""),
    Address(name="eth1 172.16.0.5/16", dev="eth1", scope="global", label="eth1", broadcast="", peer="", flags=(), dynamic=""),
    Address(name="eth1 2001:db8:16::5/64", dev="eth1", scope="global", label="", broadcast="", peer="", flags=(), dynamic=""),
    Route(name="default dev eth0", dev="eth0", dst="default", family=4, table="main", metric=0, via="192.0.2.1", src="",
          scope="global", proto="static", flags=(), options=""),
    Route(name="10.20.0.0/16 dev eth1", dev="eth1", dst="10.20.0.0/16", family=4, table="main", metric=0,
          via="172.16.0.1", src="", scope="global", proto="static", flags=(), options=""))}
FACTS = Facts(state=SEEN, cpus=2, resolvers=("192.0.2.53",), users={"root": 0, "libvirt-qemu": 64055},
              features={"ipv6-force-forwarding": "", "vhost-net": ""})


def compiled(path: Path) -> Compiled:
    document = load(path)
    require(document, FACTS)
    return compile_spec(document.spec, FACTS, allocate(document.spec, {}))


def steps_of(made: Compiled) -> tuple[Step, ...]:
    return plan(SEEN, made.wanted, set(), made.borrowed)


def plain(resource: Resource | Absent) -> dict[str, Any]:
    data = to_json(resource)
    setting = VARIES.get(str(data["kind"]), "")
    if data["name"] == HOST_TABLE and isinstance(resource, NftTable):
        data[setting] = [x for x in (resource.text or "").splitlines() if x not in BASE.splitlines()]
    elif setting in data:
        data[setting] = "..."
    return data


def compare(name: str, found: str) -> None:
    kept = HERE / name
    if os.environ.get("KVMNET_GOLDEN") == "write":
        kept.write_text(found, encoding="utf-8")
    assert kept.exists(), f"{name} is not kept yet: KVMNET_GOLDEN=write pytest tests/golden"
    assert found == kept.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_a_document_means(name: str) -> None:
    made = compiled(DOCUMENTS[name])
    data = {"wanted": [plain(r) for _, r in sorted(made.wanted.items())], "borrowed": sorted(map(str, made.borrowed)),
            "notes": made.notes,
            "guests": {g: [to_json(n) for n in nics] for g, nics in sorted(made.guest_nics.items())}}
    compare(f"{name}.json", json.dumps(data, indent=1, sort_keys=True, default=list) + "\n")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_wanted_thing_is_complete_and_survives_json(name: str) -> None:
    """The journal keeps wanted things as JSON: what is read back must be the same thing."""
    made = compiled(DOCUMENTS[name])
    for key, resource in made.wanted.items():
        assert from_json(json.loads(json.dumps(to_json(resource)))) == resource, key


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_plan_carried_out_leaves_nothing_to_do(name: str) -> None:
    made = compiled(DOCUMENTS[name])
    steps = steps_of(made)
    after = apply_to(SEEN, steps)
    assert plan(after, made.wanted, set(made.wanted) - made.borrowed, made.borrowed) == ()
    assert {k: r for k, r in after.items() if k in SEEN and k not in made.borrowed} == \
           {k: r for k, r in SEEN.items() if k not in made.borrowed}


def test_plan_of_the_quickstart() -> None:
    made = compiled(DOCUMENTS["quickstart"])
    steps = steps_of(made)
    compare("quickstart.plan.txt", click.unstyle(plan_text(steps, made.notes)) + "\n")
    data = [step_json(s) for s in steps]
    for step in data:
        if (setting := VARIES.get(step["kind"], "")) in step.get("after", {}):
            step["after"][setting] = "..."
    compare("quickstart.plan.json", json.dumps(data, indent=1, sort_keys=True, default=list) + "\n")
    assert len(steps) == len(made.wanted)
