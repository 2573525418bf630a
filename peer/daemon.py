"""What is a running peer?

The composition root: everything is opened here, in order, in one nursery.
"""

import gc
import logging
import os
import secrets
import signal
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

import covey
from covey.gossip import advert as adverts
from covey.gossip.admission import Admission
from covey.gossip.advert import Advert, AdvertMessage, DataOffer, Item, ModelOffer
from covey.gossip.dialling import AddressRecord, Dialling
from covey.gossip.directory import Directory, DirectoryEffect, Forget, Keep, Tell
from covey.gossip.driver import Cores, Delivery
from covey.gossip.executions import Executions, Limits
from covey.gossip.host import Host, HostSettings, open_host
from covey.gossip.joining import DeskEffect, ForgetInvite, InviteDesk, InviteRecord, KeepInvite
from covey.gossip.links import Links
from covey.gossip.network import LinkDown, LinkUp, Load
from covey.gossip.origin import Origin, forget
from covey.gossip.routing import DirectoryFinder
from covey.identity.certificate import check_chain
from covey.identity.errors import Misuse, NotAdmitted, Unavailable
from covey.identity.invite import token_of
from covey.identity.keys import KEY_BYTES, Keypair, PeerId
from covey.identity.keystore import write_private
from covey.identity.wire import decode, decode_union, encode
from covey.inference.engine import Role
from covey.inference.model_files import list_models
from covey.inference.pool import ModelFile, Pool, PoolSettings, open_pool

from .api.server import serve_api
from .clock import Clock, SystemEntropy
from .config import Config
from .data_sources import DataSources
from .doctor import Checked, check_up
from .executor import Executor, able
from .home import Home, MeshFile
from .logs import set_up_logs
from .records import TaskRecords
from .schema import Database
from .service import Commands, Facts, Service
from .store import Change, Store, next_incarnation, open_store
from .views import Finding, InviteRequest, InviteView, StatusView

log = logging.getLogger(__name__)

SWEEP_S = 3600.0
DIAL_S = 5.0
_ADVERT_LIMIT = 64 * 1024


def run(path: Path, on_ready: Callable[[StatusView], None]) -> None:
    """Run the peer in `path` until it is told to end; `on_ready` is told once it answers.

    Raises:
        CoveyError: it cannot start; the message says why, and what to do.
    """
    home = Home(path)
    config = home.config()
    mesh = home.mesh()
    keypair = home.keypair()
    with home.lock():
        set_up_logs(config.log.level)
        trio.run(_run, home, config, mesh, keypair, on_ready)


async def _run(
    home: Home,
    config: Config,
    mesh: MeshFile,
    keypair: Keypair,
    on_ready: Callable[[StatusView], None],
) -> None:
    stop = trio.Event()
    async with open_daemon(home, config, mesh, keypair, stop) as daemon:
        log.info("daemon.ready", extra={"peer": keypair.peer_id, "api": daemon.service.facts.api})
        # What is here now stays: a collection that walks through every library again costs 50 ms.
        gc.collect()
        gc.freeze()
        on_ready(daemon.service.status())
        await stop.wait()
        log.info("daemon.stopping")


@dataclass(slots=True)
class _Parts:
    """What is open."""

    home: Home
    config: Config
    mesh: MeshFile
    keypair: Keypair
    clock: Clock
    entropy: SystemEntropy
    store: Store
    pool: Pool
    links: Links
    directory: Directory
    dialling: Dialling
    desk: InviteDesk | None
    incarnation: int


