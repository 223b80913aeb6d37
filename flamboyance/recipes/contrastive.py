"""Contrastive pretraining of a vision tower on pairs of images and texts, as Flamingo's was pretrained."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from flamboyance.data.documents import Source
from flamboyance.data.formats.user_data import UserData
from flamboyance.recipes.new import Validation, named, weighed
from flamboyance.training.config import TrainingConfig
from flamboyance.training.hardware import has_bfloat16
from flamboyance.training.run import TrainingRun

if TYPE_CHECKING:
    from flamboyance.data.pairs import PairProcessor
    from flamboyance.model.dual_encoder import DualEncoder
    from flamboyance.model.vision import VisionTower

SIDES = ("vision", "text")
CAPTION = "<image>{text}"
NO_VALIDATION = Validation()


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """The tower and the text encoder.

    Args:
        vision: the tower: a hub id or directory; or timm/NAME. OpenCLIP's towers have no directory to be exported to.
        text: the text encoder with its tokenizer, a hub id or directory of transformers, such as BERT's.
        from_scratch: vision, text, or vision,text: begins with random weights, and reads the configuration alone.
        vision_pretrained: timm's tag, or a file of weights.
        image_size: of the images in pixels, if another one than the tower's own.
        width: of the common space. Flamingo's was 1376.
    """

    vision: str
    text: str
    from_scratch: tuple[str, ...] = ()
    vision_pretrained: str | None = None
    image_size: int | None = None
    width: int = 512

    def __post_init__(self) -> None:
        if unknown := set(self.from_scratch) - set(SIDES):
            raise ValueError(f"from_scratch={min(unknown)}: expected vision, text, or vision,text")
        if "vision" in self.from_scratch and self.vision_pretrained is not None:
            raise ValueError(f"from_scratch=vision and vision_pretrained={self.vision_pretrained!r}: give one of them")


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The images and texts that are trained on.

    Args:
        data: sources, with commas between them: tars of pairs, .jsonl, .csv, .tsv, folders, as `finetune` takes. Each
            source is named after its file or folder, and SOURCE.field changes its settings.
        weights: of the sources' losses, in their order; default: 1 each.
        batch_size: pairs per step, source and device; small data is read repeatedly.
        max_tokens: longer texts are cut.
        flip: probability that an image is mirrored; 0 where texts name left and right.
    """

    data: tuple[str, ...]
    weights: tuple[float, ...] = ()
    batch_size: int = 256
    max_tokens: int = 64
    flip: float = 0.5

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ValueError(
                f"batch_size={self.batch_size}: expected 2 or more, since the pairs of a batch are the negatives"
            )

    def sources(self) -> dict[str, Source]:
        """The sources by name; raises as `weighed`."""
        return {name: self.source(shards, weight) for name, shards, weight in weighed(self.data, self.weights)}

    def source(self, shards: str, weight: float = 1.0) -> UserData:
        sizes: dict[str, Any] = {"batch_size": self.batch_size, "max_tokens": self.max_tokens, "flip": self.flip}
        return UserData(shards=shards, weight=weight, template=CAPTION, **sizes)


