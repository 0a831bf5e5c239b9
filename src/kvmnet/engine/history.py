"""Numbered history: who applied what, when, from which file; and the addresses that NICs keep for ever.

One SQLite file. A row is written before the host is changed, so that a full disk is found while
nothing is lost, and finished afterwards. sqlite3 is imported when it is first needed: commands that
read no history start faster.
"""
from __future__ import annotations

import json
import os
import pwd
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvmnet.errors import HostCannot, KvmnetError
from kvmnet.facts.model import Allocation, Allocations
from kvmnet.host.files import make_directory, readable_errors
from kvmnet.records import dataclass, field

if TYPE_CHECKING:
    import sqlite3

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE revisions (
            number INTEGER PRIMARY KEY AUTOINCREMENT, created TEXT NOT NULL, who TEXT NOT NULL,
            source TEXT NOT NULL, document BLOB NOT NULL, sha256 TEXT NOT NULL, summary TEXT NOT NULL,
            status TEXT NOT NULL, finished TEXT, message TEXT NOT NULL DEFAULT '')""",
        "CREATE INDEX revisions_status ON revisions (status, number)",
        """CREATE TABLE allocations (
            vm TEXT NOT NULL, nic TEXT NOT NULL, network TEXT NOT NULL, mac TEXT NOT NULL, ip TEXT NOT NULL,
            ip6 TEXT NOT NULL, first_seen TEXT NOT NULL, last_used TEXT NOT NULL,
            PRIMARY KEY (vm, nic, network)) WITHOUT ROWID""",
    ),
    ("ALTER TABLE allocations ADD COLUMN vf INTEGER NOT NULL DEFAULT -1",),
)
"""``MIGRATIONS[n]`` turns a database of version n into n + 1. Never edited, only added to."""

BUSY_SECONDS = 5.0


class Status(StrEnum):
    PENDING = "pending"
    CONFIRMED = "confirmed"
    ROLLED_BACK = "rolled-back"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Change:
    """What history keeps of one change."""

    document: str
    source: str
    """Path of the file that the document was read from; '' when it came from elsewhere."""
    command: str = "kvmnet apply"
    """What other writers are told that we are doing."""
    allocations: Allocations = field(default_factory=dict)
    """What the NICs of this document use."""


@dataclass(frozen=True, slots=True)
class Revision:
    number: int
    created: str
    """ISO 8601, UTC."""
    who: str
    source: str
    sha256: str
    """Of the document."""
    summary: Mapping[str, int]
    """Counts of the steps: create, update, delete."""
    status: Status
    finished: str
    """When it was confirmed, rolled back or given up, ISO 8601; '' while pending."""
    message: str


class History:
    """The database of one host. Every method opens, works and closes: nothing crosses a fork."""

    def __init__(self, path: Path):
        self.path = path

    def begin(self, change: Change, summary: Mapping[str, int], status: Status = Status.PENDING) -> int:
        """Record a change that is about to be made; gives its number. Raises HostCannot, KvmnetError."""
        blob = zlib.compress(change.document.encode(), 6)
        finished = None if status is Status.PENDING else now()
        with self.writing() as db:
            self.store(db, change.allocations)
            return int(db.execute(
                "INSERT INTO revisions (created, who, source, document, sha256, summary, status, finished)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (now(), who(), change.source, blob, digest(change.document), json.dumps(dict(summary)),
                 status.value, finished)).lastrowid or 0)

    def finish(self, number: int, status: Status, message: str = "") -> None:
        """Say how a change ended. Raises HostCannot, KvmnetError."""
        with self.writing() as db:
            db.execute("UPDATE revisions SET status = ?, finished = ?, message = ? WHERE number = ?",
                       (status.value, now(), message, number))

    def abandon_pending(self, message: str) -> None:
        """Mark what an earlier boot left pending as rolled back."""
        if self.path.exists() and self.revisions(1, Status.PENDING):
            with self.writing() as db:
                db.execute("UPDATE revisions SET status = ?, finished = ?, message = ? WHERE status = ?",
                           (Status.ROLLED_BACK.value, now(), message, Status.PENDING.value))

    def revisions(self, limit: int = 100, status: Status | None = None) -> list[Revision]:
        """The newest first."""
        where, values = ("WHERE status = ?", [status.value]) if status else ("", [])
        with self.reading() as db:
            rows = [] if db is None else db.execute(
                "SELECT number, created, who, source, sha256, summary, status, finished, message"
                f" FROM revisions {where} ORDER BY number DESC LIMIT ?", (*values, limit)).fetchall()
        return [Revision(n, created, by, source, sha, json.loads(summary), Status(state), finished or "", message)
                for n, created, by, source, sha, summary, state, finished, message in rows]

    def last_confirmed(self) -> Revision | None:
        return next(iter(self.revisions(1, Status.CONFIRMED)), None)

    def document(self, number: int) -> str:
        """The document of a revision. Raises KvmnetError when there is no such revision."""
        with self.reading() as db:
            row = None if db is None else db.execute(
                "SELECT document FROM revisions WHERE number = ?", (number,)).fetchone()
        if row is None:
            raise KvmnetError(f"there is no revision {number}", "see: kvmnet history")
        return zlib.decompress(row[0]).decode()

    def allocations(self) -> dict[tuple[str, str, str], Allocation]:
        with self.reading() as db:
            rows = [] if db is None else db.execute("SELECT vm, nic, network, mac, ip, ip6, vf FROM allocations")
            return {(vm, nic, network): Allocation(mac, ip, ip6, vf) for vm, nic, network, mac, ip, ip6, vf in rows}

    def save_allocations(self, allocations: Allocations) -> None:
        """Add or change; nothing is ever forgotten. Raises HostCannot, KvmnetError."""
        with self.writing() as db:
            self.store(db, allocations)

    def store(self, db: sqlite3.Connection, allocations: Allocations) -> None:
        if not allocations:
            return
        known = {tuple(row[:3]): tuple(row[3:]) for row in
                 db.execute("SELECT vm, nic, network, mac, ip, ip6, vf FROM allocations")}
        time = now()
        fresh = [(*key, a.mac, a.ip, a.ip6, time, time, a.vf) for key, a in allocations.items()
                 if known.get(key) != (a.mac, a.ip, a.ip6, a.vf)]
        db.executemany(
            "INSERT INTO allocations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (vm, nic, network) DO UPDATE SET mac ="
            " excluded.mac, ip = excluded.ip, ip6 = excluded.ip6, last_used = excluded.last_used, vf = excluded.vf", fresh)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One durable transaction, on a database of the current version."""
        make_directory(self.path.parent)
        self.keep_private()
        with self.connected("rwc") as db:
            self.upgrade(db)
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")

    def keep_private(self) -> None:
        """Documents are root's own, as the file was perhaps that they came from. SQLite gives its journal
        the mode of the database."""
        with readable_errors(self.path, "open"):
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.fchmod(fd, 0o600)
            finally:
                os.close(fd)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection | None]:
        """The database, upgraded if it is an older one; None where there is none yet."""
        if not self.path.exists():
            yield None
            return
        with self.connected("rw" if os.access(self.path, os.W_OK) else "ro") as db:
            self.upgrade(db)
            yield db

    @contextmanager
    def connected(self, mode: str) -> Iterator[sqlite3.Connection]:
        import sqlite3

        db = None
        try:
            with readable_errors(self.path, "open"):
                db = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode={mode}", uri=True,
                                     timeout=BUSY_SECONDS, isolation_level=None)
            db.execute("PRAGMA synchronous = FULL")
            yield db
        except sqlite3.Error as error:
            raise explained(self.path, error) from error
        finally:
            if db is not None:
                db.close()

    def upgrade(self, db: sqlite3.Connection) -> None:
        """Bring the schema up to date in one transaction; an older database is copied aside first."""
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        newest = len(MIGRATIONS)
        if version == newest:
            return
        if version > newest:
            raise KvmnetError(f"{self.path}: made by a newer kvmnet (version {version}, this one knows {newest})",
                              "install that version again, or set KVMNET_STATE_DIR to another directory")
        if version:
            with readable_errors(self.path, "copy"):
                shutil.copyfile(self.path, self.path.with_name(f"{self.path.name}.v{version}"))
        db.execute("BEGIN IMMEDIATE")
        version = int(db.execute("PRAGMA user_version").fetchone()[0])  # another process may have been faster
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {newest}")
        db.execute("COMMIT")


