"""Plots and scans: what is drawn is what was given, in one style, with its stamp."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from server.report import FEDERATED_DP, LatentUse, RoundEpsilon, SiteCurve
from server.report.arms import charted, forest, severity
from server.report.figures import MAX_SITES, drawn_sites, epsilon, latents, losses
from server.report.panels import MAX_SCANS, TILE, gallery
from tests.support.reports import image_report, panels, participation, table_report, unprotected_report

IMAGE = image_report(rounds=3)


def words(svg):
    """Return the texts of a figure."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def pixels(uri):
    """Return the RGB array behind a data URI."""
    raw = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))


# --- plots ----------------------------------------------------------------------------------------------------


def test_forest_names_every_arm_and_every_metric_that_has_no_curve():
    texts = words(forest(IMAGE))
    for name in ("Predict the mean", "site-3 alone", "Federated with DP", "Centralised, no privacy"):
        assert name in texts
    assert "mean squared error (in the brain)" in texts
    assert not [text for text in texts if "30 %" in text]
    assert {metric for _, metric in charted(IMAGE)} == {
        *("auroc_zmap", "auroc_zmap_within_site", "mse_brain", "ssim_brain", "healthiness_reconstruction")
    }


def test_severity_has_a_panel_a_family_and_refuses_without_one():
    texts = words(severity(IMAGE))
    assert "AUROC (Z-map)" in texts
    assert "Dice overlap" in texts
    with pytest.raises(ValueError, match="three degrees"):
        severity(table_report(rounds=2))


def test_a_missing_value_is_said_not_drawn():
    rows = tuple(
        replace(row, value=float("nan")) if row.arm == FEDERATED_DP and row.metric == "mse_brain" else row
        for row in IMAGE.results
    )
    assert "n/a" in words(forest(replace(IMAGE, results=rows)))
    assert "n/a" not in words(forest(IMAGE))


def test_epsilon_shows_what_every_site_spent():
    texts = words(epsilon(IMAGE))
    for row in IMAGE.privacy.per_site:
        assert f"{row.epsilon_pld:.2f}" in [text.strip() for text in texts]
    with pytest.raises(ValueError, match="without privacy"):
        epsilon(unprotected_report())


def test_caps_are_drawn_where_sites_have_one():
    sites = IMAGE.privacy.per_site
    capped = replace(IMAGE, privacy=replace(IMAGE.privacy, per_site=(replace(sites[0], cap=9.5), *sites[1:])))
    assert "cap" not in words(epsilon(IMAGE))
    assert "cap" in words(epsilon(capped))
    tick = re.compile(r'id="LineCollection_\d+"')
    assert len(tick.findall(epsilon(capped))) == len(tick.findall(epsilon(IMAGE))) + 1


def test_sites_with_one_history_share_a_line():
    curve = tuple(
        RoundEpsilon(round=turn, site=site, epsilon_rdp=turn * 1.1, epsilon_pld=float(turn))
        for turn in (1, 2, 3)
        for site in IMAGE.sites
    )
    texts = words(epsilon(replace(IMAGE, privacy=replace(IMAGE.privacy, curve=curve))))
    assert "4 sites alike" in texts


def test_seventeen_histories_are_told_by_their_ends():
    report = table_report(rounds=30)
    texts = words(epsilon(report))
    ends = [text for text in texts if text.startswith(("most: ", "least: "))]
    assert len(ends) == 2
    assert set(report.sites) <= set(texts)


def test_each_site_has_its_own_small_panel():
    report = table_report(rounds=4)
    for svg in losses(report):
        assert set(report.sites) <= set(words(svg))


def test_a_loss_that_is_none_leaves_a_gap():
    rows = tuple(
        SiteCurve(site="site-1", round=turn, reconstruction=value, kl=1.0)
        for turn, value in ((1, 3.0), (2, float("nan")), (3, 1.0))
    )
    reconstruction, _ = losses(replace(IMAGE, curves=rows))
    assert "nan" not in reconstruction.lower()


