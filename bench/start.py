"""How long an operator waits for the smallest commands: whole processes, in seconds."""
from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from bench.claim import seconds
from bench.world import World

QUICKSTART = Path(__file__).parents[1] / "examples/quickstart.yaml"
UPLINK = ("link add eth0 type veth peer name wire0", "address add 192.0.2.2/24 dev eth0", "link set wire0 up",
          "link set eth0 up", "route add default via 192.0.2.1")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=11)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvmnet-bench-") as folder:
        world = World(Path(folder))
        for line in UPLINK:
            subprocess.run(["ip", *line.split()], check=True)
        world.kvmnet("plan", str(QUICKSTART), codes=(2,))
        version, plan = [], []
        for _ in range(asked.rounds):
            version.append(world.kvmnet("--version"))
            plan.append(world.kvmnet("plan", str(QUICKSTART), codes=(2,)))
        claims = [seconds("kvmnet --version", version, 0.2), seconds("kvmnet plan of the quickstart", plan, 0.7)]
        print(json.dumps({"claims": [c.to_json() for c in claims]}))


if __name__ == "__main__":
    main()
