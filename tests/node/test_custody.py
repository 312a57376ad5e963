"""A node sealed and unsealed over its own administration interface: always two officers, never a secret on record."""

import asyncio
import contextlib
import socket
from functools import partial

import msgspec
import pytest

from qtrunk.api.client import Etsi014Client
from qtrunk.api.jsonclient import Service
from qtrunk.api.tls import client_context
from qtrunk.base.errors import ConfigError, NotAuthorised, QtrunkError, RequestRefused, StoreError
from qtrunk.base.ids import SaeId
from qtrunk.base.secret import Secret
from qtrunk.config import network
from qtrunk.kms.audit import records
from qtrunk.kms.vault import methods
from qtrunk.node.ca.identity import Kind
from qtrunk.node.config import Address, EnclosureConfig, LinkConfig, NodeConfig
from qtrunk.node.custody import Custody
from qtrunk.node.keys import keys_of
from qtrunk.node.maintenance import Maintenance
from qtrunk.node.pki import LabPki
from qtrunk.node.tamper import LOOK_S

FILE = """
name = "one"
trunks = [["a", "z"]]
saes = ["alice@a", "bob@a"]
[link]
length_km = 20
"""
PHRASE = "correct horse battery staple"


@pytest.fixture(autouse=True)
def quick_passphrases(monkeypatch):
    for name, value in (("ARGON2_TARGET_S", 0.0), ("ARGON2_ITERATIONS_MIN", 1), ("ARGON2_MEMORY_KIB", 1024)):
        monkeypatch.setattr(methods, name, value)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


class Site:
    """One node that has been in service before, and two officers."""

    def __init__(self, directory):
        self.pki = LabPki(directory / "pki")
        own = self.pki.credentials(directory / "a", Kind.NODE, "a")
        self.config = NodeConfig(
            node="a",
            directory=str(directory / "a"),
            key_api=Address("localhost", free_port()),
            admin_api=Address("localhost", free_port()),
            inter_node=Address("localhost", free_port()),
            links=[],
            topology=network.load(FILE).to_dict(),
            **own.as_json(),
        )
        self.keys = keys_of(self.config)
        self.log = directory / "a" / "audit"
        self._saes = self.pki.credentials(directory / "alice", Kind.SAE, "alice")
        self._officers = {name: self.pki.credentials(directory / name, Kind.OPERATOR, name) for name in ("ada", "ben")}

    async def ask(self, who: str, method: str, path: str, body: object = None) -> object:
        own = self._officers[who]
        context = client_context(own.certificate, own.private_key, own.ca_certificate)
        service = Service("localhost", self.config.admin_api.port, context)
        answer = await asyncio.to_thread(partial(service.ask, method, f"/admin/v1/{path}", body))
        return msgspec.json.decode(answer)

    async def approved(self, action: str, parameters: dict[str, object], body: object = None) -> object:
        proposal = await self.ask("ada", "POST", "approvals", {"action": action, "parameters": parameters})
        path = f"approvals/{proposal['id']}"
        with pytest.raises(RequestRefused, match="not approved"):
            await self.ask("ada", "POST", f"{path}/run", body)
        with pytest.raises(NotAuthorised, match="second person"):
            await self.ask("ada", "POST", f"{path}/yes", {"digest": proposal["digest"]})
        await self.ask("ben", "POST", f"{path}/yes", {"digest": proposal["digest"]})
        return await self.ask("ada", "POST", f"{path}/run", body)

    async def state(self) -> str:
        return (await self.ask("ada", "GET", "status"))["state"]

    async def until(self, state: str) -> None:
        for _ in range(200):
            if await self.state() == state:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"not {state}, but {await self.state()}")

    def keys_given(self) -> int:
        own = self._saes
        client = Etsi014Client(
            kme_url=f"https://localhost:{self.config.key_api.port}",
            own_sae=SaeId("alice"),
            certificate=own.certificate,
            private_key=own.private_key,
            ca_certificate=own.ca_certificate,
        )
        try:
            return len(client.get_keys(SaeId("bob"), 2, 256))
        finally:
            client.close()

    def record(self) -> str:
        return str([msgspec.to_builtins(record) for record in records(self.log)])


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


