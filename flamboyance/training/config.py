"""Everything that a training run is told."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, get_args, get_origin, get_type_hints

from flamboyance.data.documents import Source

TRACKERS = ("tensorboard", "wandb", "trackio")


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of a run. The defaults are OpenFlamingo's, where it has them.

    Args:
        output: the run's directory: log, checkpoints, configuration, and the trained model at the end.
        sources: what is trained on, by name. Each micro-step takes a batch of every one.
        steps: optimizer steps in all.
        accumulate: micro-steps to an optimizer step.
        seed: of the data's order and augmentation, and of parameters that start at random.
        rate, betas, epsilon, weight_decay, clip: of AdamW; decay acts on the matrices of the cross-attention alone,
            clipping (of the gradient's norm) once a step; 0 leaves it out.
        warmup: steps in which the learning rate rises from nothing.
        schedule: after the warm-up "constant", or falling to `rate * final` by "cosine" or "linear" over the last
            `falling` (a share of the steps).
        precision: "bf16" computes in bfloat16 with the trained parameters kept in float32; "fp32".
        parallel: "ddp", "fsdp" (everything sharded over all ranks), "hybrid" (sharded within a node, replicated over
            nodes), or "auto": ddp when there are several processes.
        checkpoint_activations: keep less in memory and compute it again.
        compile: torch.compile for the blocks and layers.
        deterministic: refuse operations whose result may differ from run to run; None: on a CPU.
        workers: processes that decode data, on each rank; 0: none.
        prefetch: micro-steps that each worker prepares ahead.
        threads: CPU threads of the training process; None: torch's choice.
        checkpoint_every, keep: steps between checkpoints, and how many of the newest are kept.
        max_skipped: steps in a row with a non-finite gradient, after which the run stops.
        evaluate_every: steps between calls of the recipe's evaluation; 0: never.
        track: also log to "tensorboard", "wandb" or "trackio".
        export_openflamingo: also write `checkpoint.pt` in OpenFlamingo's layout at the end.
    """

    output: str
    sources: dict[str, Source]
    steps: int
    accumulate: int = 1
    seed: int = 0
    rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    warmup: int = 0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    falling: float = 1.0
    final: float = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    parallel: Literal["auto", "ddp", "fsdp", "hybrid"] = "auto"
    checkpoint_activations: bool = False
    compile: bool = False
    deterministic: bool | None = None
    workers: int = 2
    prefetch: int = 2
    threads: int | None = None
    checkpoint_every: int = 500
    keep: int = 2
    max_skipped: int = 10
    evaluate_every: int = 0
    track: tuple[str, ...] = ()
    export_openflamingo: bool = False


def check(config: Training) -> None:
    """Settings that contradict each other, found before anything is loaded.

    Raises:
        ValueError: names the setting, what it is, and what it may be.
    """
    if not config.sources:
        raise ValueError("sources is empty: give at least one source of documents to train on.")
    for name, one in get_type_hints(Training).items():
        if get_origin(one) is Literal and getattr(config, name) not in get_args(one):
            raise ValueError(f"{name}={getattr(config, name)!r}: expected one of {', '.join(get_args(one))}.")
    if other := set(config.track) - set(TRACKERS):
        raise ValueError(f"track={min(other)!r}: expected some of {', '.join(TRACKERS)}; log.jsonl is always written.")
    least = {"steps": 1, "accumulate": 1, "checkpoint_every": 1, "keep": 1, "workers": 0, "warmup": 0, "prefetch": 1}
    least |= {"max_skipped": 1, "clip": 0, "evaluate_every": 0, "weight_decay": 0, "rate": 0}
    for name, value in least.items():
        if getattr(config, name) < value:
            raise ValueError(f"{name}={getattr(config, name)}: expected {value} or more.")
    for name in config.track:
        if find_spec(name) is None:
            raise ImportError(f"track={name!r} needs a package: pip install {name}")
    for name, source in config.sources.items():
        if source.batch_size < 1 or source.max_tokens < 2:
            raise ValueError(
                f"{name}.batch_size={source.batch_size}, {name}.max_tokens={source.max_tokens}: expected at least one "
                "document of two tokens."
            )
    if not 0 <= config.falling <= 1 or not 0 <= config.final <= 1:
        raise ValueError(f"falling={config.falling}, final={config.final}: expected shares between 0 and 1.")
