"""Unsealing: the KEK comes out for those who hold what was agreed, and for nobody else."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kms_kit import KEK_OCTETS, StandingClock

from qtrunk.base.errors import AuthenticationFailed, RequestRefused, StoreError
from qtrunk.base.ids import NodeId
from qtrunk.base.secret import Secret
from qtrunk.kms.store import KeyStore
from qtrunk.kms.vault import methods, opened, sharetext, vaultfile
from qtrunk.kms.vault.unsealing import SHARES_WAIT_S, Keys, Unsealing

NODE = NodeId("a")
PHRASE = b"correct horse battery staple"
SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")


# RFC 9106 section 4, second recommended option: the least that a guess may cost, whatever a test does below.
FLOOR = (methods.ARGON2_ITERATIONS_MIN, methods.ARGON2_LANES, methods.ARGON2_MEMORY_KIB, methods.ARGON2_TARGET_S)


def test_a_guess_of_a_passphrase_costs_what_the_rfc_recommends() -> None:
    assert FLOOR == (3, 4, 64 << 10, 0.5)


@pytest.fixture(autouse=True)
def quick_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ARGON2_TARGET_S", 0.0), ("ARGON2_ITERATIONS_MIN", 1), ("ARGON2_MEMORY_KIB", 1024)):
        monkeypatch.setattr(methods, name, value)


@pytest.fixture
def path(memory_path: Path) -> Path:
    return memory_path / "vault.json"


@pytest.fixture
def keys(memory_path: Path, path: Path) -> Keys:
    return Keys(NODE, path, memory_path / "kek", memory_path / "store")


def secret(text: bytes = PHRASE) -> Secret:
    return Secret(text)


def test_a_slip_of_the_pen_in_a_share_is_found(path: Path) -> None:
    vault, shares = opened.create(path, NODE, "board", "shares", {"needed": 2, "count": 3})
    identifier = vaultfile.read(path, NODE).vault
    text = bytes(shares[0].reveal())
    spaced = Secret(text[:13] + text[13:].upper().replace(b"-", b" ") + b"\n")
    assert sharetext.decode(spaced, identifier).value == sharetext.decode(shares[0], identifier).value
    for at in range(len(sharetext.PREFIX), len(text)):
        if text[at : at + 1] == b"-":
            continue
        wrong = bytearray(text)
        wrong[at] = ord("a") if text[at] != ord("a") else ord("b")
        with pytest.raises((AuthenticationFailed, RequestRefused)) as caught:
            sharetext.decode(Secret(wrong), identifier)
        assert text[14:30].decode() not in str(caught.value)
    with pytest.raises(AuthenticationFailed, match="another vault"):
        sharetext.decode(shares[0], "00" * 16)
    assert vault.kek != Secret(bytes(32))


# ── passphrase, file, credential ────────────────────────────────────────────────────────────────────────────


def test_a_passphrase_opens_and_another_does_not(path: Path) -> None:
    vault, shares = opened.create(path, NODE, "night", "passphrase", {}, secret())
    assert shares == []
    again = opened.open_with(path, NODE, "night", (secret(),))
    assert (again.kek, again.root, again.previous) == (vault.kek, vault.root, None)
    with pytest.raises(AuthenticationFailed, match="night") as caught:
        opened.open_with(path, NODE, "night", (secret(PHRASE + b"!"),))
    assert "horse" not in str(caught.value)
    octets = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    for hidden in (vault.kek, vault.root, secret()):
        assert bytes(hidden.reveal()) not in octets
        assert bytes(hidden.reveal()).hex().encode() not in octets
    again.wipe()
    assert again.kek == Secret(bytes(32))


def test_a_passphrase_is_the_same_however_it_is_composed(path: Path) -> None:
    opened.create(path, NODE, "night", "passphrase", {}, secret("schlüsselübergabe".encode()))
    opened.open_with(path, NODE, "night", (secret("schlu\u0308sselu\u0308bergabe".encode()),))


@pytest.mark.parametrize(
    ("method", "options", "given", "field"),
    [
        ("passphrase", {}, None, "secret"),
        ("passphrase", {}, b"too short", "passphrase"),
        ("passphrase", {}, b"\xff" * 20, "passphrase"),
        ("passphrase", {"iterations": 1}, PHRASE, "iterations"),
        ("shares", {"needed": 1, "count": 3}, None, "needed"),
        ("shares", {"needed": "2", "count": 3}, None, "needed"),
        ("systemd", {"credential": "../../etc/passwd"}, None, "credential"),
        ("systemd", {}, None, "credential"),
        ("file", {"path": "relative"}, None, "path"),
        ("pkcs11", {"module": "/x"}, b"1234", "token"),
        ("magic", {}, None, "method"),
    ],
)
def test_what_cannot_be_used_is_named_and_makes_nothing(
    path: Path, method: str, options: dict, given: bytes | None, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(path.parent))
    with pytest.raises(RequestRefused, match=field):
        opened.create(path, NODE, "one", method, options, given and Secret(given))
    with pytest.raises(RequestRefused, match="name"):
        opened.create(path, NODE, "Not A Name", "passphrase", {}, secret())
    assert list(path.parent.iterdir()) == []


def test_a_credential_of_the_service_manager_opens_by_itself(
    keys: Keys, memory_path: Path, clock: StandingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(StoreError, match="LoadCredential"):
        opened.create(keys.path, NODE, "boot", "systemd", {"credential": "kek"})
    directory = memory_path / "credentials"
    directory.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(directory))
    (directory / "kek").write_bytes(b"short")
    with pytest.raises(StoreError, match="32 octets"):
        opened.create(keys.path, NODE, "boot", "systemd", {"credential": "kek"})
    (directory / "kek").write_bytes(b"x" * 40 + b"\n")
    vault, _ = opened.create(keys.path, NODE, "boot", "systemd", {"credential": "kek"})
    reports: list[str] = []
    found = Unsealing(keys, clock).without_help(reports.append)
    assert found is not None
    assert (found.kek, reports) == (vault.kek, [])
    (directory / "kek").write_bytes(b"y" * 40)
    assert Unsealing(keys, clock).without_help(reports.append) is None
    assert "boot" in reports[0]


def test_a_key_file_is_private_new_and_shredded_when_it_is_removed(keys: Keys) -> None:
    vault, _ = opened.create(keys.path, NODE, "lab", "file", {})
    (key_file,) = keys.path.parent.glob("vault-lab-*.key")
    with pytest.raises(RequestRefused, match="exists"):
        vault.add("other", "file", {"path": str(key_file)}, None)
    assert keys.status()["unsealers"] == [
        {"name": "lab", "method": "file", "is_unattended": True, "is_laboratory": True}
    ]
    key_file.chmod(0o644)
    with pytest.raises(StoreError, match="chmod"):
        opened.open_with(keys.path, NODE, "lab", ())
    key_file.chmod(0o600)
    assert opened.open_with(keys.path, NODE, "lab", ()).kek == vault.kek
    vault.add("night", "passphrase", {}, secret())
    vault.remove("lab")
    assert not key_file.exists()
    with pytest.raises(RequestRefused, match="last unsealer"):
        vault.remove("night")


# ── a token ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str | int]]:
    """A software token with PIN 1234."""
    pytest.importorskip("pkcs11")
    if not SOFTHSM.exists():
        pytest.skip("tests of hardware tokens need Debian's softhsm2")
    directory = tmp_path_factory.mktemp("softhsm")
    (directory / "tokens").mkdir()
    (directory / "softhsm2.conf").write_text(f"directories.tokendir = {directory}/tokens\nobjectstore.backend = file\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(directory / "softhsm2.conf"))
        command = [
            "softhsm2-util",
            "--init-token",
            "--free",
            "--label",
            "site",
            "--so-pin",
            "87654321",
            "--pin",
            "1234",
        ]
        subprocess.run(command, check=True, capture_output=True)
        yield {"module": str(SOFTHSM), "token": "site"}


def test_a_token_wraps_and_its_key_never_leaves_it(path: Path, token: dict[str, str | int]) -> None:
    vault, _ = opened.create(path, NODE, "hsm", "pkcs11", token, Secret(b"1234"))
    assert opened.open_with(path, NODE, "hsm", (Secret(b"1234"),)).kek == vault.kek
    with pytest.raises(AuthenticationFailed, match="PIN") as caught:
        opened.open_with(path, NODE, "hsm", (Secret(b"9999"),))
    assert "9999" not in str(caught.value)
    with pytest.raises(RequestRefused, match="PIN"):
        opened.open_with(path, NODE, "hsm", ())
    import pkcs11

    label = str(vaultfile.read(path, NODE).unsealers[0].parameters["key"])
    with pkcs11.lib(str(SOFTHSM)).get_token(token_label="site").open(rw=True, user_pin="1234") as session:
        key = session.get_key(label=label)
        assert key[pkcs11.Attribute.SENSITIVE]
        assert not key[pkcs11.Attribute.EXTRACTABLE]
        with pytest.raises(pkcs11.exceptions.PKCS11Error):
            key[pkcs11.Attribute.VALUE]
        key.destroy()
    with pytest.raises(StoreError, match="no key"):
        opened.open_with(path, NODE, "hsm", (Secret(b"1234"),))


def test_a_token_with_its_pin_in_a_credential_needs_nobody(
    keys: Keys, token: dict[str, str | int], memory_path: Path, clock: StandingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (memory_path / "pin").write_text("1234\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(memory_path))
    vault, _ = opened.create(keys.path, NODE, "hsm", "pkcs11", {**token, "pin_credential": "pin"})
    found = Unsealing(keys, clock).without_help(pytest.fail)
    assert found is not None
    assert found.kek == vault.kek


def test_a_token_that_is_not_there_or_a_library_of_anybody_is_refused(
    path: Path, token: dict[str, str | int], tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="plugged in"):
        opened.create(path, NODE, "hsm", "pkcs11", {**token, "token": "other"}, Secret(b"1234"))
    library = tmp_path / "library.so"
    library.write_bytes(SOFTHSM.read_bytes())
    library.chmod(0o666)
    with pytest.raises(StoreError, match="only root or this user"):
        opened.create(path, NODE, "hsm", "pkcs11", {**token, "module": str(library)}, Secret(b"1234"))
    assert not path.exists()


# ── the file ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_vault_of_another_node_version_or_owner_is_refused(path: Path) -> None:
    opened.create(path, NODE, "night", "passphrase", {}, secret())
    with pytest.raises(StoreError, match="of node a"):
        opened.open_with(path, NodeId("b"), "night", (secret(),))
    with pytest.raises(StoreError, match="there is one already"):
        opened.create(path, NODE, "night", "passphrase", {}, secret())
    text = path.read_text()
    for wrong, why in ((text.replace('"version": 1', '"version": 2'), "version 2"), ("{", "not a vault file")):
        path.write_text(wrong)
        with pytest.raises(StoreError, match=why):
            opened.open_with(path, NODE, "night", (secret(),))
    path.write_text(text)
    path.chmod(0o666)
    with pytest.raises(StoreError, match="nobody else can write"):
        opened.open_with(path, NODE, "night", (secret(),))


def test_nothing_in_the_file_can_be_changed_or_moved(path: Path) -> None:
    vault, _ = opened.create(path, NODE, "night", "passphrase", {}, secret())
    vault.add("day", "passphrase", {}, secret(b"another long passphrase"))
    file = vaultfile.read(path, NODE)
    night, day = file.unsealers
    from msgspec.structs import replace

    forged = (
        [replace(night, name="day")],
        [replace(night, wrapped=day.wrapped)],
        [replace(night, parameters={**night.parameters, "iterations": 2})],
        [replace(night, parameters={**night.parameters, "memory_kib": 8})],
        [replace(night, parameters={})],
    )
    for unsealers in forged:
        vaultfile.write(path, replace(file, unsealers=unsealers))
        with pytest.raises((AuthenticationFailed, StoreError)):
            opened.open_with(path, NODE, unsealers[0].name, (secret(),))
    vaultfile.write(path, replace(file, vault="00" * 16))
    with pytest.raises(AuthenticationFailed):
        opened.open_with(path, NODE, "night", (secret(),))
    vaultfile.write(path, replace(file, keks=file.keks[:-1] + bytes([file.keks[-1] ^ 1])))
    with pytest.raises(StoreError, match="damaged"):
        opened.open_with(path, NODE, "night", (secret(),))
    vaultfile.write(path, file)
    assert opened.open_with(path, NODE, "night", (secret(),)).kek == vault.kek


def test_what_a_removed_unsealer_could_open_is_overwritten_on_the_disk(path: Path) -> None:
    vault, _ = opened.create(path, NODE, "night", "passphrase", {}, secret())
    vault.add("day", "passphrase", {}, secret(b"another long passphrase"))
    with path.open("rb") as old:
        vault.remove("night")
        assert set(old.read()) == {0}
    with pytest.raises(RequestRefused, match="no night"):
        opened.open_with(path, NODE, "night", (secret(),))


# ── one share at a time ─────────────────────────────────────────────────────────────────────────────────────


def test_shares_come_one_at_a_time_and_open_when_there_are_enough(keys: Keys, clock: StandingClock) -> None:
    vault, shares = opened.create(keys.path, NODE, "board", "shares", {"needed": 3, "count": 5})
    unsealing = Unsealing(keys, clock)
    assert unsealing.without_help(pytest.fail) is None
    assert unsealing.offer(shares[4]) is None
    assert unsealing.offer(shares[4]) is None
    assert unsealing.offer(shares[1]) is None
    assert unsealing.progress() == {"board": 2}
    found = unsealing.offer(shares[2])
    assert found is not None
    assert (found.kek, unsealing.progress()) == (vault.kek, {})


def test_a_forged_share_opens_nothing_and_all_begin_again(keys: Keys, clock: StandingClock) -> None:
    _, shares = opened.create(keys.path, NODE, "board", "shares", {"needed": 2, "count": 3})
    identifier = vaultfile.read(keys.path, NODE).vault
    forged = sharetext.encode(sharetext.Share(identifier, "board", 2, 2, Secret(bytes(32))))
    unsealing = Unsealing(keys, clock)
    assert unsealing.offer(Secret(shares[0].reveal())) is None
    with pytest.raises(AuthenticationFailed, match="does not open"):
        unsealing.offer(forged)
    assert unsealing.progress() == {}
    assert unsealing.offer(Secret(shares[1].reveal())) is None
    with pytest.raises(AuthenticationFailed, match="another one of that number"):
        unsealing.offer(sharetext.encode(sharetext.Share(identifier, "board", 2, 2, Secret(bytes(32)))))
    with pytest.raises(AuthenticationFailed, match="does not have any more"):
        unsealing.offer(sharetext.encode(sharetext.Share(identifier, "board", 3, 2, Secret(bytes(32)))))
    assert unsealing.offer(Secret(shares[2].reveal())) is not None


def test_shares_that_nobody_completes_are_forgotten(keys: Keys, clock: StandingClock) -> None:
    _, shares = opened.create(keys.path, NODE, "board", "shares", {"needed": 2, "count": 3})
    unsealing = Unsealing(keys, clock)
    unsealing.offer(shares[0])
    clock.now_s += SHARES_WAIT_S
    assert unsealing.progress() == {}
    assert shares[0].reveal() == bytes(len(shares[0]))


def test_a_passphrase_needs_no_name_while_there_is_one(keys: Keys, clock: StandingClock) -> None:
    vault, _ = opened.create(keys.path, NODE, "night", "passphrase", {}, secret())
    unsealing = Unsealing(keys, clock)
    assert unsealing.offer(secret()) is not None
    vault.add("day", "passphrase", {}, secret(b"another long passphrase"))
    with pytest.raises(RequestRefused, match="night, day"):
        unsealing.offer(secret())
    assert unsealing.offer(secret(), "night") is not None
    with pytest.raises(RequestRefused, match="no noon"):
        unsealing.offer(secret(), "noon")


# ── a store with a bare KEK file ────────────────────────────────────────────────────────────────────────────


def test_a_store_with_a_bare_kek_gets_a_vault_and_a_new_kek(keys: Keys, clock: StandingClock) -> None:
    handle = os.open(keys.bare, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(handle, KEK_OCTETS)
    os.close(handle)
    KeyStore.open(keys.store, NODE, Secret(KEK_OCTETS), clock).close()
    assert keys.is_bare
    assert keys.status()["unsealers"][0]["is_laboratory"]
    vault, _ = keys.make("night", "passphrase", {}, secret())
    assert not keys.bare.exists()
    with pytest.raises(StoreError, match="under this KEK"):
        KeyStore.open(keys.store, NODE, Secret(KEK_OCTETS), clock)
    KeyStore.open(keys.store, NODE, vault.kek, clock).close()
    assert opened.open_with(keys.path, NODE, "night", (secret(),)).previous is None
