"""The benchmarks run, say what they measured and on what, and count what they say they count."""

import dataclasses
import json
import math

import pytest
import torch

from tests.benchmarks import __main__ as command
from tests.benchmarks import (
    accelerator,
    aggregation,
    audit_power,
    data,
    engines,
    ledger,
    many_sites,
    memory,
    private_step,
    step_memory,
)
from tests.benchmarks.federation import Measured, Shape, run
from tests.benchmarks.figures import Figure, document, figure, interleaved, machine, ratios
from tests.support.broken import BROKEN


def test_the_command_prints_a_table_and_writes_json_of_the_same_figures(tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert command.main(["--quick", "--only", "aggregation", "--json", str(path)]) == 0
    body = json.loads(path.read_text())
    assert set(body) == {"date", "quick", "machine", "load_average", "figures"}
    assert body["quick"] is True
    assert set(body["machine"]) >= {"cpu", "cores", "python", "torch"}
    assert len(body["load_average"]["aggregation"]) == 2
    printed = capsys.readouterr().out
    names = [each["name"] for each in body["figures"]]
    assert len(names) == len(set(names))
    for each in body["figures"]:
        assert set(each) == {field.name for field in dataclasses.fields(Figure)}
        assert each["spread"][0] <= each["median"] <= each["spread"][1]
        assert each["value"] > 0
        assert each["unit"] in ("GB/s", "x memory copy", "models")
        assert each["name"].removeprefix("aggregation/") in printed


def test_every_name_is_a_benchmark_and_another_is_refused():
    modules = {"private_step": private_step, "aggregation": aggregation, "engines": engines}
    modules |= {"memory": memory, "many_sites": many_sites, "ledger": ledger, "audit_power": audit_power}
    modules |= {"accelerator": accelerator, "step_memory": step_memory, "data": data}
    assert set(command.NAMES) == set(modules)
    assert all(callable(module.measure) for module in modules.values())
    with pytest.raises(SystemExit):
        command.main(["--only", "nothing"])


def test_a_private_step_is_compared_with_a_plain_one_for_each_engine(monkeypatch):
    shape, channels = (5,), (4,)
    case = private_step.Case(
        name="tiny", spec=private_step._spec(shape, channels), patients=4, steps=1, repeats=3
    )
    monkeypatch.setattr(private_step, "QUICK", (case,))
    figures = private_step.measure(quick=True)
    assert [each.name for each in figures] == [
        "private_step/tiny/plain step",
        "private_step/tiny/vmap",
        "private_step/tiny/opacus",
        "private_step/tiny/bookkeeping",
        "private_step/tiny/bookkeeping, seeded",
        "private_step/tiny/vmap, discrete noise",
        "private_step/tiny/bookkeeping, wall time",
    ]
    assert all(each.repeats == 3 and each.value > 0 for each in figures)


@pytest.mark.parametrize("private", [False, True])
def test_a_federation_in_its_own_process_accounts_for_its_time(private):
    shape = Shape(sites=2, rounds=4, private=private, patients=8)
    measured = run(shape)
    assert isinstance(measured, Measured)
    assert len(measured.overhead_s) == len(measured.save_s) == len(measured.diary_s) == shape.rounds - 1
    for whole, busy, save, diary, over in zip(
        measured.rounds_s,
        measured.training_s,
        measured.save_s,
        measured.diary_s,
        measured.overhead_s,
        strict=True,
    ):
        assert min(busy, save, diary) > 0
        assert save + diary < over < whole
        assert over + busy == pytest.approx(whole)
    assert 0 < measured.startup_s < measured.startup_s + sum(measured.rounds_s) < measured.wall_s
    assert measured.peak_bytes > 50e6


def test_a_federation_that_fails_says_why():
    with pytest.raises(RuntimeError, match="sites"):
        run(Shape(sites=0))


def test_a_large_model_passes_through_the_round_loop_without_training(tmp_path):
    assert memory.federate_without_training(3, 1, tmp_path, rounds=2) > 2**20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000001", "round-000002"]


def test_a_ledger_is_written_to_and_opened(tmp_path):
    figures = ledger.measure_appends(tmp_path, rounds=2, repeats=2)
    figures += ledger.measure_opening(tmp_path, lengths=(5, 11), repeats=2)
    assert [each.name for each in figures] == [
        "ledger/two pages written and flushed",
        "ledger/a round, each entry flushed",
        "ledger/a round, not flushed",
        "ledger/a round, each entry flushed, time",
        "ledger/opening 5 entries",
        "ledger/opening 11 entries",
        "ledger/opening, time an entry, longest to shortest",
    ]
    assert all(each.repeats == 2 and each.value > 0 for each in figures)
    assert [each.note for each in figures[4:6]] == ["5 entries", "11 entries"]


def test_the_power_of_audits_is_told_with_what_was_claimed():
    bound, seconds = audit_power.measure_variant("no noise", BROKEN["no noise"], range(1))
    assert (bound.name, bound.unit, bound.note) == (
        "audit/no noise",
        "eps",
        "claimed 2.34, refuted in 1 of 1 seeds, 400 canaries, 5.14 to 5.14, 2.15 without any assumption",
    )
    assert bound.value > 2.34
    assert (seconds.name, seconds.unit) == ("audit/no noise, time", "s")
    assert seconds.value > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_an_accelerator_its_figures_are_skipped_by_name():
    (skipped,) = accelerator.measure(quick=True)
    assert (skipped.name, skipped.note) == ("gpu/skipped", "torch sees no CUDA device")


def test_growth_of_memory_is_told_against_plain_steps(monkeypatch):
    grown = {"plain": 200_000_000, "vmap": 500_000_000, "opacus": 800_000_000, "bookkeeping": 260_000_000}
    monkeypatch.setattr(step_memory, "_in_process", lambda case, part: grown[part])
    plain, *private = step_memory.measure_case(private_step.CASES[0])
    assert (plain.value, plain.unit) == (200.0, "MB")
    assert {each.name.rsplit("/", 1)[1]: each.value for each in private} == {
        "vmap": 2.5,
        "opacus": 4.0,
        "bookkeeping": 1.3,
    }


def test_volumes_are_decoded_once(tmp_path):
    figures = data.measure_volumes(tmp_path, volumes=2, repeats=2)
    assert [each.name.rsplit("/", 1)[1] for each in figures] == [
        "decode and prepare, first time",
        "open again, from the cache",
        "batches of a later round",
        "later round, time",
    ]
    assert 0 < figures[2].value < figures[0].value
    assert len(list((tmp_path / "cache-1").rglob("*.npy"))) == 2 + 1  # the records, and the cohort


def test_what_ten_times_the_sites_cost_is_told_by_site():
    few = Measured(
        startup_s=1.0,
        first_round_s=1.0,
        rounds_s=[2.0],
        training_s=[1.0],
        save_s=[0.1],
        diary_s=[0.0],
        cpu_s=[1.0],
        wall_s=4.0,
        peak_bytes=100_000_000,
        child_peak_bytes=0,
    )
    many = dataclasses.replace(few, rounds_s=[30.0], peak_bytes=109_000_000)
    seconds, kilobytes = many_sites._growth({1000: few, 10_000: many})
    assert seconds.value == pytest.approx(1.5)  # 15 times the time of a tenth of the sites
    assert kilobytes.value == pytest.approx(1.0)  # 9 MB more for 9,000 sites


def test_growth_is_told_in_models():
    figures = memory._figures("x", {4: 100_000_000, 64: 175_000_000}, 50e6)
    assert [(each.name, each.value) for each in figures] == [
        ("memory/x/4 sites", 100.0),
        ("memory/x/64 sites", 175.0),
        ("memory/x/growth", 1.5),  # 75 MB of a model of 50 MB
    ]


def test_a_figure_holds_median_and_quartiles():
    made = figure("a/b", [4.0, 1.0, 2.0, 3.0, 100.0], "s")
    assert (made.value, made.median, made.spread, made.repeats) == (3.0, 3.0, (2.0, 4.0), 5)
    assert figure("a/b", [7.0], "s").spread == (7.0, 7.0)


def test_parts_take_turns_and_their_first_turn_is_not_counted():
    calls = []
    seconds = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert calls == ["a", "b"] * 3
    assert [len(each) for each in seconds.values()] == [2, 2]


def test_a_ratio_is_taken_turn_by_turn():
    # A turn in which the whole machine was ten times slower changes neither ratio.
    assert ratios([2.0, 20.0], [1.0, 10.0]) == [2.0, 2.0]


def test_a_figure_that_is_no_number_is_not_written():
    with pytest.raises(ValueError, match="JSON"):
        document([figure("a/b", [math.nan], "s")], quick=True, loads={})


def test_the_machine_is_named():
    facts = machine()
    assert facts["cpu"] != ""
    assert facts["cores"] >= 1
