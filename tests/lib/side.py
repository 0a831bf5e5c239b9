"""pytest plugin: a whole run is done by two processes, which take files of tests from one list.

Most tests wait, for packets, daemons and guests, and a machine has more than one processor. The second process is forked when the
tests are collected, so that nothing is loaded twice; it says what came of its tests by a pipe, and the first tells it. Tests
that drive a lab from outside are the second one's, before all others, while the lab of the first carries out what goes inside
(``lib.lab_pytest``). What of that is left when nothing else is, is done by two labs. A file is never split: what its tests
share is made once.
"""
from __future__ import annotations

import json
import mmap
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from fcntl import LOCK_EX, LOCK_UN, flock
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import pytest

from lib.lab_pytest import HOLDER, INSIDE, Holder, drives, goes_inside

ENOUGH, LABS = 400, 3
"""Tests, and files of tests that need a lab: fewer are done by one process."""
LONG = ("test_documents", "test_uplinks", "test_failover", "test_vrf", "test_main_flow", "test_wireguard", "test_vlans")
"""Files for the lab that take longest, as a run prints them: begun first."""


class Queue:
    """Files of tests that nobody has begun. Both processes take from it."""

    def __init__(self, units: list[list[pytest.Item]]):
        self.units = units
        self.next = mmap.mmap(-1, 4)
        self.lock = os.memfd_create("tests")

    def take(self) -> list[pytest.Item]:
        """Tests of the next file, or none."""
        own = os.open(f"/proc/self/fd/{self.lock}", os.O_RDWR)    # a lock of its own for each process
        try:
            flock(own, LOCK_EX)
            number = int.from_bytes(self.next[:4], "big")
            self.next[:4] = (number + 1).to_bytes(4, "big")
            flock(own, LOCK_UN)
        finally:
            os.close(own)
        return self.units[number] if number < len(self.units) else []

    def __iter__(self) -> Iterator[pytest.Item]:
        while unit := self.take():
            yield from unit


@dataclass
class Side:
    """The second process, as the first sees it."""

    pid: int
    pipe: int
    by_id: dict[str, pytest.Item]
    said: SimpleQueue[bytes] = field(default_factory=SimpleQueue)
    """Its words; the last is empty."""
    begun: list[str] = field(default_factory=list)
    """Tests that it took and has not reported whole."""
    over: bool = False
    lab_times: dict[str, float] = field(default_factory=dict)

    def listen(self) -> None:
        """It never waits for the first to hear it, which may be busy for minutes."""
        with open(self.pipe, "rb") as pipe:
            for line in pipe:
                self.said.put(line)
        self.said.put(b"")

    def tell(self) -> None:
        """What has come of its tests up to now."""
        while not self.over and not self.said.empty():
            self.heard(self.said.get())

    def tell_all(self) -> None:
        """The same until it has ended."""
        while not self.over:
            self.heard(self.said.get())

    def heard(self, line: bytes) -> None:
        if not line:
            self.over = True
            return
        said: dict[str, Any] = json.loads(line)
        if said["what"] == "lab":
            self.lab_times = said["times"]
            return
        item = self.by_id[said["nodeid"]]
        match said["what"]:
            case "begin":
                self.begun.append(item.nodeid)
                item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
            case "report":
                report = item.config.hook.pytest_report_from_serializable(config=item.config, data=said["report"])
                if isinstance(report.longrepr, list):
                    report.longrepr = tuple(report.longrepr)
                item.ihook.pytest_runtest_logreport(report=report)
            case "end":
                self.begun.remove(item.nodeid)
                item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGINT)


