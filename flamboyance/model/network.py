"""Flamingo: frozen vision tower, Perceiver resampler, gated cross-attention spliced into a frozen language model.

Shape letters: B prompts, R rows of text (B, or B·beams while generating), T tokens, N media of a prompt, M media of the
batch, F frames, C H W pixels, P patches, L latents, D width, V logits (tokenizer and added tokens).
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions, CausalLMOutputWithPast

import flamboyance.model.mosaic_gpt  # noqa: F401  registers the family of MPT-1B
from flamboyance import checks
from flamboyance.configuration import FlamingoConfig
from flamboyance.model import adapters, attention, families, language, linear, pixels, quantization
from flamboyance.model.backbone import prepare_backbone
from flamboyance.model.cache import NAME as CACHE
from flamboyance.model.cache import given, is_recurrent
from flamboyance.model.cross_attention import GatedCrossAttentionBlock
from flamboyance.model.finite import is_finite
from flamboyance.model.media import Media, Spans, count_seen, decoding_layout, prefill_layout, rows_of, traced_layout
from flamboyance.model.recurrent import one_by_one
from flamboyance.model.resampler import PerceiverResampler, rollout
from flamboyance.model.trainable import TrainableModel, freeze
from flamboyance.model.vision import VisionTower

# Families that call their linear layers and do not read their weights themselves, as tested.
PACKED = attention.SHARED_BY_REGISTER | attention.SHARED_BY_CLASS | {"gpt_neo", "gptj"}


class FlamingoModel(TrainableModel):
    """The network of a Flamingo (Alayrac et al. 2022, figure 3).

    Three parts train: `resampler`, `cross_attention` (one gated block before each of the language model's
    `cross_attention_layers`) and `added_tokens`. `vision` and `language_model` are frozen until they are unfrozen or
    given adapters; their trainable parameters are then saved too.

    Args:
        config: sizes and names.
        vision, language_model: the frozen backbones; built from the configuration, with random weights, when not given.
    """

    config: FlamingoConfig
    vision: VisionTower
    language_model: Any  # a PreTrainedModel, or PEFT's wrapper of one

    config_class = FlamingoConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    _recomputes = False  # whether activations are checkpointed
    tokenizer: PreTrainedTokenizerBase | None = None  # names tokens and reads candidate texts

    def __init__(
        self,
        config: FlamingoConfig,
        vision: VisionTower | None = None,
        language_model: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        if language_model is None:
            language_model = AutoModelForCausalLM.from_config(config.text_config)
            if config.quantize:
                quantization.quantize_layers(language_model, config.quantize)
        families.check(language_model)
        prepare_backbone(language_model)
        self.vision = VisionTower.from_config(config.vision, config.quantize) if vision is None else vision
        self.language_model = language_model
        freeze(self.vision)
        freeze(self.language_model)

        self.resampler = PerceiverResampler(config.vision_width, **config.resampler)
        _, layers = language.find_decoder_layers(language_model, config.decoder_layers)
        self.cross_attention_layers = config.layers_with_blocks(len(layers))
        width = config.text_config.get_text_config(decoder=True).hidden_size
        sizes = dict(config.cross_attention)
        self._every_image = not sizes.pop("only_attend_immediate_media")
        blocks = [GatedCrossAttentionBlock(width, config.media_width, **sizes) for _ in self.cross_attention_layers]
        self.cross_attention = nn.ModuleList(blocks)
        self.added_tokens = language.AddedTokens(config.base_vocab_size, len(config.added_tokens), language_model)
        by_layer = dict(zip(self.cross_attention_layers, blocks, strict=True))
        self._spliced = language.splice(language_model, layers, by_layer)
        self._inputs_by_layer = language.takes_inputs_by_layer(language_model)
        self._positions = language.positions(language_model)
        self._first_position = language.first_position(language_model)
        self.mark_as_opened()
        self.train(False)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves and casts. The frequencies of rotary positions stay in float32, as when transformers opens a language
        model in a lower precision: in bfloat16 an angle would be off by a fifth of a radian after 500 tokens."""
        if fn(torch.empty(0, dtype=self.dtype)).dtype != self.dtype:
            self.remember_changes()
        exact = [table for table in language.rotary_frequencies(self.language_model) if table.dtype == torch.float32]
        known = set(map(id, exact))

        def applied(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            return tensor.to(found.device) if id(tensor) in known and found.dtype != tensor.dtype else found

        return super()._apply(applied, recurse)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] = checkpoint, **options: Any
    ) -> None:
        function = language.recomputed_as_conditioned(gradient_checkpointing_func)
        super()._set_gradient_checkpointing(enable, function, **options)
        _, layers = language.find_decoder_layers(self.language_model, self.config.decoder_layers)
        language.recompute(layers, function if enable else None, options.get("every_n_layers", 1))
        self._recomputes = enable

    # Parts ------------------------------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """torch.compile in place. Unpacks the weights first, because compiled functions need plain ones."""
        self.unpack()
        language.hook_head(self.language_model)
        super().compile(*args, **kwargs)

    def pack(self) -> Any:
        """Rearranges weights for inference on a CPU, in place. Decoding becomes faster, most of all in bfloat16, and
        uses no more memory. Saving, copying and moving work as before. Recording gradients (training) unpacks. Unpack
        for code that reads weights itself.

        Does nothing where it is not known to help: see the table in flamboyance.model.linear. Of the backbones, it
        packs transformers' towers and the language models of `PACKED`."""
        parts: list[nn.Module] = [self.resampler, self.cross_attention]
        if self.vision.spec["library"] == "transformers":
            parts.append(self.vision)
        if self.config.text_config.model_type in PACKED:
            parts.append(self.language_model)
        for part in parts:
            linear.pack(part)
        return self

    def unpack(self) -> Any:
        """Restores the weights as they were before `pack`, bit by bit."""
        linear.unpack(self)
        return self

    @property
    def shares_prompts(self) -> bool:
        """Whether rows may share the prompt that they continue, as the language model attends now."""
        return attention.shares_prompts(self.language_model)

    def get_output_embeddings(self) -> nn.Module:
        return language.output_head(self.language_model)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """Adds rows for tokens that were added to the tokenizer:

            processor.tokenizer.add_tokens(["<left>", "<right>"])
            model.resize_token_embeddings(len(processor.tokenizer))

        The rows are parameters of `model.added_tokens`, beside those of `<image>` and `<|endofchunk|>`. The tables of
        the language model do not change. An optimizer that was created before does not have the new parameters.

        Args:
            new_num_tokens: the tokenizer's number of tokens, added ones included; None changes nothing. A smaller
                number than the model's removes the last added tokens.
            pad_to_multiple_of, mean_resizing: accepted for transformers' callers. Tables are not padded, and new rows
                always start at the mean of the table.

        Returns:
            The language model's input table.

        Raises:
            ValueError: a token that the model needs would be removed, or the model's own tokenizer lacks a new one.
        """
        config, now = self.config, self.config.vocab_size
        if new_num_tokens is None or new_num_tokens == now:
            return self.get_input_embeddings()
        needed = 1 + max(config.image_token_id, config.eoc_token_id, config.pad_token_id, config.base_vocab_size - 1)
        if new_num_tokens < needed:
            raise ValueError(
                f"resize_token_embeddings({new_num_tokens}): expected {needed} tokens or more. The model has {now}: "
                f"{config.base_vocab_size} of the language model's tokenizer, then {brief(config.added_tokens)}. It "
                "needs those for images and padding. Give len(processor.tokenizer), for the model's own tokenizer."
            )
        names = [f"<token {number}>" for number in range(now, new_num_tokens)]
        if self.tokenizer is not None:
            known = {number: token for token, number in self.tokenizer.get_vocab().items()}
            if unknown := [number for number in range(now, new_num_tokens) if number not in known]:
                raise ValueError(
                    f"resize_token_embeddings({new_num_tokens}): the model's own tokenizer, which is saved with it and "
                    f"reads candidates, has no token {unknown[0]}. If the tokens were added to another copy of it, set "
                    "model.tokenizer = processor.tokenizer before"
                )
            names = [known[number] for number in range(now, new_num_tokens)]
        count = new_num_tokens - config.base_vocab_size
        self.added_tokens.resize(count, self.language_model)
        config.added_tokens = [*config.added_tokens, *names][:count]
        return self.get_input_embeddings()

    @property
    def blocks(self) -> list[GatedCrossAttentionBlock]:
        """The gated cross-attention blocks, in the order of `cross_attention_layers`."""
        return [block for block in self.cross_attention if isinstance(block, GatedCrossAttentionBlock)]

    # Media ------------------------------------------------------------------------------------------------------

    def encode_media(
        self,
        pixel_values: Tensor,
        media_counts: Tensor | Sequence[int] | None = None,
        frame_counts: Tensor | Sequence[int] | None = None,
    ) -> Media:
        """Encodes images or videos once, for use in any number of calls. Outside of training, equal media are computed
        once, such as demonstrations that all rows of a batch share.

        Args:
            pixel_values: (B, N, F, C, H, W); F is 1 for images. Entries beyond a row's count do not matter. Or packed,
                without padding: (M, F, C, H, W), those of row 0 first. Or, where media have different numbers of
                frames, all frames: (frames, C, H, W), in the same order.
            media_counts: (B,) real media of each row; None: N each.
            frame_counts: (M,) frames of each medium, for the last form.

        Raises:
            ValueError: another number of dimensions, or counts that do not fit it; or several frames, and the model has
                no time embeddings.
        """
        if not isinstance(pixel_values, Tensor):
            raise ValueError(
                f"pixel_values is {checks.brief(pixel_values)}; expected a tensor, as the processor makes it"
            )
        if frame_counts is not None:
            return self._encode_frames(pixel_values, media_counts, frame_counts)
        self._check_frames(pixel_values.shape[-4] if pixel_values.ndim in (5, 6) else 1)
        if torch.compiler.is_compiling() and isinstance(media_counts, Tensor) and pixel_values.ndim in (5, 6):
            return self._encode_traced(pixel_values, media_counts)
        media, places, counts = pixels.unpadded(pixel_values, media_counts)
        self._check_finite("pixel_values", media, places)
        numbers = None
        if not self.training and not torch.compiler.is_compiling() and pixels.comparable(media):
            places, numbers = pixels.first_of_equal(media, places)
        media = media if places == list(range(len(media))) else media[places]
        return self._keys_values(self._latents(self._patches(media)), rows_of(counts, numbers))

    def _encode_frames(
        self, frames: Tensor, media_counts: Tensor | Sequence[int] | None, frame_counts: Tensor | Sequence[int]
    ) -> Media:
        """`encode_media` of media of different lengths. Outside of training, equal frames are computed once, too."""
        if torch.compiler.is_compiling():
            raise ValueError(
                "frame_counts: media of different lengths cannot be encoded in a compiled function; encode them before "
                "(media=model.encode_media(…)), or give all as many frames"
            )
        lengths, counts = pixels.checked_frames(frames, media_counts, frame_counts)
        self._check_frames(max(lengths, default=1))
        ends = [0, *accumulate(lengths)]
        media = [tuple(range(start, end)) for start, end in pairwise(ends)]
        if not self.training and frames.numel() and not is_finite(frames):
            raise ValueError(f"pixel_values of {len(media)} media are not finite (NaN or infinity); compute them again")
        numbers = None
        if not self.training and pixels.comparable(frames):
            places, which = pixels.first_of_equal(frames, range(len(frames)))
            frames = frames[places]
            named = [tuple(which[frame] for frame in medium) for medium in media]
            place_of = {medium: place for place, medium in enumerate(dict.fromkeys(named))}
            media, numbers = list(place_of), [place_of[medium] for medium in named]
        if not media:
            return self._keys_values(self._latents(None), rows_of(counts))
        patches = self.vision(frames.to(self.resampler.latents.device))
        order = [frame for medium in media for frame in medium]
        patches = patches if order == list(range(len(patches))) else patches[order]
        return self._keys_values(self._latents(patches, [len(medium) for medium in media]), rows_of(counts, numbers))

    def _encode_traced(self, pixel_values: Tensor, media_counts: Tensor) -> Media:
        """`encode_media` in a compiled function, where nothing may depend on the values of media_counts: entries beyond
        a row's count are computed too, and not used."""
        if pixel_values.ndim == 5:
            ends = media_counts.cumsum(0)
            fits = (ends[-1] == len(pixel_values)) & (media_counts >= 0).all()
            spans = Spans(ends - media_counts, media_counts)
        else:
            rows, most = pixel_values.shape[:2]
            fits = ((media_counts >= 0) & (media_counts <= most)).all()
            spans = Spans(torch.arange(rows, device=media_counts.device) * most, media_counts)
            pixel_values = pixel_values.flatten(0, 1)
        torch._assert_async(fits, "media_counts does not fit pixel_values")
        return self._keys_values(self._latents(self._patches(pixel_values)), spans)

    def _patches(self, media: Tensor) -> Tensor | None:
        """(M, F, C, H, W) -> the tower's features (M, F, P, D); None where there are no media."""
        if not len(media):
            return None
        media = media.to(self.resampler.latents.device)
        return self.vision(media.flatten(0, 1)).unflatten(0, (-1, media.shape[1]))

    def resample(self, patches: Tensor | None, media_counts: Sequence[int]) -> Media:
        """The second half of `encode_media`, for features that the vision tower computed before.

        Args:
            patches: (M, F, P, D), those of row 0 first; None without any.
            media_counts: media of each of the B rows; they add up to M.

        Raises:
            ValueError: features that are not finite, or of another number of media.
        """
        _check_counts("patches", 0 if patches is None else len(patches), media_counts)
        if patches is not None:
            self._check_finite("patches", patches)
        return self._keys_values(self._latents(patches), rows_of(media_counts))

    def _check_frames(self, frames: int) -> None:
        if frames > 1 and self.resampler.time_embeddings is None:
            raise ValueError(
                f"pixel_values has {frames} frames per medium, but this model was trained on single images: it has no "
                "time embeddings, and would lose the order of frames. Give one frame, or each frame as an image with "
                "its own <image>; a model for videos has resampler={'max_frames': …}."
            )

    def _latents(self, patches: Tensor | None, frame_counts: Sequence[int] | None = None) -> Tensor:
        home = self.resampler.latents
        if patches is None:
            return torch.zeros(0, *home.shape, dtype=home.dtype, device=home.device)
        if frame_counts is None:
            self._check_frames(patches.shape[1])
        return self.resampler(patches.to(home.device, home.dtype), frame_counts)

    def media_of(self, latents: Tensor, media_counts: Sequence[int]) -> Media:
        """The last part of `encode_media`: the keys and values of every block, for latents (M, L, D).

        Raises:
            ValueError: latents that are not finite, or of another number of media.
        """
        _check_counts("latents", len(latents), media_counts)
        self._check_finite("latents", latents)
        return self._keys_values(latents, rows_of(media_counts))

    @torch.no_grad()
    def patch_shares(self, pixel_values: Tensor) -> Tensor:
        """How much of each patch is in each latent, by the resampler's attention (`resampler.rollout`).

        Args:
            pixel_values: packed media (M, F, C, H, W).

        Returns:
            (M, L, F·P). The patches are those of the tower, row by row, frame after frame; `vision.grid` has their
            number of rows and columns.
        """
        patches = self._patches(pixel_values)
        if patches is None:
            raise ValueError("pixel_values holds no media; expected one or more: (M, F, C, H, W)")
        home = self.resampler.latents
        return rollout(self.resampler.weights(patches.to(home.device, home.dtype)))

    def media_of_steps(self, media: Media) -> Media:
        """What decode steps need of the media: each prompt's last image, or all where tokens attend to all."""
        return media if self._every_image else media.last

    def _keys_values(self, latents: Tensor, rows: Any) -> Media:
        pairs = tuple(block.attention.keys_values(language.moved(latents, block)) for block in self.blocks)
        return Media(latents, pairs, rows)

    def _check_finite(self, name: str, values: Tensor, places: Sequence[int] | None = None) -> None:
        """Except in training, where steps that are not finite are skipped and reading values takes time."""
        if self.training or torch.compiler.is_compiling() or is_finite(values):
            return
        places = range(len(values)) if places is None else places
        wrong = [number for number, place in enumerate(places) if not is_finite(values[place])]
        if wrong:
            raise ValueError(
                f"{name} of media {', '.join(map(str, wrong[:5]))}{', …' if len(wrong) > 5 else ''} of {len(places)} "
                "are not finite (NaN or infinity); compute them again"
            )

    def _media(
        self,
        input_ids: Tensor,
        media: Media | None,
        pixel_values: Tensor | None,
        media_counts: Tensor | Sequence[int] | None,
        patches: Tensor | None = None,
        frame_counts: Tensor | Sequence[int] | None = None,
    ) -> Media | None:
        if media is not None and not isinstance(media, Media):
            raise ValueError(f"media is {checks.brief(media)}; expected a Media, as model.encode_media makes it")
        given_as = [
            name
            for name, value in (("media", media), ("pixel_values", pixel_values), ("patches", patches))
            if value is not None
        ]
        if len(given_as) > 1:
            raise ValueError(f"{' and '.join(given_as)} are given; expected one of them")
        if pixel_values is not None:
            media = self.encode_media(pixel_values, media_counts, frame_counts)
        elif patches is not None:
            if media_counts is None:
                raise ValueError("patches are given without media_counts; expected the number of media of each row")
            media = self.resample(patches, [int(count) for count in media_counts])
        if media is not None and len(input_ids) % max(len(media.rows), 1):
            raise ValueError(
                f"input_ids has {len(input_ids)} rows for media of {len(media.rows)} prompts; expected a multiple"
            )
        return media

    # Forward ----------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        media_counts: Tensor | Sequence[int] | None = None,
        media: Media | None = None,
        labels: Tensor | None = None,
        past_key_values: Any = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        images_seen: Tensor | None = None,
        return_dict: bool = True,
        num_items_in_batch: Tensor | int | None = None,
        cache: Any = None,
        patches: Tensor | None = None,
        frame_counts: Tensor | Sequence[int] | None = None,
        **outputs: Any,
    ) -> CausalLMOutputWithPast | CausalLMOutputWithCrossAttentions:
        """Next-token logits, and the loss when labels are given.

        Args:
            input_ids: (R, T). With past_key_values, the new tokens only.
            attention_mask: (R, past + T), 1 for real tokens; padding may be on either side.
            pixel_values, media_counts, frame_counts: as in `encode_media`; or
            patches, media_counts: the tower's features of all media, as in `resample`; or
            media: of B prompts, R a multiple of B. With past_key_values: all media of the conversation so far, those
                of the new `<image>` tokens last.
            labels: (R, T), -100 for tokens that are not predicted; shifted here. The loss is their mean cross-entropy.
            past_key_values, position_ids, use_cache: as in transformers; positions default to the count of the mask.
            cache: another name of past_key_values, which transformers uses since 5.24.
            logits_to_keep: the number of last positions to return logits of; 0: all. Or a (K,) long tensor of
                positions, row·T + t; the logits are then (K, V), and the caller computes the loss.
            images_seen: (B, T) long, on the CPU: the number of `<image>` tokens up to each token; default: counted in
                input_ids.
            return_dict: accepted for transformers' callers; the result is always an output object.
            num_items_in_batch: the summed loss is divided by this number, instead of by this call's number of labels,
                when gradients are accumulated over several calls, as by transformers' Trainer.
            outputs: output_hidden_states: of the language model's layers. output_attentions: the attention weights of
                every gated block as `.cross_attentions`, and those of the language model's layers as `.attentions`:
                None where its attention is fused, as it is unless attn_implementation is "eager", and always for MPT.

        Returns:
            `.logits` (R, T, V) or those kept, `.loss`, `.past_key_values`; on request `.cross_attentions`, for each of
            the `cross_attention_layers` (R, H, T, L): how much a token attends to each latent of its image. They are
            zero for a token without an image. (R, H, T, N·L) with only_attend_immediate_media=False, for up to N images
            of a prompt.

        Raises:
            ValueError: a row has another number of `<image>` tokens than of images; ids are not in the vocabulary;
                labels have another shape; or the mask has another length than the cache and the new tokens.
        """
        named = {name for name, value in outputs.items() if value is not None}  # wrappers pass None for options
        unknown = sorted(named - {"output_hidden_states", "output_attentions", "cache_position"})
        if unknown:
            raise TypeError(f"forward has no argument {unknown[0]!r}; see its documentation")
        check_ids(input_ids)
        past_key_values = given(past_key_values, cache)
        media = self._media(input_ids, media, pixel_values, media_counts, patches, frame_counts)
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if attention_mask is not None and attention_mask.ndim == 2:
            check_mask_length(attention_mask, input_ids, past)
        self.check_length(past + input_ids.shape[1], attention_mask)
        # Reading ids waits for the device: not while decoding, nor for callers that counted their images.
        if images_seen is None and (not past or input_ids.shape[1] > 1):
            self._check_ids(input_ids, labels)
        media, layout = self._layout(input_ids, media, past, images_seen)
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
            position_ids = position_ids + self._first_position
        weights: list[Tensor] | None = [] if outputs.pop("output_attentions", None) else None
        if past and input_ids.shape[1] > 1 and is_recurrent(past_key_values):
            if weights is not None:
                raise ValueError(
                    f"output_attentions with {input_ids.shape[1]} new tokens after a recurrent state, which takes them "
                    "one by one; give the whole text without a cache, or one token"
                )
            if images_seen is None:
                images_seen = count_seen(input_ids, self.config.image_token_id, media, past)
            known: dict[str, Any] = {CACHE: past_key_values}
            logits = one_by_one(
                self, input_ids, attention_mask, media, past_key_values, position_ids, logits_to_keep, images_seen
            )
            loss = None if labels is None else next_token_loss(logits, labels, num_items_in_batch)
            return CausalLMOutputWithPast(loss=loss, logits=logits, **known)
        if not torch.compiler.is_compiling():
            language.hook_head(self.language_model)
        if self._recomputes and self.training and use_cache is None and past_key_values is None:
            use_cache = False  # a layer that writes to a cache could not be computed twice
        table = self.language_model.get_input_embeddings()
        options = language.accepted(self.language_model, {"position_ids": position_ids, "use_cache": use_cache})
        if self._inputs_by_layer:
            options |= language.inputs_by_layer(self.language_model, input_ids, self.config.base_vocab_size)
        outputs = {name: value for name, value in outputs.items() if name != "cache_position" and value}
        if weights is not None and language.returns_attentions(self.language_model):
            outputs["output_attentions"] = True
        on = language.Conditioning(media, layout, self.added_tokens, logits_to_keep, self._spliced, weights)
        with language.conditioned(on):
            out = adapters.called(self.language_model)(
                inputs_embeds=self.added_tokens.embed(input_ids, table),
                attention_mask=attention_mask,
                **language.cache_option(self.language_model, past_key_values),
                **options,
                **outputs,
            )
        logits = out.logits[..., : self.config.vocab_size]
        logits = logits if past_key_values is not None else logits.contiguous()  # a decode step copies no logits
        loss = None if labels is None else next_token_loss(logits, labels, num_items_in_batch)
        rest: dict[str, Any] = {name: out.get(name) for name in (CACHE, "hidden_states", "attentions")}
        if use_cache is False:
            rest[CACHE] = past_key_values  # some families return one all the same
        if weights is None:
            return CausalLMOutputWithPast(loss=loss, logits=logits, **rest)
        seen = tuple(weights) or self._no_attention(input_ids)
        return CausalLMOutputWithCrossAttentions(loss=loss, logits=logits, cross_attentions=seen, **rest)

    def _no_attention(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """The cross-attention of texts without an image."""
        shape = (*input_ids.shape, len(self.resampler.latents))
        return tuple(
            block.attention_gate.new_zeros(shape)[:, None].repeat(1, block.attention.heads, 1, 1)
            for block in self.blocks
        )

    def check_length(self, length: int, attention_mask: Tensor | None = None, new: int = 0) -> None:
        """Checks that texts fit the language model's positions.

        Args:
            length: columns of text, including padding and the tokens of a cache.
            attention_mask: of all columns; padding takes no position.
            new: tokens that will be generated.

        Raises:
            ValueError: more tokens than the language model has positions for.
        """
        most = self._positions
        if most is None or length + new <= most:
            return
        if attention_mask is not None and attention_mask.ndim == 2 and language.counts_real(self.language_model):
            length = int(attention_mask.sum(1).max())
        if length + new > most:
            kind = type(language.unwrapped(self.language_model)).__name__
            more = f" and up to {new} new ones" if new else ""
            raise ValueError(
                f"too long: {length} tokens{more}, but {kind} has {most} positions; shorten the text, give fewer "
                "demonstrations, or generate fewer tokens"
            )

    def _check_ids(self, input_ids: Tensor, labels: Tensor | None) -> None:
        if labels is not None and labels.shape != input_ids.shape:
            raise ValueError(
                f"labels has shape {tuple(labels.shape)} for input_ids of shape {tuple(input_ids.shape)}; expected a "
                "label for each token, -100 where nothing is predicted"
            )
        if not input_ids.numel():
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; expected one token or more")
        if torch.compiler.is_compiling():
            fits = ((input_ids >= 0) & (input_ids < self.config.vocab_size)).all()
            torch._assert_async(fits, "input_ids holds ids that are not the model's")
            return
        for token in (input_ids.min().item(), input_ids.max().item()):
            if not 0 <= token < self.config.vocab_size:
                raise ValueError(
                    f"input_ids holds {token}; expected ids from 0 to {self.config.vocab_size - 1}: "
                    f"{self.config.base_vocab_size} tokens of the tokenizer, then {brief(self.config.added_tokens)}. "
                    "Use the model's own tokenizer; after adding tokens to it, call "
                    "model.resize_token_embeddings(len(tokenizer))."
                )

    def _layout(self, input_ids: Tensor, media: Media | None, past: int, images_seen: Tensor | None):
        """The media that tokens attend to in this call, and the layout of that attention."""
        traced = torch.compiler.is_compiling()
        newest = images_seen is None
        if not newest and not traced and media is not None and past and input_ids.shape[1] == 1:
            times = len(images_seen) // len(media.rows)
            newest = images_seen[:, -1].tolist() == [count for count in media.counts for _ in range(times)]
        if newest and media is not None and past and input_ids.shape[1] == 1:
            media = self.media_of_steps(media)
            layout = decoding_layout(media, input_ids.device, self._every_image) if len(media.latents) else None
            return media, layout
        if images_seen is None:
            images_seen = count_seen(input_ids, self.config.image_token_id, media, past)
        if media is None:
            return None, None
        seen = images_seen.repeat_interleave(len(input_ids) // len(images_seen), 0)
        if traced:
            return media, traced_layout(seen.to(input_ids.device), media, self._every_image)
        layout = prefill_layout(seen, media, self._every_image)
        return media, None if layout is None else layout.to(input_ids.device)


def brief(tokens: Sequence[str]) -> str:
    """The first few names, and how many more."""
    return ", ".join(tokens[:5]) + (f" and {len(tokens) - 5} more" if len(tokens) > 5 else "")


def next_token_loss(logits: Tensor, labels: Tensor, count: Tensor | int | None = None) -> Tensor:
    """Mean cross-entropy of labels (R, T) under the logits (R, T, V) of the position before, without labels of -100.
    With `count`, the sum divided by it."""
    logits, labels = logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
    if count is None:
        return F.cross_entropy(logits, labels, ignore_index=-100)
    total = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    return total / (count.to(total.device) if isinstance(count, Tensor) else count)


def _check_counts(name: str, media: int, media_counts: Sequence[int]) -> None:
    counts = [int(count) for count in media_counts]
    if sum(counts) != media or min(counts, default=0) < 0:
        raise ValueError(
            f"{name} has {media} media for media_counts {checks.brief(counts)}; expected the number of media of each "
            "row, which add up to them"
        )


def check_mask_length(attention_mask: Tensor, input_ids: Tensor, past: int) -> None:
    """
    Raises:
        ValueError: the mask does not cover the tokens of the cache and the new ones.
    """
    if attention_mask.shape[1] != past + input_ids.shape[1]:
        raise ValueError(
            f"attention_mask has {attention_mask.shape[1]} columns for {past} tokens in the cache and "
            f"{input_ids.shape[1]} in input_ids; expected one for each token"
        )


def check_ids(input_ids: Any) -> None:
    """
    Raises:
        ValueError: not a tensor (rows, tokens) of integers.
    """
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or input_ids.is_floating_point():
        raise ValueError(
            f"input_ids is {checks.brief(input_ids)}; expected token ids (rows, tokens), as the processor makes them: "
            "model.generate(**processor(text, images=images))"
        )
