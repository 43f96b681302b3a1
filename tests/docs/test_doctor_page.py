"""deploy/docs/doctor.md cannot rot: its table is that of the code, its example loads, its options exist."""

import re

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.connection import ConnectionSection
from deploy.doctor.registry import CHECKS, table
from deploy.documents import parse
from deploy.site import load_site
from tests.support.audits import SITE_YAML
from tests.support.shared import ROOT

PAGE = (ROOT / "deploy/docs/doctor.md").read_text(encoding="utf-8")


def test_its_table_is_made_from_the_checks():
    lines = PAGE.splitlines()
    start = lines.index(next(table()))
    renew = 'print("\\n".join(deploy.doctor.registry.table())) makes it anew'
    assert lines[start : start + len(CHECKS) + 2] == list(table()), renew
    assert not lines[start + len(CHECKS) + 2].startswith("|"), "a row without a check"


def test_its_example_is_valid_and_names_every_field(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S)
    file = tmp_path / "site.yaml"
    file.write_text(SITE_YAML.format(cap=3, model="a" * 64) + text)
    assert load_site(file).connection.server == "link.example.org:443"
    assert set(parse(text).value["connection"]) == set(ConnectionSection.model_fields)


def test_its_options_are_those_of_the_command():
    said = CliRunner().invoke(app, ["doctor", "--help"], env={"COLUMNS": "200"}).stdout
    named = set(re.findall(r"--[a-z]+", PAGE.split("## What it reads")[0])) - {"--site"}
    assert named == set(re.findall(r"--[a-z]+", said)) - {"--site", "--help"}


@pytest.mark.parametrize("name", ["net", "tls", "ledger"])
def test_groups_that_it_names_exist(name):
    assert f"`{name}`" in PAGE
    assert any(check.id.startswith(f"{name}.") for check in CHECKS)


def test_it_is_one_page():
    assert len(PAGE.splitlines()) <= 90
