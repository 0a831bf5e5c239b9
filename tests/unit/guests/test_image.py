"""What the tiny image is made of: the archive, the kernel inside a bzImage, modules, packages."""
from __future__ import annotations

import gzip
import lzma
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmnet.errors import HostCannot
from kvmnet.guests import image
from kvmnet.guests.cpio import Archive
from kvmnet.guests.kernel import PVH_NOTE, load_order, module_needs, vmlinux
from kvmnet.host.paths import Paths
from kvmnet.host.run import ToolFailed, find

ELF = b"\x7fELF" + PVH_NOTE + bytes(1000)


def sample() -> Archive:
    archive = Archive()
    archive.file("a/b/script", b"#!/bin/sh\n", 0o755)
    archive.file("a/odd", b"12345")
    archive.file("a/odd", b"ignored: the first one stays")
    archive.symlink("bin/sh", "busybox")
    archive.device("dev/console", 5, 1)
    return archive


@pytest.mark.skipif(find("cpio") is None, reason="cpio is not installed: apt-get install cpio")
def test_cpio_itself_reads_the_archive() -> None:
    listing = subprocess.run(["cpio", "-tv", "--quiet"], input=sample().to_bytes(), capture_output=True,
                             check=True).stdout.decode()
    rows = {line.split()[-1] if "->" not in line else line.split()[-3]: line for line in listing.splitlines()}
    assert list(rows) == ["a", "a/b", "a/b/script", "a/odd", "bin", "bin/sh", "dev", "dev/console"]
    assert rows["a/b/script"].startswith("-rwxr-xr-x") and rows["a/b"].startswith("drwxr-xr-x")
    assert rows["bin/sh"].endswith("bin/sh -> busybox")
    assert rows["dev/console"].startswith("crw-------") and "5,   1" in rows["dev/console"]
    assert rows["a/odd"].split()[4] == "5"


def test_equal_contents_give_equal_bytes_and_parts_are_aligned() -> None:
    data = sample().to_bytes()
    assert data == sample().to_bytes() and len(data) % 4 == 0
    assert all(m.start() % 4 == 0 for m in re.finditer(b"070701", data))


def bzimage(payload: bytes, version: int = 0x20F) -> bytes:
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x202:0x208] = b"HdrS" + struct.pack("<H", version)
    head[0x248:0x250] = struct.pack("<II", 64, len(payload))
    return bytes(head) + bytes(64) + payload + b"after"


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress, lambda d: lzma.compress(d, lzma.FORMAT_ALONE)])
def test_the_kernel_is_taken_out_of_its_packing(pack: Callable[[bytes], bytes]) -> None:
    assert vmlinux(bzimage(pack(ELF))) == ELF


@pytest.mark.parametrize("kernel", [
    bzimage(b"\x02\x21\x4c\x18lz4"), bzimage(lzma.compress(b"no ELF")),
    bzimage(lzma.compress(b"\x7fELF" + bytes(100))),      # no PVH entry: QEMU could not boot it
    bzimage(lzma.compress(ELF), version=0x207), bytes(2048),
])
def test_a_kernel_that_cannot_be_unpacked_is_booted_as_it_is(kernel: bytes) -> None:
    assert vmlinux(kernel) is None


def test_modules_load_after_what_they_need() -> None:
    needs = {"virtio_net": ("net_failover", "virtio"), "net_failover": ("failover",), "e1000": ()}
    order = load_order(("virtio_net", "e1000", "virtio"), lambda name: needs.get(name, ()))
    assert order == ["failover", "net_failover", "virtio", "virtio_net", "e1000"]


def test_needs_are_read_from_the_module() -> None:
    assert module_needs(b"ELF\0license=GPL\0depends=virtio-ring,virtio\0name=x\0") == ("virtio_ring", "virtio")
    assert module_needs(b"\0depends=\0") == () == module_needs(b"nothing")


def test_packed_modules_are_unpacked(tmp_path: Path) -> None:
    tree = tmp_path / "kernel" / "drivers"
    tree.mkdir(parents=True)
    (tree / "8139too.ko.xz").write_bytes(lzma.compress(b"\0depends=mii\0"))
    (tree / "mii.ko").write_bytes(b"\0depends=\0")
    archive = Archive()
    image.add_modules(archive, tmp_path)
    data = archive.to_bytes()
    assert b"mii\n8139too\n" in data and b"lib/modules/8139too.ko\0" in data


def test_a_package_that_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def run(argv: list[str], **settings: object) -> str:
        asked.append(tuple(argv))
        raise ToolFailed(argv, 100, "Err:1 http://mirror.example\nE: Unable to locate package")
    monkeypatch.setattr(image, "run", run)
    with pytest.raises(HostCannot, match="needs package qemu-guest-agent: E: Unable to locate") as caught:
        image.unpacked("qemu-guest-agent", tmp_path, lambda line: None)
    assert "apt-get download qemu-guest-agent" in caught.value.hint
    assert any("update" in argv for argv in asked), "package lists of its own are tried"
    assert all(str(tmp_path) in " ".join(argv) for argv in asked), "the host's lists and cache stay untouched"


def test_fresh_lists_help_where_the_host_has_none(tmp_path: Path) -> None:
    def ask(options: tuple[str, ...]) -> str:
        if not any("Dir::State::Lists" in o for o in options):
            raise ToolFailed(["apt-get"], 100, "E: Unable to locate package x")
        return "found"
    calls: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image, "run", lambda argv, **settings: calls.append(argv) or "")
        assert image.with_lists(tmp_path, "x", ask) == "found"
    assert [c[-1] for c in calls] == ["update"]


def test_busybox_must_be_static(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVMNET_IMAGE_DIR", raising=False)
    monkeypatch.setattr(image, "find", lambda tool: None)
    with pytest.raises(HostCannot) as caught:
        image.build(Paths(tmp_path, tmp_path), lambda line: None)
    assert caught.value.hint == "apt-get install busybox-static"
    monkeypatch.setattr(image, "find", lambda tool: "/bin/ls")
    with pytest.raises(HostCannot, match="statically linked busybox"):
        image.build(Paths(tmp_path, tmp_path), lambda line: None)


def test_any_change_of_the_recipe_makes_a_new_image(monkeypatch: pytest.MonkeyPatch) -> None:
    before = image.recipe()
    assert before == image.recipe()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image, "script", lambda name: "changed")
        assert image.recipe() != before
    monkeypatch.setattr(image, "MODULES", image.MODULES[:-1])
    assert image.recipe() != before


@pytest.mark.parametrize("name", image.SCRIPTS)
def test_scripts_of_the_guest_are_sound_shell(name: str) -> None:
    done = subprocess.run(["sh", "-n"], input=image.script(name), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert image.script(name).startswith("#!/bin/sh\n# ")
