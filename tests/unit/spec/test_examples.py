"""Every example, the starter and the generated pages are as good as they say."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvmnet.facts.model import Facts
from kvmnet.spec.allocate import allocate
from kvmnet.spec.checks import require
from kvmnet.spec.docs import doc
from kvmnet.spec.guests import Model
from kvmnet.spec.load import load, loads
from kvmnet.spec.models import Spec
from kvmnet.spec.reference import parts, reference
from kvmnet.spec.schema import schema
from kvmnet.spec.starter import starter

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path) -> None:
    document = load(path)
    require(document, Facts())
    allocations = allocate(document.spec, {})
    assert len(allocations) == len(document.spec.placed) > 0
    assert document.text.startswith("# "), "says what it is for"


def test_quickstart_is_what_the_readme_tells() -> None:
    spec = load(ROOT / "examples" / "quickstart.yaml").spec
    assert (spec.networks["lan"].subnet, spec.networks["lan"].subnet6) == ("192.168.100.0/24", "fd00:100::/64")
    assert [vm.nics[0].model for vm in spec.vms.values()] == [Model.VIRTIO, Model.E1000E]
    assert all(vm.run and vm.run.image == "tiny" for vm in spec.vms.values())


@pytest.mark.parametrize("uplink", [None, "ens18"])
def test_starter(uplink: str | None) -> None:
    document = loads(starter(uplink))
    require(document, Facts())
    assert document.spec.uplinks["wan"].device == (uplink or "eth0")
    assert len(document.spec.vms) == 2


def test_what_the_starter_comments_out_is_right_too() -> None:
    """Every option that stands there as a comment loads when the comment sign is taken away."""
    lines = []
    for line in starter("ens18").splitlines():
        bare = line.lstrip()
        if bare.startswith("# ") and line.startswith(" ") and not bare[2:3].isupper():
            line = line.replace("# ", "", 1)
        lines.append(line)
    document = loads("\n".join(line for line in lines if not line.startswith("  gives") and "prints what" not in line))
    spec = document.spec
    assert set(spec.networks) == {"lan", "office", "lab"}
    assert set(spec.vms) == {"web1", "web2", "db1"}
    assert spec.networks["lan"].forwards[0].to_port == 80
    assert spec.uplinks["wan"].mtu == 9000


def test_reference_is_up_to_date() -> None:
    page = ROOT / "docs" / "reference.md"
    assert page.read_text(encoding="utf-8") == reference(), "run: python -m kvmnet.spec.reference"


def test_every_option_is_documented() -> None:
    bare = [f"{path}.{name}" for path, part in parts() for name in part.model_fields
            if not doc(part, name)]
    assert bare == []


def test_schema_knows_every_option() -> None:
    made = schema()
    assert made["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(made["properties"]) == set(Spec.model_fields)
    for _, part in parts():
        described: dict[str, Any] = made["properties"] if part is Spec else made["$defs"][part.__name__]["properties"]
        assert set(described) == {option.word for option in part.model_fields.values()}
        assert all(option.get("description") for option in described.values())
        whole = made if part is Spec else made["$defs"][part.__name__]
        assert whole["additionalProperties"] is False
