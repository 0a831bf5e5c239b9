"""The end of everything, with a guest that runs."""
from __future__ import annotations

from pathlib import Path

import pytest

from kvmnet.guests.image import Image
from lib.world import world

pytestmark = pytest.mark.guest

DOCUMENT = """
version: 1
networks: {lan: {mode: isolated, subnet: 10.0.0.0/24}}
vms:
  a: {run: {image: tiny, accel: tcg}, nics: [{network: lan}]}
"""


def test_a_destroy_that_is_refused_stops_no_guest(tiny: Image, image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMNET_IMAGE_DIR", str(image_folder))
    with world() as net:
        net.apply(DOCUMENT)
        assert net.cli("vm", "start", "a").returncode == 0
        net.apply(DOCUMENT.replace("10.0.0.0", "10.9.0.0"), confirm=60)
        refused = net.cli("destroy", "--yes")
        assert refused.returncode == 12 and "waits for its confirmation" in refused.stderr
        assert list(net.host.running()) == ["a"]
        net.host.confirm()
        done = net.cli("destroy", "--yes")
        assert done.returncode == 0 and "guest a: " in done.stderr, done.stderr
        assert not net.host.running() and net.host.plan_destroy().steps == ()
