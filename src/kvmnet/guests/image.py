"""The built-in ``tiny`` guest: a Debian kernel and an initial RAM disk, made on first use.

Nothing is installed on the host. The kernel and the guest agent are fetched as packages and
unpacked into a work folder; busybox and the agent's libraries are the host's own. What is made is
kept in ``paths.images`` under a name that changes whenever the recipe below changes.
"""
from __future__ import annotations

import lzma
import re
from collections.abc import Callable, Iterable
from hashlib import blake2s
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

from kvmnet.errors import HostCannot
from kvmnet.guests.cpio import Archive
from kvmnet.guests.kernel import load_order, module_needs, vmlinux
from kvmnet.host.paths import Paths
from kvmnet.host.run import ToolFailed, find, run
from kvmnet.records import dataclass

FORMAT = 2
"""Raised when the code below makes something else of the same files."""
META_PACKAGE = "linux-image-amd64"
AGENT, DHCP6, ETHTOOL = "qemu-guest-agent", "isc-dhcp-client", "ethtool"
NAMES = {"qemu-ga": AGENT, "ethtool": ETHTOOL}
MODULES = ("virtio_pci", "virtio_net", "virtio_console", "virtio_blk", "net_failover", "e1000", "e1000e",
           "pcnet32", "8139cp", "8139too", "vmxnet3", "8021q", "igbvf", "ixgbevf", "iavf")
"""Loaded in this order, each after what it needs. IPv6 and packet sockets are in Debian's kernel."""
LINKS = ("bridge", "veth")
"""Kinds of links whose modules are loaded when the first is made: for containers and guests inside the guest."""
SCRIPTS = {
    "init": "init", "uevent": "lib/kvmnet/uevent", "nic-up": "lib/kvmnet/nic-up", "dhcp4": "lib/kvmnet/dhcp4",
    "dhcp6": "lib/kvmnet/dhcp6", "agent": "lib/kvmnet/agent", "shutdown": "sbin/shutdown", "nic": "bin/nic", "modprobe": "sbin/modprobe",
}
"""File of the ``tiny`` folder -> where it goes in the guest."""
FOLDERS = ("bin", "sbin", "usr/bin", "usr/sbin", "dev", "proc", "sys", "run", "root", "etc", "var/lib/dhcp", "lib64")
TEXTS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n",
    "etc/dhclient6.conf": "send fqdn.fqdn = gethostname();\n"
                          "also request dhcp6.fqdn, dhcp6.domain-search, dhcp6.name-servers;\n",
    "etc/profile": "PS1='\\h:\\w# '\n",
}

Progress = Callable[[str], None]
"""Called with one line of text when a longer piece of work begins."""


@dataclass(frozen=True, slots=True)
class Image:
    kernel: Path
    initrd: Path
    version: str
    """Versions of what is inside, for people to read."""


def build(paths: Paths, progress: Progress) -> Image:
    """The tiny image, from ``paths.images`` when it is there already.

    Raises HostCannot with the name of the package that could not be had.
    """
    folder = paths.images / f"tiny-{recipe()}"
    image = Image(folder / "kernel", folder / "initrd", "")
    stamp = folder / "version"
    if stamp.exists():
        return Image(image.kernel, image.initrd, stamp.read_text().strip())
    busybox = need_busybox()
    paths.images.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=paths.images, prefix="work-") as scratch:
        work = Path(scratch)
        kernel, modules = find_kernel(work, progress)
        agent = find_program("qemu-ga", AGENT, work, progress)
        dhcp6 = find_program("dhclient", DHCP6, work, progress)
        ethtool = find_program("ethtool", ETHTOOL, work, progress)
        progress("putting the tiny guest image together")
        fresh = work / "image"
        fresh.mkdir()
        packed = kernel.read_bytes()
        (fresh / "kernel").write_bytes(vmlinux(packed) or packed)
        (fresh / "initrd").write_bytes(initrd(busybox, modules, (agent, dhcp6, ethtool)))
        version = f"Linux {kernel.name.removeprefix('vmlinuz-')}, recipe {recipe()}"
        (fresh / "version").write_text(version + "\n")
        fresh.chmod(0o755)
        keep(fresh, folder)
    return Image(image.kernel, image.initrd, version)


def recipe() -> str:
    """A short hash of everything in this package that shapes the image."""
    parts = [str(FORMAT), *MODULES, *LINKS, *map(str, TEXTS.items()), *(script(n) for n in sorted(SCRIPTS))]
    return blake2s("\0".join(parts).encode(), digest_size=5).hexdigest()


def script(name: str) -> str:
    return files("kvmnet.guests").joinpath("tiny", name).read_text()


def keep(fresh: Path, folder: Path) -> None:
    """Move the finished image into place; another process may have been faster."""
    try:
        fresh.rename(folder)
    except OSError:
        if not (folder / "version").exists():
            raise


def need_busybox() -> Path:
    path = find("busybox")
    if path is None or libraries(Path(path)):
        raise HostCannot("the tiny guest is made of a statically linked busybox",
                         hint="apt-get install busybox-static")
    return Path(path)


# Packages --------------------------------------------------------------------------------------

def find_kernel(work: Path, progress: Progress) -> tuple[Path, Path]:
    """A kernel with every driver, and its folder of modules: the host's own if it is Debian's full
    one, else the package's."""
    for kernel in sorted(Path("/boot").glob("vmlinuz-*-amd64"), reverse=True):
        modules = Path("/lib/modules") / kernel.name.removeprefix("vmlinuz-")
        if next(modules.rglob("pcnet32.ko*"), None):
            return kernel, modules
    package = newest_kernel(work)
    root = unpacked(package, work, progress)
    kernels = sorted(root.glob("boot/vmlinuz-*"))
    modules_root = next((p for p in (root / "usr/lib/modules", root / "lib/modules") if p.is_dir()), None)
    if not kernels or modules_root is None:
        raise HostCannot(f"package {package} has no kernel in it", hint="it is expected in /boot/vmlinuz-*")
    return kernels[0], modules_root


