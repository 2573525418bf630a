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

import msgspec
import trio

import covey
from covey.gossip import advert
from covey.gossip.admission import Admission
from covey.gossip.advert import Advert, DataOffer, ModelOffer
from covey.gossip.bidding import Outlook
from covey.gossip.dialling import Dialling
from covey.gossip.directory import Directory
from covey.gossip.driver import Cores, Delivery
from covey.gossip.executions import Executions, Limits
from covey.gossip.host import Host, HostSettings, open_host
from covey.gossip.joining import InviteDesk
from covey.gossip.links import Links
from covey.gossip.memory.driver import Memory
from covey.gossip.memory.entry import NamespaceId
from covey.gossip.memory.policies import Policies
from covey.gossip.memory.replica import Quotas
from covey.gossip.memory.standing import Standing
from covey.gossip.network import Load
from covey.gossip.origin import Origin
from covey.gossip.registrar import Registrar
from covey.gossip.routing import DirectoryFinder
from covey.gossip.task import Need
from covey.identity.certificate import Chain, Member, member_of
from covey.identity.envelope import MeshId
from covey.identity.errors import Unavailable
from covey.identity.keys import Keypair, PeerId
from covey.identity.keystore import write_private
from covey.inference.engine import Role
from covey.inference.model_files import ModelFile, list_models
from covey.inference.pool import Pool, open_pool
from covey.inference.worker_process import PoolSettings

from .adverts import Adverts
from .adverts import Surroundings as AdvertSurroundings
from .api.server import serve_api
from .books import BookKeeper
from .clock import Clock, SystemEntropy
from .clock_check import clock_trouble
from .config import Config
from .data_sources import DataSources
from .discovery import Circle, Discovery
from .doctor import Checked, check_up
from .executor import Executor, able
from .first_books import FirstBooks
from .home import Home, MeshFile
from .invites import Invites
from .logs import set_up_logs
from .members import Members
from .members import Surroundings as MemberSurroundings
from .memory.indexing import Indexer
from .memory.shared import SharedMemory
from .memory.store import MemoryStore, open_memory_store
from .memory.surroundings import Surroundings as MemorySurroundings
from .neighbours import Neighbours, Surroundings
from .records import TaskRecords
from .renewing import Renewing, finding
from .renewing import Surroundings as RenewalSurroundings
from .service import Commands, Facts, Service
from .store import Store, next_incarnation, open_store
from .views import Finding, InviteRequest, InviteView, StatusView

log = logging.getLogger(__name__)

SWEEP_S = 3600.0


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
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_heed_signals, stop)
        async with open_daemon(home, config, mesh, keypair, stop) as daemon:
            api = daemon.service.facts.api
            log.info("daemon.ready", extra={"peer": keypair.peer_id, "api": api})
            # What is here now stays: a collection that walks through every library again costs
            # 50 ms.
            gc.collect()
            gc.freeze()
            on_ready(daemon.service.status())
            await stop.wait()
            log.info("daemon.stopping")
        nursery.cancel_scope.cancel()


@dataclass(slots=True)
class _Parts:
    """What is open."""

    home: Home
    config: Config
    mesh: MeshFile
    member: Member
    keypair: Keypair
    clock: Clock
    entropy: SystemEntropy
    store: Store
    rows: MemoryStore
    standing: Standing
    policies: Policies
    pool: Pool
    links: Links
    directory: Directory
    dialling: Dialling
    incarnation: int


