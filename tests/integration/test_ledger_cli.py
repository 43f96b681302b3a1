"""`python -m deploy ledger` at a real small hospital: every verb, tampering, two people, all commands of the how-to."""

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.errors import ExitCode
from deploy.ledger.command import ledger_app
from privacy.records import FIRST_COHORT
from privacy.signing import load_key
from tests.support.audits import SITE_YAML, SPEC, run_rounds
from tests.support.commands import strict_json
from tests.support.ledger_cases import raw
from tests.support.shared import ROOT
from vae.data.toy import ToySpec, open_toy

HOWTO = (ROOT / "deploy/docs/ledger-howto.md").read_text()
MODEL = "a" * 64
ROUNDS = 2


def ledger(*arguments):
    """Run a verb; return exit code, standard output and standard error."""
    done = CliRunner().invoke(app, ["ledger", *map(str, arguments)], catch_exceptions=False)
    assert "Traceback" not in done.output
    return done.exit_code, done.stdout, done.stderr


def works(*arguments):
    """Run a verb that must work; return standard output."""
    code, said, error = ledger(*arguments)
    assert (code, error) == (ExitCode.DONE, "")
    return said


def refuses(*arguments, code):
    """Run a verb that must end with an exit code; return its one line."""
    found, said, error = ledger(*arguments)
    assert (found, said) == (code, "")
    assert error.count("\n") == 1, error
    return error


def write_site(folder, *, approvers=(), patients=60, cap=8, **changes):
    """Write a hospital's file and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    text = SITE_YAML.format(cap=cap, model=SPEC.hash())
    text = text.replace("patients_per_site: 60", f"patients_per_site: {patients}")
    text = text.replace("policy:", f"approvers: [{', '.join(approvers)}]\npolicy:")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    file = folder / "site.yaml"
    file.write_text(text)
    return file


def patients():
    """Return the patients that the toy hospital trains on."""
    return open_toy(ToySpec(sites=3, patients_per_site=60, features=6), site=1).train.patients


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A hospital with two approvers, which has paid for two rounds; the head after them."""
    folder = tmp_path_factory.mktemp("hospital")
    keys = [works("keygen", folder / f"{name}.pem").split()[-1] for name in ("anna", "bert", "carl")]
    file = write_site(folder, approvers=keys)
    works("init", "--site", file)
    assert run_rounds(file, ROUNDS) == ROUNDS
    works("head", "--site", file, "--out", folder / "head.json")
    return folder


@pytest.fixture
def hospital(original, tmp_path):
    return shutil.copytree(original, tmp_path / "hospital")


@pytest.fixture
def site(hospital):
    return hospital / "site.yaml"


def raise_cap(site, to, *names):
    """Raise the cap as people do: a request, a signature of each, both handed in."""
    folder = site.parent
    works("cap", "--site", site, "--to", to, "--request", folder / "request.json")
    approvals = []
    for name in names:
        out = folder / f"{name}.json"
        works("approve", "--request", folder / "request.json", "--key", folder / f"{name}.pem", "--out", out)
        approvals += ["--approval", out]
    return ("cap", "--site", site, "--to", to, *approvals)


# --- init and roster ------------------------------------------------------------------------------------


