"""Loading: what a document means, what YAML would have made of it, and files that cannot be read."""
from __future__ import annotations

import gc
from pathlib import Path

import pytest
import yaml

from kvmnet.errors import KvmnetError, SpecError
from kvmnet.spec import tree
from kvmnet.spec.guests import Nic
from kvmnet.spec.load import load, loads
from kvmnet.spec.source import may_name
from kvmnet.spec.values import INFINITE


def nic(options: str) -> Nic:
    return loads(f"version: 1\nvms: {{v: {{nics: [{{network: lan, {options}}}]}}}}").spec.vms["v"].nics[0]


@pytest.mark.parametrize(("written", "option", "kept"), [
    ("vhost: on", "vhost", "on"),
    ("vhost: off", "vhost", "off"),
    ("link: up", "link", "up"),
    ("mac: 52:54:00:12:34:56", "mac", "52:54:00:12:34:56"),
    ("mac: 52-54-00-AB-CD-EF", "mac", "52:54:00:ab:cd:ef"),
    ("mac: 5254.00ab.cdef", "mac", "52:54:00:ab:cd:ef"),
    ("ip: none", "ip", "none"),
    ("ip: null", "ip", None),
    ("ip6: FD00:0:0::00AB", "ip6", "fd00::ab"),
    ("pci: 05", "pci", "05.0"),
    ("pci: 10", "pci", "10.0"),
    ("pci: 1F.7", "pci", "1f.7"),
    ("trunk: [10, 20-22, 21]", "trunk", (10, 20, 21, 22)),
    ("trunk: 7", "trunk", (7,)),
    ("queues: auto", "queues", "auto"),
    ("queues: 4", "queues", 4),
    ("mtu: 01500", "mtu", 1500),
    ("packed: yes", "packed", True),
    ("hostname: 123", "hostname", "123"),
    ("extra: {addresses: [192.0.2.7/32, 192.0.2.8, 'FD00:1::/64']}", "extra.addresses",
     ("192.0.2.7", "192.0.2.8", "fd00:1::/64")),
])
def test_values_are_kept_in_one_form(written: str, option: str, kept: object) -> None:
    found: object = nic(written)
    for step in option.split("."):
        found = getattr(found, step)
    assert found == kept


def test_traps_are_traps_for_plain_yaml() -> None:
    """The same words are something else to YAML 1.1: that is why it is not used as it is."""
    plain = yaml.safe_load("{vhost: on, mac: 52:54:00:12:34:56, mtu: 0644, ip: no}")
    assert plain["vhost"] is True and plain["ip"] is False
    assert plain["mtu"] == 0o644
    assert yaml.safe_load("11:22:33:44:55:56") == 8846009756


@pytest.mark.parametrize(("written", "seconds"), [("12h", 43200), ("30m", 1800), ("200s", 200), (3600, 3600),
                                                  ("2d", 172800), ("infinite", INFINITE)])
def test_leases(written: object, seconds: int) -> None:
    text = f"version: 1\nnetworks: {{a: {{mode: isolated, subnet: 10.0.0.0/24, dhcp: {{lease: {written}}}}}}}"
    assert loads(text).spec.networks["a"].dhcp.lease == seconds


def test_keys_are_text() -> None:
    spec = loads("version: 1\nvms: {100: {nics: [{network: 7}]}, on: {nics: [{network: lan}]}}").spec
    assert list(spec.vms) == ["100", "on"]
    assert spec.vms["100"].nics[0].network == "7"


def test_anchors_and_merges() -> None:
    spec = loads("""\
version: 1
vms:
  a: &guest
    owner: root
    nics: &nics [{network: lan, mtu: 1400}]
  b: {<<: *guest, owner: nobody}
  c: {nics: *nics}
""").spec
    assert spec.vms["a"].nics == spec.vms["b"].nics == spec.vms["c"].nics
    assert (spec.vms["a"].owner, spec.vms["b"].owner, spec.vms["c"].owner) == ("root", "nobody", None)


