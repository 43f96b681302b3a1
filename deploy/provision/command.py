"""`python -m deploy provision VERB`: certificates and keys of the federation (deploy/docs/provisioning.md).

Each verb reads its options, does one thing from this package, and prints; whatever is heavy is imported inside.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deploy.provision.failures import reported

if TYPE_CHECKING:
    from deploy.provision.issuing import Term
    from deploy.provision.register import Issued

provision_app = typer.Typer(
    help="Make keys and certificates of the federation (deploy/docs/provisioning.md).",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Folder = Annotated[Path, typer.Argument(help="The authority's folder, at the centre.")]
NewFile = Annotated[Path, typer.Option("--out", help="A new file; nothing is overwritten.")]
Days = Annotated[int, typer.Option("--days", min=1, max=36500, help="How long it is good.")]
Passphrase = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="Passphrase of the authority's key: first line, mode 0600."),
]
Fingerprint = Annotated[
    str | None, typer.Option("--fingerprint", help="As the hospital read it to you; another file is refused.")
]
Reason = Annotated[
    Literal["key-compromise", "superseded", "cessation-of-operation", "privilege-withdrawn"],
    typer.Option("--reason", help="Why; it is on the list that everybody can read."),
]


def add_to(app: typer.Typer) -> None:
    """Add the verbs to a command line."""
    app.add_typer(provision_app, name="provision")


@provision_app.command("authority")
@reported()
def authority(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    name: Annotated[str, typer.Option("--name", help="Of the consortium; in every certificate.")],
    passphrase: Passphrase = None,
    days: Days = 3650,
) -> None:
    """Make the consortium's root, once, at the centre."""
    from cryptography.hazmat.primitives import hashes

    from deploy.provision.authority import create
    from deploy.provision.keys import read_passphrase
    from deploy.provision.request import spoken

    root = create(folder, name, days=days, passphrase=read_passphrase(passphrase), now=_now())
    typer.echo(
        f"{folder}: the authority of {name}, good until {root.not_valid_after_utc:%Y-%m-%d}\n"
        f"secret: {folder / 'ca.key'}; a copy of the folder belongs in a safe\n"
        f"for everybody: {folder / 'ca.pem'}; its fingerprint (SHA-256), for sites to compare:\n"
        f"    {spoken(root.fingerprint(hashes.SHA256()).hex())}"
    )