def test_a_ledger_begins_with_its_secrets(tmp_path):
    file = write_site(tmp_path)
    said = works("init", "--site", file)
    for name in ("key.pem", "salt", "ledger.sqlite"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    for words in (
        "Fixed for good, whatever is asked later:",
        "- The promise is made at delta 0.00001.",
        "- Who may raise the cap: nobody: that takes two approvers, and site.yaml names 0.",
        load_key(tmp_path / "key.pem").public,
        f"    python -m deploy ledger head --site {file} --out head.json",
    ):
        assert words in said
    assert f"- key: {tmp_path}/key.pem (made now)" in " ".join(said.split())  # lines break where paths end
    assert str(len(patients())) not in re.sub(r"[0-9a-f]{10,}|" + re.escape(str(tmp_path)), "", said).split()
    assert not any(patient in said for patient in patients())


def test_key_and_salt_that_are_there_stay(tmp_path):
    file = write_site(tmp_path)
    works("init", "--site", file)
    secrets = [(tmp_path / name).read_bytes() for name in ("key.pem", "salt")]
    (tmp_path / "ledger.sqlite").unlink()
    said = " ".join(works("init", "--site", file).split())  # lines break where the paths end
    assert said.count("(was there before)") == 2
    assert [(tmp_path / name).read_bytes() for name in ("key.pem", "salt")] == secrets


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"min_patients: 10": "min_patients: 1000"}, 3, "policy.min_patients: the cohort has fewer"),
        (
            {"min_patients: 10": "min_patients: 1", "patients_bound: 10000": "patients_bound: 30"},
            3,
            "patients_bound",
        ),
        ({"policy:": "rule: {kind: renyi-filter, order: 2}\npolicy:"}, 3, "pays for nothing"),
        ({"key: key.pem": "key: ."}, 2, "others can read it|not a private key|cannot be read|Is a directory"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(tmp_path, changes, code, words):
    cap = 2 if "order: 2" in str(changes) else 8
    file = write_site(tmp_path, cap=cap, **changes)
    assert re.search(words, refuses("init", "--site", file, code=code))
    assert [path.name for path in tmp_path.iterdir() if path.name != "salt"] == ["site.yaml"]


def test_data_that_cannot_be_used(tmp_path):
    changes = {"{kind: toy, sites: 3, patients_per_site: 60, features: 6}":
               "{kind: table, source: {path: none.csv, features: [a, b], standardise: none}}"}  # fmt: skip
    file = write_site(tmp_path, **changes)
    assert "none.csv" in refuses("init", "--site", file, code=ExitCode.DATA_NOT_READY)


def test_a_file_with_problems_names_all_of_them(tmp_path):
    file = write_site(tmp_path, **{"min_patients: 10": "min_patients: none", "unit: patient": "unit: family"})
    code, said, error = ledger("init", "--site", file)
    assert (code, said) == (ExitCode.CONFIGURATION, "")
    assert "min_patients" in error
    assert "unit" in error
    assert "none.yaml" in refuses("show", "--site", tmp_path / "none.yaml", code=2)


def test_a_ledger_begins_once_and_says_where_the_policy_is_below_it(hospital, site):
    error = refuses("init", "--site", site, code=2)
    assert "a ledger is there already, and it goes on for good" in error
    assert "NOTE" not in error
    site.write_text(site.read_text().replace("lifetime: {epsilon: 8", "lifetime: {epsilon: 5"))
    assert f"python -m deploy ledger cap --site {site} --to 5" in refuses("init", "--site", site, code=2)


def test_the_roster_follows_the_data(hospital, site):
    assert works("roster", "--site", site) == "nothing has changed\n"
    site.write_text(site.read_text().replace("patients_per_site: 60", "patients_per_site: 64"))
    said = works("roster", "--site", site, "--details")
    assert said.startswith("entry 5 was written: new patients, as cohort c1: nothing spent on them\n")
    assert "local: do not share\n  new: 4\n" in said
    site.write_text(site.read_text().replace("patients_per_site: 64", "patients_per_site: 60"))
    assert works("roster", "--site", site) == "entry 6 was written: patients left or came back\n"


def test_renamed_patients_are_not_taken_for_new_ones(hospital, site):
    """The same people under other keys would begin with nothing spent."""
    table = "participant_id,a,b\n" + "".join(f"renamed-{n},{n / 10},1\n" for n in range(40))
    (hospital / "t.csv").write_text(table)
    text = re.sub(
        r"data: .*",
        "data: {kind: table, source: {path: t.csv, features: [a, b], standardise: none}}",
        site.read_text(),
    )
    site.write_text(text)
    error = refuses("roster", "--site", site, "--cache", hospital / "cache", code=3)
    assert "most patients of the ledger are not in the data any more" in error
    said = works("roster", "--site", site, "--cache", hospital / "cache", "--yes")
    assert "entry 5 was written: new patients, as cohort c1" in said


def test_another_salt_is_found_out(hospital, site):
    (hospital / "salt").write_bytes(b"x" * 32)
    for verb in (("roster",), ("explain", "--patient", "x")):
        assert "`salt` or `dataset` is another than when the ledger began" in refuses(
            *verb, "--site", site, code=2
        )
    (hospital / "salt").unlink()
    assert "there is no such salt; restore it" in refuses("roster", "--site", site, code=2)


# --- show and explain -----------------------------------------------------------------------------------


def test_show_prints_entries_and_costs(hospital, site):
    said = works("show", "--site", site)
    assert said.startswith(f"Ledger of site-2: 5 entries, each checked\n    {hospital}/ledger.sqlite\n\n")
    assert said.count("RESERVE") == said.count("COMMIT") == ROUNDS
    assert works("show", hospital / "ledger.sqlite") == said
    assert "(3 entries before these; leave out --last to see them)" in works(
        "show", "--site", site, "--last", 2
    )


def test_show_for_programs(hospital, site):
    document = strict_json(works("show", "--site", site, "--json"))
    assert (document["size"], document["cap"], document["notes"]) == (5, 8, [])
    assert [entry["kind"] for entry in document["entries"]] == ["GENESIS", *["RESERVE", "COMMIT"] * ROUNDS]
    spent = document["cohorts"][FIRST_COHORT]
    assert 0 < spent["pld"] < spent["rdp"] < spent["counted"] < 8
    assert "pseudonym" not in json.dumps(document)


def test_a_policy_below_the_ledger_is_said_until_the_cap_follows(hospital, site):
    site.write_text(site.read_text().replace("lifetime: {epsilon: 8", "lifetime: {epsilon: 5"))
    line = f"    python -m deploy ledger cap --site {site} --to 5"
    for verb in ("show", "explain"):
        said = works(verb, "--site", site)
        assert "The smaller one holds for all work" in " ".join(said.split())
        assert line in said
    works(*shlex.split(line)[4:])
    assert all("NOTE" not in works(verb, "--site", site) for verb in ("show", "explain"))


def test_explain_in_sentences(hospital, site):
    works("cap", "--site", site, "--to", 5)
    assert run_rounds(site, 60, run="study-2") < 60
    works("incident", "key-lost", "--site", site, "--reference", "IT-1")
    works(
        "release", "--site", site, "--run", "study-1", "--round", 2, "--model", MODEL, "--audience", "public"
    )
    said = " ".join(works("explain", "--site", site).split())
    for words in (
        "WHAT IT PROMISES All that is published",
        "THE CAP Epsilon 5 on each patient",
        "Rényi divergence of order",
        "study-1, ",
        "2 rounds paid for by cohort c0",
        "budget-exhausted): It would have taken",
        "to the public, the model of study-1 after round 2",
        "key-lost, ticket IT-1.",
        "Participation and timing: That the hospital took part",
    ):
        assert words in said


def test_one_patient_for_the_hospitals_own_eyes(hospital, site):
    said = works("explain", "--site", site, "--patient", patients()[0])
    assert said.startswith("local: do not share\n")
    assert "in cohort c0, takes part." in said
    assert "- 80 steps, q 0.02, noise 1.1\n" in said
    assert "--patient nobody: no such patient" in refuses(
        "explain", "--site", site, "--patient", "nobody", code=3
    )


# --- verify ---------------------------------------------------------------------------------------------


@pytest.fixture
def export(hospital, site):
    works("export", "--site", site, "--out", hospital / "export.jsonl")
    return hospital / "export.jsonl"


def test_both_implementations_agree_on_a_ledger_in_order(hospital, site, export):
    for which in (["--site", site], [hospital / "ledger.sqlite"], [export]):
        said = " ".join(works("verify", *which).split())
        assert "VALID, 5 entries" in said
        assert "Two implementations that share no code agree" in said
        assert "NOT CHECKED: whether entries are missing at the end." in said
    said = works("verify", export, "--head", hospital / "head.json")
    assert "Nothing that the kept head contained is missing or changed." in said
    assert "NOT CHECKED" not in said
    document = strict_json(works("verify", "--site", site, "--json"))
    assert (document["is_valid"], document["agree"], document["size"], document["patients"]) == (
        True,
        True,
        5,
        True,
    )


def test_no_key_is_needed(hospital, export):
    for name in ("key.pem", "salt"):
        (hospital / name).unlink()
    assert "VALID" in works("verify", "--site", hospital / "site.yaml")
    assert "VALID" in works("verify", hospital / "ledger.sqlite")
    assert "VALID" in works("verify", export)


def edit(path):
    """Change one digit of the noise of entry 3, straight in the file."""
    content = bytearray(path.read_bytes())
    (found,) = re.finditer(rb'noise_multiplier\\?":(1\.1)[^}]*}\],\\?"round\\?":2', content)
    place = found.start(1)
    content[place + 2] = ord("9")
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["ledger.sqlite", "export.jsonl"])
def test_one_byte_is_found_and_named(hospital, export, name):
    edit(hospital / name)
    code, said, _ = ledger("verify", hospital / name)
    assert code == ExitCode.REFUSED_BY_PRIVACY
    said = " ".join(said.split())
    assert "NOT VALID. Two implementations that share no code agree:" in said
    assert re.search("- privacy.replay: entry 3: the signature is not", said)
    assert re.search("- privacy.verify_ledger: entry 3: ", said)
    assert "What to do: keep the file as it is, stop training on these patients" in said
    document = strict_json(ledger("verify", hospital / name, "--json")[1])
    assert (document["is_valid"], document["main"]["entry"], document["independent"]["entry"]) == (
        False,
        3,
        3,
    )


