"""pytest plugin: tests that run inside the lab, and the fixture that drives it from outside.

A test with the marker ``lab`` is collected here and carried out there, by a pytest in the lab that has loaded the same
files; its reports come back as they are made, those of one file after another. With ``--lab`` this happens to
every test that needs a kernel. A test that asks for the fixture ``lab`` stays here and drives.
"""
from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import pytest

from lib.lab import Lab, LabFailed, boot
from lib.lab_image import build, image_folder

INSIDE = "KVMNET_LAB" in os.environ
KERNEL = ("net", "daemon", "guest")
"""Markers of tests that --lab moves into the lab."""
START, EACH = 120.0, 20.0
"""Seconds for a file of tests, and for each test on top."""
HOLDER = pytest.StashKey["Holder"]()


@dataclass
class Batch:
    """The tests of one file, on their way through the lab."""

    stream: Generator[tuple[str, bytes], None, dict[str, Any]]
    lines: bytes = b""
    said: bytes = b""
    """Output of the pytest inside: shown when it broke down."""
    reports: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    over: str = ""
    """How it ended; '' while it goes on."""

    def of(self, nodeid: str) -> list[dict[str, Any]]:
        """The reports of one test, waiting for them."""
        while not self.over and not any(r["when"] == "teardown" for r in self.reports.get(nodeid, ())):
            self.step()
        return self.reports.get(nodeid, [])

    def finish(self) -> None:
        """Wait for its end: the lab does one thing at a time."""
        while not self.over:
            self.step()

    def step(self) -> None:
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


class Holder:
    """The lab of this run: booted when first needed, and again when it has broken."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.current: Lab | None = None
        self.batches: dict[str, Batch] = {}
        self.times: dict[str, float] = {}

    def lab(self) -> Lab:
        for batch in self.batches.values():
            batch.finish()
        if self.current is None or self.current.broken:
            self.end()
            began = monotonic()
            self.current = self.stack.enter_context(boot(build(image_folder(), lambda line: None)))
            self.note("boot", began)
            began = monotonic()
            self.current.warm()
            self.current.run("true")          # waits for it
            self.note("loading kvmnet and pytest", began)
        return self.current

    def note(self, what: str, began: float) -> None:
        self.times[what] = self.times.get(what, 0) + monotonic() - began

    def batch(self, item: pytest.Item) -> Batch:
        file = item.nodeid.partition("::")[0]
        found = self.batches.get(file)
        if found is None or (found.over and found.reports and item.nodeid not in found.reports):
            ids = [i.nodeid for i in item.session.items if i.nodeid.partition("::")[0] == file and goes_inside(i)]
            if found is not None:
                ids = ids[ids.index(item.nodeid):]
            lab = self.lab()
            lab.clear()
            options = ["-p", "no:cacheprovider", "--rootdir", str(item.config.rootpath), *ids]
            found = self.batches[file] = Batch(lab.stream("pytest", {"args": options}, START + EACH * len(ids)))
        return found

    def end(self) -> None:
        self.stack.close()
        self.current = None


def goes_inside(item: pytest.Item) -> bool:
    if INSIDE or "lab" in getattr(item, "fixturenames", ()):
        return False
    wanted = ("lab", *KERNEL) if item.config.getoption("--lab") else ("lab",)
    return any(item.get_closest_marker(name) for name in wanted)


# -- hooks -----------------------------------------------------------------------------------------

def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lab", action="store_true", help="run tests that need a kernel inside the lab, on Debian's")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[HOLDER] = Holder()


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[HOLDER].end()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    holder = item.config.stash[HOLDER]
    if not goes_inside(item):
        if "lab" not in getattr(item, "fixturenames", ()):
            holder.end()  # an idle lab takes half a core from the tests that follow
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in carried_out(item, holder):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    item.session._setupstate.teardown_exact(nextitem)  # what the test before left standing for this one
    return True


def carried_out(item: pytest.Item, holder: Holder) -> Iterator[pytest.TestReport]:
    """The reports of a test in the lab; a failure if it made none."""
    try:
        batch = holder.batch(item)
    except LabFailed as failed:
        yield broken(item, str(failed))
        return
    began = monotonic()
    reports = batch.of(item.nodeid)
    holder.note(item.nodeid.partition("::")[0], began)
    for data in reports:
        report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
        if isinstance(report.longrepr, list):
            report.longrepr = tuple(report.longrepr)
        if report.failed and holder.current:
            report.sections.append(("lab", holder.current.said()))
        yield report
    if not any(r["when"] == "teardown" for r in reports):
        console = holder.current.said() if holder.current else ""
        yield broken(item, f"no report came from the lab: {batch.over}\n{batch.said.decode(errors='replace')}\n{console}")


def broken(item: pytest.Item, why: str) -> pytest.TestReport:
    return pytest.TestReport(item.nodeid, item.location, {}, "failed", why, "call")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    current = item.config.stash[HOLDER].current
    if report.failed and current and "lab" in getattr(item, "fixturenames", ()):
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
    holder = request.config.stash[HOLDER]
    made, began = holder.lab(), monotonic()
    yield made
    holder.note(request.node.nodeid.partition("::")[0], began)
    if not made.broken:
        made.clear()
