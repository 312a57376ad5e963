"""One end of a link whose keys come from a vendor's KME: wires kms.vendor to channel, KME, store and clock.

The KME is asked in a thread of its own, one request at a time, by the client of ETSI GS QKD 014 (api.client) or 004
(node.vendorstream): an answer may take as long as it likes. Whatever a KME does is an alarm of the link and a pause,
never a stop:

    VendorKmeUnreachable   no connection, or no answer in time
    VendorKmeRefused       its certificate or ours is not taken, files are missing, 400, 401, or another such status
    VendorKmeGarbage       an answer against the standard: too few keys, short ones, one ID or one key twice
    VendorKeysMissing      it does not know the key IDs (chunks) that the peer's KME gave out
    VendorKeyShortage      it has no key (503; 004: status 2, 3, 6), and no block came for a while
    VendorKeyMismatch      the two KMEs gave different keys under one ID: their block is destroyed

Alarms of the KME are cleared by its next good answer, VendorKeyMismatch by the next block that both ends hold.
"""

import asyncio
import logging
import os
import queue
import ssl
import threading
from collections.abc import Callable

from qtrunk.api.client import Etsi014Client, NoAnswerError
from qtrunk.base.errors import (
    AuthenticationFailed,
    KeyExhausted,
    KeyNotFound,
    NotAuthorised,
    QtrunkError,
    RequestRefused,
    WireError,
)
from qtrunk.base.ids import SaeId
from qtrunk.base.ports import Clock, Random, SuppliedKey, SupplyStatus
from qtrunk.kms.store import AuthPool, KeyStore
from qtrunk.kms.vendor import VendorAlice, VendorBob
from qtrunk.kms.vendorend import (
    CHANNEL,
    MISMATCH,
    VENDOR,
    Collect,
    Destroy,
    Disconnect,
    Fetch,
    Hold,
    Join,
    Release,
    ToPeer,
    VendorEffect,
)
from qtrunk.kms.vendorwords import AUTH_OCTETS
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.config import LinkConfig, VendorCredentials, vendor_files
from qtrunk.node.linkstate import LinkStatistics
from qtrunk.node.linkworker import LinkWorker
from qtrunk.node.pace import Pace
from qtrunk.node.vendorstream import StreamKme
from qtrunk.stages import Role
from qtrunk.topology import Link

log = logging.getLogger(__name__)

KME_ALARMS = {
    "VendorKmeUnreachable": "major",
    "VendorKmeRefused": "critical",
    "VendorKmeGarbage": "critical",
    "VendorKeysMissing": "major",
    "VendorKeyShortage": "warning",
}
SPAN_S_MIN = 1e-3


