"""Who gets a certificate: names belong to keys and keys to names, and what is refused has written nothing."""

import ipaddress
import shutil
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from deploy.provision import issuing
from deploy.provision.authority import read_authority
from deploy.provision.failures import AuthorityError, InputError, RequestError
from deploy.provision.issuing import read_request, renew, sign
from deploy.provision.keys import create_node_key, create_tls_key
from deploy.provision.request import make_request, parse_request
from deploy.provision.site import make_keys
from tests.support.authorities import NOW, admit, contents, end, make_authority, renew_same, serve, term

KEYS = {name: (create_tls_key(), create_node_key()) for name in ("north", "south", "other")}


def asks(site, tls="north", node=None):
    """Return a request for chosen keys."""
    keys = {"tls_key": KEYS[tls][0], "node_key": KEYS[node or tls][1]}
    return parse_request(make_request(site, **keys, ledger_key=None), subject="x")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """An authority that has admitted north and south."""
    folder = tmp_path_factory.mktemp("issuing")
    made = make_authority(folder / "ours")
    for site in ("north", "south"):
        sign(made, asks(site, site), folder / f"{site}.pem", term())
    return made


@pytest.fixture
def ours(original, tmp_path):
    return shutil.copytree(original, tmp_path / "ours")


def extension(one, kind):
    return one.certificate.extensions.get_extension_for_class(kind)


