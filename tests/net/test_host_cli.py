"""The command line as a contract for other programs: JSON, exit codes, and no traceback whatever is typed."""
from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import pytest

from kvmnet.cli import main as command_line
from lib.netns import sh
from lib.world import World, world

pytestmark = pytest.mark.net

DOCUMENT = """
version: 1
uplinks: {wan: {device: eth0}}
networks:
  lan: {mode: nat, uplink: wan, subnet: 192.168.100.0/24, subnet6: "fd00:100::/64"}
vms:
  a: {nics: [{network: lan}]}
  b: {nics: [{network: lan, model: e1000e}]}
"""


@pytest.fixture(scope="module")
def net() -> Iterator[World]:
    with world() as made:
        made.write(DOCUMENT)
        made.write(DOCUMENT.replace("lan:", "l an:").replace("nat", "gnat"), "wrong.yaml")
        made.write("\x00\xff{", "rubbish.yaml")
        yield made


def shape(data: Any) -> Any:
    """Keys and types of JSON data; of a list, that of its first item."""
    match data:
        case dict():
            return {k: shape(v) for k, v in sorted(data.items())}
        case list():
            return [shape(data[0])] if data else []
    return type(data).__name__


STEP = {"action": "str", "kind": "str", "name": "str"}
RESULT = {"changed": "int", "confirm_within": "NoneType", "notes": [], "outcome": "str", "revision": "int"}
REVISION = {"created": "str", "message": "str", "revision": "int", "source": "str", "status": "str",
            "summary": {"create": "int", "delete": "int", "update": "int"}, "who": "str"}


def test_json_of_every_command(net: World) -> None:
    """What programs read: nothing but one JSON document on standard output, with these keys."""
    file = str(net.paths.state.parent / "host.yaml")

    def said(expected: int, *words: str) -> Any:
        done = net.cli(*words, "--json")
        assert done.returncode == expected, (words, done.stderr)
        assert "\x1b" not in done.stdout
        return json.loads(done.stdout)

    plan = said(2, "plan", file)
    assert shape(plan) | {"steps": 0} == {"fingerprint": "str", "format": "int", "notes": [], "source": "str", "steps": 0}
    assert all(STEP.keys() <= step.keys() for step in plan["steps"]) and len(plan["steps"]) > 15
    assert said(0, "status") is None and said(0, "history") == [] and said(0, "vm", "list") == []
    assert shape(said(0, "boot")) == RESULT | {"revision": "NoneType"} and said(0, "recover") == {"outcome": "nothing to recover"}
    assert shape(said(0, "apply", "--yes", file)) == RESULT
    assert shape(said(0, "apply", "--yes", "--confirm", "60", write_smaller(net))) == RESULT | {"confirm_within": "int"}
    assert said(0, "confirm") == {"revision": 2}
    assert shape(said(0, "rollback", "--yes")) == RESULT
    status = said(0, "status")
    assert status["format"] == 1 and status["drift"] == [] and [n["ip"] for n in status["nics"]] == \
        ["192.168.100.2", "192.168.100.3"]
    assert {"revision", "uplinks", "networks", "nics", "guests", "notes", "unconfirmed", "source"} <= status.keys()
    assert [shape(r) for r in said(0, "history")] == [REVISION] * 3
    assert [g["name"] for g in said(0, "vm", "list")] == ["a", "b"]
    assert said(0, "plan", file)["steps"] == []
    drifted = sh("ip link set kvt-a-0 down") or said(2, "plan", file)
    assert drifted["steps"] == [{"action": "update", "changes": {"up": {"new": True, "old": False}}, "guest": [],
                                 "kind": "link", "name": "kvt-a-0"}]
    assert said(0, "status")["drift"] == ["update link kvt-a-0"]
    assert said(0, "destroy", "--yes")["outcome"] == "confirmed"
    assert json.loads(net.cli("schema").stdout)["title"]


def write_smaller(net: World) -> str:
    return net.write(DOCUMENT.replace("  b: {nics: [{network: lan, model: e1000e}]}\n", ""), "smaller.yaml")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with world() as made:
        made.write(DOCUMENT)
        monkeypatch.chdir(made.paths.state.parent)
        yield made