@provision_app.command("server")
@reported()
def server(
    folder: Folder,
    hosts: Annotated[list[str], typer.Argument(help="DNS names and IP addresses that sites connect to.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="A new folder; FOLDER/server if left out.")
    ] = None,
    days: Days = 365,
    passphrase: Passphrase = None,
) -> None:
    """Make key and certificate of the centre's server. Again with another --out to renew them."""
    from deploy.provision.issuing import issue_server

    target = out or folder / "server"
    one = issue_server(folder, hosts, target, _term(days, passphrase))
    typer.echo(f"{target}: server.pem and server.key (secret) for {', '.join(hosts)}, {_until(one)}")


@provision_app.command("request")
@reported()
def request(
    site: Annotated[str, typer.Option("--site", help="Name in the federation, as in site.yaml.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    ledger_key: Annotated[
        Path | None,
        typer.Option("--ledger-key", help="The site's key of its ledger; its public part is sent along."),
    ] = None,
) -> None:
    """At the hospital: make its own keys, which stay there, and one file to send to the centre."""
    from deploy.provision.request import spoken
    from deploy.provision.site import make_keys

    file, digits = make_keys(site, out, ledger_key)
    typer.echo(
        f"{file}: send this one file to the centre\n"
        f"secret, and never sent: {out / 'client.key'}, {out / 'supernode'}\n"
        f"fingerprint of the request (SHA-256); read it to the centre over the phone:\n    {spoken(digits)}"
    )


@provision_app.command("sign")
@reported()
def sign(  # noqa: PLR0917 - a command's options
    folder: Folder,
    file: Annotated[Path, typer.Argument(metavar="REQUEST", help="What the hospital sent.")],
    out: NewFile,
    days: Days = 365,
    fingerprint: Fingerprint = None,
    passphrase: Passphrase = None,
) -> None:
    """Admit a hospital: check its request and issue its certificate."""
    from deploy.provision.issuing import read_request
    from deploy.provision.issuing import sign as issue

    asked = read_request(file, fingerprint)
    one = issue(folder, asked, out, _term(days, passphrase))
    _tell(folder, one, out, asked.fingerprint, compared=fingerprint is not None)


@provision_app.command("renew")
@reported()
def renew(  # noqa: PLR0917 - a command's options
    folder: Folder,
    site: Annotated[str, typer.Argument(help="Name of a site that has a certificate.")],
    out: NewFile,
    file: Annotated[
        Path | None, typer.Option("--request", help="A new request, for new keys; the same keys if left out.")
    ] = None,
    days: Days = 365,
    fingerprint: Fingerprint = None,
    passphrase: Passphrase = None,
) -> None:
    """Issue another certificate to a site. The earlier one stays good until it ends or is revoked."""
    from deploy.provision.failures import InputError
    from deploy.provision.issuing import read_request
    from deploy.provision.issuing import renew as issue

    if fingerprint is not None and file is None:
        raise InputError("--fingerprint: goes with --request alone")
    asked = None if file is None else read_request(file, fingerprint)
    one = issue(folder, site, asked, out, _term(days, passphrase))
    _tell(folder, one, out, asked.fingerprint if asked else "", compared=fingerprint is not None)


@provision_app.command("revoke")
@reported()
def revoke(  # noqa: PLR0917 - a command's options
    folder: Folder,
    site: Annotated[str, typer.Argument(help="Name of the site; with --server, the server's first host.")],
    reason: Reason,
    is_server: Annotated[bool, typer.Option("--server", help="Of a server, not of a site.")] = False,
    keep_newest: Annotated[
        bool, typer.Option("--keep-newest", help="Only those before the newest: after a renewal.")
    ] = False,
    passphrase: Passphrase = None,
) -> None:
    """Revoke a site's certificates. Then give crl.pem to the proxy: only there does it count."""
    from deploy.provision.keys import read_passphrase
    from deploy.provision.revoking import revoke as end

    revoked = end(
        folder,
        site,
        reason,
        kind="server" if is_server else "site",
        keep_newest=keep_newest,
        now=_now(),
        passphrase=read_passphrase(passphrase),
    )
    for one in revoked:
        typer.echo(f"{site}: serial {one.serial} is revoked: {reason}")
    typer.echo(f"{folder / 'crl.pem'}: written anew; give it to the proxy now, for only there does it count")


@provision_app.command("list")
@reported()
def list_issued(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Print who has a certificate, until when, and what was revoked. Needs no key."""
    import json

    from deploy.provision.listing import overview, render

    found = overview(folder, _now())
    typer.echo(json.dumps(found, indent=2) if as_json else render(found), nl=as_json)


def _tell(folder: Path, one: Issued, out: Path, digits: str, *, compared: bool) -> None:
    """Print what was issued, and what to do now."""
    from deploy.provision.issuing import NODE_KEY_NAME, SITES
    from deploy.provision.request import spoken

    typer.echo(f"{out}: certificate of {one.name}, {_until(one)}")
    if digits:
        advice = (
            "as you were told" if compared else "hand nothing over before the hospital has read you the same"
        )
        typer.echo(f"fingerprint of the request (SHA-256), {advice}:\n    {spoken(digits)}")
    typer.echo(f"for `flwr supernode register`: {folder / SITES / one.name / NODE_KEY_NAME}")


def _until(one: Issued) -> str:
    """Return until when a certificate is good, and its serial number."""
    return f"good until {one.certificate.not_valid_after_utc:%Y-%m-%d}, serial {one.serial}"


def _term(days: int, passphrase: Path | None) -> Term:
    """Return when and how long something is issued."""
    from deploy.provision.issuing import Term
    from deploy.provision.keys import read_passphrase

    return Term(days=days, now=_now(), passphrase=read_passphrase(passphrase))


def _now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)
