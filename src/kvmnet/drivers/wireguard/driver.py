"""Tunnels by WireGuard: read by one ``wg show all dump``, told by ``wg set``, all of a tunnel in one.

The kernel does not say what a peer's endpoint was told to be (it roams), nor which file a key came from. Both are written
down in the run directory, a file for each tunnel; a tunnel without one is not ours. Secrets go to wg by the names of files.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2s
from pathlib import Path
from typing import cast

from kvmnet.drivers.wireguard import notebook, secrets
from kvmnet.drivers.wireguard.notebook import Note
from kvmnet.drivers.wireguard.resources import Tunnel, TunnelPeer, peer_name
from kvmnet.drivers.wireguard.wire import SeenPeer, SeenTunnel, parse_dump, peer_words
from kvmnet.engine.driver import Command, Progress, Seen, StepFailed
from kvmnet.engine.plan import Create, Delete, Step, Update
from kvmnet.engine.resource import Key, Wanted, diff, merge
from kvmnet.errors import HostCannot
from kvmnet.host import run as host
from kvmnet.host.files import write_durably
from kvmnet.host.paths import Paths

TOGETHER = 200
"""Peers told by one command: its arguments have an end (2 MiB in all)."""
NOWHERE = "/dev/null"
"""A file without a key takes the preshared key away (parse_keyfile() in wireguard-tools/src/config.c)."""
CURES = (("Address already in use", "another program has this UDP port: ss -lunp shows which"),
         ("Operation not permitted", "run as root (CAP_NET_ADMIN in this network namespace)"),
         ("No such device", "the tunnel's link went away while kvmnet was working: run plan again"))


class WireguardDriver:
    kinds = frozenset({Tunnel.kind, TunnelPeer.kind})
    sees_without_tool = True

    def __init__(self, paths: Paths):
        self.state, self.folder = paths.state, paths.run / "wireguard"

    def unavailable(self) -> str | None:
        return host.missing("wg")

    def observe(self, intent: Wanted) -> Seen:
        """Tunnels of ours with their peers. Without any nothing is asked, and wg is not needed."""
        seen = Seen()
        notes = notebook.read(self.folder)
        for dev, tunnel in (dump() if notes else {}).items():
            if dev in notes:
                for thing in self.understood(tunnel, notes[dev]):
                    seen.state[thing.key] = thing
                    seen.ours.add(thing.key)
        return seen

    def understood(self, tunnel: SeenTunnel, note: Note) -> Iterator[Tunnel | TunnelPeer]:
        secret = secrets.private_key(self.file_of(tunnel.dev, note.key_file))
        yield Tunnel(name=tunnel.dev, dev=tunnel.dev, port=tunnel.port, key_file=note.key_file,
                     keyed=bool(secret) and secret == tunnel.secret, public=tunnel.public, carrier=note.carrier)
        yield from (peer_resource(tunnel.dev, peer, note) for peer in tunnel.peers.values())

    def file_of(self, dev: str, key_file: str) -> Path:
        return Path(key_file) if key_file else secrets.own_file(self.state, dev)

    def apply(self, steps: Sequence[Step], progress: Progress) -> None:
        standing = dump()
        for dev, work in by_tunnel(steps).items():
            gone = any(isinstance(s, Delete) and s.key.kind == Tunnel.kind for s in work)
            if gone and len(work) == 1:
                self.forget(dev)
            else:
                self.tell(dev, work, standing.get(dev))
            progress(len(work))

    def tell(self, dev: str, work: Sequence[Step], standing: SeenTunnel | None) -> None:
        if makes_key(work):
            secrets.make(secrets.own_file(self.state, dev))
        with notebook.noting(self.folder, dev) as note:
            for step in work:
                take_down(note, step)
        words = list(self.words(dev, work, standing))
        if standing:
            self.keep(work, standing)
        for key, argv in words:
            try:
                host.run(argv)
            except host.ToolFailed as failed:
                hint = next((h for text, h in CURES if text in failed.detail), "")
                raise StepFailed(key, failed.detail, hint) from failed

    def words(self, dev: str, work: Sequence[Step], standing: SeenTunnel | None) -> Iterator[tuple[Key, tuple[str, ...]]]:
        """The commands that make *work*, each with what it is blamed on. ``standing``: what the kernel has."""
        first = ["wg", "set", dev]
        own: list[str] = []
        peers: list[list[str]] = []
        for step in work:
            match step:
                case Create(Tunnel() as after) | Update(_, Tunnel() as after):
                    before = step.before if isinstance(step, Update) else None
                    own = self.tunnel_words(after, before if isinstance(before, Tunnel) else None)
                    if before is None and standing:    # peers of nobody's, in a tunnel that was not ours before
                        peers = [["peer", key, "remove"] for key in standing.peers] + peers
                case Delete(TunnelPeer()):
                    peers.append(["peer", public_of(step.key), "remove"])
                case Create(TunnelPeer() as after) | Update(_, TunnelPeer() as after):
                    peers.append(self.peer_words(dev, step, after))
        if own:
            yield next(s.key for s in work if s.key.kind == Tunnel.kind), (*first, *own)
        for at in range(0, len(peers), TOGETHER):
            part = peers[at:at + TOGETHER]
            yield (next((s.key for s in work if s.key.kind == TunnelPeer.kind and public_of(s.key) == part[0][1]), work[0].key),
                   (*first, *(word for words in part for word in words)))

    def tunnel_words(self, claim: Tunnel, before: Tunnel | None) -> list[str]:
        before = before or Tunnel(name=claim.name)
        changes = diff(before, claim)
        words = ["listen-port", str(claim.port)] if "port" in changes else []
        if changes.keys() & {"keyed", "key_file", "public"}:
            words += ["private-key", str(self.key_source(joined(before, claim), claim.public or ""))]
        return words

    def key_source(self, whole: Tunnel, public: str) -> Path:
        """The file with the private key that is wanted: the tunnel's own, or, of one that was there before and is known
        by its public key, what was kept. Raises StepFailed."""
        own = self.file_of(whole.name, whole.key_file or "")
        if not public:
            return own
        for place in (own, self.kept(whole.name)):
            secret = secrets.private_key(place)
            if secret and public_key(secret) == public:
                return place
        raise StepFailed(whole.key, "its former private key is in no file any more", f"write it to {own}")

    def peer_words(self, dev: str, step: Step, claim: TunnelPeer) -> list[str]:
        """What is told of a peer: all of a new one, of another what is changed."""
        before = step.before if isinstance(step, Update) else TunnelPeer(name=claim.name)
        whole = merge(before, claim)
        assert isinstance(whole, TunnelPeer)
        changes = diff(before, claim)
        secret = None
        if changes.keys() & {"keyed", "secret_file"} and (whole.secret_file or isinstance(step, Update)):
            secret = whole.secret_file or NOWHERE
            if whole.keyed is False:
                secret = str(self.kept(claim.name))
        return peer_words(public_of(claim.key), secret_file=secret, **{
            name: getattr(whole, name) if name in changes else None for name in ("allowed", "endpoint", "keepalive")})

    # -- what a rollback may need ------------------------------------------------------------

    def kept(self, name: str) -> Path:
        """Where a secret of the kernel's is kept that is in no file."""
        return self.folder / f"{blake2s(name.encode(), digest_size=8).hexdigest()}.secret"

    def keep(self, work: Sequence[Step], standing: SeenTunnel) -> None:
        """Keep what the kernel has and no file has, before it is replaced."""
        for step in work:
            match step:
                case Update(Tunnel(keyed=False) as before, Tunnel(keyed=True)):
                    write_durably(self.kept(before.name), f"{standing.secret}\n", 0o600)
                case Update(TunnelPeer(keyed=False) as before, _) | Delete(TunnelPeer(keyed=False) as before):
                    peer = standing.peers.get(public_of(before.key))
                    write_durably(self.kept(before.name), f"{peer.secret if peer else ''}\n", 0o600)
                case _:
                    pass

    def forget(self, dev: str) -> None:
        notebook.forget(self.folder, dev)
        if not notebook.read(self.folder):
            for file in self.folder.glob("*.secret"):
                file.unlink(missing_ok=True)

    def commands(self, steps: Sequence[Step]) -> Sequence[Command]:
        found = []
        for dev, work in by_tunnel(steps).items():
            own = secrets.own_file(self.state, dev)
            if makes_key(work) and not own.exists():
                found.append(Command(("sh", "-c", f"umask 077; mkdir -p {own.parent}; wg genkey > {own}"), keys=(work[0].key,)))
            found += [Command(argv, keys=(key,)) for key, argv in self.words(dev, work, None)]
        return found


