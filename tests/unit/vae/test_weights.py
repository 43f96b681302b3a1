"""Weights: exchange, identity, and files, hostile ones above all."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.support.variants import VARIANTS
from vae.errors import WeightsError
from vae.models import build, signature_of
from vae.weights import hash_weights, load, load_into, require_signature, save, signature, to_numpy

ROOT = Path(__file__).resolve().parents[3]
SPEC = VARIANTS["2d-transpose-cvae-learned"]
PLAIN = {"a": np.arange(4, dtype=np.float32), "b": np.ones((2, 3), np.float32)}
EXPECTED = signature(PLAIN)


def model_weights(seed: int = 0):
    model = build(SPEC, seed=seed)
    return to_numpy(model, model.state_dict())


# --- exchange with a module ----------------------------------------


def test_weights_move_from_one_module_to_another():
    source, target = build(SPEC, seed=1), build(SPEC, seed=2)
    load_into(target, to_numpy(source, source.shared_names("all")))
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in source.state_dict().items())


def test_to_numpy_gives_copies_of_the_named_entries_in_order():
    model = build(SPEC, seed=1)
    taken = to_numpy(model, model.shared_names("decoder"))
    assert list(taken) == sorted(model.shared_names("decoder"))
    before = {name: value.copy() for name, value in taken.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(np.array_equal(taken[name], before[name]) for name in taken)
    assert any(value.any() for value in taken.values())


def test_to_numpy_refuses_a_name_that_the_module_lacks():
    with pytest.raises(ValueError, match=r"the module has no 'decoder.nothing'"):
        to_numpy(build(SPEC, seed=1), ["decoder.nothing"])


def test_partial_loading_keeps_the_rest():
    source, target, untouched = build(SPEC, seed=1), build(SPEC, seed=2), build(SPEC, seed=2)
    decoder = source.shared_names("decoder")
    load_into(target, to_numpy(source, decoder), partial=True)
    for name, value in target.state_dict().items():
        assert torch.equal(value, (source if name in decoder else untouched).state_dict()[name])


def test_loading_takes_read_only_arrays_and_does_not_share_memory():
    model = build(SPEC, seed=1)
    received = {name: value.copy() for name, value in model_weights(3).items()}
    for value in received.values():
        value.flags.writeable = False
    load_into(model, received)
    with torch.no_grad():
        model.log_scale.weight.add_(1.0)
    assert received["log_scale.weight"][0, 0] == model_weights(3)["log_scale.weight"][0, 0]


def _without(name):
    return lambda weights: weights.pop(name)


def _with(name, change):
    return lambda weights: weights.update({name: change(weights.get(name))})


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with("rogue", lambda _: np.zeros(1, np.float32)), "unexpected 'rogue'"),
        (
            _with("log_scale.weight", lambda w: w.reshape(1)),
            r"'log_scale.weight' is float32\[1\], expected float32\[1, 1\]",
        ),
        (
            _with("log_scale.weight", lambda w: w.astype(np.float64)),
            r"is float64\[1, 1\], expected float32\[1, 1\]",
        ),
        (_with("log_scale.weight", lambda w: w.astype(">f4")), r"is >f4\[1, 1\], expected float32"),
    ],
)
def test_a_module_is_untouched_by_weights_that_do_not_fit(change, message, partial):
    model = build(SPEC, seed=1)
    before = hash_weights(to_numpy(model, model.state_dict()))
    weights = model_weights(2)
    change(weights)
    with pytest.raises(WeightsError, match=message):
        load_into(model, weights, partial=partial)
    assert hash_weights(to_numpy(model, model.state_dict())) == before


def test_a_missing_name_is_refused_unless_partial():
    model, weights = build(SPEC, seed=1), model_weights(2)
    del weights["log_scale.weight"]
    with pytest.raises(WeightsError, match=r"weights: missing 'log_scale.weight'"):
        load_into(model, weights)
    load_into(model, weights, partial=True)


def test_a_long_list_of_differences_is_cut():
    with pytest.raises(WeightsError, match=r"missing 'decoder.features.bias', .* and \d+ more") as caught:
        require_signature({}, signature_of(SPEC))
    assert len(str(caught.value)) < 300
    many = {name: value.astype(np.float64) for name, value in model_weights().items()}
    with pytest.raises(WeightsError, match=r"; and \d+ more$"):
        require_signature(many, signature_of(SPEC))


def test_the_module_does_not_import_torch():
    code = "import sys, vae.weights; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# --- identity ----------------------------------------


def test_the_hash_is_what_its_description_says():
    head = b'["a", [2], "float32"]'
    data = np.array([1.0, -2.0], "<f4").tobytes()
    expected = hashlib.sha256(b"vae.weights 1\0" + len(head).to_bytes(8, "big") + head + data).hexdigest()
    assert hash_weights({"a": np.array([1.0, -2.0], np.float32)}) == expected


def test_the_hash_of_known_weights_is_fixed():
    assert hash_weights(PLAIN) == "b9f3c704e362e3ff62b7ff0ff90908ec68fb3a1d3c981826614d0b326e7e10bb"


def test_the_hash_ignores_order_and_memory_layout():
    turned = {"b": np.asfortranarray(PLAIN["b"]), "a": PLAIN["a"][::-1].copy()[::-1]}
    assert hash_weights(turned) == hash_weights(PLAIN)


@pytest.mark.parametrize(
    "other",
    [
        {"a": PLAIN["a"], "c": PLAIN["b"]},
        {"a": PLAIN["a"], "b": PLAIN["b"].reshape(3, 2)},
        {"a": PLAIN["a"], "b": PLAIN["b"].astype(np.float64)},
        {"a": PLAIN["a"].view(np.int32), "b": PLAIN["b"]},
        {"a": np.nextafter(PLAIN["a"], np.float32(9)), "b": PLAIN["b"]},
        {"a": PLAIN["a"] * np.float32(-0.0), "b": PLAIN["b"]},
        {"a": PLAIN["a"]},
        {"a": PLAIN["a"][:3], "b": PLAIN["b"]},
        {"ab": np.concatenate([PLAIN["a"], PLAIN["b"].ravel()])},
    ],
)
def test_the_hash_sees_every_change(other):
    assert hash_weights(other) != hash_weights(PLAIN)


# --- files ----------------------------------------

_NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(
    lambda name: name != "__metadata__"
)
_ARRAYS = arrays.arrays(
    dtype=st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]),
    shape=arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    weights=st.dictionaries(_NAMES, _ARRAYS, max_size=5),
    metadata=st.dictionaries(st.text(max_size=9), st.text(max_size=9)),
)
def test_what_is_saved_is_loaded(tmp_path_factory, weights, metadata):
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save(path, weights, metadata)
    loaded, read = load(path, signature(weights), require_finite=False)
    assert read == metadata
    assert list(loaded) == sorted(weights)
    assert hash_weights(loaded) == hash_weights(weights)


def test_a_saved_model_is_read_by_safetensors_itself_too(tmp_path):
    path, weights = tmp_path / "w.safetensors", model_weights()
    save(path, weights, {"round": "3"})
    loaded, metadata = load(path, signature_of(SPEC))
    foreign = safetensors.numpy.load_file(path)
    assert metadata == {"round": "3"}
    assert hash_weights(foreign) == hash_weights(weights) == hash_weights(loaded)
    assert all(value.flags.writeable or value.flags.owndata for value in loaded.values())


def test_transposed_arrays_are_saved_by_their_values(tmp_path):
    turned = {"b": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    save(tmp_path / "w", turned, {})
    assert np.array_equal(load(tmp_path / "w", signature(turned))[0]["b"], turned["b"])


def test_equal_weights_give_equal_bytes_in_another_process(tmp_path):
    metadata = {str(number): "x" for number in range(20)}
    save(tmp_path / "here", PLAIN, metadata)
    code = (
        "import numpy as np, pathlib, sys; from vae.weights import save;"
        "w = {'b': np.ones((2, 3), np.float32), 'a': np.arange(4, dtype=np.float32)};"
        "save(pathlib.Path(sys.argv[1]), w, {str(n): 'x' for n in reversed(range(20))})"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "there"], cwd=ROOT, check=True)
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, fails):
    path = tmp_path / "w.safetensors"
    save(path, PLAIN, {"version": "old"})
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(*((os, "fsync") if fails == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="disk full"):
        save(path, model_weights(), {"version": "new"})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_data_reach_the_disk_before_the_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(descriptor):
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def record_replace(self, target):
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    save(tmp_path / "w", PLAIN, {})
    assert events == ["file", "rename", "folder"]