@contextlib.asynccontextmanager
async def running(site, **more):
    custody = Custody(site.config, **more)
    await custody.start()
    try:
        yield custody
    finally:
        await custody.stop()


def made(site, name, method, options, secret=None):
    vault, shares = site.keys.make(name, method, options, secret)
    vault.wipe()
    return shares


def test_a_node_without_a_vault_needs_nobody_and_cannot_be_sealed(site):
    async def scenario():
        async with running(site) as custody:
            assert await site.state() == "in service"
            assert custody.status()["vault"]["unsealers"][0]["is_laboratory"]
            assert await asyncio.to_thread(site.keys_given) == 2
            with pytest.raises(RequestRefused, match="no vault"):
                await site.ask("ada", "POST", "vault/seal")
            with pytest.raises(RequestRefused, match="not sealed"):
                await site.ask("ada", "POST", "vault/shares", {"share": "qtrunk-share-x"})
            assert not custody.is_sealing.is_set()

    asyncio.run(scenario())


def test_a_vault_that_is_named_and_not_there_is_no_node_without_one(site):
    site.config = msgspec.structs.replace(site.config, vault=str(site.keys.path.with_name("stick") / "vault.json"))

    async def scenario():
        custody = Custody(site.config)
        with pytest.raises(ConfigError, match="is not there; mount it"):
            await custody.start()
        await custody.stop()

    asyncio.run(scenario())
    assert not site.keys.bare.exists()
    assert not site.keys.store.exists()


def test_shares_of_one_officer_are_not_enough(site):
    shares = [bytes(share.reveal()).decode() for share in made(site, "board", "shares", {"needed": 2, "count": 3})]

    async def scenario():
        async with running(site):
            assert await site.state() == "sealed"
            with pytest.raises(QtrunkError):
                await asyncio.to_thread(site.keys_given)
            for path in ("ledger", "keys/00000000-0000-4000-8000-000000000001"):
                with pytest.raises(StoreError, match="503: node a is sealed"):
                    await site.ask("ada", "GET", path)
            answer = await site.ask("ada", "POST", "vault/shares", {"share": shares[0]})
            assert answer == {"state": "sealed", "shares": {"board": 1}}
            with pytest.raises(NotAuthorised, match="another officer"):
                await site.ask("ada", "POST", "vault/shares", {"share": shares[1]})
            wrong = shares[1][:-3] + ("aaa" if shares[1][-3:] != "aaa" else "bbb")
            with pytest.raises((NotAuthorised, RequestRefused)):
                await site.ask("ben", "POST", "vault/shares", {"share": wrong})
            for body in ({}, {"share": 1}, {"share": "hello"}):
                with pytest.raises(RequestRefused):
                    await site.ask("ben", "POST", "vault/shares", body)
            assert await site.state() == "sealed"
            await site.ask("ben", "POST", "vault/shares", {"share": shares[2]})
            await site.until("in service")
            assert await asyncio.to_thread(site.keys_given) == 2

    asyncio.run(scenario())
    assert all(share not in site.record() for share in shares)


def test_a_passphrase_takes_a_second_officers_yes_and_is_written_nowhere(site):
    made(site, "night", "passphrase", {}, Secret(PHRASE.encode()))

    async def scenario():
        async with running(site):
            with pytest.raises(NotAuthorised, match="does not open"):
                await site.approved("unseal", {}, "wrong horse battery staple")
            with pytest.raises(RequestRefused, match="secret is needed"):
                await site.approved("unseal", {})
            with pytest.raises(RequestRefused, match="name of the unsealer"):
                await site.ask("ada", "POST", "approvals", {"action": "unseal", "parameters": {"secret": PHRASE}})
            assert await site.state() == "sealed"
            assert await site.approved("unseal", {"unsealer": "night"}, PHRASE) == {"state": "starting"}
            await site.until("in service")
            assert await asyncio.to_thread(site.keys_given) == 2
            with pytest.raises(RequestRefused, match="not sealed"):
                await site.approved("unseal", {}, PHRASE)

    asyncio.run(scenario())
    record = site.record()
    assert "horse" not in record
    assert record.count("'unseal'") >= 4
    everything = [path for path in site.log.parent.rglob("*") if path.is_file()]
    assert len(everything) > 5
    assert not [path for path in everything if PHRASE.encode() in path.read_bytes()]


