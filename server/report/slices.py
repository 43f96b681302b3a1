"""The images of a report, as arrays; `server.report.panels` draws them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Panels:
    """Slices to look at; row 0 of an image is drawn at the top.

    Shapes: N test scans, H W pixels, K latents, T steps, M samples.

    Attributes:
        original: [N, H, W], intensity of the input.
        reconstruction: [N, H, W]: what the model expects of a healthy person.
        residual: [N, H, W]: original minus reconstruction.
        zmap: [N, H, W]: residual in standard deviations of healthy residuals; None without a reference.
        labels: N captions of the columns, such as "hypometabolism 30 %". Never a patient's key.
        truth: [N, H, W] bool: where the change really is; None where that is not known.
        traversals: [K, T, H, W] decoded along single latents; None: not drawn.
        traversal_labels: K captions.
        traversal_values: T positions [prior standard deviations].
        samples: [M, H, W] decoded from the prior; None: not drawn.
        example: Which scan stands at the head of the page; choose it for what it is, never for its result.
    """

    original: Image
    reconstruction: Image
    residual: Image
    labels: tuple[str, ...]
    zmap: Image | None = None
    truth: npt.NDArray[np.bool_] | None = None
    traversals: Image | None = None
    traversal_labels: tuple[str, ...] = ()
    traversal_values: tuple[float, ...] = ()
    samples: Image | None = None
    example: int = 0

    def __post_init__(self) -> None:
        shape = self.original.shape
        if len(shape) != 3 or shape[0] < 1:
            raise ValueError(f"panels: original must be [N, H, W] with N >= 1, not {shape}")
        for name in ("reconstruction", "residual", "zmap", "truth"):
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise ValueError(f"panels: {name} must have the shape of original {shape}, not {array.shape}")
        if len(self.labels) != shape[0]:
            raise ValueError(f"panels: {shape[0]} scans need as many labels, not {len(self.labels)}")
        if not 0 <= self.example < shape[0]:
            raise ValueError(f"panels: example must be in 0..{shape[0] - 1}, not {self.example}")
        if self.samples is not None and self.samples.ndim != 3:
            raise ValueError(f"panels: samples must be [M, H, W], not {self.samples.shape}")
        if self.traversals is not None:
            expected = (len(self.traversal_labels), len(self.traversal_values))
            if self.traversals.ndim != 4 or self.traversals.shape[:2] != expected:
                raise ValueError(
                    f"panels: traversals must be [K, T, H, W] with (K, T) = {expected} by their labels"
                )