def test_no_verb_goes_on_with_an_edited_ledger(hospital, site):
    edit(hospital / "ledger.sqlite")
    before = (hospital / "ledger.sqlite").read_bytes()
    for verb in (
        ("show",),
        ("explain",),
        ("head",),
        ("prove", 1),
        ("export", "--out", hospital / "e"),
        ("roster",),
        ("cap", "--to", 5),
        ("incident", "key-lost"),
        ("rotate-key", "--new-key", hospital / "new.pem"),
    ):
        error = refuses(*verb, "--site", site, code=3)
        assert error.startswith("entry 3: the signature is not that of the site's key over this head; ")
    assert (hospital / "ledger.sqlite").read_bytes() == before
    assert not (hospital / "new.pem").exists()


def test_a_cut_off_end_is_found_with_a_head_and_not_without(hospital, export):
    with raw(hospital / "ledger.sqlite") as connection:
        connection.execute("DELETE FROM entries WHERE seq = 4")
    lines = export.read_text().splitlines(keepends=True)
    export.write_text("".join(lines[:4]))
    for name in ("ledger.sqlite", "export.jsonl"):
        said = " ".join(works("verify", hospital / name).split())
        assert "VALID, 4 entries" in said
        assert (
            "NOT CHECKED: whether entries are missing at the end. Nobody can see that without a head" in said
        )
        code, said, _ = ledger("verify", hospital / name, "--head", hospital / "head.json")
        assert code == ExitCode.REFUSED_BY_PRIVACY
        assert "somebody has seen 5 entries of this ledger and it has 4" in " ".join(said.split())