def test_a_sealed_node_stays_sealed_though_it_could_open_by_itself(site):
    made(site, "lab", "file", {})

    async def scenario():
        async with running(site) as custody:
            assert await asyncio.to_thread(site.keys_given) == 2
            kek = custody._kek
            await site.ask("ben", "POST", "vault/seal")
            async with asyncio.timeout(5):
                await custody.run_until(asyncio.Event())
            assert custody.is_sealing.is_set()
        assert bytes(kek.reveal()) == bytes(len(kek))
        async with running(site, is_held=True):
            assert await site.state() == "sealed"
            assert [alarm["type"] for alarm in (await site.ask("ada", "GET", "status"))["alarms"]["active"]] == [
                "NodeSealed"
            ]
            await site.approved("unseal", {})
            await site.until("in service")
            assert await asyncio.to_thread(site.keys_given) == 2

    asyncio.run(scenario())


def test_two_officers_export_records_without_a_key(site):
    async def scenario():
        async with running(site):
            answer = await site.approved("export", {"name": "monday"})
            copy = site.log.parent / "backups" / "monday.db"
            assert answer == {"path": str(copy), "octets": copy.stat().st_size}
            with pytest.raises(StoreError, match="exists"):
                await site.approved("export", {"name": "monday"})
            for name in ("../up", "", "a/b", 7):
                with pytest.raises(RequestRefused, match="name"):
                    await site.ask("ada", "POST", "approvals", {"action": "export", "parameters": {"name": name}})

    asyncio.run(scenario())


def test_an_error_of_the_node_stops_the_process(site):
    async def scenario():
        async with running(site) as custody:
            custody._node.failed.set_exception(StoreError("broken"))
            with pytest.raises(StoreError, match="broken"):
                async with asyncio.timeout(5):
                    await custody.run_until(asyncio.Event())

    asyncio.run(scenario())


# ── the enclosure ──────────────────────────────────────────────────────────────────────────────────────────────


def with_contact(site, tmp_path):
    contact = tmp_path / "contact"
    contact.write_text("1")
    enclosure = EnclosureConfig(str(contact), seals=True)
    site.config = msgspec.structs.replace(site.config, enclosure=enclosure)
    return contact


def test_an_enclosure_that_is_opened_seals_the_node_and_people_unseal_it_when_it_is_shut(site, tmp_path):
    contact = with_contact(site, tmp_path)
    made(site, "lab", "file", {})

    async def scenario():
        async with running(site) as custody:
            assert await site.state() == "in service"
            contact.write_text("0")
            async with asyncio.timeout(5):
                await custody.run_until(asyncio.Event())
            assert custody.is_sealing.is_set()
        # The process begins anew then; it may as well be killed before, and its vault opens by itself.
        async with running(site):
            assert await site.state() == "sealed"
            with pytest.raises(RequestRefused, match="enclosure"):
                await site.approved("unseal", {})
            contact.write_text("1")
            await asyncio.sleep(2 * LOOK_S)
            await site.approved("unseal", {})
            await site.until("in service")
            (alarm,) = [one for one in await site.ask("ada", "GET", "alarms") if one["type"] == "TamperInput"]
            assert not alarm["is_cleared"]

    asyncio.run(scenario())
    assert "'who': 'enclosure', 'what': 'seal'" in site.record()


