"""What is installed: a wheel is built from the checkout, and has everything in it."""
from __future__ import annotations

import configparser
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest

from kvmnet import __version__

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src"
VERSION = f"kvmnet-{__version__}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    from hatchling.build import build_wheel
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        name = build_wheel(str(folder))
    with zipfile.ZipFile(folder / name) as found:
        yield found


def test_every_file_of_the_package_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    """Also those that are not Python: the tiny guest is made of scripts."""
    there = {str(p.relative_to(PACKAGE)) for p in (PACKAGE / "kvmnet").rglob("*")
             if p.is_file() and "__pycache__" not in p.parts}
    assert there <= set(wheel.namelist())
    assert {"kvmnet/guests/tiny/init", "kvmnet/py.typed"} <= there
    for name in there:
        assert wheel.read(name) == (PACKAGE / name).read_bytes(), name


def test_nothing_else_is(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"kvmnet", f"{VERSION}.dist-info", f"{VERSION}.data"}
    data = {name.partition(".data/data/")[2] for name in wheel.namelist() if ".data/" in name}
    assert data == {"share/man/man8/kvmnet.8", "lib/systemd/system/kvmnet.service"}


def test_it_says_what_it_is_and_needs(wheel: zipfile.ZipFile) -> None:
    about = Parser().parsestr(wheel.read(f"{VERSION}.dist-info/METADATA").decode())
    assert (about["Name"], about["License-Expression"], about["Requires-Python"]) == ("kvmnet", "Apache-2.0", ">=3.11")
    needs = {line.split(">")[0].split("<")[0] for line in about.get_all("Requires-Dist") or () if "extra" not in line}
    assert needs == {"click", "pyyaml", "rich"}
    commands = configparser.ConfigParser()
    commands.read_string(wheel.read(f"{VERSION}.dist-info/entry_points.txt").decode())
    assert dict(commands["console_scripts"]) == {"kvmnet": "kvmnet.cli.main:main"}


def test_the_unit_lets_servers_and_guests_live() -> None:
    """They are in its control group; with KillMode=control-group a stop of the unit would end them."""
    unit = configparser.ConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string((ROOT / "packaging" / "kvmnet.service").read_text())
    service = unit["Service"]
    assert (service["Type"], service["RemainAfterExit"], service["KillMode"]) == ("oneshot", "yes", "process")
    assert service["ExecStart"] == "kvmnet boot"