class Daemon:
    """One running peer. Use `open_daemon`."""

    def __init__(self, parts: _Parts, stop: trio.Event) -> None:
        self._parts = parts
        self._stop = stop
        self._number = 0
        self._redial = trio.Event()
        self._host: Host
        self._admission = self._make_admission()
        self.refused_models: dict[str, str] = {}
        self.data = DataSources(parts.config.data)
        self.executor = Executor(parts.config.skills, parts.pool, self.data)
        self.records = TaskRecords(parts.store)
        self.delivery = Delivery(
            self._make_cores, parts.links, self.records, self.executor, parts.clock.now_ms
        )
        self.service = self._make_service()
        parts.links.on_link(self._link_changed)
        parts.links.on_message(adverts.CHANNEL, self._heard_advert)

    @property
    def admission(self) -> Admission:
        """Who is let in."""
        return self._admission

    async def serve(self, host: Host, nursery: trio.Nursery) -> None:
        """Start everything that runs; return once the local API answers."""
        parts = self._parts
        self._host = host
        now_ms = parts.clock.now_ms()
        self._take_up_stored(now_ms)
        await nursery.start(partial(parts.links.serve, host))
        await self.rescan_models()
        await nursery.start(self.delivery.serve)
        nursery.start_soon(self._dial)
        nursery.start_soon(self._sweep)
        api = parts.config.api
        token = secrets.token_urlsafe(32)
        write_private(parts.home.token_file, token.encode() + b"\n")
        bound = await nursery.start(
            partial(
                serve_api,
                self.service,
                parts.home.socket,
                ("127.0.0.1", api.port) if api.tcp else None,
                token,
                self._stop,
            )
        )
        self.service.facts.api = bound

    async def rescan_models(self) -> None:
        """Look at the model folder, and tell the mesh what is there."""
        parts = self._parts
        files, refused = await trio.to_thread.run_sync(list_models, parts.home.models_folder)
        for name, why in refused.items():
            log.warning("model.refused", extra={"file": name, "why": why})
        self.refused_models.clear()
        self.refused_models.update(refused)
        parts.pool.offer(files, _defaults(parts.config, files))
        self._advertise()

    # Making

    def _make_admission(self) -> Admission:
        parts = self._parts
        return Admission(
            mesh=parts.mesh.id,
            chain=parts.mesh.chain,
            incarnation=parts.incarnation,
            name=parts.config.name,
            now_ms=parts.clock.now_ms,
            is_known=lambda peer: parts.directory.get(peer) is not None,
            desk=parts.desk,
            keep=self._keep_invites,
            draw=parts.entropy.draw,
        )

    def _make_cores(self) -> Cores:
        parts = self._parts
        me = parts.keypair.peer_id
        able_here = able(lambda: parts.directory.get(me))
        finder = DirectoryFinder(
            me, parts.directory, parts.links.links, lambda need: able_here(me, need)
        )
        tasks = parts.config.tasks
        executions = Executions(
            parts.keypair,
            parts.mesh.id,
            parts.incarnation,
            able_here,
            Limits(running=tasks.running, waiting=tasks.waiting),
        )
        return Origin(me, parts.mesh.id, finder), executions

    def _make_service(self) -> Service:
        parts = self._parts
        member = check_chain(
            parts.mesh.chain,
            mesh=parts.mesh.id,
            subject=parts.keypair.peer_id,
            now_ms=parts.clock.now_ms(),
        )
        facts = Facts(
            me=parts.keypair.peer_id,
            name=parts.config.name,
            mesh=parts.mesh.id,
            mesh_name=parts.mesh.name,
            role=member.role,
            version=covey.__version__,
            incarnation=parts.incarnation,
            started_ms=parts.clock.now_ms(),
            skills=parts.config.skills,
            addresses=lambda: self._addresses_with_id(),
            refused_models=self.refused_models,
        )
        commands = Commands(self._invite, self.rescan_models, self._doctor, self._stop.set)
        return Service(
            facts,
            commands,
            delivery=self.delivery,
            records=self.records,
            directory=parts.directory,
            links=parts.links,
            pool=parts.pool,
            data=self.data,
            now_ms=parts.clock.now_ms,
            draw=parts.entropy.draw,
        )

    def _addresses_with_id(self) -> tuple[str, ...]:
        me = self._parts.keypair.peer_id
        return tuple(f"{address}/p2p/{me}" for address in self._host.addresses())

    def _take_up_stored(self, now_ms: int) -> None:
        """Remember who was known, where, and which invites are open."""
        parts = self._parts
        now = trio.current_time()
        items = [
            decode(row, Item, limit_bytes=_ADVERT_LIMIT)
            for _, row in parts.store.scan(Database.ADVERT)
        ]
        parts.directory.restore(items, now_ms)
        for entry in parts.directory:
            parts.dialling.remember(entry.peer, entry.advert.addresses, now)
        for _, row in parts.store.scan(Database.ADDRESS):
            record = decode(row, AddressRecord)
            parts.dialling.remember(PeerId(record.peer), record.addresses, now)
        for peer, addresses in parts.mesh.bootstrap:
            parts.dialling.remember(PeerId(peer), addresses, now)
        if parts.desk is not None:
            parts.desk.restore(
                decode(row, InviteRecord) for _, row in parts.store.scan(Database.INVITE)
            )

    # What this peer says of itself

    def _advertise(self) -> None:
        parts = self._parts
        self._number += 1
        now_ms = parts.clock.now_ms()
        infos = [info for info, _ in parts.pool.models()]
        advert = Advert(
            incarnation=parts.incarnation,
            number=self._number,
            issued_ms=now_ms,
            name=parts.config.name,
            version=covey.__version__,
            addresses=self._host.addresses(),
            labels=tuple(sorted(parts.config.labels.items())),
            data=tuple(DataOffer(name, source.kind) for name, source in parts.config.data.items()),
            skills=self.executor.offered({info.role for info in infos}),
            models=tuple(ModelOffer(info.name, info.role, info.digest) for info in infos),
        )
        sealed = adverts.seal_advert(advert, mesh=parts.mesh.id, keypair=parts.keypair)
        self._carry_out(parts.directory.announce(Item(sealed, parts.mesh.chain), now_ms))

    # Links and directory

    def _link_changed(self, event: LinkUp | LinkDown) -> None:
        parts = self._parts
        now = trio.current_time()
        match event:
            case LinkUp(peer, _):
                parts.dialling.connected(peer, now)
                self._carry_out(parts.directory.link_up(peer))
            case LinkDown(peer, _):
                parts.dialling.disconnected(peer, now)
                parts.directory.link_down(peer)
        self._redial.set()
        self.service.peer_changed(event.peer)

    def _heard_advert(self, sender: PeerId, body: bytes) -> None:
        message: AdvertMessage = decode_union(body, AdvertMessage, limit_bytes=1024 * 1024)
        now_ms = self._parts.clock.now_ms()
        self._carry_out(self._parts.directory.receive(sender, message, now_ms))

    def _carry_out(self, effects: Sequence[DirectoryEffect]) -> None:
        parts = self._parts
        changes: list[Change] = []
        for effect in effects:
            match effect:
                case Tell(to, message):
                    parts.links.send(to, adverts.CHANNEL, encode(message))
                case Keep(entry):
                    key = entry.peer.encode()
                    changes.append(Change(Database.ADVERT, key, encode(entry.item)))
                    if parts.dialling.remember(
                        entry.peer, entry.advert.addresses, trio.current_time()
                    ):
                        self._redial.set()
                    self.service.peer_changed(entry.peer)
                case Forget(peer):
                    changes.append(Change(Database.ADVERT, peer.encode(), None))
        if changes:
            # Heard again from any neighbour, should the disk not take it now.
            parts.store.put(changes, _log_failure)
            self.delivery.wake()

    # Dialling

    async def _dial(self) -> None:
        dialling = self._parts.dialling
        async with trio.open_nursery() as nursery:
            while True:
                self._redial = trio.Event()
                for dial in dialling.tick(trio.current_time()):
                    nursery.start_soon(self._dial_one, dial.peer, dial.addresses)
                with trio.move_on_at(dialling.deadline):
                    await self._redial.wait()

    async def _dial_one(self, peer: PeerId, addresses: Sequence[str]) -> None:
        dialling = self._parts.dialling
        try:
            await self._host.dial(peer, addresses, timeout_s=DIAL_S)
        except Unavailable as error:
            log.debug("dial.failed", extra={"peer": peer, "why": str(error)})
            dialling.failed(peer, trio.current_time())
        except NotAdmitted as error:
            if error.code != "duplicate":
                log.warning("dial.refused", extra={"peer": peer, "why": str(error)})
            dialling.failed(peer, trio.current_time(), refused=error.code != "duplicate")
        else:
            dialling.succeeded(peer)
        self._redial.set()

    # Commands

    async def _invite(self, request: InviteRequest) -> InviteView:
        parts = self._parts
        if parts.desk is None:
            raise Misuse("only an admin of the mesh can invite; ask one, such as the founder")
        invite, effects = parts.desk.mint(
            parts.entropy.draw(KEY_BYTES),
            self._host.addresses(),
            uses=request.uses,
            expires_s=request.expires_s,
            now_ms=parts.clock.now_ms(),
        )
        await self._keep_invites(effects)
        return InviteView(
            token=token_of(invite),
            id=invite.keypair.public_key.hex()[:16],
            uses=invite.terms.uses,
            expires_ms=invite.terms.expires_ms,
        )

    async def _keep_invites(self, effects: list[DeskEffect]) -> None:
        changes: list[Change] = []
        for effect in effects:
            match effect:
                case KeepInvite(record):
                    changes.append(Change(Database.INVITE, record.key, encode(record)))
                case ForgetInvite(key):
                    changes.append(Change(Database.INVITE, key, None))
        await self._parts.store.commit(changes)

    async def _doctor(self) -> list[Finding]:
        parts = self._parts
        checked = Checked(
            home=parts.home,
            chain=parts.mesh.chain,
            mesh=parts.mesh.id,
            me=parts.keypair.peer_id,
            now_ms=parts.clock.now_ms(),
            skews_ms=tuple(self._admission.skew_ms.values()),
            links=len(parts.links.links()),
            known=sum(1 for _ in parts.directory) - 1,
            models=[(info.name, state) for info, state in parts.pool.models()],
            refused_models=dict(self.refused_models),
            addresses=self._host.addresses(),
            store_failure=parts.store.failure,
            data=parts.config.data,
        )
        return await trio.to_thread.run_sync(check_up, checked)

    async def _sweep(self) -> None:
        """Forget what nobody can ask about any more, and renew the advert."""
        parts = self._parts
        while True:
            await trio.sleep(SWEEP_S)
            now_ms = parts.clock.now_ms()
            self._carry_out(parts.directory.expire(now_ms))
            own = parts.directory.get(parts.keypair.peer_id)
            if own is None or own.advert.issued_ms + adverts.RENEW_MS < now_ms:
                self._advertise()
            erased = [
                Change(Database(effect.table.value), effect.key, None)
                for effect in forget(self.records.all_tasks(), now_ms)
            ]
            if erased:
                parts.store.put(erased, _log_failure)


