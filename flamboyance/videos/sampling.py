"""Which frames of a video a model is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class VideoSampling:
    """Frames in equal steps: `per_second`, and no more than `frames`.

    The defaults are Flamingo's when it answers: one frame a second, up to 30, for which the time embeddings of the 8
    frames of its training are interpolated (Alayrac et al. 2022, section 3.1.1 and appendix B.1.3). Of a longer video
    the same number is taken, further apart. A video of two frames or more gives at least two, if `frames` allows: with
    one, nothing moves.

    Attributes:
        frames: the most frames of a video, 1 or more.
        per_second: frames for each second of the video, above 0.
    """

    frames: int = 30
    per_second: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.frames, bool) or not isinstance(self.frames, int) or self.frames < 1:
            raise ValueError(f"frames={self.frames!r}: expected a whole number, 1 or more")
        rate = self.per_second
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1000:
            raise ValueError(f"per_second={rate!r}: expected frames for each second, above 0 and at most 1,000")

    def times(self, duration: float, count: int, rng: np.random.Generator | None = None) -> list[float]:
        """When the frames are taken, in seconds from the start: the middles of equal parts of the video, in order.

        Args:
            duration: of the video, in seconds.
            count: the number of its frames.
            rng: of a video with more than `frames` at this rate, only a stretch is used, drawn at random. Without it,
                all of the video is, in longer steps.
        """
        wanted = int(duration * self.per_second + 0.5)
        number = min(self.frames, max(wanted, 2)) if count > 1 else 1
        start = 0.0
        if rng is not None and wanted > self.frames:
            stretch = self.frames / self.per_second
            start, duration = float(rng.uniform(0, duration - stretch)), stretch
        return [start + (part + 0.5) * duration / number for part in range(number)]


STILL = VideoSampling(frames=1)
"""The middle frame: all that a model of still images can see."""
