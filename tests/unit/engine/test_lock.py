"""The writer's lock, and the programs that outlive a killed writer."""
from __future__ import annotations

import os
import signal
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from kvmnet.errors import ConflictError, HostCannot
from kvmnet.host import lock
from kvmnet.host.clock import wait_until
from kvmnet.host.files import write_durably
from kvmnet.host.lock import exclusive
from kvmnet.host.process import this_process
from kvmnet.host.run import run
from lib.fork import die, in_child


def test_the_holder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "MOMENT_SECONDS", 0.1)
    path = tmp_path / "run" / "lock"
    with exclusive(path, "kvmnet apply x.yaml"), pytest.raises(ConflictError, match=r"kvmnet apply x\.yaml"), \
            exclusive(path, "kvmnet destroy"):
        pass
    with exclusive(path, "kvmnet destroy"):
        pass


def test_who_is_done_in_a_moment_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the timer of a change is that finds nothing to undo."""
    monkeypatch.setattr(lock, "MOMENT_SECONDS", 20)
    path, refused, first, try_lock = tmp_path / "lock", threading.Event(), ExitStack(), lock.try_lock
    first.enter_context(exclusive(path, "kvmnet undo timer"))

    def tried(fd: int) -> bool:
        if got := try_lock(fd):
            return got
        refused.set()
        return False

    monkeypatch.setattr(lock, "try_lock", tried)
    leaving = threading.Thread(target=lambda: refused.wait(20) and first.close())
    leaving.start()
    with exclusive(path, "kvmnet apply"):
        assert refused.is_set()
    leaving.join()


def test_a_holder_that_left_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "MOMENT_SECONDS", 0.1)
    path = tmp_path / "lock"
    with exclusive(path, "x"):
        path.write_text("")
        with pytest.raises(ConflictError, match="fuser -v"), exclusive(path, "y"):
            pass


def test_what_a_killed_writer_started_is_waited_for(tmp_path: Path) -> None:
    """The program writes after its writer died; the next writer sees what it wrote."""
    path, begun, mark = tmp_path / "lock", tmp_path / "begun", tmp_path / "mark"

    def writer() -> None:
        with exclusive(path, "killed"):
            script = f"touch {begun}; sleep 0.4; echo done > {mark}"
            threading.Thread(target=run, args=(["sh", "-c", script],)).start()
            wait_until(begun.exists, 20)
            die()

    assert in_child(writer) == -signal.SIGKILL
    with exclusive(path, "next"):
        assert mark.read_text() == "done\n"
    assert lock.inherited() == ()


def test_a_daemon_that_keeps_the_lock_is_not_waited_for_for_ever(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "STRAYS_SECONDS", 0.2)
    path = tmp_path / "lock"
    with exclusive(path, "first"):
        daemon = int(run(["sh", "-c", "sleep 60 </dev/null >/dev/null 2>&1 & echo $!"]))
    try:
        for _ in range(2):
            with exclusive(path, "next"):
                assert len(lock.inherited()) == 1
    finally:
        os.kill(daemon, signal.SIGKILL)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    write_durably(path, "one")
    write_durably(path, "two")
    assert path.read_text() == "two" and path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["b"]
    path.parent.joinpath("d").mkdir()
    with pytest.raises(HostCannot, match="cannot write"):
        write_durably(path.parent / "d", "three")
    assert sorted(p.name for p in path.parent.iterdir()) == ["b", "d"]


def test_a_reused_pid_is_somebody_else() -> None:
    me = this_process()
    assert me.alive()
    assert not type(me)(me.pid, me.start + 1).alive()
    type(me)(me.pid, me.start + 1).terminate()