def test_a_ledger_written_anew_is_found_with_a_head(hospital, tmp_path):
    """The same key, salt and patients; the entries are others."""
    for name in ("ledger.sqlite", "ledger.sqlite-journal"):
        (hospital / name).unlink(missing_ok=True)
    works("init", "--site", hospital / "site.yaml")
    assert run_rounds(hospital / "site.yaml", 3, run="another") == 3
    assert "VALID" in works("verify", hospital / "ledger.sqlite")
    code, said, _ = ledger("verify", hospital / "ledger.sqlite", "--head", hospital / "head.json")
    assert code == ExitCode.REFUSED_BY_PRIVACY
    assert "ledger-forked" in said


def test_another_table_of_patients_is_found(hospital):
    with raw(hospital / "ledger.sqlite") as connection:
        connection.execute("UPDATE patients SET cohort = 'c7'")
    code, said, _ = ledger("verify", hospital / "ledger.sqlite")
    assert code == ExitCode.REFUSED_BY_PRIVACY
    assert "the table of patients is not the one that they hold" in " ".join(said.split())


@pytest.mark.slow
def test_whatever_byte_is_flipped_nothing_crashes_and_no_entry_passes(hospital, tmp_path):
    """Every 97th byte of the file; where the verdict is still `valid`, all entries are as they were."""
    content = (hospital / "ledger.sqlite").read_bytes()
    with raw(hospital / "ledger.sqlite") as connection:
        rows = connection.execute("SELECT * FROM entries ORDER BY seq").fetchall()
    file = tmp_path / "flipped.sqlite"
    codes = set()
    for place in range(0, len(content), 97):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        code, _, error = ledger("verify", file)
        codes.add(code)
        assert code in (0, 2, 3)
        assert error.count("\n") <= 1
        if code == 0:
            with raw(file) as connection:
                assert connection.execute("SELECT * FROM entries ORDER BY seq").fetchall() == rows
    assert {0, 3} <= codes


