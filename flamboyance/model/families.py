"""Which families of language models work, and why the others do not.

A Flamingo gives its language model embeddings instead of token ids, runs it on left-padded rows, and passes its cache
from call to call. Whether a family supports this is read from the model if possible; the other families are listed.
`docs/families.md` shows the result for every causal language model of transformers.
"""

from typing import Any

from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin

from flamboyance.model.cache import NAMES
from flamboyance.model.language import arguments, unwrapped

# By model type, reasons that the code cannot find. Each was found by comparing cached with uncached logits, or padded
# rows with single ones.
REFUSED: dict[str, str] = {
    "git": "its attention is not causal",
    "recurrent_gemma": "it stores its state on its modules, where calls, threads and beams would share it",
    "xlm": "its layers are not modules, so that no block can be put before them",
    "minimax": "its cache is of another kind, which cannot be cut or shared",
    "hrm_text": "its layers run several times per token, in two modules",
}


def check(language_model: nn.Module) -> None:
    """
    Raises:
        ValueError: the family does not work, for the reason given.
    """
    reason = why_not(language_model)
    if reason is not None:
        model = unwrapped(language_model)
        raise ValueError(
            f"{type(model).__name__} ({model.config.model_type}) cannot be a Flamingo's language model: {reason}."
        )


def why_not(language_model: nn.Module) -> str | None:
    """The reason why a language model does not work; None if it works."""
    model: Any = unwrapped(language_model)
    config = model.config.get_text_config(decoder=True)
    known = arguments(model)
    if reason := REFUSED.get(model.config.model_type) or REFUSED.get(config.model_type):
        return reason
    if "inputs_embeds" not in known:
        return "it takes only token ids (no inputs_embeds), which leaves no place for added tokens"
    # GPT-NeoX's configuration has is_decoder=False too, but its layers ignore it.
    if getattr(config, "is_decoder", True) is False and _not_causal(model):
        return "it is an encoder, whose tokens attend to later ones; set is_decoder=True in its configuration"
    if not known & set(NAMES):
        return "it takes no cache as an argument, so that it cannot be continued in several ways"
    if reason := _by_token(config, known):
        return reason
    if getattr(config, "altup_num_inputs", 0) or getattr(config, "hc_mult", 0) or getattr(config, "hc_count", 0):
        return "its layers have several streams of hidden states, and a block can change only one"
    if "attention_mask" not in known:
        return "it takes no attention mask, so that padding would change its results"
    if "position_ids" not in known and (table := _position_table(model.get_decoder() or model)):
        return f"its positions ({table}) count padding, so that a padded row has other results than a single one"
    return _state_alone(config)


def _not_causal(model: nn.Module) -> bool:
    return any(getattr(module, "is_decoder", True) is False for module in model.modules())


def _by_token(config: Any, known: Any) -> str | None:
    """The reason why a model whose layers read token ids cannot take embeddings."""
    if "hash_moe" in (getattr(config, "mlp_layer_types", None) or ()):
        return "its first layers choose experts by token id, and added tokens have none"
    if getattr(config, "hidden_size_per_layer_input", 0) and "per_layer_inputs" not in known:
        return "its layers read token ids beside embeddings, and its forward does not take them"
    return None


def _position_table(model: nn.Module) -> str | None:
    """The name of a table of absolute positions."""
    tables = (name for name, module in model.named_modules() if isinstance(module, nn.Embedding) and "position" in name)
    return next(tables, None)


def _state_alone(config: Any) -> str | None:
    """The reason why a model without layers of keys and values does not work."""
    try:
        layers: list[Any] = DynamicCache(config=config).layers
    except AttributeError:
        return "its configuration does not describe the layers of its cache"
    if layers and not any(isinstance(layer, CacheLayerMixin) for layer in layers):
        return "it is a pure state-space model, whose state cannot be shared, cut or moved behind padding"
    return None
