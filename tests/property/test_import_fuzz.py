"""Whatever the input of import: a document that loads with every line of the input told, or an error that says where."""
from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmnet.adopt.importing import Imported, import_format
from kvmnet.adopt.sources import FORMATS
from kvmnet.errors import KvmnetError, SpecError

GOLDEN = Path(__file__).parent.parent / "unit" / "adopt" / "golden"
NAMES = {"netplan": "a.yaml", "ifupdown": "interfaces", "networkd": "a.network", "nmstate": "a.yml"}


def files(name: str) -> list[Path]:
    return sorted(f for f in (GOLDEN / name).rglob("*") if f.is_file() and f.suffix != ".expect")


def attempt(name: str, raw: bytes, suffix: str = "") -> Imported | KvmnetError:
    """Import of one file with that content. Anything but our own errors fails the test."""
    with TemporaryDirectory() as place:
        file = Path(place, f"a{suffix}" if suffix else NAMES[name])
        file.write_bytes(raw)
        try:
            return import_format(name, [file])
        except SpecError as wrong:
            assert wrong.source == str(file), "the document that import itself writes is never wrong"
            assert all(p.line >= 1 for p in wrong.problems)
            return wrong
        except KvmnetError as wrong:
            return wrong


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes, str]:
    """A real file with bytes of it removed, repeated or replaced."""
    name = draw(st.sampled_from(sorted(FORMATS)))
    file = draw(st.sampled_from(files(name)))
    raw = file.read_bytes()
    for _ in range(draw(st.integers(1, 4))):
        a = draw(st.integers(0, len(raw)))
        b = draw(st.integers(a, min(len(raw), a + 30)))
        raw = raw[:a] + draw(st.sampled_from([b"", b"\t", b"\n", b": ", b"[", b"{", b"&a ", b"*a", b"\x00", b"\xff", b"- ", b"99999999999",
                                              b"\\\n", b"=", b"#", b"'", b"eth0", raw[a:b] * 2, raw[:20]])) + raw[b:]
    return name, raw, file.suffix if name == "networkd" else ""


@given(mutated())
def test_a_broken_file_is_read_or_refused_with_its_line(case: tuple[str, bytes, str]) -> None:
    attempt(*case)


@given(st.sampled_from(sorted(FORMATS)), st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace")))
def test_any_bytes_at_all(name: str, raw: bytes) -> None:
    attempt(name, raw)


@pytest.mark.parametrize("name", ["netplan", "nmstate"])
@pytest.mark.parametrize("text, words", [
    ("network:\n\tversion: 2\n", "tab"), ("- a\n- b\n", "mapping"), ("a: &x {b: *x}\n", "alias"), ("a: [\n", "line"),
    ("a: " + "[" * 200 + "]" * 200, "deep"),
    ("a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)),
     "alias"), ("a: !!python/object:os.system x\n", "tag")])
def test_yaml_that_is_none_or_a_bomb(name: str, text: str, words: str) -> None:
    found = attempt(name, text.encode())
    assert isinstance(found, SpecError), found
    assert found.problems[0].line >= 1 and found.problems[0].message


def test_large_inputs_take_time_in_proportion() -> None:
    """1,000 VLANs, stanzas or addresses: each input is told, in seconds."""
    count = 1000
    for name, raw in {
        "netplan": "network:\n  ethernets: {e0: {}}\n  vlans:\n" + "".join(f"    v{i}: {{id: {i}, link: e0}}\n" for i in range(1, count)),
        "ifupdown": "iface e0 inet manual\n" + "".join(f"iface e0.{i} inet static\n address 10.{i >> 8}.{i & 255}.1/24\n" for i in range(1, count)),
        "networkd": "[Match]\nName=e0\n[Network]\n" + "".join(f"Address=10.{i >> 8}.{i & 255}.1/24\n" for i in range(1, count)),
    }.items():
        found = attempt(name, raw.encode(), ".network" if name == "networkd" else "")
        assert isinstance(found, Imported) and len(found.elements) >= count - 1
        assert not [e for e in found.elements if e.outcome == "unsupported"], name


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_files_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(KvmnetError, match="cannot be read"):
        import_format(name, [tmp_path / "absent"])
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(20 * 2**20)
    with pytest.raises(KvmnetError, match="larger than"):
        import_format(name, [large])
    with pytest.raises(KvmnetError):
        import_format(name, [tmp_path / "nothing.d"])
