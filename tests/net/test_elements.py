"""A change of nothing but elements: asked of the kernel one by one, and written where they are in the keeper's file."""
from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest

from kvmnet.api import Host
from kvmnet.drivers.nftables import driver as module
from kvmnet.drivers.nftables.driver import NftablesDriver
from kvmnet.drivers.nftables.elements import UNASKED, Told, agree, hold, told
from kvmnet.drivers.nftables.members import bare, key_of
from kvmnet.drivers.nftables.restored import changed
from kvmnet.drivers.nftables.saved import Saved
from kvmnet.host.paths import Paths
from lib.netns import new_netns, sh

pytestmark = pytest.mark.net

DOCUMENT = """
version: 1
networks:
  lan:
    mode: isolated
    subnet: 10.0.0.0/24
    subnet6: "fd00::/64"
    limits: {send: {packets: 20k/s, bytes: 500MB/s, connections: 200/s}, receive: {packets: 9/s, bytes: 3MB/s, syn: 1000/s},
             storms: {broadcast: 100/s, multicast: 500/s, unknown: 100/s}, neighbours: 50/s}
  far: {mode: isolated, subnet: 10.1.0.0/24}
  free: {mode: isolated, subnet: 10.2.0.0/24}
vms:
  a: {nics: [{network: lan, groups: [web, shut]}]}
  b: {nics: [{network: lan, groups: [db], isolated: true}]}
  c: {nics: [{network: far, groups: [web], extra: {addresses: [10.9.0.0/24, 10.9.2.0/23, fd09::/48]}}]}
  d: {nics: [{network: free, guard: off}]}
  e: {nics: [{network: free, guard: mac}]}
MORE
groups:
  web: {ingress: [{tcp: 80}], refuse: reject, log: true}
  db: {ingress: [{tcp: 5432, from: group:web}, {udp: any, from: set:known}]}
  shut: {}
tenants:
  shop: {networks: [far]}
address_sets:
  known: [10.20.0.1, 10.30.0.0/24, 10.30.1.0/24, 192.168.100.240/28, 0.0.0.0/8, 2001:db8::1, fd00::/64]
"""
MORE = {"a member": "  d2: {nics: [{network: far, groups: [web]}]}",
        "another": "  d2: {nics: [{network: far, groups: [db]}]}\n  f: {tenant: shop, nics: [{network: lan, limits: {send: {packets: 5/s}}}]}",
        "a limit": "  d2: {nics: [{network: far, groups: [db], limits: {send: {packets: 7/s}}}]}\n"
                   "  f: {tenant: shop, nics: [{network: lan, limits: {send: {packets: 6/s}}}]}",
        "none": "  d2: {nics: [{network: far}]}"}


@pytest.fixture(scope="module")
def world() -> Iterator[None]:
    with new_netns():
        yield


@pytest.fixture
def host(world: None, paths: Paths, tmp_path: Path) -> Iterator[Host]:
    put(paths, tmp_path, DOCUMENT.replace("MORE", MORE["none"]))
    yield Host(paths)
    Host(paths).destroy()


def put(paths: Paths, folder: Path, text: str) -> None:
    (folder / "it.yaml").write_text(text)
    Host(paths).apply_file(folder / "it.yaml")


def loaded(paths: Paths) -> dict[str, list[str]]:
    """Set -> its elements, by the keeper's file."""
    lines = (paths.guard / "ruleset.nft").read_text().splitlines()
    found = [match.groups() for line in lines if (match := re.fullmatch(r"add element (\S+ \S+ \S+) \{ (.*) \}", line))]
    assert len({name for name, _ in found}) == len(found)
    return {name: sorted(texts.split(", ")) for name, texts in found}


def test_the_kernel_tells_of_each_kind_of_element_and_of_none_that_differs(host: Host) -> None:
    sets = loaded(host.paths)
    kinds = {re.sub(r"\d+$", "", bare(name)) for name in sets}
    assert {"flow", "own", "mac", "open", "loose", "zone", "lone", "e_web", "rejecting", "ask", "tell", "tenant", "l_bytes", "l_syn", "l_stations"} <= kinds
    asked = 0
    for name, elements in sets.items():
        for text in elements:
            one = told([f"add element {name} {{ {text} }}"])
            if one is None:
                assert bare(name).startswith(UNASKED)
                continue
            asked += 1
            assert hold(one), (name, text)
            ((place, key), _), = one.items()
            for wrong in altered(key, text):
                assert not hold({(place, key): wrong}), (name, wrong)
            other = re.sub(r"\w(?=\W*$)", lambda m: "1" if m[0] != "1" else "2", key)
            if other not in map(key_of, elements):
                assert not hold({(place, other): other + text.removeprefix(key)}), (name, other)
                assert hold({(place, other): None}), (name, other)
    assert asked > 60


