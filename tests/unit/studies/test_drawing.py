"""The frontier: every line can be told from every other."""

from deploy.studies.drawing import look_of


def test_no_two_lines_look_alike():
    looks = [look_of(place) for place in range(64)]
    assert len({(look["color"], look["marker"]) for look in looks}) == 64
    assert "markerfacecolor" not in looks[0]
