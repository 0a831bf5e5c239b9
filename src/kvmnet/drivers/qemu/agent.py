"""The agent inside a guest: bytes in, messages out (``AgentTalk``), and a socket around it.

Protocol: qemu/docs/interop/qemu-ga.rst. Every conversation begins with guest-sync-delimited: the
channel may still hold answers that an earlier client did not wait for. Answers carry no ids, but come in order. So an
agent that is silent for long is sent guest-sync behind the command: its answer, without the command's before it, says
that the command was lost (an agent that was restarted, a channel that its guest opened anew).
"""
from __future__ import annotations

import base64
import json
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, NamedTuple, Self

from kvmnet.drivers.qemu.sockets import connect
from kvmnet.host.clock import wait_until
from kvmnet.records import dataclass, field

DELIMITER = b"\xff"
"""A byte that no JSON has: the agent drops what came before it, and puts it before its sync answer."""
EACH_SYNC = 0.5
"""Seconds after which a guest that does not answer is asked to synchronise again: it may have had no agent yet."""
PATIENCE = 5.0
"""Seconds of silence after which the agent is asked whether it has the command."""
REPEATABLE = frozenset({"guest-exec-status"})
"""Commands that may be sent again when they were lost."""


class AgentError(Exception):
    """The agent refused a command, or nobody answers."""


class Result(NamedTuple):
    """What a program in the guest left: exit code (128 + signal when killed), both outputs."""

    code: int
    out: str
    err: str


class LostCommand(AgentError):
    """The agent is there, and has not had the command, or its answer is lost."""


