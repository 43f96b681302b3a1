"""`python -m deploy audit` on a real small hospital and on real small simulations, whole and tampered with."""

import json
import re
import shutil
import sqlite3

import pytest
from typer.testing import CliRunner

from deploy.audit.write import DOCUMENT, ENTRY, ENVELOPE, PAGE
from deploy.cli import app
from deploy.errors import ExitCode
from deploy.site import load_site
from privacy.coverage import Quantity
from privacy.signing import load_key, unseal
from tests.support.audits import open_ledger, run_rounds, write_site
from tests.support.commands import run_here, strict_json, write_config

ROUNDS = 12  # the cap of 3 allows 11


def audit(*arguments):
    """Run the verb; return exit code, standard output and standard error."""
    done = CliRunner().invoke(app, ["audit", *map(str, arguments)], catch_exceptions=False)
    return done.exit_code, done.stdout, done.stderr


def checks(folder):
    """Return (name, site) -> status of an audit's checks."""
    document = strict_json((folder / DOCUMENT).read_text())
    return {(check["name"], check["site"]): check["status"] for check in document["checks"]}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A hospital that has spent its cap and refused a round, and the head that a server kept after it."""
    folder = tmp_path_factory.mktemp("hospital")
    file = write_site(folder)
    assert run_rounds(file, ROUNDS) == ROUNDS - 1
    head = open_ledger(load_site(file)).head()
    (folder / "head.json").write_text(json.dumps(head.to_dict()))
    return folder


@pytest.fixture
def hospital(original, tmp_path):
    return shutil.copytree(original, tmp_path / "hospital")


# --- a hospital ---------------------------------------------------------------------------------------------


def test_a_hospital_in_order(hospital, tmp_path):
    out = tmp_path / "audit"
    code, said, _ = audit(
        "--site", hospital / "site.yaml", "--head", hospital / "head.json", "--out", out, "--no-empirical"
    )
    assert code == ExitCode.DONE
    assert "site-2 has spent epsilon 3.00 of the 3 it allows for each patient." in said
    assert (
        "Round 12 would have come to 3.18 (its cap is 3) and was refused: no data were opened for it." in said
    )
    assert f"Report: {out / PAGE}" in said
    found = checks(out)
    assert found.pop(("second-verifier", "site-2")) in ("ok", "not-provided")
    open_ = {name for (name, _), status in found.items() if status != "ok"}
    assert open_ == {"attack", "control", "membership", "took-part", "copies"}
    assert {path.name for path in out.iterdir()} == {PAGE, DOCUMENT, ENVELOPE, ENTRY}


def test_the_envelope_is_signed_by_the_site(hospital, tmp_path):
    audit("--site", hospital / "site.yaml", "--out", tmp_path, "--no-empirical")
    key = load_key(hospital / "key.pem")
    assert unseal((tmp_path / ENVELOPE).read_bytes(), key.public) == (tmp_path / DOCUMENT).read_bytes()


def test_an_auditor_without_the_key_gets_a_report_that_nobody_signed(hospital, tmp_path):
    (hospital / "key.pem").unlink()
    code, _, errors = audit("--site", hospital / "site.yaml", "--out", tmp_path, "--no-empirical")
    assert code == ExitCode.DONE
    assert errors.startswith("not signed: ")
    assert not (tmp_path / ENVELOPE).exists()


def test_the_audit_changes_nothing_at_the_hospital(hospital, tmp_path):
    before = {path: path.read_bytes() for path in hospital.rglob("*") if path.is_file()}
    audit("--site", hospital / "site.yaml", "--out", tmp_path / "out", "--no-empirical")
    assert {path: path.read_bytes() for path in hospital.rglob("*") if path.is_file()} == before


def test_one_byte_of_the_file_is_changed(hospital, tmp_path):
    """The last digit of a noise multiplier, straight in the file: less would have been spent, had it been so."""
    path = hospital / "ledger.sqlite"
    content = bytearray(path.read_bytes())
    places = [match.start() for match in re.finditer(b'"kind":"RESERVE"', content)]
    place = content.index(b'"noise_multiplier":1.1', places[0]) + len(b'"noise_multiplier":1.')
    content[place] = ord("9")
    path.write_bytes(content)
    code, said, errors = audit("--site", hospital / "site.yaml", "--out", tmp_path, "--no-empirical")
    assert code == ExitCode.REFUSED_BY_PRIVACY
    assert "Something is wrong. Do not rely on these figures." in said
    assert re.search(r"violated, ledger-chain: The ledger of site-2 is broken: entry \d+ is not what", errors)
    found = checks(tmp_path)
    assert found["ledger-chain", "site-2"] == "violated"
    page = (tmp_path / PAGE).read_text()
    assert 'class="verdict bad"' in page


def test_an_older_copy_was_put_back(hospital, tmp_path):
    head = json.loads((hospital / "head.json").read_text())
    fresh = write_site(tmp_path / "fresh")
    assert run_rounds(fresh, 1) == 1
    code, _, errors = audit(
        "--site", fresh, "--head", hospital / "head.json", "--out", tmp_path / "a", "--no-empirical"
    )
    assert code == ExitCode.DONE  # a head of another ledger says nothing about this one
    assert checks(tmp_path / "a")["heads", "site-2"] == "not-provided"
    old = shutil.copytree(hospital, tmp_path / "old")
    assert run_rounds(hospital / "site.yaml", 1, run="study-2") == 0  # one refusal more
    newer = open_ledger(load_site(hospital / "site.yaml")).head()
    assert newer.size == head["size"] + 1
    (old / "head.json").write_text(json.dumps([newer.to_dict()]))
    code, _, errors = audit(
        "--site", old / "site.yaml", "--head", old / "head.json", "--out", tmp_path / "b", "--no-empirical"
    )
    assert code == ExitCode.REFUSED_BY_PRIVACY
    assert "An older copy was put back" in errors


def test_prints_json(hospital, tmp_path):
    code, said, _ = audit("--site", hospital / "site.yaml", "--out", tmp_path, "--no-empirical", "--json")
    assert code == ExitCode.DONE
    document = strict_json(said)
    assert said == (tmp_path / DOCUMENT).read_text()
    assert {row["quantity"] for row in document["coverage"]} == {quantity.value for quantity in Quantity}


def test_the_default_folder_names_site_and_day(hospital, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    audit("--site", hospital / "site.yaml", "--no-empirical")
    (folder,) = tmp_path.glob("audit-site-2-20??-??-??")
    assert (folder / PAGE).exists()


@pytest.mark.parametrize("arguments", [(), ("--site", "a", "--run", "b"), ("--run", "b", "--head", "c")])
def test_wrong_arguments(arguments):
    code, _, errors = audit(*arguments)
    assert code == ExitCode.CONFIGURATION
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("missing", ["ledger.sqlite", "site.yaml"])
def test_a_missing_file_is_one_line(hospital, tmp_path, missing):
    (hospital / missing).unlink()
    code, _, errors = audit("--site", hospital / "site.yaml", "--out", tmp_path / "out", "--no-empirical")
    assert code in (ExitCode.FAILED, ExitCode.CONFIGURATION)
    assert missing in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_a_head_that_is_none(hospital, tmp_path):
    (tmp_path / "head.json").write_text('{"size": 1}')
    code, _, errors = audit(
        "--site", hospital / "site.yaml", "--head", tmp_path / "head.json", "--no-empirical"
    )
    assert code == ExitCode.FAILED
    assert "head.json" in errors


def test_the_hospital_attacks_its_own_training(hospital, tmp_path):
    code, said, _ = audit("--site", hospital / "site.yaml", "--out", tmp_path)
    assert code == ExitCode.DONE
    assert "An attack that saw every single step could show epsilon" in said
    found = checks(tmp_path)
    assert [found[name, ""] for name in ("attack", "control", "membership")] == ["ok", "ok", "ok"]
    document = strict_json((tmp_path / DOCUMENT).read_text())
    assert 0 <= document["sites"][0]["demonstrated"] <= document["sites"][0]["cohorts"][0]["pld"]


# --- a simulated run ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """A run with budgets, of which one is spent after the first round."""
    folder = tmp_path_factory.mktemp("simulated")
    config = write_config(
        folder,
        federation={"rounds": 3, "quorum": 2},
        privacy={"sampling_probability": 0.1, "noise_multiplier": 1.2},
        budget={"epsilon": 9.0, "sites": {"site-1": 1.5}},
        arms=["mean", "federated", "federated-dp"],
    )
    run_here(config, folder / "out")
    return folder / "out"


@pytest.fixture
def run(simulated, tmp_path):
    return shutil.copytree(simulated, tmp_path / "out")


def test_a_run_in_order_claims_nothing(run):
    code, said, _ = audit("--run", run, "--no-empirical")
    assert code == ExitCode.DONE
    assert "no privacy is claimed" in said
    found = checks(run)
    assert {found["heads", f"site-{index}"] for index in (1, 2, 3)} == {"ok"}
    assert {found["claim", f"site-{index}"] for index in (1, 2, 3)} == {"ok"}
    assert {found["policy", f"site-{index}"] for index in (1, 2, 3)} == {"ok"}
    assert {found["randomness", f"site-{index}"] for index in (1, 2, 3)} == {"attention"}
    written = "".join((run / name).read_text() for name in (PAGE, DOCUMENT, ENTRY))
    body = re.sub(r"<style>.*?</style>", "", written, flags=re.DOTALL)
    assert re.search(r"\bprivate\b|anonym", body, flags=re.IGNORECASE) is None


def test_a_run_shows_utility_with_and_without_noise(run):
    audit("--run", run, "--no-empirical")
    utility = strict_json((run / DOCUMENT).read_text())["utility"]
    assert {row["arm"] for row in utility["rows"]} == {
        "Predict the mean",
        "Federated, no privacy",
        "Federated, seeded DP noise",
    }
    assert utility["costs"]


def test_a_run_can_be_signed(run, tmp_path):
    key = load_key(write_site(tmp_path / "auditor").parent / "key.pem")
    audit("--run", run, "--no-empirical", "--key", tmp_path / "auditor" / "key.pem")
    assert unseal((run / ENVELOPE).read_bytes(), key.public) == (run / DOCUMENT).read_bytes()


def test_a_ledger_of_a_run_that_was_put_back(run):
    """One site's ledger is replaced by that of a shorter history: the server's head and claim are not in it."""
    connection = sqlite3.connect(run / "sites/site-2/ledger.sqlite")
    connection.execute("DELETE FROM entries WHERE seq > 2")
    connection.commit()
    connection.close()
    code, _, errors = audit("--run", run, "--no-empirical")
    assert code == ExitCode.REFUSED_BY_PRIVACY
    found = checks(run)
    assert found["ledger-chain", "site-2"] == "ok"  # a chain alone cannot show that its end is gone
    assert found["heads", "site-2"] == found["claim", "site-2"] == "violated"
    assert found["heads", "site-3"] == "ok"
    assert "Entries of the ledger of site-2 are gone" in errors


def test_a_ledger_of_a_run_that_is_gone(run):
    (run / "sites/site-3/ledger.sqlite").unlink()
    code, _, errors = audit("--run", run, "--no-empirical")
    assert code == ExitCode.REFUSED_BY_PRIVACY
    assert "site-3 has a budget and no ledger, though the server has its claims." in errors


def test_a_checkpoint_of_another_configuration(run):
    config = run / "config.resolved.yaml"
    config.write_text(config.read_text().replace("noise_multiplier: 1.2", "noise_multiplier: 1.3"))
    code, _, errors = audit("--run", run, "--no-empirical")
    assert code == ExitCode.REFUSED_BY_PRIVACY
    assert "violated, checkpoint" in errors


def test_the_attack_of_the_run_itself_is_read(run):
    (run / "arms").mkdir(exist_ok=True)
    (run / "arms/audit.json").write_text("{}")
    code, _, errors = audit("--run", run)
    assert code == ExitCode.REFUSED_BY_PRIVACY
    assert "The run's own attack cannot be read" in errors


@pytest.fixture(scope="module")
def unbudgeted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbudgeted")
    run_here(write_config(folder), folder / "out")
    return folder / "out"


def test_a_run_without_ledgers(unbudgeted, tmp_path):
    run = shutil.copytree(unbudgeted, tmp_path / "out")
    code, said, _ = audit("--run", run, "--no-empirical")
    assert code == ExitCode.DONE
    found = checks(run)
    assert found["ledger-chain", "site-1"] == found["within-cap", "site-1"] == "not-provided"
    assert found["claim", "site-1"] == "ok"
    assert "has set no cap" in said
    (spent,) = (run / "sites/site-1").glob("spent-*-federated-dp.jsonl")
    spent.write_text(spent.read_text().splitlines()[0] + "\n")
    code, _, errors = audit("--run", run, "--no-empirical")
    assert code == ExitCode.REFUSED_BY_PRIVACY
    assert "site-1 has told the server of releases that are not in its own record" in errors


def test_a_run_without_noise_promises_nothing(tmp_path):
    config = write_config(tmp_path, privacy=None, arms=["federated"])
    run_here(config, tmp_path / "out")
    code, said, _ = audit("--run", tmp_path / "out", "--no-empirical")
    assert code == ExitCode.DONE
    assert "No privacy is promised to anybody." in said
    assert checks(tmp_path / "out")["protection", ""] == "attention"


def test_not_a_run(tmp_path):
    code, _, errors = audit("--run", tmp_path, "--no-empirical")
    assert code == ExitCode.FAILED
    assert errors.count("\n") == 1
