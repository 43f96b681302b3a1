"""The scratch file: rows in, blocks out, nothing left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from server import aggregate, spool
from server.aggregate import WeightedMean
from server.errors import AggregationError
from server.robust import CoordinateMedian, Krum, Spooled, TrimmedMean
from server.spool import Spool


def _rows(count: int, width: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(5)
    return {f"site-{index}": generator.standard_normal(width).astype(np.float32) for index in range(count)}


def test_blocks_tile_the_rows_in_the_order_of_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "_BLOCK_BYTES", 3 * 4 * 4)  # four coordinates of three rows
    rows = _rows(3, 10)
    scratch = Spool(tmp_path, width=10)
    for site in ("site-2", "site-0", "site-1"):
        scratch.append(site, [rows[site][:4].reshape(2, 2), rows[site][4:5].reshape(()), rows[site][5:]])
    blocks = [(start, block.copy()) for start, block in scratch.blocks()]
    assert [start for start, _ in blocks] == [0, 4, 8]
    expected = np.stack([rows["site-0"], rows["site-1"], rows["site-2"]])
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks], axis=1), expected)
    assert (len(scratch), scratch.sites) == (3, ["site-0", "site-1", "site-2"])


def test_the_file_has_no_name(tmp_path: Path) -> None:
    scratch = Spool(tmp_path, width=4)
    scratch.append("site-1", [np.zeros(4, np.float32)])
    assert list(tmp_path.iterdir()) == []


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    scratch = Spool(tmp_path, width=4)
    scratch.close()
    scratch.close()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AggregationError, match=r"missing: No such file or directory; name one with room"):
        Spool(tmp_path / "missing", width=4)


def test_a_full_disk_is_an_aggregation_error() -> None:
    scratch = Spool.__new__(Spool)
    scratch._width, scratch._rows = 4, {}
    with Path("/dev/full").open("wb", buffering=0) as full:
        scratch._descriptor = full.fileno()
        with pytest.raises(AggregationError, match="scratch file: No space left on device"):
            scratch.append("site-1", [np.zeros(4, np.float32)])
    assert len(scratch) == 0


def test_a_file_cut_short_is_noticed(tmp_path: Path) -> None:
    scratch = Spool(tmp_path, width=4)
    scratch.append("site-1", [np.zeros(4, np.float32)])
    with pytest.raises(AggregationError, match="shorter than what was written"):
        scratch._read(memoryview(bytearray(8)), 12)


@pytest.mark.parametrize(
    "rule",
    [CoordinateMedian(), TrimmedMean(trim=1), Krum(num_byzantine=1, num_selected=2)],
    ids=lambda r: r.name,
)
def test_the_size_of_blocks_changes_no_bit(rule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Krum's distances are sums over blocks: it must at least choose the same updates.
    results = set()
    for size in (1, 7 * 4 * 13, 1 << 22):
        monkeypatch.setattr(spool, "_BLOCK_BYTES", size)
        aggregator = Spooled(rule=rule, scratch=tmp_path)
        aggregator.begin({"w": np.zeros(100, np.float32)})
        for site, row in _rows(7, 100).items():
            aggregator.add(site, 1.0, {"w": row})
        results.add(aggregator.finish()["w"].tobytes())
    assert len(results) == 1


def test_the_size_of_chunks_changes_no_bit_of_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    results = set()
    for size in (1, 13, 1 << 17):
        monkeypatch.setattr(aggregate, "_CHUNK", size)
        mean = WeightedMean()
        mean.begin({"w": np.zeros(100, np.float32)})
        for site, row in _rows(7, 100).items():
            mean.add(site, 0.3, {"w": row})
        results.add(mean.finish()["w"].tobytes())
    assert len(results) == 1
