"""Checkpoints: round trips, fall-back from torn and altered ones, refusals."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from client.contract import FailureCode
from server.admission import Rejection, RejectionCode
from server.checkpoint import Checkpoint, latest, save
from server.errors import CheckpointError
from server.settings import StrategySettings
from tests.support.replies import ask, honest_reply, site_names, small_strategy, some_weights


def some_checkpoint(round_: int, *, config_hash: str = "c" * 64) -> Checkpoint:
    return Checkpoint(
        round=round_,
        run_id="run-1",
        config_hash=config_hash,
        weights=some_weights(round_),
        optimiser={f"mean/{name}": array for name, array in some_weights(100 + round_).items()},
        rejections=(
            Rejection(round=round_, site="site-2", code=RejectionCode.STALE_BASE),
            Rejection(
                round=round_, site="site-3", code=RejectionCode.SITE_FAILED, failure=FailureCode.OUT_OF_MEMORY
            ),
        ),
        claims={"site-1": '{"site":"site-1"}'},
        participation=({"site-1": "admitted", "site-2": "stale-base"},) * round_,
    )


def same(one: Checkpoint | None, other: Checkpoint) -> bool:
    """Compare checkpoints bit for bit."""
    if one is None:
        return False
    plain = [dataclasses.replace(each, weights={}, optimiser={}, average={}) for each in (one, other)]
    arrays = [
        {name: (a.shape, a.dtype, a.tobytes()) for name, a in each.items()}
        for each in (
            one.weights,
            other.weights,
            one.optimiser,
            other.optimiser,
            one.average,
            other.average,
        )
    ]
    return plain[0] == plain[1] and arrays[::2] == arrays[1::2]


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    path = save(tmp_path / "new" / "folder", some_checkpoint(12))
    assert path.name == "round-000012"
    assert same(latest(tmp_path / "new" / "folder"), some_checkpoint(12))
    assert not same(latest(tmp_path / "new" / "folder"), some_checkpoint(11))


def test_an_empty_optimiser_is_kept_empty(tmp_path: Path) -> None:
    save(tmp_path, dataclasses.replace(some_checkpoint(1), optimiser={}))
    found = latest(tmp_path)
    assert found is not None
    assert found.optimiser == {}


def with_average(round_: int) -> Checkpoint:
    return dataclasses.replace(some_checkpoint(round_), average=some_weights(7))


def test_an_average_is_kept_in_a_file_of_its_own(tmp_path: Path) -> None:
    path = save(tmp_path, with_average(4))
    assert (path / "average.safetensors").exists()
    assert same(latest(tmp_path), with_average(4))
    assert not same(latest(tmp_path), some_checkpoint(4))


def test_an_average_that_is_torn_or_gone_makes_the_checkpoint_none(tmp_path: Path, caplog) -> None:
    save(tmp_path, with_average(4))
    path = save(tmp_path, with_average(5)) / "average.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert same(latest(tmp_path), with_average(4))
    path.unlink()
    assert same(latest(tmp_path), with_average(4))


def test_without_an_average_a_checkpoint_is_byte_for_byte_what_it_was_before_there_were_averages(
    tmp_path: Path,
) -> None:
    path = save(tmp_path, some_checkpoint(3))
    assert sorted(each.name for each in path.iterdir()) == [
        "manifest.json",
        "optimiser.safetensors",
        "weights.safetensors",
    ]
    body = json.loads(json.loads((path / "manifest.json").read_text())["body"])
    assert set(body) == {
        "format", "round", "run_id", "config_hash", "files", "signatures", "rejections", "claims", "participation",
        "heads",
    }  # fmt: skip
    assert set(body["files"]) == set(body["signatures"]) == {"weights.safetensors", "optimiser.safetensors"}


def test_equal_checkpoints_are_equal_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        save(tmp_path / folder, some_checkpoint(3))
    for name in ("weights.safetensors", "optimiser.safetensors", "manifest.json"):
        one, other = ((tmp_path / folder / "round-000003" / name).read_bytes() for folder in ("a", "b"))
        assert one == other


@pytest.mark.parametrize("make", [lambda path: path, lambda path: path / "missing"])
def test_where_nothing_was_saved_there_is_none(tmp_path: Path, make) -> None:
    assert latest(make(tmp_path)) is None


def test_the_newest_is_by_number_not_by_name_or_time(tmp_path: Path) -> None:
    for round_ in (999_999, 1_000_000, 2):
        save(tmp_path, some_checkpoint_light(round_), keep=9)
    found = latest(tmp_path)
    assert found is not None
    assert found.round == 1_000_000


def some_checkpoint_light(round_: int) -> Checkpoint:
    return Checkpoint(round=round_, run_id="r", config_hash="c", weights=some_weights(0))


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    for round_ in range(1, 6):
        save(tmp_path, some_checkpoint(round_))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "round-000003",
        "round-000004",
        "round-000005",
    ]
    save(tmp_path, some_checkpoint(6), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["round-000006"]


def test_keeping_none_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep is 0"):
        save(tmp_path, some_checkpoint(1), keep=0)
    assert list(tmp_path.iterdir()) == []


def test_the_same_round_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, some_checkpoint(1))
    changed = dataclasses.replace(some_checkpoint(1), run_id="run-2")
    save(tmp_path, changed)
    assert same(latest(tmp_path), changed)
    assert [path.name for path in tmp_path.iterdir()] == ["round-000001"]


def test_leftovers_of_a_killed_process_are_ignored_and_removed(tmp_path: Path) -> None:
    save(tmp_path, some_checkpoint(1))
    shutil.copytree(tmp_path / "round-000001", tmp_path / ".writing-abc")
    (tmp_path / "notes.txt").write_text("mine")
    assert same(latest(tmp_path), some_checkpoint(1))
    save(tmp_path, some_checkpoint(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "round-000001", "round-000002"]


@pytest.mark.parametrize("name", ["weights.safetensors", "optimiser.safetensors", "manifest.json"])
def test_cut_anywhere_the_one_before_is_returned(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, some_checkpoint(1))
    newest = save(tmp_path, some_checkpoint(2)) / name
    whole = newest.read_bytes()
    for length in range(0, len(whole), 7):
        newest.write_bytes(whole[:length])
        caplog.clear()
        assert same(latest(tmp_path), some_checkpoint(1)), f"cut to {length} of {len(whole)} bytes"
        assert "checkpoint round-000002 is skipped" in caplog.text
    newest.write_bytes(whole)
    assert same(latest(tmp_path), some_checkpoint(2))


@pytest.mark.parametrize("name", ["weights.safetensors", "optimiser.safetensors", "manifest.json"])
def test_with_any_byte_altered_the_one_before_is_returned(name: str, tmp_path: Path) -> None:
    save(tmp_path, some_checkpoint(1))
    newest = save(tmp_path, some_checkpoint(2)) / name
    whole = newest.read_bytes()
    for position in range(0, len(whole), 5):
        newest.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        found = latest(tmp_path)
        assert same(found, some_checkpoint(1)), f"byte {position}"
    newest.write_bytes(whole + b"\0")
    assert same(latest(tmp_path), some_checkpoint(1))


@pytest.mark.parametrize("name", ["weights.safetensors", "optimiser.safetensors", "manifest.json"])
def test_without_one_of_its_files_the_one_before_is_returned(name: str, tmp_path: Path) -> None:
    save(tmp_path, some_checkpoint(1))
    (save(tmp_path, some_checkpoint(2)) / name).unlink()
    assert same(latest(tmp_path), some_checkpoint(1))


def test_files_of_different_rounds_do_not_mix(tmp_path: Path) -> None:
    first, second = save(tmp_path, some_checkpoint(1)), save(tmp_path, some_checkpoint(2))
    shutil.copy(first / "weights.safetensors", second / "weights.safetensors")
    assert same(latest(tmp_path), some_checkpoint(1))


def test_a_renamed_checkpoint_is_not_taken_for_another_round(tmp_path: Path) -> None:
    save(tmp_path, some_checkpoint(1))
    save(tmp_path, some_checkpoint(2)).rename(tmp_path / "round-000009")
    assert same(latest(tmp_path), some_checkpoint(1))


def test_if_none_is_whole_the_run_does_not_silently_begin_again(tmp_path: Path) -> None:
    for round_ in (1, 2):
        (save(tmp_path, some_checkpoint(round_)) / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="none of 2 checkpoints is whole"):
        latest(tmp_path)


def test_a_torn_round_can_be_saved_again(tmp_path: Path) -> None:
    save(tmp_path, some_checkpoint(1))
    (save(tmp_path, some_checkpoint(2)) / "manifest.json").write_text("{")
    save(tmp_path, some_checkpoint(2))
    assert same(latest(tmp_path), some_checkpoint(2))


def test_another_configuration_is_refused_by_both_hashes(tmp_path: Path) -> None:
    save(tmp_path, some_checkpoint(1, config_hash="aaaaaaaaaaaaaaaa"))
    assert latest(tmp_path, config_hash="aaaaaaaaaaaaaaaa") is not None
    with pytest.raises(
        CheckpointError, match=r"configuration aaaaaaaaaaaa, this one is bbbbbbbbbbbb; .*--fresh"
    ):
        latest(tmp_path, config_hash="bbbbbbbbbbbbbbbb")


def test_values_that_are_not_finite_are_not_resumed_from(tmp_path: Path) -> None:
    save(tmp_path, some_checkpoint(1))
    broken = some_checkpoint(2)
    broken.weights["decoder.bias"][0] = np.nan
    save(tmp_path, broken)
    assert same(latest(tmp_path), some_checkpoint(1))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="round 1 not written: Permission denied"):
            save(tmp_path, some_checkpoint(1))
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file: checkpoint of round 1 not written: "):
        save(tmp_path / "file", some_checkpoint(1))


def test_if_writing_fails_the_earlier_ones_stay(tmp_path: Path) -> None:
    save(tmp_path, some_checkpoint(1))
    unwritable = dataclasses.replace(some_checkpoint(2), claims={"site-1": float("nan")})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="JSON"):
        save(tmp_path, unwritable)
    assert [path.name for path in tmp_path.iterdir()] == ["round-000001"]
    assert same(latest(tmp_path), some_checkpoint(1))


def test_nothing_is_pickled(tmp_path: Path) -> None:
    path = save(tmp_path, some_checkpoint(1))
    assert sorted(file.name for file in path.iterdir()) == [
        "manifest.json",
        "optimiser.safetensors",
        "weights.safetensors",
    ]
    body = json.loads(json.loads((path / "manifest.json").read_text())["body"])
    assert body["rejections"][1]["failure"] == "out-of-memory"


@pytest.mark.parametrize("name", ["fedavg", "fedadam", "fedyogi", "median", "trimmed-mean", "krum"])
def test_a_run_resumed_from_disk_ends_bit_for_bit_the_same(name: str, tmp_path: Path) -> None:
    settings, sites = StrategySettings(name=name), site_names(5)  # type: ignore[arg-type]

    def advance(strategy, numbers: range) -> None:
        for number in numbers:
            base, requests = dict(strategy.weights), ask(strategy, number)
            strategy.aggregate_train(
                number,
                [
                    honest_reply(requests[site], site, number, base, some_weights(10 * number + i, scale=0.1))
                    for i, site in enumerate(sites)
                ],
            )
            save(tmp_path / "runs", to_checkpoint(strategy, number))

    def to_checkpoint(strategy, number: int) -> Checkpoint:
        return Checkpoint(round=number, run_id="run-1", config_hash="c", **vars(strategy.state()))

    whole = small_strategy(settings, tmp_path, sites=sites)
    advance(whole, range(1, 5))
    shutil.rmtree(tmp_path / "runs")
    advance(small_strategy(settings, tmp_path, sites=sites), range(1, 3))
    resumed, found = small_strategy(settings, tmp_path, sites=sites), latest(tmp_path / "runs")
    assert found is not None
    state = whole.state()
    resumed.restore(
        dataclasses.replace(
            state,
            weights=found.weights,
            optimiser=found.optimiser,
            rejections=found.rejections,
            claims=found.claims,
            participation=found.participation,
        )
    )
    advance(resumed, range(3, 5))
    assert same(to_checkpoint(resumed, 4), to_checkpoint(whole, 4))
