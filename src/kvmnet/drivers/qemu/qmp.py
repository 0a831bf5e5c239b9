"""QEMU's machine protocol: bytes in, messages out (``Conversation``), and a socket around it.

Protocol: qemu/docs/interop/qmp-spec.rst. Descriptors are passed with SCM_RIGHTS beside ``getfd``.
"""
from __future__ import annotations

import json
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

from kvmnet.drivers.qemu.sockets import connect
from kvmnet.records import dataclass, field

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Greeting:
    version: str


@dataclass(frozen=True, slots=True)
class Reply:
    id: int
    value: Any


@dataclass(frozen=True, slots=True)
class Refusal:
    """QEMU could not do it. ``detail`` is its own text."""

    id: int
    detail: str


@dataclass(frozen=True, slots=True)
class Event:
    name: str
    data: dict[str, Any]


Answer: TypeAlias = Reply | Refusal
Message: TypeAlias = Greeting | Answer | Event


class QmpError(Exception):
    """QEMU refused a command, or its monitor does not answer."""


class Conversation:
    """The protocol without a socket."""

    def __init__(self) -> None:
        self.rest = b""
        self.last_id = 0

    def request(self, command: str, arguments: dict[str, Any]) -> tuple[int, bytes]:
        """Id and bytes of a command."""
        self.last_id += 1
        return self.last_id, encode(command, arguments, self.last_id)

    def receive(self, data: bytes) -> list[Message]:
        """Messages that *data* completes. Raises QmpError for what is no QMP."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        return [decode(line) for line in lines if line.strip()]


def encode(command: str, arguments: dict[str, Any], number: int | None = None) -> bytes:
    message: dict[str, Any] = {"execute": command}
    if arguments:
        message["arguments"] = arguments
    if number is not None:
        message["id"] = number
    return json.dumps(message).encode() + b"\n"


def decode(line: bytes) -> Message:
    try:
        message = json.loads(line)
    except ValueError:
        raise QmpError(f"not a QMP message: {line[:80]!r}") from None
    match message:
        case {"QMP": {"version": {"qemu": {"major": major, "minor": minor, "micro": micro}}}}:
            return Greeting(f"{major}.{minor}.{micro}")
        case {"event": str(name)}:
            return Event(name, message.get("data", {}))
        case {"error": {"desc": str(detail)}}:
            return Refusal(message.get("id", 0), detail)
        case {"return": value}:
            return Reply(message.get("id", 0), value)
    raise QmpError(f"not a QMP message: {line[:80]!r}")


@dataclass
class Monitor:
    """A connection to one QEMU. Every wait has a deadline; QEMU serves one client at a time."""

    stream: socket.socket
    timeout: float
    """Seconds to wait for an answer."""
    talk: Conversation = field(default_factory=Conversation)
    events: list[Event] = field(default_factory=list)
    """Came while something else was waited for."""
    inbox: list[Message] = field(default_factory=list)
    version: str = ""

    @classmethod
    def open(cls, path: Path, timeout: float = 2.0) -> Self:
        """Connect and negotiate. Raises QmpError when nobody answers in time."""
        try:
            monitor = cls(connect(path), timeout)
        except OSError as error:
            raise QmpError(f"cannot reach its monitor: {error.strerror or error}") from error
        try:
            greeting = monitor.wait(lambda m: m if isinstance(m, Greeting) else None, "a greeting")
            monitor.version = greeting.version
            monitor.execute("qmp_capabilities")
        except BaseException:
            monitor.stream.close()
            raise
        return monitor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.stream.close()

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """What QEMU returns. Raises QmpError with its text when it refuses."""
        answer = self.execute_all([(command, arguments or {})])[0]
        if isinstance(answer, Refusal):
            raise QmpError(f"{command}: {answer.detail}")
        return answer.value

    def execute_all(self, commands: Sequence[tuple[str, dict[str, Any]]]) -> list[Answer]:
        """All answers, in order; the commands go out in one write."""
        requests = [self.talk.request(command, arguments) for command, arguments in commands]
        self.send(b"".join(data for _, data in requests))
        return [self.answer(number) for number, _ in requests]

    def give(self, name: str, descriptor: int) -> None:
        """Hand an open file to QEMU under *name* (getfd)."""
        number, data = self.talk.request("getfd", {"fdname": name})
        self.send(data, (descriptor,))
        answer = self.answer(number)
        if isinstance(answer, Refusal):
            raise QmpError(f"getfd {name}: {answer.detail}")

    def wait_event(self, name: str, timeout: float, **data: Any) -> Event:
        """The first event *name* whose data has all of *data*. Raises QmpError after *timeout* seconds."""
        def wanted(message: Message) -> Event | None:
            fits = isinstance(message, Event) and message.name == name and data.items() <= message.data.items()
            return message if fits and isinstance(message, Event) else None

        for event in self.events:
            if wanted(event):
                self.events.remove(event)
                return event
        return self.wait(wanted, f"event {name}", timeout)

    def answer(self, number: int) -> Answer:
        def wanted(message: Message) -> Answer | None:
            return message if isinstance(message, (Reply, Refusal)) and message.id == number else None
        answer = self.wait(wanted, "an answer")
        assert isinstance(answer, (Reply, Refusal))    # mypy joins the two to object
        return answer

    def send(self, data: bytes, descriptors: tuple[int, ...] = ()) -> None:
        self.stream.settimeout(self.timeout)
        try:
            if descriptors:
                socket.send_fds(self.stream, [data], descriptors)
            else:
                self.stream.sendall(data)
        except OSError as error:
            raise QmpError(f"its monitor is gone: {error.strerror or error}") from error

    def wait(self, wanted: Callable[[Message], T | None], what: str, timeout: float | None = None) -> T:
        """The first message that *wanted* takes; events that it does not take are kept for later."""
        deadline = monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            while self.inbox:
                message = self.inbox.pop(0)
                if (found := wanted(message)) is not None:
                    return found
                if isinstance(message, Event):
                    self.events.append(message)
            self.inbox += self.talk.receive(self.read(deadline, what))

    def read(self, deadline: float, what: str) -> bytes:
        left = deadline - monotonic()
        if left <= 0:
            raise QmpError(f"its monitor does not answer: {what} did not come in time")
        self.stream.settimeout(left)
        try:
            data = self.stream.recv(65536)
        except TimeoutError:
            raise QmpError(f"its monitor does not answer: {what} did not come in time") from None
        except OSError as error:
            raise QmpError(f"its monitor is gone: {error.strerror or error}") from error
        if not data:
            raise QmpError("its monitor is gone: QEMU has ended")
        return data
