"""Vision towers: frozen, from transformers, OpenCLIP or timm; pixels in, patch features out.

A tower's features are the last block's patch tokens *before* the final LayerNorm and without class or
register tokens (a grid's cells for a convolutional tower): what the published Flamingo checkpoints were
trained on, whatever a library's own output is today. By `embed` a tower gives one vector an image, as its
library does: what images are compared by.

Shapes: n images, C H W pixels, P patches, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flamboyance.configuration import check_vision
from flamboyance.model import adapters, vision_libraries, vision_transformers
from flamboyance.model.linear import use_packed_linear
from flamboyance.model.trainable import freeze, train_what_trains

LIBRARIES = ("transformers", "openclip", "timm")
TOGETHER = 1024  # patches that a CPU computes at a time; with more, activations leave its caches: 1.4 times as long


class VisionTower(nn.Module):
    """A frozen tower: `tower(pixels (n, C, H, W)) -> patches (n, P, D)`.

    Attributes: `model`, the library's own module; `spec`, the dict that `from_config` builds it again from;
    `width` (D); `image_size`, the side in pixels that it was made for; `patches` (P at that size; None for a
    convolutional tower); `projection`, CLIP's of its pooled feature, where it was asked for and found.
    """

    def __init__(self, model: Any, spec: dict[str, Any], projection: nn.Module | None = None) -> None:
        super().__init__()
        self.model: Any = model
        self.projection = projection
        self.spec = spec
        if spec["library"] == "transformers":
            self.width, self.image_size, self.patches = vision_transformers.geometry(spec["config"])
        elif spec["library"] == "openclip":
            self.width, self.image_size, self.patches = vision_libraries.openclip_geometry(model)
        else:
            self.width, self.image_size, self.patches = vision_libraries.timm_geometry(model)
        use_packed_linear(self)
        freeze(self)
        self.eval()

    @classmethod
    def from_config(cls, spec: dict[str, Any]) -> VisionTower:
        """Build a tower without its weights from a `spec` (or `tower_spec`); works on the meta device."""
        spec = _complete(spec)
        if spec["library"] == "transformers":
            return cls(vision_transformers.build(spec["config"]), spec)
        if spec["library"] == "openclip":
            return cls(vision_libraries.openclip_build(spec), spec)
        return cls(vision_libraries.timm_build(spec), spec)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        pretrained: str | None = None,
        library: str | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
        dtype: torch.dtype | str | None = None,
        projection: bool = False,
    ) -> VisionTower:
        """Load a tower with its weights.

        name: a hub name or directory (transformers), OpenCLIP's name, or "timm/...".
        pretrained: OpenCLIP's tag, or a file of its weights. OpenAI's own towers ("ViT-L-14" with "openai",
            and "ViT-B-32", "ViT-B-16", "ViT-L-14-336") come by transformers from the hub's
            `openai/clip-vit-...`, without open_clip.
        library: "transformers", "openclip" or "timm", where the name alone does not say it.
        dtype: of the weights; None or "auto" keeps the files'.
        projection: also what `embed` projects by, if the files hold it. Only transformers' CLIP asks: a Flamingo
            has no use for it, towers saved alone lack it, and other libraries' towers have theirs anyway.

        Raises ValueError for a name that is none of these, ImportError where a library is not installed.
        """
        spec = _identify(str(name), pretrained, library)
        options = {"cache_dir": cache_dir, "local_files_only": local_files_only}
        if spec["library"] == "transformers":
            config = vision_transformers.read_config(spec["name"], **options)
            if spec["config"] is not None:
                config["hidden_act"] = spec["config"]["hidden_act"]  # OpenAI's towers: QuickGELU
            spec["config"] = config
            check_vision(spec)
            module, linear = vision_transformers.load(
                spec["name"], config, dtype=dtype, projection=projection, **options
            )
            return cls(module, spec, linear)
        load = vision_libraries.openclip_load if spec["library"] == "openclip" else vision_libraries.timm_load
        model, spec["config"] = load(spec, **options)
        return cls(model if dtype in (None, "auto") else model.to(_torch_dtype(dtype)), spec)

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (n, C, H, W), already normalised -> patches (n, P, D), in the tower's dtype. Records gradients where
        something of the tower trains, or the pixels ask for theirs.

        Raises ValueError for another number of axes or a size that the tower cannot take.
        """
        return self._in_turns(pixels, self._features)

    def _features(self, pixels: Tensor) -> Tensor:
        if self.spec["library"] == "transformers":
            return vision_transformers.features(self.model, pixels)
        if self.spec["library"] == "openclip":
            return vision_libraries.openclip_features(self.model, pixels)
        return vision_libraries.timm_features(self.model, pixels)

    def embed(self, pixels: Tensor) -> Tensor:
        """pixels (n, C, H, W), already normalised -> one vector an image (n, D), float32, of length 1.

        It is what the model's library compares images by: CLIP's pooled feature, projected if the tower has the
        projection (see from_pretrained); SigLIP's pooled feature; the class token of DINOv2 and ViT; OpenCLIP's
        `encode_image`; timm's feature before the classifier. D need not be `width`. Raises as `forward`.
        """
        return self._in_turns(pixels, self._embedded)

    def _embedded(self, pixels: Tensor) -> Tensor:
        if self.spec["library"] == "transformers":
            pooled = vision_transformers.pooled(self.model, pixels)
            pooled = pooled if self.projection is None else self.projection(pooled)
        elif self.spec["library"] == "openclip":
            pooled = vision_libraries.openclip_pooled(self.model, pixels)
        else:
            pooled = vision_libraries.timm_pooled(self.model, pixels)
        return nn.functional.normalize(pooled.float(), dim=-1)

    def _in_turns(self, pixels: Tensor, work: Callable[[Tensor], Tensor]) -> Tensor:
        """What the work makes of all images, on a CPU of a few at a time. (Not where other processes, of more images or
        fewer, may have to take as many turns: those of a sharded tower.)"""
        self._check(pixels)
        learns = torch.is_grad_enabled() and (pixels.requires_grad or any(p.requires_grad for p in self.parameters()))
        with torch.set_grad_enabled(learns):
            return self._some_at_a_time(pixels, work)

    def _some_at_a_time(self, pixels: Tensor, work: Callable[[Tensor], Tensor]) -> Tensor:
        alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        if pixels.device.type != "cpu" or not alone:
            return work(pixels.to(self.dtype))
        patches = (self.patches or 64) * pixels.shape[2] * pixels.shape[3] / self.image_size**2
        return torch.cat([work(some.to(self.dtype)) for some in pixels.split(max(1, round(TOGETHER / patches)))])

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes the tower as a transformers directory, for a checkpoint that stands alone; adapters are not in it.

        Raises:
            ValueError: the tower is of another library; such towers are named, not copied.
        """
        if self.spec["library"] != "transformers":
            raise ValueError(
                f"vision tower {self.spec['name']} is of the library {self.spec['library']}, which has no directory "
                "format of its own; save with include_backbones=False, so that the tower is loaded by its name"
            )
        adapters.save_base(self.model, directory)

    def train(self, mode: bool = True) -> VisionTower:
        """What is frozen stays in evaluation mode: no dropout, no running statistics to update."""
        train_what_trains(self, mode)
        return self

    def _check(self, pixels: Tensor) -> None:
        if pixels.ndim != 4:
            raise ValueError(
                f"vision tower {self.spec['name']}: pixels are {tuple(pixels.shape)}; expected "
                "(images, channels, height, width)"
            )
        library, side = self.spec["library"], self.image_size
        any_size = self.patches is None or (
            library == "transformers" and vision_transformers.family_of(self.spec["config"]).any_size
        )
        if not any_size and tuple(pixels.shape[2:]) != (side, side):
            raise ValueError(
                f"vision tower {self.spec['name']}: images are {pixels.shape[2]}x{pixels.shape[3]} pixels; "
                f"expected {side}x{side} (resize them: tower_preprocessing)"
            )


def tower_spec(name: str, pretrained: str | None = None, library: str | None = None) -> dict[str, Any]:
    """The `spec` of a tower without loading its weights: {"library", "name", "pretrained", "config"}.

    Needs no network for OpenAI's towers; reads the configuration of others.
    """
    return _complete(_identify(str(name), pretrained, library))


def tower_preprocessing(spec: dict[str, Any]) -> dict[str, Any]:
    """How a tower wants its images, for want of a preprocessor_config.json.

    {"image_size": side in pixels, "mean": per channel, "std": per channel, "resize": "shortest" (side, then
    centre crop) or "exact" (to the square)}.
    """
    spec = _complete(spec)
    if spec["library"] == "transformers":
        return vision_transformers.preprocessing(spec["config"])
    return {key: spec["config"][key] for key in ("image_size", "mean", "std", "resize")}


def _identify(name: str, pretrained: str | None, library: str | None) -> dict[str, Any]:
    """Which library a name belongs to; config is filled in for OpenAI's towers alone."""
    if library is not None and library not in LIBRARIES:
        raise ValueError(f"vision tower {name}: library={library!r}; expected one of {', '.join(LIBRARIES)}")
    openai = vision_transformers.openai_tower(name)
    directory = Path(name).is_dir()
    if not directory and openai is not None and library != "openclip":
        hub_name, config = openai
        if pretrained == "openai" or (pretrained is None and name == hub_name):
            return {"library": "transformers", "name": hub_name, "pretrained": None, "config": config}
        if pretrained is None:
            raise ValueError(
                f"vision tower {name}: say which weights, pretrained='openai' or another tag of OpenCLIP; "
                "for a directory of the same name, check that it exists"
            )
    if library is None:
        library = _library_of(name, pretrained, directory)
    if library == "transformers" and pretrained is not None:
        raise ValueError(
            f"vision tower {name}: pretrained={pretrained!r} is OpenCLIP's; leave it out for a "
            "directory or a name of transformers"
        )
    return {"library": library, "name": name, "pretrained": pretrained, "config": None}


