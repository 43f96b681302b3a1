"""Certificates in use: Python's `ssl` on 127.0.0.1, where the server demands a certificate and reads the list.

What the server says is taken from the server, and what the client says from the client: each refusal by its cause.
"""

import shutil
import socket
import ssl
import subprocess
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from deploy.provision.certificates import Issuer, site_certificate, span_of
from deploy.provision.keys import create_tls_key, private_pem
from tests.support.authorities import NOW, admit, end, make_authority, renew_same, serve


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An authority with a server and the sites north and south; another one, with north and a server of its own."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("ours", "theirs"):
        authority = make_authority(folder / name)
        serve(authority, folder / f"{name}-server")
        admit(authority, "north", folder / f"{name}-north")
    admit(folder / "ours", "south", folder / "ours-south")
    return folder


def server_side(world, server="ours-server", authority="ours"):
    """Return what a proxy at the centre does: it demands a certificate of this authority that is not revoked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(world / server / "server.pem", world / server / "server.key")
    context.load_verify_locations(world / authority / "ca.pem")
    context.load_verify_locations(world / authority / "crl.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF | ssl.VERIFY_X509_STRICT
    return context


def client_side(world, site=None, authority="ours", certificate="client.pem", key="client.key"):
    """Return what a hospital does: it trusts this root alone, and checks the server's name."""
    context = ssl.create_default_context(cafile=world / authority / "ca.pem")
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if site:
        context.load_cert_chain(world / site / certificate, world / site / key)
    return context


def meet(server, client, host="localhost"):
    """Return what came of a connection, as each side tells it: the name in the client's certificate, or its error."""
    said = {}
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(20)

    def serve_once():
        connection, _ = listener.accept()
        connection.settimeout(20)
        try:
            with server.wrap_socket(connection, server_side=True) as secure:
                subject = dict(part[0] for part in secure.getpeercert()["subject"])
                said["server"] = subject["commonName"]
                secure.sendall(said["server"].encode())
        except (ssl.SSLError, OSError) as error:
            said["server"] = getattr(error, "verify_message", "") or str(error)

    thread = threading.Thread(target=serve_once)
    thread.start()
    try:
        plain = socket.create_connection(listener.getsockname(), timeout=20)
        with plain, client.wrap_socket(plain, server_hostname=host) as secure:
            said["client"] = secure.recv(100).decode()
    except (ssl.SSLError, OSError) as error:
        said["client"] = getattr(error, "verify_message", "") or str(error)
    thread.join()
    listener.close()
    return said


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_site_with_its_certificate_is_let_in_and_known(world, host):
    said = meet(server_side(world), client_side(world, "ours-north"), host)
    assert said == {"server": "north", "client": "north"}


def test_nobody_without_one(world):
    said = meet(server_side(world), client_side(world))
    assert "did not return a certificate" in said["server"]


def test_a_certificate_of_another_authority(world):
    said = meet(server_side(world), client_side(world, "theirs-north"))
    assert said["server"] in {"unable to get local issuer certificate", "certificate signature failure"}


def test_a_server_of_another_authority(world):
    said = meet(server_side(world, "theirs-server", "theirs"), client_side(world, "ours-north"))
    assert said["client"] in {
        "unable to get local issuer certificate",
        "self-signed certificate in certificate chain",
        "certificate signature failure",
    }


@pytest.mark.parametrize("host", ["link.example", "127.0.0.2"])
def test_a_server_under_another_name(world, host):
    said = meet(server_side(world), client_side(world, "ours-north"), host)
    assert "ostname mismatch" in said["client"] or "IP address mismatch" in said["client"]


def test_an_expired_certificate(world, tmp_path):
    admit(world / "ours", "late", tmp_path / "late", days=10, now=NOW - timedelta(days=11))
    assert (
        meet(server_side(world), client_side(world, tmp_path / "late"))["server"] == "certificate has expired"
    )


def test_an_expired_server(world, tmp_path):
    serve(world / "ours", tmp_path / "late", now=NOW - timedelta(days=366))
    said = meet(server_side(world, tmp_path / "late"), client_side(world, "ours-north"))
    assert said["client"] == "certificate has expired"


