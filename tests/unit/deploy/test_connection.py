"""The section `connection` of a hospital's file: addresses, halves of a pair, files given twice."""

import pytest

from deploy.connection import Address, parse_address, parse_proxy
from deploy.errors import ConfigError
from deploy.site import load_site
from tests.support.audits import SITE_YAML


@pytest.fixture
def load(tmp_path):
    def load_section(section):
        file = tmp_path / "site.yaml"
        file.write_text(SITE_YAML.format(cap=3, model="a" * 64) + section)
        return load_site(file)

    return load_section


@pytest.fixture
def problem(load):
    def only_problem(section):
        with pytest.raises(ConfigError) as caught:
            load(section)
        (found,) = caught.value.problems
        return f"{found.path}: {found.rule}"

    return only_problem


def test_a_file_without_the_section_is_valid(load):
    assert load("").connection is None
    assert load("connection: null\n").connection is None


def test_paths_count_from_the_folder_of_the_file(load, tmp_path):
    made = load("connection: {server: 'link.example:443', ca: ca.pem, supernode_key: keys/node}\n").connection
    assert made.address == ("link.example", 443)
    assert (made.ca, made.supernode_key) == (str(tmp_path / "ca.pem"), str(tmp_path / "keys/node"))
    assert (made.certificate, made.key, made.proxy, made.proxy_address) == (None, None, None, None)


def test_a_proxy(load):
    made = load("connection: {server: '[::1]:8000', proxy: 'http://proxy.hospital:3128'}\n").connection
    assert made.proxy_address == ("proxy.hospital", 3128)
    assert made.address == ("::1", 8000)


@pytest.mark.parametrize("text", ["link.example:443", "10.0.0.1:1", "[::1]:65535", "a:80"])
def test_addresses_go_both_ways(text):
    assert str(parse_address(text)) == text


def test_a_proxy_may_end_with_a_slash():
    assert parse_proxy("http://proxy:3128/") == Address("proxy", 3128)


@pytest.mark.parametrize(
    "text",
    ["link.example", "https://link.example:443", "link.example:0", "link.example:65536", ":443", "a b:1", "::1:8000"],
)  # fmt: skip
def test_what_is_no_address(problem, text):
    assert problem(f"connection: {{server: '{text}'}}\n").startswith("connection.server: must be host:port")


@pytest.mark.parametrize(
    "text", ["proxy:3128", "https://proxy:3128", "http://me:secret@proxy:3128", "http://p"]
)
def test_what_is_no_proxy(problem, text):
    said = problem(f"connection: {{server: 'a:1', proxy: '{text}'}}\n")
    assert said.startswith("connection.proxy: must be ")
    assert "host:port" in said


def test_the_server_is_required(problem):
    assert problem("connection: {ca: ca.pem}\n") == "connection.server: is required"


@pytest.mark.parametrize(("there", "missing"), [("certificate", "key"), ("key", "certificate")])
def test_half_a_client_certificate(problem, there, missing):
    said = problem(f"connection: {{server: 'a:1', {there}: x.pem}}\n")
    assert said == f"connection.{there}: goes with `connection.{missing}`; give both or neither"


@pytest.mark.parametrize(
    ("section", "same"),
    [
        ("supernode_key: key.pem", "connection.supernode_key: is the same file as `key`"),
        ("supernode_key: salt", "connection.supernode_key: is the same file as `salt`"),
        ("certificate: c.pem, key: key.pem", "connection.key: is the same file as `key`"),
        ("certificate: c, key: k, supernode_key: k", "supernode_key: is the same file as `connection.key`"),
    ],
)
def test_one_file_for_two_secrets(problem, section, same):
    assert same in problem(f"connection: {{server: 'a:1', {section}}}\n")


def test_certificate_and_key_may_share_a_file(load):
    assert load("connection: {server: 'a:1', certificate: both.pem, key: both.pem}\n").connection.key
