"""What is changed in a language model that somebody else wrote, before it becomes a Flamingo's. All of it is here."""

from typing import Any

from transformers import PreTrainedModel

from flamboyance.model.attention import install_shared_attention
from flamboyance.model.language import unwrapped
from flamboyance.model.linear import use_packed_linear
from flamboyance.model.mpt import fuse_mpt_attention

# Transformers' Mamba-2 limits its time steps from below in these while it reads a prompt, and not while it generates.
LIMITED = {"nemotron_h", "zamba2"}


def prepare_backbone(language_model: PreTrainedModel) -> None:
    """Makes a language model fast, able to attend to shared prompts, and equal with a cache and without."""
    use_packed_linear(language_model)
    fuse_mpt_attention(language_model)
    install_shared_attention(language_model)
    model: Any = unwrapped(language_model)
    if model.config.model_type in LIMITED:
        for module in model.modules():
            if isinstance(getattr(module, "time_step_limit", None), tuple):
                module.time_step_limit = (0.0, float("inf"))
