"""Processors, cgroups, PCI groups and the kernel's log, read from a made-up /sys and /proc."""
from __future__ import annotations

from pathlib import Path

from kvmnet.facts.dhcp_servers import dhcp_servers, own_servers
from kvmnet.facts.machine import interrupts, iommu_groups, log, machine, netlink_drops, processors, throttled

LINK = {"ifname": "eth0", "ifindex": 2, "address": "02:00:00:00:00:01"}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_link_of_another_namespace_is_not_described(tmp_path: Path) -> None:
    write(tmp_path / "sys/class/net/eth0/ifindex", "2\n")
    write(tmp_path / "sys/class/net/eth0/address", "02:00:00:00:00:01\n")
    (tmp_path / "sys/class/net/eth0/phy80211").mkdir()
    assert machine([LINK], [], tmp_path / "sys", tmp_path / "proc")["wireless"] == ["eth0"]
    assert machine([LINK | {"ifindex": 9}], [], tmp_path / "sys", tmp_path / "proc")["wireless"] == []


def test_interrupts_of_a_virtio_card_are_those_of_the_device_above(tmp_path: Path) -> None:
    write(tmp_path / "proc/interrupts", "           CPU0       CPU1\n 38:          5      20850  PCI-MSIX virtio2-input.0\n 40: 1 1 other\n")
    (tmp_path / "pci/virtio2").mkdir(parents=True)
    (tmp_path / "pci/msi_irqs/38").mkdir(parents=True)
    folder = tmp_path / "sys/class/net/eth0"
    folder.mkdir(parents=True)
    (folder / "device").symlink_to(tmp_path / "pci/virtio2")
    assert interrupts({"eth0": folder}, tmp_path / "proc") == {"eth0": {"38": [5, 20850]}}


def test_processors(tmp_path: Path) -> None:
    write(tmp_path / "stat", "cpu  1 2 3 4 5 6 7 8 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\nintr 5\n")
    assert processors(tmp_path)["cpu"] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_quota_of_a_guest_or_of_what_is_above_it(tmp_path: Path) -> None:
    write(tmp_path / "proc/7/cgroup", "0::/machine/web1\n")
    write(tmp_path / "sys/fs/cgroup/machine/cpu.stat", "usage_usec 5\nnr_periods 100\nnr_throttled 40\n")
    write(tmp_path / "sys/fs/cgroup/machine/web1/cpu.stat", "nr_periods 0\nnr_throttled 0\n")
    found = throttled([{"pid": 7, "name": "web1"}], tmp_path / "sys", tmp_path / "proc")
    assert [(Path(k).name, row) for k, row in found.items()] == [("machine", {"guest": "web1", "periods": 100, "throttled": 40})]


def test_only_groups_with_a_network_card(tmp_path: Path) -> None:
    for group, pci, kind in (("1", "0000:01:00.0", "0x020000"), ("1", "0000:01:00.1", "0x010700"), ("2", "0000:02:00.0", "0x030000")):
        write(tmp_path / f"kernel/iommu_groups/{group}/devices/{pci}/class", kind + "\n")
    assert [[m["pci"] for m in members] for members in iommu_groups(tmp_path).values()] == [["0000:01:00.0", "0000:01:00.1"]]


def test_a_log_that_may_not_be_read_is_empty(tmp_path: Path) -> None:
    assert log(tmp_path / "none") == []


def test_lines_of_trouble_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "kmsg"
    file.write_text("3,1,12500000,-;nf_conntrack: nf_conntrack: table full, dropping packet")
    assert log(file)[:1] == [{"text": "nf_conntrack: nf_conntrack: table full, dropping packet", "times": 1, "last": 12.5}]
    file.write_text("3,1,12500000,-;usb 1-1: new device")
    assert log(file) == []


def test_lost_messages_of_netlink(tmp_path: Path) -> None:
    write(tmp_path / "thread-self/net/netlink", "sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode\n0 0 1 0 0 0 0 2 3 9\n0 4 2 0 0 0 0 2 4 8\n")
    assert netlink_drops(tmp_path) == 7


def test_what_dnsmasq_gives_out(tmp_path: Path) -> None:
    write(tmp_path / "leases", "0 52:54:00:00:00:01 10.0.0.5 web1 ff:01\nduid 00:01\n0 52:54:00:00:00:02 fd00::5 web2 *\n")
    write(tmp_path / "hosts/a", "52:54:00:00:00:09,10.0.0.5\n")
    write(tmp_path / "conf", f"interface=br0\ndhcp-range=10.0.0.5,10.0.0.9,255.255.255.0,1h\ndhcp-hostsdir={tmp_path / 'hosts'}\ndhcp-leasefile={tmp_path / 'leases'}\nport=0\nenable-ra\n# dhcp-lease-max=5\n")
    server = {"pid": 4, "program": "dnsmasq", "argv": ["dnsmasq", f"--conf-file={tmp_path / 'conf'}", "--dhcp-range=::,constructor:br0"]}
    found, = dhcp_servers([server, {"pid": 5, "program": "radvd", "argv": ["radvd"]}])
    assert found == {"pid": 4, "interfaces": ["br0"], "ranges": [["10.0.0.5", "10.0.0.9"]], "hosts": [{"mac": "52:54:00:00:00:09", "ip": "10.0.0.5"}],
                     "leases": [{"mac": "52:54:00:00:00:01", "ip": "10.0.0.5", "name": "web1", "client": "ff:01"}], "file": str(tmp_path / "leases"),
                     "most": 1000, "port": 0, "ra": True}
    assert dhcp_servers([server | {"argv": ["dnsmasq", "--port=53"]}]) == [] and dhcp_servers([server | {"halted": True}])[0]["halted"]


def test_servers_that_a_document_wants(tmp_path: Path) -> None:
    write(tmp_path / "lan/conf", "")
    write(tmp_path / "cell/conf", "")
    server = {"pid": 4, "program": "dnsmasq", "argv": ["dnsmasq", f"--conf-file={tmp_path / 'lan/conf'}"]}
    assert own_servers(tmp_path, [server]) == [{"network": "cell", "pid": 0}, {"network": "lan", "pid": 4}] and own_servers(tmp_path / "none", []) == []