class VendorKme:
    """The own KME of a vendor, as one end of a link asks it; for one thread."""

    def __init__(self, link: Link, role: Role, credentials: VendorCredentials | None) -> None:
        """ConfigError where neither the topology nor `credentials` of the node's configuration name the PEM files."""
        assert link.vendor is not None
        self._source = link.vendor
        ends = (link.vendor.alice, link.vendor.bob)
        self._end, other = ends if role is Role.ALICE else ends[::-1]
        self._peer: SaeId = other.sae
        self._files = vendor_files(link, role, credentials)
        self._client: Etsi014Client | None = None
        self._per_request = 1

    def ask(self, effect: Fetch | Collect) -> list[SuppliedKey]:
        """Some of what is asked for, as much as one request may have."""
        client = self.connect()
        try:
            if isinstance(effect, Fetch):
                return client.get_keys(self._peer, min(effect.number, self._per_request), self._source.key_bits)
            return client.get_keys_with_ids(self._peer, effect.key_ids[: self._per_request])
        except (NoAnswerError, AuthenticationFailed, NotAuthorised):
            self.close()
            raise

    @property
    def is_connected(self) -> bool:
        """Whether the KME has said what it can do, and was there since."""
        return self._client is not None

    def connect(self) -> Etsi014Client:
        """The client, once the KME has said what it can do. Files are read anew each time: certificates are renewed."""
        if self._client is None:
            certificate, private_key, ca_certificate = self._files
            client = Etsi014Client(
                kme_url=self._end.kme_url,
                certificate=certificate,
                private_key=private_key,
                ca_certificate=ca_certificate,
                own_sae=self._end.sae,
                timeout_s=self._source.timeout_s,
                minimum_version=ssl.TLSVersion.TLSv1_2 if self._source.tls == "1.2" else ssl.TLSVersion.TLSv1_3,
            )
            try:
                self._take_limits(client.status(self._peer))
            except BaseException:
                client.close()
                raise
            self._client = client
        return self._client

    def close(self) -> None:
        """Forget the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _take_limits(self, status: SupplyStatus) -> None:
        bits = self._source.key_bits
        if not status.key_bits_min <= bits <= status.key_bits_max:
            raise RequestRefused(
                f"the KME of SAE {self._end.sae} gives keys of {status.key_bits_min} to {status.key_bits_max} bits; "
                f"key_bits of the link's vendor table is {bits}"
            )
        self._per_request = max(1, status.keys_per_request_max)


class VendorRunner(LinkWorker[VendorEffect]):
    """Runs one such link end until closed."""

    def __init__(
        self,
        *,
        link: Link,
        machine: VendorAlice | VendorBob,
        kme: VendorKme | StreamKme,
        pool: AuthPool,
        store: KeyStore,
        alarms: AlarmBoard,
        clock: Clock,
        pool_octets_max: int,
        statistics: LinkStatistics,
        pace: Pace | None = None,
    ) -> None:
        super().__init__(
            link=link.id,
            machine=machine,
            pool=pool,
            store=store,
            alarms=alarms,
            clock=clock,
            statistics=statistics,
            pace=pace,
        )
        assert link.vendor is not None
        self._vendor = machine
        self._kme = kme
        self._poll_s = link.vendor.poll_s
        self._pool_octets_max = pool_octets_max
        self._stream = b""
        """The key stream that the peer was told of."""
        self._asked: queue.SimpleQueue[Fetch | Collect | Join | None] = queue.SimpleQueue()
        self._kme_thread = threading.Thread(target=self._ask_kme, name=f"vendor-{link.id}", daemon=True)
        self._since_s = clock.monotonic_s()
        """When the last block was complete, or the first began."""
        statistics.figures = {"vendor": link.vendor.statement}

    def start(self) -> list[asyncio.Task[None]]:
        """Start both threads and the tasks that feed them."""
        self._kme_thread.start()
        return super().start()

    def stop(self) -> None:
        """Let the worker finish what it is doing; an answer of the KME is not waited for."""
        self._asked.put(None)
        super().stop()

    # ── the KME's thread ────────────────────────────────────────────────────────────────────────────────────────

    def _ask_kme(self) -> None:
        try:
            while not self._stopping:
                try:
                    effect = self._asked.get(timeout=self._poll_s)
                except queue.Empty:
                    self._greet()
                    continue
                if effect is None:
                    return
                self._ask(effect)
                self._announce()
        except BaseException:
            # As in the worker: half a link end is worse than none.
            log.critical("link %s: the KME's thread failed; the node stops", self.link, exc_info=True)
            logging.shutdown()
            os._exit(70)
        finally:
            if isinstance(self._kme, StreamKme):
                self._kme.end()
            self._kme.close()

    def _announce(self) -> None:
        """Where a key stream was opened: the peer joins it."""
        if isinstance(self._kme, StreamKme) and self._kme.stream and self._kme.stream != self._stream:
            self._stream = ksid = self._kme.stream
            assert isinstance(self._vendor, VendorAlice)
            self._hand_over(lambda alice=self._vendor: alice.announce(ksid))  # type: ignore[misc]

    def _greet(self) -> None:
        """Nothing is asked for: see whether the KME is there all the same, so that a mistake shows before it costs."""
        if self._kme.is_connected:
            return
        try:
            self._kme.connect()
        except (QtrunkError, OSError) as error:
            self._note_failure(error)
        else:
            self._note_answer()
        self._announce()

    def _ask(self, effect: Fetch | Collect | Join) -> None:
        if isinstance(effect, Join):
            self._join(effect)
            return
        try:
            keys = self._kme.ask(effect)
        except (QtrunkError, OSError) as error:
            pause_s, is_down = self._note_failure(error)
            self._hand_over(lambda: self._vendor.failed(pause_s, is_down=is_down))
        else:
            self._note_answer()
            self._hand_over(lambda: self._answered(keys))

    def _join(self, effect: Join) -> None:
        """The peer's key stream; where that fails, later requests and greetings try again."""
        assert isinstance(self._kme, StreamKme)
        try:
            self._kme.join(effect.ksid)
        except (QtrunkError, OSError) as error:
            self._note_failure(error)
        else:
            self._note_answer()

    def _hand_over(self, event: Callable[[], list[VendorEffect]]) -> None:
        if not self._stopping:
            asyncio.run_coroutine_threadsafe(self._post(event), self._loop)

    def _note_answer(self) -> None:
        self.statistics.is_module_up = True
        for type_ in KME_ALARMS:
            self._alarms.clear(self.link, type_)

    def _note_failure(self, error: QtrunkError | OSError) -> tuple[float, bool]:
        """Raise the alarm; how long to wait, and whether the KME is down (and not: does not have the keys)."""
        type_, pause_s, is_down = "VendorKmeRefused", self._poll_s, False
        match error:
            case NoAnswerError():
                type_, is_down = "VendorKmeUnreachable", True
            case KeyExhausted():
                type_, is_down, pause_s = "VendorKeyShortage", True, max(pause_s, error.retry_after_s)
            case KeyNotFound():
                type_ = "VendorKeysMissing"
            case WireError():
                type_ = "VendorKmeGarbage"
            case AuthenticationFailed() | OSError():
                is_down = True
            case _:
                pass
        # A KME that answers without keys now and then is a slow one; one that gave none for long makes nothing.
        answers = not isinstance(error, NoAnswerError | AuthenticationFailed | OSError)
        self.statistics.is_module_up = answers and self.statistics.rates_bps()[1] > 0
        for other in KME_ALARMS.keys() - {type_}:
            self._alarms.clear(self.link, other)
        if type_ == "VendorKeyShortage" and self.statistics.is_module_up:
            return pause_s, is_down
        if self._alarms.raise_alarm(self.link, type_, KME_ALARMS[type_], str(error)):
            log.warning("link %s: %s: %s", self.link, type_, error)
        return pause_s, is_down

    # ── worker thread side ──────────────────────────────────────────────────────────────────────────────────────

    def _answered(self, keys: list[SuppliedKey]) -> list[VendorEffect]:
        try:
            return self._vendor.answered(keys)
        except WireError as error:
            pause_s, is_down = self._note_failure(error)
            return self._vendor.failed(pause_s, is_down=is_down)

    def _on_tick(self) -> list[VendorEffect]:
        is_paused = self._note_level().total_octets >= self._pool_octets_max or self.statistics.is_held
        if self.statistics.note_pause(is_paused=is_paused):
            self._since_s = self._clock.monotonic_s()
        if isinstance(self._vendor, VendorAlice):
            self._vendor.pause(is_paused=is_paused)
        return self._vendor.tick()

    def _carry_out_one(self, effect: VendorEffect) -> None:
        match effect:
            case ToPeer():
                self._to_peer(effect.octets)
            case Fetch() | Collect() | Join():
                self._asked.put(effect)
            case Hold():
                self._store.hold(effect.key)
            case Release():
                self._store.release(self.link, effect.block)
                now_s = self._clock.monotonic_s()
                self.statistics.note_span(max(SPAN_S_MIN, now_s - self._since_s))
                self._since_s = now_s
                self.statistics.note_released(self._store.block_record(self.link, effect.block))
                for type_ in ("LinkOff", "StorageFull", "ProtocolError", "VendorKeyMismatch"):
                    self._alarms.clear(self.link, type_)
            case Destroy():
                self._destroy(effect)
            case Disconnect():
                log.warning("%s", effect.why)
                self._alarms.raise_alarm(self.link, "ProtocolError", "major", effect.why)
                self._disconnect()

    def _destroy(self, effect: Destroy) -> None:
        self._store.destroy(self.link, effect.block, effect.cause)
        self.statistics.note_destroyed(effect)
        text = f"block {effect.block} destroyed, cause {effect.cause}: {effect.why}"
        log.warning("link %s: %s", self.link, text)
        if effect.cause in (VENDOR, MISMATCH) and isinstance(self._kme, StreamKme):
            self._kme.renew()
        if effect.cause == MISMATCH:
            self._alarms.raise_alarm(self.link, "VendorKeyMismatch", "critical", text)
        if effect.cause != CHANNEL:
            self._alarms.raise_alarm(self.link, "LinkOff", "major", text)


def vendor_runner(
    link: Link,
    role: Role,
    config: LinkConfig,
    pool_octets_max: int,
    store: KeyStore,
    alarms: AlarmBoard,
    random: Random,
    clock: Clock,
    pace: Pace | None = None,
) -> VendorRunner:
    """One end of a link with `source = etsi014` or `etsi004`; ConfigError where files of its SAE are not named."""
    pool = store.auth_ledger(link.id, AUTH_OCTETS, link.distillation.epsilon_total)
    assert link.vendor is not None
    kme = StreamKme(link, role, config.vendor, clock) if link.vendor.interface == "etsi004" else None
    machine = VendorAlice if role is Role.ALICE else VendorBob
    return VendorRunner(
        link=link,
        machine=machine(link=link, store=store, auth=pool, random=random, clock=clock),
        kme=kme or VendorKme(link, role, config.vendor),
        pool=pool,
        store=store,
        alarms=alarms,
        clock=clock,
        pool_octets_max=pool_octets_max,
        statistics=LinkStatistics(link, role, clock),
        pace=pace,
    )
