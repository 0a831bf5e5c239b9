"""The guest agent's protocol: old answers are skipped, outputs decoded, silence has an end."""
from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmnet.drivers.qemu import agent
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


COMPLAINT = json.dumps({"error": {"class": "GenericError", "desc": "JSON parse error, stray '\ufffd'"}}).encode() + b"\n"
"""What the agent says of each delimiter that it gets, before it answers what came behind it."""


class Guest:
    """An agent that answers as the test says; None answers nothing."""

    def __init__(self, path: Path):
        self.path, self.listening = path, listen(path)
        self.thread: threading.Thread | None = None

    def serve(self, answer: Callable[[str, dict[str, Any]], object],
              syncs: Callable[[bytes], list[bytes]] = lambda answer: [answer]) -> None:
        def work() -> None:
            stream, _ = self.listening.accept()
            with stream, stream.makefile("rb") as lines:
                for line in lines:
                    message = json.loads(line.lstrip(b"\xff"))
                    arguments = message.get("arguments", {})
                    if message["execute"] in ("guest-sync-delimited", "guest-sync"):
                        mark = COMPLAINT + b"\xff" if message["execute"] == "guest-sync-delimited" else b""
                        stream.sendall(b"".join(syncs(mark + json.dumps({"return": arguments["id"]}).encode() + b"\n")))
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


def program(*states: dict[str, object] | None) -> Callable[[str, dict[str, Any]], object]:
    """Answers of a program's life; None is an answer that never comes."""
    left = list(states)

    def answer(command: str, arguments: dict[str, Any]) -> object:
        if command == "guest-exec":
            assert arguments == {"path": "/bin/sh", "arg": ["-c", "x"], "capture-output": True}
            return {"return": {"pid": 9}}
        state = left.pop(0) if len(left) > 1 else left[0]
        return None if state is None else {"return": state}
    return answer


def test_a_program_is_waited_for_and_its_outputs_decoded(guest: Guest) -> None:
    guest.serve(program({"exited": False}, {"exited": True, "exitcode": 3,
                                            "out-data": base64.b64encode("ü\n".encode()).decode()}))
    with Agent.open(guest.path, 2) as talk:
        assert talk.run(["/bin/sh", "-c", "x"]) == Result(3, "ü\n", "")


def test_a_killed_program_has_the_shell_s_code(guest: Guest) -> None:
    guest.serve(program({"exited": True, "signal": 9}))
    with Agent.open(guest.path, 2) as talk:
        assert talk.run(["/bin/sh", "-c", "x"]).code == 137


def test_a_program_that_does_not_end(guest: Guest) -> None:
    guest.serve(program({"exited": False}))
    with Agent.open(guest.path, 2) as talk, pytest.raises(AgentError, match="/bin/sh still runs in the guest"):
        talk.run(["/bin/sh", "-c", "x"], timeout=0.05)


def test_the_agent_s_own_error(guest: Guest) -> None:
    guest.serve(lambda command, arguments: {"error": {"class": "GenericError", "desc": "No such file"}})
    with Agent.open(guest.path, 2) as talk, pytest.raises(AgentError, match=r"^guest-exec: No such file$"):
        talk.run(["/nonexistent"])


def test_an_agent_that_falls_silent(guest: Guest) -> None:
    guest.serve(lambda command, arguments: None)
    with Agent.open(guest.path, 20) as talk:
        talk.timeout = 0.1
        with pytest.raises(AgentError, match=r"did not answer guest-exec within 0\.1 s"):
            talk.run(["/bin/true"])


def test_a_guest_that_is_slower_than_the_asking_is_understood(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers to each of several syncs come late, and are not taken for the command's."""
    monkeypatch.setattr(agent, "EACH_SYNC", 0.01)
    late: list[bytes] = []

    def after_three(answer: bytes) -> list[bytes]:
        late.append(answer)
        return late[:] if len(late) == 3 else late[-1:] if len(late) > 3 else []

    guest.serve(program({"exited": True, "exitcode": 0}), after_three)
    with Agent.open(guest.path, 20) as talk:
        assert talk.run(["/bin/sh", "-c", "x"]) == Result(0, "", "")
    assert len(late) >= 3


def test_a_status_that_was_lost_is_asked_again(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "PATIENCE", 0.01)
    guest.serve(program(None, {"exited": True, "exitcode": 4}))
    with Agent.open(guest.path, 20) as talk:
        assert talk.run(["/bin/sh", "-c", "x"]).code == 4


def test_a_program_whose_start_was_lost_is_not_started_twice(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "PATIENCE", 0.01)
    asked: list[str] = []

    def silent(command: str, arguments: dict[str, Any]) -> None:
        asked.append(command)

    guest.serve(silent)
    with Agent.open(guest.path, 20) as talk, pytest.raises(AgentError, match="its agent lost guest-exec: it was restarted"):
        talk.run(["/bin/true"])
    assert asked == ["guest-exec"]


def test_an_answer_that_comes_late_is_no_lost_one(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent is busy with the command, and answers what came behind it afterwards."""
    monkeypatch.setattr(agent, "PATIENCE", 0.01)
    marked = threading.Event()

    def busy(command: str, arguments: dict[str, Any]) -> object:
        assert marked.wait(20) or command != "guest-exec"
        return program({"exited": True, "exitcode": 0})(command, arguments)

    sending = Agent.send

    def send(self: Agent, data: bytes) -> None:
        sending(self, data)
        if b'"guest-sync"' in data:
            marked.set()

    monkeypatch.setattr(Agent, "send", send)
    guest.serve(busy)
    with Agent.open(guest.path, 20) as talk:
        assert talk.run(["/bin/sh", "-c", "x"]) == Result(0, "", "")


def test_no_agent_in_the_guest(guest: Guest) -> None:
    with pytest.raises(AgentError, match=r"no agent answers within 0\.1 s: the guest is still booting"):
        Agent.open(guest.path, 0.1)


def test_a_guest_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="cannot reach its agent"):
        Agent.open(tmp_path / "none")
