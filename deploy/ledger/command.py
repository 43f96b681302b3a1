"""`python -m deploy ledger VERB`: the life of a privacy ledger at a hospital (deploy/docs/ledger-howto.md).

Each verb reads its options, does one thing from this package, and prints; whatever is heavy is imported inside.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from deploy.errors import ExitCode
from deploy.ledger.failures import reported

ledger_app = typer.Typer(
    help="Keep, check and explain a hospital's privacy ledger (deploy/docs/ledger-howto.md).",
    no_args_is_help=True,
    rich_markup_mode=None,
)


Site = Annotated[Path, typer.Option("--site", help="The hospital's site.yaml.")]
MaybeSite = Annotated[Path | None, typer.Option("--site", help="The hospital's site.yaml.")]
File = Annotated[Path | None, typer.Argument(help="Instead of --site: a ledger, or an export of one.")]
Out = Annotated[Path, typer.Option("--out", help="A new file; nothing is overwritten.")]
MaybeOut = Annotated[Path | None, typer.Option("--out", help="A new file; printed if left out.")]
Heads = Annotated[
    list[Path] | None, typer.Option("--head", help="Heads that somebody kept (JSON). May be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Cache = Annotated[Path | None, typer.Option("--cache", help="Folder of prepared records.")]


def add_to(app: typer.Typer) -> None:
    """Add the verbs to a command line."""
    app.add_typer(ledger_app, name="ledger")


@ledger_app.command("init")
@reported()
def init(site: Site, cache: Cache = None) -> None:
    """Begin the ledger of a site. Makes key and salt where they are missing, and fixes what never changes."""
    from deploy.ledger.beginning import begin, beginning_lines
    from deploy.ledger.wording import fill

    done = begin(site, _cache(cache))
    _print(fill(beginning_lines(done, site)))


@ledger_app.command("roster")
@reported()
def roster(
    site: Site,
    details: Annotated[bool, typer.Option("--details", help="Print counts. Local: do not share.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Most patients have left indeed.")] = False,
    cache: Cache = None,
) -> None:
    """Make the ledger follow the data. New patients join with nothing spent, missing ones count as withdrawn."""
    from deploy.ledger.account import LOCAL
    from deploy.ledger.beginning import follow_data
    from deploy.ledger.wording import written

    done = follow_data(site, _cache(cache), confirmed=yes)
    _print("nothing has changed\n" if done.entry is None else written(done.entry))
    if details:
        _print(f"\n{LOCAL}\n" + "".join(f"  {what}: {number}\n" for what, number in done.counts.items()))


@ledger_app.command("show")
@reported()
def show(
    file: File = None,
    site: MaybeSite = None,
    as_json: AsJson = False,
    last: Annotated[int | None, typer.Option("--last", min=1, help="Only the last N entries.")] = None,
) -> None:
    """Print the entries, then cap and costs of each cohort."""
    from deploy.ledger.listing import show as shown

    _print(shown(file, site, last, json=as_json))


@ledger_app.command("verify")
@reported()
def verify(file: File = None, site: MaybeSite = None, heads: Heads = None, as_json: AsJson = False) -> None:
    """Check every entry by two implementations. Needs no key. Exit code 3 if a rule is broken."""
    from deploy.ledger.checking import check, lines
    from deploy.ledger.opening import as_json as json_text
    from deploy.ledger.opening import choose
    from deploy.ledger.wording import fill

    path, _ = choose(file, site)
    found = check(path, heads or [])
    _print(json_text(found.to_dict()) if as_json else fill(lines(found)))
    if not found.is_valid:
        raise typer.Exit(ExitCode.REFUSED_BY_PRIVACY)


@ledger_app.command("explain")
@reported()
def explain(
    site: Site,
    patient: Annotated[
        str, typer.Option("--patient", help="Of one patient instead, as the data name them. Do not share.")
    ] = "",
) -> None:
    """Tell the ledger in plain sentences. What it promises, and what was spent, refused and given away."""
    from deploy.ledger.account import explain as all_of_it
    from deploy.ledger.account import explain_patient
    from deploy.ledger.wording import fill

    _print(fill(explain_patient(site, patient) if patient else all_of_it(site)))


@ledger_app.command("prove")
@reported()
def prove(
    site: Site,
    seq: Annotated[int, typer.Argument(help="Number of the entry.")],
    since: Annotated[
        Path | None, typer.Option("--since", help="A head that the receiver kept (JSON).")
    ] = None,
    out: MaybeOut = None,
) -> None:
    """Write the proof that an entry is in the ledger. With --since, also that nothing is gone since a kept head."""
    from deploy.ledger.opening import as_json
    from deploy.ledger.proofs import prove as proof_of

    _give(as_json(proof_of(site, seq, since).to_dict()), out)


@ledger_app.command("check-proof")
@reported()
def check_proof(
    file: Annotated[Path, typer.Argument(help="What `ledger prove` wrote.")],
    head: Annotated[Path | None, typer.Option("--head", help="The head that you kept (JSON).")] = None,
) -> None:
    """Check a proof; needs no ledger. Exit code 3 if it does not hold."""
    from deploy.ledger.proofs import check_proof as check
    from deploy.ledger.wording import fill

    _print(fill(check(file, head)))


@ledger_app.command("head")
@reported()
def head(site: Site, out: MaybeOut = None) -> None:
    """Write the signed head. Whoever outside keeps it can notice later if entries were removed."""
    from deploy.ledger.opening import as_json, ledger_of, read_book
    from deploy.site import load_site

    book = read_book(ledger_of(load_site(site), site))
    _give(as_json(book.state.head().to_dict()), out)


@ledger_app.command("export")
@reported()
def export(site: Site, out: Out) -> None:
    """Write all entries for an auditor. JSON lines, never anything of the table of patients."""
    from deploy.ledger.opening import export_lines, ledger_of, read_book
    from deploy.site import load_site

    book = read_book(ledger_of(load_site(site), site))
    _give(export_lines(book.rows), out)


@ledger_app.command("cap")
@reported()
def cap(
    site: Site,
    to: Annotated[float, typer.Option("--to", help="New cap, an epsilon; 0 ends all spending.")],
    request: Annotated[
        Path | None, typer.Option("--request", help="Write what approvers sign to this new file.")
    ] = None,
    approvals: Annotated[
        list[Path] | None, typer.Option("--approval", help="What `ledger approve` wrote. Give it twice.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="End a fixed schedule for good.")] = False,
) -> None:
    """Lower the cap, or raise it with two approvals. To raise it, first write a request for them to sign."""
    from deploy.ledger.changes import request_cap, set_cap
    from deploy.ledger.failures import UsageError
    from deploy.ledger.wording import exact, fill, written

    if request is not None and approvals:
        raise UsageError("cap: give --request first, and --approval once both have signed; not both at once")
    if request is not None:
        current = request_cap(site, to, request)
        _print(
            f"{request}: asks to raise the cap from epsilon {exact(current)} to {exact(to)}\n"
            "Two approvers sign it (ledger approve), before anything else is written to the ledger.\n"
        )
        return
    entry, notes = set_cap(site, to, approvals or [], confirmed=yes)
    _print(written(entry) + (fill(notes) if notes else ""))


@ledger_app.command("approve")
@reported()
def approve(
    request: Annotated[Path, typer.Option("--request", help="What `ledger cap --request` wrote.")],
    key: Annotated[Path, typer.Option("--key", help="Your private key, as approver.")],
    out: Out,
) -> None:
    """Sign a request to raise the cap, as one of its approvers."""
    from deploy.ledger.changes import approve as sign
    from deploy.ledger.wording import exact, short

    signed = sign(request, key, out)
    _print(
        f"{out}: you approve that the cap on each patient of dataset {short(signed['dataset'])} goes from epsilon "
        f"{exact(signed['from'])} to {exact(signed['to'])}\n"
    )


@ledger_app.command("rotate-key")
@reported()
def rotate_key(
    site: Site,
    new_key: Annotated[Path, typer.Option("--new-key", help="The new key; made if it is not there.")],
) -> None:
    """Let a new key sign from now on."""
    from deploy.ledger.changes import rotate
    from deploy.ledger.wording import written

    entry, public = rotate(site, new_key)
    _print(
        f"{written(entry)}Its public part: {public}\n"
        f"Now set in {site}, for with the old key nothing can be written any more:\n    key: {new_key.resolve()}\n"
    )


@ledger_app.command("incident")
@reported()
def incident(
    site: Site,
    code: Annotated[str, typer.Argument(help="Small letters and hyphens, such as key-lost.")],
    reference: Annotated[
        str, typer.Option("--reference", help="The hospital's ticket number; never a name.")
    ] = "",
) -> None:
    """Write down that something happened."""
    from deploy.ledger.changes import report_incident
    from deploy.ledger.wording import written

    _print(written(report_incident(site, code, reference)))


@ledger_app.command("release")
@reported()
def release(
    site: Site,
    run: Annotated[str, typer.Option("--run", help="The study, as in `ledger show`.")],
    round_: Annotated[int, typer.Option("--round", help="After which round.")],
    model: Annotated[str, typer.Option("--model", help="SHA-256 of the model's weights.")],
    audience: Annotated[Literal["public", "partners"], typer.Option("--audience", help="Who has it now.")],
) -> None:
    """Write down that a model has left."""
    from deploy.ledger.changes import report_release
    from deploy.ledger.wording import written

    _print(written(report_release(site, run=run, round_=round_, model=model, audience=audience)))


@ledger_app.command("keygen")
@reported()
def keygen(path: Annotated[Path, typer.Argument(help="A new file.")]) -> None:
    """Make a key for an approver. Ed25519; prints its public part for site.yaml."""
    from privacy.signing import create_key

    key = create_key(path)
    _print(f"{path}: private key; keep it to yourself, nobody else may read it\npublic key: {key.public}\n")


def _print(text: str) -> None:
    """Print text that ends with a line feed; a letter that the terminal does not know must not end the verb."""
    encoding = sys.stdout.encoding or "utf-8"
    typer.echo(text.encode(encoding, "replace").decode(encoding), nl=False)


def _give(text: str, out: Path | None) -> None:
    """Write text to a new file, or print it."""
    from deploy.ledger.opening import write_new

    if out is None:
        _print(text)
    else:
        write_new(out, text)
        _print(f"{out}: written\n")


def _cache(given: Path | None) -> Path:
    """Return the folder of prepared records."""
    from deploy.folders import cache_folder

    return given or cache_folder()