def test_latents_are_sorted_and_counted():
    uses = tuple(LatentUse(round=turn, kl_per_latent=(0.1, 2.0, 0.5), active_units=2) for turn in (1, 2))
    texts = words(latents(replace(IMAGE, latents=uses)))
    assert [text for text in texts if re.fullmatch(r"z\d", text)] == ["z2", "z3", "z1"]
    assert "Active units, of 3" in texts


def test_figures_are_the_same_twice_and_undated():
    assert epsilon(IMAGE) == epsilon(IMAGE)
    assert "<metadata" not in epsilon(IMAGE)


def test_names_are_no_mathematics():
    report = replace(IMAGE, sites=("a$b", "$\\frac{1}{0}$"), participation=(), curves=(), privacy=None)
    curves = tuple(SiteCurve(site=site, round=1, reconstruction=1.0, kl=1.0) for site in report.sites)
    texts = words(losses(replace(report, curves=curves))[0])
    assert "a$b" in texts
    assert "$\\frac{1}{0}$" in texts


def test_too_many_sites_are_drawn_by_trouble():
    sites = tuple(f"s{n}" for n in range(MAX_SITES + 5))
    cells = [replace(cell, status="admitted", detail="") for cell in participation(sites, 2)]
    cells[-1] = replace(cells[-1], status="failed")
    report = replace(table_report(rounds=2), sites=sites, participation=tuple(cells), curves=(), privacy=None)
    assert len(drawn_sites(report)) == MAX_SITES
    assert drawn_sites(report)[0] == sites[-1]
    assert drawn_sites(IMAGE) == IMAGE.sites


# --- scans ----------------------------------------------------------------------------------------------------


def with_panels(**change):
    return replace(IMAGE, synthetic=False, panels=replace(panels(scans=2), **change))


def test_tables_have_no_pictures():
    assert gallery(table_report(rounds=2)) is None


def test_all_rows_are_drawn_and_captioned():
    shown = gallery(IMAGE)
    assert [row.title for row in shown.rows] == ["Scan", "Healthy twin", "Residual", "Z-map", "Where to look"]
    assert {len(row.tiles) for row in shown.rows} == {6}
    assert shown.rows[0].alts[4] == "Scan: hypometabolism 48 %"
    assert len(shown.traversals) == 3
    assert shown.steps == ("−3.0", "−2.0", "−1.0", "0", "+1.0", "+2.0", "+3.0")
    assert len(shown.samples) == 9
    assert shown.tile(shown.rows[0]) == (shown.rows[0].tiles[4], "Scan: hypometabolism 48 %")


def test_without_a_reference_there_is_no_zmap():
    shown = gallery(with_panels(zmap=None))
    assert [row.title for row in shown.rows] == ["Scan", "Healthy twin", "Residual"]
    assert shown.hero[-1].title == "Residual"
    assert len(shown.legends) == 2


def test_one_window_for_all_scans():
    # The second scan is half as bright as the first: it must look half as bright.
    original = np.stack([np.full((32, 32), 0.8), np.full((32, 32), 0.4)]).astype(np.float32)
    shown = gallery(
        with_panels(
            **dict.fromkeys(("original", "reconstruction"), original),
            residual=0 * original,
            zmap=None,
            truth=None,
        )
    )
    bright, dim = (pixels(uri).mean() for uri in shown.rows[0].tiles)
    assert bright == pytest.approx(255, abs=1)
    assert dim == pytest.approx(127.5, abs=2)


