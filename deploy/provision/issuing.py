"""Certificates for the server and for sites: `server`, `sign` and `renew`.

The register is written first and is what counts; copies and the file to hand over follow. Where a disk fails in
between, the same command, with the same request, gives another certificate for the same keys.

Guarantees (tests/unit/provision/test_issuing.py): a name belongs to the keys that it was first issued to until they are
revoked or renewed on purpose; keys belong to one name; keys that were revoked as compromised never come back; whatever
is refused has written nothing; nothing of another site is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from deploy.problems import nearest
from deploy.provision.authority import Authority, span_within, writing
from deploy.provision.certificates import Issuer, host_name, server_certificate, site_certificate
from deploy.provision.failures import AuthorityError, InputError
from deploy.provision.files import new_folder, read_small, require_free, reserved
from deploy.provision.keys import create_tls_key, key_hash, private_pem
from deploy.provision.register import Issued, Register, append_issued
from deploy.provision.request import LARGEST, Request, parse_request, spoken
from vae.data.durable import READABLE, write_atomically

SITES, CERTIFICATE_NAME, NODE_KEY_NAME = "sites", "client.pem", "supernode.pub"
SERVER_CERTIFICATE_NAME, SERVER_KEY_NAME = "server.pem", "server.key"


@dataclass(frozen=True, kw_only=True)
class Term:
    """When, how long and with whose consent a certificate is issued.

    Attributes:
        days: How long it is good.
        now: The time, aware.
        passphrase: Of the authority's key.
    """

    days: int
    now: datetime
    passphrase: bytes | None = None


def issue_server(folder: Path, hosts: Sequence[str], out: Path, term: Term) -> Issued:
    """Make a key and a certificate for the server, in a new folder.

    Args:
        folder: Of the authority.
        hosts: Names and addresses that sites reach the server by.
        out: New folder.
        term: When and how long.

    Raises:
        InputError: a host is neither a name nor an address, or something lies at `out`.
        AuthorityError: the authority is not what was written.
    """
    for host in hosts:
        host_name(host)
    require_free(out)
    with writing(folder, term.passphrase) as (authority, issuer), new_folder(out) as partial:
        span = span_within(authority.root, term.days, term.now)
        key = create_tls_key()
        certificate = server_certificate(key.public_key(), hosts, span, issuer)
        one = Issued(kind="server", name=hosts[0], certificate=certificate, node_key=None, ledger_key=None)
        write_atomically(partial / SERVER_KEY_NAME, private_pem(key))
        write_atomically(partial / SERVER_CERTIFICATE_NAME, one.pem, mode=READABLE)
        append_issued(authority.register, one)
    return one


def sign(folder: Path, request: Request, out: Path, term: Term) -> Issued:
    """Issue the certificate that a site asks for.

    Args:
        folder: Of the authority.
        request: What `read_request` gave.
        out: New file for the certificate.
        term: When and how long.

    Raises:
        InputError: something lies at `out`, or the validity is longer than the root's.
        AuthorityError: the name is another's, or the keys are.
    """
    with writing(folder, term.passphrase) as (authority, issuer):
        _require_own_keys(authority.register, request)
        for one in authority.register.of("site", request.site):
            if one.revoked_at is None and one.keys != _keys(request):
                raise AuthorityError(
                    f"{request.site}: has a certificate for other keys (serial {one.serial}); ask the hospital whether "
                    "it made new ones, then `provision renew --request`, or `provision revoke` first"
                )
        return _issue(authority, issuer, request, out, term)


def renew(folder: Path, site: str, request: Request | None, out: Path, term: Term) -> Issued:
    """Issue another certificate to a site that has one: for the same keys, or for those of a new request.

    Earlier certificates stay good until they end or are revoked, so that a site can change over.

    Raises:
        InputError: there is no such site, the request is another site's, or something lies at `out`.
        AuthorityError: the site's certificates are revoked, or the keys are another's.
    """
    with writing(folder, term.passphrase) as (authority, issuer):
        newest = _newest(authority.register, site)
        if request is None:
            request = _again(newest)
        if request.site != site:
            raise InputError(f"--request: is of {request.site}, not of {site}; give that of {site}")
        _require_own_keys(authority.register, request)
        return _issue(authority, issuer, request, out, term)


def read_request(path: Path, compared: str | None = None) -> Request:
    """Return what a file asks for.

    Args:
        path: What the hospital sent.
        compared: The fingerprint as the hospital read it over the phone; spaces and colons do not matter.

    Raises:
        InputError: there is no such file, it is too large, or the fingerprint is another.
        RequestError: it is not what `provision request` writes.
    """
    request = parse_request(read_small(path, LARGEST), subject=path.name)
    if compared is not None and _digits(compared) != request.fingerprint:
        raise InputError(
            f"--fingerprint: is not that of {path.name}, which is {spoken(request.fingerprint)}; nothing was signed: "
            "this is another file than the hospital's, so ask for it again"
        )
    return request


def _issue(authority: Authority, issuer: Issuer, request: Request, out: Path, term: Term) -> Issued:
    """Issue a certificate: everything is checked."""
    certificate = site_certificate(
        request.tls_key, request.site, span_within(authority.root, term.days, term.now), issuer
    )
    one = Issued(
        kind="site",
        name=request.site,
        certificate=certificate,
        node_key=request.node_key,
        ledger_key=request.ledger_key,
    )
    copies = authority.folder / SITES / request.site
    with reserved(out):
        append_issued(authority.register, one)
        write_atomically(copies / CERTIFICATE_NAME, one.pem, mode=READABLE)
        write_atomically(copies / NODE_KEY_NAME, f"{request.node_key}\n".encode(), mode=READABLE)
        write_atomically(out, one.pem, mode=READABLE)
    return one


def _require_own_keys(register: Register, request: Request) -> None:
    """Refuse a name that looks like another's, keys of another site, and keys that were compromised.

    Raises:
        AuthorityError: one of them.
    """
    asked = _keys(request)
    for one in (issued for issued in register.issued if issued.kind == "site"):
        if one.name != request.site and one.name.casefold() == request.site.casefold():
            raise AuthorityError(
                f"{request.site}: there is a site {one.name}, and names may not differ in capitals alone; the hospital "
                "makes a request under another name"
            )
        if not set(one.keys) & set(asked):
            continue
        if one.name != request.site:
            raise AuthorityError(
                f"{request.site}: a key of the request belongs to {one.name}; each site makes keys of its own "
                "(`provision request`)"
            )
        if one.reason == "key-compromise":
            raise AuthorityError(
                f"{request.site}: a key of the request was revoked as compromised and never comes back; the hospital "
                "makes new ones (`provision request`)"
            )


def _newest(register: Register, site: str) -> Issued:
    """Return a site's newest certificate.

    Raises:
        InputError: there is no such site.
        AuthorityError: it is revoked.
    """
    earlier = register.of("site", site)
    if not earlier:
        near = nearest(site, {one.name for one in register.issued if one.kind == "site"})
        hint = f"; did you mean `{near}`?" if near else "; a new one sends a request: `provision sign`"
        raise InputError(f"{site}: there is no such site{hint}")
    if earlier[-1].revoked_at is not None:
        raise AuthorityError(
            f"{site}: its certificate is revoked ({earlier[-1].reason}); if it may come back, it makes new keys, and "
            "`provision sign` admits it"
        )
    return earlier[-1]


def _again(newest: Issued) -> Request:
    """Return a request for the keys of a certificate."""
    public = newest.certificate.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey) or newest.node_key is None:
        raise AuthorityError(
            f"{newest.name}: its register entry holds no keys of a site; restore the newest copy"
        )
    return Request(
        site=newest.name,
        tls_key=public,
        node_key=newest.node_key,
        ledger_key=newest.ledger_key,
        fingerprint="",
    )


def _digits(compared: str) -> str:
    """Return a fingerprint that was read aloud as plain digits."""
    return "".join(compared.lower().replace(":", " ").split())


def _keys(request: Request) -> tuple[str, str | None]:
    """Return what identifies the keys of a request, as `Issued.keys` does."""
    return key_hash(request.tls_key), request.node_key
