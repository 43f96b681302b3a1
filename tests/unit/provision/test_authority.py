"""The authority's folder: made whole and once, guarded by its lock, refused where it is not what was written."""

import shutil
import threading
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from filelock import FileLock

from deploy.provision import authority as module
from deploy.provision.authority import create, read_authority, span_within, writing
from deploy.provision.failures import AuthorityError, InputError
from deploy.provision.issuing import read_request, sign
from deploy.provision.site import make_keys
from tests.support.authorities import NAME, NOW, admit, contents, end, make_authority, term


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """An authority with north and south, south revoked."""
    folder = tmp_path_factory.mktemp("authority")
    made = make_authority(folder / "ours")
    for site in ("north", "south"):
        admit(made, site, folder / site)
    shutil.copy(made / "register.jsonl", folder / "older.jsonl")
    end(made, "south", "key-compromise")
    return folder


@pytest.fixture
def ours(original, tmp_path):
    return shutil.copytree(original / "ours", tmp_path / "ours")


def test_the_root_signs_and_does_nothing_else(tmp_path):
    root = create(tmp_path / "ca", NAME, days=3650, passphrase=None, now=NOW)
    assert root.subject.rfc4514_string() == f"CN={NAME}"
    assert isinstance(root.public_key().curve, ec.SECP256R1)
    found = {type(extension.value): extension for extension in root.extensions}
    assert found.keys() == {x509.BasicConstraints, x509.KeyUsage, x509.SubjectKeyIdentifier}
    assert found[x509.BasicConstraints].critical
    assert found[x509.BasicConstraints].value == x509.BasicConstraints(ca=True, path_length=0)
    usage = found[x509.KeyUsage].value
    assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, False)
    assert root.not_valid_after_utc == NOW.replace(microsecond=0) + timedelta(days=3650)


def test_it_is_made_whole_and_private(tmp_path):
    create(tmp_path / "ca", NAME, days=10, passphrase=None, now=NOW)
    modes = {
        path.name: f"{path.stat().st_mode & 0o777:o}"
        for path in (tmp_path / "ca", *(tmp_path / "ca").iterdir())
    }
    assert modes == {
        "ca": "700",
        "ca.key": "600",
        "register.jsonl": "600",
        ".lock": "600",
        "ca.pem": "644",
        "crl.pem": "644",
    }
    made = read_authority(tmp_path / "ca")
    assert (made.name, made.register.issued, made.published) == (NAME, (), set())


def test_it_is_made_once(ours):
    before = contents(ours)
    with pytest.raises(InputError, match="ours: exists already, and nothing is overwritten"):
        create(ours, NAME, days=10, passphrase=None, now=NOW)
    assert contents(ours) == before


@pytest.mark.parametrize("name", ["", " x", "x ", "a" * 65, "a\nb", "a/CN=b", "Ä"])
def test_names_of_a_consortium(tmp_path, name):
    with pytest.raises(InputError, match="must be 1 to 64 letters"):
        create(tmp_path / "ca", name, days=10, passphrase=None, now=NOW)
    assert not list(tmp_path.iterdir())


def test_its_key_is_encrypted_with_a_passphrase(tmp_path):
    create(tmp_path / "ca", NAME, days=10, passphrase=b"correct horse", now=NOW)
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in (tmp_path / "ca/ca.key").read_bytes()
    with writing(tmp_path / "ca", b"correct horse") as (_, issuer):
        assert issuer.key.public_key() == issuer.certificate.public_key()
    with pytest.raises(InputError, match="give --passphrase-file"):
        writing(tmp_path / "ca", None).__enter__()


def test_a_folder_without_one(tmp_path):
    with pytest.raises(
        InputError, match="there is no authority; make one: python -m deploy provision authority"
    ):
        writing(tmp_path, None).__enter__()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "source", "words"),
    [
        ("ca.key", "theirs/ca.key", r"ca\.key: is not the key of ca\.pem"),
        ("crl.pem", "theirs/crl.pem", r"crl\.pem: is not of this authority"),
        ("crl.pem", "ours/ca.pem", "is damaged; restore both"),
        ("ca.pem", "ours/crl.pem", "is damaged; restore both"),
        ("ca.pem", "theirs/ca.pem", r"crl\.pem: is not of this authority"),
        ("register.jsonl", "older.jsonl", "an older copy was put back; restore the newest one"),
    ],
)
def test_what_was_not_written_is_refused_before_anything_is(  # noqa: PLR0917
    original, ours, tmp_path, name, source, words
):
    make_authority(tmp_path / "theirs")
    folder = tmp_path if source.startswith("theirs") else original
    shutil.copyfile(folder / source, ours / name)
    file, _ = make_keys("west", tmp_path / "west", None)
    before = contents(ours)
    with pytest.raises(AuthorityError, match=words):
        sign(ours, read_request(file), tmp_path / "west.pem", term())
    assert contents(ours) == before
    assert not (tmp_path / "west.pem").exists()


def test_who_writes_waits_for_who_writes(ours, monkeypatch):
    monkeypatch.setattr(module, "LOCK_TIMEOUT_S", 0.1)
    with (
        FileLock(ours / ".lock"),
        pytest.raises(AuthorityError, match="another `provision` has been writing"),
    ):
        writing(ours, None).__enter__()
    with writing(ours, None):
        pass


def test_two_that_sign_at_once_lose_nothing(ours, tmp_path):
    """Six threads that begin together: each entry is there, and each file that was handed over is one of them."""
    sites = [f"site-{number}" for number in range(6)]
    requests = [read_request(make_keys(site, tmp_path / site, None)[0]) for site in sites]
    begin = threading.Barrier(len(sites))

    def issue(request):
        begin.wait()
        sign(ours, request, tmp_path / f"{request.site}.pem", term())

    threads = [threading.Thread(target=issue, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    issued = {one.name: one.pem for one in read_authority(ours).register.issued}
    assert issued.keys() == {"north", "south", *sites}
    assert all((tmp_path / f"{site}.pem").read_bytes() == issued[site] for site in sites)


def test_no_certificate_outlasts_the_root(ours):
    root = read_authority(ours).root
    left = 3650 - 1000  # as `make_authority` makes it
    assert span_within(root, left, NOW).not_after <= root.not_valid_after_utc
    with pytest.raises(InputError, match=rf"--days {left + 1}: the root itself is good for {left} more days"):
        span_within(root, left + 1, NOW)
