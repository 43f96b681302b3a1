"""Randomness that privacy rests on: an AES-256-CTR key stream, turned into uniform and normal deviates.

One code path for production and simulation; only the key differs: 32 bytes from the operating system for each
stream, or derived from a seed and labels. The global generators of torch and numpy are never used or changed:
two sites that call `torch.manual_seed(42)` would add the same noise, and the server could subtract it.

What it does not do: exact discrete sampling. Normal deviates are float64 by inverse transform; what is
released is rounded to a grid that does not depend on data (`round_to_grid`), which removes the low bits that
identify a summand (Mironov 2012) but is not a proof against every floating-point attack.
"""

from __future__ import annotations

import math
import os
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from scipy.special import ndtri

FloatArray = npt.NDArray[np.float64]

SLACK_BYTES = 16
"""Bytes behind the words that `KeyStream.write_words` may need: the cipher asks for a block."""

_KEY_BYTES = 32
# What is made at once stays near the processor: in larger pieces half of the time went to fresh memory.
_CHUNK_WORDS = 1 << 15
_GRID_BITS = 10


class KeyStream:
    """An AES-256-CTR key stream, consumed from the beginning; equal keys give equal streams in any process.

    Guarantees:
        Splitting a request does not change the values: uniform(a) then uniform(b) equals uniform(a + b).
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != _KEY_BYTES:
            raise ValueError(f"a key has {_KEY_BYTES} bytes, got {len(key)}")
        # A fixed counter is safe because a key is used for one stream only.
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def uniform(self, count: int) -> FloatArray:
        """Return [count] float64, uniform on the 2^52 cell midpoints of (0, 1); never 0 or 1."""
        return ((self.words(count) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52

    def normal(self, count: int) -> FloatArray:
        """Return [count] standard normal float64 by the inverse distribution function.

        63 bits choose the magnitude and one the sign, so tails reach 9.1 standard deviations and the distance
        to a normal law is about 1e-19 a deviate: negligible against any delta.
        """
        out = np.empty(count, np.float64)
        for start in range(0, count, _CHUNK_WORDS):
            part = out[start : start + _CHUNK_WORDS]
            words = self.words(len(part))
            tail = (words >> np.uint64(1)).astype(np.float64)
            tail += 0.5
            tail *= 2.0**-64
            ndtri(tail, out=part)  # of the lower half: not positive
            part.view(np.uint64)[:] ^= ~words << np.uint64(63)
        return out

    def generator(self) -> np.random.Generator:
        """Return a numpy generator keyed from this stream, for choices on which no proof rests."""
        key = self.words(2)
        return np.random.Generator(np.random.Philox(key=int(key[0]) << 64 | int(key[1])))

    def write_words(self, count: int, into: memoryview) -> None:
        """Write the next [count] words of 64 bits as they come, for who makes deviates elsewhere.

        Args:
            count: >= 0.
            into: Writable, of at least 8 count + `SLACK_BYTES` bytes, which may be written over.
        """
        self._encryptor.update_into(bytes(8 * count), into)

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """Return the next [count] uniform words of 64 bits, little endian on every machine."""
        return np.frombuffer(self._encryptor.update(bytes(8 * count)), dtype="<u8").astype(
            np.uint64, copy=False
        )


class Randomness(Protocol):
    """Where a release gets its streams from; one object for each release."""

    @property
    def kind(self) -> Literal["os", "seeded"]:
        """Return `os`, or `seeded`: then no privacy may be claimed."""
        ...

    def stream(self, purpose: str) -> KeyStream:
        """Return a stream for one purpose; streams of different purposes are independent."""
        ...


class SystemRandomness:
    """Production: every stream has a fresh key from the operating system, so no noise is ever drawn twice."""

    @property
    def kind(self) -> Literal["os"]:
        """Return `os`."""
        return "os"

    def stream(self, purpose: str) -> KeyStream:
        """Return a stream with a fresh key; asking again for a purpose gives another stream."""
        return KeyStream(_derive(os.urandom(_KEY_BYTES), purpose))


class SeededRandomness:
    """Tests and simulation: streams are a function of seed, labels and purpose; there is no privacy.

    Labels have to name everything that tells one release from another (run, site, round): equal labels give
    equal noise, which cancels in a difference.
    """

    def __init__(self, seed: int, *labels: str | int) -> None:
        # Lengths and types are part of the text, so that ("a", "bc") and ("ab", "c"), or 1 and "1", differ.
        parts = [
            f"int:{int(seed)}",
            *(f"{type(label).__name__}:{len(str(label))}:{label}" for label in labels),
        ]
        self._root = _derive("\0".join(parts).encode(), "root")

    @property
    def kind(self) -> Literal["seeded"]:
        """Return `seeded`."""
        return "seeded"

    def stream(self, purpose: str) -> KeyStream:
        """Return the stream of a purpose, from its beginning."""
        return KeyStream(_derive(self._root, purpose))


def grid_spacing(*, noise_multiplier: float, max_grad_norm: float, divisor: float) -> float:
    """Return the spacing of the grid of released values.

    The power of two at or below sigma C / divisor / 1024: a power of two, so that rounding is exact in
    binary; a function of the plan alone, so that it tells nothing. Its rounding error (variance
    spacing^2 / 12) is below 1e-7 of the noise's variance.
    """
    return 2.0 ** (
        math.floor(math.log2(noise_multiplier) + math.log2(max_grad_norm) - math.log2(divisor)) - _GRID_BITS
    )


def round_to_grid(values: FloatArray, spacing: float) -> FloatArray:
    """Return the nearest multiples of `spacing`, ties to even; values may have any shape."""
    steps = np.asarray(values / spacing, dtype=np.float64)
    np.rint(steps, out=steps)
    return np.multiply(steps, spacing, out=steps)


def _derive(secret: bytes, purpose: str) -> bytes:
    """Return a key for one purpose by HKDF-SHA256 (RFC 5869)."""
    return HKDF(
        algorithm=SHA256(), length=_KEY_BYTES, salt=None, info=b"federated-vae/1/" + purpose.encode()
    ).derive(secret)
