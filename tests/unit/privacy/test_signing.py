"""Keys at rest, signatures that serve one purpose, and envelopes (DSSE) against the example of its specification."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy import signing
from privacy.errors import SigningError
from privacy.signing import (
    AUDIT_TYPE,
    SigningKey,
    create_key,
    generate_key,
    load_key,
    message,
    read_secret,
    seal,
    unseal,
    verify,
    write_secret,
)

DOCUMENT = {"b": 1, "a": [1.5, None, "é"]}


def test_what_is_signed_by_hand():
    assert (
        message("ledger-head", DOCUMENT) == b'federated-vae/ledger-head/1\n{"a":[1.5,null,"\xc3\xa9"],"b":1}'
    )


def test_the_signature_of_rfc_8032():
    # Section 7.1, test 2: one byte, 0x72.
    secret = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(secret))
    assert key.public == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    assert key.sign_bytes(b"\x72").hex() == (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )


def test_a_signature_serves_one_key_one_document_and_one_purpose():
    key = generate_key()
    signature = key.sign("ledger-head", DOCUMENT)
    assert verify(key.public, signature, "ledger-head", DOCUMENT)
    assert not verify(key.public, signature, "cap-change", DOCUMENT)
    assert not verify(key.public, signature, "ledger-head", {**DOCUMENT, "b": 2})
    assert not verify(generate_key().public, signature, "ledger-head", DOCUMENT)
    bent = f"{int(signature[0], 16) ^ 1:x}{signature[1:]}"
    assert not verify(key.public, bent, "ledger-head", DOCUMENT)


@pytest.mark.parametrize("signature", ["", "00", "zz", "0" * 127, "0" * 130, None, 5])
@pytest.mark.parametrize("public", ["", "00", "zz" * 32, "f" * 64, None])
def test_nonsense_is_no_signature_and_no_error(public: Any, signature: Any):
    assert not verify(public, signature, "ledger-head", DOCUMENT)
    assert not verify(generate_key().public, signature, "ledger-head", DOCUMENT)


def test_a_document_without_canonical_form_is_not_signed_by_anybody():
    key = generate_key()
    for value in (2**60, float("nan"), "\ud800"):
        assert not verify(key.public, "0" * 128, "ledger-head", {"a": value})


def test_a_key_rests_readable_by_its_owner_alone(tmp_path: Path):
    path = tmp_path / "keys" / "site.pem"
    made = create_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_key(path).public == made.public
    assert verify(made.public, load_key(path).sign("x", DOCUMENT), "x", DOCUMENT)
    before = path.read_bytes()
    with pytest.raises(SigningError, match="exists already, and a secret is never overwritten"):
        create_key(path)
    assert path.read_bytes() == before


def test_a_key_shows_no_secret(tmp_path: Path):
    made = create_key(tmp_path / "site.pem")
    assert repr(made) == f"SigningKey({made.public[:16]}...)"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o602, 0o610])
def test_a_key_that_others_can_read_is_not_used(tmp_path: Path, mode: int):
    path = tmp_path / "site.pem"
    create_key(path)
    path.chmod(mode)
    with pytest.raises(SigningError, match=rf"others can read it \(mode {mode:o}\); chmod 600"):
        load_key(path)


def test_a_file_that_is_no_key_is_named(tmp_path: Path):
    with pytest.raises(SigningError, match="No such file or directory"):
        load_key(tmp_path / "missing")
    with pytest.raises(SigningError, match="Is a directory"):
        load_key(tmp_path)
    for number, (content, named) in enumerate(
        (
            (b"", "not a private key in PEM"),
            (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "not a private key in PEM"),
            (_pem(ec.generate_private_key(ec.SECP256R1())), "holds another kind of key"),
            (_pem(rsa.generate_private_key(65537, 2048)), "holds another kind of key"),
            (_pem(Ed25519PrivateKey.generate(), b"secret"), "without a password"),
        )
    ):
        path = tmp_path / str(number)
        write_secret(path, content)
        with pytest.raises(SigningError, match=named):
            load_key(path)


def _pem(key: Any, password: bytes | None = None) -> bytes:
    """Return another key as PEM."""
    encryption = (
        serialization.NoEncryption() if password is None else serialization.BestAvailableEncryption(password)
    )
    pem: bytes = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    return pem


def test_a_secret_is_written_whole(tmp_path: Path):
    content = os.urandom(100)
    write_secret(tmp_path / "salt", content)
    assert read_secret(tmp_path / "salt") == content


# --- envelopes --------------------------------------------------------------------------------------------


def test_what_an_envelope_signs_is_the_example_of_dsse():
    signed = signing._pre_authentication("http://example.com/HelloWorld", b"hello world")
    assert signed == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_an_envelope_by_hand():
    key = generate_key()
    envelope = seal(b"hello world", key, payload_type="http://example.com/HelloWorld")
    (signature,) = envelope["signatures"]
    assert envelope["payload"] == "aGVsbG8gd29ybGQ="
    assert envelope["payloadType"] == "http://example.com/HelloWorld"
    assert signature["keyid"] == key.public
    expected = key.sign_bytes(b"DSSEv1 29 http://example.com/HelloWorld 11 hello world")
    assert base64.b64decode(signature["sig"]) == expected


def test_an_envelope_gives_back_what_its_signer_put_in():
    key = generate_key()
    sealed = json.dumps(seal(b'{"a":1}', key))
    assert unseal(sealed, key.public) == b'{"a":1}'
    assert unseal(sealed.encode(), key.public) == b'{"a":1}'
    with pytest.raises(SigningError, match="not signed by"):
        unseal(sealed, generate_key().public)


def test_one_right_signature_among_several_is_enough():
    key, other = generate_key(), generate_key()
    both = seal(b"x", other)
    both["signatures"] += seal(b"x", key)["signatures"]
    assert unseal(json.dumps(both), key.public) == unseal(json.dumps(both), other.public) == b"x"


def test_an_envelope_of_another_type_is_not_taken_for_this_one():
    key = generate_key()
    sealed = json.dumps(seal(b"x", key, payload_type="application/vnd.something-else"))
    with pytest.raises(
        SigningError, match=r"holds 'application/vnd\.something-else', not application/vnd\.federated"
    ):
        unseal(sealed, key.public)
    assert unseal(sealed, key.public, payload_type="application/vnd.something-else") == b"x"
    relabelled = {**json.loads(sealed), "payloadType": AUDIT_TYPE}  # the type is part of what is signed
    with pytest.raises(SigningError, match="not signed by"):
        unseal(json.dumps(relabelled), key.public)


@pytest.mark.parametrize(
    "change",
    [
        {"payload": base64.b64encode(b"y").decode()},
        {"payload": "eA="},
        {"payload": "é"},
        {"payload": None},
        {"payloadType": "\ud800"},
        {"payloadType": 5},
        {"payloadType": None},
        {"signatures": []},
        {"signatures": None},
        {"signatures": "x"},
        {"signatures": [None, 5, {}]},
        {"signatures": [{"sig": "!!"}]},
        {"signatures": [{"sig": ""}]},
        {"extra": 1},
    ],
)
def test_an_envelope_that_was_changed_is_refused(change: dict[str, Any]):
    key = generate_key()
    envelope = seal(b"x", key) | change
    with pytest.raises(SigningError, match="envelope"):
        unseal(json.dumps(envelope), key.public)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{}", "{", b"\xff", '{"payload":1,"payload":1}', "[" * 100_000]
)
def test_what_is_no_envelope_is_refused(text: str | bytes):
    with pytest.raises(SigningError, match="not a signed envelope"):
        unseal(text, generate_key().public)
