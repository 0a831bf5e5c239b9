"""Parts of some labs that no package of the machine's own release has: netdevsim, and a QEMU that knows igb.

Both are fetched by apt from where this machine gets its packages, unpacked and not installed, and kept beside the
images. apt works in folders of its own: the machine's lists and sources stay as they are.
"""
from __future__ import annotations

import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from kvmnet.errors import HostCannot
from kvmnet.guests.image import Progress, keep
from kvmnet.host.run import ToolFailed, find, missing, run

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SOURCE = "drivers/net/netdevsim"
QEMU = "qemu-system-x86_64"
QEMU_PACKAGES = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")
BUILD_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Qemu:
    """A QEMU to boot a lab with."""

    program: Path
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


class Apt:
    """apt with lists, cache and, if any, sources of its own, in *folder*."""

    def __init__(self, folder: Path, sources: str = ""):
        self.folder = folder
        for name in ("lists/partial", "cache/archives/partial", "parts"):
            (folder / name).mkdir(parents=True)
        self.options = ["-q", "-o", "APT::Sandbox::User=root", "-o", f"Dir::Cache={folder}/cache",
                        "-o", f"Dir::State::Lists={folder}/lists"]
        if sources:
            (folder / "sources.list").write_text(sources)
            self.options += ["-o", f"Dir::Etc::SourceList={folder}/sources.list", "-o", f"Dir::Etc::SourceParts={folder}/parts"]
        self.ask("apt-get", "update")

    def ask(self, program: str, *words: str) -> str:
        """Raises HostCannot."""
        try:
            return run(["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", str(self.folder), program, *self.options, *words],
                       timeout=600)
        except ToolFailed as failed:
            raise HostCannot(f"{program} {' '.join(words)}: {failed.detail.splitlines()[-1] if failed.detail else 'no reason'}",
                             "check that apt-get update works here") from failed

    def unpack(self, package: str, into: Path) -> str:
        """Fetch a package and unpack it; its version."""
        archive = self.fetch(package)
        run(["dpkg-deb", "-x", str(archive), str(into)], timeout=300)
        return run(["dpkg-deb", "-f", str(archive), "Version"]).strip()

    def fetch(self, package: str) -> Path:
        before = set(self.folder.glob("*.deb"))
        self.ask("apt-get", "download", package)
        return next(iter(set(self.folder.glob("*.deb")) - before))


# -- netdevsim -------------------------------------------------------------------------------------

def netdevsim(folder: Path, release: str, progress: Progress) -> Path:
    """The module for the lab's kernel *release*: simulated NICs with VFs that remember what they are told. Debian does
    not build it. Raises HostCannot."""
    made = folder / f"netdevsim-{release}"
    if not (made / "netdevsim.ko").exists():
        for tool in ("gcc", "make"):
            if why := missing(tool):
                raise HostCannot(why, f"apt-get install {tool}")
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix="work-") as scratch:
            keep(built(Path(scratch), release, progress), made)
    return made / "netdevsim.ko"


def built(work: Path, release: str, progress: Progress) -> Path:
    progress(f"building netdevsim for {release} (fetches 150 MB)")
    apt, root = Apt(work / "apt"), work / "root"
    try:
        version = apt.unpack(f"linux-headers-{release}", root)
    except HostCannot as gone:
        raise HostCannot(str(gone), "if the lab's kernel is older than the mirror's, remove its image (lab-...): the next "
                         "run fetches a newer one") from gone
    needed = run(["dpkg-deb", "-f", str(next(apt.folder.glob("linux-headers-*.deb"))), "Depends"])
    for package in re.findall(r"linux-(?:headers|kbuild)-\S+", needed):
        apt.unpack(package, root)
    line = ".".join(version.split(".")[:2])
    archive = apt.fetch(f"linux-source-{line}={version}")
    source, headers = work / "source", root / "usr/src" / f"linux-headers-{release}"
    source.mkdir()
    run(["sh", "-c", 'dpkg-deb --fsys-tarfile "$1" | tar -xO "./usr/src/linux-source-$2.tar.xz" | tar -xJ -C "$3" '
         '--strip-components=1 "linux-source-$2/$4"', "sh", str(archive), line, str(source), SOURCE], timeout=BUILD_SECONDS)
    makefile = headers / "Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src/", f"{root}/usr/src/"))
    run(["make", "-C", str(headers), f"M={source / SOURCE}", "CONFIG_NETDEVSIM=m", "modules"], timeout=BUILD_SECONDS)
    fresh = work / "image"
    fresh.mkdir(mode=0o755)
    shutil.copy(source / SOURCE / "netdevsim.ko", fresh)
    return fresh


# -- a QEMU with igb -------------------------------------------------------------------------------

def qemu_with_igb(folder: Path, progress: Progress) -> Qemu:
    """The machine's own QEMU if it has the igb card (8.0 and later), else that of the release's backports.
    Raises HostCannot."""
    own = find(QEMU)
    if own and has_igb(Qemu(Path(own))):
        return Qemu(Path(own))
    system = platform.freedesktop_os_release()
    suite = f"{system.get('VERSION_CODENAME', '')}-backports"
    made = folder / f"qemu-{suite}"
    if not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix="work-") as scratch:
            progress(f"fetching QEMU from {suite} (it is unpacked, not installed)")
            apt, fresh = Apt(Path(scratch, "apt"), backports(suite, Path(scratch, "own"))), Path(scratch, "image")
            for package in QEMU_PACKAGES:
                apt.unpack(package, fresh)
            fresh.chmod(0o755)
            keep(fresh, made)
    share = made / "usr/share"
    return Qemu(made / "usr/bin" / QEMU, ("-L", f"{share}/qemu", "-L", f"{share}/seabios"),
                (("QEMU_MODULE_DIR", str(next(made.glob("usr/lib/*/qemu")))),))


def has_igb(qemu: Qemu) -> bool:
    return 'name "igb"' in run([str(qemu.program), "-device", "help"])


def backports(suite: str, work: Path) -> str:
    """A source of apt: the mirror that the machine has its release from, with another suite. *work*: for lists of our
    own, where the machine has none (a fresh one)."""
    release, words = suite.removesuffix("-backports"), ("indextargets", "--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)")
    listed = run(["apt-get", *words]) or Apt(work).ask("apt-get", *words)
    for line in listed.splitlines():
        codename, component, uri = line.split(maxsplit=2)
        if (codename, component) == (release, "main"):
            signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
            return f"deb {signed}{uri} {suite} main\n"
    raise HostCannot(f"apt on this machine has no source for {release}", "the lab's QEMU comes from its backports")