def contrastive(
    *,
    output: str,
    encoders: Encoders,
    pairs: Pairs,
    validation: Validation = NO_VALIDATION,
    steps: int = 5000,
    learning_rate: float = 5e-4,
) -> TrainingRun:
    """Pretrains a vision tower on images and their texts, as Flamingo's was, beside a text encoder.

    The loss is CLIP's: the images and texts of a batch, of all processes together, are each other's negatives. The
    tower is exported, for `train new vision=OUTPUT/model`. On the sources of `validation` is logged how often the text
    of an image is the most similar one among all of theirs, and the image of a text.

    Args:
        output: the run's directory.
        steps: optimizer steps.
        learning_rate: decays to 0. Flamingo's was 1e-3, in batches of 16,384.

    Raises:
        ValueError: settings that contradict each other.
    """
    held = {name: pairs.source(shards) for name, shards in named(validation.validation).items()}
    sources = tuple(held.values())
    training = TrainingConfig(
        output=output,
        sources=pairs.sources(),
        steps=steps,
        learning_rate=learning_rate,
        warmup_steps=max(1, min(500, steps // 20)),
        schedule="linear",
        precision="bf16" if has_bfloat16() else "fp32",
        evaluate_every=validation.validate_every if held else 0,
    )
    return TrainingRun(
        training,
        build=partial(build, encoders),
        outline=_no_outline,
        evaluate=partial(validate, sources=sources, documents=validation.validation_documents) if held else None,
        validation=held,
        trainer=_trainer,
        usage=usage,
    )


def build(encoders: Encoders) -> tuple[DualEncoder, PairProcessor]:
    """The tower and the text encoder, and what prepares their pairs.

    Raises:
        ValueError: a tower that cannot be exported, or trained from scratch; or a tokenizer without padding.
    """
    from transformers import AutoTokenizer

    from flamboyance.checkpoints.preprocessing import image_processor_of
    from flamboyance.data.pairs import PairProcessor
    from flamboyance.hub import options
    from flamboyance.model.dual_encoder import DualEncoder

    text = encoders.text
    tower = open_tower(encoders)
    tokenizer: Any = AutoTokenizer.from_pretrained(text, **options(text, {}))
    if tokenizer.pad_token_id is None:
        raise ValueError(f"text={text}: its tokenizer has no padding token; expected an encoder such as BERT")
    encoder = _text_encoder(text, "text" in encoders.from_scratch)
    return DualEncoder(tower, encoder, encoders.width), PairProcessor(tokenizer, image_processor_of(tower.spec))


def open_tower(encoders: Encoders) -> VisionTower:
    """The tower with its weights, or with random ones."""
    from torch.nn.modules.batchnorm import _BatchNorm

    from flamboyance.checkpoints.directory import absolute
    from flamboyance.hub import options
    from flamboyance.model.vision import VisionTower, tower_spec

    name, image_size = absolute(encoders.vision), encoders.image_size
    if "vision" in encoders.from_scratch:
        tower = VisionTower.from_config(tower_spec(name, None, None, image_size))
        if any(isinstance(module, _BatchNorm) for module in tower.modules()):
            raise ValueError(
                f"vision={name} has batch normalisation, whose statistics would be those of a part of the batch; "
                "train a tower without it from scratch, such as an NFNet or a ViT"
            )
    else:
        tower = VisionTower.from_pretrained(
            name, encoders.vision_pretrained, image_size=image_size, **options(name, {})
        )
    if tower.spec["library"] == "openclip":
        raise ValueError(
            f"vision={name} is a tower of OpenCLIP, which has no directory to export it to; give one of transformers "
            "or timm"
        )
    return tower


def _text_encoder(name: str, from_scratch: bool) -> Any:
    from transformers import AutoConfig, AutoModel

    from flamboyance.hub import options

    hub = options(name, {})
    if from_scratch:
        return AutoModel.from_config(AutoConfig.from_pretrained(name, **hub))
    return AutoModel.from_pretrained(name, dtype="float32", **hub)


def validate(
    model: DualEncoder, processor: PairProcessor, sources: tuple[UserData, ...], documents: int
) -> dict[str, float]:
    """How often the text of an image is the most similar one of all, and the image of a text. Of equal texts, each is
    right.

    Raises:
        ValueError: the sources have no pair of an image and a text.
    """
    import numpy as np
    import torch

    from flamboyance.data.documents import Rejected
    from flamboyance.recipes.validation import BATCH, first_documents, undrawn

    device, pairs, reasons = model.log_scale.device, [], set()
    for source in map(undrawn, sources):
        for document in first_documents(source, documents):
            try:
                pairs.append(processor.example(document, source, np.random.default_rng(0)))
            except Rejected as rejected:  # several images, or one that cannot be decoded
                reasons.add(rejected.reason)
    if not pairs:
        raise ValueError(
            f"validation={','.join(str(source.shards) for source in sources)}: no pair to validate on "
            f"({', '.join(sorted(reasons))}); expected documents of one image with a text"
        )
    images, texts = [], []
    for start in range(0, len(pairs), BATCH):
        batch = processor.collate(pairs[start : start + BATCH]).to(device)
        images.append(model.embed_images(processor.image_processor.normalized(batch.images)))
        texts.append(model.embed_texts(batch.input_ids, batch.attention_mask))
    similar = torch.cat(images) @ torch.cat(texts).T
    numbers: dict[tuple[int, ...], int] = {}  # of texts
    text = torch.tensor([numbers.setdefault(tuple(pair.ids.tolist()), len(numbers)) for pair in pairs], device=device)
    share = {"text_of_image": text[similar.argmax(1)] == text, "image_of_text": text[similar.argmax(0)] == text}
    return {name: float(right.float().mean()) for name, right in share.items()}


def usage(directory: Path) -> str:
    """Says where the tower is, and what uses it."""
    return (
        f"the tower is in {directory}; train a Flamingo around it with, e.g.:\n"
        f"  flamboyance train new output=runs/flamingo vision={shlex.quote(str(directory))} language=Qwen/Qwen3-0.6B "
        "data=captions/"
    )


def _trainer(*given: Any) -> Any:
    from flamboyance.training.contrastive import ContrastiveTrainer  # for start-up time

    return ContrastiveTrainer(*given)


def _no_outline() -> NoReturn:
    raise ValueError(
        "`plan` estimates Flamingos; a contrastive run takes the memory of training the tower and the text encoder"
    )
