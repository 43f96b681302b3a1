"""The register: lines are added and never changed, and a line that was not written by us is named."""

import json
import typing
from datetime import timedelta

import pytest
from cryptography import x509

from deploy.provision import command
from deploy.provision.authority import read_authority
from deploy.provision.failures import AuthorityError
from deploy.provision.register import REASONS, Reason, read_register
from tests.support.authorities import NOW, admit, end, make_authority, renew_same, serve


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """An authority with a server, north twice (one revoked) and south; what the register held on the way."""
    folder = tmp_path_factory.mktemp("register")
    authority, contents = make_authority(folder / "ours"), []
    steps = (
        lambda: serve(authority, folder / "server"),
        lambda: admit(authority, "north", folder / "north"),
        lambda: renew_same(authority, "north", folder / "second.pem"),
        lambda: end(authority, "north", keep_newest=True),
        lambda: admit(authority, "south", folder / "south"),
    )
    for step in steps:
        step()
        contents.append((authority / "register.jsonl").read_bytes())
    return authority, contents


def test_each_verb_adds_a_line_and_leaves_the_rest(original):
    before = b""
    for content in original[1]:
        assert content.startswith(before)
        assert content[len(before) :].count(b"\n") == 1
        before = content


def test_a_line_says_what_was_issued_and_why_it_was_revoked(original):
    lines = [json.loads(line) for line in original[1][-1].splitlines()]
    assert [(line["event"], line.get("kind"), line.get("name")) for line in lines] == [
        ("issued", "server", "localhost"),
        ("issued", "site", "north"),
        ("issued", "site", "north"),
        ("revoked", None, None),
        ("issued", "site", "south"),
    ]
    assert lines[1]["not_before"] == f"{NOW - timedelta(minutes=5):%Y-%m-%dT%H:%M:%SZ}"
    assert lines[1]["not_after"] == f"{NOW + timedelta(days=365):%Y-%m-%dT%H:%M:%SZ}"
    assert lines[3] == {
        "event": "revoked",
        "serial": lines[1]["serial"],
        "at": f"{NOW:%Y-%m-%dT%H:%M:%SZ}",
        "reason": "superseded",
    }
    assert lines[0]["supernode"] is None
    assert lines[1]["supernode"].startswith("ecdsa-sha2-nistp384 ")


def test_it_is_read_back(original):
    register = read_authority(original[0]).register
    first, second = register.of("site", "north")
    assert (first.reason, second.reason) == ("superseded", None)
    assert first.keys == second.keys
    assert register.revoked == (first,)
    assert first.revoked_at == NOW.replace(microsecond=0)
    assert len({one.serial for one in register.issued}) == 4
    assert not register.of("server", "north")


@pytest.mark.parametrize(
    ("number", "change", "words"),
    [
        (1, (b'"issued"', b'"issued'), "not valid JSON"),
        (2, (b'"not_after": "20', b'"not_after": "30'), "validity must be those of the certificate"),
        (2, (b'"serial": "', b'"serial": "f'), "serial number and validity must be"),
        (3, (b'"kind": "site"', b'"kind": "sight"'), "kind must be site or server"),
        (4, (b'"superseded"', b'"boredom"'), "reason must be one of key-compromise, superseded"),
        (4, (b'"serial": "', b'"serial": "f'), "revokes a certificate that was not issued"),
        (4, (b'"at"', b'"to"'), "at is missing; 'to' is unknown"),
        (4, (b'Z"', b'"'), "does not match format"),
        (5, (b'"event": "issued"', b'"event": "revoked"'), "'certificate' is unknown"),
        (5, (b"}\n", b""), "not valid JSON"),
    ],
)
def test_a_line_that_was_not_written_is_named(original, tmp_path, number, change, words):
    old, new = change
    root = read_authority(original[0]).root
    lines = original[1][-1].splitlines(keepends=True)
    assert old in lines[number - 1]
    lines[number - 1] = lines[number - 1].replace(old, new)
    file = tmp_path / "register.jsonl"
    file.write_bytes(b"".join(lines))
    with pytest.raises(AuthorityError, match=words) as caught:
        read_register(file, root)
    assert f"register.jsonl: line {number}: " in str(caught.value)
    assert "restore the newest copy" in str(caught.value)


def test_a_certificate_of_another_authority_is_named(original, tmp_path):
    theirs = make_authority(tmp_path / "theirs")
    admit(theirs, "west", tmp_path / "west")
    file = tmp_path / "register.jsonl"
    file.write_bytes(original[1][-1] + (theirs / "register.jsonl").read_bytes())
    with pytest.raises(AuthorityError, match=r"line 6: the certificate must be signed by this authority"):
        read_register(file, read_authority(original[0]).root)


@pytest.mark.parametrize(("line", "words"), [(1, "which is written once"), (3, "or was revoked before")])
def test_a_line_that_is_there_twice_is_named(original, tmp_path, line, words):
    content = original[1][-1]
    file = tmp_path / "register.jsonl"
    file.write_bytes(content + content.splitlines(keepends=True)[line])
    with pytest.raises(AuthorityError, match=words):
        read_register(file, read_authority(original[0]).root)


def test_reasons_are_the_same_everywhere():
    assert tuple(REASONS) == typing.get_args(Reason)
    assert typing.get_args(typing.get_args(command.Reason)[0]) == tuple(REASONS)
    assert all(isinstance(flag, x509.ReasonFlags) for flag in REASONS.values())
