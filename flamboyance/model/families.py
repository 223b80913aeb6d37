"""Which families of language models work, and why the others do not.

A Flamingo gives its language model embeddings instead of token ids, runs it on left-padded rows, and carries its cache
across calls. What a family lacks for that is asked of the model where it can be seen there; what cannot be seen is a
list. `docs/families.md` shows the outcome for every causal language model of transformers.
"""

from typing import Any

from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin

from flamboyance.model.cache import NAMES
from flamboyance.model.language import arguments, unwrapped

# By model type, what cannot be seen from outside the model. Each was found by comparing cached with uncached logits, or
# padded rows with single ones.
REFUSED: dict[str, str] = {
    "git": "its attention is not causal over text that is given beside images of its own",
    "recurrent_gemma": "it keeps its state on its own modules, where calls, threads and beams would share it",
    "xlm": "its layers are no modules of their own, before which a block could be put",
    "minimax": "its cache is of a kind of its own, which cannot be cut or shared",
    "hrm_text": "its layers run several times for each token, in two modules",
}


# Transformers' Mamba-2 limits its time steps from below in these while it reads a prompt, and not while it generates.
LIMITED = {"nemotron_h", "zamba2"}


def prepare(language_model: nn.Module) -> None:
    """Makes a backbone compute with a cache what it computes without."""
    model: Any = unwrapped(language_model)
    if model.config.model_type in LIMITED:
        for module in model.modules():
            if isinstance(getattr(module, "time_step_limit", None), tuple):
                module.time_step_limit = (0.0, float("inf"))


def check(language_model: nn.Module) -> None:
    """
    Raises:
        ValueError: the family does not work; says why.
    """
    reason = why_not(language_model)
    if reason is not None:
        model = unwrapped(language_model)
        raise ValueError(
            f"{type(model).__name__} ({model.config.model_type}) cannot be a Flamingo's language model: {reason}."
        )


def why_not(language_model: nn.Module) -> str | None:
    """Why a language model does not work; None if it does."""
    model: Any = unwrapped(language_model)
    config = model.config.get_text_config(decoder=True)
    known = arguments(model)
    if reason := REFUSED.get(model.config.model_type) or REFUSED.get(config.model_type):
        return reason
    if "inputs_embeds" not in known:
        return "it takes token ids alone (no inputs_embeds), so that added tokens cannot be given to it"
    # GPT-NeoX's configuration says so too, which its layers do not ask.
    if getattr(config, "is_decoder", True) is False and _not_causal(model):
        return "it is an encoder, whose tokens see those that come after them; set is_decoder=True in its configuration"
    if not known & set(NAMES):
        return "its state is not a cache that can be given to it, so that it cannot be continued in several ways"
    if reason := _by_token(config, known):
        return reason
    if getattr(config, "altup_num_inputs", 0) or getattr(config, "hc_mult", 0) or getattr(config, "hc_count", 0):
        return "its layers pass on several streams of hidden states, and a block would not know which to change"
    if "attention_mask" not in known:
        return "it takes no attention mask, so that padding would change its results"
    if "position_ids" not in known and (table := _position_table(model.get_decoder() or model)):
        return (
            f"it numbers positions by column ({table}), so that a padded row would give other results than a single one"
        )
    return _state_alone(config)


def _not_causal(model: nn.Module) -> bool:
    return any(getattr(module, "is_decoder", True) is False for module in model.modules())


def _by_token(config: Any, known: Any) -> str | None:
    """Why layers that look at token ids cannot be given embeddings."""
    if "hash_moe" in (getattr(config, "mlp_layer_types", None) or ()):
        return "its first layers choose experts by token id, and added tokens have no experts"
    if getattr(config, "hidden_size_per_layer_input", 0) and "per_layer_inputs" not in known:
        return "its layers take token ids beside embeddings, and it does not let them be given"
    return None


def _position_table(model: nn.Module) -> str | None:
    """The name of a table of absolute positions."""
    tables = (name for name, module in model.named_modules() if isinstance(module, nn.Embedding) and "position" in name)
    return next(tables, None)


def _state_alone(config: Any) -> str | None:
    """Why a model without any layer of keys and values does not work."""
    try:
        layers: list[Any] = DynamicCache(config=config).layers
    except AttributeError:
        return "its configuration does not describe layers that a cache could be made for"
    if layers and not any(isinstance(layer, CacheLayerMixin) for layer in layers):
        return "it is a pure state-space model: its state cannot be shared by candidates, cut or moved behind padding"
    return None
