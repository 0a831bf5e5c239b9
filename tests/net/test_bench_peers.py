"""What bench peers configures against the clock stands there afterwards, by everybody who is at hand; what does not is no result."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kvmnet.bench.peers import configure, tasks
from kvmnet.bench.peers.space import Space
from kvmnet.errors import KvmnetError
from kvmnet.host.apart import step_aside
from lib.fork import in_child

pytestmark = pytest.mark.net

SIZES = {"networks": 2, "nics": 3}


def measure(folder: Path, answer: Path) -> None:
    """In namespaces of its own: the times, and what is said of ways that lie."""
    step_aside(folder)
    found: dict[str, object] = {"times": configure.configured(["kvmnet", "bare"], SIZES, 1, folder, lambda *_: None)}
    space = Space("liars", folder / "liars")
    space.make()
    honest = tasks.with_bare_tools(space, **SIZES)["ports"]
    for name, way in {"idle": replace(honest, timed=()), "early": replace(honest, prepare=(*honest.prepare, *honest.timed), timed=())}.items():
        with pytest.raises(KvmnetError) as said:
            configure.time_of(way, space)
        found[name] = str(said.value)
        configure.do(honest.undo[-1:] if name == "idle" else honest.undo, space)
    assert configure.time_of(honest, space) > 0, "the same without a lie"
    answer.write_text(json.dumps(found))


def test_what_was_configured_is_there(tmp_path: Path) -> None:
    answer = tmp_path / "answer.json"
    with TemporaryDirectory(prefix="kvmnet-test-") as folder:
        Path(folder).chmod(0o755)    # dnsmasq gives up root and enters
        assert in_child(lambda: measure(Path(folder), answer)) == 0
    found = json.loads(answer.read_text())
    assert {task: sorted(by) for task, by in found["times"].items()} == {task: ["bare", "kvmnet"] for task in tasks.TASKS}
    assert all(len(seconds) == 1 and seconds[0] > 0 for by in found["times"].values() for seconds in by.values())
    assert "not all there afterwards" in found["idle"] and "there before" in found["early"]
    assert not Path("/run/netns/liars").exists(), "nothing is left outside"
