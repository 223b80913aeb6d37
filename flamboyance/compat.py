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
from flamboyance.flamingo import FlamingoForConditionalGeneration
from flamboyance.hub import options as reachable
from flamboyance.images import ImageProcessor
from flamboyance.model.cache import given
from flamboyance.model.media import Media
from flamboyance.processing import FlamingoProcessor, image_processor_of


class OpenFlamingo(FlamingoForConditionalGeneration):
    """FlamingoForConditionalGeneration under the reference's argument names.

    `vision_x` is (B, N, F, C, H, W), `lang_x` (B, T). As in the reference, a row may carry more images than its text
    has `<image>` tokens (padding); those are not looked at. More tokens than images is an error here.
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
        """As the reference's; `clear_conditioned_layers` is accepted and needless: nothing is left on the layers."""
        ids, past_key_values = _given(lang_x, input_ids), given(past_key_values, cache)
        if media is None and vision_x is not None:
            media = self._encode_used(vision_x, ids)
        elif media is None and images_seen is None and self._cached is not None:
            media = self._cached
            if past_key_values is None and not (ids == self.config.image_token_id).any():
                # As in the reference: text without <image> goes on after the last of the cached images.
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
        """Encodes media for the `forward` calls that follow, as the reference does for log-likelihood scoring.

        This is state on the model: where you can, use `score`, or give `media=model.encode_media(...)`.
        """
        self._cached = self._encode_used(vision_x, input_ids)

    def uncache_media(self) -> None:
        self._cached = None

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Understands OpenFlamingo's keys; those are checked in full, whatever `strict` says.

        Raises:
            ValueError: the checkpoint is for another model, or for none like this.
        """
        if openflamingo.is_openflamingo(state_dict):
            openflamingo.load(self, openflamingo.parse(state_dict))
            return _IncompatibleKeys([], [])
        if not state_dict.keys() & self.state_dict().keys():
            found = ", ".join(map(str, list(state_dict)[:3])) or "none"
            raise ValueError(
                f"Nothing in this state dict belongs to a Flamingo: expected keys such as perceiver.latents; "
                f"found {found}."
            )
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _encode_used(self, vision_x: Tensor, ids: Tensor) -> Media:
        found = (ids == self.config.image_token_id).sum(1).tolist()
        if vision_x.ndim != 6 or len(vision_x) != len(ids):
            raise ValueError(
                f"vision_x has shape {tuple(vision_x.shape)} and lang_x {tuple(ids.shape)}; expected (rows, images, "
                "frames, channels, height, width) and (rows, tokens), with as many rows."
            )
        for row, count in enumerate(found):
            if count > vision_x.shape[1]:
                raise ValueError(
                    f"Row {row} has {count} <image> tokens in lang_x but {vision_x.shape[1]} image(s) in vision_x. "
                    "Give an image for each <image>."
                )
        return self.encode_media(vision_x, found)


def _given(lang_x: Tensor | None, input_ids: Tensor | None) -> Tensor:
    ids = lang_x if input_ids is None else input_ids
    if ids is None:
        raise ValueError("Give lang_x, the token ids of the prompt: (rows, tokens).")
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
) -> tuple[OpenFlamingo, ImageProcessor, PreTrainedTokenizerBase]:
    """open_flamingo's constructor: model (fp32), image processor, tokenizer.

    Args:
        clip_vision_encoder_path, clip_vision_encoder_pretrained: an OpenCLIP name and tag ("ViT-L-14", "openai"), or
            a local directory (or hub id) of a Hugging Face vision tower and None.
        lang_encoder_path, tokenizer_path: hub ids or directories.
        cross_attn_every_n_layers: interval of the gated cross-attention blocks.
        use_local_files: do not ask the hub.
        decoder_layers_attr_name: dotted name of the decoder's layers; found when None.
        freeze_lm_embeddings: the rows of the added tokens are not trained either.
    """
    hub: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": use_local_files}
    tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer_path, **reachable(tokenizer_path, hub))
    model = OpenFlamingo.from_backbones(
        clip_vision_encoder_path,
        lang_encoder_path,
        FlamingoProcessor(None, tokenizer),
        vision_pretrained=clip_vision_encoder_pretrained,
        interval=cross_attn_every_n_layers,
        decoder_layers=decoder_layers_attr_name,
        dtype=torch.float32,
        **hub,
    )
    if freeze_lm_embeddings:
        model.added_tokens.requires_grad_(False)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model, image_processor_of(model.config.vision), tokenizer