# --- proofs, heads, exports -----------------------------------------------------------------------------


def test_a_proof_convinces_who_has_no_ledger(hospital, site, tmp_path):
    works("incident", "drill", "--site", site)
    head, proof = hospital / "head.json", tmp_path / "proof.json"
    works("prove", "--site", site, 3, "--since", head, "--out", proof)
    said = works("check-proof", proof, "--head", head)
    assert "The proof holds: entry 3 (RESERVE, " in said
    assert load_key(hospital / "key.pem").public in said
    assert "Nothing that your kept head contained (5 entries) is missing or changed." in said
    proof.write_text(proof.read_text().replace('noise_multiplier\\":1.1', 'noise_multiplier\\":1.9'))
    assert "entry is not in the ledger of its head" in refuses("check-proof", proof, code=3)
    assert strict_json(works("prove", "--site", site, 0))["since"] is None
    assert "there is no entry 6; entries are 0 to 5" in refuses("prove", "--site", site, 6, code=2)


def test_no_proof_without_what_was_seen(hospital, site):
    with raw(hospital / "ledger.sqlite") as connection:
        connection.execute("DELETE FROM entries WHERE seq = 4")
    error = refuses("prove", "--site", site, 1, "--since", hospital / "head.json", code=3)
    assert error.startswith("ledger-rolled-back: somebody has seen 5 entries of this ledger and it has 4")


def test_an_export_holds_nothing_of_patients(hospital, export):
    text = export.read_text()
    with raw(hospital / "ledger.sqlite") as connection:
        names = [name for (name,) in connection.execute("SELECT pseudonym FROM patients")]
    assert len(names) == len(patients())
    assert not any(name.hex() in text for name in names)
    assert not any(patient in text for patient in patients())
    assert [json.loads(line).keys() for line in text.splitlines()] == [{"body", "signature"}] * 5
    assert "exists already, and nothing is overwritten" in refuses(
        "export", "--site", hospital / "site.yaml", "--out", export, code=2
    )


# --- the cap --------------------------------------------------------------------------------------------