def dump() -> dict[str, SeenTunnel]:
    """Every tunnel of this network namespace. Raises HostCannot, without what wg printed: it prints secrets."""
    if reason := host.missing("wg"):
        raise HostCannot(reason)
    try:
        return parse_dump(host.run(("wg", "show", "all", "dump")))
    except host.ToolFailed as failed:
        raise HostCannot("wg show all dump failed" + ("" if "\t" in failed.detail else f": {failed.detail}")) from None


def public_key(secret: str) -> str:
    try:
        return host.run(("wg", "pubkey"), stdin=f"{secret}\n").strip()
    except host.ToolFailed:
        return ""


def peer_resource(dev: str, peer: SeenPeer, note: Note) -> TunnelPeer:
    told = note.peers.get(peer.public)
    file = told.secret_file if told else ""
    return TunnelPeer(
        name=peer_name(dev, peer.public), tunnel=dev, allowed=peer.allowed, keepalive=peer.keepalive, secret_file=file,
        endpoint=(told.endpoint if told and (peer.endpoint or not told.endpoint) else peer.endpoint),
        keyed=peer.secret == (secrets.shared_key(Path(file)) if file else ""))


def by_tunnel(steps: Sequence[Step]) -> Mapping[str, list[Step]]:
    found: dict[str, list[Step]] = {}
    for step in steps:
        found.setdefault(step.key.name.partition(" ")[0], []).append(step)
    return found