@asynccontextmanager
async def open_daemon(
    home: Home, config: Config, mesh: MeshFile, keypair: Keypair, stop: trio.Event
) -> AsyncGenerator[Daemon]:
    """Run a peer for as long as the block lasts; `stop` is set when it was asked to end."""
    clock, entropy = Clock(), SystemEntropy()
    async with (
        open_store(home.store_folder) as store,
        open_pool(_pool_settings(config)) as pool,
    ):
        incarnation = await next_incarnation(store, clock.now_ms())
        me = keypair.peer_id
        member = check_chain(mesh.chain, mesh=mesh.id, subject=me, now_ms=clock.now_ms())
        desk = (
            InviteDesk(keypair, mesh.chain, mesh.id, mesh.name) if member.role == "admin" else None
        )
        daemon: Daemon
        links = Links(me, lambda: _load(daemon))
        parts = _Parts(
            home=home,
            config=config,
            mesh=mesh,
            keypair=keypair,
            clock=clock,
            entropy=entropy,
            store=store,
            pool=pool,
            links=links,
            directory=Directory(me, mesh.id),
            dialling=Dialling(me, entropy.random()),
            desk=desk,
            incarnation=incarnation,
        )
        daemon = Daemon(parts, stop)
        settings = HostSettings(config.listen.address, config.listen.port, config.listen.announce)
        async with (
            open_host(keypair, settings, daemon.admission, links) as host,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(_heed_signals, stop)
            await daemon.serve(host, nursery)
            try:
                yield daemon
            finally:
                nursery.cancel_scope.cancel()


async def _heed_signals(stop: trio.Event) -> None:
    """A polite signal ends the daemon; a second one does so at once."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for _ in signals:
            if stop.is_set():
                os._exit(130)
            stop.set()


def _load(daemon: Daemon) -> Load:
    executions = daemon.delivery.executions
    return Load(executions.running, executions.waiting)


def _pool_settings(config: Config) -> PoolSettings:
    models = config.models
    return PoolSettings(
        threads=models.threads or max(1, (os.cpu_count() or 2) - 1),
        slots=models.slots,
        waiting=models.waiting,
        context_tokens=models.context_tokens,
        idle_s=models.idle_s,
    )


def _defaults(config: Config, files: Sequence[ModelFile]) -> dict[Role, str]:
    """Choose each role's default: as configured, else the first found."""
    defaults: dict[Role, str] = {}
    wanted: dict[Role, str | None] = {
        "text": config.models.text,
        "embedding": config.models.embedding,
    }
    for role, name in wanted.items():
        found = name or next((one.info.name for one in files if one.info.role == role), None)
        if found is not None:
            defaults[role] = found
    return defaults


def _log_failure(error: Unavailable | None) -> None:
    if error is not None:
        log.error("store.commit_failed", extra={"why": str(error)})