def test_less_signal_is_blue_and_more_is_red_and_none_is_white():
    residual = np.zeros((2, 32, 32), np.float32)
    residual[0, :, :10], residual[0, :, 22:] = -0.5, 0.5
    shown = gallery(
        with_panels(original=residual, reconstruction=residual, residual=residual, zmap=None, truth=None)
    )
    tile = pixels(shown.rows[2].tiles[0]).astype(int)
    left, middle, right = tile[TILE // 2, 8], tile[TILE // 2, TILE // 2], tile[TILE // 2, -8]
    assert left[2] > left[0] + 50
    assert right[0] > right[2] + 50
    assert middle.min() > 235
    assert (shown.legends[1].low, shown.legends[1].high) == (
        "less signal than expected",
        "more signal than expected",
    )
    assert shown.legends[1].ticks == ("−0.5", "0", "+0.5")


def test_the_overlay_colours_only_what_is_remarkable():
    zmap = np.zeros((2, 32, 32), np.float32)
    zmap[0, 8:24, 8:24] = -4.0
    zmap[1] = 1.9
    flat = np.full((2, 32, 32), 0.5, np.float32)
    shown = gallery(with_panels(original=flat, reconstruction=flat, residual=0 * flat, zmap=zmap, truth=None))
    tile = pixels(shown.rows[4].tiles[0]).astype(int)
    centre, corner = tile[TILE // 2, TILE // 2], tile[4, 4]
    assert centre[2] > centre[0] + 50
    assert np.ptp(corner) <= 2
    calm = pixels(shown.rows[4].tiles[1])
    assert np.ptp(calm, axis=-1).max() <= 2


def test_the_truth_is_ringed():
    truth = np.zeros((2, 32, 32), bool)
    truth[0, 8:24, 8:24] = True
    flat = np.full((2, 32, 32), 0.5, np.float32)
    shown = gallery(
        with_panels(original=flat, reconstruction=flat, residual=0 * flat, zmap=0 * flat, truth=truth)
    )
    green = [
        (pixels(uri).astype(int)[..., 1] - pixels(uri).astype(int)[..., 0] > 100).sum()
        for uri in shown.rows[4].tiles
    ]
    assert green[0] > 200
    assert green[1] == 0


def test_row_zero_is_at_the_top():
    original = np.zeros((2, 32, 32), np.float32)
    original[:, :16] = 1.0
    shown = gallery(
        with_panels(original=original, reconstruction=original, residual=0 * original, zmap=None, truth=None)
    )
    tile = pixels(shown.rows[0].tiles[0])
    assert tile[10].mean() > 200
    assert tile[-10].mean() < 50


def test_narrow_images_keep_their_proportions():
    narrow = np.random.default_rng(0).random((2, 40, 20)).astype(np.float32)
    shown = gallery(
        with_panels(original=narrow, reconstruction=narrow, residual=0 * narrow, zmap=None, truth=None)
    )
    assert pixels(shown.rows[0].tiles[0]).shape == (TILE, TILE // 2, 3)


def test_what_cannot_be_drawn_is_counted():
    good = panels(scans=2)
    bad = good.original.copy()
    bad[0, 0, :3] = np.nan, np.inf, -np.inf
    assert gallery(with_panels(original=bad)).repaired == 3
    assert gallery(with_panels()).repaired == 0


def test_constant_and_empty_images_are_drawn():
    zero = np.zeros((2, 16, 16), np.float32)
    shown = gallery(with_panels(original=zero, reconstruction=zero, residual=zero, zmap=zero, truth=zero > 0))
    assert pixels(shown.rows[0].tiles[0]).max() == 0
    nothing = np.full((2, 16, 16), np.nan, np.float32)
    assert gallery(
        with_panels(original=nothing, reconstruction=zero, residual=nothing, zmap=None, truth=None)
    )


def test_many_scans_are_cut_and_counted():
    shown = gallery(replace(IMAGE, panels=replace(panels(scans=11), example=10)))
    assert len(shown.labels) == MAX_SCANS
    assert shown.left_out == 3
    assert shown.example == MAX_SCANS - 1


def test_the_stamp_is_burnt_into_the_picture():
    plain, stamped = gallery(with_panels()), gallery(replace(with_panels(), synthetic=True))
    for row, marked in zip(plain.rows, stamped.rows, strict=True):
        difference = np.abs(pixels(row.tiles[0]).astype(int) - pixels(marked.tiles[0]))
        assert difference[-16:, :70].max() > 60
        assert difference[: TILE // 2].max() <= 40  # elsewhere only the palette may differ


def test_the_key_figure_shows_one_metric():
    texts = words(forest(IMAGE, only=("anomaly", "auroc_zmap_30")))
    assert texts.count("Predict the mean") == 1
    assert [text for text in texts if text.startswith(("AUROC", "Dice"))] == ["AUROC (Z-map, 30 %)"]
