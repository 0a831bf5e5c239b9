"""Options in a document's text: at their place, with everything else as it was, or not at all."""
from __future__ import annotations

import pytest

from kvmnet.errors import KvmnetError
from kvmnet.spec.load import loads
from kvmnet.tune.options import with_options
from kvmnet.tune.proposals import Proposal
from kvmnet.tune.prove import Proof, kept_options

TEXT = """# ours
version: 1
uplinks: {wan: {device: eth0}}    # borrowed
networks:
  lan: {mode: isolated, subnet: 10.0.0.0/24}
vms:
  web:
    run:   # a small one
      cpus: 2
      image: tiny
    nics:
      - {network: lan, queues: 1}   # flow
      - network: lan                # block
        rx_ring: 256
"""


def test_each_is_put_where_it_belongs() -> None:
    made = with_options(TEXT, {"uplinks.wan.steering.receive": "0-1", "vms.web.run.pin.vcpus": "[0, 1]", "vms.web.nics[0].queues": "auto",
                               "vms.web.nics[1].rx_ring": "1024", "vms.web.nics[1].queues": "2", "vms.web.nics[0].packed": "true"})
    spec = loads(made).spec
    assert spec.uplinks["wan"].steering.receive == ("0-1",) and spec.vms["web"].run.pin.vcpus == ("0", "1")  # type: ignore[union-attr]
    assert [(n.queues, n.rx_ring, n.packed) for n in spec.vms["web"].nics] == [("auto", None, True), (2, 1024, False)]
    kept = [line for line in TEXT.splitlines() if "#" in line]
    assert [word for word in (line.partition("#")[2] for line in kept) if word not in made] == [], "remarks stay"
    assert set(TEXT.splitlines()) - set(made.splitlines()) == {
        "uplinks: {wan: {device: eth0}}    # borrowed", "      cpus: 2", "      - {network: lan, queues: 1}   # flow", "      - network: lan                # block",
        "        rx_ring: 256"} - set(made.splitlines())
    assert with_options(made, {"vms.web.nics[0].queues": "auto"}) == made, "once more changes nothing"


@pytest.mark.parametrize(("text", "path"), [
    (TEXT, "vms.db.nics[0].queues"), (TEXT, "vms.web.nics[7].queues"), (TEXT.replace("{network: lan, queues: 1}", "&a {network: lan}").replace("- network: lan  ", "- <<: *a\n        network: lan"), "x.y[0]"),
])
def test_what_is_not_there_is_left_to_the_operator(text: str, path: str) -> None:
    with pytest.raises(KvmnetError):
        with_options(text, {path: "2"})


def test_what_helped_is_what_is_written() -> None:
    def proposal(name: str, point: str, base: str = "cpus=2") -> Proposal:
        return Proposal(name, "", "new", "", "", "", point=point, base=base)

    some = [proposal("vms.a.nics[0].queues", "queues=2"), proposal("vms.b.nics[0].queues", "queues=2", "cpus=2 mtu=9000"), proposal("vms.a.nics[0].rx_ring", "rx_ring=1024"),
            proposal("tuning.net.core.busy_read", "net.core.busy_read=50"), proposal("uplinks.w.ethtool.rings.rx", "")]
    proofs = [Proof("cpus=2", "queues=2", True, ()), Proof("cpus=2", "rx_ring=1024", False, ()), Proof("cpus=2", "net.core.busy_read=50", True, ())]
    assert kept_options(some, proofs) == {"vms.a.nics[0].queues": "new"}
