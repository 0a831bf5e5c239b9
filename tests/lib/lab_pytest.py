"""pytest plugin: tests that run inside the lab, and the fixture that drives it from outside.

A test with the marker ``lab`` is collected here and carried out there, by a pytest in the lab that has loaded the same
files; its reports come back as they are made, those of one file after another. With ``--lab`` this happens to
every test that needs a kernel. A test that asks for the fixture ``lab``, or ``split_lab``, stays here and drives.

Those that drive come first, since the lab does one thing at a time. Then it carries out its own files beside the tests
out here, whose protocol hands it the next file and takes what it has reported; its reports are told at the end.
"""
from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import pytest

from lib.lab import PLAIN, Lab, LabFailed, Machine, begun, split_machine
from lib.lab_image import ROOT, build, image_folder

INSIDE = "KVMNET_LAB" in os.environ
KERNEL = ("net", "daemon", "guest")
"""Markers of tests that --lab moves into the lab."""
START, EACH = 240.0, 150.0
"""Seconds for a file of tests, and for each test on top, on a machine that is busy: quiet, the longest test takes 80."""
DRIVING = frozenset({"lab", "split_lab"})
"""Fixtures of tests that drive a lab from outside."""
HOLDER = pytest.StashKey["Holder"]()


@dataclass
class Batch:
    """Tests of one file, on their way through the lab."""

    ids: list[str]
    stream: Generator[tuple[str, bytes], None, dict[str, Any]]
    lines: bytes = b""
    said: bytes = b""
    """Output of the pytest inside: shown when it broke down."""
    reports: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    over: str = ""
    """How it ended; '' while it goes on."""
    began: float = field(default_factory=monotonic)

    def ended(self, nodeid: str) -> bool:
        return any(r["when"] == "teardown" for r in self.reports.get(nodeid, ()))

    def step(self) -> None:
        """Take the next that it says, waiting for it."""
        try:
            name, data = next(self.stream)
        except StopIteration as end:
            self.over = "its time was over" if end.value["late"] else f"exit {end.value['code']}"
        except LabFailed as failed:
            self.over = str(failed)
        else:
            self.take(name, data)

    def take(self, name: str, data: bytes) -> None:
        if name != "note":
            self.said += data
            return
        *lines, self.lines = (self.lines + data).split(b"\n")
        for line in lines:
            report = json.loads(line)
            self.reports.setdefault(report["nodeid"], []).append(report)


@dataclass
class Told:
    """What came of one test in the lab."""

    reports: list[dict[str, Any]]
    broken: str = ""
    """Why it has no end; '' when it has."""
    said: str = ""
    """The end of the lab's console."""


