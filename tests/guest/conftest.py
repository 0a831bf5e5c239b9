"""Guests for real: one image for every test of the run, namespaces with a plain bridge and taps."""
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmnet.guests.image import Image, build
from kvmnet.host.paths import Paths
from lib.netns import new_netns, sh


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Images are kept between runs: fetching one takes seconds and 70 MB."""
    chosen = os.environ.get("KVMNET_IMAGE_DIR")
    folder = Path(chosen) if chosen else Path(__file__).parents[2] / ".cache" / "images"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVMNET_IMAGE_DIR", str(folder))
        yield folder


@pytest.fixture(scope="session")
def tiny(image_folder: Path) -> Image:
    return build(Paths(image_folder, image_folder), lambda line: None)


@pytest.fixture(scope="module")
def host(tiny: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paths]:
    """A namespace with bridge br0 (10.9.0.1/24) for the tests of one module, and its directories."""
    folder = tmp_path_factory.mktemp("host")
    with new_netns():
        sh("ip link add br0 type bridge; ip link set br0 up; ip addr add 10.9.0.1/24 dev br0")
        yield Paths(folder / "state", folder / "run")
