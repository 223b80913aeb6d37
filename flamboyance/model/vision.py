"""Vision towers: frozen, from transformers, OpenCLIP or timm; pixels in, patch features out.

The features are the last block's patch tokens *before* the final LayerNorm and without class or register tokens (the
cells of the grid for a convolutional tower). The published Flamingo checkpoints were trained on these, whatever output
the library has today. `embed` returns one vector per image, as the library does, to compare images by.

Shapes: n images, C H W pixels, P patches, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flamboyance.configuration import check_vision
from flamboyance.model import quantization, vision_libraries, vision_transformers
from flamboyance.model.linear import use_packed_linear
from flamboyance.model.trainable import freeze, is_trained, train_trainable

LIBRARIES = ("transformers", "openclip", "timm")
TOGETHER = 1024  # patches that a CPU computes at a time; more take 1.4 times as long, outside of its caches


class VisionTower(nn.Module):
    """A frozen tower: `tower(pixels (n, C, H, W)) -> patches (n, P, D)`.

    Attributes:
        model: the library's module.
        spec: a dict from which `from_config` builds the tower again.
        width: D.
        image_size: the side in pixels that it was trained for.
        patches: P at that size; None for a convolutional tower.
        projection: CLIP's projection of its pooled feature, if it was requested and found.
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
            self.width, self.image_size, self.patches = vision_libraries.timm_geometry(model, spec["config"])
        use_packed_linear(self)
        freeze(self)
        self.eval()

    @classmethod
    def from_config(cls, spec: dict[str, Any], quantize: str | None = None) -> VisionTower:
        """Builds a tower without its weights from a `spec` (or `tower_spec`), also on the meta device. `quantize`: the
        scheme of its linear layers."""
        spec = _complete(spec)
        if spec["library"] == "transformers":
            model = vision_transformers.build(spec["config"])
        elif spec["library"] == "openclip":
            model = vision_libraries.openclip_build(spec)
        else:
            model = vision_libraries.timm_build(spec)
        if quantize and spec["library"] != "timm":
            quantization.quantize_layers(model, quantize)
        return cls(model, spec)

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
        image_size: int | None = None,
        feature_levels: Sequence[int] | None = None,
        quantize: str | None = None,
    ) -> VisionTower:
        """Loads a tower with its weights.

        Args:
            name: a hub name or directory (transformers), OpenCLIP's name, or "timm/...".
            pretrained: OpenCLIP's tag, or a file of its weights. OpenAI's towers ("ViT-L-14", "ViT-B-32", "ViT-B-16",
                "ViT-L-14-336" with "openai") are loaded by transformers from the hub's `openai/clip-vit-...`, without
                open_clip.
            library: "transformers", "openclip" or "timm", if the name does not determine it.
            dtype: of the weights; None or "auto": that of the files.
            projection: load the projection of CLIP's pooled feature too, if the files have it; `embed` uses it. Only
                for transformers' CLIP; towers of other libraries have it always.
            image_size: the side of the images in pixels, if another one than the tower's own. The positions of a ViT
                are interpolated to the new grid.
            feature_levels: timm's `out_indices`: the feature maps of a convolutional tower, the finest first. Finer
                ones are averaged to the coarsest grid, and all are joined in one patch's channels. None: the last one.
            quantize: "int8" or "int4": the scheme of its linear layers. Towers of timm, most of whose weights are those
                of convolutions, stay as they are.

        Raises:
            ValueError: an unknown name, weights that lack some of the tower's, settings that it does not take, or
                a tower that is quantized otherwise.
            ImportError: the library is not installed.
        """
        spec = _identify(str(name), pretrained, library)
        options = {"cache_dir": cache_dir, "local_files_only": local_files_only}
        if image_size is not None or feature_levels is not None:
            spec = _adjusted(spec, image_size, feature_levels)
        if spec["library"] == "transformers":
            config = vision_transformers.read_config(spec["name"], **options)
            if spec["config"] is not None:
                config["hidden_act"] = spec["config"]["hidden_act"]  # OpenAI's towers: QuickGELU
            spec["config"] = config
            check_vision(spec)
            quantization.check_again(quantize, config.get("quantization_config"), spec["name"])
            spec = _sized(spec)
            module, linear = vision_transformers.load(
                spec["name"], config, dtype=dtype, projection=projection, quantize=quantize, **options
            )
            if spec["config"] != config:
                vision_transformers.resize_positions(module, spec["config"])
            return cls(module, spec, linear)
        load = vision_libraries.openclip_load if spec["library"] == "openclip" else vision_libraries.timm_load
        model, spec["config"] = load(spec, **options)
        if quantize and spec["library"] != "timm":
            quantization.quantize_layers(model, quantize)
        return cls(model if dtype in (None, "auto") else model.to(_torch_dtype(dtype)), spec)

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (n, C, H, W), normalised -> patches (n, P, D), in the tower's dtype. Records gradients if the tower
        has trainable parameters or the pixels require them.

        Raises:
            ValueError: another number of dimensions, or a size that the tower does not take.
        """
        return self._in_turns(pixels, self._features)

    def _features(self, pixels: Tensor) -> Tensor:
        if self.spec["library"] == "transformers":
            return vision_transformers.features(self.model, pixels)
        if self.spec["library"] == "openclip":
            return vision_libraries.openclip_features(self.model, pixels)
        return vision_libraries.timm_features(self.model, pixels, "feature_levels" in self.spec["config"])

    def embed(self, pixels: Tensor) -> Tensor:
        """pixels (n, C, H, W), normalised -> one vector per image (n, D), float32, of length 1.

        The vector is the one by which the library compares images: CLIP's pooled feature, projected if the tower has
        the projection (see from_pretrained); SigLIP's pooled feature; the class token of DINOv2 and ViT; OpenCLIP's
        `encode_image`; timm's feature before the classifier, or the mean patch of several feature levels. D may differ
        from `width`. Raises as `forward` does.
        """
        return self._in_turns(pixels, self._embedded)

    def _embedded(self, pixels: Tensor) -> Tensor:
        if self.spec["library"] == "transformers":
            pooled = vision_transformers.pooled(self.model, pixels)
            pooled = pooled if self.projection is None else self.projection(pooled)
        elif self.spec["library"] == "openclip":
            pooled = vision_libraries.openclip_pooled(self.model, pixels)
        elif "feature_levels" in self.spec["config"]:
            pooled = self._features(pixels).mean(1)
        else:
            pooled = vision_libraries.timm_pooled(self.model, pixels)
        return nn.functional.normalize(pooled.float(), dim=-1)

    def _in_turns(self, pixels: Tensor, work: Callable[[Tensor], Tensor]) -> Tensor:
        """`work` on all images; on a CPU, on a few at a time. (Not among several processes: all processes of a sharded
        tower must call it equally often, and they may have different numbers of images.)"""
        self._check(pixels)
        trains = torch.is_grad_enabled() and (pixels.requires_grad or is_trained(self))
        alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        with torch.set_grad_enabled(trains):
            if pixels.device.type != "cpu" or not alone:
                return work(pixels.to(self.dtype))
            patches = (self.patches or 64) * pixels.shape[2] * pixels.shape[3] / self.image_size**2
            return torch.cat([work(some.to(self.dtype)) for some in pixels.split(max(1, round(TOGETHER / patches)))])

    def grid(self, patches: int, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the P patches of an image of this height and width in pixels; the patches are square.

        Raises:
            ValueError: so many patches do not form a grid of that shape.
        """
        rows = max(1, round((patches * height / width) ** 0.5))
        if patches % rows:
            raise ValueError(
                f"vision tower {self.spec['name']}: {patches} patches of an image of {height}x{width} pixels do not "
                "form a grid of squares"
            )
        return rows, patches // rows

    def train(self, mode: bool = True) -> VisionTower:
        """Frozen parts stay in evaluation mode: no dropout, no running statistics."""
        train_trainable(self, mode)
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


