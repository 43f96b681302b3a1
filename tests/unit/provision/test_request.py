"""A site's request: byte for byte what was made is accepted, and every hostile variant is refused by its name."""

import json

import pytest
import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from deploy.provision import request
from deploy.provision.failures import InputError, RequestError
from deploy.provision.keys import create_node_key, create_tls_key, public_openssh, sign_as_node
from deploy.provision.request import LARGEST, fingerprint, make_request, parse_request, require_site, spoken
from privacy.signing import message

TLS, NODE, LEDGER = create_tls_key(), create_node_key(), "5a" * 32
GOOD = make_request("north", tls_key=TLS, node_key=NODE, ledger_key=LEDGER)


def refused(content):
    """Return why a file is refused."""
    with pytest.raises(RequestError) as caught:
        parse_request(content, subject="north.request.json")
    text = str(caught.value)
    assert text.startswith("north.request.json: ")
    assert "nothing was signed: ask the hospital" in text
    return text


def pem(csr):
    return csr.public_bytes(serialization.Encoding.PEM).decode()


def built(site="north", *, key=TLS, node=NODE, names=None, hash_=None, more=()):
    """Return a CSR of one's own making."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    )
    builder = builder.add_extension(names or request._names(site, node.public_key()), critical=False)
    for extension in more:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, hash_ or hashes.SHA256())


def resigned(node=NODE, **changes):
    """Return the good request with some fields changed and signed anew: what a hostile site can do."""
    fields = {**json.loads(GOOD), **changes}
    del fields["signature"]
    return canonical({**fields, "signature": sign_as_node(node, message("site-request", fields)).hex()})


def canonical(fields):
    return rfc8785.dumps(fields) + b"\n"


def test_what_was_made_is_read():
    found = parse_request(GOOD, subject="x")
    assert (found.site, found.ledger_key) == ("north", LEDGER)
    assert found.tls_key == TLS.public_key()
    assert found.node_key == public_openssh(NODE.public_key())
    without = make_request("north", tls_key=TLS, node_key=NODE, ledger_key=None)
    assert parse_request(without, subject="x").ledger_key is None


def test_the_tools_of_this_file_make_good_requests():
    """What follows changes one thing at a time: without a change it is accepted."""
    assert parse_request(resigned(), subject="x").site == "north"
    assert parse_request(resigned(csr=pem(built())), subject="x").site == "north"


def test_the_fingerprint_is_that_of_the_file():
    assert parse_request(GOOD, subject="x").fingerprint == fingerprint(GOOD)
    assert (
        fingerprint(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )  # FIPS 180-2
    assert spoken("0123456789ab") == "0123 4567 89ab"


def test_one_flipped_bit_anywhere_is_refused():
    """Every bit of the file. Foreign parsers fail in many ways here; each has to come out as a refusal."""
    for place in range(8 * len(GOOD)):
        flipped = bytearray(GOOD)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(RequestError):
            parse_request(bytes(flipped), subject="x")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=3,
)


@settings(max_examples=20)
@given(field=st.sampled_from(request.FIELDS), value=JSON, content=st.binary(max_size=200))
def test_whatever_a_field_holds_it_is_refused_and_nothing_else_is_raised(field, value, content):
    assume(value != json.loads(GOOD)[field] and (field != "ledger" or value is not None))
    for hostile in (json.dumps({**json.loads(GOOD), field: value}).encode(), content):
        with pytest.raises(RequestError):
            parse_request(hostile, subject="x")


@pytest.mark.parametrize(
    "length", [0, 1, 100, len(GOOD) // 2, len(GOOD) - 2], ids=["0", "1", "100", "half", "two-less"]
)  # named, since keys differ in length between test processes
def test_a_truncated_file_is_refused(length):
    assert "not valid JSON" in refused(GOOD[:length])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (GOOD + b" ", "not written as"),
        (GOOD[:-1], "not written as"),
        (GOOD.replace(b"\n", b"\r\n"), "not written as"),
        (json.dumps(json.loads(GOOD), indent=2).encode(), "not written as"),
        (GOOD.replace(b'"kind"', b'"kind":"x","kind"'), "a key occurs twice"),
        (GOOD.replace(b'"kind"', b'"key":1,"kind"'), "'key' is unknown"),
        (GOOD.replace(b'"ledger"', b'"lodger"'), "ledger is missing; 'lodger' is unknown (did you mean 'ledger'?)"),
        (b"[" * 8000, "not valid JSON"),
        (b"[]\n", "must be a mapping"),
        (b"\xff\xfe", "not valid JSON"),
        (GOOD.replace(b"request 1", b"request 2"), "site and centre need the same version"),
        (b" " * (LARGEST + 1), "larger than 8192 bytes"),
    ],
)  # fmt: skip
def test_another_form_is_refused(content, words):
    assert words in refused(content)


@pytest.mark.parametrize(
    "site", ["../x", "..", "", "a/b", "north\n", "-x", ".x", "a" * 65, "nörd", "a b", None, 7, ["north"], "x\x00"]
)  # fmt: skip
def test_a_name_that_could_be_a_path_or_worse_is_refused_on_both_sides(site):
    assert "must be 1 to 64 letters, digits" in refused(resigned(site=site))
    if isinstance(site, str):
        with pytest.raises(InputError, match="must be 1 to 64 letters"):
            require_site(site)


def test_names_up_to_the_limit_are_fine():
    for site in ("a", "7", "A.b_c-d", "a" * 64):
        made = make_request(require_site(site), tls_key=TLS, node_key=NODE, ledger_key=None)
        assert parse_request(made, subject="x").site == site


RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ED = ed25519.Ed25519PrivateKey.generate()
ED_LINE = (
    ED.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
)
OTHER = create_node_key()
P256_NODE = public_openssh(create_tls_key().public_key())
LINE = json.loads(GOOD)["supernode"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"csr": pem(built(key=RSA))}, "csr: must be for an ECDSA key on P-256, not a key of another kind (RSA)"),
        ({"csr": pem(built(key=NODE))}, "csr: must be for an ECDSA key on P-256, not one on secp384r1"),
        ({"csr": pem(built(key=ec.generate_private_key(ec.SECP256K1())))}, "not one on secp256k1"),
        ({"csr": pem(built(hash_=hashes.SHA512()))}, "signed by its own key, with SHA-256"),
        ({"csr": pem(built("south"))}, "csr: is for 'CN=south', not for the site 'north'"),
        ({"site": "south"}, "csr: is for 'CN=north', not for the site 'south'"),
        ({"csr": pem(built(node=OTHER))}, "csr: must name this site and the SuperNode's key beside it"),
        ({"csr": pem(built(more=[x509.BasicConstraints(ca=True, path_length=None)]))}, "and nothing else"),
        ({"csr": pem(built(names=x509.SubjectAlternativeName([x509.DNSName("x")])))}, "csr: must name this site"),
        ({"csr": pem(built()) + pem(built())}, "csr: must be one PEM block and nothing else"),
        ({"csr": "x"}, "csr: must be a certificate signing request in PEM"),
        ({"csr": "é"}, "csr: must be a certificate signing request in PEM"),
        ({"csr": None}, "csr: must be text"),
        ({"supernode": LINE + " comment"}, "supernode: must be the key alone"),
        ({"supernode": P256_NODE}, "supernode: must be an ECDSA key on P-384, not one on secp256r1"),
        ({"supernode": ED_LINE}, "supernode: must be an ECDSA key on P-384, not a key of another kind (Ed25519)"),
        ({"supernode": "x"}, "supernode: must be a public key of OpenSSH"),
        ({"supernode": 3}, "supernode: must be text"),
        ({"ledger": "5A" * 32}, "ledger: must be an Ed25519 key"),
        ({"ledger": 5}, "ledger: must be an Ed25519 key"),
        ({"ledger": "5a" * 31}, "ledger: must be an Ed25519 key"),
        ({"kind": True}, "kind: must be"),
    ],
)  # fmt: skip
def test_a_field_that_is_wrong_is_named_although_the_whole_is_signed(changes, words):
    assert words in refused(resigned(**changes))


def test_a_key_of_ones_own_beside_the_csr_of_another_site_is_refused():
    """Else the owner of OTHER would be registered as north's SuperNode, with north's certificate."""
    stolen = resigned(OTHER, supernode=public_openssh(OTHER.public_key()))
    assert "csr: must name this site and the SuperNode's key beside it" in refused(stolen)


def test_a_csr_that_its_key_has_not_signed_is_refused():
    """North's CSR with another key put in: the signature is north's."""
    der = built().public_bytes(serialization.Encoding.DER)
    old, new = (
        key.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
        for key in (TLS, create_tls_key())
    )
    assert der.count(old) == 1
    forged = x509.load_der_x509_csr(der.replace(old, new))
    assert "csr: must be signed by its own key" in refused(resigned(csr=pem(forged)))


@pytest.mark.parametrize("field", ["site", "ledger"])
def test_a_field_that_was_changed_after_signing_is_refused(field):
    """The ledger's key alone is in no CSR: only the SuperNode's signature holds it."""
    fields = {**json.loads(GOOD), field: {"site": "north2", "ledger": "6b" * 32}[field]}
    words = "csr: is for" if field == "site" else "signature: must be that of the SuperNode's key"
    assert words in refused(canonical(fields))


@pytest.mark.parametrize("signature", ["", "00", "zz" * 40, "30" * 104, 7, None])
def test_what_is_no_signature_is_refused(signature):
    assert "signature: " in refused(canonical({**json.loads(GOOD), "signature": signature}))


def test_a_signature_of_another_purpose_is_none():
    fields = {key: value for key, value in json.loads(GOOD).items() if key != "signature"}
    signature = sign_as_node(NODE, message("receipt", fields)).hex()
    assert "signature: must be that of" in refused(canonical({**fields, "signature": signature}))
