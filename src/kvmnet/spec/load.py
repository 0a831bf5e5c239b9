"""Read a document: every problem of it at once, each with its line and column. Pure but for one file."""
from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kvmnet.errors import KvmnetError, Problem, SpecError
from kvmnet.records import dataclass, field, replace
from kvmnet.spec import tree
from kvmnet.spec.form import ValidationError
from kvmnet.spec.models import Spec
from kvmnet.spec.source import LARGEST, content


@dataclass(slots=True)
class Document:
    """A document that loaded, with its text, so that later findings get their lines too."""

    spec: Spec
    source: str
    """Where it comes from, as errors name it."""
    text: str
    _places: tree.Places | None = field(default=None, repr=False)

    def places(self) -> tree.Places:
        """Where everything stands. The text is read a second time on the first call only."""
        if self._places is None:
            self._places = tree.locate(self.text)
        return self._places

    def locate(self, path: str) -> tuple[int, int]:
        """1-based line and column of the value at dotted *path*, or of what is nearest above it."""
        return self.places().value(path)

    def located(self, problems: Iterable[Problem]) -> list[Problem]:
        """*problems* with the lines of their paths, in the order of the document."""
        return sorted(_located(problems, self.places()) if (problems := list(problems)) else ())


def load(path: Path | str, raw: bytes = b"") -> Document:
    """The document in the file at *path*; *raw*: its content, where that was read before (a pipe gives it
    once). Raises SpecError for what is wrong in it, KvmnetError for a file that cannot be read."""
    source = str(path)
    try:
        raw = raw or content(path)
    except FileNotFoundError:
        raise KvmnetError(f"{source}: no such file", "kvmnet init writes one to start from") from None
    except IsADirectoryError:
        raise KvmnetError(f"{source} is a directory", "give the document itself") from None
    except PermissionError:
        raise KvmnetError(f"{source}: permission denied", "run as a user who may read it, e.g. with sudo") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise KvmnetError(f"{source}: cannot be read: {reason}") from None
    if len(raw) > LARGEST:
        raise KvmnetError(f"{source} is larger than {LARGEST // 2**20} MiB; that is no document of kvmnet")
    return loads(_decoded(raw, source), source)


def loads(text: str, source: str = "document") -> Document:
    """The document in *text*; *source* names it in errors. Raises SpecError."""
    with _collector_off():
        try:
            data, repeats = tree.read(text)
        except tree.Unreadable as error:
            raise SpecError(source, [error.problem]) from None
        try:
            spec = Spec.model_validate(data)
        except ValidationError as error:
            raise SpecError(source, _problems(error, data, text)) from None
        if repeats:
            raise SpecError(source, _problems(None, data, text))
        return Document(spec, source, text)


def _problems(error: ValidationError | None, data: tree.Tree, text: str) -> list[Problem]:
    from kvmnet.spec import explain, rest  # only a wrong document needs them

    places = tree.locate(text)
    form = [*places.repeated, *(explain.problems(error, data, places) if error else ())]
    return [*form, *_located(rest.problems(data, (p.path for p in places.repeated)), places)]


def _located(problems: Iterable[Problem], places: tree.Places) -> Iterator[Problem]:
    for problem in problems:
        line, column = places.value(problem.path) if problem.path else (1, 1)
        yield replace(problem, line=line, column=column)


def _decoded(raw: bytes, source: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[:error.start]
        line = before.count(b"\n") + 1
        column = error.start - before.rfind(b"\n")
        raise SpecError(source, [Problem(
            line, column, "", f"byte 0x{raw[error.start]:02x} is not UTF-8", "save the file as UTF-8")]) from None


@contextmanager
def _collector_off() -> Iterator[None]:
    """Without the garbage collector: the many small objects of a large document make it run all the time
    for nothing (10,000 guests: a third of the time)."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
