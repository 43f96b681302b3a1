"""Private keys: formats, modes, passphrases; Flower's own loaders read what we write."""

import argparse
import importlib
import stat

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from deploy.provision.failures import AuthorityError, InputError
from deploy.provision.keys import (
    create_node_key,
    create_tls_key,
    load_tls_key,
    private_openssh,
    private_pem,
    read_passphrase,
)
from deploy.provision.site import make_keys
from privacy.errors import SigningError
from privacy.signing import create_key, write_secret


@pytest.fixture
def site(tmp_path):
    make_keys("north", tmp_path / "north", None)
    return tmp_path / "north"


def test_secrets_are_their_owners_alone(site):
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (site, *site.iterdir())}
    assert modes == {
        "north": 0o700,
        "client.key": 0o600,
        "supernode": 0o600,
        "supernode.pub": 0o644,
        "north.request.json": 0o644,
    }


@pytest.fixture
def flower(monkeypatch):
    """What `flower-supernode --auth-supernode-private-key` and `flwr supernode register` call in Flower 1.41.

    Its way out is replaced: Flower would end the process, also from a thread of its own some seconds later.
    """

    def end(code, message):
        raise RuntimeError(message)

    node = importlib.import_module("flwr.supernode.cli.flower_supernode")
    register = importlib.import_module("flwr.cli.supernode.register")
    for module in (node, register):
        monkeypatch.setattr(module, "flwr_exit", end)
    return node._try_setup_client_authentication, register.try_load_public_key


def options(key):
    return argparse.Namespace(auth_supernode_private_key=str(key), auth_supernode_public_key=None)


def test_flower_loads_the_key_of_the_supernode(site, flower):
    load, load_public = flower
    private, public = load(options(site / "supernode"))
    assert isinstance(private.curve, ec.SECP384R1)
    assert serialization.load_pem_public_key(load_public(site / "supernode.pub")) == public


def test_flower_does_not_load_the_other_key(site, flower):
    """So the test above can fail."""
    with pytest.raises(RuntimeError, match="Unable to parse the private key file"):
        flower[0](options(site / "client.key"))


def test_nothing_private_is_in_what_is_sent(site):
    sent = (site / "north.request.json").read_bytes()
    for name in ("client.key", "supernode"):
        content = (site / name).read_bytes()
        load = (
            serialization.load_ssh_private_key if name == "supernode" else serialization.load_pem_private_key
        )
        secret = load(content, None).private_numbers().private_value
        raw = secret.to_bytes((secret.bit_length() + 7) // 8, "big")
        assert raw not in sent
        assert raw.hex().encode() not in sent
        assert not any(line in sent for line in content.splitlines()[1:-1] if len(line) > 60)
    assert b"PRIVATE" not in sent


def test_of_the_ledgers_key_the_public_part_is_sent(tmp_path):
    key = create_key(tmp_path / "key.pem")
    file, _ = make_keys("north", tmp_path / "north", tmp_path / "key.pem")
    assert f'"ledger":"{key.public}"' in file.read_text()
    (tmp_path / "key.pem").chmod(0o640)
    with pytest.raises(SigningError, match="others can read it"):
        make_keys("south", tmp_path / "south", tmp_path / "key.pem")
    assert not (tmp_path / "south").exists()


def test_each_site_has_keys_of_its_own(site, tmp_path):
    make_keys("north", tmp_path / "again", None)
    for name in ("client.key", "supernode"):
        assert (site / name).read_bytes() != (tmp_path / "again" / name).read_bytes()


def secret(path, content):
    write_secret(path, content)
    return path


def test_a_passphrase_protects_the_key(tmp_path):
    key = create_tls_key()
    file = secret(tmp_path / "ca.key", private_pem(key, b"correct horse battery"))
    assert load_tls_key(file, b"correct horse battery").private_numbers() == key.private_numbers()
    with pytest.raises(InputError, match=r"ca\.key: needs its passphrase; give --passphrase-file"):
        load_tls_key(file, None)
    with pytest.raises(InputError, match="this is not its passphrase"):
        load_tls_key(file, b"correct horse batterx")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"x", "not a private key in PEM"),
        (private_openssh(create_node_key()), "not a private key in PEM"),
        (private_pem(create_node_key()), "another kind of key than P-256"),
        (
            ed25519.Ed25519PrivateKey.generate().private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            "another kind of key than P-256",
        ),
    ],
)
def test_another_key_is_refused(tmp_path, content, words):
    with pytest.raises(AuthorityError, match=words):
        load_tls_key(secret(tmp_path / "ca.key", content), None)


def test_a_passphrase_that_is_not_needed_is_said(tmp_path):
    file = secret(tmp_path / "ca.key", private_pem(create_tls_key()))
    with pytest.raises(InputError, match="has no passphrase; leave out"):
        load_tls_key(file, b"correct horse battery")


def test_a_key_that_others_can_read_is_refused(tmp_path):
    file = secret(tmp_path / "ca.key", private_pem(create_tls_key()))
    file.chmod(0o644)
    with pytest.raises(SigningError, match="others can read it"):
        load_tls_key(file, None)


def test_passphrases_are_one_line_and_not_short(tmp_path):
    assert read_passphrase(None) is None
    assert read_passphrase(secret(tmp_path / "a", b"correct horse\nmore\n")) == b"correct horse"
    for number, content in enumerate((b"", b"\n", b"11 letters.\n")):
        with pytest.raises(InputError, match="at least 12 characters"):
            read_passphrase(secret(tmp_path / str(number), content))
    (tmp_path / "a").chmod(0o604)
    with pytest.raises(SigningError, match="others can read it"):
        read_passphrase(tmp_path / "a")
