"""A guest of kvmnet's own under KVM, with the kernel's virtio backend on one NIC and not on the other."""
from __future__ import annotations

import pytest

from kvmnet.guests.image import build
from kvmnet.host.paths import Paths
from lib.lab import Lab
from lib.lab_guest import meet
from lib.lab_image import image_folder

pytestmark = pytest.mark.lab


def test_a_guest_runs_under_kvm(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMNET_IMAGE_DIR", str(image_folder()))
    build(Paths(image_folder(), image_folder()), lambda line: None)      # there is no network inside to fetch it
    met = lab.call(meet, timeout=900)
    print(met)
    assert met.accel == "kvm", met.reason
    assert met.threads == 1 and met.left == 0      # of two NICs, one asks for it
    assert met.host_pings and " 0% packet loss" in met.outside
    assert met.read_back == {"nic0": "vhost", "nic1": "qemu"}
    assert met.copied[0] == met.copied[1] > 3, "each packet is copied, from the first on"
    assert met.huge.split() == ["HugetlbPages:", "262144", "kB"]
    assert met.early == [] and met.drift == ()