def newest_kernel(work: Path) -> str:
    """Name of the package that the kernel's meta package depends on."""
    answer = with_lists(work, META_PACKAGE, lambda options: run(
        ["apt-cache", *options, "depends", "--no-recommends", "--no-suggests", META_PACKAGE]))
    found = re.search(r"Depends: (linux-image-[0-9]\S+)", answer)
    if found is None:
        raise cannot_have(META_PACKAGE, "it names no kernel")
    return found[1]


def find_program(name: str, package: str, work: Path, progress: Progress) -> Path:
    """A program of the host, or from *package* when the host has it not."""
    own = find(name)
    if own is not None:
        return Path(own)
    root = unpacked(package, work, progress)
    for folder in ("usr/sbin", "sbin", "usr/bin", "bin"):
        if (path := root / folder / name).exists():
            return path
    raise HostCannot(f"package {package} has no {name} in it")


def unpacked(package: str, work: Path, progress: Progress) -> Path:
    """Folder with the contents of *package*, fetched and unpacked but not installed."""
    progress(f"fetching {package} (it is unpacked for the guest, not installed)")
    root = work / package
    root.mkdir()
    with_lists(work, package, lambda options: fetch(package, root, options))
    archive = next(root.glob("*.deb"))
    try:
        run(["dpkg-deb", "-x", str(archive), str(root)], timeout=300)
    except ToolFailed as failed:
        raise cannot_have(package, failed.detail) from failed
    return root


def fetch(package: str, into: Path, options: tuple[str, ...]) -> str:
    """``apt-get download`` writes into the working directory, hence the shell."""
    return run(["sh", "-c", 'cd "$1" && shift && exec apt-get "$@"', "sh", str(into), *options,
                "-q", "download", package], timeout=600)


def with_lists(work: Path, package: str, ask: Callable[[tuple[str, ...]], str]) -> str:
    """Ask apt with the host's package lists, and with freshly fetched ones of our own if those do
    not know *package* (a fresh system has none). The host's lists stay as they are."""
    own = work / "apt"
    private = ("-o", "APT::Sandbox::User=root", "-o", f"Dir::Cache={own}/cache")
    try:
        return ask(private)
    except ToolFailed:
        pass
    fresh = (*private, "-o", f"Dir::State::Lists={own}/lists")
    try:
        if not own.exists():
            for name in ("cache/archives/partial", "lists/partial"):
                (own / name).mkdir(parents=True)
            run(["apt-get", *fresh, "-q", "update"], timeout=300)
        return ask(fresh)
    except ToolFailed as failed:
        raise cannot_have(package, failed.detail) from failed


def cannot_have(package: str, reason: str) -> HostCannot:
    return HostCannot(f"the tiny guest needs package {package}: {reason.splitlines()[-1] if reason else 'no reason'}",
                      hint=f"check that `apt-get update && apt-get download {package}` works here")


# The RAM disk ----------------------------------------------------------------------------------

def initrd(busybox: Path, modules: Path, programs: Iterable[Path]) -> bytes:
    """An uncompressed archive: unpacking it costs the guest less than decompressing."""
    archive = Archive()
    for folder in FOLDERS:
        archive.directory(folder)
    archive.device("dev/console", 5, 1)
    for name, where in SCRIPTS.items():
        archive.file(where, script(name).encode(), 0o755)
    for where, text in TEXTS.items():
        archive.file(where, text.encode())
    for program in programs:
        add_program(archive, program)
    add_modules(archive, modules)
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    for applet in run([str(busybox), "--list"]).split():
        archive.symlink(f"bin/{applet}", "busybox")
    return archive.to_bytes()


def add_program(archive: Archive, program: Path) -> None:
    archive.file(f"bin/{program.name}", program.read_bytes(), 0o755)
    for library in libraries(program):
        archive.file(str(library), library.read_bytes(), 0o755)


def libraries(program: Path) -> list[Path]:
    """Shared libraries and the loader of *program*, where the program looks for them.

    Raises HostCannot when the host lacks one.
    """
    try:
        listing = run(["ldd", str(program)])
    except ToolFailed:
        return []
    lacking = re.findall(r"^\s*(\S+) => not found", listing, re.MULTILINE)
    if lacking:
        raise HostCannot(f"{program.name} needs {', '.join(lacking)}, which this host lacks",
                         hint=f"apt-get install {NAMES.get(program.name, DHCP6)}")
    return [Path(p) for p in re.findall(r"(/\S+) \(0x", listing)]


def add_modules(archive: Archive, folder: Path) -> None:
    """The modules, flat, and the order to load them in; for a kind of links a list of its own."""
    where = {p.name.split(".")[0].replace("-", "_"): p for p in folder.rglob("*.ko*")}
    contents: dict[str, bytes] = {}

    def needs(name: str) -> tuple[str, ...]:
        contents[name] = read_module(where[name])
        return module_needs(contents[name])

    order = load_order((m for m in MODULES if m in where), needs)
    lists = {"order": order} | {f"rtnl-link-{kind}": load_order((kind,), needs) for kind in LINKS if kind in where}
    for name in contents:
        archive.file(f"lib/modules/{name}.ko", contents[name])
    for name, names in lists.items():
        archive.file(f"lib/modules/{name}", "".join(f"{n}\n" for n in names).encode())


def read_module(path: Path) -> bytes:
    """A module, uncompressed (Debian 13 compresses them with xz)."""
    content = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(content)
    return content
