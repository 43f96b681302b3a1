"""`deploy doctor` at a small hospital with a centre on 127.0.0.1: healthy, ill, silent; what is never printed."""

import os
import re
import subprocess
import sys
import time

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from deploy.cli import app
from deploy.doctor.findings import Severity
from deploy.doctor.registry import CHECKS
from deploy.errors import ExitCode
from tests.support.audits import SITE_YAML, SPEC
from tests.support.commands import strict_json
from tests.support.doctors import HOST, authority, centre, connect_proxy, connection, http, listening, silent
from tests.support.shared import ROOT

PATIENTS = [f"MRN-77{number:03d}-schmidt" for number in range(60)]
DATA = "{kind: table, source: {path: ward-9-schmidt.csv, features: [secretion], standardise: none}}"
TOY = "{kind: toy, sites: 3, patients_per_site: 60, features: 6}"
SWITCHES = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["format", "site", "ready", "totals", "findings"],
    "properties": {
        "format": {"const": 1},
        "site": {"type": "string"},
        "ready": {"type": "boolean"},
        "totals": {
            "type": "object",
            "additionalProperties": False,
            "required": [severity.value for severity in Severity],
            "properties": {severity.value: {"type": "integer", "minimum": 0} for severity in Severity},
        },
        "findings": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["id", "severity", "found", "fix"],
                "properties": {
                    "id": {"enum": [check.id for check in CHECKS]},
                    "severity": {"enum": [severity.value for severity in Severity]},
                    "found": {"type": "string", "minLength": 1},
                    "fix": {"type": "string"},
                },
            },
        },
    },
}


def doctor(site, *arguments):
    """Run the command; return exit code, standard output and standard error."""
    done = CliRunner().invoke(
        app, ["doctor", "--site", str(site), *map(str, arguments)], catch_exceptions=False
    )
    assert "Traceback" not in done.output
    return done.exit_code, done.stdout, done.stderr


def as_json(site, *arguments):
    """Run the command for programs; return exit code and document."""
    code, said, error = doctor(site, "--json", *arguments)
    assert error == ""
    document = strict_json(said)
    Draft202012Validator(SCHEMA).validate(document)
    assert sum(document["totals"].values()) == len(document["findings"])
    assert document["ready"] is (code == ExitCode.DONE) is (document["totals"]["error"] == 0)
    return code, document


def told(document, *severities):
    """Return the checks that found something of some severities."""
    return {each["id"] for each in document["findings"] if each["severity"] in severities}


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch, tmp_path):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in SWITCHES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FEDERATED_VAE_CACHE", str(tmp_path / "cache"))


def write_hospital(folder, section):
    """Write everything that a hospital has: its own data, a ledger, a TLS client's pair, a key for Flower."""
    folder.mkdir(mode=0o700)
    client = authority().issue_cert("north@hospital.example")
    key = ec.generate_private_key(ec.SECP384R1())
    (folder / "node").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    (folder / "node").chmod(0o600)
    rows = "".join(f"{patient},{number}\n" for number, patient in enumerate(PATIENTS))
    (folder / "ward-9-schmidt.csv").write_text(f"participant_id,secretion\n{rows}")
    made = connection(folder, section.pop("server"), client=client, supernode_key="node", **section)
    text = (
        SITE_YAML.format(cap=3.0, model=SPEC.hash())
        .replace(TOY, DATA)
        .replace("min_sites: 1", "min_sites: 3")
    )
    lines = "".join(f"  {name}: '{value}'\n" for name, value in made.items())
    file = folder / "site.yaml"
    file.write_text(f"{text}connection:\n{lines}")
    begun = CliRunner().invoke(app, ["ledger", "init", "--site", str(file)], catch_exceptions=False)
    assert begun.exit_code == 0
    return file


@pytest.fixture
def server():
    with listening(centre(clients=authority())) as made:
        yield made


@pytest.fixture
def site(tmp_path, server):
    return write_hospital(tmp_path / "hospital", {"server": server.address})