def test_what_is_in_a_sites_certificate(ours, tmp_path):
    one = admit(ours, "west", tmp_path / "west", days=90)
    certificate, root = one.certificate, read_authority(ours).root
    assert certificate.subject.rfc4514_string() == "CN=west"
    assert certificate.issuer == root.subject
    names = extension(one, x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["urn:federated-vae:site:west"]
    assert list(extension(one, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert extension(one, x509.BasicConstraints).value.ca is False
    own = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert extension(one, x509.AuthorityKeyIdentifier).value.key_identifier == own
    assert extension(one, x509.SubjectKeyIdentifier).value.digest != own
    now = NOW.replace(microsecond=0)
    assert certificate.not_valid_before_utc == now - timedelta(minutes=5)
    assert certificate.not_valid_after_utc == now + timedelta(days=90)
    assert certificate.serial_number.bit_length() > 100


def test_serial_numbers_do_not_repeat(ours, tmp_path):
    serials = {renew_same(ours, "north", tmp_path / f"{number}.pem").serial for number in range(8)}
    assert len(serials) == 8
    assert len({serial[:10] for serial in serials}) == 8  # random, not counted up


def test_what_is_in_a_servers_certificate(ours, tmp_path):
    one = serve(ours, tmp_path / "server", "link.Example", "10.0.0.5", "::1")
    names = extension(one, x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["link.example"]
    assert names.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address("10.0.0.5"),
        ipaddress.ip_address("::1"),
    ]
    assert list(extension(one, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    modes = {path.name: f"{path.stat().st_mode & 0o777:o}" for path in (tmp_path / "server").iterdir()}
    assert modes == {"server.key": "600", "server.pem": "644"}


def test_a_server_is_renewed_into_another_folder(ours, tmp_path):
    serve(ours, tmp_path / "server")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="server: exists already"):
        serve(ours, tmp_path / "server")
    assert contents(tmp_path) == before
    serve(ours, tmp_path / "server-2")
    assert len(read_authority(ours).register.of("server", "localhost")) == 2


LONG = ".".join(["a" * 60] * 4)


def test_a_host_may_be_longer_than_a_common_name(ours, tmp_path):
    assert serve(ours, tmp_path / "server", LONG).certificate.subject.rfc4514_string() == "CN=server"


@pytest.mark.parametrize(
    "host", ["", "*.example", "a b", "a..b", "-a.b", "a-.b", "10.0.0.300", "10.0.0.0/8", "a_b", "nörd.example", "a/b",
             "https://a", "a:8000", "a.", "a\n", LONG + ".abcdefghijk"]
)  # fmt: skip
def test_what_is_no_host(ours, tmp_path, host):
    before = contents(ours)
    with pytest.raises(InputError, match="must be a DNS name"):
        serve(ours, tmp_path / "server", "good.example", host)
    assert contents(ours) == before
    assert not (tmp_path / "server").exists()


# --- names and keys -------------------------------------------------------------------------------------


def refused(ours, request, tmp_path, error, words):
    """Sign a request that must be refused: nothing has changed, nothing is handed over."""
    before = contents(ours)
    with pytest.raises(error, match=words):
        sign(ours, request, tmp_path / "out.pem", term())
    assert contents(ours) == before
    assert not (tmp_path / "out.pem").exists()


@pytest.mark.parametrize(("tls", "node"), [("other", "other"), ("north", "other"), ("other", "north")])
def test_a_name_belongs_to_the_keys_that_it_was_issued_to(ours, tmp_path, tls, node):
    refused(
        ours, asks("north", tls, node), tmp_path, AuthorityError, "north: has a certificate for other keys"
    )


def test_after_it_was_revoked_a_name_is_free_for_other_keys(ours, tmp_path):
    end(ours, "north")
    assert sign(ours, asks("north", "other"), tmp_path / "out.pem", term()).name == "north"


def test_the_same_request_again_gives_another_certificate(ours, tmp_path):
    """Where the first was lost, or a disk failed after the register was written."""
    one = sign(ours, asks("north"), tmp_path / "out.pem", term())
    assert (tmp_path / "out.pem").read_bytes() == one.pem
    assert len(read_authority(ours).register.of("site", "north")) == 2


@pytest.mark.parametrize(("tls", "node"), [("south", "other"), ("other", "south"), ("south", "south")])
def test_a_key_belongs_to_one_name_also_when_it_was_revoked(ours, tmp_path, tls, node):
    refused(ours, asks("west", tls, node), tmp_path, AuthorityError, "a key of the request belongs to south")
    end(ours, "south")
    refused(ours, asks("west", tls, node), tmp_path, AuthorityError, "a key of the request belongs to south")


@pytest.mark.parametrize(("tls", "node"), [("north", "north"), ("north", "other"), ("other", "north")])
def test_a_compromised_key_never_comes_back(ours, tmp_path, tls, node):
    end(ours, "north", "key-compromise")
    refused(
        ours,
        asks("north", tls, node),
        tmp_path,
        AuthorityError,
        "revoked as compromised and never comes back",
    )


def test_a_key_that_was_revoked_for_another_reason_may(ours, tmp_path):
    end(ours, "north", "privilege-withdrawn")
    sign(ours, asks("north"), tmp_path / "out.pem", term())


def test_names_do_not_differ_in_capitals_alone(ours, tmp_path):
    refused(
        ours, asks("North", "other"), tmp_path, AuthorityError, "there is a site north, and names may not"
    )


def test_a_certificate_is_not_written_over_a_file(ours, tmp_path):
    (tmp_path / "mine").write_text("mine")
    before = contents(ours)
    with pytest.raises(InputError, match="mine: exists already"):
        sign(ours, asks("west", "other"), tmp_path / "mine", term())
    assert contents(ours) == before
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_validity_beyond_the_root_is_refused(ours, tmp_path):
    before = contents(ours)
    with pytest.raises(InputError, match="--days 9000: the root itself is good for"):
        sign(ours, asks("west", "other"), tmp_path / "out.pem", term(9000))
    assert contents(ours) == before


# --- renewing -------------------------------------------------------------------------------------------


def test_renewing_keeps_the_keys_and_moves_the_end(ours, tmp_path):
    first = read_authority(ours).register.of("site", "north")[0]
    one = renew(ours, "north", None, tmp_path / "out.pem", term(500))
    assert one.keys == first.keys
    assert one.serial != first.serial
    assert (one.certificate.not_valid_after_utc - NOW).days == 499
    assert (ours / "sites/north/client.pem").read_bytes() == one.pem == (tmp_path / "out.pem").read_bytes()


def test_renewing_with_a_new_request_changes_the_keys(ours, tmp_path):
    request = asks("north", "other")
    one = renew(ours, "north", request, tmp_path / "out.pem", term())
    assert one.keys == issuing._keys(request)
    assert (ours / "sites/north/supernode.pub").read_text() == f"{request.node_key}\n"
    assert [each.reason for each in read_authority(ours).register.of("site", "north")] == [None, None]


def test_only_a_site_that_has_one_is_renewed(ours, tmp_path):
    before = contents(ours)
    for site, request, error, words in (
        ("nort", None, InputError, r"nort: there is no such site; did you mean `north`\?"),
        ("xyz", None, InputError, "a new one sends a request"),
        ("north", asks("west", "other"), InputError, "--request: is of west, not of north"),
        ("north", asks("north", "south"), AuthorityError, "a key of the request belongs to south"),
    ):
        with pytest.raises(error, match=words):
            renew(ours, site, request, tmp_path / "out.pem", term())
    assert contents(ours) == before
    end(ours, "north")
    with pytest.raises(AuthorityError, match=r"north: its certificate is revoked \(superseded\)"):
        renew(ours, "north", None, tmp_path / "out.pem", term())
    assert not (tmp_path / "out.pem").exists()


def test_one_site_changes_nothing_of_another(ours, tmp_path):
    """Whole folders: south's own at the hospital, what the centre keeps of it, and its lines in the register."""
    make_keys("east", tmp_path / "east", None)
    admit(ours, "east-2", tmp_path / "east-2")

    def state():
        lines = (ours / "register.jsonl").read_bytes().splitlines()
        return (
            contents(ours / "sites/south"),
            contents(ours / "sites/east-2"),
            contents(tmp_path / "east-2"),
            lines[:3],
        )

    before = state()
    admit(ours, "west", tmp_path / "west")
    assert state() == before
    renew_same(ours, "west", tmp_path / "second.pem")
    renew(ours, "north", asks("north", "other"), tmp_path / "third.pem", term())
    assert state() == before
    end(ours, "west", "key-compromise")
    end(ours, "north", keep_newest=True)
    assert state() == before
    # The comparison can fail: south itself is renewed.
    renew_same(ours, "south", tmp_path / "fourth.pem")
    assert state() != before


def test_where_a_disk_fails_after_the_register_the_same_command_goes_through(ours, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(issuing, "write_atomically", fail)
        with pytest.raises(OSError, match="No space left"):
            sign(ours, asks("west", "other"), tmp_path / "out.pem", term())
    assert not (tmp_path / "out.pem").exists()
    sign(ours, asks("west", "other"), tmp_path / "out.pem", term())
    assert len(read_authority(ours).register.of("site", "west")) == 2


# --- what was sent --------------------------------------------------------------------------------------


def test_the_fingerprint_that_was_read_aloud_decides(tmp_path):
    file, digits = make_keys("north", tmp_path / "north", None)
    for spoken in (digits, digits.upper(), " ".join(digits), ":".join(digits)):
        assert read_request(file, spoken).fingerprint == digits
    for wrong in ("", digits[:-1], "0" * 64, digits + "0"):
        with pytest.raises(InputError, match=r"is not that of north\.request\.json, which is"):
            read_request(file, wrong)


def test_a_huge_file_is_not_read(tmp_path):
    file = tmp_path / "huge.json"
    with file.open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(InputError, match="is larger than 8192 bytes"):
        read_request(file)
    file.write_bytes(b"{}")
    with pytest.raises(RequestError, match="csr is missing"):
        read_request(file)
