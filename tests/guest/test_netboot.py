"""A guest without kernel and disk boots from the network by the NIC that is first in the boot order."""
from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kvmnet.drivers.qemu.driver import GuestNicDriver
from kvmnet.drivers.qemu.folder import folder
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.guests.accel import Accel
from kvmnet.guests.launch import start, stop
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from kvmnet.spec.guests import Vm
from lib.netns import sh

pytestmark = [pytest.mark.guest, pytest.mark.skipif(
    not Path("/usr/lib/ipxe/qemu").is_dir(), reason="no boot ROMs: apt-get install ipxe-qemu")]


MACS = {"virtio": "52:54:00:cc:00:01", "e1000": "52:54:00:cc:00:02"}


def card(model: str) -> GuestNic:
    sh(f"ip tuntap add kvt-b-{model} mode tap; ip link set kvt-b-{model} master br0 up")
    virtio = model == "virtio"
    return GuestNic(name=f"boot-{model}/nic0", vm=f"boot-{model}", tap=f"kvt-b-{model}", model=model,
                    mac=MACS[model], link=True, host_mtu=0, queues=1, rx_ring=256 if virtio else 0,
                    tx_ring=256 if virtio else 0, packed=False, offloads=None, vhost=False, bootindex=0, pci="")


def test_the_boot_file_is_fetched_and_run(host: Paths, tmp_path: Path) -> None:
    (tmp_path / "boot.ipxe").write_text("#!ipxe\necho kvmnet-${net0/mac}-booted\nsleep 60\n")
    tmp_path.chmod(0o755)
    server = subprocess.Popen([
        "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=br0", "--bind-interfaces",
        f"--dhcp-leasefile={tmp_path}/leases", "--user=root", "--dhcp-range=10.9.0.100,10.9.0.150,1h", "--no-ping",
        "--enable-tftp", f"--tftp-root={tmp_path}", "--dhcp-boot=boot.ipxe"], stderr=subprocess.DEVNULL)
    vm = Vm.model_validate({"nics": [{"network": "lan"}], "run": {"memory": "128M"}})
    try:
        for model in MACS:
            start(f"boot-{model}", vm, [card(model)], host, Accel("tcg", "tests"), lambda line: None)
        for model, mac in MACS.items():
            log = folder(host, f"boot-{model}").console_log
            wait_until(lambda: f"kvmnet-{mac}-booted" in log.read_text(errors="replace"), 60, 0.1)    # noqa: B023
        seen = GuestNicDriver(host).observe({}).state.values()
        assert {n.bootindex for n in seen} == {0}      # type: ignore[attr-defined]
    finally:
        for model in MACS:
            stop(f"boot-{model}", host, 0.1)
        server.terminate()
        server.wait()