def files(folder):
    """Return what lies in a folder, and when each was changed."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in folder.rglob("*")}


def test_a_hospital_that_is_ready(site, tmp_path):
    before = files(tmp_path)
    code, document = as_json(site)
    assert code == ExitCode.DONE
    assert told(document, "error", "skipped") == set()
    assert told(document, "warning") <= {
        "disk.fsync",
        "disk.free",
        "packages.versions",
        "limits.files",
        "gpu.match",
    }
    assert told(document, *Severity) == {check.id for check in CHECKS}
    assert files(tmp_path) == before, "nothing on disk is changed"


def test_the_same_for_a_person(site):
    code, said, error = doctor(site)
    assert (code, error) == (ExitCode.DONE, "")
    assert re.search(r"^site-2: no errors \(.*\d+ ok\)$", said.splitlines()[-1])
    assert max(map(len, said.splitlines())) <= 120


def test_through_a_proxy(tmp_path, server, monkeypatch):
    with listening(connect_proxy()) as proxy:
        there = f"http://{proxy.address}"
        site = write_hospital(tmp_path / "hospital", {"server": server.address, "proxy": there})
        assert told(as_json(site, "--only", "net")[1], "warning") == {"net.proxy"}
        monkeypatch.setenv("HTTPS_PROXY", there)
        code, document = as_json(site)
        assert (code, told(document, "error", "skipped")) == (ExitCode.DONE, set())
        assert proxy.had(3)


def test_everything_that_is_wrong_is_told_at_once_and_the_worst_first(tmp_path):
    strange = centre(certificate=authority("other").issue_cert(HOST))
    with listening(strange) as server:
        site = write_hospital(tmp_path / "hospital", {"server": server.address})
        folder = site.parent
        (folder / "salt").chmod(0o644)
        ledger = folder / "ledger.sqlite"
        content = ledger.read_bytes()
        ledger.write_bytes(content.replace(b'"dataset"', b'"Dataset"'))
        site.write_text(site.read_text().replace("lifetime: {epsilon: 3.0", "lifetime: {epsilon: 30"))
        with (folder / "ward-9-schmidt.csv").open("a") as table:
            table.write("MRN-99999-meyer,unknown\n" * 9)
        code, document = as_json(site)
        _, said, _ = doctor(site)
    assert code == ExitCode.FAILED
    assert told(document, "error") == {"tls.chain", "keys.mode", "ledger.verified", "data.ready"}
    assert told(document, "skipped") == {"http.health", "clock.skew", "ledger.head"}
    assert "policy.sane" in told(document, "warning")
    order = [list(Severity).index(each["severity"]) for each in document["findings"]]
    assert order == sorted(order)
    assert said.startswith("error    tls.chain ")
    assert said.splitlines()[-1].startswith("site-2: NOT READY (4 errors, ")


def test_nothing_of_patients_or_their_files_is_printed(tmp_path, monkeypatch):
    """Planted in data, table and exception; the hospital's own folder is named where a file is to be mended."""
    with listening(centre(clients=authority())) as server:
        site = write_hospital(tmp_path / "hospital", {"server": server.address})
        table = site.parent / "ward-9-schmidt.csv"
        printed = []
        for broken in (
            lambda: None,
            lambda: table.write_text(table.read_text() + "MRN-99999-meyer,unknown\n" * 30),
            lambda: table.write_text(table.read_text().replace("secretion", "secretion-of-schmidt")),
            table.unlink,
            lambda: monkeypatch.setattr("vae.data.tabular.read_rows", _raise),
        ):
            broken()
            for form in ((), ("--json",)):
                _, said, error = doctor(site, *form)
                printed.append(said + error)
    text = "\n".join(printed).replace(str(tmp_path), "")
    assert "broke off with" in text
    assert "value-missing" in text
    for secret in ("MRN", "schmidt", "meyer", "77001", "99999", "ward", "secretion", " 60 ", " 90 "):
        assert secret not in text, secret


def _raise(*_):
    raise RuntimeError("cannot read MRN-77001-schmidt in ward-9-schmidt.csv")


def test_a_centre_that_never_speaks_holds_nothing_up(tmp_path):
    with listening(silent) as server:
        site = write_hospital(tmp_path / "hospital", {"server": server.address})
        start = time.monotonic()
        code, document = as_json(site, "--timeout", 0.5)
        took = time.monotonic() - start
    assert code == ExitCode.FAILED
    assert told(document, "error") == {"tls.chain"}
    assert told(document, "skipped") == {"http.health", "clock.skew", "tls.days-left"}
    assert "keys.mode" in told(document, "ok")
    assert took < 10


def test_a_centre_that_drips_is_given_up(tmp_path):
    """Each byte is in time, the answer never ends: only the deadline of the check itself helps."""

    def drip():
        yield b"HTTP/1.1 200 OK\r\nX: "
        for _ in range(200):
            time.sleep(0.05)
            yield b"x"

    with listening(centre(answer=drip)) as server:
        site = write_hospital(tmp_path / "hospital", {"server": server.address})
        start = time.monotonic()
        code, document = as_json(site, "--timeout", 1, "--only", "http.health")
        took = time.monotonic() - start
    assert (code, told(document, "error")) == (ExitCode.FAILED, {"http.health"})
    assert "did not come to an end within 1 s" in document["findings"][0]["found"]
    assert took < 5


def test_before_a_hospital_joins(site):
    text = site.read_text()
    site.write_text(text[: text.index("connection:")])
    code, document = as_json(site)
    assert code == ExitCode.DONE
    skipped = told(document, "skipped")
    assert skipped == {check.id for check in CHECKS if check.on_line}
    assert all(
        "has no section `connection`" in each["found"]
        for each in document["findings"]
        if each["id"] in skipped
    )


def test_some_checks_only(site):
    _, document = as_json(site, "--only", "net.dns", "--only", "ledger")
    assert told(document, *Severity) == {"net.dns", "ledger.verified", "ledger.head"}


def test_a_file_that_cannot_be_used_names_every_problem(site):
    site.write_text(
        site.read_text().replace("min_sites: 3", "min_sites: none").replace("ca: 'ca.pem'", "cq: 'ca.pem'")
    )
    code, said, error = doctor(site)
    assert (code, said) == (ExitCode.CONFIGURATION, "")
    assert "policy.min_sites" in error
    assert "connection.cq" in error
    assert doctor(site.with_name("none.yaml"))[0] == ExitCode.CONFIGURATION


def test_no_such_check(site):
    code, said, error = doctor(site, "--only", "net.dnss")
    assert (code, said) == (ExitCode.CONFIGURATION, "")
    assert "did you mean `net.dns`?" in error


def test_as_a_person_runs_it(site):
    arguments = ["-m", "deploy", "doctor", "--site", str(site), "--only", "net", "--only", "tls"]
    environment = {**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_superlink_that_is_down(tmp_path):
    with listening(centre(answer=lambda: http("502 Bad Gateway"))) as server:
        site = write_hospital(tmp_path / "hospital", {"server": server.address})
        code, document = as_json(site, "--only", "http", "--only", "clock", "--only", "tls")
    assert (code, told(document, "error")) == (ExitCode.FAILED, {"http.health"})
    assert "clock.skew" in told(document, "ok"), "its proxy tells the time all the same"