def explained(path: Path, error: sqlite3.Error) -> KvmnetError:
    """SQLite's error as one that says what to do."""
    import sqlite3

    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    match code:
        case sqlite3.SQLITE_FULL:
            return HostCannot(f"cannot write {path}: no space left on the disk", "make room there")
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN:
            return HostCannot(f"cannot write {path}: {error}", "look at the disk (df, dmesg) and its permissions")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return HostCannot(f"cannot write {path}: it is read-only", "run it as root; mount it writable")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return HostCannot(f"{path} is in use by another program", f"see: fuser -v {path}")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return KvmnetError(f"{path}: the database is damaged: {error}",
                               f"move it away (mv {path} {path}.damaged) and apply the document again: history starts"
                               " anew, and NICs whose address is not in the document may get another one")
    return KvmnetError(f"{path}: {error}", f"check it: sqlite3 {path} 'PRAGMA integrity_check'")


def who() -> str:
    """Who is at the keyboard: the user behind sudo, else the login or the uid."""
    if name := os.environ.get("SUDO_USER"):
        return name
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def digest(document: str) -> str:
    return sha256(document.encode()).hexdigest()


def counts(steps: Any) -> dict[str, int]:
    """How many steps of each sort: create, update, delete."""
    total = {"create": 0, "update": 0, "delete": 0}
    for step in steps:
        total[type(step).__name__.lower()] += 1
    return total
