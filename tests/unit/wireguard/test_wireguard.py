"""Tunnels: what wg prints and is told, secrets that stay in their files, what a document means."""
from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from kvmnet.adopt.export import uplink_layout
from kvmnet.compile import compile_spec
from kvmnet.drivers.linux.resources import Address, Link
from kvmnet.drivers.wireguard import driver as wg
from kvmnet.drivers.wireguard import secrets
from kvmnet.drivers.wireguard.driver import WireguardDriver
from kvmnet.drivers.wireguard.resources import Tunnel, TunnelPeer
from kvmnet.drivers.wireguard.wire import SeenPeer, SeenTunnel, parse_dump
from kvmnet.engine.driver import StepFailed
from kvmnet.engine.plan import Create, Delete, Step, Update
from kvmnet.engine.resource import Key, Resource
from kvmnet.facts.model import Facts
from kvmnet.host.paths import Paths
from kvmnet.reach.targets import Hit, Target
from kvmnet.spec import ways
from kvmnet.spec.checks import lacking
from kvmnet.spec.load import loads
from kvmnet.spec.models import Spec
from kvmnet.spec.values import endpoint, prefixes, wireguard_key

A, B = (base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
SECRET = secrets.clamped(bytes([9]) * 32)
SHARED = base64.b64encode(bytes([7]) * 32).decode()
DUMP = (f"kvu-t\t{SECRET}\t{A}\t51820\toff\n"
        f"kvu-t\t{B}\t{SHARED}\t192.0.2.7:51820\t10.9.0.2/32,10.20.0.0/16\t1700000000\t1000\t2000\t25\n"
        f"kvu-t\t{A}\t(none)\t(none)\t(none)\t0\t0\t0\toff\n"
        "wg9\t(none)\t(none)\t40000\toff\n")


def test_what_wg_prints() -> None:
    found = parse_dump(DUMP)
    assert (found["kvu-t"].public, found["kvu-t"].port, found["wg9"].secret) == (A, 51820, "")
    far = found["kvu-t"].peers[B]
    assert (far.endpoint, far.allowed, far.handshake, far.keepalive) == (
        "192.0.2.7:51820", ("10.20.0.0/16", "10.9.0.2/32"), 1700000000, 25)
    silent = found["kvu-t"].peers[A]
    assert (silent.endpoint, silent.allowed, silent.keepalive, silent.secret) == ("", (), 0, "")
    assert SECRET not in repr(found) and SHARED not in repr(found)


@pytest.mark.parametrize(("given", "kept"), [
    ("192.0.2.7:51820", "192.0.2.7:51820"), ("[2001:DB8::7]:51820", "[2001:db8::7]:51820"), ("192.0.2.7:051820", "192.0.2.7:51820")])
def test_one_spelling_of_an_endpoint(given: str, kept: str) -> None:
    assert endpoint(given) == kept


@pytest.mark.parametrize("given", ["192.0.2.7", "192.0.2.7:0", "192.0.2.7:70000", "2001:db8::7:51820", "[192.0.2.7]:1", "host:1"])
def test_no_endpoint(given: str) -> None:
    with pytest.raises(ValueError, match=r"endpoint|address"):
        endpoint(given)


def test_other_values() -> None:
    assert prefixes(["10.9.0.2", "::/0", "0.0.0.0/0", "10.9.0.2/32"]) == ("0.0.0.0/0", "10.9.0.2/32", "::/0")
    for wrong in (B[:-1], "x" * 44, base64.b64encode(bytes(31)).decode()):
        with pytest.raises(ValueError, match="public key"):
            wireguard_key(wrong)


# -- secrets ---------------------------------------------------------------------------------------

def test_files_of_secrets(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "own.key"
    assert secrets.trouble(file) == "no such file or directory" and secrets.private_key(file) == ""
    secrets.make(file)
    first = file.read_text()
    secrets.make(file)
    assert file.read_text() == first and file.stat().st_mode & 0o777 == 0o600 and secrets.trouble(file) == ""
    raw = base64.b64decode(first)
    assert (raw[0] & 7, raw[31] >> 6) == (0, 1) and secrets.private_key(file) == first.strip()
    file.chmod(0o640)
    assert secrets.trouble(file) == f"others can read it (mode 640): chmod 600 {file}"
    file.chmod(0o600)
    file.write_text("no key")
    assert secrets.trouble(file).startswith("holds no key") and secrets.trouble(tmp_path) == "is no file"


@pytest.fixture
def driver(tmp_path: Path) -> WireguardDriver:
    return WireguardDriver(Paths(tmp_path / "state", tmp_path / "run"))


def peer(name: str = B, **settings: object) -> TunnelPeer:
    return TunnelPeer(name=f"kvu-t {name}", tunnel="kvu-t", **settings)  # type: ignore[arg-type]


WHOLE = peer(allowed=("10.9.0.2/32",), endpoint="192.0.2.7:51820", keepalive=25, secret_file="", keyed=True)
TUNNEL = Tunnel(name="kvu-t", dev="kvu-t", port=51820, key_file="", keyed=True, carrier="eth0")


@pytest.mark.parametrize(("steps", "told"), [
    ([Create(TUNNEL), Create(WHOLE)], ["listen-port 51820 private-key STATE/wireguard/kvu-t.key", f"peer {B} endpoint 192.0.2.7:51820 "
                                       "persistent-keepalive 25 allowed-ips 10.9.0.2/32"]),
    ([Update(WHOLE, peer(keepalive=0))], [f"peer {B} persistent-keepalive off"]),
    ([Update(WHOLE, peer(allowed=()))], [f"peer {B} allowed-ips "]),
    ([Update(WHOLE, peer(secret_file="/etc/s", keyed=True))], [f"peer {B} preshared-key /etc/s"]),
    ([Update(peer(secret_file="/etc/s", keyed=True), peer(secret_file="", keyed=True))], [f"peer {B} preshared-key /dev/null"]),
    ([Delete(WHOLE), Create(peer(A, allowed=("10.9.0.3/32",), endpoint="", keepalive=0, secret_file="/etc/s", keyed=True))],
     [f"peer {B} remove peer {A} preshared-key /etc/s persistent-keepalive off allowed-ips 10.9.0.3/32"]),
    ([Update(TUNNEL, Tunnel(name="kvu-t", port=51821, keyed=True))], ["listen-port 51821"]),
])
def test_what_wg_is_told(driver: WireguardDriver, steps: list[Step], told: list[str]) -> None:
    commands = [" ".join(c.argv) for c in driver.commands(steps) if c.argv[0] == "wg"]
    assert commands == [f"wg set kvu-t {line.replace('STATE', str(driver.state))}" for line in told]


def test_a_thousand_peers_are_few_commands(driver: WireguardDriver) -> None:
    keys = [base64.b64encode(n.to_bytes(32, "big")).decode() for n in range(1000)]
    commands = driver.commands([Create(peer(k, allowed=("10.9.0.2/32",), keepalive=0, keyed=True)) for k in keys])
    assert len(commands) == 1000 // wg.TOGETHER and max(len(" ".join(c.argv)) for c in commands) < 128 * 1024


def seen(driver: WireguardDriver, text: str, monkeypatch: pytest.MonkeyPatch) -> dict[Key, Resource]:
    monkeypatch.setattr(wg, "dump", lambda: parse_dump(text))
    return driver.observe({}).state


def kernel(monkeypatch: pytest.MonkeyPatch, told: list[str], text: str = "") -> None:
    def run(argv: tuple[str, ...], stdin: str = "") -> str:
        told.append(" ".join(argv))
        return A if argv[1] == "pubkey" and stdin.strip() == SECRET else ""
    monkeypatch.setattr(wg, "dump", lambda: parse_dump(text))
    monkeypatch.setattr(wg.host, "run", run)


def test_roaming_is_no_difference_and_another_key_is(driver: WireguardDriver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert seen(driver, DUMP, monkeypatch) == {}    # nothing noted: not ours, and nobody asked
    told: list[str] = []
    shared = tmp_path / "shared"
    shared.write_text(SHARED)
    kernel(monkeypatch, told)
    wanted = peer(allowed=("10.20.0.0/16", "10.9.0.2/32"), endpoint="198.51.100.1:9", keepalive=25, secret_file=str(shared), keyed=True)
    own = secrets.own_file(driver.state, "kvu-t")
    own.parent.mkdir(parents=True)
    own.write_text(SECRET)
    driver.apply([Create(TUNNEL), Create(wanted)], lambda done: None)
    state = seen(driver, DUMP, monkeypatch)
    assert state[wanted.key] == wanted    # the kernel's endpoint is another one by now
    assert state[TUNNEL.key] == Tunnel(name="kvu-t", dev="kvu-t", port=51820, key_file="", keyed=True, public=A, carrier="eth0")
    assert all(SECRET not in line and SHARED not in line for line in told)
    assert SECRET not in json.dumps([p.read_text() for p in driver.folder.rglob("*")])
    own.write_text(secrets.clamped(bytes([8]) * 32))
    shared.write_text(base64.b64encode(bytes(range(32))).decode())
    state = seen(driver, DUMP, monkeypatch)
    assert not state[TUNNEL.key].keyed and not state[wanted.key].keyed  # type: ignore[attr-defined]
    stray = [k for k in state if k.name.endswith(A)]
    assert len(stray) == 1    # a peer that nobody wants is seen, and goes


def test_a_key_that_no_file_has_any_more_comes_back(driver: WireguardDriver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[str] = []
    kernel(monkeypatch, told, DUMP)
    file = tmp_path / "mine"
    file.write_text(secrets.clamped(bytes([8]) * 32))
    before = Tunnel(name="kvu-t", dev="kvu-t", port=51820, key_file=str(file), keyed=False, public=A)
    driver.apply([Update(before, Tunnel(name="kvu-t", keyed=True))], lambda done: None)
    assert told[-1] == f"wg set kvu-t private-key {file}"
    (kept,) = driver.folder.glob("*.secret")
    assert kept.read_text().strip() == SECRET and kept.stat().st_mode & 0o777 == 0o600
    now = Tunnel(name="kvu-t", dev="kvu-t", port=51820, key_file=str(file), keyed=True, public=B)
    driver.apply([Update(now, before)], lambda done: None)
    assert told[-1] == f"wg set kvu-t private-key {kept}"
    driver.apply([Delete(before)], lambda done: None)
    assert list(driver.folder.iterdir()) == []
    with pytest.raises(StepFailed, match="in no file any more"):
        driver.apply([Update(now, before)], lambda done: None)


def test_errors_hold_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: tuple[str, ...]) -> str:
        raise wg.host.ToolFailed(argv, 1, DUMP)
    monkeypatch.setattr(wg.host, "run", run)
    monkeypatch.setattr(wg.host, "missing", lambda tool: None)
    with pytest.raises(wg.HostCannot) as wrong:
        wg.dump()
    assert SECRET not in str(wrong.value) and wrong.value.__cause__ is None
    assert SECRET not in repr(SeenTunnel("a", SECRET, A, 1)) and SHARED not in repr(SeenPeer(A, SHARED, "", (), 0, 0, 0, 0))


# -- what a document means -------------------------------------------------------------------------

HOST = {r.key: r for r in (Link(name="eth0", type="physical", mtu=9000, mac="02:00:00:00:00:10", master=""),
                           Address(name="eth0 192.0.2.2/24", dev="eth0", scope="global"))}


def spec(endpoint: str = "192.0.2.7:51820", more: str = "", networks: str = "{}") -> Spec:
    return loads(f"version: 1\nuplinks:\n  wan: {{device: eth0}}\n  t:\n    on: wan\n    addresses: [10.9.0.1/24]\n    wireguard:\n      peers: "
                 f"{{far: {{key: {B}, endpoint: '{endpoint}', allowed: [10.9.0.2]{more}}}}}\nnetworks: {networks}\n").spec


def test_mtu_follows_from_the_uplink_and_the_family() -> None:
    assert ways.mtu("t", spec(), HOST) == 8940
    assert ways.mtu("t", spec("[2001:db8::7]:51820"), HOST) == 8920
    made = compile_spec(spec(networks="{blue: {mode: vxlan, uplink: t, vxlan: {vni: 5, peers: [10.9.0.2]}}}"), Facts(state=HOST), {})
    port = made.wanted[Key("link", "kvx-blue")]
    assert isinstance(port, Link) and (port.mtu, port.parent, port.vxlan_local) == (8890, "kvu-t", "10.9.0.1")


def test_only_its_uplink_brings_packets_to_its_port() -> None:
    made = compile_spec(spec(), Facts(state=HOST), {})
    text = made.wanted[Key("nft-table", "inet kvmnet")].text  # type: ignore[union-attr]
    assert 'udp dport 51820 iifname != "eth0" counter drop' in text
    assert 'chain tunnel_in' not in (compile_spec(loads("version: 1\nuplinks: {wan: {device: eth0}}\nnetworks: {a: {mode: isolated}}\n").spec,
                                                  Facts(state=HOST), {}).wanted[Key("nft-table", "inet kvmnet")].text)  # type: ignore[union-attr]
    assert any("public key" in note for note in made.notes)


def test_what_a_host_lacks_for_it() -> None:
    own = Tunnel(name="kvu-t", dev="kvu-t", public=B)
    facts = Facts(state={**HOST, own.key: own}, features={"wireguard": "no module"}, secrets={"/etc/s": "is no file"})
    found = [(p.path.removeprefix("uplinks.t.wireguard"), p.message) for p in
             lacking(spec("192.0.2.2:51820", ", preshared_key_file: /etc/s"), facts) if "wireguard" in p.path]
    assert found == [("", "this host has no WireGuard: no module"), (".peers.far.preshared_key_file", "/etc/s: is no file"),
                     (".peers.far.key", "it is this host's own key"), (".peers.far.endpoint", "192.0.2.2:51820 is this host itself")]


def test_a_change_below_a_tunnel_concerns_who_is_behind_it() -> None:
    state = {r.key: r for r in (*HOST.values(), Link(name="kvu-t", type="wireguard"), TUNNEL)}
    nic = Link(name="eth0", type="physical", mtu=1400)
    target = Target("10.9.0.2", "named by reach")
    assert Hit.by([Update(nic, nic)]).concerns(target, "kvu-t", state)
    assert Hit.by([Delete(WHOLE)]).concerns(target, "kvu-t", state)
    assert not Hit.by([Update(Link(name="eth1"), Link(name="eth1"))]).concerns(target, "kvu-t", state)


def test_export_names_what_it_leaves_out() -> None:
    layout, notes = uplink_layout(spec(), HOST)
    assert [n.name for n in layout.nics] == ["eth0"] and not [a for a in layout.addresses if a.dev == "kvu-t"]
    assert "uplink t: a tunnel by WireGuard is left out; kvmnet makes it" in notes