def tower_spec(
    name: str,
    pretrained: str | None = None,
    library: str | None = None,
    image_size: int | None = None,
    feature_levels: Sequence[int] | None = None,
) -> dict[str, Any]:
    """The `spec` of a tower, without loading its weights: {"library", "name", "pretrained", "config"}.

    Reads the tower's configuration; that of OpenAI's towers is built in. Arguments as of `VisionTower.from_pretrained`.
    """
    spec = _identify(str(name), pretrained, library)
    if image_size is not None or feature_levels is not None:
        spec = _adjusted(spec, image_size, feature_levels)
    return _complete(spec)


def chosen_settings(spec: dict[str, Any]) -> dict[str, Any]:
    """The image_size and feature_levels with which `VisionTower.from_pretrained` opens a tower of this spec again."""
    if spec["library"] != "timm":
        return {"image_size": spec["image_size"]} if "image_size" in spec else {}
    config = spec["config"]
    if config is None:
        return {}
    return {"image_size": config["image_size"], "feature_levels": config.get("feature_levels")}


def _adjusted(spec: dict[str, Any], image_size: int | None, feature_levels: Sequence[int] | None) -> dict[str, Any]:
    """A spec with another image size or feature levels than the library's."""
    if spec["library"] != "timm":
        if feature_levels is not None:
            raise ValueError(
                f"vision tower {spec['name']}: feature_levels is for timm's towers; one of {spec['library']} gives "
                "features as it was trained to; leave the setting out"
            )
        return spec | {"image_size": image_size}
    changed: dict[str, Any] = {} if image_size is None else {"image_size": image_size}
    if feature_levels is not None:
        changed["feature_levels"] = list(feature_levels)
    return dict(spec, config=vision_libraries.timm_config(spec) | changed)


