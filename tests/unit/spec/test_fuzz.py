"""Whatever the text: a document or a SpecError whose problems say where and what. Nothing else escapes,
neither from the loader nor from the cross checks nor from allocation,
and what the checks let pass compiles."""
from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmnet.compile import compile_spec
from kvmnet.drivers.linux.resources import Link
from kvmnet.engine.resource import Key
from kvmnet.errors import HostCannot, Problem, SpecError
from kvmnet.facts.model import Facts
from kvmnet.spec import checks, rest
from kvmnet.spec.allocate import allocate
from kvmnet.spec.form import ValidationError
from kvmnet.spec.load import loads
from kvmnet.spec.models import Spec
from kvmnet.spec.tree import read

EXAMPLES = [path.read_text(encoding="utf-8") for path in sorted(Path("examples").glob("*.yaml"))] or [
    path.read_text(encoding="utf-8")
    for path in sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))]
TREES = [read(text)[0] for text in EXAMPLES]

LINKS = (Link(name="eth0", type="physical", mtu=1500, mac="02:00:00:00:00:10", up=True),
         Link(name="eth1", type="physical", mtu=9000, mac="02:00:00:00:00:11", up=True),
         Link(name="eth2", type="physical", mtu=9000, mac="02:00:00:00:00:12", up=True),
         Link(name="vmbr0", type="bridge", mtu=1500, mac="02:00:00:00:00:13", up=True))
HOST = Facts(state={Key("link", link.name): link for link in LINKS}, users={"libvirt-qemu": 64055})

WORDS = st.sampled_from([
    "", "~", "no", "on", "true", "none", "auto", "0", "-1", "4095", "01500", "9" * 30, "1e400", ".inf", "0x1f",
    "192.168.1.1", "192.168.1.0/24", "192.168.1.300", "0.0.0.0/0", "::/0", "fd00::1", "fd00::/64", "fe80::1%x",
    "192.168.1.9-192.168.1.3", "fd00::1-fd00::2", "52:54:00:00:00:01", "12:30:45", "2024-01-01", "12h", "256M",
    "infinite", "nat", "bridge", "isolated", "lan", "wan", "web1", "web1/nic0", "/", "kvb-lan", "br", "<<", "*a",
    "&a", "!!int", "\t", "{{ x }}", "%", "\u00fc", "\U0001f600", "\x85", "a\nb"])
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | WORDS | st.text(max_size=8),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
                      max_leaves=6)
RAW = st.text(alphabet=st.sampled_from("abn:-&*!|>%@`'\"{}[],#? \t\n\r\0\u00fc~<0123456789."), max_size=120)


def spots(tree: Any) -> Any:
    """Every place of *tree* where something could be put: (container, key)."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from spots(value)


ELSEWHERE: dict[Any, list[Any]] = {}
"""Key -> what stands under it anywhere in the examples: of the right form, but perhaps the wrong meaning."""
for _holder, _key in (spot for tree in TREES for spot in spots(tree)):
    ELSEWHERE.setdefault(_key, []).append(_holder[_key])


def judge(text: str) -> None:
    """Load, check and allocate *text*; every refusal must be a SpecError that is fit to be shown."""
    try:
        document = loads(text, "fuzz")
        checks.require(document, HOST)
        compile_spec(document.spec, HOST, allocate(document.spec, {}))
    except HostCannot as lacking:
        assert str(lacking).startswith("fuzz:")
    except SpecError as wrong:
        assert wrong.problems
        lines = text.count("\n") + text.count("\r") + text.count("\x85") + 2
        for problem in wrong.problems:
            assert 0 < problem.line <= lines, problem
            assert problem.column > 0
            assert problem.message
            assert "\n" not in problem.message


@given(st.text(max_size=200))
@settings(deadline=None)
def test_any_text(text: str) -> None:
    judge(text)


@given(RAW)
@settings(deadline=None, max_examples=300)
def test_text_of_yaml_signs(text: str) -> None:
    judge("version: 1\n" + text)


@given(st.sampled_from(EXAMPLES), st.data())
@settings(deadline=None, max_examples=150)
def test_examples_with_damage(text: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(at, min(at + 20, len(text))))
    judge(text[:at] + data.draw(RAW) + text[end:])


def change(tree: Any, data: st.DataObject, times: int, ways: tuple[str, ...]) -> None:
    """Replace, remove or add values anywhere in *tree*, or swap them for what stands under such a key elsewhere."""
    for _ in range(times):
        places = [spot for spot in spots(tree) if spot[1] in ELSEWHERE]
        if not places:
            break
        holder, key = data.draw(st.sampled_from(places))
        what = data.draw(st.sampled_from(ways))
        if what == "swap":
            holder[key] = copy.deepcopy(data.draw(st.sampled_from(ELSEWHERE[key])))
        elif what == "replace":
            holder[key] = data.draw(VALUES)
        elif what == "remove":
            del holder[key]
        elif isinstance(holder, dict):
            holder[data.draw(WORDS)] = data.draw(VALUES)
        else:
            holder.append(data.draw(VALUES))


@given(st.integers(0, len(TREES) - 1), st.data())
@settings(deadline=None, max_examples=300)
def test_examples_with_other_values(index: int, data: st.DataObject) -> None:
    """A valid document with values replaced, removed or added anywhere: well-formed YAML, wrong content."""
    tree = copy.deepcopy(TREES[index])
    change(tree, data, data.draw(st.integers(1, 4)), ("swap", "swap", "swap", "replace", "remove", "add"))
    judge(yaml.safe_dump(tree, allow_unicode=True))


@given(st.integers(0, len(TREES) - 1), st.data())
@settings(deadline=None, max_examples=150, derandomize=True)
def test_what_is_said_of_the_rest_is_true_without_the_damage_too(index: int, data: st.DataObject) -> None:
    """Nothing is said of a document of wrong form that is only a consequence of the form."""
    tree = copy.deepcopy(TREES[index])
    change(tree, data, data.draw(st.integers(1, 4)), ("swap",))
    try:
        said = {without_figures(p) for p in checks.check(Spec.model_validate(tree), Facts())}
    except ValidationError:
        return
    holder, key = data.draw(st.sampled_from([spot for spot in spots(tree) if not isinstance(spot[0][spot[1]], (dict, list))]))
    holder[key] = data.draw(VALUES)
    try:
        Spec.model_validate(tree)
    except ValidationError:
        assert {without_figures(p) for p in rest.problems(tree, ())} <= said


def without_figures(problem: Problem) -> tuple[str, str]:
    """Sums are of what can be read; of what is wrong with several parts alike, the first is named."""
    return problem.path.partition(".")[0], re.sub(r"[0-9]+[a-z]*", "N", problem.message)
