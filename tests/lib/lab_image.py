"""What the lab boots: a full Debian kernel with all its modules, and the RAM disk that finds the root.

The kernel's package is fetched and unpacked, not installed (kvmnet.guests.image does it), and kept beside
the guests' images as ``lab-...``. The RAM disk is made anew for each boot: it takes milliseconds.
"""
from __future__ import annotations

import os
import platform
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2s
from pathlib import Path
from tempfile import TemporaryDirectory

from kvmnet.guests.cpio import Archive
from kvmnet.guests.image import Progress, find_kernel, keep, need_busybox, read_module
from kvmnet.guests.kernel import load_order, module_needs, vmlinux
from kvmnet.host.run import run

Ignore = Callable[[str, list[str]], set[str]]
FORMAT = 2
"""Raised when the code below makes something else of the same package."""
ROOT = Path(__file__).parents[2]
INIT = Path(__file__).with_name("lab_init.sh")
BOOT_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_console", "virtio_rng")
"""Needed before there is a root; everything else is loaded from /lib/modules."""
UNUSED = ("sound", *(f"drivers/{name}" for name in (
    "gpu", "media", "iio", "staging", "hid", "usb", "input", "infiniband/hw", "hwmon", "power", "leds", "mmc",
    "platform", "scsi", "ata", "md", "bluetooth", "i2c/busses", "thunderbolt", "target", "net/wireless", "nfc")))
"""Folders of modules that the lab leaves out: three quarters of the package."""


@dataclass(frozen=True, slots=True)
class LabImage:
    kernel: Path
    modules: Path
    """Folder as /lib/modules/RELEASE is."""

    @property
    def release(self) -> str:
        return self.modules.name


def image_folder() -> Path:
    """Where images are kept between runs."""
    chosen = os.environ.get("KVMNET_IMAGE_DIR")
    return Path(chosen) if chosen else ROOT / ".cache" / "images"


def build(folder: Path, progress: Progress) -> LabImage:
    """The lab's kernel, from *folder* when it is there already.

    Raises HostCannot with the name of the package that could not be had.
    """
    made = folder / f"lab-{recipe()}"
    if not (made / "version").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix="work-") as scratch:
            keep(unpack(Path(scratch), progress), made)
    return LabImage(made / "vmlinux", made / "modules" / (made / "version").read_text().strip())


def recipe() -> str:
    """A short hash of what decides about the image: Debian's release and this code's version."""
    release = platform.freedesktop_os_release().get("VERSION_ID", "")
    return blake2s(f"{FORMAT} {release} {UNUSED}".encode(), digest_size=5).hexdigest()


def unpack(work: Path, progress: Progress) -> Path:
    kernel, found = find_kernel(work, progress)
    release = kernel.name.removeprefix("vmlinuz-")
    modules = found if found.name == release else found / release
    fresh = work / "image"
    progress(f"putting the lab's kernel {release} together")
    here = fresh / "modules" / release
    shutil.copytree(modules, here, symlinks=True, ignore=unused(modules / "kernel"))
    for link in ("build", "source"):
        (here / link).unlink(missing_ok=True)
    under = work / "depmod" / "lib"
    under.mkdir(parents=True)
    (under / "modules").symlink_to(fresh / "modules")
    run(["depmod", "-b", str(under.parent), release], timeout=120)
    packed = kernel.read_bytes()
    (fresh / "vmlinux").write_bytes(vmlinux(packed) or packed)
    (fresh / "version").write_text(release + "\n")
    fresh.chmod(0o755)
    return fresh


def unused(kernel: Path) -> Ignore:
    out = {kernel / name for name in UNUSED}
    return lambda folder, names: {n for n in names if Path(folder) / n in out}


def initrd(image: LabImage, program: Sequence[str]) -> bytes:
    """The RAM disk: busybox, a few modules in their order, and the script that mounts the root and
    becomes *program*."""
    archive = Archive()
    for folder in ("bin", "dev", "proc", "sys", "lower", "rw", "modules"):
        archive.directory(folder)
    archive.device("dev/console", 5, 1)
    archive.file("init", INIT.read_bytes(), 0o755)
    archive.file("words", f"RELEASE={image.release} MODULES={shlex.quote(str(image.modules))}\n"
                          f"set -- {shlex.join(program)}\n".encode())
    where = {p.name.split(".")[0].replace("-", "_"): p for p in image.modules.rglob("*.ko*")}
    contents: dict[str, bytes] = {}

    def needs(name: str) -> tuple[str, ...]:
        contents[name] = read_module(where[name])
        return module_needs(contents[name])

    order = load_order((m for m in BOOT_MODULES if m in where), needs)
    for name in order:
        archive.file(f"modules/{name}.ko", contents[name])
    archive.file("order", "".join(f"/modules/{n}.ko\n" for n in order).encode())
    archive.file("bin/busybox", need_busybox().read_bytes(), 0o755)
    return archive.to_bytes()