class Holder:
    """The lab of this run: booted when first needed, and again when it has broken."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.current: Lab | None = None
        self.machine = PLAIN
        self.batch: Batch | None = None
        self.told: dict[str, Told] = {}
        self.files: dict[str, list[str]] = {}
        """Tests that go inside, by file: those of this lab."""
        self.take: Callable[[], str] = str
        """A further file for this lab, of a list that it shares; its name, or nothing."""
        self.times: dict[str, float] = {}

    def lab(self, machine: Machine = PLAIN) -> Lab:
        """The lab, with nothing under way in it."""
        while self.batch:
            self.step()
        current = self.begin(machine)
        began = monotonic()
        current.greet()
        self.note("boot", began)
        began = monotonic()
        current.run("true")          # waits until all is loaded
        self.note("loading kvmnet and pytest", began)
        return current

    def begin(self, machine: Machine = PLAIN) -> Lab:
        """The lab, which may boot still."""
        if self.current is None or self.current.broken or self.machine != machine:
            self.end()
            self.current = self.stack.enter_context(begun(build(image_folder(), lambda line: None), machine=machine))
            self.machine = machine
            self.current.warm()
        return self.current

    def note(self, what: str, began: float) -> None:
        self.times[what] = self.times.get(what, 0) + monotonic() - began

    def outcome(self, nodeid: str) -> Told:
        """What came of a test, waiting for it. Raises LabFailed when no lab can be had."""
        while nodeid not in self.told:
            if self.batch:
                self.step()
            else:
                self.start(nodeid.partition("::")[0])
        return self.told[nodeid]

    def go_on(self) -> None:
        """Take what the lab has reported and hand it the next file, without waiting for either."""
        while self.batch and self.current and self.current.has_news:
            self.step()
        if self.batch is None:
            if left := next((f for f, ids in self.files.items() if not self.told.keys() >= set(ids)), "") or self.take():
                self.start(left)
            else:
                self.end()  # an idle lab takes half a core from the tests that follow

    def start(self, file: str) -> None:
        ids = [i for i in self.files[file] if i not in self.told]
        lab = self.begin()
        try:
            if lab.greeted:
                lab.clear()
            options = ["-p", "no:cacheprovider", "--rootdir", str(ROOT), *ids]
            self.batch = Batch(ids, lab.stream("pytest", {"args": options}, START + EACH * len(ids)))
        except LabFailed as failed:
            self.told |= {i: Told([], str(failed)) for i in ids}

    def step(self) -> None:
        """Go on with the batch; at its end it is told what came of its tests. Of a batch that died one test is to
        blame, or all when it had not begun; those behind it are for the next batch."""
        batch = self.batch
        assert batch
        batch.step()
        said = self.current.said() if self.current else ""
        self.told |= {i: Told(batch.reports[i], said=said) for i in batch.ids if i not in self.told and batch.ended(i)}
        if batch.over:
            why = f"no report came from the lab: {batch.over}\n{batch.said.decode(errors='replace')}\n{said}"
            lost = [i for i in batch.ids if i not in self.told]
            self.told |= {i: Told(batch.reports.get(i, []), why, said) for i in (lost[:1] if batch.reports else lost)}
            self.note(batch.ids[0].partition("::")[0], batch.began)
            self.batch = None

    def end(self) -> None:
        self.stack.close()
        self.current = None


def drives(item: pytest.Item) -> bool:
    """Whether a test stays outside, with a lab in its hands."""
    return not INSIDE and not DRIVING.isdisjoint(getattr(item, "fixturenames", ()))


def goes_inside(item: pytest.Item) -> bool:
    if INSIDE or drives(item):
        return False
    wanted = ("lab", *KERNEL) if item.config.getoption("--lab") else ("lab",)
    return any(item.get_closest_marker(name) for name in wanted)


def turn(item: pytest.Item) -> int:
    """When a test has its turn: each lab boots once, and that which goes on beside the others last."""
    if drives(item):
        return 1 if "lab" in getattr(item, "fixturenames", ()) else 0
    return 3 if goes_inside(item) else 2


# -- hooks -----------------------------------------------------------------------------------------

def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lab", action="store_true", help="run tests that need a kernel inside the lab, on Debian's")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[HOLDER] = Holder()


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[HOLDER].end()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=turn)
    for item in filter(goes_inside, items):
        config.stash[HOLDER].files.setdefault(item.nodeid.partition("::")[0], []).append(item.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    holder = item.config.stash[HOLDER]
    if not goes_inside(item):
        if not drives(item):
            holder.go_on()
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in carried_out(item, holder):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    item.session._setupstate.teardown_exact(nextitem)  # what the test before left standing for this one
    return True


def carried_out(item: pytest.Item, holder: Holder) -> Iterator[pytest.TestReport]:
    """The reports of a test in the lab; a failure if it made none."""
    told = holder.outcome(item.nodeid)
    for data in told.reports:
        report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
        if isinstance(report.longrepr, list):
            report.longrepr = tuple(report.longrepr)
        if report.failed:
            report.sections.append(("lab", told.said))
        yield report
    if told.broken:
        yield pytest.TestReport(item.nodeid, item.location, {}, "failed", told.broken, "call")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    current = item.config.stash[HOLDER].current
    if report.failed and current and drives(item):
        report.sections.append(("lab", current.said()))
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    times = config.stash[HOLDER].times
    if times:
        terminalreporter.section(f"lab: {sum(times.values()):.0f} s")
        for what, seconds in times.items():
            terminalreporter.line(f"{seconds:6.1f} s  {what}")


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The lab, booted once for the whole run. What a test leaves running or named in it ends with the test."""
    yield from held(request, PLAIN)


@pytest.fixture
def split_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab of its own machine: with an IOMMU and a NIC that can be split (eth0)."""
    yield from held(request, split_machine())


def held(request: pytest.FixtureRequest, machine: Machine) -> Iterator[Lab]:
    holder = request.config.stash[HOLDER]
    made, began = holder.lab(machine), monotonic()
    yield made
    holder.note(request.node.nodeid.partition("::")[0], began)
    if not made.broken:
        made.clear()