def test_two_people_raise_the_cap(hospital, site):
    said = works(*raise_cap(site, 10, "anna", "carl"))
    assert said.startswith("entry 5 was written: cap from epsilon 8 to 10, approved by ")
    assert f"python -m deploy ledger cap --site {site} --to 8" in said  # the policy still says 8
    assert "VALID" in works("verify", "--site", site)
    assert strict_json(works("show", "--site", site, "--json"))["cap"] == 10


def test_one_person_does_not(hospital, site):
    one = raise_cap(site, 10, "anna")
    assert "takes approvals by two different approvers, each given once" in refuses(*one, code=3)
    assert "takes approvals by two different approvers" in refuses(*one, *one[-2:], code=3)
    assert "takes approvals by two different approvers" in refuses(*one[:5], code=3)


def test_an_approval_is_good_for_one_place(hospital, site):
    both = raise_cap(site, 10, "anna", "bert")
    works("incident", "drill", "--site", site)
    assert "anna.json: an entry was written since the request" in refuses(*both, code=3)


def test_an_approval_is_for_one_figure(hospital, site):
    both = list(raise_cap(site, 10, "anna", "bert"))
    both[both.index(10)] = 12
    assert "it approves epsilon 10, not 12; write a new request" in refuses(*both, code=3)


def test_lowering_takes_nobody_and_raising_again_takes_two(hospital, site):
    assert works("cap", "--site", site, "--to", 5) == "entry 5 was written: cap from epsilon 8 to 5\n"
    assert "takes approvals by two" in refuses("cap", "--site", site, "--to", 8, code=3)
    assert "that is the cap in force already" in refuses("cap", "--site", site, "--to", 5, code=2)
    assert "lowering the cap needs no approval" in refuses(
        "cap", "--site", site, "--to", 4, "--request", hospital / "r", code=2
    )
    for odd in ("nan", "inf", "-1", "1e9"):
        assert "must be an epsilon from 0" in refuses("cap", "--site", site, f"--to={odd}", code=2)


def test_nobody_raises_a_cap_without_approvers(tmp_path):
    file = write_site(tmp_path)
    works("init", "--site", file)
    error = refuses("cap", "--site", file, "--to", 9, "--request", tmp_path / "r", code=3)
    assert "it can never be raised, for that takes two approvers and entry 0 names 0" in error


def test_the_cap_of_a_schedule(tmp_path):
    schedule = "[{sampling_probability: 0.1, noise_multiplier: 2.0, steps: 20}]"
    file = write_site(tmp_path, **{"policy:": f"rule: {{kind: fixed-plan, schedule: {schedule}}}\npolicy:"})
    works("init", "--site", file)
    assert "can never be raised" in refuses(
        "cap", "--site", file, "--to", 9, "--request", tmp_path / "r", code=3
    )
    assert "ends it for good" in refuses("cap", "--site", file, "--to", 3, code=2)
    works("cap", "--site", file, "--to", 3, "--yes")
    assert "nothing more can run" in works("show", "--site", file)


# --- keys, incidents, models ----------------------------------------------------------------------------


def test_a_new_key_takes_over(hospital, site):
    said = works("rotate-key", "--site", site, "--new-key", hospital / "new.pem")
    assert f"    key: {hospital / 'new.pem'}\n" in said
    assert load_key(hospital / "new.pem").public in said
    error = refuses("incident", "drill", "--site", site, code=2)
    assert "is not the one in force" in error
    assert f"set `key` in {site}" in error
    site.write_text(site.read_text().replace("key: key.pem", "key: new.pem"))
    works("incident", "drill", "--site", site)
    assert "VALID" in works("verify", "--site", site, "--head", hospital / "head.json")
    error = refuses("rotate-key", "--site", site, "--new-key", hospital / "key.pem", code=3)
    assert "one that was given up never comes back" in error


