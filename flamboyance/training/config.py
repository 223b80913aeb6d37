"""The settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, get_args, get_origin, get_type_hints

from flamboyance.data.documents import Source

TRACKERS = ("tensorboard", "wandb", "trackio")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of a run. The defaults are OpenFlamingo's where OpenFlamingo has such a setting.

    Args:
        output: the run's directory: log, checkpoints, configuration, and the trained model at the end.
        sources: the training data, by name. Each micro-step takes one batch of every source.
        steps: number of optimizer steps.
        gradient_accumulation_steps: micro-steps per optimizer step.
        seed: seed of the data's order, of augmentation, and of new parameters.
        learning_rate, betas, epsilon, weight_decay: of AdamW. Weight decay applies to the matrices of the
            cross-attention only.
        max_grad_norm: the gradient is clipped to this norm once per optimizer step; 0 disables clipping.
        warmup_steps: steps in which the learning rate rises from 0.
        schedule: learning rate after the warm-up: "constant", or a "cosine" or "linear" decay to
            `learning_rate * min_lr_factor`.
        decay_fraction: the decay takes this fraction of all steps, at the end of the run.
        min_lr_factor: final learning rate, as a fraction of `learning_rate`.
        precision: "fp32", or "bf16", which computes in bfloat16 and keeps the trainable parameters in float32.
        freeze_added_tokens: do not train the rows of `<image>`, `<|endofchunk|>` and other added tokens; they keep the
            values that they begin with (OpenFlamingo, table 5).
        unfreeze_vision, unfreeze_language: train the vision tower or the language model too, at the same learning rate.
            Flamingo lost by both: they forget what they were pretrained for. Batch normalisation keeps its statistics.
        parallel: "ddp", "fsdp" (sharded over all ranks), "hybrid" (sharded within a node, replicated across nodes), or
            "auto", which is "ddp" if there are several processes.
        checkpoint_activations: save memory by computing activations again in the backward pass.
        compile: compile blocks and layers with torch.compile.
        deterministic: raise an error for operations that are not deterministic; None: only warn, and only on a CPU.
        workers: data worker processes per rank; 0 loads data in the training process.
        prefetch: micro-steps that each worker prepares in advance.
        threads: CPU threads of the training process; None: torch's default.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: number of checkpoints that are kept, the newest ones.
        max_skipped_steps: the run stops after this many steps in a row with a non-finite gradient.
        evaluate_every: steps between evaluations, of which the first is before the first step; 0: never.
        evaluate: few-shot tasks to evaluate on then, by name as for the command `evaluate`: benchmarks, one's own files
            or folders, hf:NAME[SPLIT].
        evaluate_data: the folder of the benchmarks' files.
        evaluate_support: the examples to choose demonstrations from, for one's own data; "": the data itself.
        evaluate_shots: numbers of demonstrations.
        evaluate_queries: number of queries of each task, the same ones at every evaluation; none: all.
        evaluate_seeds: seeds of the choice of demonstrations; the mean over them is logged.
        track: trackers to log to beside log.jsonl: "tensorboard", "wandb", "trackio".
        export_every: steps between exports of the model so far, to `models/step-…`; 0: only at the end.
        cache_features: compute the frozen tower's features of all images once, before the first step, and train on
            those: neither decoding nor the tower then costs anything. Takes 2 bytes per number on the disk.
        feature_augmentations: variants of each image in the cache, one of which is drawn at each use; the first is the
            image itself, the others are cropped, turned and coloured a little differently.
        feature_cache: directory of the cache, which other runs may share; "": `features` in the output.
        feature_cache_gb: the cache's largest size.
        export_openflamingo: also write `checkpoint.pt` in OpenFlamingo's layout at the end.
    """

    output: str
    sources: dict[str, Source]
    steps: int
    gradient_accumulation_steps: int = 1
    seed: int = 0
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    decay_fraction: float = 1.0
    min_lr_factor: float = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    freeze_added_tokens: bool = False
    unfreeze_vision: bool = False
    unfreeze_language: bool = False
    parallel: Literal["auto", "ddp", "fsdp", "hybrid"] = "auto"
    checkpoint_activations: bool = False
    compile: bool = False
    deterministic: bool | None = None
    workers: int = 2
    prefetch: int = 2
    threads: int | None = None
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    max_skipped_steps: int = 10
    evaluate_every: int = 0
    evaluate: tuple[str, ...] = ()
    evaluate_data: str = ""
    evaluate_support: str = ""
    evaluate_shots: tuple[int, ...] = (0, 4)
    evaluate_queries: int | None = 200
    evaluate_seeds: tuple[int, ...] = (0,)
    export_every: int = 0
    cache_features: bool = False
    feature_augmentations: int = 1
    feature_cache: str = ""
    feature_cache_gb: float = 50.0
    track: tuple[str, ...] = ()
    export_openflamingo: bool = False