def _library_of(name: str, pretrained: str | None, directory: bool) -> str:
    if directory:
        path = Path(name)
        if (path / "open_clip_config.json").is_file() and not (path / "config.json").is_file():
            return "openclip"
        return "transformers"
    if name.startswith(("timm/", "hf_hub:timm/", "hf-hub:timm/")):
        return "timm"
    if pretrained is not None or name.startswith(("hf-hub:", "local-dir:")):
        return "openclip"
    return "transformers"


def _complete(spec: dict[str, Any]) -> dict[str, Any]:
    """A copy of a spec with its config filled in."""
    spec = {"library": None, "name": None, "pretrained": None, "config": None} | spec
    if spec["config"] is None and spec["name"] is not None:
        spec |= _identify(spec["name"], spec["pretrained"], spec["library"])
    if spec["library"] not in LIBRARIES:
        raise ValueError(
            f"vision tower: library={spec['library']!r}; expected one of {', '.join(LIBRARIES)}, and a name or a config"
        )
    if spec["config"] is None:
        if spec["library"] == "transformers":
            spec["config"] = vision_transformers.read_config(spec["name"])
        elif spec["library"] == "openclip":
            spec["config"] = vision_libraries.openclip_config(spec)
        else:
            spec["config"] = vision_libraries.timm_config(spec)
    return spec


def _torch_dtype(dtype: torch.dtype | str) -> torch.dtype:
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype
