"""What is kept on disk of our tables: the memberships as they were loaded, and what the keeper loads when our tables vanish."""
from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kvmnet.drivers.kinds import from_json, to_json
from kvmnet.drivers.nftables.elements import Told
from kvmnet.drivers.nftables.look import program, write_whole
from kvmnet.drivers.nftables.members import Member
from kvmnet.drivers.nftables.restored import changed
from kvmnet.drivers.nftables.standing import Standing
from kvmnet.engine.resource import Key


class Saved:
    """Files in the guard's folder, which the keeper reads, too."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.members, self.ruleset, self.changing = folder / "members.json", folder / "ruleset.nft", folder / "changing"
        self.seal = folder / "seal"
        self.written: tuple[str, Mapping[Key, Member]] = ("", {})
        """What this process wrote, as a text and as it is."""

    def noted(self) -> str:
        """The file of memberships, limits and address sets as they were loaded last."""
        try:
            return self.members.read_text()
        except OSError:
            return ""

    def remembered(self, text: str) -> dict[Key, Member]:
        """What stands in that file. What this process wrote is not read again."""
        if text == self.written[0]:
            return dict(self.written[1])
        try:
            items = json.loads(text)
        except ValueError:
            return {}
        made = (from_json(item) for item in items)
        return {item.key: item for item in made if isinstance(item, Member)}

    def save(self, standing: Standing, fresh: Told | None = None) -> None:
        """Write down what stands. ``fresh``: all that has changed since, when that is known to be elements."""
        ours = bool(fresh) and self.is_ours()
        if standing.members:
            noted = json.dumps([to_json(item) for item in standing.members.values()])
            write_whole(self.members, noted)
            self.written = noted, standing.members
        else:
            self.members.unlink(missing_ok=True)
        if standing.tables:
            write_whole(self.ruleset, changed(self.ruleset.read_text(), fresh) if fresh and ours else "\n".join((*standing.script(), "")))
            write_whole(self.seal, self.sealed())
        else:
            self.ruleset.unlink(missing_ok=True)
            self.seal.unlink(missing_ok=True)

    def sealed(self) -> str:
        """What changes with every change of the program, and when another hand writes one of both files."""
        told = (file.stat() for file in (self.members, self.ruleset) if file.exists())
        return " ".join((program(), *(f"{s.st_dev} {s.st_ino} {s.st_mtime_ns} {s.st_size}" for s in told)))

    def is_ours(self) -> bool:
        """Whether both files are what was written last."""
        try:
            return self.seal.read_text() == self.sealed()
        except OSError:
            return False

    @contextmanager
    def undisturbed(self) -> Iterator[bool]:
        """The keeper restores nothing meanwhile; the file says so until the change is saved, too. True when the change before was cut
        off, and the files do not tell of it."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(self.changing, "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            stale = bool(lock.tell())
            lock.write("x")
            lock.flush()
            yield stale
            lock.truncate(0)

    def cut_off(self) -> bool:
        """A change was cut off before it was saved, or is under way."""
        try:
            return bool(self.changing.read_bytes())
        except OSError:
            return False

    def catch_up(self, save: Callable[[], None]) -> None:
        """After a change that was cut off before it was saved: *save* what there is."""
        try:
            with open(self.changing, "r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if lock.read(1):
                    save()
                    lock.truncate(0)
        except (FileNotFoundError, BlockingIOError):
            return