def check(config: TrainingConfig) -> None:
    """Finds settings that cannot be right before anything is loaded.

    Raises:
        ValueError: names the setting, its value, and what was expected.
        ImportError: a tracker's package is not installed.
    """
    if not config.sources:
        raise ValueError("sources is empty: expected at least one source of documents to train on")
    for name, kind in get_type_hints(TrainingConfig).items():
        if get_origin(kind) is Literal and getattr(config, name) not in get_args(kind):
            raise ValueError(f"{name}={getattr(config, name)!r}: expected one of {', '.join(get_args(kind))}")
    if unknown := set(config.track) - set(TRACKERS):
        raise ValueError(f"track={min(unknown)!r}: expected some of {', '.join(TRACKERS)}; log.jsonl is always written")
    at_least_0 = ("warmup_steps", "workers", "evaluate_every", "export_every", "max_grad_norm", "weight_decay")
    at_least_0 += ("learning_rate",)
    at_least_1 = ("steps", "gradient_accumulation_steps", "checkpoint_every", "keep_checkpoints", "max_skipped_steps")
    at_least_1 += ("feature_augmentations",)
    for name, least in (dict.fromkeys(at_least_0, 0) | dict.fromkeys((*at_least_1, "prefetch"), 1)).items():
        if getattr(config, name) < least:
            raise ValueError(f"{name}={getattr(config, name)}: expected {least} or more")
    if config.threads is not None and config.threads < 1:
        raise ValueError(f"threads={config.threads}: expected 1 or more, or none for torch's choice")
    if config.evaluate and not config.evaluate_every:
        raise ValueError(f"evaluate={','.join(config.evaluate)} is never done: add evaluate_every=N, in steps")
    for name in ("evaluate_shots", "evaluate_seeds"):
        numbers = getattr(config, name)
        if not numbers or min(numbers) < 0:
            raise ValueError(f"{name}={','.join(map(str, numbers))}: expected numbers of 0 or more, as in 0,4")
    if config.evaluate_queries is not None and config.evaluate_queries < 1:
        raise ValueError(f"evaluate_queries={config.evaluate_queries}: expected 1 or more, or none for all")
    if not config.cache_features and (config.feature_cache or config.feature_augmentations > 1):
        name = "feature_cache" if config.feature_cache else "feature_augmentations"
        raise ValueError(f"{name}={getattr(config, name)} has no effect: add cache_features=true, or leave it out")
    if config.unfreeze_vision and config.cache_features:
        raise ValueError(
            "unfreeze_vision=true, cache_features=true: features of a tower that is trained change; give one"
        )
    for name in ("unfreeze_vision", "unfreeze_language"):
        if getattr(config, name) and config.export_openflamingo:
            raise ValueError(
                f"{name}=true, export_openflamingo=true: an OpenFlamingo checkpoint has no place for a backbone; "
                "leave one out"
            )
    for name in ("decay_fraction", "min_lr_factor"):
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name}={getattr(config, name)}: expected a number from 0 to 1")
    for name in config.track:
        if find_spec(name) is None:
            raise ImportError(f"track={name!r} needs a package: pip install {name}")
    for name, source in config.sources.items():
        if source.batch_size < 1 or source.max_tokens < 2:
            raise ValueError(
                f"{name}.batch_size={source.batch_size}, {name}.max_tokens={source.max_tokens}: expected "
                "batch_size of 1 or more, max_tokens of 2 or more"
            )
