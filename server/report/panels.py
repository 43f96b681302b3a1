"""Scans as small PNG pictures: one window for all, one diverging colour scale, the stamp burnt in.

Values are enlarged before they are coloured (bicubic), so that a colour always stands for a value and never
for a mixture of two colours.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from server.report.document import Report
from server.report.slices import Image, Panels

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MAX_SCANS = 8
TILE = 176
"""Longer side of a tile [pixels]."""
Z_LIMIT, Z_SHOWN = 5.0, 2.0
"""Range of the Z colour scale, and the absolute Z from which a voxel is coloured over the scan."""

_Rgb = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of pictures: what it shows, in a few words and in a sentence, and a data URI a scan."""

    title: str
    meaning: str
    tiles: tuple[str, ...]
    alts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Legend:
    """A colour bar: data URI of a strip, tick labels left to right, and what the ends mean."""

    strip: str
    ticks: tuple[str, ...]
    title: str
    low: str = ""
    high: str = ""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """All pictures of a report.

    Attributes:
        labels: Captions of the scans that are shown.
        rows: Scan, pseudo-healthy reconstruction, residual, and Z-map and overlay where there are Z-values.
        legends: One a colour scale in use.
        left_out: How many scans are not shown.
        repaired: How many values were not finite and are drawn as zero.
        traversals: (caption, data URI of a strip) a latent.
        steps: Labels of the traversal's columns.
        samples: Data URIs of decoded samples.
        example: Which of the scans stands at the head of the page.
    """

    labels: tuple[str, ...]
    rows: tuple[Row, ...]
    legends: tuple[Legend, ...]
    left_out: int
    repaired: int
    traversals: tuple[tuple[str, str], ...]
    steps: tuple[str, ...]
    samples: tuple[str, ...]
    example: int

    @property
    def hero(self) -> tuple[Row, ...]:
        """Return the rows for the head of the page: scan, healthy twin, and the last and most telling one."""
        return (self.rows[0], self.rows[1], self.rows[-1])

    def tile(self, row: Row) -> tuple[str, str]:
        """Return the picture of the example in a row, and its caption for those who cannot see it."""
        return row.tiles[self.example], row.alts[self.example]


def gallery(report: Report) -> Gallery | None:
    """Return the pictures of a report, or None if it has no images."""
    panels = report.panels
    if panels is None:
        return None
    stamp = "synthetic" if report.synthetic else ""
    window, spread = _window(panels), _spread(panels)
    traversals = () if panels.traversals is None else panels.traversals
    samples = () if panels.samples is None else panels.samples
    return Gallery(
        labels=panels.labels[:MAX_SCANS],
        rows=_rows(panels, window, spread, stamp),
        legends=_legends(panels, window, spread),
        left_out=max(0, len(panels.labels) - MAX_SCANS),
        repaired=_not_finite(panels),
        traversals=tuple(
            (label, _uri(_strip([_tile(_grey(step, window), stamp, side=112) for step in row])))
            for label, row in zip(panels.traversal_labels, traversals, strict=True)
        ),
        steps=tuple(f"{value:+.1f}".replace("-", "−") if value else "0" for value in panels.traversal_values),
        samples=tuple(_uri(_tile(_grey(sample, window), stamp, side=112)) for sample in samples[:16]),
        example=min(panels.example, MAX_SCANS - 1),
    )


def _rows(panels: Panels, window: tuple[float, float], spread: float, stamp: str) -> tuple[Row, ...]:
    """Return the rows of the picture table."""
    chosen = range(min(len(panels.labels), MAX_SCANS))
    scans = [_grey(panels.original[n], window) for n in chosen]
    healthy = [_grey(panels.reconstruction[n], window) for n in chosen]
    residual = [_diverging(panels.residual[n], spread) for n in chosen]
    rows = [
        ("Scan", "the test scan as it is", scans),
        (
            "Healthy twin",
            "pseudo-healthy reconstruction: what the model expects of a healthy person",
            healthy,
        ),
        ("Residual", "scan minus healthy twin", residual),
    ]
    if panels.zmap is not None:
        zmap, truth = panels.zmap, panels.truth
        outlines = [None if truth is None else truth[n] for n in chosen]
        over = [_overlay(scans[n], zmap[n], outlines[n]) for n in chosen]
        ringed = "; ringed in green: where the change really is" if truth is not None else ""
        rows.append(
            ("Z-map", "residual against the spread among healthy people", [_z(zmap[n]) for n in chosen])
        )
        rows.append(("Where to look", f"the scan, coloured where |Z| is {Z_SHOWN:g} or more{ringed}", over))
    return tuple(
        Row(
            title=title,
            meaning=meaning,
            tiles=tuple(_uri(_tile(pixels, stamp)) for pixels in tiles),
            alts=tuple(f"{title}: {panels.labels[n]}" for n in chosen),
        )
        for title, meaning, tiles in rows
    )


def _legends(panels: Panels, window: tuple[float, float], spread: float) -> tuple[Legend, ...]:
    """Return the colour bars in use."""
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None, :]
    signs = {"low": "less signal than expected", "high": "more signal than expected"}
    bars = [
        Legend(
            strip=_uri(_picture(_grey(ramp, (0, 1), enlarge=False))),
            ticks=(f"{window[0]:.2g}", f"{window[1]:.2g}"),
            title="Scan and healthy twin: intensity",
        ),
        Legend(
            strip=_uri(_picture(_diverging(ramp * 2 - 1, 1.0, enlarge=False))),
            ticks=(f"−{spread:.2g}", "0", f"+{spread:.2g}"),
            title="Residual: intensity",
            **signs,
        ),
    ]
    if panels.zmap is not None:
        strip = _uri(_picture(_diverging(ramp * 2 - 1, 1.0, enlarge=False)))
        ticks = (f"−{Z_LIMIT:g}", "0", f"+{Z_LIMIT:g}")
        bars.append(Legend(strip=strip, ticks=ticks, title="Z: healthy standard deviations", **signs))
    return tuple(bars)


def _window(panels: Panels) -> tuple[float, float]:
    """Return the intensities drawn black and white, the same for every scan, reconstruction and sample."""
    values = panels.original[np.isfinite(panels.original)]
    if values.size == 0:
        return 0.0, 1.0
    low, high = min(0.0, float(np.percentile(values, 0.5))), float(np.percentile(values, 99.8))
    return (low, high) if high > low else (low, low + 1.0)


def _spread(panels: Panels) -> float:
    """Return the residual that is drawn in full colour, the same for every scan."""
    values = np.abs(panels.residual[np.isfinite(panels.residual)])
    return float(np.percentile(values, 99.5)) or 1.0 if values.size else 1.0


def _not_finite(panels: Panels) -> int:
    """Count values that cannot be drawn."""
    arrays = (
        panels.original,
        panels.reconstruction,
        panels.residual,
        panels.zmap,
        panels.traversals,
        panels.samples,
    )
    return int(sum(np.count_nonzero(~np.isfinite(array)) for array in arrays if array is not None))


def _enlarged(values: Image) -> Image:
    """Return the values on a finer grid, bicubic, longer side at least `TILE`."""
    from PIL import Image as Pillow

    clean = np.nan_to_num(np.asarray(values, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    scale = max(1.0, TILE / max(clean.shape))
    size = (max(1, round(clean.shape[1] * scale)), max(1, round(clean.shape[0] * scale)))
    return np.asarray(Pillow.fromarray(clean).resize(size, Pillow.Resampling.BICUBIC), dtype=np.float32)


def _grey(values: Image, window: tuple[float, float], *, enlarge: bool = True) -> _Rgb:
    """Return [H, W, 3] in grey."""
    fine = _enlarged(values) if enlarge else values
    level = np.clip((fine - window[0]) / (window[1] - window[0]), 0, 1)
    return np.repeat(np.round(level * 255).astype(np.uint8)[..., None], 3, axis=-1)


def _diverging(values: Image, limit: float, *, enlarge: bool = True) -> _Rgb:
    """Return [H, W, 3]: blue below zero, white at zero, red above."""
    from matplotlib import colormaps

    fine = _enlarged(values) if enlarge else values
    level = np.clip(fine / (2 * limit) + 0.5, 0, 1)
    pixels: _Rgb = np.round(colormaps["RdBu_r"](level)[..., :3] * 255).astype(np.uint8)
    return pixels


def _z(values: Image) -> _Rgb:
    """Return a Z-map on its fixed scale."""
    return _diverging(values, Z_LIMIT)


def _overlay(scan: _Rgb, zmap: Image, truth: npt.NDArray[np.bool_] | None) -> _Rgb:
    """Return the scan with remarkable Z-values coloured over it, and the true region ringed."""
    from scipy.ndimage import binary_dilation

    fine = _enlarged(zmap)
    weight = np.clip((np.abs(fine) - Z_SHOWN) / 0.4, 0, 1)[..., None] * 0.85
    mixed = scan * (1 - weight) + _z(zmap) * weight
    if truth is not None and truth.any():
        inside = _enlarged(truth.astype(np.float32)) > 0.5
        mixed[binary_dilation(inside, iterations=2) & ~inside] = (40, 200, 80)
    pixels: _Rgb = np.round(mixed).astype(np.uint8)
    return pixels


def _picture(pixels: _Rgb) -> Picture:
    """Return pixels as a picture."""
    from PIL import Image as Pillow

    return Pillow.fromarray(np.ascontiguousarray(pixels))


def _tile(pixels: _Rgb, stamp: str, *, side: int = TILE) -> Picture:
    """Return one picture, at most `side` pixels long, with the stamp burnt into its corner."""
    from PIL import ImageDraw, ImageFont

    picture = _picture(pixels)
    picture.thumbnail((side, side))
    if stamp:
        size = 11 if side >= TILE else 9
        at = (3, picture.height - size - 4)
        corner = np.asarray(picture.convert("L"))[at[1] :, : 6 * size]
        ink = "#1b2530" if corner.size and corner.mean() > 127 else "white"
        ImageDraw.Draw(picture).text(at, stamp, fill=ink, font=ImageFont.load_default(size))
    return picture


def _strip(tiles: list[Picture], gap: int = 4) -> Picture:
    """Return tiles side by side on white."""
    from PIL import Image as Pillow

    width = sum(tile.width for tile in tiles) + gap * (len(tiles) - 1)
    strip = Pillow.new("RGB", (width, max(tile.height for tile in tiles)), "white")
    left = 0
    for tile in tiles:
        strip.paste(tile, (left, 0))
        left += tile.width + gap
    return strip


def _uri(picture: Picture) -> str:
    """Return a picture as a data URI, in 256 colours: a third of the size, and no visible difference."""
    from PIL import Image as Pillow

    buffer = io.BytesIO()
    picture.convert("RGB").quantize(256, dither=Pillow.Dither.NONE).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
