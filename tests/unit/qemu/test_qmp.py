"""The monitor's protocol, as a conversation without a socket, and with one that fails."""
from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmnet.drivers.qemu.qmp import Conversation, Event, Greeting, Monitor, QmpError, Refusal, Reply
from kvmnet.drivers.qemu.sockets import listen

GREETING = b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}\r\n'


def test_a_conversation() -> None:
    talk = Conversation()
    assert talk.receive(GREETING) == [Greeting("7.2.22")]
    number, data = talk.request("device_add", {"driver": "e1000", "mq": True})
    assert json.loads(data) == {"execute": "device_add", "arguments": {"driver": "e1000", "mq": True}, "id": number}
    assert talk.receive(b'{"return": {}, "id": 1}\r\n{"event": "DEVICE_DELETED", "data": {"device": "a"}}\r\n') == [
        Reply(1, {}), Event("DEVICE_DELETED", {"device": "a"})]
    assert talk.receive(b'{"error": {"class": "GenericError", "desc": "no"}, "id": 2}\n') == [Refusal(2, "no")]


def test_messages_may_arrive_in_pieces() -> None:
    talk = Conversation()
    whole = GREETING + b'{"return": 5, "id": 7}\n'
    found = [m for i in range(len(whole)) for m in talk.receive(whole[i:i + 1])]
    assert found == [Greeting("7.2.22"), Reply(7, 5)]


@pytest.mark.parametrize("junk", [b"SSH-2.0-x\n", b"[1]\n", b'{"other": 1}\n', b"\xff\xfe\n"])
def test_what_is_no_qmp_is_an_error(junk: bytes) -> None:
    with pytest.raises(QmpError, match="not a QMP message"):
        Conversation().receive(junk)


class Server:
    """A QEMU that says what the test tells it to."""

    def __init__(self, path: Path):
        self.path = path
        self.listening = listen(path)
        self.got: list[dict[str, object]] = []
        self.descriptors: list[int] = []
        self.threads: list[threading.Thread] = []

    def serve(self, *answers: bytes) -> None:
        """Greet one client, acknowledge its capabilities, then send one answer per write of it."""
        def work() -> None:
            stream, _ = self.listening.accept()
            with stream:
                stream.sendall(GREETING)
                for answer in (b'{"return": {}, "id": 1}\n', *answers):
                    data, fds, _, _ = socket.recv_fds(stream, 65536, 4)
                    self.descriptors += fds
                    self.got += [json.loads(line) for line in data.splitlines()]
                    stream.sendall(answer)
                stream.settimeout(2)
                stream.recv(1)
        self.threads.append(threading.Thread(target=work))
        self.threads[-1].start()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    deep = tmp_path / ("x" * 120)      # longer than a socket's path may be
    deep.mkdir()
    found = Server(deep / "monitor.sock")
    yield found
    found.listening.close()
    for thread in found.threads:
        thread.join(5)
    for fd in found.descriptors:
        os.close(fd)


def test_commands_go_out_in_one_write_and_answers_are_matched(server: Server) -> None:
    server.serve(b'{"event": "RESUME"}\n{"return": 1, "id": 2}\n{"error": {"desc": "no"}, "id": 3}\n')
    with Monitor.open(server.path) as monitor:
        assert monitor.version == "7.2.22"
        assert monitor.execute_all([("a", {}), ("b", {})]) == [Reply(2, 1), Refusal(3, "no")]
        assert monitor.wait_event("RESUME", 0.1) == Event("RESUME", {})
    assert [m["execute"] for m in server.got] == ["qmp_capabilities", "a", "b"]


def test_a_refusal_carries_qemu_s_words(server: Server) -> None:
    server.serve(b'{"error": {"desc": "Bus full"}, "id": 2}\n')
    with Monitor.open(server.path) as monitor, pytest.raises(QmpError, match=r"^device_add: Bus full$"):
        monitor.execute("device_add")


def test_events_are_matched_by_their_data(server: Server) -> None:
    server.serve(b'{"event": "D", "data": {"device": "a"}}\n{"event": "D", "data": {"device": "b", "path": "/"}}\n'
                 b'{"return": {}, "id": 2}\n')
    with Monitor.open(server.path) as monitor:
        monitor.execute("x")
        assert monitor.wait_event("D", 0.1, device="b").data["path"] == "/"
        assert monitor.wait_event("D", 0.1, device="a").data == {"device": "a"}
        with pytest.raises(QmpError, match="event D did not come in time"):
            monitor.wait_event("D", 0.05)


def test_open_files_are_handed_over(server: Server, tmp_path: Path) -> None:
    server.serve(b'{"return": {}, "id": 2}\n')
    (tmp_path / "f").write_text("content")
    with (tmp_path / "f").open() as file, Monitor.open(server.path) as monitor:
        monitor.give("tap0", file.fileno())
    assert server.got[-1]["arguments"] == {"fdname": "tap0"}
    assert os.pread(server.descriptors[0], 20, 0) == b"content"


def test_silence_ends_at_the_deadline(server: Server) -> None:
    with pytest.raises(QmpError, match="does not answer: a greeting did not come in time"):
        Monitor.open(server.path, timeout=0.05)      # the kernel accepts the connection, nobody speaks


def test_a_qemu_that_ends_meanwhile(server: Server) -> None:
    server.serve()
    with Monitor.open(server.path, 3) as monitor:
        monitor.stream.shutdown(socket.SHUT_WR)
        with pytest.raises(QmpError, match="its monitor is gone"):
            monitor.execute("query-status")


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(QmpError, match="cannot reach its monitor: No such file"):
        Monitor.open(tmp_path / "none")