def _sized(spec: dict[str, Any]) -> dict[str, Any]:
    """A spec whose config has the chosen image size, if one is."""
    side, config, library = spec.get("image_size"), spec["config"], spec["library"]
    if side is None or library == "timm":
        return spec
    if library == "openclip":
        return spec | {"config": config | {"image_size": side}}
    return spec | {"config": vision_transformers.sized(config, side, spec["name"])}


def tower_preprocessing(spec: dict[str, Any]) -> dict[str, Any]:
    """The preprocessing of a tower without a preprocessor_config.json.

    {"image_size": side in pixels, "mean": per channel, "std": per channel, "resize": "shortest" (side, then
    centre crop) or "exact" (to the square)}.
    """
    spec = _complete(spec)
    if spec["library"] == "transformers":
        return vision_transformers.preprocessing(spec["config"])
    return {key: spec["config"][key] for key in ("image_size", "mean", "std", "resize")}


def _identify(name: str, pretrained: str | None, library: str | None) -> dict[str, Any]:
    """The spec of a name, with its library; config is set only for OpenAI's towers."""
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
                f"vision tower {name}: no weights given; expected pretrained='openai' or another tag of OpenCLIP, or "
                "an existing directory of that name"
            )
    if library is None:
        library = _library_of(name, pretrained, directory)
    if library == "transformers" and pretrained is not None:
        raise ValueError(
            f"vision tower {name}: pretrained={pretrained!r} is for OpenCLIP; leave it out for a "
            "directory or a name of transformers"
        )
    return {"library": library, "name": name, "pretrained": pretrained, "config": None}


def _library_of(name: str, pretrained: str | None, directory: bool) -> str:
    if directory:
        path = Path(name)
        if (path / "open_clip_config.json").is_file() and not (path / "config.json").is_file():
            return "openclip"
        return "timm" if vision_libraries.is_timm_directory(path) else "transformers"
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
    return _sized(spec)


def _torch_dtype(dtype: torch.dtype | str) -> torch.dtype:
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype
