"""One cache of prepared founders for all phantom tests of a process: preparing one takes seconds."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel
import numpy as np

from vae.data.phantom.anatomy import Body
from vae.data.phantom.founder import founder_names, load_founder
from vae.data.phantom.person import draw_person
from vae.data.phantom.spec import PhantomSpec

_HOME = TemporaryDirectory(prefix="phantom-tests-")
CACHE = Path(_HOME.name)

SMALL = {"patients_per_site": 3, "test_patients_per_site": 2, "visits": (1, 2), "degrees": (10, 50)}


def template(spec: PhantomSpec | None = None):
    """Return the MNI152 founder."""
    return load_founder(spec or PhantomSpec(), "mni152", cache=CACHE)


def person(spec: PhantomSpec, index: int, *, site: int = 0):
    """Draw one person."""
    return draw_person(spec, site=site, index=index, founders=founder_names(spec))


def body(spec: PhantomSpec, index: int, *, site: int = 0) -> Body:
    """Return the body of a person descended from the template."""
    return Body(person(spec, index, site=site), template(spec))


@cache
def label_head() -> np.ndarray:
    """Return a crude head [96, 112, 96] at 2 mm: nested ellipsoids with FreeSurfer's numbers."""
    shape = (96, 112, 96)
    x, y, z = np.meshgrid(*[(np.arange(n) - n / 2) * 2.0 for n in shape], indexing="ij")

    def inside(centre, half):
        a, b, c = ((g - o) / h for g, o, h in zip((x, y, z), centre, half, strict=True))
        return a**2 + b**2 + c**2 < 1

    labels = np.zeros(shape, dtype=np.int16)
    left = x < 0
    for numbers, centre, half in (
        ((42, 3), (0, 0, 10), (66, 84, 62)),
        ((41, 2), (0, 0, 10), (58, 76, 54)),
        ((47, 8), (0, -45, -38), (48, 28, 18)),
    ):
        where = inside(centre, half)
        labels[where & ~left], labels[where & left] = numbers
    for number, mirrored, centre, half in (
        (43, 4, (12, 5, 16), (7, 34, 9)),
        (49, 10, (12, -5, 6), (8, 13, 8)),
        (50, 11, (15, 28, 12), (5, 12, 7)),
        (51, 12, (26, 18, 2), (6, 14, 9)),
        (53, 17, (27, -6, -14), (8, 18, 7)),
        (54, 18, (25, 14, -18), (7, 7, 7)),
    ):
        labels[inside(centre, half)] = number
        labels[inside((-centre[0], *centre[1:]), half)] = mirrored
    return labels


def write_labels(path: Path, labels: np.ndarray, affine: np.ndarray | None = None) -> None:
    """Write a label map as NIfTI, centred on the origin."""
    if affine is None:
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        affine[:3, 3] = [-size for size in labels.shape]
    nibabel.save(nibabel.Nifti1Image(labels, affine), path)
