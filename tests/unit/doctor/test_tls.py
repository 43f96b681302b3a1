"""Checks of TLS against a server on 127.0.0.1: who is refused, and why; days left; the client's pair; the clock."""

import ssl
import time
from datetime import UTC, datetime, timedelta

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.doctor import server as server_checks
from deploy.doctor import tls
from deploy.doctor.running import examine
from tests.support.doctors import (
    HOST,
    authority,
    centre,
    connection,
    http,
    listening,
    look,
    only,
    silent,
    visit,
)

YESTERDAY, TOMORROW = (datetime.now(UTC) + timedelta(days=days) for days in (-1, 1))
CLIENT = authority().issue_cert("north@hospital.example")
STRANGER = authority("other").issue_cert("north@hospital.example")
DAY_S = 86_400.0


def chain(folder, talk, **more):
    with listening(talk) as server:
        there = visit(folder, connection(folder, server.address, **more), timeout_s=2.0)
        return only(tls.chain, there)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_server_as_it_should_be(tmp_path, version):
    found = chain(tmp_path, centre(tls=version))
    assert found.severity == "ok"
    assert "certified by the consortium's root" in found.found
    assert found.found.startswith(version.name.replace("_", "."))


@pytest.mark.parametrize(
    ("certificate", "words", "way_out"),
    [
        (authority().issue_cert(HOST, not_after=YESTERDAY), "has expired", "this machine's clock, which reads 20"),
        (authority().issue_cert(HOST, not_before=TOMORROW), "is not valid yet", "check this machine's clock"),
        (authority("other").issue_cert(HOST), "does not come from `connection.ca`: another CA", "`connection.ca`"),
        (authority().issue_cert("link.example"), "is not made out for 127.0.0.1", "`connection.server`"),
        (authority().issue_cert("127.0.0.2"), "is not made out for 127.0.0.1", "`connection.server`"),
    ],
    ids=["expired", "not-yet", "wrong-ca", "wrong-host", "wrong-ip"],
)  # fmt: skip
def test_why_a_server_is_refused(tmp_path, certificate, words, way_out):
    found = chain(tmp_path, centre(certificate=certificate))
    assert found.severity == "error"
    assert words in found.found
    assert way_out in found.fix


def test_a_root_that_is_not_set_is_one_that_this_machine_trusts(tmp_path):
    found = chain(tmp_path, centre(), ca=None)
    assert "does not come from a root that this machine trusts (`connection.ca` is not set)" in found.found


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_certificate_that_is_demanded(tmp_path, version):
    talk = centre(clients=authority(), tls=version)
    found = chain(tmp_path, talk)
    assert found.severity == "error"
    assert "demands a client certificate, and the site's file names none" in found.found
    assert chain(tmp_path, talk, client=CLIENT).severity == "ok"
    refused = chain(tmp_path, talk, client=STRANGER)
    assert refused.severity == "error"
    assert "refuses this hospital's client certificate (unknown ca)" in refused.found


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("<h1>400 Bad Request</h1>No required SSL certificate was sent", "demands a client certificate"),
        ("<h1>400 Bad Request</h1>The SSL certificate error", "refuses this hospital's client certificate"),
    ],
)
def test_nginx_says_it_by_http(tmp_path, body, words):
    found = chain(tmp_path, centre(answer=lambda: http("400 Bad Request", body=body)))
    assert found.severity == "error"
    assert words in found.found


def test_a_server_that_accepts_and_never_speaks(tmp_path):
    with listening(silent) as server:
        there = visit(tmp_path, connection(tmp_path, server.address), timeout_s=0.5)
        start = time.monotonic()
        found = only(tls.chain, there)
    assert found.severity == "error"
    assert "accepts the connection and then says nothing" in found.found
    assert 0.3 < time.monotonic() - start < 3