def test_defaults_are_validated_values() -> None:
    """What a default says must be what parsing it would give."""
    spec = loads("version: 1\nnetworks: {a: {mode: isolated, metadata: {to_port: 80}}}\n"
                 "vms: {v: {run: {image: tiny}, nics: [{network: a}]}}").spec
    again = spec.model_validate(spec.model_dump(mode="json", exclude_none=True))
    assert again == spec


def test_lines_of_paths() -> None:
    document = loads("version: 1\nvms:\n  web1:\n    nics:\n      - network: lan\n        mtu: 1400\n      - {network: lan}\n")
    assert document.locate("version") == (1, 10)
    assert document.locate("vms.web1.nics[0].mtu") == (6, 14)
    assert document.locate("vms.web1.nics[1]") == (7, 9)
    assert document.locate("vms.web1.nics[1].mtu") == (7, 9), "not written: what is above it"
    assert document.locate("vms.web1.driver") == (3, 3)
    assert document.locate("networks.lan") == (1, 1)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(KvmnetError, match="no such file") as caught:
        load(tmp_path / "none.yaml")
    assert "kvmnet init" in caught.value.hint


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(KvmnetError, match="is a directory"):
        load(tmp_path)


def test_name_that_no_file_can_have() -> None:
    with pytest.raises(KvmnetError, match="cannot be read"):
        load("a\0b")


def test_endless_file() -> None:
    with pytest.raises(KvmnetError, match="larger than 64 MiB"):
        load("/dev/zero")


def test_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "latin1.yaml"
    file.write_bytes("version: 1\n# für\n".encode("latin-1"))
    with pytest.raises(SpecError) as caught:
        load(file)
    (problem,) = caught.value.problems
    assert (problem.line, problem.column, problem.message) == (2, 4, "byte 0xfc is not UTF-8")


def test_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "bom.yaml"
    file.write_bytes(b"\xef\xbb\xbfversion: 1\r\nnetworks: {}\r\n")
    assert load(file).spec.version == 1


def test_control_character() -> None:
    with pytest.raises(SpecError) as caught:
        loads("version: 1\nvms: \x07\n")
    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == (2, 6)
    assert "U+0007" in problem.message


def test_the_collector_is_left_as_it_was() -> None:
    assert gc.isenabled()
    loads("version: 1")
    with pytest.raises(SpecError):
        loads("version: 2")
    assert gc.isenabled()
    gc.disable()
    try:
        loads("version: 1")
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_without_libyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pure parser reads the same and refuses the same, in the same words where it is ours."""
    text = "version: 1\nnetworks: &n {a: {mode: isolated, mtu: 1400, mtu: 1500}}\n"
    wanted = tree.read(text)
    monkeypatch.setattr(tree, "_Loader", yaml.SafeLoader)
    assert tree.read(text) == wanted
    for name in ("tab", "two-documents", "python-tag", "deep", "alias-of-itself", "billion-laughs"):
        path = Path(__file__).parent / "wrong" / f"{name}.yaml"
        with pytest.raises(SpecError) as caught:
            load(path)
        assert caught.value.problems[0].message == path.with_suffix(".expect").read_text().splitlines()[0].split(
            ": ", 1)[1]


def test_a_bomb_is_refused_before_it_grows() -> None:
    text = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30))
    with pytest.raises(SpecError, match="1 problem"):
        loads(text)


@pytest.mark.parametrize("text", ["reach: [192.0.2.1]", '"reach": [192.0.2.1]', '"\\x72each": [192.0.2.1]',
                                  "{version: 1, 'reach' : [192.0.2.1]}"])
def test_no_key_is_overlooked_in_a_text(text: str) -> None:
    """Who asks whether a document may have a key need not read it."""
    whole = text if text.startswith("{") else f"version: 1\n{text}\n"
    assert loads(whole).spec.reach == ("192.0.2.1",) and may_name(whole, "reach")
    assert not may_name("version: 1\nnetworks: {a: {mode: isolated}}\n", "reach")
