"""A drop-in for open_flamingo: the same constructor, the same triple, the same calls on the model.

    import flamboyance as open_flamingo

Only what the reference's callers use is here; the model is FlamingoForConditionalGeneration.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import _IncompatibleKeys
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from flamboyance.checkpoints import openflamingo
from flamboyance.checkpoints.preprocessing import image_processor_of
from flamboyance.flamingo import FlamingoForConditionalGeneration
from flamboyance.hub import options as reachable
from flamboyance.images import ImageProcessor
from flamboyance.model.cache import given
from flamboyance.model.media import Media
from flamboyance.processing import FlamingoProcessor


class OpenFlamingo(FlamingoForConditionalGeneration):
    """FlamingoForConditionalGeneration with the reference's argument names.

    `vision_x` is (B, N, F, C, H, W), `lang_x` (B, T). As in the reference, a row may have more images than `<image>`
    tokens (padding); those are not used. More tokens than images is an error here.
    """

    _cached: Media | None = None

    def forward(
        self,
        vision_x: Tensor | None = None,
        lang_x: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        clear_conditioned_layers: bool = True,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        *,
        input_ids: Tensor | None = None,
        media: Media | None = None,
        images_seen: Tensor | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As the reference's; `clear_conditioned_layers` has no effect, because layers keep no state."""
        ids, past_key_values = _given(lang_x, input_ids), given(past_key_values, cache)
        if media is None and vision_x is not None:
            media = self._encode_used(vision_x, ids)
        elif media is None and images_seen is None and self._cached is not None:
            media = self._cached
            if past_key_values is None and not (ids == self.config.image_token_id).any():
                # As in the reference, text without <image> follows the last of the cached images.
                images_seen = torch.tensor(media.counts)[:, None].expand(-1, ids.shape[1])
        return super().forward(
            ids,
            attention_mask=attention_mask,
            labels=labels,
            media=media,
            past_key_values=past_key_values,
            use_cache=use_cache,
            images_seen=images_seen,
            **kwargs,
        )

    def generate(
        self,
        vision_x: Tensor | None = None,
        lang_x: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        input_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the reference's: (B, T) ids to (B, T + new) ids; ends at `<|endofchunk|>` unless eos_token_id is given."""
        ids = _given(lang_x, input_ids)
        if vision_x is not None:
            kwargs["media"] = self._encode_used(vision_x, ids)
        return super().generate(ids, attention_mask=attention_mask, **kwargs)

    def cache_media(self, input_ids: Tensor, vision_x: Tensor) -> None:
        """Encodes media for the following calls of `forward`, as the reference does to score log-likelihoods.

        This is state on the model; prefer `score`, or `media=model.encode_media(...)`.
        """
        self._cached = self._encode_used(vision_x, input_ids)

    def uncache_media(self) -> None:
        self._cached = None

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Accepts OpenFlamingo's keys too; these are checked completely, whatever `strict` is.

        Raises:
            ValueError: the checkpoint is for another model.
        """
        if openflamingo.is_openflamingo(state_dict):
            openflamingo.load(self, openflamingo.parse(state_dict))
            return _IncompatibleKeys([], [])
        if not state_dict.keys() & self.state_dict().keys():
            keys = ", ".join(map(str, list(state_dict)[:3])) or "none"
            raise ValueError(f"the state dict is not a Flamingo's: its keys are {keys}; expected perceiver.latents, …")
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _encode_used(self, vision_x: Tensor, ids: Tensor) -> Media:
        counts = (ids == self.config.image_token_id).sum(1).tolist()
        if vision_x.ndim != 6 or len(vision_x) != len(ids):
            raise ValueError(
                f"vision_x has shape {tuple(vision_x.shape)} and lang_x {tuple(ids.shape)}; expected (rows, images, "
                "frames, channels, height, width) and (rows, tokens), with as many rows."
            )
        for row, count in enumerate(counts):
            if count > vision_x.shape[1]:
                raise ValueError(
                    f"row {row} has {count} <image> tokens in lang_x and {vision_x.shape[1]} image(s) in vision_x; "
                    "expected an image for each <image>"
                )
        return self.encode_media(vision_x, counts)


def _given(lang_x: Tensor | None, input_ids: Tensor | None) -> Tensor:
    ids = lang_x if input_ids is None else input_ids
    if ids is None:
        raise ValueError("lang_x is missing; expected the token ids of the prompts, (rows, tokens)")
    return ids


def create_model_and_transforms(
    clip_vision_encoder_path: str,
    clip_vision_encoder_pretrained: str | None,
    lang_encoder_path: str,
    tokenizer_path: str,
    cross_attn_every_n_layers: int = 1,
    use_local_files: bool = False,
    decoder_layers_attr_name: str | None = None,
    freeze_lm_embeddings: bool = False,
    cache_dir: str | None = None,
    gradient_checkpointing: bool = False,
    quantize: str | None = None,
) -> tuple[OpenFlamingo, ImageProcessor, PreTrainedTokenizerBase]:
    """open_flamingo's constructor: model (fp32), image processor, tokenizer.

    Args:
        clip_vision_encoder_path, clip_vision_encoder_pretrained: an OpenCLIP name and tag ("ViT-L-14", "openai"), or
            a local directory (or hub id) of a Hugging Face vision tower and None.
        lang_encoder_path, tokenizer_path: hub ids or directories.
        cross_attn_every_n_layers: layers of the language model per gated cross-attention block.
        use_local_files: do not use the network.
        decoder_layers_attr_name: dotted name of the list of decoder layers; None: found by its length.
        freeze_lm_embeddings: freeze the rows of the added tokens too.
        quantize: "int8" or "int4": the backbones' linear layers keep their weights in 8 or 4 bits.
    """
    hub: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": use_local_files}
    tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer_path, **reachable(tokenizer_path, hub))
    model = OpenFlamingo.from_backbones(
        clip_vision_encoder_path,
        lang_encoder_path,
        FlamingoProcessor(None, tokenizer),
        vision_pretrained=clip_vision_encoder_pretrained,
        cross_attn_every_n_layers=cross_attn_every_n_layers,
        decoder_layers=decoder_layers_attr_name,
        dtype=torch.float32,
        quantize=quantize,
        **hub,
    )
    if freeze_lm_embeddings:
        model.added_tokens.requires_grad_(False)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model, image_processor_of(model.config.vision), tokenizer
