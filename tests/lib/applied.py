"""A whole document applied in the test's namespace, with an upstream router behind its uplink."""
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

from kvmnet.check.model import Subject
from kvmnet.compile import Compiled, compile_spec
from kvmnet.drivers.kinds import from_json, to_json
from kvmnet.drivers.table import drivers
from kvmnet.engine.history import Change
from kvmnet.engine.journal import Codec
from kvmnet.engine.transaction import Engine
from kvmnet.facts.model import Allocations, Facts
from kvmnet.host.paths import Paths
from kvmnet.spec.allocate import allocate
from kvmnet.spec.load import loads
from lib.netns import named_netns, sh

UPLINK = "wan0"
OUTSIDE, OUTSIDE6 = "192.0.2.1", "2001:db8:1::1"
HOST, HOST6 = "192.0.2.2", "2001:db8:1::2"


@dataclass(frozen=True)
class Applied:
    """The host as the document wants it."""

    engine: Engine
    compiled: Compiled
    allocations: Allocations
    upstream: str
    """Namespace of the router behind the uplink."""

    @property
    def subject(self) -> Subject:
        return Subject(segments=self.compiled.segments, paths=self.engine.paths, allocations=self.allocations,
                       outside=(OUTSIDE, OUTSIDE6), next_hops=(OUTSIDE, OUTSIDE6))

    def left(self) -> list[str]:
        """What an apply of the same document would still change."""
        seen = self.engine.observe(self.compiled.wanted)
        self.engine.dispatch.look_up(seen, self.compiled.wanted)
        return [str(s.key) for s in self.engine.plan(seen, self.compiled.wanted, frozenset(self.compiled.borrowed)).steps]


@contextmanager
def applied(text: str, paths: Paths, routes: tuple[str, ...] = ()) -> Iterator[Applied]:
    """*text* applied until the end of the body, then destroyed. ``routes``: guests' prefixes that the
    upstream router sends to this host."""
    with named_netns(f"kvt-up-{os.getpid()}-{uuid4().hex[:4]}") as upstream:
        wire_uplink(upstream, routes)
        engine = Engine(drivers(paths), paths, Codec(to_json, from_json))
        document = loads(text)
        seen = engine.observe({})
        per_device = Path("/proc/sys/net/ipv6/conf/lo/force_forwarding").exists()
        facts = Facts(state=seen.state, features={"ipv6-force-forwarding": "" if per_device else "not in this kernel"})
        allocations = allocate(document.spec, {})
        compiled = compile_spec(document.spec, facts, allocations)
        try:
            engine.converge(compiled.wanted, Change(text, "test", allocations=allocations),
                            borrowed=frozenset(compiled.borrowed))
            yield Applied(engine, compiled, allocations, upstream)
        finally:
            engine.converge({}, Change("version: 1\n", "test"))


def wire_uplink(upstream: str, routes: tuple[str, ...]) -> None:
    sh(f"ip link add {UPLINK} type veth peer name eth0 netns {upstream}")
    sh(f"ip addr add {HOST}/24 dev {UPLINK}; ip addr add {HOST6}/64 dev {UPLINK} nodad; ip link set {UPLINK} up")
    sh(f"ip -n {upstream} addr add {OUTSIDE}/24 dev eth0; ip -n {upstream} addr add {OUTSIDE6}/64 dev eth0 nodad")
    sh(f"ip -n {upstream} link set eth0 up")
    sh(f"ip route add default via {OUTSIDE}; ip -6 route add default via {OUTSIDE6}")
    for prefix in routes:
        sh(f"ip -n {upstream} route add {prefix} via {HOST6 if ':' in prefix else HOST}")


def without_outside(subject: Subject) -> Subject:
    return replace(subject, outside=())
