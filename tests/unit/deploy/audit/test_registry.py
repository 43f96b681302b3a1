"""The entry for the Deployments Registry: valid, complete as far as software can, and open where it cannot."""

import jsonschema
import pytest
import yaml

from deploy.audit.document import Evidence
from deploy.audit.gaps import MARK
from deploy.audit.registry import to_entry, to_yaml
from deploy.documents import parse
from tests.support.audits import account, as_subject, check, report
from tests.support.shared import shared_data

MADE = {
    "site": report(),
    "run": report(account(claims="seeded"), kind="run"),
    "no noise": as_subject(report(account(claims="none")), claims="none"),
    "nothing": report(
        sites=(), departures=(), evidence=Evidence(), utility=None, proofs=(), checks=(check(),)
    ),
}


@pytest.fixture(scope="module")
def schema():
    return yaml.safe_load(shared_data("dp-registry/deployments-schema.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", MADE)
def test_it_is_valid(schema, name):
    entry = yaml.safe_load(to_yaml(MADE[name]))
    jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(entry)


def test_the_schema_would_refuse_a_wrong_one(schema):
    entry = to_entry(report())
    entry["deployment"]["basic"]["data_product_type"] = "Model"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(entry, schema)


def test_every_field_of_the_schema_is_filled_in(schema):
    entry = to_entry(report())["deployment"]
    for section, rules in schema["properties"]["deployment"]["properties"].items():
        missing = set(rules["properties"]) - set(entry[section])
        assert missing <= {"sources"}, section


def test_yaml_says_what_the_values_say():
    made = report()
    assert parse(to_yaml(made)).value == to_entry(made)


def test_epsilon_is_rounded_up_and_goes_with_its_delta():
    loss = to_entry(report(account(counted=2.7001)))["deployment"]["privacy_loss"]
    assert loss["privacy_parameters"] == {"epsilon": 2.71, "delta": 1e-5}
    assert loss["privacy_unit"] == "Patient"


@pytest.mark.parametrize(
    ("name", "word"), [("run", "SIMULATION, NO PRIVACY CLAIM"), ("no noise", "NO PRIVACY")]
)
def test_what_claims_nothing_carries_no_epsilon(name, word):
    deployment = to_entry(MADE[name])["deployment"]
    assert deployment["basic"]["name"].startswith(word)
    assert "privacy_parameters" not in deployment["privacy_loss"]
    assert "Had the noise been secret" in deployment["privacy_loss"]["privacy_parameters_details"]


def marked(value, path=""):
    """Return the dotted paths of texts that wait for a person."""
    if isinstance(value, dict):
        return {
            found for key, item in value.items() for found in marked(item, f"{path}.{key}" if path else key)
        }
    if isinstance(value, list):
        return {found for item in value for found in marked(item, path)}
    return {path} if isinstance(value, str) and MARK in value else set()


@pytest.mark.parametrize("name", MADE)
def test_every_question_has_its_mark_in_its_field_and_is_in_the_notes(name):
    made = MADE[name]
    entry = to_entry(made)
    waiting = marked(entry)
    notes = entry["deployment"]["administrative"]["notes"]
    for gap in made.gaps:
        assert gap.question in notes
        if gap.registry and gap.name not in ("publication", "post-processing"):
            assert gap.registry in waiting, gap.name
    assert "publication_date" in notes  # a date must stand there, so the notes say whose it is


def test_fields_that_only_a_person_knows_begin_with_the_mark():
    basic = to_entry(report())["deployment"]["basic"]
    assert basic["intended_use"].startswith(MARK)
    assert basic["data_product_region"].startswith(MARK)
    assert all(name.startswith(MARK) for name in basic["data_curators"])
    assert to_entry(report())["deployment"]["implementation"]["justification"].startswith(MARK)