class AgentTalk:
    """The protocol without a socket. Answers carry no ids: one command at a time."""

    def __init__(self) -> None:
        self.rest = b""
        self.tokens: set[int] = set()
        """Those of this conversation that are not answered yet."""
        self.last = 0
        """The newest of them."""

    def sync(self) -> bytes:
        """Bytes that begin a conversation."""
        return DELIMITER + self.request("guest-sync-delimited", {"id": self.token()})

    def token(self) -> int:
        self.last = secrets.randbits(31)
        self.tokens.add(self.last)
        return self.last

    def request(self, command: str, arguments: dict[str, Any]) -> bytes:
        message = {"execute": command, **({"arguments": arguments} if arguments else {})}
        return json.dumps(message).encode() + b"\n"

    def receive(self, data: bytes) -> list[dict[str, Any]]:
        """Answers that *data* completes; what is cut off or not JSON is an old answer's rest."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        messages: list[dict[str, Any]] = []
        for line in lines:
            text = line.rpartition(DELIMITER)[2]
            try:
                message = json.loads(text)
            except ValueError:
                continue
            if isinstance(message, dict):
                messages.append(message)
        return messages

    def is_synced(self, message: dict[str, Any]) -> bool:
        """Whether *message* answers one of ours. Of several that were sent, each is answered, perhaps late."""
        found = message.get("return")
        if not isinstance(found, int) or found not in self.tokens:
            return False
        self.tokens.remove(found)
        return True

    def is_last(self, message: dict[str, Any]) -> bool:
        """Whether *message* answers the newest of ours."""
        return message.get("return") == self.last and self.is_synced(message)


@dataclass
class Agent:
    """A conversation with the agent of one guest."""

    stream: socket.socket
    timeout: float
    """Seconds to wait for each answer."""
    talk: AgentTalk = field(default_factory=AgentTalk)
    inbox: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, timeout: float = 10.0) -> Self:
        """Connect and synchronise, for as long as *timeout* seconds (a guest that boots).

        Raises AgentError when no agent answers by then.
        """
        try:
            stream = connect(path)
        except OSError as error:
            raise AgentError(f"cannot reach its agent: {error.strerror or error}") from error
        agent = cls(stream, timeout)
        try:
            agent.synchronise(timeout)
        except BaseException:
            stream.close()
            raise
        return agent

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.stream.close()

    def synchronise(self, timeout: float) -> None:
        """What was asked last is answered last: behind it nothing is left of what was asked before, such as the complaint with
        which the agent answers each delimiter."""
        deadline, patience = monotonic() + timeout, EACH_SYNC
        while monotonic() < deadline:
            self.send(self.talk.sync())
            try:
                while not self.talk.is_last(message := self.next(min(monotonic() + patience, deadline))):
                    if self.talk.is_synced(message):    # it is there, and slow
                        patience = PATIENCE
                return
            except TimeoutError:
                continue
        raise AgentError(f"no agent answers within {timeout:g} s: the guest is still booting, "
                         "hangs, or runs no qemu-guest-agent")

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """What the agent returns. Raises AgentError."""
        deadline = monotonic() + self.timeout
        while True:
            self.send(self.talk.request(command, arguments or {}))
            try:
                message = self.answer(command, deadline)
            except LostCommand:
                if command in REPEATABLE:
                    continue
                raise
            if "error" in message:
                raise AgentError(f"{command}: {message['error'].get('desc', message['error'])}")
            return message.get("return")

    def answer(self, command: str, deadline: float) -> dict[str, Any]:
        """The answer of the *command* that was sent last. Raises AgentError."""
        behind: set[int] = set()
        while True:
            try:
                message = self.next(min(monotonic() + PATIENCE, deadline))
            except TimeoutError:
                if monotonic() >= deadline:
                    raise AgentError(f"its agent did not answer {command} within {self.timeout:g} s") from None
                behind.add(token := self.talk.token())
                self.send(self.talk.request("guest-sync", {"id": token}))
                continue
            if not self.talk.is_synced(message):
                return message
            if message["return"] in behind:
                raise LostCommand(f"its agent lost {command}: it was restarted, or its channel was opened anew")

    def tell(self, command: str, arguments: dict[str, Any]) -> None:
        """A command that is not answered when it works (guest-shutdown)."""
        self.send(self.talk.request(command, arguments))

    def run(self, argv: Sequence[str], timeout: float = 60.0, stdin: bytes = b"") -> Result:
        """Run a program in the guest and wait for it. Raises AgentError, also after *timeout* seconds."""
        arguments: dict[str, Any] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
        if stdin:
            arguments["input-data"] = base64.b64encode(stdin).decode()
        pid = self.execute("guest-exec", arguments)["pid"]

        def ended() -> dict[str, Any] | None:
            status: dict[str, Any] = self.execute("guest-exec-status", {"pid": pid})
            return status if status["exited"] else None

        try:
            status = wait_until(ended, timeout, 0.03)
        except TimeoutError:
            raise AgentError(f"{argv[0]} still runs in the guest after {timeout:g} s") from None
        assert status is not None
        code = status.get("exitcode", 128 + status.get("signal", 0))
        return Result(code, text(status, "out-data"), text(status, "err-data"))

    def send(self, data: bytes) -> None:
        self.stream.settimeout(self.timeout)
        try:
            self.stream.sendall(data)
        except OSError as error:
            raise AgentError(f"its agent's channel is gone: {error.strerror or error}") from error

    def next(self, deadline: float) -> dict[str, Any]:
        """The next answer. Raises TimeoutError."""
        while not self.inbox:
            left = deadline - monotonic()
            if left <= 0:
                raise TimeoutError
            self.stream.settimeout(left)
            try:
                data = self.stream.recv(65536)
            except TimeoutError:
                raise
            except OSError as error:
                raise AgentError(f"its agent's channel is gone: {error.strerror or error}") from error
            if not data:
                raise AgentError("its agent's channel is closed: the guest has ended")
            self.inbox += self.talk.receive(data)
        return self.inbox.pop(0)


def text(status: dict[str, Any], name: str) -> str:
    return base64.b64decode(status.get(name, "")).decode(errors="replace")