def test_an_enclosure_cannot_seal_a_node_without_a_vault(site, tmp_path):
    with_contact(site, tmp_path)

    async def scenario():
        with pytest.raises(ConfigError, match="vault"):
            async with running(site):
                pass

    asyncio.run(scenario())


# ── a changed network ──────────────────────────────────────────────────────────────────────────────────────────────


def changed(site, text, **more):
    return msgspec.structs.replace(site.config, topology=network.load(text).to_dict(), **more)


def ask_for(site, target, number=2):
    own = site._saes
    client = Etsi014Client(
        kme_url=f"https://localhost:{site.config.key_api.port}",
        own_sae=SaeId("alice"),
        certificate=own.certificate,
        private_key=own.private_key,
        ca_certificate=own.ca_certificate,
    )
    try:
        return client.get_keys(SaeId(target), number, 256)
    finally:
        client.close()


MORE = FILE.replace('"bob@a"', '"bob@a", "carol@a"')
FEWER = FILE.replace(', "bob@a"', "")


def test_a_change_that_is_refused_has_changed_nothing(site):
    link = LinkConfig("a-z", "nowhere.sock", Address("localhost", 1), "nothing")
    wrong = {
        "ml-dsa": changed(site, MORE + 'bootstrap = "ml-dsa"\n', links=[link]),
        "no link": changed(site, MORE, links=[msgspec.structs.replace(link, link="a-y")]),
        "admin_api": changed(site, MORE, admin_api=Address("localhost", 1)),
    }
    asked = []
    before = msgspec.structs.replace(site.config, topology=network.load(FILE + 'bootstrap = "ml-dsa"\n').to_dict())

    async def scenario(why, config):
        site.config = before if why == "ml-dsa" else site.config
        async with running(site, reread=lambda: config):
            with pytest.raises(RequestRefused, match=why):
                await site.ask("ada", "POST", "configuration", {})
            with pytest.raises(RequestRefused, match="carol"):
                await asyncio.to_thread(ask_for, site, "carol")
            assert len(await asyncio.to_thread(ask_for, site, "bob")) == 2
            asked.append(why)

    own = site.config
    for why, config in wrong.items():
        site.config = own
        asyncio.run(scenario(why, config))
    assert len(asked) == 3


def test_what_cannot_be_recorded_keeps_no_part_from_knowing_and_is_done_again(site, monkeypatch):
    def full(_self):
        raise StoreError("the disk is full")

    async def scenario():
        async with running(site, reread=lambda: changed(site, MORE)):
            with monkeypatch.context() as patch:
                patch.setattr(Maintenance, "adopt", full)
                with pytest.raises(StoreError, match=r"in force but not all on record.*disk is full"):
                    await site.ask("ada", "POST", "configuration", {})
            assert len(await asyncio.to_thread(ask_for, site, "carol")) == 2
            assert await site.ask("ada", "POST", "configuration", {}) == {"changes": []}

    asyncio.run(scenario())


@pytest.mark.parametrize("is_up", [True, False])
def test_the_keys_of_a_removed_sae_are_destroyed_though_the_node_slept_through_it(site, is_up):
    own = site.config

    async def scenario():
        async with running(site, reread=lambda: changed(site, FEWER)):
            given = await asyncio.to_thread(ask_for, site, "bob")
            if is_up:
                await site.ask("ada", "POST", "configuration", {})
                receipt = await site.ask("ada", "GET", f"keys/{given[0].key_id}")
                assert receipt["stored"]["reason"] == "SAE removed"
        if not is_up:
            site.config = changed(site, FEWER)
            async with running(site):
                receipt = await site.ask("ada", "GET", f"keys/{given[0].key_id}")
                assert receipt["stored"]["reason"] == "SAE removed"
        # Whoever is bob later is somebody else.
        site.config = own
        async with running(site):
            receipt = await site.ask("ada", "GET", f"keys/{given[0].key_id}")
            assert receipt["recipients"][0]["state"] == "destroyed"
            assert len(await asyncio.to_thread(ask_for, site, "bob")) == 2

    asyncio.run(scenario())
