"""Which test records are shown, and where volumes are cut."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.support.sites import BRAIN, LESION, SIDE, healed, identity, image_site, table_site
from vae.tasks.panels import panels


@pytest.fixture(scope="module")
def images():
    return {"north": image_site("north", seed=1)}


def test_panels_show_the_highest_degree_of_different_patients(images):
    shown = panels(healed, images["north"], num=3)
    assert shown.original.shape == shown.reconstruction.shape == shown.zmap.shape == (3, SIDE, SIDE)
    assert shown.degree == (40.0, 40.0, 40.0)
    assert np.allclose(shown.residual, shown.original - shown.reconstruction)
    assert shown.zmap[:, LESION].mean() < -3 < shown.zmap[:, BRAIN & ~LESION].mean()
    assert np.array_equal(shown.lesion[0], LESION)
    assert len({image.tobytes() for image in shown.original}) == 3
    again = panels(identity, images["north"], num=3)
    assert np.array_equal(again.original, shown.original)  # the choice does not depend on the model


def test_panels_cut_volumes_through_the_lesion():
    data = image_site("deep", seed=5, patients=3, shape=(SIDE, SIDE, 5))
    lesion = np.array(data.test.labels["lesion"])
    lesion[..., :4] = 0  # left in the last slice alone
    test = dataclasses.replace(data.test, labels=data.test.labels | {"lesion": lesion})
    moved = dataclasses.replace(data, test=test)
    shown = panels(identity, moved, num=9)
    assert shown.original.shape == (3, SIDE, SIDE)
    assert shown.lesion.any(axis=(1, 2)).all()
    plain = dataclasses.replace(
        data,
        reference=None,
        test=dataclasses.replace(data.test, labels={"anomaly": data.test.labels["anomaly"]}),
    )
    middle = panels(identity, plain, num=1)
    assert middle.zmap is None
    assert middle.lesion is None
    assert np.array_equal(middle.original[0], data.test.values[1, 0, :, :, 2])


def test_panels_of_a_table_are_refused():
    with pytest.raises(ValueError, match="rows of a table"):
        panels(identity, table_site("east", seed=3))
