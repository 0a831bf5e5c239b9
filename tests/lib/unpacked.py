"""Programs that tests need and the machine shall not get: Debian's packages, fetched and unpacked beside the guests' images. To install them would
start services, or change what kvmnet finds on this host."""
from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from kvmnet.guests.image import keep, with_lists
from kvmnet.host import run as host
from lib.lab_image import image_folder


def unpacked(name: str, packages: Sequence[str]) -> Path:
    """Folder with the programs as they would be under /. Raises HostCannot with the package that could not be had."""
    made = image_folder() / f"{name}-{platform.freedesktop_os_release().get('VERSION_ID', '')}"
    if not made.exists():
        image_folder().mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=image_folder(), prefix="work-") as scratch:
            work, fresh = Path(scratch), Path(scratch, "image")
            fresh.mkdir()
            with_lists(work, packages[0], partial(fetch, work, packages))
            for archive in work.glob("*.deb"):
                host.run(["dpkg-deb", "-x", str(archive), str(fresh)], timeout=120)
            (fresh / "version").write_text("1\n")
            fresh.chmod(0o755)
            keep(fresh, made)
    return made


def fetch(into: Path, packages: Sequence[str], options: tuple[str, ...]) -> str:
    """All by one apt: to read its lists is most of the time."""
    return host.run(["sh", "-c", 'cd "$1" && shift && exec apt-get "$@"', "sh", str(into), *options, "-q", "download", *packages], timeout=600)


@contextmanager
def on_path(root: Path, *folders: str, **settings: str) -> Iterator[None]:
    """The programs of *root* are found by this process, by kvmnet and by all that they start. ``folders``: besides usr/bin and usr/sbin."""
    library = next(root.glob("usr/lib/*-linux-gnu*"))
    path, before = host.SEARCH_PATH, dict(os.environ)
    host.SEARCH_PATH = ":".join((*(f"{root}/{folder}" for folder in ("usr/bin", "usr/sbin", *folders)), path))
    os.environ.update({"PATH": host.SEARCH_PATH, "LD_LIBRARY_PATH": str(library), **settings})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        host.SEARCH_PATH = path
