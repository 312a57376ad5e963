"""A node and its vault: sealed, without a key in its memory, or in service.

    sealed       the administration interface alone: its status, and what unseals it. No link, no key interface.
    in service   `node.node.Node`, with the key-encryption key (KEK)

A node whose vault opens by itself (a credential, a key file, no vault at all) goes into service when it starts. Else it
waits for people, always for two of them:

    a passphrase or PIN   the operation `unseal`, proposed by one officer and approved by another; the secret is the
                          body of its run
    shares                each is given by POST /admin/v1/vault/shares; the last one by another officer than the first

POST /admin/v1/vault/seal takes one officer, since it can only stop. The process then begins anew (`execve`), so that
nothing of what it knew is left in memory, and stays sealed until people unseal it, whatever its vault has.

The operation `export` writes the records of the store, without any key, to `backups/` (`kms.vault.backup`).
"""

import asyncio
import gc
import logging
import re
from collections.abc import Callable, Coroutine
from pathlib import Path

import msgspec

from qtrunk.api import https
from qtrunk.api.admin import Admin
from qtrunk.api.alarms import alarms_handlers
from qtrunk.api.approvals import Operation, Parameters
from qtrunk.api.https import Request, Response, error
from qtrunk.api.roles import Operator
from qtrunk.api.tls import Renewed
from qtrunk.base.errors import (
    AuthenticationFailed,
    ConfigError,
    LabError,
    NotAuthorised,
    QtrunkError,
    RequestRefused,
    StoreError,
)
from qtrunk.base.secret import Secret
from qtrunk.kms.seal import load_or_make_kek
from qtrunk.kms.vault import backup
from qtrunk.kms.vault.opened import Vault
from qtrunk.kms.vault.sharetext import is_share
from qtrunk.kms.vault.unsealing import Unsealing
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.config import NodeConfig, check_same_node
from qtrunk.node.keys import IN_SERVICE, SEALED, STARTING, keys_of
from qtrunk.node.node import Node
from qtrunk.node.sinks.dispatch import Dispatch
from qtrunk.node.sinks.settings import load as load_sinks
from qtrunk.node.tamper import LOOK_S, TamperWatch, contact_of
from qtrunk.node.trust import Trust
from qtrunk.node.world import SystemClock, SystemRandom

log = logging.getLogger(__name__)

GC_THRESHOLD = 50_000
SEAL_DELAY_S = 0.2
"""Until the answer to who sealed has left."""
ALARM_PERIOD_S = 1.0
_EXPORT = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


