"""The files of a format on this host, or those that are named, in the order in which the format reads them."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from glob import glob
from pathlib import Path

from kvmnet.adopt import ifupdown, netplan, networkd, nmstate
from kvmnet.adopt.model import Layout, Source
from kvmnet.errors import KvmnetError
from kvmnet.records import dataclass

LARGEST = 16 * 2**20
DEEPEST = 8
"""Levels of files that read others."""


@dataclass(frozen=True, slots=True)
class Format:
    """``places``: patterns below the root; of one base name the first place counts."""

    parse: Callable[[Sequence[Source]], Layout]
    places: tuple[str, ...]
    by_name: bool = False


FORMATS: dict[str, Format] = {
    "netplan": Format(netplan.parse, ("run/netplan/*.yaml", "etc/netplan/*.yaml", "usr/lib/netplan/*.yaml"), True),
    "ifupdown": Format(ifupdown.parse, ("etc/network/interfaces",)),
    "networkd": Format(networkd.parse, tuple(
        f"{place}/systemd/network/{name}" for place in ("etc", "run", "usr/lib")
        for name in ("*.netdev", "*.network", "*.network.d/*.conf", "*.netdev.d/*.conf")), True),
    "nmstate": Format(nmstate.parse, ("etc/nmstate/*.yml", "etc/nmstate/*.yaml"), True),
}


def import_files(name: str, paths: Iterable[Path], root: Path = Path("/")) -> tuple[Layout, tuple[str, ...]]:
    """The layout in the files of format *name*, and which files were read. Without *paths*: the host's own.

    Raises KvmnetError for a file that cannot be read, SpecError for one that cannot be parsed.
    """
    form = FORMATS[name]
    sources = given(paths) or own(form, root)
    if not sources:
        raise KvmnetError(f"{name}: this host has none of {', '.join('/' + p for p in form.places[:3])}",
                          "name the files to import")
    if name == "ifupdown":
        sources = followed(sources)
    return form.parse(sources), tuple(s.path for s in sources)


def given(paths: Iterable[Path]) -> list[Source]:
    """The named files; a directory stands for the files in it."""
    found: list[Source] = []
    for path in paths:
        files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
        found += [read(f) for f in files]
    return found


def own(form: Format, root: Path) -> list[Source]:
    chosen: dict[str, Path] = {}
    for pattern in form.places:
        for file in sorted(root.glob(pattern)):
            name = f"{file.parent.name}/{file.name}" if file.suffix == ".conf" else file.name
            chosen.setdefault(name, file)
    files = [chosen[name] for name in sorted(chosen)] if form.by_name else list(chosen.values())
    return [read(f) for f in files]


def followed(sources: Sequence[Source], depth: int = 0) -> list[Source]:
    """*sources* with the files that they read in turn."""
    out: list[Source] = []
    for source in sources:
        out.append(source)
        for pattern, directory in ifupdown.included(source):
            place = str(Path(source.path).parent / pattern)
            names = glob(f"{place}/*" if directory else place) if "\0" not in place else []  # noqa: PTH207
            files = [Path(p) for p in sorted(names) if Path(p).is_file()]
            if depth >= DEEPEST:
                raise KvmnetError(f"{source.path}: files read each other more than {DEEPEST} levels deep")
            out += followed([read(f) for f in files], depth + 1)
    return list({s.path: s for s in out}.values())


def read(path: Path) -> Source:
    try:
        with open(path, "rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise KvmnetError(f"{path}: cannot be read: {error.strerror}") from None
    if len(raw) > LARGEST:
        raise KvmnetError(f"{path} is larger than {LARGEST // 2**20} MiB")
    return Source(str(path), raw.decode("utf-8-sig", errors="replace"))
