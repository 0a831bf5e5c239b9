"""kvmnet-load, compiled on first use: one static program that runs on the host and in any guest."""
from __future__ import annotations

from hashlib import blake2s
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

from kvmnet.errors import HostCannot
from kvmnet.guests.cpio import Archive
from kvmnet.host.paths import Paths
from kvmnet.host.run import ToolFailed, missing, run

NAME = "kvmnet-load"
SOURCES = ("load.h", "server.c", "client.c")
FLAGS = ("-O2", "-static", "-w")


def program(paths: Paths) -> Path:
    """The program, from ``paths.images`` when it is there already. Raises HostCannot."""
    texts = {name: files("kvmnet.bench.traffic").joinpath(name).read_text() for name in SOURCES}
    recipe = blake2s("\0".join((*FLAGS, *texts.values())).encode(), digest_size=5).hexdigest()
    made = paths.images / f"{NAME}-{recipe}"
    if made.exists():
        return made
    if lacking := missing("cc"):
        raise HostCannot(f"the load generator is compiled on first use: {lacking}", "apt-get install gcc libc6-dev")
    paths.images.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=paths.images, prefix="work-") as scratch:
        work = Path(scratch)
        for name, text in texts.items():
            (work / name).write_text(text)
        try:
            run(["cc", *FLAGS, "-o", str(work / NAME), *(str(work / n) for n in SOURCES if n.endswith(".c"))], timeout=300)
        except ToolFailed as failed:
            raise HostCannot(f"the load generator cannot be compiled: {failed.detail}", "apt-get install gcc libc6-dev") from failed
        (work / NAME).chmod(0o755)
        (work / NAME).replace(made)
    return made


def initrd_with(initrd: Path, load: Path) -> bytes:
    """The RAM disk *initrd* with the program in it. The kernel unpacks archives that follow each other
    (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    extra = Archive()
    extra.file(f"bin/{NAME}", load.read_bytes(), 0o755)
    return initrd.read_bytes() + extra.to_bytes()