def altered(key: str, text: str) -> Iterator[str | None]:
    """What an element is not."""
    rest = text.removeprefix(key)
    yield None
    yield f"{key} : 1" if not rest else key
    if " : " in rest:
        yield f"{key} : jump nowhere"
        yield f"{key} : drop"
        yield f"{key} : 0x7fff"
    for number in re.finditer(r"\d+", rest) if "over" in rest else ():
        yield f"{key}{rest[:number.start()]}{int(number[0]) + 1}{rest[number.end():]}"


def test_all_elements_are_compared_and_any_that_is_missing_or_too_much_is_seen(host: Host) -> None:
    standing = NftablesDriver(host.paths)
    standing.observe({})
    assert standing.standing
    wanted, tables = standing.standing.elements(), standing.standing.filled()
    assert agree(tables, wanted) and len(wanted) > 40 and {"net4", "a4_known"} <= {bare(name) for name in wanted}
    for name, texts in wanted.items():
        text = sorted(texts)[0]
        key = key_of(text)
        sh(f"nft delete element {name} '{{ {key} }}'")
        assert not agree(tables, wanted), name
        if " : " in text:
            sh(f"nft add element {name} '{{ {key} : {'accept' if ' : jump' in text else 9} }}'")
            assert not agree(tables, wanted), name
            sh(f"nft delete element {name} '{{ {key} }}'")
        sh(f"nft add element {name} '{{ {text} }}'")
        assert agree(tables, wanted), name
        assert not agree(tables, {**wanted, name: texts - {text}}), name
    assert not agree(tables, {**wanted, f"{tables[0]} none": {"1"}}) and not agree(["ip none"], {})
    assert not agree(tables[:1], wanted)