class Daemon:
    """One running peer. Use `open_daemon`."""

    def __init__(self, parts: _Parts, stop: trio.Event) -> None:
        self._parts = parts
        self._stop = stop
        self._host: Host
        self._nursery: trio.Nursery | None = None
        self.memory = Memory(
            parts.keypair,
            parts.mesh.chain,
            parts.mesh.id,
            parts.links,
            parts.rows,
            parts.standing,
            now_ms=parts.clock.now_ms,
            draw=parts.entropy.draw,
            random=parts.entropy.random(),
            policies=parts.policies,
        )
        self.books = BookKeeper(parts.keypair.peer_id, self.memory, self._clock_trouble)
        self.registrar = Registrar(parts.keypair, parts.mesh.chain, parts.mesh.id, parts.standing)
        self.invites = self._make_invites()
        self.admission = self._make_admission()
        self.admission.own_books = self.memory.books_digest
        self.memory.books_shown = lambda peer: self.admission.books.get(peer, b"")
        self.first_books = FirstBooks(parts.mesh, self.admission, self.memory, parts.store)
        self.refused_models: dict[str, str] = {}
        self.data = DataSources(parts.config.data)
        self.executor = Executor(parts.config.skills, parts.pool, self.data)
        self.records = TaskRecords(parts.store)
        self.discovery = self._make_discovery()
        self.delivery = Delivery(
            self._make_cores, parts.links, self.records, self.executor, parts.clock.now_ms
        )
        self.renewing = self._make_renewing()
        self.index = Indexer(parts.rows, parts.pool, parts.clock.now_ms, self._is_searched)
        self.service = self._make_service()
        self.adverts = self._make_adverts()
        self.neighbours = self._make_neighbours()
        self.memory.on_applied(lambda _applied: self._standing_changed())
        parts.links.on_link(lambda _event: self._linked())

    async def serve(self, host: Host, nursery: trio.Nursery) -> None:
        """Start everything that runs; return once the local API answers."""
        parts = self._parts
        self._host = host
        await nursery.start(self.memory.serve)
        if parts.member.role == "admin":
            await self.books.take_up(parts.mesh.chain, self.invites.granted())
        nursery.start_soon(self.service.memory.serve)
        await nursery.start(partial(parts.links.serve, host))
        await nursery.start(partial(self.neighbours.serve, host))
        await nursery.start(self.adverts.serve)
        self._nursery = nursery
        self._standing_changed()
        await self.rescan_models()
        await nursery.start(self.renewing.serve)
        await nursery.start(self.delivery.serve)
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

    def _learned(self) -> None:
        self.discovery.met()
        self.delivery.wake()

    async def rescan_models(self) -> None:
        """Look at the model folder, and tell the mesh what is there."""
        parts = self._parts
        folder, engine = parts.home.models_folder, parts.config.models.engine
        files, refused = await trio.to_thread.run_sync(list_models, folder, engine)
        for name, why in refused.items():
            log.warning("model.refused", extra={"file": name, "why": why})
        self.refused_models.clear()
        self.refused_models.update(refused)
        parts.pool.offer(files, _defaults(parts.config, files))
        self.index.models_changed()
        self.adverts.announce()

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
            desk=self.invites.desk,
            keep=self.invites.keep,
            draw=parts.entropy.draw,
            standing=parts.standing,
        )

    def _make_invites(self) -> Invites:
        parts = self._parts
        mesh = parts.mesh
        desk = InviteDesk(
            parts.keypair,
            mesh.chain,
            mesh.id,
            mesh.name,
            standing=parts.standing,
            registrar=self.registrar,
            in_books=self.books.invite,
            clock_trouble=self._clock_trouble,
        )
        return Invites(desk, parts.store, parts.entropy.draw, parts.clock.now_ms, self.books)

    def _make_adverts(self) -> Adverts:
        parts = self._parts
        around = AdvertSurroundings(
            memory=self.memory,
            rows=parts.rows,
            directory=parts.directory,
            now_ms=parts.clock.now_ms,
            me=lambda: parts.member,
            describe=self._describe,
            clock_trouble=self._clock_trouble,
            changed=lambda effects: self.neighbours.take(effects),
            announced=self.discovery.offer,
            quiet=parts.config.discovery.advert == "addresses",
        )
        return Adverts(around)

    def _make_neighbours(self) -> Neighbours:
        parts = self._parts
        around = Surroundings(
            me=parts.keypair.peer_id,
            mesh=parts.mesh.id,
            bootstrap=parts.mesh.bootstrap,
            store=parts.store,
            links=parts.links,
            directory=parts.directory,
            adverts=self.adverts,
            dialling=parts.dialling,
            now_ms=parts.clock.now_ms,
            standing=parts.standing,
            believed=self.first_books.believed,
            mdns=parts.config.discovery.mdns,
        )
        return Neighbours(
            around,
            learned=self._learned,
            changed=self.service.peer_changed,
            jumped=self._clock_jumped,
        )

    def _make_renewing(self) -> Renewing:
        parts = self._parts
        around = RenewalSurroundings(
            mesh=parts.mesh.id,
            standing=parts.standing,
            registrar=self.registrar,
            books=self.books,
            links=parts.links,
            now_ms=parts.clock.now_ms,
            reach=lambda peer: self.neighbours.reach(peer),
            use=self._use_chain,
        )
        return Renewing(around, parts.member, parts.mesh.chain)

    def _make_cores(self) -> Cores:
        parts = self._parts
        me = parts.keypair.peer_id
        able_here = self._able()
        links = parts.links.links
        directory = DirectoryFinder(me, parts.directory, links, lambda need: able_here(me, need))
        finder = self.discovery.finder(directory)
        tasks = parts.config.tasks
        executions = Executions(
            parts.keypair,
            parts.mesh.id,
            parts.incarnation,
            able_here,
            Limits(running=tasks.running, waiting=tasks.waiting),
        )
        return Origin(me, parts.mesh.id, finder), executions

    def _able(self) -> Callable[[PeerId, Need], str | None]:
        parts = self._parts
        me = parts.keypair.peer_id
        return able(lambda: parts.directory.get(me), lambda peer: self.discovery.member(peer))

    def _make_discovery(self) -> Discovery:
        parts = self._parts
        circle = Circle(
            me=parts.member,
            mesh=parts.mesh.id,
            config=parts.config,
            store=parts.store,
            links=parts.links,
            directory=parts.directory,
            now_ms=parts.clock.now_ms,
            draw=parts.entropy.draw,
        )
        return Discovery(
            circle,
            able=self._able(),
            outlook=self._outlook,
            reach=lambda peer: self.neighbours.reach(peer),
            learn=lambda item: self.adverts.learn(item),
            wake=lambda: self.delivery.wake(),
        )

    def _outlook(self, need: Need) -> Outlook:
        """How soon this peer could do it: what waits here is taken to be like it."""
        executions = self.delivery.executions
        run_ms = self.executor.run_ms(need.skill)
        places = self._parts.config.tasks.running
        before = executions.waiting + max(0, executions.running + 1 - places)
        return Outlook(starts_in_ms=before * run_ms // places, run_ms=run_ms)

    def _make_service(self) -> Service:
        parts = self._parts
        facts = Facts(
            me=parts.keypair.peer_id,
            name=parts.config.name,
            mesh=parts.mesh.id,
            mesh_name=parts.mesh.name,
            role=parts.member.role,
            zones=parts.member.zones,
            version=covey.__version__,
            incarnation=parts.incarnation,
            started_ms=parts.clock.now_ms(),
            skills=parts.config.skills,
            addresses=lambda: self._addresses_with_id(),
            discovery=self.discovery.view,
            warnings=self._warnings,
        )
        commands = Commands(
            self._invite,
            self.rescan_models,
            self._doctor,
            self._make_shared_memory,
            self._make_members,
            self._stop.set,
        )
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

    def _make_shared_memory(self, service: Service) -> SharedMemory:
        parts = self._parts
        self._memory_around = around = MemorySurroundings(
            me=parts.keypair.peer_id,
            is_admin=parts.member.role == "admin",
            zones=parts.member.zones,
            now_ms=parts.clock.now_ms,
            draw=parts.entropy.draw,
            name_of=service.name_of,
            find_peer=service.find_peer,
            known_peers=service.other_peers,
            clock_trouble=self._clock_trouble,
            summarize=service.summarize,
            tell=service.memory_changed,
        )
        return SharedMemory(around, self.memory, parts.rows, self.index)

    def _make_members(self, service: Service) -> Members:
        parts = self._parts
        around = MemberSurroundings(
            home=parts.home,
            mesh=parts.mesh.id,
            standing=parts.standing,
            registrar=self.registrar,
            books=self.books,
            memory=self.memory,
            desk=self.invites.desk,
            invites=self.invites,
            renewing=self.renewing,
            now_ms=parts.clock.now_ms,
            draw=parts.entropy.draw,
            name_of=service.name_of,
            find_peer=service.find_peer,
        )
        return Members(around)

    # What the books say of members

    def _standing_changed(self) -> None:
        """The books may say something new: act on it."""
        if self._nursery is None:
            # What is stored is judged when it is taken up.
            return
        parts = self._parts
        changed = parts.standing.take_changed()
        if changed:
            self.renewing.look()
        for peer in changed - {parts.keypair.peer_id}:
            known = parts.standing.of(peer)
            linked = self.discovery.member(peer) if peer in parts.links.links() else None
            is_other = (
                known is not None
                and linked is not None
                and (linked.role, linked.zones) != (known.member.role, known.member.zones)
            )
            self._nursery.start_soon(partial(self.neighbours.rejudge, peer, renew_link=is_other))

    def _linked(self) -> None:
        """A link came or went, or the clock was set: what others show may tell more of this device."""
        self.renewing.look()
        is_right = self.memory.is_ahead and self._clock_trouble() is None
        if is_right and self._parts.links.links() and self._nursery is not None:
            self._nursery.start_soon(self._redate)

    async def _redate(self) -> None:
        try:
            count = await self.memory.redate()
        except Unavailable as error:
            log.warning("memory.not_redated", extra={"why": str(error)})
        else:
            log.warning("memory.redated", extra={"entries": count})

    async def _use_chain(self, chain: Chain, member: Member) -> None:
        """Store this device's new chain, and use it everywhere from then on."""
        parts = self._parts
        mesh = msgspec.structs.replace(parts.mesh, chain=chain)
        await trio.to_thread.run_sync(parts.home.write_mesh, mesh)
        was_admin = parts.member.role == "admin"
        parts.mesh, parts.member = mesh, member
        self.registrar.use(chain)
        self.memory.use_chain(chain)
        self.admission.use(chain)
        self.discovery.use(member)
        self.service.facts.role, self.service.facts.zones = member.role, member.zones
        self._memory_around.is_admin = member.role == "admin"
        self._memory_around.zones = member.zones
        self.neighbours.let_in_again()
        self.adverts.announce()
        if member.role == "admin" and not was_admin:
            await self.books.take_up(chain, self.invites.granted())

    def _is_searched(self, namespace_id: NamespaceId) -> bool:
        """Tell whether texts of a namespace are for users; the mesh's own are not."""
        namespace = self.memory.namespace(namespace_id)
        return namespace is not None and not namespace.is_own

    # What this peer says of itself

    def _describe(self) -> Advert:
        parts = self._parts
        infos = [info for info, _ in parts.pool.models()]
        return Advert(
            incarnation=parts.incarnation,
            name=parts.config.name,
            version=covey.__version__,
            addresses=self._host.addresses(),
            labels=tuple(sorted(parts.config.labels.items())),
            data=tuple(DataOffer(name, source.kind) for name, source in parts.config.data.items()),
            skills=self.executor.offered({info.role for info in infos}),
            models=tuple(ModelOffer(info.name, info.role, info.digest) for info in infos),
        )

    def _addresses_with_id(self) -> tuple[str, ...]:
        me = self._parts.keypair.peer_id
        return tuple(f"{address}/p2p/{me}" for address in self._host.addresses())

    def _clock_trouble(self) -> str | None:
        parts = self._parts
        links = parts.links.links()
        skews = [skew for peer, skew in self.admission.skew_ms.items() if peer in links]
        return clock_trouble(
            parts.clock.now_ms(),
            incarnation=parts.incarnation,
            issued_ms=parts.member.issued_ms,
            skews_ms=skews,
        )

    def _clock_jumped(self, by_ms: int) -> None:
        for peer in self.admission.skew_ms:
            self.admission.skew_ms[peer] -= by_ms
        self._linked()

    def _warnings(self) -> tuple[str, ...]:
        trouble, right = self._clock_trouble(), self._right_trouble()
        said = [trouble] if trouble is not None else []
        if right is not None:
            said.append(f"{right.what}; {right.remedy}")
        if self.adverts.trouble is not None and trouble is None:
            said.append(f"others are not told what this peer offers: {self.adverts.trouble}")
        refused = (f"model {name}: {why}" for name, why in self.refused_models.items())
        return (*said, *refused)

    def _right_trouble(self) -> Finding | None:
        """Return what is wrong with this device's right to be in the mesh."""
        if self._clock_trouble() is not None:
            # What else seems wrong may follow from that.
            return None
        trouble = self.renewing.trouble()
        if trouble is not None:
            return trouble
        inviter = self.first_books.awaited_from
        if inviter is not None:
            what = (
                "this device has not heard yet who is in the mesh, and believes only who let it in"
            )
            remedy = f"bring {self.service.name_of(inviter)} in reach; the rest follows by itself"
            return finding("warn", what, remedy)
        revoked = [one for one in self.neighbours.refusals.values() if one.code == "revoked"]
        # Its peers may have heard what this device has not.
        if revoked and not self._parts.links.links():
            remedy = f"an admin lets it in again with: covey admit {self._parts.keypair.peer_id}"
            what = f"this device is let in by none of its peers: {revoked[0]}"
            return finding("fail", what, remedy)
        return None

    # Commands

    async def _invite(self, request: InviteRequest) -> InviteView:
        return await self.invites.mint(request, self._host.addresses())

    async def _doctor(self) -> list[Finding]:
        parts = self._parts
        checked = Checked(
            home=parts.home,
            member=parts.member,
            now_ms=parts.clock.now_ms(),
            clock_trouble=self._clock_trouble(),
            links=len(parts.links.links()),
            known=sum(1 for _ in parts.directory) - 1,
            models=[(info.name, state) for info, state in parts.pool.models()],
            refused_models=dict(self.refused_models),
            addresses=self._host.addresses(),
            store_failure=parts.store.failure,
            data=parts.config.data,
            lan_trouble=self.neighbours.lan_trouble,
            right_trouble=self._right_trouble(),
        )
        return await trio.to_thread.run_sync(check_up, checked)

    async def _sweep(self) -> None:
        """Forget what nobody can ask about any more."""
        while True:
            await trio.sleep(SWEEP_S)
            try:
                await self.neighbours.sweep()
                await self.records.sweep(self._parts.clock.now_ms())
                self.service.recount()
            except Unavailable as error:
                log.warning("sweep.put_off", extra={"why": str(error)})


@asynccontextmanager
async def open_daemon(
    home: Home,
    config: Config,
    mesh: MeshFile,
    keypair: Keypair,
    stop: trio.Event,
    *,
    clock: Clock | None = None,
) -> AsyncGenerator[Daemon]:
    """Run a peer for as long as the block lasts; `stop` is set when it was asked to end."""
    clock, entropy = clock or Clock(), SystemEntropy()
    me = keypair.peer_id
    policies = Policies(mesh.id)
    async with (
        open_store(home.store_folder) as store,
        open_memory_store(
            home.memory_folder, clock.now_ms, quotas=_quotas(mesh.id, policies)
        ) as rows,
        open_pool(_pool_settings(config)) as pool,
    ):
        daemon: Daemon
        standing = Standing(mesh.id)
        links = Links(me, lambda: _load(daemon))
        parts = _Parts(
            home=home,
            config=config,
            mesh=mesh,
            # Whatever the time: with a wrong clock, or past its grace, a device works on alone.
            member=member_of(mesh.chain, mesh=mesh.id, subject=me),
            keypair=keypair,
            clock=clock,
            entropy=entropy,
            store=store,
            rows=rows,
            standing=standing,
            policies=policies,
            pool=pool,
            links=links,
            directory=Directory(me, standing.admit),
            dialling=Dialling(me, entropy.random()),
            incarnation=await next_incarnation(store, clock.now_ms()),
        )
        daemon = Daemon(parts, stop)
        settings = HostSettings(config.listen.address, config.listen.port, config.listen.announce)
        async with (
            open_host(keypair, settings, daemon.admission, links) as host,
            daemon.discovery.open(host, daemon.admission),
            trio.open_nursery() as nursery,
        ):
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


def _quotas(mesh: MeshId, policies: Policies) -> Callable[[NamespaceId], Quotas]:
    adverts = advert.adverts_of(mesh).id
    return lambda one: advert.QUOTAS if one == adverts else policies.quotas(one)


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
