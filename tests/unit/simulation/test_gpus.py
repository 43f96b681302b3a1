"""How many processes a simulation has, and which GPU each takes; the GPUs are not there."""

import os

import pytest
import torch

from deploy.errors import EngineError
from deploy.simulation import workers as module
from deploy.simulation.run import num_workers
from deploy.simulation.workers import Workers
from tests.support.apps import make_echo, question
from tests.support.experiments import experiment, run

SITES = {f"site-{number}": number + 2 for number in range(5)}


@pytest.fixture
def gpus(monkeypatch):
    return lambda count: monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_one_process_a_gpu_or_one_a_core(gpus, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    three = experiment(data={"sites": 3})
    on_cpu = experiment(engine={"device": "cpu"})
    stated = experiment(engine={"workers": 7})
    gpus(0)
    assert [num_workers(each) for each in (three, on_cpu, stated)] == [2, 2, 7]
    gpus(1)
    assert [num_workers(each) for each in (three, on_cpu, stated)] == [1, 2, 7]
    gpus(8)
    assert [num_workers(each) for each in (three, on_cpu, stated)] == [3, 2, 7]


@pytest.mark.parametrize(("gpus_there", "expected"), [(0, [None] * 3), (2, [0, 1, 0]), (8, [0, 1, 2])])
def test_each_process_is_given_its_gpu(gpus_there, expected, monkeypatch):
    started = []

    class _Recorded:
        def __init__(self, make_app, sites, threads, gpu):
            started.append(gpu)
            self.queue = []

        def feed(self):
            pass

        def close(self):
            pass

    monkeypatch.setattr(module, "_Worker", _Recorded)
    workers = Workers(make_echo, SITES, num_workers=3, gpus=gpus_there)
    workers.submit(question(2))
    assert started == expected


def test_a_gpu_that_is_not_there_is_named_before_data_are_made(gpus, tmp_path):
    gpus(0)
    with pytest.raises(
        EngineError, match=r"engine\.device: cuda, and torch sees no GPU here; give auto or cpu"
    ):
        run(experiment(engine={"device": "cuda"}), tmp_path)
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "sites").exists()
