"""A benchmark's worker that loads and trains with open_flamingo 2.0.1, in an environment without Flamboyance.

A training step is the reference's own `train_one_epoch` over an epoch of one batch of each kind.
"""

from __future__ import annotations

import functools
import sys
import time
import types
from typing import Any

from processes import clocks, peak_memory, serve, watch_memory

# The trainer imports it, and calls it only if it reports there.
sys.modules["wandb"] = types.ModuleType("wandb")

import open_clip  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from open_flamingo import create_model_and_transforms  # noqa: E402
from open_flamingo.train.train_utils import filter_state_dict_to_trainable, train_one_epoch  # noqa: E402

held: dict[str, Any] = {}


def make_clip(tower: str, file: str) -> None:
    """A CLIP with random weights."""
    torch.manual_seed(1)
    torch.save(open_clip.create_model(tower).state_dict(), file)


def load(
    paths: dict[str, str], threads: int, checkpoint: bool = False, cross_attn_every_n_layers: int = 1
) -> dict[str, str]:
    """Builds the model; with the trained parts of `paths["checkpoint"]` when asked for."""
    torch.set_num_threads(threads)
    torch.manual_seed(2)
    model, processor, tokenizer = create_model_and_transforms(
        paths["tower"],
        paths["clip"],
        paths["language"],
        paths["tokenizer"],
        cross_attn_every_n_layers=cross_attn_every_n_layers,
    )
    if checkpoint:
        result = model.load_state_dict(torch.load(paths["checkpoint"], weights_only=True), strict=False)
        assert not result.unexpected_keys, result.unexpected_keys
    held.update(model=model, processor=processor, tokenizer=tokenizer)
    return {"torch": torch.__version__, "transformers": transformers.__version__}


def make_checkpoint(file: str, gate: float) -> None:
    """What the reference's trainer would save, with gates open."""
    model = held["model"]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("attn_gate", "ff_gate")):
                parameter.fill_(gate)
    torch.save(filter_state_dict_to_trainable(model, model.state_dict()), file)


class Trained(torch.nn.Module):
    """Stands where the trainer has DistributedDataParallel, which it needs for a process group; keeps the losses."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module = module
        self.losses: list[float] = []

    def forward(self, **batch: Any) -> Any:
        out = self.module(**batch)
        self.losses.append(out[0].item())
        return out


class Once(list):
    """A loader of one batch."""

    num_batches = 1


def prepare(batches: str, rate: float, weights: dict[str, float], checkpoint_activations: bool) -> int:
    """Ready to take steps; bytes resident."""
    model = Trained(held["model"])
    if checkpoint_activations:
        wrap(model)
    # The two groups of its train.py.
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in named if "gated_cross_attn" in n], "weight_decay": 0.1},
        {"params": [p for n, p in named if "gated_cross_attn" not in n], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate)
    content = torch.load(batches, weights_only=True)
    pairs, documents = content["pairs"], content["documents"]
    texts = [(i[None], m[None]) for i, m in zip(documents["ids"], documents["mask"], strict=True)]
    held["options"] = {
        "args": types.SimpleNamespace(
            num_epochs=1, precision="fp32", fsdp=False, rank=1, gradient_accumulation_steps=1,
            loss_multiplier_laion=weights["pairs"], loss_multiplier_mmc4=weights["documents"],
            freeze_lm_embeddings=False, logging_steps=100, report_to_wandb=False,
        ),
        "model": model,
        "epoch": 0,
        "laion_loader": Once([(pairs["slots"][:, 0], (pairs["ids"], pairs["mask"]))]),
        "mmc4_loader": Once([(documents["slots"], texts)]),
        "tokenizer": held["tokenizer"],
        "optimizer": optimizer,
        "lr_scheduler": transformers.get_constant_schedule(optimizer),
        "device_id": "cpu",
        "wandb": None,
    }  # fmt: skip
    return watch_memory()


def wrap(model: torch.nn.Module) -> None:
    """As its train.py, but for `offload_to_cpu`, which today's torch has not and which does nothing on a CPU."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        CheckpointImpl,
        apply_activation_checkpointing,
        checkpoint_wrapper,
    )

    model.module.perceiver._use_gradient_checkpointing = True
    for layer in model.module.lang_encoder._get_decoder_layers():
        layer.gated_cross_attn_layer._use_gradient_checkpointing = True
        layer.decoder_layer._use_gradient_checkpointing = True
    wrapper = functools.partial(checkpoint_wrapper, checkpoint_impl=CheckpointImpl.NO_REENTRANT)
    apply_activation_checkpointing(
        model, checkpoint_wrapper_fn=wrapper, check_fn=lambda m: getattr(m, "_use_gradient_checkpointing", False)
    )


def step() -> dict[str, Any]:
    """One optimizer step: seconds, those of all cores, and the losses of pairs and documents."""
    model = held["options"]["model"]
    model.losses.clear()
    began, used = time.perf_counter(), time.process_time()
    train_one_epoch(**held["options"])
    seconds, used = time.perf_counter() - began, time.process_time() - used
    losses = dict(zip(("pairs", "documents"), model.losses, strict=True))
    return {"seconds": seconds, "processor_seconds": used, "losses": losses}


if __name__ == "__main__":
    functions = (make_clip, load, make_checkpoint, prepare, step, clocks, peak_memory, watch_memory)
    serve({function.__name__: function for function in functions})
