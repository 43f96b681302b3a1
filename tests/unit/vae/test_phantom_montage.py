"""Contact sheets are upright, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from vae.data.phantom.montage import montage


def test_anterior_is_up_and_right_is_right():
    record = np.zeros((4, 6))
    record[3, 5] = 1.0  # x: right, y: anterior
    picture = montage([record])
    assert picture.shape == (6, 4)
    assert picture[0, 3] == 1.0
    assert picture.sum() == 1.0


def test_volumes_show_three_planes_and_tiles_are_laid_out_in_rows():
    records = [np.full((8, 10, 6), value) for value in (0.2, 0.4, 2.0)]
    picture = montage(records, columns=2)
    assert picture.shape == (20, 2 * (8 + 8 + 10))
    assert picture[5, 3] == pytest.approx(0.2)
    assert picture.max() == 1.0
    assert picture[10:, 26:].max() == 0.0, "the fourth tile is blank"
    assert montage(records, columns=2, scale=3).shape == (60, 156)


@pytest.mark.parametrize("records", [[], [np.zeros((2, 2)), np.zeros((3, 3))]])
def test_records_must_match(records):
    with pytest.raises(ValueError, match="one record at least, all of one shape"):
        montage(records)