@pytest.mark.parametrize(("words", "expected"), [
    (["confirm"], 12), (["rollback", "--yes"], 1), (["rollback", "--yes", "7"], 1), (["recover"], 0), (["boot"], 0),
    (["vm", "start", "nobody"], 1), (["vm", "exec", "nobody", "true"], 1), (["vm", "console", "nobody"], 1),
    (["vm", "arguments", "nobody"], 1), (["vm", "stop", "nobody"], 0), (["destroy", "--yes"], 0)], ids=lambda x: "-".join(x) if isinstance(x, list) else str(x))
def test_exit_codes_of_a_host_without_anything(fresh: World, words: list[str], expected: int) -> None:
    code, out, err = typed(words)
    assert code == expected, out + err
    assert err.strip()


@pytest.mark.parametrize(("words", "expected"), [
    (["plan", "wrong.yaml"], 10), (["plan", "rubbish.yaml"], 10), (["plan", "absent.yaml"], 1), (["apply"], 64),
    (["plan", "--nonsense"], 64), (["plna"], 64), ([], 64), (["rollback", "x"], 64),
    (["apply", "--confirm", "0", "host.yaml"], 64), (["vm"], 64),
    (["init", "host.yaml"], 1), (["init", "/proc/x/y"], 1), (["plan", "--out", "/proc/x", "host.yaml"], 1), (["history", "-n", "x"], 64),
    (["--version"], 0), (["plan", "--help"], 0)], ids=lambda x: "-".join(x) if isinstance(x, list) else str(x))
def test_exit_codes(net: World, words: list[str], expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(net.paths.state.parent)
    code, out, err = typed(words)
    assert code == expected, out + err
    assert expected == 0 or err.strip(), "an error says something"


@pytest.mark.parametrize("words", [["plan", "-"], ["plan", "/dev/stdin"], ["apply", "--yes", "-"]], ids=" ".join)
def test_a_document_may_come_through_a_pipe(fresh: World, words: list[str]) -> None:
    done = fresh.cli(*words, text=DOCUMENT)
    assert done.returncode == (2 if words[0] == "plan" else 0), done.stderr
    assert "kvt-b-0" in done.stdout


def typed(words: list[str]) -> tuple[int, str, str]:
    """Run main() in this process: (exit code, standard output, standard error)."""
    out, err = io.StringIO(), io.StringIO()

    def leave(code: int) -> NoReturn:
        raise SystemExit(code)

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(command_line, "leave", leave)
        patch.setattr(sys, "argv", ["kvmnet", *words])
        patch.setattr(sys, "stdin", io.StringIO(""))
        try:
            command_line.main()
        except SystemExit as end:
            return (end.code if isinstance(end.code, int) else 1), out.getvalue(), err.getvalue()
    raise AssertionError("main() returned")


WORDS = ["plan", "apply", "confirm", "recover", "rollback", "destroy", "boot", "status", "history", "vm", "init", "schema",
         "list", "start", "stop", "exec", "arguments", "host.yaml", "wrong.yaml", "rubbish.yaml", "absent.yaml", ".", "-", "--", "",
         "--yes", "--json", "--confirm", "1", "-1", "99999999999999999999", "--adopt", "--out", "saved.plan", "--all", "--commands",
         "--drops", "a", "b", "nobody", "a/nic0", "--help", "-h", "--version", "-n", "0", "ä\udcff", "../../x", "--force",
         "--libvirt", "--limit", "--timeout", "x" * 300, "{\"kvmnet-plan\": 1"]
CODES = {0, 1, 2, 10, 11, 12, 13, 64, 130}


def test_whatever_is_typed_there_is_no_traceback(net: World, monkeypatch: pytest.MonkeyPatch) -> None:
    place = net.paths.state.parent / "fuzz"
    place.mkdir()
    for file in ("host.yaml", "wrong.yaml", "rubbish.yaml"):
        (place / file).write_bytes((net.paths.state.parent / file).read_bytes())
    monkeypatch.chdir(place)
    random = Random(20)
    for _ in range(400):
        words = [random.choice(WORDS[:13]), *random.choices(WORDS, k=random.randrange(4))]
        code, out, err = typed(words)
        assert code in CODES, (words, code, err)
        assert "Traceback" not in out + err, words
        assert code in (0, 2) or err.strip(), (words, code)
        if "--json" in words and code in (0, 2) and out.strip() and not {"--help", "-h", "--version"} & set(words):
            json.loads(out)
    with contextlib.suppress(FileNotFoundError):
        Path("saved.plan").unlink()