def lists(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The listings that nft is asked for from now on."""
    asked: list[str] = []
    plainly = module.run

    def run(argv: list[str], **rest: Any) -> str:
        asked.extend([" ".join(argv)] if "list" in argv else [])
        return plainly(argv, **rest)
    monkeypatch.setattr(module, "run", run)
    return asked


def test_a_change_of_members_is_proved_without_a_listing_and_saved_as_if_it_were_all_written(
        host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = host.paths
    for what in ("a member", "another", "a limit", "none", "a member"):
        put(paths, tmp_path, DOCUMENT.replace("MORE", MORE[what]))     # taps come and go
        fresh, driver = seen_anew(paths), NftablesDriver(paths)
        again = driver.observe({})
        assert (again.state, again.ours) == (fresh.state, fresh.ours), what
        saved = loaded(paths)
        driver.save()
        assert saved == loaded(paths), what
    with monkeypatch.context() as patch:
        asked = lists(patch)
        put(paths, tmp_path, DOCUMENT.replace("MORE", MORE["none"]))
        put(paths, tmp_path, DOCUMENT.replace("MORE", MORE["a member"]))
        assert asked == []
    assert Host(paths).plan(tmp_path / "it.yaml").steps == ()


def some_document(of: Random) -> str:
    """Guests with groups, limits, prefixes; rules, a tenant, an address set."""
    def maybe(text: str, often: float = 0.4) -> str:
        return text if of.random() < often else ""
    nics = {n: ", ".join(filter(None, (
        f"network: {of.choice(('lan', 'far', 'free'))}", maybe(f"groups: [{', '.join(of.sample(('web', 'db', 'shut'), of.randint(1, 3)))}]"),
        maybe(f"limits: {{send: {{packets: {of.randint(1, 99)}/s}}, receive: {{syn: {of.randint(1, 99)}/s}}}}"),
        maybe(f"extra: {{addresses: [10.9.{of.randint(0, 9)}.0/24, 10.8.0.{of.randint(1, 9)}]}}"), maybe("isolated: true", 0.2))))
        for n in range(7) if of.random() < 0.8}
    return "\n".join((
        "version: 1", "networks:",
        f'  lan: {{mode: isolated, subnet: 10.0.0.0/24, subnet6: "fd00::/64", limits: {{send: {{bytes: {of.randint(1, 5)}MB/s}}, storms: {{unknown: 9/s}}}}}}',
        "  far: {mode: isolated, subnet: 10.1.0.0/24}", "  free: {mode: isolated, subnet: 10.2.0.0/24, address: none}",
        "vms:", "  always: {nics: [{network: lan, groups: [web]}]}", *(f"  v{n}: {{nics: [{{{nic}}}]}}" for n, nic in nics.items()),
        "groups:", f"  web: {{ingress: [{{tcp: 80}}]{maybe(', refuse: reject, log: true')}}}", "  shut: {}",
        f"  db: {{ingress: [{{tcp: {of.randint(1, 3)}, from: group:web}}, {{udp: any, from: set:known}}]}}",
        f"address_sets: {{known: [10.20.0.1, 192.168.100.{16 * of.randint(0, 15)}/28{maybe(', 0.0.0.0/8')}]}}", maybe("tenants: {shop: {networks: [far]}}"), ""))


def test_whatever_is_changed_what_is_compared_agrees_and_is_what_nft_lists(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, of, said = host.paths, Random(6), []
    for name in ("hold", "agree"):
        plainly = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *asked, plainly=plainly, name=name: said.append((name, plainly(*asked))) or said[-1][1])
    for _ in range(8):
        put(paths, tmp_path, some_document(of))
        quick, listed = NftablesDriver(paths).observe({}), seen_anew(paths)
        assert (quick.state, quick.ours) == (listed.state, listed.ours)
        saved, driver = loaded(paths), NftablesDriver(paths)
        driver.observe({})
        driver.save()
        assert saved == loaded(paths)
    assert {yes for _, yes in said} == {True} and {name for name, _ in said} >= {"agree"} and len(said) >= 6


def seen_anew(paths: Paths) -> Any:
    (paths.guard / "look.json").unlink(missing_ok=True)
    return NftablesDriver(paths).observe({})


@pytest.mark.parametrize(("when", "command"), [
    ("before", "nft add rule inet kvmnet-groups other 2>/dev/null || nft add table ip another"),
    ("behind", "nft delete element bridge kvmnet grouped '{ \"kvt-d2-0\" }'"),
    ("behind", "nft add table ip another"),
    ("behind", "nft flush set bridge kvmnet g_shut")])
def test_what_somebody_else_does_meanwhile_has_nft_asked(when: str, command: str, host: Host, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these is found by the second look of the very change in which it happens, and mended or left alone."""
    plainly, done = module.run, islice([command], 1)

    def run(argv: list[str], **rest: Any) -> str:
        load = argv[:2] == ["nft", "-f"]
        if load and when == "before":
            sh(next(done, "true"))
        out = plainly(argv, **rest)
        if load and when == "behind":
            sh(next(done, "true"))
        return out
    text = DOCUMENT.replace("MORE", MORE["a member"])
    with monkeypatch.context() as patch:
        patch.setattr(module, "run", run)
        asked = lists(patch)
        driver = NftablesDriver(host.paths)
        (tmp_path / "it.yaml").write_text(text)
        planned = Host(host.paths).plan(tmp_path / "it.yaml")
        steps = [step for step in planned.steps if step.key.kind in driver.kinds]
        assert {step.key.kind for step in steps} == {"nic-groups"}
        driver.observe({})
        driver.apply(steps, lambda n: None)
        seen = driver.observe({})
        assert asked
    sh("nft delete table ip another 2>/dev/null || true")
    fresh = seen_anew(host.paths)
    assert {k: r for k, r in seen.state.items() if k.name != "ip another"} == fresh.state
    Host(host.paths).apply_file(tmp_path / "it.yaml")


@pytest.mark.parametrize("what", ["ruleset.nft", "members.json", "seal"])
def test_a_file_that_is_not_what_was_written_is_written_anew(what: str, host: Host, tmp_path: Path) -> None:
    """It is told by its time, also where the same is written again; what stands in it then is our own."""
    file = host.paths.guard / "ruleset.nft"
    file.write_text(f"# another hand\n{file.read_text()}")
    Saved(host.paths.guard).seal.write_text(Saved(host.paths.guard).sealed())    # as if that were ours
    put(host.paths, tmp_path, DOCUMENT.replace("MORE", MORE["a member"]))
    assert file.read_text().startswith("# another hand\n")
    if what == "seal":
        (host.paths.guard / what).unlink()
    else:
        (host.paths.guard / what).write_text((host.paths.guard / what).read_text())
    put(host.paths, tmp_path, DOCUMENT.replace("MORE", MORE["none"]))
    assert not file.read_text().startswith("# another hand\n") and "kvt-d2-0" in file.read_text()


def test_elements_are_changed_where_they_are() -> None:
    file = "table t {\n}\nadd element ip a s { 1, 2 : 3 }\nadd element ip a gone { 9 }\ntable last {\n}\n"
    told: Told = {("ip a s", "2"): "2 : 4", ("ip a s", "5"): "5", ("ip a gone", "9"): None, ("ip a none", "1"): None, ("ip a new", "7"): "7"}
    assert changed(file, told) == "table t {\n}\nadd element ip a s { 1, 2 : 4, 5 }\ntable last {\n}\nadd element ip a new { 7 }\n"
