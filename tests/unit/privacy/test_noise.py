"""The key stream against AES computed by hand, labels, separation of sites, the grid."""

from __future__ import annotations

import hashlib
import math
import struct
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from privacy.noise import (
    KeyStream,
    Randomness,
    SeededRandomness,
    SystemRandomness,
    grid_spacing,
    round_to_grid,
)

KEY = bytes(range(32))


def first_words(key: bytes, count: int) -> list[int]:
    """Return the key stream by encrypting counters one by one: AES in ECB mode, no CTR."""
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - the definition of CTR
    stream = b"".join(encryptor.update(counter.to_bytes(16, "big")) for counter in range((count + 1) // 2))
    return [word for (word,) in struct.iter_unpack("<Q", stream)][:count]


def test_the_cipher_is_aes_256_as_published():
    # FIPS 197, appendix C.3: AES-256, key 00..1f, plaintext 00112233445566778899aabbccddeeff.
    encryptor = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor()  # noqa: S305 - a published vector
    block = encryptor.update(bytes.fromhex("00112233445566778899aabbccddeeff"))
    assert block.hex() == "8ea2b7ca516745bfeafc49904b496089"


def test_uniform_deviates_are_the_top_52_bits_at_cell_midpoints():
    expected = [float((Fraction(word >> 12) + Fraction(1, 2)) / 2**52) for word in first_words(KEY, 7)]
    assert KeyStream(KEY).uniform(7).tolist() == expected


def test_normal_deviates_are_the_inverse_distribution_of_63_bits_and_a_sign():
    for word, deviate in zip(first_words(KEY, 9), KeyStream(KEY).normal(9), strict=True):
        tail = float((Fraction(word >> 1) + Fraction(1, 2)) / 2**64)
        magnitude = -stats.norm.ppf(tail)
        assert deviate == pytest.approx(-magnitude if word & 1 else magnitude, rel=1e-12)


def test_extreme_words_stay_inside(monkeypatch: pytest.MonkeyPatch):
    words = np.array([0, 1, 2**64 - 1, 2**64 - 2, 2**63], dtype=np.uint64)
    stream = KeyStream(KEY)
    monkeypatch.setattr(stream, "words", lambda count: words[:count])
    uniform, normal = stream.uniform(5), stream.normal(5)
    assert uniform.min() == 2.0**-53
    assert uniform.max() == 1 - 2.0**-53
    assert np.isfinite(normal).all()
    assert normal[0] == -normal[1] == pytest.approx(stats.norm.isf(2.0**-65), rel=1e-12)  # 9.155
    assert abs(normal[2]) < 1e-15


@pytest.mark.parametrize("method", ["uniform", "normal"])
def test_splitting_a_request_does_not_change_the_values(method: str):
    whole = getattr(KeyStream(KEY), method)(1001)
    stream = KeyStream(KEY)
    parts = [getattr(stream, method)(count) for count in (0, 1, 500, 3, 497)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_chunks_of_large_requests_are_seamless():
    count = (1 << 18) + 5
    whole = KeyStream(KEY).normal(count)
    stream = KeyStream(KEY)
    assert np.array_equal(np.concatenate([stream.normal(count - 10), stream.normal(10)]), whole)


def test_nothing_is_drawn_for_nothing():
    stream = KeyStream(KEY)
    assert stream.uniform(0).shape == stream.normal(0).shape == (0,)
    assert stream.uniform(3).tolist() == KeyStream(KEY).uniform(3).tolist()


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length_is_refused(length: int):
    with pytest.raises(ValueError, match=f"a key has 32 bytes, got {length}"):
        KeyStream(bytes(length))


def test_the_generator_is_a_function_of_the_stream():
    one, two = KeyStream(KEY).generator(), KeyStream(KEY).generator()
    assert one.random(5).tolist() == two.random(5).tolist()
    stream = KeyStream(KEY)
    assert stream.generator().random() != stream.generator().random()


@pytest.mark.parametrize("source", [SystemRandomness(), SeededRandomness(1, "site-1", 3)])
def test_purposes_have_different_streams(source: Randomness):
    firsts = {source.stream(purpose).uniform(1)[0] for purpose in ("sampling", "noise", "records", "latent")}
    assert len(firsts) == 4


def test_kinds_are_named():
    assert SystemRandomness().kind == "os"
    assert SeededRandomness(0).kind == "seeded"


def test_system_streams_never_repeat():
    source = SystemRandomness()
    draws = [source.stream("noise").normal(2).tolist() for _ in range(20)]
    assert len({tuple(draw) for draw in draws}) == 20


def test_seeded_streams_repeat_from_their_beginning():
    source = SeededRandomness(7, "site-1", 2)
    assert source.stream("noise").normal(4).tolist() == source.stream("noise").normal(4).tolist()
    again = SeededRandomness(7, "site-1", 2)
    assert source.stream("noise").normal(4).tolist() == again.stream("noise").normal(4).tolist()


LABELS: tuple[tuple[str | int, ...], ...] = (
    (),
    ("a",),
    ("a", "b"),
    ("a", "bc"),
    ("ab", "c"),
    ("abc",),
    ("a\0", "bc"),
    ("a", "\0bc"),
    ("a\0str:b",),
    ("a\0str:1:b",),
    (1,),
    ("1",),
    (1, 2),
    (12,),
    (2, 1),
)


@pytest.mark.parametrize("labels", LABELS)
def test_labels_do_not_collide(labels: tuple[str | int, ...]):
    own = SeededRandomness(5, *labels).stream("noise").uniform(1)[0]
    others = [
        SeededRandomness(5, *other).stream("noise").uniform(1)[0] for other in LABELS if other != labels
    ]
    assert own not in others
    assert own != SeededRandomness(6, *labels).stream("noise").uniform(1)[0]


def test_a_seed_is_not_a_label():
    assert SeededRandomness(1, 2).stream("x").uniform(1) != SeededRandomness(2, 1).stream("x").uniform(1)
    assert SeededRandomness(12).stream("x").uniform(1) != SeededRandomness(1, 2).stream("x").uniform(1)


def test_seeded_streams_are_equal_in_another_process():
    code = (
        "from privacy.noise import SeededRandomness; import hashlib; "
        "s = SeededRandomness(3, 'site-1', 9); "
        "deviates = s.stream('noise').normal(1000).tobytes() + s.stream('x').generator().random(9).tobytes(); "
        "print(hashlib.sha256(deviates).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    source = SeededRandomness(3, "site-1", 9)
    here = source.stream("noise").normal(1000).tobytes() + source.stream("x").generator().random(9).tobytes()
    assert done.stdout.strip() == hashlib.sha256(here).hexdigest()


def test_two_sites_that_seed_torch_alike_do_not_share_noise():
    def noise_of_a_site(source: Randomness) -> np.ndarray:
        torch.manual_seed(42)
        np.random.seed(42)
        return source.stream("noise").normal(20_000)

    with torch.random.fork_rng():
        pairs = [
            (noise_of_a_site(SystemRandomness()), noise_of_a_site(SystemRandomness())),
            (noise_of_a_site(SeededRandomness(42, "a", 1)), noise_of_a_site(SeededRandomness(42, "b", 1))),
            (noise_of_a_site(SeededRandomness(42, "a", 1)), noise_of_a_site(SeededRandomness(42, "a", 2))),
        ]
    for one, two in pairs:
        assert abs(np.corrcoef(one, two)[0, 1]) < 4 / math.sqrt(20_000)
        assert np.var(one - two) == pytest.approx(2.0, rel=0.06)
    # The same check sees the careless way: equal noise, difference zero.
    careless = [np.random.default_rng(42).normal(size=20_000) for _ in range(2)]
    assert np.var(careless[0] - careless[1]) == 0.0


def test_global_generators_are_untouched():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    for source in (SystemRandomness(), SeededRandomness(1)):
        stream = source.stream("noise")
        stream.normal(100)
        stream.generator().random(10)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


@pytest.mark.parametrize(
    ("noise", "bound", "divisor", "spacing"),
    [
        (1.0, 1.0, 1.0, 2.0**-10),
        (1.5, 1.0, 1.0, 2.0**-10),  # log2 1.5 = 0.58, rounded down
        (2.0, 1.0, 1.0, 2.0**-9),
        (1.0, 0.5, 1.0, 2.0**-11),
        (1.0, 1.0, 40.0, 2.0**-16),  # log2 (1 / 40) = -5.32
        (1.1, 1e-3, 20.0, 2.0**-25),  # 1.1e-3 / 20 = 5.5e-5 = 2^-14.15
    ],
)
def test_worked_examples_of_the_grid(noise: float, bound: float, divisor: float, spacing: float):
    assert grid_spacing(noise_multiplier=noise, max_grad_norm=bound, divisor=divisor) == spacing


@pytest.mark.parametrize("noise", [0.3, 1.0, 77.7])
@pytest.mark.parametrize("divisor", [1.0, 13.0, 5000.0])
def test_the_grid_is_fine_against_the_noise_and_exact(noise: float, divisor: float):
    spacing = grid_spacing(noise_multiplier=noise, max_grad_norm=0.7, divisor=divisor)
    scale = noise * 0.7 / divisor
    assert scale / 2048 < spacing <= scale / 1024
    assert math.frexp(spacing)[0] == 0.5  # a power of two
    assert spacing**2 / 12 < 1e-7 * scale**2


def test_rounding_gives_multiples_is_idempotent_and_near():
    values = np.random.default_rng(0).normal(size=(50, 4)) * 100
    rounded = round_to_grid(values, 2.0**-7)
    assert rounded.shape == values.shape
    assert np.array_equal(rounded * 128, np.rint(rounded * 128))
    assert np.array_equal(round_to_grid(rounded, 2.0**-7), rounded)
    assert np.abs(rounded - values).max() <= 2.0**-8


def test_rounding_removes_the_low_bits_that_tell_summands_apart():
    # 0.1 + 0.2 and 0.3 differ in the last bit of float64; on the grid they are one value.
    sums = np.array([0.1 + 0.2, 0.3])
    assert sums[0] != sums[1]
    rounded = round_to_grid(sums, 2.0**-10)
    assert rounded[0] == rounded[1]
