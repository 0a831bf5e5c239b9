"""Settings in a document's text: in their place, with everything else as it was, or not at all."""
from __future__ import annotations

import pytest

from kvmnet.errors import KvmnetError, SpecError
from kvmnet.spec.load import loads
from kvmnet.tune.written import with_tuning

HEAD = "# ours\nversion: 1\nnetworks:   # two spaces\n  lan: {mode: isolated, subnet: 10.0.0.0/24}\n"
FOUND = {"net.ipv4.tcp_mtu_probing": "1", "net.ipv4.tcp_rmem": "4096 131072 33554432"}


def test_a_part_is_added_with_its_remarks() -> None:
    made = with_tuning(HEAD, FOUND, {"net.ipv4.tcp_rmem": "measured: 1.4 times"})
    assert made == (HEAD + "\ntuning:\n  net.ipv4.tcp_mtu_probing: 1\n  # measured: 1.4 times\n  net.ipv4.tcp_rmem: 4096 131072 33554432\n")
    assert with_tuning(made, FOUND, {}) == made, "once more changes nothing"


def test_a_part_that_is_there_keeps_what_it_has() -> None:
    text = HEAD + "tuning:   # by hand\n    # wide\n    net.ipv4.tcp_rmem: 4096 131072 6291456\n    net.core.bpf_jit_enable: 1\nvms: {}\n"
    made = with_tuning(text, FOUND, {})
    assert "tuning:   # by hand\n    net.ipv4.tcp_mtu_probing: 1\n    # wide\n    net.ipv4.tcp_rmem: 4096 131072 33554432\n    net.core.bpf_jit_enable: 1\nvms: {}\n" in made
    assert loads(made).spec.tuning == {**FOUND, "net.core.bpf_jit_enable": "1"}


@pytest.mark.parametrize("part", ["tuning: {net.core.bpf_jit_enable: 1}\n", "'tuning':\n  net.core.bpf_jit_enable: 1\n"])
def test_what_is_not_understood_is_left_to_the_operator(part: str) -> None:
    with pytest.raises(KvmnetError, match="not understood") as said:
        with_tuning(HEAD + part, FOUND, {})
    assert "net.ipv4.tcp_mtu_probing: 1" in said.value.hint


def test_what_is_no_document_is_not_written_to() -> None:
    with pytest.raises(SpecError):
        with_tuning("version: 1\nnetworks: 7\n", FOUND, {})
