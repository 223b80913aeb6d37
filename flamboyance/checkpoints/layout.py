"""What an OpenFlamingo checkpoint was trained for, told by its keys and shapes."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from flamboyance.checkpoints.released import LAYERS, RELEASED, VISION_WIDTH

BLOCK = re.compile(r"^lang_encoder\.(?P<layers>.+)\.(?P<index>\d+)\.gated_cross_attn_layer\.(?P<rest>.+)$")


@dataclass(frozen=True)
class Layout:
    """What a reference state dict was trained for, told by its keys and shapes.

    Attributes:
        layers: dotted name of the decoder's layers; "?" where only aliases say that there are blocks, None without any.
        indices: the layers that have a block before them.
        width, vision_width: of the language model and of the tower; None where no key says so.
        width_key: the key that tells the width.
    """

    layers: str | None
    indices: tuple[int, ...]
    width: int | None
    width_key: str | None
    vision_width: int | None

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> "Layout":
        """Reads a normalised state dict; single keys that are wrong do not mislead it."""
        blocks = [m for m in map(BLOCK.match, state) if m]
        sizes = Counter(int(m["index"]) for m in blocks)
        indices = sorted(i for i, size in sizes.items() if size > max(sizes.values()) / 2)
        norms = {m[0]: state[m[0]].numel() for m in blocks if m["rest"] == "attn.norm.weight"}
        width = Counter(norms.values()).most_common(1)[0][0] if norms else None
        latents = state.get("perceiver.latents")
        return cls(
            layers=Counter(m["layers"] for m in blocks).most_common(1)[0][0] if blocks else None,
            indices=tuple(indices),
            width=width,
            width_key=next((key for key, w in norms.items() if w == width), None),
            vision_width=None if latents is None or not latents.ndim else latents.numel() // max(len(latents), 1),
        )

    @property
    def cross_attn_every_n_layers(self) -> int | None:
        return self.indices[0] + 1 if self.indices else None

    def __str__(self) -> str:
        if not self.indices:
            return "It has no gated_cross_attn_layer keys, so it is not a whole checkpoint."
        known = fitting(self)
        hint = f" That is the layout of {' and '.join(known)}." if known else ""
        return (
            f"Its {len(self.indices)} blocks stand in lang_encoder.{self.layers}, cross_attn_every_n_layers = "
            f"{self.cross_attn_every_n_layers}, width {self.width}, vision width {self.vision_width}.{hint}"
        )


def fitting(layout: Layout) -> list[str]:
    """The released models that a checkpoint of this layout can belong to."""
    found = []
    for name, (_, cross_attn_every_n_layers, architecture) in RELEASED.items():
        text = architecture()
        indices = tuple(range(cross_attn_every_n_layers - 1, text.num_hidden_layers, cross_attn_every_n_layers))
        same = (indices, text.hidden_size, VISION_WIDTH) == (layout.indices, layout.width, layout.vision_width)
        if same and layout.layers in ("?", LAYERS.get(text.model_type)):
            found.append(name)
    return found
