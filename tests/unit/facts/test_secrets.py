"""What a capture shows of command lines and rules."""
from __future__ import annotations

import pytest

from kvmnet.facts.secrets import HIDDEN, scrubbed, scrubbed_words

KEY = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="


@pytest.mark.parametrize(("words", "shown"), [
    (["-object", "secret,id=s0,data=hunter2,format=raw"], ["-object", f"secret,id=s0,data={HIDDEN},format=raw"]),
    (["-vnc", ":0,password=hunter2"], ["-vnc", f":0,password={HIDDEN}"]),
    (["--auth-token", "hunter2", "--port", "80"], ["--auth-token", HIDDEN, "--port", "80"]),
    (["-drive", "file=http://user:hunter2@host/x"], ["-drive", f"file=http://user:{HIDDEN}@host/x"]),
    (["-name", "guest=web1", "-device", "virtio-net-pci,mac=52:54:00:00:00:01"], ["-name", "guest=web1", "-device", "virtio-net-pci,mac=52:54:00:00:00:01"]),
])
def test_words(words: list[str], shown: list[str]) -> None:
    assert scrubbed_words(words) == shown


@pytest.mark.parametrize("text", [f"private-key {KEY}", f'comment "psk={KEY}"', 'comment "token: hunter2"', "api_key='hunter2 and more'"])
def test_texts(text: str) -> None:
    assert KEY not in scrubbed(text) and "hunter2" not in scrubbed(text) and HIDDEN in scrubbed(text)


def test_rules_stay_as_they_are() -> None:
    rule = 'iifname "kvt-key-0" ether saddr 52:54:00:00:00:01 ip saddr 10.0.0.1 meta mark 0x00000005 jump keys comment "by token"'
    assert scrubbed(rule) == rule