def test_incidents_have_a_form(site):
    assert works("incident", "drill", "--site", site) == "entry 5 was written: drill\n"
    assert "code Key lost: must be small letters" in refuses("incident", "Key lost", "--site", site, code=2)
    assert "never a name" in refuses("incident", "drill", "--site", site, "--reference", "Anna B.", code=2)


def test_a_model_is_of_a_study_that_was_paid_for(site):
    release = ("release", "--site", site, "--round", 2, "--audience", "partners")
    assert "did you mean `study-1`?" in refuses(*release, "--run", "study1", "--model", MODEL, code=2)
    assert "must be the SHA-256" in refuses(*release, "--run", "study-1", "--model", "A" * 64, code=2)
    said = works(*release, "--run", "study-1", "--model", MODEL)
    assert said == "entry 5 was written: study-1, round 2: model aaaaaaaaaa… given to the partners\n"


def test_keys_are_never_overwritten_and_never_open(hospital, site):
    assert "exists already, and a secret is never overwritten" in refuses(
        "keygen", hospital / "anna.pem", code=2
    )
    (hospital / "key.pem").chmod(0o644)
    assert "others can read it (mode 644); chmod 600" in refuses("incident", "drill", "--site", site, code=2)
    (hospital / "key.pem").unlink()
    assert "there is no such key; restore the site's key" in refuses(
        "incident", "drill", "--site", site, code=2
    )


def test_without_a_ledger_every_verb_says_how_to_begin(tmp_path):
    file = write_site(tmp_path)
    for verb in (
        ("show",),
        ("verify",),
        ("explain",),
        ("head",),
        ("prove", 0),
        ("roster",),
        ("cap", "--to", 1),
    ):
        error = refuses(*verb, "--site", file, code=2)
        assert f"there is no ledger yet; begin one: python -m deploy ledger init --site {file}" in error


# --- the whole ------------------------------------------------------------------------------------------


def test_it_works_as_a_program_of_its_own(hospital, site):
    """In a shell whose locale knows ASCII alone, and into a pipe that closes."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "deploy", "ledger"]
    done = subprocess.run(
        [*command, "explain", "--site", str(site)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "R?nyi divergence" in done.stdout
    done = subprocess.run([*command, "verify"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.CONFIGURATION
    assert done.stderr.startswith("which ledger? give either --site site.yaml, or the file of a ledger")
    piped = shlex.join([*command, "show", "--site", str(site)]) + " | true"
    done = subprocess.run(["sh", "-c", piped], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", HOWTO, flags=re.S)
    for line in block.splitlines()
    if line.strip()
]


def test_the_howto_uses_every_verb():
    verbs = {command.name for command in ledger_app.registered_commands}
    assert {line.split()[4] for line in COMMANDS if line.startswith("python -m deploy ledger ")} == verbs
    assert len(HOWTO.splitlines()) <= 120


def test_every_command_of_the_howto_runs(tmp_path, monkeypatch):
    """In its order, at a hospital that puts public keys into its file, trains, and changes `key` at the end."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "privacy/verify_ledger.py", tmp_path)
    for name, value in {"PATIENT": patients()[0], "RUN": "study-1", "MODEL": MODEL}.items():
        monkeypatch.setenv(name, value)
    keys = []
    for line in COMMANDS:
        words = shlex.split(os.path.expandvars(line))
        if words[1] == "verify_ledger.py":
            done = subprocess.run(
                [sys.executable, "-I", *words[1:]], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            continue
        if words[4] == "init":
            write_site(tmp_path, approvers=keys)
        said = works(*words[4:])
        if words[4] == "keygen":
            keys.append(said.split()[-1])
        elif words[4] == "init":
            assert run_rounds(Path("site.yaml"), ROUNDS) == ROUNDS
    Path("site.yaml").write_text(Path("site.yaml").read_text().replace("key: key.pem", "key: new-key.pem"))
    assert works("incident", "drill", "--site", "site.yaml").startswith("entry ")