def makes_key(work: Sequence[Step]) -> bool:
    """Whether a tunnel gets the key that kvmnet makes and keeps, when there is none yet."""
    return any((isinstance(s, Create) and isinstance(s.after, Tunnel) and s.after.key_file == "") or
               (isinstance(s, Update) and isinstance(s.before, Tunnel) and isinstance(s.after, Tunnel)
               and joined(s.before, s.after).key_file == "" and bool(s.changes.keys() & {"key_file", "keyed"})) for s in work)


def joined(before: Tunnel, claim: Tunnel) -> Tunnel:
    """What an update leaves behind."""
    return cast(Tunnel, merge(before, claim))


def public_of(key: Key) -> str:
    """The public key in the name of a peer."""
    return key.name.rpartition(" ")[2]


def take_down(note: Note, step: Step) -> None:
    """Write into *note* what the kernel will not tell."""
    match step:
        case Create(Tunnel() as after) | Update(_, Tunnel() as after):
            note.key_file = after.key_file if after.key_file is not None else note.key_file
            note.carrier = after.carrier if after.carrier is not None else note.carrier
            if isinstance(step, Create):
                note.peers.clear()
        case Create(TunnelPeer() as after) | Update(_, TunnelPeer() as after):
            told = note.peers.setdefault(public_of(after.key), notebook.Told())
            told.endpoint = after.endpoint if after.endpoint is not None else told.endpoint
            told.secret_file = after.secret_file if after.secret_file is not None else told.secret_file
        case Delete(TunnelPeer()):
            note.peers.pop(public_of(step.key), None)
        case _:
            pass
