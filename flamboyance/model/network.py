"""Flamingo: frozen vision tower, Perceiver resampler, gated cross-attention spliced into a frozen language model.

Shape letters: B prompts, R rows of text (B, or B·beams while generating), T tokens, N media of a prompt, M media of the
batch, F frames, C H W pixels, P patches, L latents, D width, V logits (tokenizer and added tokens).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

import flamboyance.model.mosaic_gpt  # noqa: F401  registers the family of MPT-1B
from flamboyance import checks
from flamboyance.configuration import FlamingoConfig
from flamboyance.model import adapters, attention, families, language, linear, mpt, pixels
from flamboyance.model.cache import NAME as CACHE
from flamboyance.model.cache import given, is_recurrent
from flamboyance.model.cross_attention import GatedCrossAttentionBlock
from flamboyance.model.finite import is_finite
from flamboyance.model.media import Media, Spans, count_seen, decoding_layout, prefill_layout, rows_of, traced_layout
from flamboyance.model.recurrent import one_by_one
from flamboyance.model.resampler import PerceiverResampler
from flamboyance.model.trainable import TrainableModel, freeze
from flamboyance.model.vision import VisionTower

# Language models that call their linear layers as layers, and read no weight themselves: `pack` is tested on them.
PACKED = attention.SHARING | {"gpt_neo", "gptj", "mpt"}


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
        families.check(language_model)
        families.prepare(language_model)
        self.vision = VisionTower.from_config(config.vision) if vision is None else vision
        self.language_model = language_model
        freeze(self.vision)
        freeze(self.language_model)

        self.resampler = PerceiverResampler(config.vision_width, **config.resampler)
        _, layers = language.find_decoder_layers(language_model, config.decoder_layers)
        self.cross_attention_layers = [i for i in range(len(layers)) if (i + 1) % config.cross_attn_every_n_layers == 0]
        if not self.cross_attention_layers:
            raise ValueError(
                f"cross_attn_every_n_layers={config.cross_attn_every_n_layers} leaves no layer to put a block before: "
                f"the language model has {len(layers)} layers"
            )
        width = config.text_config.get_text_config(decoder=True).hidden_size
        blocks = [
            GatedCrossAttentionBlock(width, config.vision_width, **config.cross_attention)
            for _ in self.cross_attention_layers
        ]
        self.cross_attention = nn.ModuleList(blocks)
        self.added_tokens = language.AddedTokens(config.base_vocab_size, len(config.added_tokens), language_model)
        language.splice(language_model, layers, dict(zip(self.cross_attention_layers, blocks, strict=True)))
        linear.use_packed_linear(self)
        self._inputs_by_layer = language.takes_inputs_by_layer(language_model)
        self._positions = language.positions(language_model)
        self._first_position = language.first_position(language_model)
        self._attends_itself = mpt.fuse_mpt_attention(language_model) or attention.install_shared_attention(
            language_model
        )
        self.mark_as_opened()
        self.train(False)

    # Parts ------------------------------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """torch.compile in place. Unpacks first: compiled functions choose products themselves, of plain weights."""
        self.unpack()
        language.hook_head(self.language_model)
        super().compile(*args, **kwargs)

    def pack(self) -> Any:
        """Rearranges weights for answering on a processor, in place; decoding takes less time, most so in bfloat16, and
        no more memory. Saves, copies and moves as ever; training, and whatever else records gradients, unpacks. Unpack
        before `torch.compile`, and for code that reads weights itself.

        Done where it is known to help (the table in flamboyance.model.linear), for backbones whose
        layers are called as layers (transformers' towers, and the families of `PACKED`). Elsewhere nothing happens."""
        parts: list[nn.Module] = [self.resampler, self.cross_attention]
        if self.vision.spec["library"] == "transformers":
            parts.append(self.vision)
        if self.config.text_config.model_type in PACKED:
            parts.append(self.language_model)
        for part in parts:
            linear.pack(part)
        return self

    def unpack(self) -> Any:
        """Undoes `pack`, bit by bit."""
        linear.unpack(self)
        return self

    @property
    def shares_prompts(self) -> bool:
        """Whether rows may share what they continue: the language model attends by flamboyance.model.attention (until
        it is told to attend otherwise)."""
        return self._attends_itself or self.language_model.config._attn_implementation == attention.NAME

    def get_output_embeddings(self) -> nn.Module:
        return language.output_head(self.language_model)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """Takes tokens that were added to the tokenizer:

            processor.tokenizer.add_tokens(["<left>", "<right>"])
            model.resize_token_embeddings(len(processor.tokenizer))

        Their rows are in `model.added_tokens`, where they train and are saved, beside those of `<image>` and
        `<|endofchunk|>`. The language model's tables stay as they are. An optimizer that was made before does not know
        the new parameters.

        Args:
            new_num_tokens: of the tokenizer, with all added tokens; None changes nothing. Fewer than the model has:
                tokens that were added in this way are taken away again, the last first.
            pad_to_multiple_of, mean_resizing: accepted for transformers' callers. No table has a size that could be
                padded, and new rows always start at the table's mean.

        Returns:
            The language model's own input table.

        Raises:
            ValueError: the number would take away a token that the model needs.
        """
        config, now = self.config, self.config.vocab_size
        if new_num_tokens is None or new_num_tokens == now:
            return self.get_input_embeddings()
        needed = 1 + max(config.image_token_id, config.eoc_token_id, config.pad_token_id, config.base_vocab_size - 1)
        if new_num_tokens < needed:
            raise ValueError(
                f"resize_token_embeddings({new_num_tokens}): expected {needed} tokens or more. The model has {now}: "
                f"{config.base_vocab_size} of the language model's tokenizer, then {brief(config.added_tokens)}, and "
                "needs those for images and padding. Give len(processor.tokenizer), of the tokenizer that the model "
                "was made with"
            )
        known = (
            {} if self.tokenizer is None else {number: token for token, number in self.tokenizer.get_vocab().items()}
        )
        names = [known.get(number, f"<token {number}>") for number in range(now, new_num_tokens)]
        count = new_num_tokens - config.base_vocab_size
        self.added_tokens.resize(count, self.language_model)
        config.added_tokens = [*config.added_tokens, *names][:count]
        return self.get_input_embeddings()

    @property
    def blocks(self) -> list[GatedCrossAttentionBlock]:
        """The gated cross-attention blocks, in the order of `cross_attention_layers`."""
        return [block for block in self.cross_attention if isinstance(block, GatedCrossAttentionBlock)]

    # Media ------------------------------------------------------------------------------------------------------

    def encode_media(self, pixel_values: Tensor, media_counts: Tensor | Sequence[int] | None = None) -> Media:
        """Encodes images or videos once, for use in any number of calls. Outside of training, equal media are computed
        once, as the demonstrations that all rows of a batch share.

        Args:
            pixel_values: (B, N, F, C, H, W); F is 1 for images. Entries beyond a row's count do not matter. Or packed,
                without padding: (M, F, C, H, W), those of row 0 first.
            media_counts: (B,) real media of each row; None: N each.

        Raises:
            ValueError: another number of dimensions, or counts that do not fit it.
        """
        if not isinstance(pixel_values, Tensor):
            raise ValueError(
                f"pixel_values is {checks.brief(pixel_values)}; expected a tensor, as the processor makes it"
            )
        self._check_frames(pixel_values.shape[-4] if pixel_values.ndim in (5, 6) else 1)
        if torch.compiler.is_compiling() and isinstance(media_counts, Tensor) and pixel_values.ndim in (5, 6):
            return self._encode_traced(pixel_values, media_counts)
        media, places, counts = pixels.unpadded(pixel_values, media_counts)
        self._check_finite("pixel_values", media, places)
        numbers: Sequence[int] = range(len(places))
        if not self.training and not torch.compiler.is_compiling() and pixels.comparable(media):
            places, numbers = pixels.first_of_equal(media, places)
        media = media if places == list(range(len(media))) else media[places]
        return self._keys_values(self._latents(self._patches(media)), rows_of(numbers, counts))

    def _encode_traced(self, pixel_values: Tensor, media_counts: Tensor) -> Media:
        """`encode_media` where numbers of media are tensors whose values nothing may depend on: entries beyond a row's
        count are computed too, and not looked at."""
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
        """The trained half of `encode_media`, for features of the frozen tower that were computed before.

        Args:
            patches: (M, F, P, D), those of row 0 first; None without any.
            media_counts: media of each of the B rows; they add up to M.

        Raises:
            ValueError: features that are not finite.
        """
        if patches is not None:
            self._check_finite("patches", patches)
        return self._keys_values(self._latents(patches), rows_of(range(sum(media_counts)), media_counts))

    def _check_frames(self, frames: int) -> None:
        if frames > 1 and self.resampler.time_embeddings is None:
            raise ValueError(
                f"a medium has {frames} frames, and this model has no time embeddings (trained on single images): "
                "the order of frames would be lost. Give one frame, or each frame as an image with an <image> of "
                "its own; a model for videos is made with resampler={'max_frames': …}"
            )

    def _latents(self, patches: Tensor | None) -> Tensor:
        home = self.resampler.latents
        if patches is None:
            return torch.zeros(0, *home.shape, dtype=home.dtype, device=home.device)
        self._check_frames(patches.shape[1])
        return self.resampler(patches.to(home.device, home.dtype))

    def media_of(self, latents: Tensor, media_counts: Sequence[int]) -> Media:
        """The last part of `encode_media`: latents (M, L, D) with their keys and values of every block.

        Raises:
            ValueError: latents that are not finite.
        """
        self._check_finite("latents", latents)
        return self._keys_values(latents, rows_of(range(len(latents)), media_counts))

    def _keys_values(self, latents: Tensor, rows: Any) -> Media:
        pairs = tuple(block.attention.keys_values(language.moved(latents, block)) for block in self.blocks)
        return Media(latents, pairs, rows)

    def _check_finite(self, name: str, values: Tensor, places: Sequence[int] | None = None) -> None:
        """Not in training, where a step that is not finite is left out, and where looking at values takes time."""
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
    ) -> Media | None:
        if media is not None and not isinstance(media, Media):
            raise ValueError(f"media is {checks.brief(media)}; expected a Media, as model.encode_media makes it")
        if media is None and pixel_values is not None:
            media = self.encode_media(pixel_values, media_counts)
        elif media is not None and pixel_values is not None:
            raise ValueError("Give media or pixel_values, not both: they say the same thing.")
        if media is not None and len(input_ids) % max(len(media.rows), 1):
            raise ValueError(f"{len(input_ids)} rows of text cannot share the media of {len(media.rows)} prompts.")
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
        **outputs: Any,
    ) -> CausalLMOutputWithPast:
        """Next-token logits, and the loss when labels are given.

        Args:
            input_ids: (R, T). With past_key_values, the new tokens only.
            attention_mask: (R, past + T), 1 for real tokens; padding may stand on either side.
            pixel_values, media_counts: as in `encode_media`; or
            media: of B prompts, R a multiple of B. With past_key_values: all media of the conversation so far, those
                of the new `<image>` tokens last.
            labels: (R, T), -100 where nothing is to be predicted; shifted here. The loss is their mean cross-entropy.
            past_key_values, position_ids, use_cache: as in transformers; positions default to the mask's count.
            cache: another name for past_key_values, transformers' own since 5.24.
            logits_to_keep: logits of the last so many positions only; 0: all. Or a (K,) long tensor of the positions
                wanted, row·T + t; the result is then (K, V), and the loss is the caller's own.
            images_seen: (B, T) long, on the CPU: how many images each token has met; counted from the text when not
                given.
            return_dict: accepted for transformers' callers; the result is always an output object.
            num_items_in_batch: divide the summed loss by this number, not by that of this call's own labels: for
                gradients accumulated over several calls, as transformers' Trainer does it.
            outputs: output_hidden_states, output_attentions: of the language model's layers. (MPT has no attentions to
                show: its attention is fused.)

        Returns:
            `.logits` (R, T, V) or those kept, `.loss`, `.past_key_values`.

        Raises:
            ValueError: a row's `<image>` tokens and images differ in number; ids are not the model's; or labels have
                another shape.
        """
        named = {name for name, value in outputs.items() if value is not None}  # wrappers pass on what they name
        unknown = sorted(named - {"output_hidden_states", "output_attentions", "cache_position"})
        if unknown:
            raise TypeError(f"forward has no argument {unknown[0]!r}; see its documentation for those that it takes.")
        check_ids(input_ids)
        past_key_values = given(past_key_values, cache)
        media = self._media(input_ids, media, pixel_values, media_counts)
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        self.check_length(past + input_ids.shape[1], attention_mask)
        # Looking at ids waits for the device: not while decoding, nor for a caller who has counted their images.
        if images_seen is None and (not past or input_ids.shape[1] > 1):
            self._check_ids(input_ids, labels)
        media, layout = self._layout(input_ids, media, past, images_seen)
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
            position_ids = position_ids + self._first_position
        if past and input_ids.shape[1] > 1 and is_recurrent(past_key_values):
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
        table = self.language_model.get_input_embeddings()
        options = language.accepted(self.language_model, {"position_ids": position_ids, "use_cache": use_cache})
        if self._inputs_by_layer:
            options |= language.inputs_by_layer(self.language_model, input_ids, self.config.base_vocab_size)
        with language.conditioned(language.Conditioning(media, layout, self.added_tokens, logits_to_keep)):
            out = adapters.called(self.language_model)(
                inputs_embeds=self.added_tokens.embed(input_ids, table),
                attention_mask=attention_mask,
                **language.cache_option(self.language_model, past_key_values),
                **options,
                **{name: value for name, value in outputs.items() if name != "cache_position" and value},
            )
        logits = out.logits[..., : self.config.vocab_size]
        logits = logits if past_key_values is not None else logits.contiguous()  # a step need not copy its vocabulary
        loss = None if labels is None else next_token_loss(logits, labels, num_items_in_batch)
        rest: dict[str, Any] = {name: out.get(name) for name in (CACHE, "hidden_states", "attentions")}
        if use_cache is False:
            rest[CACHE] = past_key_values  # some families make one all the same
        return CausalLMOutputWithPast(loss=loss, logits=logits, **rest)

    def check_length(self, length: int, attention_mask: Tensor | None = None, new: int = 0) -> None:
        """Whether texts fit the language model's positions.

        Args:
            length: columns of text, padding and what a cache holds included.
            attention_mask: of all columns; padding takes no position.
            new: tokens to be generated after them.

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
                f"too long: {length} tokens{more}, but {kind} has {most} positions. Shorten the text, give fewer "
                "demonstrations, or generate fewer tokens."
            )

    def _check_ids(self, input_ids: Tensor, labels: Tensor | None) -> None:
        if labels is not None and labels.shape != input_ids.shape:
            raise ValueError(
                f"labels has shape {tuple(labels.shape)} for input_ids of shape {tuple(input_ids.shape)}; expected a "
                "label for each token, -100 where nothing is to be predicted."
            )
        if not input_ids.numel():
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}: there is no token. Give some text.")
        if torch.compiler.is_compiling():
            fits = ((input_ids >= 0) & (input_ids < self.config.vocab_size)).all()
            torch._assert_async(fits, "input_ids holds ids that are not the model's")
            return
        for token in (input_ids.min().item(), input_ids.max().item()):
            if not 0 <= token < self.config.vocab_size:
                raise ValueError(
                    f"input_ids holds {token}; expected ids from 0 to {self.config.vocab_size - 1}: "
                    f"{self.config.base_vocab_size} tokens of the tokenizer, then {brief(self.config.added_tokens)}. "
                    "Use the tokenizer that the model was made with; if tokens were added to it since, first call "
                    "model.resize_token_embeddings(len(tokenizer))."
                )

    def _layout(self, input_ids: Tensor, media: Media | None, past: int, images_seen: Tensor | None):
        """What each token sees: the media to look at, and the layout for attending to them."""
        traced = torch.compiler.is_compiling()
        if images_seen is not None and not isinstance(images_seen, Tensor):
            images_seen = torch.as_tensor(images_seen)
        newest = images_seen is None
        if not newest and not traced and media is not None and past and input_ids.shape[1] == 1:
            times = len(images_seen) // len(media.rows)
            newest = images_seen[:, -1].tolist() == [count for count in media.counts for _ in range(times)]
        if newest and media is not None and past and input_ids.shape[1] == 1:
            media = media.last
            return media, decoding_layout(media, input_ids.device) if len(media.latents) else None
        if images_seen is None:
            images_seen = count_seen(input_ids, self.config.image_token_id, media, past)
        if media is None:
            return None, None
        seen = images_seen.repeat_interleave(len(input_ids) // len(images_seen), 0)
        if traced:
            return media, traced_layout(seen.to(input_ids.device), media)
        layout = prefill_layout(seen, media)
        return media, None if layout is None else layout.to(input_ids.device)


def brief(tokens: Sequence[str]) -> str:
    """The first few names, and how many more."""
    return ", ".join(tokens[:5]) + (f" and {len(tokens) - 5} more" if len(tokens) > 5 else "")


def next_token_loss(logits: Tensor, labels: Tensor, count: Tensor | int | None = None) -> Tensor:
    """Mean cross-entropy of labels (R, T) under the logits (R, T, V) one position earlier; -100 is not counted. With
    `count`, their sum over `count`."""
    logits, labels = logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
    if count is None:
        return F.cross_entropy(logits, labels, ignore_index=-100)
    total = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    return total / (count.to(total.device) if isinstance(count, Tensor) else count)


def check_ids(input_ids: Any) -> None:
    """
    Raises:
        ValueError: something else than rows of token ids.
    """
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or input_ids.is_floating_point():
        raise ValueError(
            f"input_ids is {checks.brief(input_ids)}; expected token ids (rows, tokens), as the processor makes them: "
            "model.generate(**processor(text, images=images))"
        )