@pytest.mark.parametrize(
    ("says", "words"),
    [(b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak TLS"), (b"", "breaks off")],
)
def test_what_is_no_tls(tmp_path, says, words):
    def talk(made):
        made.recv(4096)
        made.sendall(says)

    found = chain(tmp_path, talk)
    assert found.severity == "error"
    assert words in found.found


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("ca.pem", None, "`connection.ca` cannot be read (No such file or directory)"),
        ("ca.pem", "no PEM", "`connection.ca` holds no certificate in PEM"),
        ("client.pem", None, "`connection.certificate` cannot be read"),
        ("client-key.pem", "no PEM", "`connection.certificate` and `connection.key` do not go together"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, content, words):
    with listening(centre()) as server:
        there = visit(tmp_path, connection(tmp_path, server.address, client=CLIENT), timeout_s=2.0)
        (tmp_path / name).unlink()
        if content is not None:
            (tmp_path / name).write_text(content)
        found = only(tls.chain, there)
        assert found.severity == "error"
        assert server.had(0)
    assert words in found.found


def test_a_key_with_a_password_asks_nobody(tmp_path):
    section = connection(tmp_path, "127.0.0.1:1", client=CLIENT)
    key = serialization.load_pem_private_key((tmp_path / "client-key.pem").read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"hunter2")
    (tmp_path / "client-key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    )
    there = visit(tmp_path, section)
    assert "not PEM without a password" in only(tls.chain, there).found
    assert "no private key in PEM without a password" in only(tls.client_pair, there).found


# --- days left --------------------------------------------------------------------------------------------


def days_left(folder, certificate, *, later_s=0.0, client=None):
    with listening(centre(certificate=certificate)) as server:
        section = connection(folder, server.address, client=client)
        return look(tls.days_left, visit(folder, section, now=lambda: time.time() + later_s))


@pytest.mark.parametrize(
    ("days", "severity", "words"),
    [
        (31, "ok", "30 days"),
        (29, "warning", "28 days"),
        (-1, "error", f"expired on {YESTERDAY:%Y-%m-%d}"),
    ],
)
def test_days_left_of_the_server(tmp_path, days, severity, words):
    ends = datetime.now(UTC) + timedelta(days=days)
    server, ca = days_left(tmp_path, authority().issue_cert(HOST, not_after=ends))
    assert (server.severity, ca.severity) == (severity, "ok")
    assert "the server's certificate" in server.found
    assert words in server.found


def test_dates_of_a_server_that_is_refused_are_told_all_the_same(tmp_path):
    server, _ = days_left(tmp_path, authority("other").issue_cert(HOST))
    assert "the server's certificate lasts until" in server.found


def test_days_left_of_the_files(tmp_path):
    ends = datetime.now(UTC) + timedelta(days=10)
    client = authority().issue_cert("north@hospital.example", not_after=ends)
    _, own, ca = days_left(tmp_path, None, client=client)
    assert (own.severity, ca.severity) == ("warning", "ok")
    assert "`connection.certificate` lasts until" in own.found
    assert "client.pem" in own.fix
    _, own, ca = days_left(tmp_path, None, client=client, later_s=11 * DAY_S)
    assert (own.severity, ca.severity) == ("error", "ok")
    assert f"`connection.certificate` expired on {ends:%Y-%m-%d}" in own.found


def test_days_left_of_a_root_that_is_renewed(tmp_path):
    """A file may hold the old root beside the new one: what runs out first is told."""
    section = connection(tmp_path, "127.0.0.1:1")
    old = authority().issue_cert("old", not_after=YESTERDAY).cert_chain_pems[0].bytes()
    (tmp_path / "ca.pem").write_bytes((tmp_path / "ca.pem").read_bytes() + old)
    _, ca = look(tls.days_left, visit(tmp_path, section, timeout_s=1.0))
    assert (ca.severity, ca.found) == ("error", f"`connection.ca` expired on {YESTERDAY:%Y-%m-%d}")


def test_dates_without_a_server(tmp_path):
    section = connection(tmp_path, "127.0.0.1:1", client=CLIENT)
    server, own, ca = look(tls.days_left, visit(tmp_path, section, timeout_s=1.0))
    assert [each.severity for each in (server, own, ca)] == ["skipped", "ok", "ok"]
    (tmp_path / "ca.pem").write_text("no PEM")
    assert look(tls.days_left, visit(tmp_path, section, timeout_s=1.0))[2].severity == "error"


# --- the client's pair ------------------------------------------------------------------------------------


def issued(usages):
    """Return a certificate for some usages, made without trustme, which allows all of them."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "north")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, YESTERDAY, TOMORROW)
    if usages is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    return trustme.LeafCert(
        pem, builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), []
    )


@pytest.mark.parametrize(
    ("usages", "severity"),
    [
        ([ExtendedKeyUsageOID.CLIENT_AUTH], "ok"),
        ([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE], "ok"),
        (None, "ok"),
        ([ExtendedKeyUsageOID.SERVER_AUTH], "error"),
    ],
)
def test_what_the_certificate_is_for(tmp_path, usages, severity):
    there = visit(tmp_path, connection(tmp_path, "a:1", client=issued(usages)))
    found = only(tls.client_pair, there)
    assert found.severity == severity
    assert severity == "ok" or "no extended key usage clientAuth" in found.found


def test_a_key_of_another_certificate(tmp_path):
    there = visit(tmp_path, connection(tmp_path, "a:1", client=CLIENT))
    STRANGER.private_key_pem.write_to_path(str(tmp_path / "client-key.pem"))
    assert "is not the key of `connection.certificate`" in only(tls.client_pair, there).found
    (tmp_path / "client-key.pem").unlink()
    assert "`connection.key` cannot be read" in only(tls.client_pair, there).found
    (tmp_path / "client.pem").write_text("no PEM")
    assert "`connection.certificate` cannot be read" in only(tls.client_pair, there).found


def test_without_a_client_certificate(tmp_path):
    assert only(tls.client_pair, visit(tmp_path, connection(tmp_path, "a:1"))).severity == "skipped"


# --- the server behind it ---------------------------------------------------------------------------------


def ask(folder, check, answer=None, **more):
    talk = centre(answer=answer)
    with listening(talk) as server:
        return only(check, visit(folder, connection(folder, server.address), timeout_s=2.0, **more))


@pytest.mark.parametrize(
    ("status", "severity", "words"),
    [
        ("200 OK", "ok", "answers GET /health"),
        ("502 Bad Gateway", "error", "the SuperLink behind it is not up"),
        ("404 Not Found", "error", "answers 404 to GET /health"),
        ("301 Moved", "error", "answers 301"),
    ],
)
def test_health(tmp_path, status, severity, words):
    found = ask(tmp_path, server_checks.health, lambda: http(status))
    assert found.severity == severity
    assert words in found.found


@pytest.mark.parametrize(("answer", "words"), [(b"", "breaks off"), (b"HELLO\r\n", "breaks off")])
def test_a_server_without_an_answer(tmp_path, answer, words):
    found = ask(tmp_path, server_checks.health, lambda: answer)
    assert found.severity == "error"
    assert words in found.found


def test_a_server_that_falls_silent_after_tls(tmp_path):
    def answer():
        time.sleep(3)
        return b""

    with listening(centre(answer=answer)) as server:
        there = visit(tmp_path, connection(tmp_path, server.address), timeout_s=0.8)
        found = only(server_checks.health, there)
    assert "accepts TLS and does not answer GET /health" in found.found


# A header ahead of now is a clock here that is behind, and the other way round.
@pytest.mark.parametrize(
    ("header_s", "severity", "words"),
    [
        (0, "ok", " s "),
        (-3.5, "warning", " s ahead of the server's"),
        (-8, "error", " s ahead of the server's"),
        (30, "ok", " s behind the server's"),
        (90, "warning", " s behind the server's"),
        (330, "error", " s behind the server's"),
    ],
)
def test_the_clock(tmp_path, header_s, severity, words):
    found = ask(tmp_path, server_checks.clock, lambda: http(ahead=header_s))
    assert found.severity == severity
    assert words in found.found
    told = float(found.found.split(" s ")[0].rsplit(" ", 1)[1])
    assert abs(told - abs(header_s)) <= 1.5
    assert severity == "ok" or "5 s ahead or 305 s behind" in found.found


def test_a_clock_here_that_is_wrong(tmp_path):
    found = ask(tmp_path, server_checks.clock, now=lambda: time.time() + 60)
    assert found.severity == "error"
    assert "s ahead of the server's" in found.found


@pytest.mark.parametrize(
    "answer", [lambda: http(ahead=None), lambda: b"HTTP/1.1 200 OK\r\nDate: noon\r\n\r\n"]
)
def test_no_date_to_compare_with(tmp_path, answer):
    assert ask(tmp_path, server_checks.clock, answer).severity == "skipped"


def test_while_one_check_waits_for_an_endless_answer_the_others_do_not(tmp_path):
    def drip():
        yield b"HTTP/1.1 200 OK\r\nX: "
        for _ in range(100):
            time.sleep(0.03)
            yield b"x"

    with listening(centre(answer=drip)) as server:
        there = visit(tmp_path, connection(tmp_path, server.address), timeout_s=0.3)
        start = time.monotonic()
        found = examine(there, (tls.chain, tls.days_left, server_checks.health))
        took = time.monotonic() - start
        assert server.had(1)
    assert [each.severity.value for each in found] == ["error", "skipped", "ok", "skipped"]
    assert took < 1.5


def test_one_visit_serves_all_checks(tmp_path):
    with listening(centre()) as server:
        there = visit(tmp_path, connection(tmp_path, server.address))
        for check in (tls.chain, tls.days_left, server_checks.health, server_checks.clock):
            assert {each.severity for each in look(check, there)} == {"ok"}
        assert server.had(1)