class Teller:
    """In the second process: what its tests do goes to the first."""

    def __init__(self, pipe: int, config: pytest.Config):
        self.pipe, self.config = pipe, config

    def say(self, what: str, nodeid: str, **more: object) -> None:
        left = memoryview(json.dumps({"what": what, "nodeid": nodeid, **more}).encode() + b"\n")
        while left:
            left = left[os.write(self.pipe, left):]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.say("begin", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.say("report", report.nodeid, report=data)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.say("end", nodeid)


def files(items: list[pytest.Item]) -> list[list[pytest.Item]]:
    found: dict[Path, list[pytest.Item]] = {}
    for item in items:
        found.setdefault(item.path, []).append(item)
    return list(found.values())


class LabFiles:
    """Files of tests for the lab of this process, which takes them one by one from a list that both processes share."""

    def __init__(self, queue: Queue, holder: Holder):
        self.queue, self.holder = queue, holder
        self.taken: list[list[pytest.Item]] = []

    def take(self) -> str:
        """The next file; its name."""
        unit = self.queue.take()
        if not unit:
            return ""
        self.taken.append(unit)
        name = unit[0].nodeid.partition("::")[0]
        self.holder.files[name] = [item.nodeid for item in unit]
        return name

    def __iter__(self) -> Iterator[pytest.Item]:
        """Tests of what was taken, and then of what is left."""
        number = 0
        while number < len(self.taken) or self.take():
            yield from self.taken[number]
            number += 1


def begun_early(unit: list[pytest.Item]) -> int:
    """The turn of a file for the lab."""
    return LONG.index(unit[0].path.stem) if unit[0].path.stem in LONG else len(LONG)


def work(session: pytest.Session, coming: Iterator[pytest.Item], side: Side | None = None) -> None:
    """Carry out tests. The last of those out here takes down what all of them share, and its report says what was left."""
    item = next(coming, None)
    while item:
        following = next(coming, None)
        goes_on = following and (goes_inside(item) or not goes_inside(following))
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following if goes_on else None)
        if side:
            side.tell()
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        item = following


def begin(session: pytest.Session, driving: list[pytest.Item], queue: Queue, labs: Queue) -> Side:
    """Fork the second process: it does what drives a lab, then what comes, and then its part of what goes inside, in a
    lab that it boots for that."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(writer)
        side = Side(pid, reader, {item.nodeid: item for item in session.items})
        Thread(target=side.listen, daemon=True).start()
        return side
    os.close(reader)
    code = 1
    try:
        session.config.pluginmanager.unregister(name="terminalreporter")
        teller = Teller(writer, session.config)
        session.config.pluginmanager.register(teller)
        holder = session.config.stash[HOLDER]
        holder.files = {}
        work(session, chain(driving, queue, LabFiles(labs, holder)))
        holder.end()
        teller.say("lab", "", times=holder.times)
        code = 0
    finally:
        os._exit(code)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    inside = [item for item in session.items if goes_inside(item)]
    driving = [item for item in session.items if drives(item)]
    few = len(session.items) < ENOUGH and len(files(inside + driving)) < LABS
    if INSIDE or few or (os.cpu_count() or 1) < 2 or session.config.option.collectonly or session.config.getoption("usepdb"):
        return None
    if session.testsfailed and not session.config.option.continue_on_collection_errors:
        return None    # pytest says so itself
    queue = Queue(files([item for item in session.items if not (drives(item) or goes_inside(item))]))
    labs = Queue(sorted(files(inside), key=begun_early))
    side = begin(session, driving, queue, labs)
    holder = session.config.stash[HOLDER]
    holder.files, own = {}, LabFiles(labs, holder)
    holder.take = own.take
    try:
        work(session, chain(queue, own), side)
        side.tell_all()
        for what, seconds in side.lab_times.items():
            holder.times[what] = holder.times.get(what, 0) + seconds
    except BaseException:
        side.stop()
        raise
    finally:
        _, status = os.waitpid(side.pid, 0)
    if status or side.begun:
        raise session.Failed(f"the second process of the run broke down ({os.waitstatus_to_exitcode(status)}) in "
                             f"{', '.join(side.begun) or 'no test'}")
    return True
