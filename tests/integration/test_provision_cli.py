"""`python -m deploy provision`: every verb as people call it, two programs at once, and all commands of the how-to."""

import hashlib
import json
import os
import re
import shlex
import stat
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.errors import ExitCode
from deploy.provision.command import provision_app
from deploy.provision.failures import AuthorityError, InputError, RequestError, exit_code, one_line
from privacy.errors import SigningError
from privacy.signing import create_key
from tests.support.authorities import contents
from tests.support.commands import strict_json
from tests.support.shared import ROOT

HOWTO = (ROOT / "deploy/docs/provisioning.md").read_text()


def provision(*arguments):
    """Run a verb; return exit code, standard output and standard error."""
    done = CliRunner().invoke(app, ["provision", *map(str, arguments)], catch_exceptions=False)
    assert "Traceback" not in done.output
    return done.exit_code, done.stdout, done.stderr


def works(*arguments):
    """Run a verb that must work; return standard output."""
    code, said, error = provision(*arguments)
    assert (code, error) == (ExitCode.DONE, "")
    return said


def refuses(folder, *arguments, code=ExitCode.CONFIGURATION):
    """Run a verb that must be refused, with nothing written in a folder; return its one line."""
    before = contents(folder)
    found, said, error = provision(*arguments)
    assert (found, said) == (code, ""), error
    assert error.count("\n") == 1, error
    assert contents(folder) == before
    return error


@pytest.fixture
def ours(tmp_path):
    works("authority", tmp_path / "ours", "--name", "Brain consortium")
    return tmp_path / "ours"


@pytest.fixture
def north(tmp_path):
    works("request", "--site", "north", "--out", tmp_path / "north")
    return tmp_path / "north/north.request.json"


def test_a_hospital_joins_is_renewed_and_leaves(ours, north, tmp_path):
    digits = hashlib.sha256(north.read_bytes()).hexdigest()
    spoken = " ".join(re.findall("....", digits))
    said = works("sign", ours, north, "--out", tmp_path / "north.pem")
    assert said.startswith(f"{tmp_path}/north.pem: certificate of north, good until ")
    assert f"hand nothing over before the hospital has read you the same:\n    {spoken}\n" in said
    assert f"for `flwr supernode register`: {ours}/sites/north/supernode.pub\n" in said
    assert (ours / "sites/north/supernode.pub").read_bytes() == (
        tmp_path / "north/supernode.pub"
    ).read_bytes()
    said = works("renew", ours, "north", "--out", tmp_path / "second.pem", "--days", 90)
    assert "fingerprint" not in said
    works("revoke", ours, "north", "--reason", "superseded", "--keep-newest")
    document = strict_json(works("list", ours, "--json"))
    states = [(row["state"], row["days_left"], row["reason"]) for row in document["certificates"]]
    assert states == [("revoked", 364, "superseded"), ("valid", 89, None)]
    assert document["crl_number"] == 2
    works("revoke", ours, "north", "--reason", "cessation-of-operation")
    assert "cessation-of-operation" in works("list", ours)


def test_both_sides_print_the_same_fingerprint(ours, tmp_path):
    said = works("request", "--site", "north", "--out", tmp_path / "north")
    (spoken,) = re.findall(r"^    ([0-9a-f ]{79})$", said, re.MULTILINE)
    file = tmp_path / "north/north.request.json"
    assert f"    {spoken}\n" in works(
        "sign", ours, file, "--out", tmp_path / "a.pem", "--fingerprint", spoken
    )
    wrong = spoken.replace(spoken[0], "f" if spoken[0] != "f" else "0")
    for other in (wrong, ""):
        error = refuses(tmp_path, "sign", ours, file, "--out", tmp_path / "b.pem", "--fingerprint", other)
        assert "--fingerprint: is not that of north.request.json" in error


def test_a_request_says_what_is_secret_and_makes_it_so(tmp_path):
    key = create_key(tmp_path / "key.pem")
    said = works(
        "request", "--site", "north", "--out", tmp_path / "north", "--ledger-key", tmp_path / "key.pem"
    )
    assert f"secret, and never sent: {tmp_path}/north/client.key, {tmp_path}/north/supernode\n" in said
    for name in ("client.key", "supernode"):
        assert stat.S_IMODE((tmp_path / "north" / name).stat().st_mode) == 0o600
    assert json.loads((tmp_path / "north/north.request.json").read_text())["ledger"] == key.public


def test_nothing_is_made_twice(ours, north, tmp_path):
    for verb in (
        ("authority", ours, "--name", "x"),
        ("request", "--site", "north", "--out", tmp_path / "north"),
        ("sign", ours, north, "--out", north),
        ("server", ours, "localhost", "--out", tmp_path / "north"),
    ):
        assert "exists already, and nothing is overwritten" in refuses(tmp_path, *verb)


def hostile(good):
    """Return hostile requests by name, each with what its refusal has to say."""
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    return {
        "truncated": (good[:-100], "not valid JSON"),
        "flipped": (bytes(flipped), ": "),
        "huge": (good + b" " * 100_000, "is larger than 8192 bytes"),
        "twice": (good.replace(b'"site"', b'"site":"south","site"'), "a key occurs twice"),
        "path": (good.replace(b'"north"', b'"../x"'), "site '../x': must be 1 to 64 letters"),
        "other": (good.replace(b'"north"', b'"south"'), "csr: is for 'CN=north', not for the site 'south'"),
        "steering": (good.replace(b'"north"', b'"\\u001b[2J"'), "site '\\x1b[2J': must be"),
        "empty": (b"", "not valid JSON"),
    }


