"""The guest agent's protocol: old answers are skipped, outputs decoded, silence has an end."""
from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmnet.drivers.qemu.agent import Agent, AgentError, AgentTalk, Result
from kvmnet.drivers.qemu.sockets import listen


def test_synchronising_skips_what_an_earlier_client_left() -> None:
    talk = AgentTalk()
    sent = talk.sync()
    assert sent[:1] == b"\xff"
    token = json.loads(sent[1:])["arguments"]["id"]
    left = b'"out-data": "cut off"}}\n{"return": 12}\n'
    answer = b"\xff" + json.dumps({"return": token}).encode() + b"\n"
    messages = talk.receive(left + answer)
    assert [talk.is_synced(m) for m in messages] == [False, True]


def test_an_answer_in_pieces_and_a_delimiter_inside_a_line() -> None:
    talk = AgentTalk()
    assert talk.receive(b'{"ret') == []
    assert talk.receive(b'urn": 1}\nrubbish\xff{"return": 2}\n') == [{"return": 1}, {"return": 2}]


class Guest:
    """An agent that answers as the test says; None answers nothing."""

    def __init__(self, path: Path):
        self.path, self.listening = path, listen(path)
        self.thread: threading.Thread | None = None

    def serve(self, answer: Callable[[str, dict[str, Any]], object]) -> None:
        def work() -> None:
            stream, _ = self.listening.accept()
            with stream, stream.makefile("rb") as lines:
                for line in lines:
                    message = json.loads(line.lstrip(b"\xff"))
                    arguments = message.get("arguments", {})
                    if message["execute"] == "guest-sync-delimited":
                        stream.sendall(b"\xff" + json.dumps({"return": arguments["id"]}).encode() + b"\n")
                    elif (found := answer(message["execute"], arguments)) is not None:
                        stream.sendall(json.dumps(found).encode() + b"\n")
        self.thread = threading.Thread(target=work)
        self.thread.start()


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    found = Guest(tmp_path / "agent.sock")
    yield found
    found.listening.close()
    if found.thread:
        found.thread.join(5)


def program(*states: dict[str, object]) -> Callable[[str, dict[str, Any]], object]:
    left = list(states)

    def answer(command: str, arguments: dict[str, Any]) -> object:
        if command == "guest-exec":
            assert arguments == {"path": "/bin/sh", "arg": ["-c", "x"], "capture-output": True}
            return {"return": {"pid": 9}}
        return {"return": left.pop(0) if len(left) > 1 else left[0]}
    return answer


def test_a_program_is_waited_for_and_its_outputs_decoded(guest: Guest) -> None:
    guest.serve(program({"exited": False}, {"exited": True, "exitcode": 3,
                                            "out-data": base64.b64encode("ü\n".encode()).decode()}))
    with Agent.open(guest.path, 2) as agent:
        assert agent.run(["/bin/sh", "-c", "x"]) == Result(3, "ü\n", "")


def test_a_killed_program_has_the_shell_s_code(guest: Guest) -> None:
    guest.serve(program({"exited": True, "signal": 9}))
    with Agent.open(guest.path, 2) as agent:
        assert agent.run(["/bin/sh", "-c", "x"]).code == 137


def test_a_program_that_does_not_end(guest: Guest) -> None:
    guest.serve(program({"exited": False}))
    with Agent.open(guest.path, 2) as agent, pytest.raises(AgentError, match="/bin/sh still runs in the guest"):
        agent.run(["/bin/sh", "-c", "x"], timeout=0.05)


def test_the_agent_s_own_error(guest: Guest) -> None:
    guest.serve(lambda command, arguments: {"error": {"class": "GenericError", "desc": "No such file"}})
    with Agent.open(guest.path, 2) as agent, pytest.raises(AgentError, match=r"^guest-exec: No such file$"):
        agent.run(["/nonexistent"])


def test_an_agent_that_falls_silent(guest: Guest) -> None:
    guest.serve(lambda command, arguments: None)
    with Agent.open(guest.path, 0.1) as agent, pytest.raises(AgentError, match=r"did not answer guest-exec within 0\.1 s"):
        agent.run(["/bin/true"])


def test_no_agent_in_the_guest(guest: Guest) -> None:
    with pytest.raises(AgentError, match=r"no agent answers within 0\.1 s: the guest is still booting"):
        Agent.open(guest.path, 0.1)


def test_a_guest_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="cannot reach its agent"):
        Agent.open(tmp_path / "none")