class Custody:
    """One node process's contents; `stop` it in the end. `is_held`: it was sealed by an officer and stays so."""

    def __init__(
        self, config: NodeConfig, *, is_held: bool = False, reread: Callable[[], NodeConfig] | None = None
    ) -> None:
        """`reread` gives the configuration as it is on the disk now."""
        self.config = config
        self._reread = reread
        self._tasks: list[asyncio.Task[None]] = []
        self._is_changed = asyncio.Event()
        self.is_sealing = asyncio.Event()
        """An officer sealed this node: stop, and begin anew with `is_held`."""
        self._is_held = is_held
        clock, random = SystemClock(), SystemRandom(config.random_device)
        self._clock = clock
        self._alarms = AlarmBoard(clock, Path(config.directory) / "alarms.db")
        sinks = load_sinks(Path(config.directory) / "alarms.toml")
        network = str(config.topology.get("name", ""))
        self._dispatch = Dispatch(sinks, network, config.node, self._alarms, clock, Path(config.directory))
        self._keys = keys_of(config)
        self._unsealing = Unsealing(self._keys, clock)
        self._is_entering = False
        self._kek: Secret | None = None
        self._node: Node | None = None
        operations = {
            "unseal": Operation(_check_unseal, self._unseal),
            "export": Operation(_check_export, self._export),
        }
        self._trust = Trust(config, clock, random, self._alarms, operations)
        self._enclosure: TamperWatch | None = None
        if config.enclosure is not None:
            contact = contact_of(config.enclosure)
            self._enclosure = TamperWatch(contact, self._alarms, clock, Path(config.directory), self._note_opening)
        context = https.server_context(Path(config.certificate), Path(config.private_key), Path(config.ca_certificate))
        self._contexts: list[Renewed] = [context]
        operators = Admin(
            self.status,
            lambda key_id: self._in_service().receipt(key_id),
            lambda: self._in_service().ledger(),
            lambda: self._in_service().exposure(),
            {
                **self._trust.handlers(),
                **alarms_handlers(self._alarms, self._trust.audit, config.node),
                "vault": self._answer,
                "routes": self._answer_routes,
                "maintenance": self._maintain,
                "configuration": self._take_configuration,
            },
            self._trust.is_revoked,
            self._trust.note_refusal,
        )
        # An order of routes of a large network is long.
        limits = https.Limits(body_octets_max=4 << 20, message_octets_max=5 << 20)
        self._admin_api = https.HttpsServer(operators.handle, context, limits)

    async def start(self) -> None:
        """In service when this returns, or sealed and ready to be unsealed; ConfigError where the vault is away."""
        if self.config.vault is not None and self._keys.is_bare:
            # Whoever names a vault wants no bare KEK, which is made where there is none.
            raise ConfigError([f"vault {self._keys.path}: is not there; mount it, or `qtrunk vault init` makes one"])
        if self._seals_when_open and self._keys.is_bare:
            raise ConfigError(["enclosure.seals: this node has no vault that could be sealed; `qtrunk vault init`"])
        if self._enclosure is not None:
            self._enclosure.look()
            self._is_held |= self._seals_when_open and self._enclosure.is_tampered
        vault: Vault | None = None
        is_open = self._keys.is_bare and not self._is_held
        if is_open:
            await self._enter(load_or_make_kek(self._keys.bare))
        elif not self._is_held:
            vault = await asyncio.to_thread(self._unsealing.without_help, log.warning)
            if vault is not None:
                await self._enter_with(vault)
        if self._node is None:
            self._alarms.raise_alarm(
                "vault",
                "NodeSealed",
                "critical",
                f"node {self.config.node} is sealed: no key is made or given out there",
            )
            log.warning("node %s is sealed", self.config.node)
        await self._admin_api.start(self.config.admin_api.host, self.config.admin_api.port)
        self._spawn(self._trust.keep_watching(self._contexts))
        self._spawn(self._keep_alarms())
        if self._enclosure is not None:
            self._spawn(self._keep_enclosure(self._enclosure))

    async def run_until(self, stop: asyncio.Event) -> None:
        """Until told to stop, or to seal; an error that something of the node ended with stops it."""
        waiting = [asyncio.ensure_future(event.wait()) for event in (stop, self.is_sealing)]
        try:
            while not any(future.done() for future in waiting):
                # Going into service makes a new task, and sets `is_changed` for that.
                self._is_changed.clear()
                changed = asyncio.ensure_future(self._is_changed.wait())
                done, _ = await asyncio.wait([*waiting, changed, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                for ended in done - {changed, *waiting}:
                    ended.result()
                    raise LabError("a task of the node ended")
        finally:
            for future in waiting:
                future.cancel()

    async def stop(self) -> None:
        """Out of service, in order; the KEK is overwritten."""
        await self._admin_api.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._node is not None:
            await self._node.stop()
        self._unsealing.forget()
        if self._kek is not None:
            self._kek.wipe()
        await asyncio.to_thread(self._dispatch.close)
        self._alarms.close()
        self._trust.close()

    def status(self) -> dict[str, object]:
        """What `qtrunk status` shows of this node, and who may unseal it."""
        try:
            vault = {**self._keys.status(), "shares": self._unsealing.progress()}
        except QtrunkError as problem:
            vault = {"vault": str(self._keys.path), "problem": str(problem)}
        nothing: dict[str, object] = {"node": self.config.node, "links": [], "keys": {}, "pools": [], "tenants": {}}
        more = nothing if self._node is None else self._node.status()
        head = msgspec.to_builtins(self._trust.audit.head)
        return {"state": self._state(), **more, "alarms": self._alarms.as_json(), "vault": vault, "audit": head}

    def _state(self) -> str:
        if self._node is not None and not self._is_entering:
            return IN_SERVICE
        return STARTING if self._is_entering else SEALED

    def _in_service(self) -> Node:
        if self._node is None:
            raise SealedError(f"node {self.config.node} is sealed")
        return self._node

    # ── going into service ──────────────────────────────────────────────────────────────────────────────────────────

    async def _enter_with(self, vault: Vault) -> None:
        await asyncio.to_thread(self._keys.settle, vault)
        # The root key is for changing the vault, which a node in service does not do.
        kek = Secret(vault.kek.reveal())
        vault.wipe()
        await self._enter(kek)

    async def _enter(self, kek: Secret) -> None:
        self._kek = kek
        node = Node(self.config, kek, self._trust, self._alarms)
        self._node = node
        await node.start()
        self._contexts += node.contexts
        self._alarms.clear("vault")
        self._spawn(_watch(node))
        # What lives as long as the node is looked at no more, and the rest less often: a tenth of the time of supply.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)

    async def _enter_later(self, vault: Vault) -> None:
        """As a task; an error ends the process, and so would a task that ended well: this one stays."""
        try:
            await self._enter_with(vault)
        finally:
            self._is_entering = False
        await asyncio.Event().wait()

    def _open(self, vault: Vault) -> None:
        self._is_entering = True
        self._spawn(self._enter_later(vault))

    async def _keep_alarms(self) -> None:
        while True:
            await asyncio.sleep(ALARM_PERIOD_S)
            await asyncio.to_thread(self._alarms.flush)
            self._dispatch.look()

    # ── the enclosure ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _seals_when_open(self) -> bool:
        return self.config.enclosure is not None and self.config.enclosure.seals

    @staticmethod
    async def _keep_enclosure(enclosure: TamperWatch) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            enclosure.look()

    def _note_opening(self, why: str) -> None:
        is_sealed = self._state() == SEALED
        seals = self._seals_when_open and not is_sealed
        log.error("enclosure of node %s: %s%s", self.config.node, why, "; the node seals itself" if seals else "")
        try:
            self._trust.audit.record("enclosure", "seal" if seals else "open enclosure", self.config.node)
        except StoreError as error:
            # The alarm of the log says so, and sealing only stops things.
            log.warning("%s", error)
        if seals:
            self.is_sealing.set()

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        self._tasks.append(asyncio.create_task(work))
        self._is_changed.set()

    # ── what officers ask ───────────────────────────────────────────────────────────────────────────────────────────

    async def _answer(self, request: Request, operator: Operator) -> Response:
        match request.method, request.segments[3:]:
            case "POST", ("shares",):
                return await self._take_share(request, operator)
            case "POST", ("seal",):
                return self._seal(operator)
            case _:
                return error(404, "unknown path")

    async def _answer_routes(self, request: Request, operator: Operator) -> Response:
        return await self._in_service().routes.answer(request, operator)

    async def _maintain(self, request: Request, operator: Operator) -> Response:
        return await self._in_service().maintenance.answer(request, operator)

    async def _take_configuration(self, _request: Request, operator: Operator) -> Response:
        """The network has changed, and the node's file says how: in force when the answer comes."""
        if self._reread is None:
            raise RequestRefused("this node has no configuration file")
        if self._state() == STARTING:
            raise RequestRefused("this node is just going into service; try again")
        try:
            config = self._reread()
            with self._trust.audit.during(f"operator {operator.name}", "take configuration", self.config.node):
                if self._node is None:
                    check_same_node(self.config, config)
                lines = () if self._node is None else await self._node.take(config)
        except ConfigError as problem:
            raise RequestRefused(str(problem)) from problem
        self.config = config
        self._trust.adopt(config)
        return Response(200, msgspec.json.encode({"changes": lines}))

    def _seal(self, operator: Operator) -> Response:
        if self._keys.is_bare:
            raise RequestRefused("this node has no vault: its KEK lies in a bare file; `qtrunk vault init` makes one")
        if self._state() != IN_SERVICE:
            raise RequestRefused(f"this node is {self._state()}")
        self._trust.audit.record(f"operator {operator.name}", "seal", self.config.node)
        asyncio.get_running_loop().call_later(SEAL_DELAY_S, self.is_sealing.set)
        return Response(200, msgspec.json.encode({"state": SEALED}))

    async def _take_share(self, request: Request, operator: Operator) -> Response:
        self._check_sealed()
        try:
            share = Secret(msgspec.json.decode(request.body, type=dict[str, str])["share"].encode())
        except (msgspec.MsgspecError, KeyError):
            raise RequestRefused("body: JSON with share is needed") from None
        if not is_share(share):
            raise RequestRefused("share: a text that begins like one of `qtrunk vault init` is needed")
        vault = await self._offered(share, None, f"operator {operator.name}", "give share", giver=operator)
        if vault is not None:
            self._open(vault)
        return Response(200, msgspec.json.encode({"state": self._state(), "shares": self._unsealing.progress()}))

    async def _unseal(self, parameters: Parameters, body: bytes, who: str) -> dict[str, object]:
        self._check_sealed()
        name = parameters.get("unsealer")
        if not body:
            with self._trust.audit.during(who, "unseal", self.config.node):
                vault = await asyncio.to_thread(self._unsealing.without_help, log.warning)
                if vault is None:
                    raise RequestRefused("body: no unsealer of this vault opens by itself; a secret is needed")
        else:
            try:
                secret = Secret(msgspec.json.decode(body, type=str).encode())
            except msgspec.MsgspecError:
                raise RequestRefused("body: the secret as a JSON string is needed") from None
            if is_share(secret):
                secret.wipe()
                raise RequestRefused("body: shares are given one by one, `qtrunk vault share`")
            offered = await self._offered(secret, None if name is None else str(name), who, "unseal")
            assert offered is not None  # Only shares may be too few.
            vault = offered
        self._open(vault)
        return {"state": STARTING}

    async def _offered(
        self, secret: Secret, name: str | None, who: str, what: str, giver: Operator | None = None
    ) -> Vault | None:
        person = None if giver is None else (giver.name, giver.fingerprint)
        try:
            with self._trust.audit.during(who, what, self.config.node):
                vault = await asyncio.to_thread(self._unsealing.offer, secret, name, person)
        except AuthenticationFailed as problem:
            raise NotAuthorised(str(problem)) from problem
        if self._state() != SEALED:
            if vault is not None:
                vault.wipe()
            raise RequestRefused(f"this node is {self._state()}: somebody else was quicker")
        return vault

    def _check_sealed(self) -> None:
        if self._enclosure is not None and self._seals_when_open and self._enclosure.is_open:
            raise RequestRefused("the enclosure of this node is open: shut it first")
        if self._state() != SEALED:
            raise RequestRefused(f"this node is {self._state()}, not sealed")
        if self._keys.is_bare:
            raise RequestRefused("this node has no vault; start it anew")

    async def _export(self, parameters: Parameters, _body: bytes, who: str) -> dict[str, object]:
        directory = Path(self.config.directory) / "backups"
        target = directory / f"{parameters['name']}.db"
        with self._trust.audit.during(who, "export records", self.config.node, {"name": str(parameters["name"])}):
            directory.mkdir(mode=0o700, exist_ok=True)
            await asyncio.to_thread(backup.backup, self._keys.store, target)
        return {"path": str(target), "octets": target.stat().st_size}


class SealedError(QtrunkError):
    """A sealed node has nothing to tell or to give."""


async def _watch(node: Node) -> None:
    """Until something of the node ends, which nothing does while all is well."""
    done, _ = await asyncio.wait([node.failed, *node.tasks], return_when=asyncio.FIRST_COMPLETED)
    for ended in done:
        ended.result()


def _check_unseal(parameters: Parameters) -> None:
    if not set(parameters) <= {"unsealer"} or not isinstance(parameters.get("unsealer", ""), str):
        raise RequestRefused("parameters: none, or the name of the unsealer")


def _check_export(parameters: Parameters) -> None:
    name = parameters.get("name")
    if set(parameters) != {"name"} or not isinstance(name, str) or not _EXPORT.fullmatch(name):
        raise RequestRefused("parameters: name, of small letters, digits and hyphens, is needed")