@pytest.mark.parametrize(("minutes", "expected"), [(4, "ahead-4"), (6, "certificate is not yet valid")])
def test_a_clock_may_be_five_minutes_behind(world, tmp_path, minutes, expected):
    """The authority's clock was some minutes ahead of the server's when it issued this certificate."""
    admit(
        world / "ours",
        f"ahead-{minutes}",
        tmp_path / "ahead",
        now=datetime.now(UTC) + timedelta(minutes=minutes),
    )
    assert meet(server_side(world), client_side(world, tmp_path / "ahead"))["server"] == expected


def test_a_revoked_certificate_and_the_one_after_it(world, tmp_path):
    admit(world / "ours", "west", tmp_path / "west")
    renew_same(world / "ours", "west", tmp_path / "west" / "second.pem")
    second = client_side(world, tmp_path / "west", certificate="second.pem")
    before = server_side(world)
    end(world / "ours", "west", keep_newest=True)
    after = server_side(world)
    assert meet(before, client_side(world, tmp_path / "west"))["server"] == "west"
    assert meet(after, client_side(world, tmp_path / "west"))["server"] == "certificate revoked"
    assert meet(after, second)["server"] == "west"
    assert meet(after, client_side(world, "ours-north"))["server"] == "north"


def test_a_server_that_has_no_list_lets_nobody_in(world):
    """So that a list that was forgotten is noticed at once."""
    context = server_side(world)
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    bare.load_cert_chain(world / "ours-server/server.pem", world / "ours-server/server.key")
    bare.load_verify_locations(world / "ours/ca.pem")
    bare.verify_mode, bare.verify_flags = context.verify_mode, context.verify_flags
    assert meet(bare, client_side(world, "ours-north"))["server"] == "unable to get certificate CRL"


def test_a_site_cannot_be_the_server(world):
    """Its certificate is for connecting alone: another hospital would refuse it by its purpose."""
    impostor = server_side(world)
    impostor.load_cert_chain(world / "ours-north/client.pem", world / "ours-north/client.key")
    client = client_side(world, "ours-south")
    client.check_hostname = False
    assert meet(impostor, client)["client"] in {
        "unsuitable certificate purpose",
        "unsupported certificate purpose",
    }


def test_the_server_cannot_be_a_site(world):
    said = meet(
        server_side(world), client_side(world, "ours-server", certificate="server.pem", key="server.key")
    )
    assert said["server"] in {"unsuitable certificate purpose", "unsupported certificate purpose"}


def test_a_site_cannot_make_certificates(world, tmp_path):
    """North signs one for a site of its own making and sends the whole chain."""
    north = world / "ours-north"
    key = create_tls_key()
    issuer = Issuer(
        certificate=x509.load_pem_x509_certificate((north / "client.pem").read_bytes()),
        key=serialization.load_pem_private_key((north / "client.key").read_bytes(), None),
    )
    made = site_certificate(key.public_key(), "south", span_of(NOW, 10), issuer)
    chain = made.public_bytes(serialization.Encoding.PEM) + (north / "client.pem").read_bytes()
    (tmp_path / "client.pem").write_bytes(chain)
    (tmp_path / "client.key").write_bytes(private_pem(key))
    said = meet(server_side(world), client_side(world, tmp_path))
    assert said["server"] in {"invalid CA certificate", "path length constraint exceeded"}


def test_openssl_agrees(world, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl")
    admit(world / "ours", "east", tmp_path / "east")

    def verify(file, purpose):
        ours = world / "ours"
        done = subprocess.run(
            ["openssl", "verify", "-x509_strict", "-CAfile", ours / "ca.pem", "-crl_check", "-CRLfile",
             ours / "crl.pem", "-purpose", purpose, file],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout + done.stderr

    east = tmp_path / "east/client.pem"
    assert verify(east, "sslclient").endswith("client.pem: OK\n")
    assert verify(world / "ours-server/server.pem", "sslserver").endswith("server.pem: OK\n")
    assert "purpose" in verify(east, "sslserver")
    end(world / "ours", "east")
    assert "certificate revoked" in verify(east, "sslclient")
