"""`simulate.py` as a person meets it: what it prints, what it leaves behind, and its exit codes, each for real."""

import re
import subprocess
import sys

import jsonschema
import pytest
from filelock import FileLock
from safetensors.numpy import load_file

import simulate
from deploy.folders import CACHE_VARIABLE
from server.checkpoint import latest
from server.report.export import SCHEMA
from tests.support.commands import interrupt, run_here, start, strict_json, wait_for, write_config
from tests.support.shared import ROOT
from vae.weights import hash_weights

ALL = ["mean", "local", "federated", "federated-dp", "centralised"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A whole run: (configuration, output folder, what it printed)."""
    folder = tmp_path_factory.mktemp("done")
    config, out = write_config(folder, arms=ALL), folder / "out"
    child = subprocess.run(
        [sys.executable, str(ROOT / "simulate.py"), "--config", config.name, "--out", "out"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return config, out, child


def test_a_run_from_another_folder_ends_well_and_says_where_its_report_lies(done):
    _, _, child = done
    assert child.returncode == 0, child.stderr
    assert child.stdout.rstrip().endswith("Report: out/report.html")
    assert "Predict the site's own mean" in child.stdout
    assert "federated-dp: round 2/2, 3/3 sites" in child.stderr
    assert "Traceback" not in child.stderr
    assert "Warning" not in child.stderr


def test_what_lies_in_the_output_folder(done):
    _, out, _ = done
    visible = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert visible == {
        "report.html", "report.json", "model.safetensors", "config.resolved.yaml", "checkpoints", "sites", "arms",
    }  # fmt: skip
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"federated", "federated-dp"}
    page = (out / "report.html").read_text()
    assert "<script" not in page
    assert re.search(r'(src|href)="https?:', page) is None


def test_the_report_holds_what_programs_read(done):
    _, out, _ = done
    report = strict_json((out / "report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    for field in ("name", "seed", "engine", "rounds_completed", "sites", "results", "rejected", "faults"):
        assert field in report
    assert (report["name"], report["seed"], report["engine"], report["rounds_completed"]) == (
        "test",
        3,
        "local",
        2,
    )
    assert report["sites"] == ["site-1", "site-2", "site-3"]
    assert {"family", "parameters"} <= set(report["model"])
    assert {"unit", "delta", "per_site"} <= set(report["privacy"])
    for row in report["privacy"]["per_site"]:
        assert set(row) == {"site", "epsilon_rdp", "epsilon_pld", "steps", "claim", "cap"}
        assert row["claim"] == "seeded"
        assert row["cap"] is None
    for row in report["results"]:
        assert set(row) == {"arm", "task", "metric", "value", "ci95"}
    assert set(report["timings"]) == {"wall_s", "train_cpu_s", "overhead_s_per_round"}
    assert report["weights_sha256"] == hash_weights(load_file(out / "model.safetensors"))


def test_run_again_it_goes_on_at_the_end_and_says_so(done, capsys):
    config, out, _ = done
    before = {path: path.stat().st_mtime_ns for path in (out / "checkpoints").rglob("*.safetensors")}
    first = strict_json((out / "report.json").read_text())
    assert run_here(config, out) == 0
    said = capsys.readouterr()
    assert "federated: rounds 1 to 2 of 2 were done before" in said.err
    assert "federated-dp: rounds 1 to 2 of 2 were done before" in said.err
    assert "round 1/2" not in said.err
    assert {path: path.stat().st_mtime_ns for path in (out / "checkpoints").rglob("*.safetensors")} == before
    again = strict_json((out / "report.json").read_text())
    changing = ("created", "timings", "environment", "config", "engine")
    for report in (first, again):
        for field in changing:
            report.pop(field)
    assert again == first


def test_the_resolved_configuration_runs_the_same_experiment(done, tmp_path):
    _, out, _ = done
    assert run_here(out / "config.resolved.yaml", tmp_path / "out", "--set", "arms=[federated-dp]") == 0
    expected = strict_json((out / "report.json").read_text())["weights_sha256"]
    assert strict_json((tmp_path / "out" / "report.json").read_text())["weights_sha256"] == expected


def test_an_average_over_rounds_is_the_model_that_is_handed_out(tmp_path):
    config, out = write_config(tmp_path, arms=["federated-dp"]), tmp_path / "out"
    assert run_here(config, out, "--set", "federation.weight_average=0.5") == 0
    kept = latest(out / "checkpoints" / "federated-dp")
    expected = hash_weights(kept.average)
    assert expected != hash_weights(kept.weights)
    assert hash_weights(load_file(out / "model.safetensors")) == expected
    assert strict_json((out / "report.json").read_text())["weights_sha256"] == expected


def test_json_is_all_that_is_printed(tmp_path, capsys):
    assert run_here(write_config(tmp_path), tmp_path / "out", "--json") == 0
    said = capsys.readouterr()
    assert strict_json(said.out) == strict_json((tmp_path / "out" / "report.json").read_text())


def test_set_overrides_the_file_and_the_engine_is_written_down(tmp_path, capsys):
    config = write_config(tmp_path)
    options = ("--set", "federation.rounds=3", "--set", "arms=[federated]", "--engine", "local")
    assert run_here(config, tmp_path / "out", *options) == 0
    report = strict_json((tmp_path / "out" / "report.json").read_text())
    assert report["rounds_completed"] == 3
    assert {row["arm"] for row in report["results"]} == {"federated"}
    assert report["privacy"]["claim"] == "none"
    resolved = (tmp_path / "out" / "config.resolved.yaml").read_text()
    assert "rounds: 3" in resolved
    assert "kind: local" in resolved


def test_an_override_of_the_engine_is_in_the_resolved_configuration(tmp_path, capsys, monkeypatch):
    seen = []

    def stop(setting):
        seen.append(setting.engine)
        raise KeyboardInterrupt

    monkeypatch.setattr("deploy.simulation.run.train", stop)
    assert run_here(write_config(tmp_path), tmp_path / "out", "--engine", "ray") == 1
    assert seen == ["ray"]
    assert "kind: ray" in (tmp_path / "out" / "config.resolved.yaml").read_text()


def test_without_out_the_folder_is_named_after_the_experiment(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    assert simulate.main(["--config", str(write_config(tmp_path)), "--set", "arms=[mean]"]) == 0
    (out,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"test-[0-9a-f]{8}", out.name)
    assert (out / "report.html").exists()
    assert not (out / "model.safetensors").exists(), "nothing was trained"


# Exit code 2: the configuration.


@pytest.mark.parametrize(
    ("sections", "arguments", "message"),
    [
        ({"federation": {"roundz": 3}}, (), r"federation\.roundz.*did you mean `rounds`"),
        ({"federation": {"rounds": 0}}, (), r"federation\.rounds = 0"),
        ({"data": {"kind": "unheard"}}, (), r"data"),
        ({}, ("--set", "federation.rounds=many"), r'--set: federation\.rounds = "many"'),
        ({}, ("--set", "nonsense=1"), r"--set: nonsense"),
        ({"faults": {"site-9": {"drop": True}}}, (), r"faults\.site-9.*there is no such site"),
        ({"model": {"input_shape": [7]}}, (), r"model\.input_shape is \[7\], records are \[5\]"),
    ],
)
def test_a_wrong_configuration_is_told_and_ends_with_2(sections, arguments, message, tmp_path, capsys):
    assert run_here(write_config(tmp_path, **sections), tmp_path / "out", *arguments) == 2
    said = capsys.readouterr()
    assert "configuration: " in said.err
    assert re.search(message, said.err), said.err
    assert said.out == ""
    assert not (tmp_path / "out" / "report.json").exists()


def test_every_problem_is_told_at_once_and_nothing_is_written(tmp_path, capsys):
    config = write_config(tmp_path, federation={"rounds": 0, "typo": 1}, seed=-1)
    assert run_here(config, tmp_path / "out") == 2
    assert "3 problems" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_or_no_yaml(tmp_path, capsys):
    (tmp_path / "broken.yaml").write_text("data: [unclosed")
    for name in ("missing.yaml", "broken.yaml"):
        assert run_here(tmp_path / name, tmp_path / "out") == 2
        assert name in capsys.readouterr().err


def test_a_hospitals_name_cannot_lead_out_of_the_folder(tmp_path, capsys):
    site = {"path": "a.csv", "features": ["a"], "standardise": "none"}
    config = write_config(tmp_path, data={"kind": "table", "sites": {"../../evil": site}})
    assert run_here(config, tmp_path / "deep" / "out") == 2
    assert "../../evil" in capsys.readouterr().err
    assert not (tmp_path / "deep").exists()


# Exit code 3: privacy.


def test_privacy_that_cannot_be_had_is_refused_before_anything_is_trained(tmp_path, capsys):
    config = write_config(
        tmp_path, arms=ALL, privacy={"noise_multiplier": None, "epsilon": 1e-3, "delta": 1e-12}
    )
    assert run_here(config, tmp_path / "out") == 3
    said = capsys.readouterr()
    assert said.err.startswith("refused by privacy: calibration: no noise multiplier")
    assert not (tmp_path / "out" / "arms").exists()
    assert not (tmp_path / "out" / "sites").exists()


# Exit code 4: the quorum.


def test_a_lost_quorum_ends_with_4_and_a_report_of_the_rounds_before(tmp_path, capsys):
    faults = {"site-1": {"drop": True, "rounds": [3]}, "site-2": {"update": "nan", "rounds": [3]}}
    config = write_config(tmp_path, arms=["mean", "federated-dp"], faults=faults, federation={"rounds": 5})
    for _ in range(2):
        assert run_here(config, tmp_path / "out") == 4
        said = capsys.readouterr()
        assert "quorum lost: round 3: 1 updates admitted (site-3), quorum is 2" in said.err
        assert "stopped after 2 of 5 planned rounds" in said.out
        report = strict_json((tmp_path / "out" / "report.json").read_text())
        assert (report["rounds_completed"], report["rounds_planned"]) == (2, 5)
        assert {row["arm"] for row in report["results"]} >= {"federated-dp", "predict-the-mean"}
        assert {(row["round"], row["site"], row["reason"]) for row in report["rejected"]} == {
            (3, "site-1", "no-reply"),
            (3, "site-2", "not-finite"),
            (3, "site-3", "round-lost"),
        }
        assert report["weights_sha256"] == hash_weights(load_file(tmp_path / "out" / "model.safetensors"))


# Exit code 5: data.


def _tables(tmp_path, **rows):
    for name, lines in rows.items():
        (tmp_path / f"{name}.csv").write_text(
            "patient,a,b,anomaly\n" + "".join(f"{line}\n" for line in lines)
        )
    sites = {
        name: {
            "path": f"{name}.csv",
            "patient_column": "patient",
            "features": ["a", "b"],
            "labels": ["anomaly"],
            "constants": {"a": [0.0, 1.0], "b": [10.0, 2.0]},
        }
        for name in rows
    }
    return {"kind": "table", "sites": sites}


def _rows(count, *, bad=0, shift=0.0):
    """Visits of patients; each fifth patient is anomalous: their columns do not go together."""
    rows = ["p0,oops,1,0"] * bad
    for patient in range(count):
        odd = patient % 5 == 4
        for visit in range(1 + patient % 2):
            a = shift + (patient * 7 % 11) / 5 - 1 + 0.1 * visit
            rows.append(f"p{patient},{a:.3f},{10 + (-2 if odd else 2) * (a - shift):.3f},{int(odd)}")
    return rows


def test_own_tables_from_end_to_end(tmp_path, capsys):
    data = _tables(tmp_path, north=_rows(40, bad=1), south=_rows(30, shift=0.5))
    config = write_config(tmp_path, data=data, arms=ALL, model={"latent_size": 1})
    assert run_here(config, tmp_path / "out") == 0
    said = capsys.readouterr()
    assert "data: north: refused records: value-missing-or-malformed 1" in said.err
    report = strict_json((tmp_path / "out" / "report.json").read_text())
    assert report["sites"] == ["north", "south"]
    assert report["model"]["input_shape"] == [2]
    assert not report["synthetic"]
    assert report["data_note"] == "The hospitals' own tables. Records refused as unusable: 1 at north."
    metrics = {row["metric"] for row in report["results"] if row["arm"] == "federated-dp"}
    assert any("auroc" in metric for metric in metrics)
    text = (tmp_path / "out" / "report.json").read_text() + (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r"\bp\d+\b", text.split('"config"')[0]), "no patient is named"
    quarantine = tmp_path / "cache" / "north" / "quarantine.tsv"
    assert quarantine.read_text() == "value-missing-or-malformed\tline 2\n"
    assert quarantine.stat().st_mode & 0o077 == 0
    assert (tmp_path / "cache" / "south" / "quarantine.tsv").read_text() == ""


def test_data_that_are_not_ready_end_with_5_and_counts(tmp_path, capsys):
    config = write_config(tmp_path, data=_tables(tmp_path, north=_rows(20), south=_rows(20, bad=5)))
    assert run_here(config, tmp_path / "out") == 5
    said = capsys.readouterr()
    assert re.search(r"data not ready: south: 5 of 35 planned records cannot be used", said.err)
    assert "python -m deploy data check" in said.err
    assert not (tmp_path / "out" / "report.json").exists()
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["p1,1,1,maybe", *_rows(20)], "column `anomaly` must hold 0"),
        ([], "no record was found"),
        (_rows(1), "too few"),
    ],
)
def test_other_data_that_cannot_be_used(rows, message, tmp_path, capsys):
    config = write_config(tmp_path, data=_tables(tmp_path, north=rows, south=_rows(20)))
    assert run_here(config, tmp_path / "out") == 5
    assert message in capsys.readouterr().err


def test_a_table_that_is_not_there(tmp_path, capsys):
    data = _tables(tmp_path, north=_rows(20), south=_rows(20))
    (tmp_path / "south.csv").unlink()
    assert run_here(write_config(tmp_path, data=data), tmp_path / "out") == 5
    assert "south" in capsys.readouterr().err


# Exit code 1: everything else, in one line.


def test_another_runs_folder_is_refused_and_left_as_it_was(tmp_path, capsys):
    config, out = write_config(tmp_path, arms=["local", "federated"]), tmp_path / "out"
    assert run_here(config, out) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run_here(config, out, "--set", "seed=77") == 1
    said = capsys.readouterr()
    assert re.match(
        r"failed: .* was made with configuration [0-9a-f]{12}, this one is [0-9a-f]{12}", said.err
    )
    assert "--fresh" in said.err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_fresh_begins_again_and_leaves_other_files_alone(tmp_path, capsys):
    config, out = write_config(tmp_path), tmp_path / "out"
    assert run_here(config, out) == 0
    (out / "notes.txt").write_text("mine")
    first = strict_json((out / "report.json").read_text())
    capsys.readouterr()
    assert run_here(config, out, "--set", "seed=77", "--fresh") == 0
    assert "were done before" not in capsys.readouterr().err
    again = strict_json((out / "report.json").read_text())
    assert again["weights_sha256"] != first["weights_sha256"]
    assert {row["steps"] for row in again["privacy"]["per_site"]} == {4}
    assert (out / "notes.txt").read_text() == "mine"


def test_fresh_deletes_nothing_where_no_run_has_written(tmp_path, capsys):
    out = tmp_path / "project"
    (out / "sites").mkdir(parents=True)
    (out / "sites" / "thesis.txt").write_text("years of work")
    assert run_here(write_config(tmp_path), out, "--fresh") == 1
    assert "--fresh would delete sites" in capsys.readouterr().err
    assert (out / "sites" / "thesis.txt").exists()


def test_a_fresh_run_that_fails_leaves_no_report_of_the_one_before(tmp_path, capsys):
    data = _tables(tmp_path, north=_rows(20), south=_rows(20))
    config, out = write_config(tmp_path, data=data, arms=["federated"]), tmp_path / "out"
    assert run_here(config, out) == 0
    (tmp_path / "south.csv").unlink()
    assert run_here(config, out, "--fresh") == 5
    assert not (out / "report.json").exists()
    assert not (out / "model.safetensors").exists()


def test_two_runs_do_not_share_a_folder(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    with FileLock(out / ".lock"):
        assert run_here(write_config(tmp_path), out) == 1
    assert "another run is writing there" in capsys.readouterr().err
    assert run_here(write_config(tmp_path), out, "--set", "arms=[mean]") == 0


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert run_here(write_config(tmp_path), tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert said.startswith("failed: ")
    assert str(tmp_path / "out") in said
    assert len(said.splitlines()) == 1


def test_a_defect_of_ours_is_not_hidden(tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise AttributeError("a defect")

    monkeypatch.setattr("deploy.simulation.assemble.judge", broken)
    with pytest.raises(AttributeError, match="a defect"):
        run_here(write_config(tmp_path), tmp_path / "out")


# Stopped by a person.

LONG = {
    "arms": ["federated-dp"],
    "federation": {"rounds": 400},
    "data": {"sites": 2, "patients_per_site": 60},
    "engine": {"workers": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [True, False], ids=["ctrl-c", "main-process"])
def test_interrupted_it_says_how_to_go_on_and_does(whole_group, tmp_path):
    config, out = write_config(tmp_path, **LONG), tmp_path / "out"
    child = start(config, out)
    wait_for(lambda: list(out.glob("checkpoints/federated-dp/round-*/manifest.json")), child)
    printed, said = interrupt(child, whole_group=whole_group)
    assert child.returncode == 1
    assert said.splitlines()[-1] == "stopped: run the same command to go on from the last finished round"
    assert "Traceback" not in said
    assert "Error" not in said
    assert printed == ""
    newest = max(int(path.name[6:]) for path in out.glob("checkpoints/federated-dp/round-*"))
    assert newest < 400
    if not whole_group:
        return
    again = start(config, out)
    wait_for(lambda: any(int(path.name[6:]) > newest for path in out.glob("checkpoints/*/round-*")), again)
    _, said = interrupt(again, whole_group=whole_group)
    assert f"federated-dp: rounds 1 to {newest} of 400 were done before" in said


def test_interrupted_with_fresh_it_warns_of_it(tmp_path, capsys, monkeypatch):
    def stop(setting):
        raise KeyboardInterrupt

    monkeypatch.setattr("deploy.simulation.run.train", stop)
    assert run_here(write_config(tmp_path), tmp_path / "out", "--fresh") == 1
    assert "run the same command without --fresh to go on" in capsys.readouterr().err


@pytest.mark.slow
def test_interrupted_while_data_are_prepared(tmp_path):
    phantom = {
        "kind": "phantom",
        "sites": 2,
        "patients_per_site": 200,
        "size": 24,
        "voxel_mm": 8.0,
        "slab": 1,
    }
    config, out = write_config(tmp_path, data=phantom, engine={"workers": 2}), tmp_path / "out"
    child = start(config, out)
    wait_for(
        lambda: list((tmp_path / "cache").rglob("*.nii.gz")) or list((tmp_path / "cache").rglob("*.npy")),
        child,
    )
    _, said = interrupt(child, whole_group=True)
    assert child.returncode == 1
    assert said.splitlines()[-1].startswith("stopped: run the same command")
    assert "Traceback" not in said


def test_help_and_a_wrong_option(capsys):
    with pytest.raises(SystemExit) as ended:
        simulate.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for option in ("--config", "--set", "--out", "--engine", "--fresh", "--json", "--cache"):
        assert option in text
    with pytest.raises(SystemExit) as ended:
        simulate.main(["--engine", "cloud"])
    assert ended.value.code == 2


def test_the_default_configuration_is_the_shipped_one():
    assert simulate.DEFAULT_CONFIG == ROOT / "deploy" / "configs" / "simulate" / "default.yaml"
    assert simulate.DEFAULT_CONFIG.exists()