@pytest.mark.parametrize("name", hostile(b"{}" * 100))
def test_a_hostile_request_is_refused_by_name_and_nothing_is_written(ours, north, tmp_path, name):
    content, words = hostile(north.read_bytes())[name]
    file = tmp_path / f"{name}.json"
    file.write_bytes(content)
    error = refuses(tmp_path, "sign", ours, file, "--out", tmp_path / "out.pem")
    assert f"{name}.json: " in error
    assert words in error
    assert "\x1b" not in error


@pytest.mark.parametrize("site", ["../x", "/etc/x", "a b", ""])
def test_a_site_has_a_plain_name(tmp_path, site):
    error = refuses(tmp_path, "request", "--site", site, "--out", tmp_path / "keys")
    assert f"--site {site}: must be 1 to 64 letters" in error


def test_a_name_of_other_keys_is_refused_with_exit_code_1(ours, north, tmp_path):
    works("sign", ours, north, "--out", tmp_path / "north.pem")
    works("request", "--site", "north", "--out", tmp_path / "again")
    again = tmp_path / "again/north.request.json"
    error = refuses(tmp_path, "sign", ours, again, "--out", tmp_path / "out.pem", code=ExitCode.FAILED)
    assert error.startswith("north: has a certificate for other keys")
    works("renew", ours, "north", "--request", again, "--out", tmp_path / "out.pem")
    error = refuses(tmp_path, "renew", ours, "north", "--fingerprint", "0", "--out", tmp_path / "x.pem")
    assert "--fingerprint: goes with --request alone" in error


def test_every_verb_that_signs_asks_for_the_passphrase(north, tmp_path):
    ours, file = tmp_path / "ours", tmp_path / "passphrase"
    file.write_text("correct horse battery\n")
    error = refuses(tmp_path, "authority", ours, "--name", "x", "--passphrase-file", file)
    assert "others can read it (mode 644); chmod 600" in error
    file.chmod(0o600)
    given = ("--passphrase-file", file)
    works("authority", ours, "--name", "x", *given)
    verbs = (
        ("server", ours, "localhost"),
        ("sign", ours, north, "--out", tmp_path / "a.pem"),
        ("renew", ours, "north", "--out", tmp_path / "b.pem"),
        ("revoke", ours, "north", "--reason", "superseded"),
    )
    for verb in verbs:
        assert "ca.key: needs its passphrase; give --passphrase-file" in refuses(tmp_path, *verb)
        works(*verb, *given)
    assert works("list", ours).count("north") == 2


def test_two_programs_that_sign_at_once_lose_nothing(ours, tmp_path):
    sites = ["a", "b", "c"]
    for site in sites:
        works("request", "--site", site, "--out", tmp_path / site)
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "deploy", "provision", "sign", ours, tmp_path / site / f"{site}.request.json",
             "--out", tmp_path / f"{site}.pem"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for site in sites
    ]  # fmt: skip
    for child in children:
        said, error = child.communicate(timeout=120)
        assert (child.returncode, error) == (0, ""), said
    listed = strict_json(works("list", ours, "--json"))["certificates"]
    assert [row["name"] for row in listed] == sites


def test_one_line_for_every_error():
    assert exit_code(InputError("x")) == exit_code(RequestError("x")) == exit_code(SigningError("x")) == 2
    assert exit_code(AuthorityError("x")) == exit_code(OSError()) == exit_code(KeyError()) == 1
    assert one_line(OSError(28, "No space left", "/x/y")).startswith("/x/y: No space left; check the path")
    assert one_line(InputError("a\n\x1b[2Jb")) == "a \N{REPLACEMENT CHARACTER}[2Jb"
    assert "KeyError: 'x'; this is a defect of the software" in one_line(KeyError("x"))


def test_an_error_can_be_traced(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDERATED_VAE_TRACEBACK", "1")
    with pytest.raises(InputError, match="there is no authority"):
        provision("list", tmp_path)


COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", HOWTO, flags=re.S)
    for line in block.splitlines()
    if line.strip()
]


def test_the_howto_uses_every_verb_and_stays_short():
    verbs = {command.name for command in provision_app.registered_commands}
    assert {line.split()[4] for line in COMMANDS if line.startswith("python -m deploy provision ")} == verbs
    assert len(HOWTO.splitlines()) <= 100


def test_every_command_of_the_howto_runs(tmp_path, monkeypatch):
    """In its order, by a coordinator who has a passphrase and was read the fingerprint; files are where it says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "passphrase").write_text("correct horse battery")
    (tmp_path / "passphrase").chmod(0o600)
    said = ""
    for line in COMMANDS:
        said = works(*shlex.split(os.path.expandvars(line))[4:])
        if "provision request" in line and "FINGERPRINT" not in os.environ:
            monkeypatch.setenv("FINGERPRINT", said.splitlines()[-1])
    states = [(row["name"], row["state"]) for row in strict_json(said)["certificates"]]
    assert states == [("link.example", "valid")] * 2 + [("north", "revoked")] * 3
    for name in (
        "authority/ca.key",
        "authority/ca.pem",
        "authority/crl.pem",
        "authority/register.jsonl",
        "authority/server/server.key",
        "authority/server/server.pem",
        "authority/sites/north/supernode.pub",
        "north-keys/client.key",
        "north-keys/supernode",
        "north-keys/supernode.pub",
        "north-keys/north.request.json",
        "north.pem",
    ):
        assert (tmp_path / name).is_file()
        assert name.rpartition("/")[2] in HOWTO
