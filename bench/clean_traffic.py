"""The guard against libvirt's ``clean-traffic``: 20 NICs that stand there open get their addresses bound.

Ours is the whole ``kvmnet apply`` of a document whose guards go from off to full; libvirt's is ``virsh nwfilter-binding-create``
for each of the same number of taps on a bridge, as QEMU's driver does it when a guest starts. libvirtd and its tools are fetched
by apt when this benchmark is asked for, unpacked and not installed: they are seen in this benchmark's own mount namespace alone.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from bench.claim import Claim
from bench.unpacked import LIBVIRT, fetch, inside, run, seen
from bench.world import World
from kvmnet.host.clock import wait_until

NICS = 20
PRIVATE = ("/run/libvirt", "/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt")
DRIVER = "libvirt/connection-driver/libvirt_driver_nwfilter.so"
URI = ("virsh", "-q", "-c", "nwfilter:///system")
BINDING = """<filterbinding>
<owner><name>g{number}</name><uuid>00000000-0000-0000-0000-{number:012}</uuid></owner>
<portdev name='t{number}'/><mac address='52:54:00:00:00:{number:02x}'/>
<filterref filter='clean-traffic'><parameter name='IP' value='10.0.0.{number}'/></filterref>
</filterbinding>
"""


def document(guard: str) -> str:
    lines = ["version: 1", "networks:", "  lan: {mode: isolated, subnet: 10.0.0.0/24, dhcp: {enabled: false}, dns: {enabled: false}}", "vms:"]
    return "\n".join((*lines, *(f'  g{i}: {{nics: [{{network: lan, guard: "{guard}"}}]}}' for i in range(NICS)))) + "\n"


def ours(rounds: int) -> list[float]:
    """Seconds of each command."""
    with tempfile.TemporaryDirectory(prefix="kvmnet-bench-") as folder:
        world = World(Path(folder))
        files = {guard: world.folder / f"{guard}.yaml" for guard in ("off", "full")}
        for guard, file in files.items():
            file.write_text(document(guard))
        taken = []
        for _ in range(rounds):
            world.kvmnet("apply", str(files["off"]), "--yes")
            taken.append(world.kvmnet("apply", str(files["full"]), "--yes").wall)
        world.kvmnet("destroy", "--yes")
    return taken


def theirs(usr: Path) -> list[float]:
    """Seconds of each NIC, in a mount namespace where libvirt is installed."""
    found: list[float] = json.loads(run(inside("bench.clean_traffic", ["--bind", str(usr)])))
    return found


def bind(usr: Path) -> list[float]:
    """The same, inside. This process's mounts end with it."""
    seen([usr])
    for folder in PRIVATE:
        Path(folder).mkdir(parents=True, exist_ok=True)
        run(["mount", "-t", "tmpfs", "none", folder])
    run(["cp", "-r", "/usr/share/libvirt/nwfilter", "/etc/libvirt/"])
    Path("/etc/libvirt/libvirtd.conf").write_text('auth_unix_rw="none"\n')
    drivers = Path("/run/libvirt/drivers")
    drivers.mkdir()
    module = next(Path("/usr/lib").glob(f"*/{DRIVER}"))
    (drivers / module.name).symlink_to(module)
    with tempfile.TemporaryDirectory(prefix="kvmnet-bench-") as folder:
        daemon = subprocess.Popen(["libvirtd"], env={**os.environ, "LIBVIRT_DRIVER_DIR": str(drivers)}, stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL)
        try:
            try:
                wait_until(lambda: not subprocess.run([*URI, "nwfilter-list"], capture_output=True, check=False).returncode, 20, 0.1)
            except TimeoutError:
                raise SystemExit("libvirtd does not answer") from None
            run(["ip", "link", "add", "lv", "type", "bridge"])
            return [bind_one(Path(folder, f"{number}.xml"), number) for number in range(1, NICS + 1)]
        finally:
            daemon.terminate()
            daemon.wait()


def bind_one(file: Path, number: int) -> float:
    run(["ip", "tuntap", "add", f"t{number}", "mode", "tap"])
    run(["ip", "link", "set", f"t{number}", "master", "lv", "up"])
    file.write_text(BINDING.format(number=number))
    began = time.monotonic()
    run([*URI, "nwfilter-binding-create", str(file)])
    taken = time.monotonic() - began
    if f"t{number} " not in run(["ebtables", "-t", "nat", "-L"]):
        raise SystemExit(f"libvirt made no rules for t{number}")
    return taken


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--fetch", action="store_true", help="only fetch libvirt")
    options.add_argument("--bind", type=Path, help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.bind:
        print(json.dumps(bind(asked.bind)))
        return
    usr = fetch("libvirt", LIBVIRT)
    if asked.fetch:
        return
    taken = {"libvirt": theirs(usr), "kvmnet": ours(asked.rounds)}
    per_nic, bare = median(taken["kvmnet"]) / NICS, median(taken["libvirt"])
    claim = Claim(f"libvirt's clean-traffic against the guard, per NIC of {NICS}", round(bare / per_nic, 1), "at least", 100, "x",
                  round(per_nic, 4), round(bare, 4), None, asked.rounds)
    with suppress(BrokenPipeError):
        print(json.dumps({"claims": [claim.to_json()], "seconds": taken}))


if __name__ == "__main__":
    main()
