"""The list of what was issued: sites, validity, days left, revocations; no key is needed."""

from datetime import timedelta

import pytest

from deploy.provision.listing import overview, render
from tests.support.authorities import NOW, admit, end, make_authority, serve


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    folder = tmp_path_factory.mktemp("listing")
    made = make_authority(folder / "ours")
    serve(made, folder / "server")
    for site, days in (("south", 365), ("north", 20), ("west", 365)):
        admit(made, site, folder / site, days=days)
    end(made, "west", "key-compromise")
    (made / "ca.key").unlink()
    return made


def rows(ours, now):
    return {
        row["name"]: (row["state"], row["days_left"], row["reason"])
        for row in overview(ours, now)["certificates"]
    }


def test_states_and_days(ours):
    now = NOW.replace(microsecond=0)
    assert rows(ours, now) == {
        "localhost": ("valid", 365, None),
        "north": ("valid", 20, None),
        "south": ("valid", 365, None),
        "west": ("revoked", 365, "key-compromise"),
    }
    assert rows(ours, now + timedelta(days=20))["north"] == ("valid", 0, None)
    assert rows(ours, now + timedelta(days=20, seconds=1))["north"] == ("expired", -1, None)
    assert rows(ours, now - timedelta(minutes=6))["south"][0] == "not yet valid"


def test_as_a_table(ours):
    said = render(overview(ours, NOW.replace(microsecond=0)))
    first, header, server, north, south, west = said.splitlines()
    assert first.startswith("Brain consortium: good until ")
    assert first.endswith("2650 days; list of what was revoked: number 2")
    assert header.split() == ["kind", "name", "state", "until", "days", "left", "serial"]
    assert server.split()[:3] == ["server", "localhost", "valid"]
    assert north.split()[:4] == ["site", "north", "ends", "soon"]
    assert "  365  " in south
    assert f"revoked {NOW:%Y-%m-%d}, key-compromise" in west


def test_of_a_new_authority(tmp_path):
    made = make_authority(tmp_path / "new")
    assert render(overview(made, NOW)).endswith("\nnothing was issued yet\n")
    assert overview(made, NOW)["certificates"] == []
