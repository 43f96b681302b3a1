"""Checks of secrets: who can read them, whose they are, and whether everybody can replace them."""

import os
import shutil
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from deploy.doctor import keys
from tests.support.doctors import authority, connection, look, only, visit


def write_key(file, key=None, *, form=PrivateFormat.OpenSSH):
    key = key or ec.generate_private_key(ec.SECP384R1())
    file.write_bytes(key.private_bytes(Encoding.PEM, form, NoEncryption()))
    file.chmod(0o600)


@pytest.fixture
def there(tmp_path):
    """A hospital with all its secrets, as they should be."""
    tmp_path.chmod(0o700)
    client = authority().issue_cert("north@hospital.example")
    made = visit(tmp_path, connection(tmp_path, "a:1", client=client, supernode_key="node"))
    for name in ("salt", "key.pem", "ledger.sqlite"):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(0o600)
    write_key(tmp_path / "node")
    return made


SECRETS = {
    "salt": "salt",
    "key.pem": "key",
    "client-key.pem": "connection.key",
    "node": "connection.supernode_key",
}


def test_secrets_as_they_should_be(there):
    assert only(keys.mode, there).severity == "ok"


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_secret_that_others_can_use(there, tmp_path, name, mode):
    (tmp_path / name).chmod(mode)
    found = only(keys.mode, there)
    assert found.severity == "error"
    assert found.found == f"`{SECRETS[name]}` has mode {mode:o}: others than its owner can use it"
    assert found.fix.startswith(f"chmod 600 {tmp_path / name}")


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_that_is_gone(there, tmp_path, name):
    (tmp_path / name).unlink()
    found = only(keys.mode, there)
    assert (found.severity, found.fix) == ("error", f"restore {tmp_path / name}")


def test_before_the_ledger_begins_its_secrets_are_not_missed(there, tmp_path):
    for name in ("ledger.sqlite", "salt", "key.pem"):
        (tmp_path / name).unlink()
    assert [each.severity for each in look(keys.mode, there)] == ["note", "note"]
    (tmp_path / "node").unlink()
    assert [each.severity for each in look(keys.mode, there)] == ["note", "note", "error"]


def test_secrets_of_somebody_else(there, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    found = look(keys.mode, there)
    assert {each.severity for each in found} == {"error"}
    assert len(found) == len(SECRETS)
    assert "belongs to another user" in found[0].found


@pytest.mark.parametrize(("mode", "severity"), [(0o770, "ok"), (0o777, "error"), (0o1777, "error")])
def test_a_folder_that_everybody_can_write_to(there, tmp_path, mode, severity):
    tmp_path.chmod(mode)
    found = only(keys.mode, there)
    assert found.severity == severity
    assert severity == "ok" or found.fix == f"chmod o-w {tmp_path}"


def test_all_of_it_at_once(there, tmp_path):
    for name in SECRETS:
        (tmp_path / name).chmod(0o644)
    tmp_path.chmod(0o777)
    assert len(look(keys.mode, there)) == len(SECRETS) + 1


def test_a_key_that_flower_accepts(there, tmp_path):
    assert only(keys.supernode_key, there).severity == "ok"
    write_key(tmp_path / "node", ec.generate_private_key(ec.SECP256R1()))
    assert only(keys.supernode_key, there).severity == "ok"


def test_keys_that_flower_does_not(there, tmp_path):
    node = tmp_path / "node"
    write_key(node, ed25519.Ed25519PrivateKey.generate())
    assert "another kind of key" in only(keys.supernode_key, there).found
    write_key(node, form=PrivateFormat.PKCS8)
    assert "no OpenSSH key without a password" in only(keys.supernode_key, there).found
    node.write_text("nothing")
    assert only(keys.supernode_key, there).severity == "error"
    node.unlink()
    found = only(keys.supernode_key, there)
    assert f'ssh-keygen -t ecdsa -b 384 -N "" -f {node}' in found.fix


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen to make such a key")
def test_a_key_with_a_password(there, tmp_path):
    (tmp_path / "node").unlink()
    command = ["ssh-keygen", "-q", "-t", "ecdsa", "-N", "hunter2", "-f", str(tmp_path / "node")]
    subprocess.run(command, check=True)
    assert "without a password" in only(keys.supernode_key, there).found


def test_without_a_supernode_key(tmp_path):
    there = visit(tmp_path, connection(tmp_path, "a:1"))
    assert only(keys.supernode_key, there).severity == "skipped"
