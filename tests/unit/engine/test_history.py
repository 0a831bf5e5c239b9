"""The database: revisions, addresses, upgrades, and every way in which a disk disappoints."""
from __future__ import annotations

import os
import resource
import signal
import sqlite3
from pathlib import Path

import pytest

from kvmnet.engine import history
from kvmnet.engine.history import Change, History, Status, digest
from kvmnet.errors import HostCannot, KvmnetError
from kvmnet.facts.model import Allocation
from lib.fork import in_child

DOCUMENT = "version: 1\n# 网络\n"
COUNTS = {"create": 2, "update": 1, "delete": 0}


@pytest.fixture
def book(tmp_path: Path) -> History:
    return History(tmp_path / "state" / "kvmnet.db")


def test_a_revision_says_who_when_and_from_where(book: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "alice")
    number = book.begin(Change(DOCUMENT, "/etc/kvmnet.yaml"), COUNTS)
    [row] = book.revisions()
    assert (row.number, row.who, row.source, row.status, row.finished) == (
        number, "alice", "/etc/kvmnet.yaml", Status.PENDING, "")
    assert row.summary == COUNTS and row.sha256 == digest(DOCUMENT) and row.created.endswith("+00:00")
    assert book.document(number) == DOCUMENT
    assert book.last_confirmed() is None
    book.finish(number, Status.CONFIRMED, "fine")
    last = book.last_confirmed()
    assert last is not None and (last.number, last.message) == (number, "fine") and last.finished


def test_documents_are_for_nobody_else_to_read(book: History) -> None:
    book.path.parent.mkdir(parents=True)
    book.path.touch(0o644)
    book.begin(Change(DOCUMENT, "/etc/kvmnet.yaml"), COUNTS)
    assert book.path.stat().st_mode & 0o777 == 0o600


def test_numbers_are_never_used_twice(book: History) -> None:
    assert [book.begin(Change("", ""), COUNTS) for _ in range(3)] == [1, 2, 3]
    book.abandon_pending("restart")
    assert {r.status for r in book.revisions()} == {Status.ROLLED_BACK}
    assert [r.number for r in book.revisions(2)] == [3, 2]


def test_nothing_is_made_by_reading(book: History) -> None:
    assert book.revisions() == [] and book.allocations() == {} and book.last_confirmed() is None
    book.abandon_pending("x")
    assert not book.path.parent.exists()
    with pytest.raises(KvmnetError, match="no revision 7"):
        book.document(7)


def test_addresses_stay_and_change(book: History) -> None:
    first = {("vm", "0", "lan"): Allocation("02:00:00:00:00:01", "10.0.0.5", ""),
             ("vm", "1", "lan"): Allocation("02:00:00:00:00:02", "", "fd00::2")}
    book.begin(Change("", "", allocations=first), COUNTS)
    assert book.allocations() == first
    moved = {("vm", "0", "lan"): Allocation("02:00:00:00:00:01", "10.0.0.9", "")}
    book.save_allocations(moved)
    assert book.allocations() == {**first, **moved}


def older(book: History) -> None:
    """A database as the first version left it."""
    book.begin(Change(DOCUMENT, "a"), COUNTS, Status.CONFIRMED)


def test_an_older_database_is_upgraded_and_kept_aside(book: History, monkeypatch: pytest.MonkeyPatch) -> None:
    older(book)
    monkeypatch.setattr(history, "MIGRATIONS", (*history.MIGRATIONS, ("CREATE TABLE samples (x)",)))
    assert [r.number for r in book.revisions()] == [1]
    with sqlite3.connect(book.path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(history.MIGRATIONS),)
        db.execute("SELECT x FROM samples")
    db.close()
    copy = sqlite3.connect(book.path.with_name(f"kvmnet.db.v{len(history.MIGRATIONS) - 1}"))
    assert copy.execute("PRAGMA user_version").fetchone() == (len(history.MIGRATIONS) - 1,)
    assert copy.execute("SELECT number FROM revisions").fetchall() == [(1,)]
    copy.close()


def test_an_upgrade_that_fails_changes_nothing(book: History, monkeypatch: pytest.MonkeyPatch) -> None:
    older(book)
    with monkeypatch.context() as broken:
        broken.setattr(history, "MIGRATIONS", (*history.MIGRATIONS, ("CREATE TABLE good (x)", "CREATE TABLE revisions (x)")))
        with pytest.raises(KvmnetError, match="already exists"):
            book.revisions()
    assert [r.number for r in book.revisions()] == [1]


def test_a_newer_database_is_refused(book: History) -> None:
    older(book)
    with sqlite3.connect(book.path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    for act in (book.revisions, book.allocations, lambda: book.begin(Change("", ""), COUNTS)):
        with pytest.raises(KvmnetError, match="made by a newer kvmnet \\(version 99"):
            act()


@pytest.mark.parametrize("keep", [0, 100])
def test_a_damaged_database_says_what_to_do(book: History, keep: int) -> None:
    older(book)
    whole = book.path.read_bytes()
    book.path.write_bytes(whole[:keep] + b"rubbish " * 2000)
    for act in (book.revisions, book.allocations, lambda: book.begin(Change("", ""), COUNTS)):
        with pytest.raises(KvmnetError, match="damaged") as caught:
            act()
        assert f"mv {book.path}" in caught.value.hint


def test_a_file_that_may_not_grow(book: History) -> None:
    """As a full disk: the write fails in the middle; what was there before is still there."""
    older(book)

    def write_much() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
        with pytest.raises(HostCannot, match="cannot write"):
            book.begin(Change(os.urandom(200_000).hex(), "b"), COUNTS)

    assert in_child(write_much) == 0
    assert [r.source for r in book.revisions()] == ["a"]


def test_a_state_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostCannot, match="a file is in its place"):
        History(tmp_path / "file" / "kvmnet.db").begin(Change("", ""), COUNTS)
