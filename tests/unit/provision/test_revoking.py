"""What was revoked stays revoked, and the list says so."""

import shutil

import pytest
from cryptography import x509

from deploy.provision import revoking
from deploy.provision.authority import read_authority
from deploy.provision.failures import AuthorityError, InputError
from deploy.provision.issuing import read_request, renew
from deploy.provision.listing import overview, render
from deploy.provision.revoking import revoke
from deploy.provision.site import make_keys
from tests.support.authorities import NOW, admit, contents, end, make_authority, renew_same, serve, term


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """An authority with a server, north and south."""
    folder = tmp_path_factory.mktemp("revoking")
    made = make_authority(folder / "ours")
    serve(made, folder / "server")
    for site in ("north", "south"):
        admit(made, site, folder / site)
    return made


@pytest.fixture
def ours(original, tmp_path):
    return shutil.copytree(original, tmp_path / "ours")


def published(ours):
    """Return the list's number, and reason by serial number."""
    crl = x509.load_pem_x509_crl((ours / "crl.pem").read_bytes())
    number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    reasons = {
        f"{one.serial_number:040x}": one.extensions.get_extension_for_class(x509.CRLReason).value.reason.name
        for one in crl
    }
    return number, reasons


def serials(ours, site, kind="site"):
    return [one.serial for one in read_authority(ours).register.of(kind, site)]


def test_the_list_grows_and_its_number_with_it(ours):
    assert published(ours) == (1, {})
    end(ours, "north")
    (north,) = serials(ours, "north")
    assert published(ours) == (2, {north: "superseded"})
    end(ours, "south", "key-compromise")
    (south,) = serials(ours, "south")
    assert published(ours) == (3, {north: "superseded", south: "key_compromise"})


def test_the_list_is_good_as_long_as_the_root(ours):
    """One that ran out would lock every hospital out."""
    end(ours, "north")
    authority = read_authority(ours)
    assert authority.crl.next_update_utc == authority.root.not_valid_after_utc
    assert authority.crl.last_update_utc < NOW
    assert authority.crl.is_signature_valid(authority.root.public_key())


def test_all_certificates_of_a_site_go_or_all_but_the_newest(ours, tmp_path):
    for name in ("second.pem", "third.pem"):
        renew_same(ours, "north", tmp_path / name)
    first, second, third = serials(ours, "north")
    end(ours, "north", keep_newest=True)
    assert published(ours) == (3, {first: "superseded", second: "superseded"})
    end(ours, "north", "cessation-of-operation")
    assert published(ours)[1] == {first: "superseded", second: "superseded", third: "cessation_of_operation"}


def test_a_server_is_revoked_by_its_first_host(ours):
    with pytest.raises(InputError, match="localhost: there is no such site"):
        end(ours, "localhost")
    revoke(ours, "localhost", "superseded", kind="server", keep_newest=False, now=NOW, passphrase=None)
    assert list(published(ours)[1]) == serials(ours, "localhost", "server")


def test_what_cannot_be_revoked_changes_nothing(ours):
    before = contents(ours)
    with pytest.raises(InputError, match=r"nort: there is no such site; did you mean `north`\?"):
        end(ours, "nort")
    with pytest.raises(InputError, match="`provision list` shows all"):
        end(ours, "xyz")
    with pytest.raises(AuthorityError, match="north: nothing is left to revoke"):
        end(ours, "north", keep_newest=True)
    assert contents(ours) == before
    end(ours, "north")
    with pytest.raises(AuthorityError, match="north: nothing is left to revoke"):
        end(ours, "north")


def test_no_certificate_stays_whose_key_is_compromised(ours, tmp_path):
    renew_same(ours, "north", tmp_path / "second.pem")
    with pytest.raises(
        AuthorityError, match="the newest certificate has the same keys; leave out --keep-newest"
    ):
        end(ours, "north", "key-compromise", keep_newest=True)
    assert published(ours) == (1, {})
    file, _ = make_keys("south", tmp_path / "south", None)
    renew(ours, "south", read_request(file), tmp_path / "new.pem", term())
    end(ours, "south", "key-compromise", keep_newest=True)
    assert list(published(ours)[1]) == serials(ours, "south")[:1]


def test_what_was_not_published_is_published_by_the_same_command(ours, monkeypatch):
    """The disk fails between register and list."""

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(revoking, "write_atomically", fail)
        with pytest.raises(OSError, match="No space left"):
            end(ours, "north")
    assert published(ours) == (1, {})
    assert "NOTE: that list lacks certificates" in render(overview(ours, NOW))
    end(ours, "north")
    assert published(ours) == (2, dict.fromkeys(serials(ours, "north"), "superseded"))
    assert "NOTE" not in render(overview(ours, NOW))
