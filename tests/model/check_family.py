"""What must give the same numbers in every family: caches, padding, beams, candidates, demonstrations."""

from typing import Any

import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from flamboyance.model import families
from flamboyance.model.cache import empty
from flamboyance.model.media import Media, count_seen
from flamboyance.prompting import Prefix
from tests.model.families import IMAGE, images, make, pad_left, prompt
from tests.model.zoo import tiny_config

CLOSE = {"atol": 1e-4, "rtol": 1e-3}


@torch.no_grad()
def check(family: str, **cross_attention: Any) -> None:
    """
    Raises:
        AssertionError: something differs. ValueError: the family is refused.
    """
    config = tiny_config(family)
    with torch.device("meta"):
        families.check(AutoModelForCausalLM.from_config(config))
    model = make(family, cross_attn_every_n_layers=2, text_config=config, **cross_attention)
    rows, counts = [prompt(3, 7), prompt(9, 8, seed=1, lead=2)], [2, 2]
    media = model.encode_media(images(*counts))
    inputs = pad_left(rows)
    whole = model(**inputs, media=media, use_cache=False).logits
    alone = [model(torch.tensor([row]), media=_one(media, i), use_cache=False).logits[0] for i, row in enumerate(rows)]
    for i, row in enumerate(rows):
        assert_close(whole[i, -len(row) :], alone[i], **CLOSE, msg=lambda text: f"padding changes results: {text}")
    assert alone[1].std() > 1e-3, "the logits say nothing"
    changed = model(
        torch.tensor([[*rows[1][:-1], 7 if rows[1][-1] != 7 else 8]]), media=_one(media, 1), use_cache=False
    )
    assert_close(changed.logits[0, :-1], alone[1][:-1], **CLOSE, msg=lambda text: f"tokens see later ones: {text}")

    cache, steps, mask = empty(model.config.text_config), [], inputs["attention_mask"]
    for start, end in ((0, 14), (14, 15), (15, 16), (16, inputs["input_ids"].shape[1])):
        seen = count_seen(inputs["input_ids"], IMAGE, media)[:, start:end]
        given = {"attention_mask": mask[:, :end], "past_key_values": cache, "use_cache": True, "images_seen": seen}
        steps.append(model(inputs["input_ids"][:, start:end], media=media, **given).logits)
    real = mask.bool()
    assert_close(torch.cat(steps, 1)[real], whole[real], **CLOSE, msg=lambda text: f"cached differs: {text}")

    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    cached, plain = (model.generate(**inputs, media=media, use_cache=use, **options) for use in (True, False))
    assert cached.tolist() == plain.tolist(), "generated tokens differ without a cache"
    out = model.generate(
        **inputs, media=media, num_beams=3, num_return_sequences=3, length_penalty=0.0, return_dict_in_generate=True,
        output_scores=True, **options,
    )  # fmt: skip
    for i, sequence in enumerate(out.sequences):
        text = torch.tensor([rows[i // 3] + sequence[-4:].tolist()])
        logprobs = model(text, media=_one(media, i // 3), use_cache=False).logits[0, -5:-1].log_softmax(-1)
        score = logprobs.gather(1, sequence[-4:, None]).sum()
        assert_close(out.sequences_scores[i], score, atol=1e-3, rtol=1e-3, msg=lambda text: f"beams differ: {text}")

    candidates = [[5], [6, 7, 8], [9, 10]]
    scores = model.score(**inputs, media=media, candidates=candidates)
    for i, row in enumerate(rows):
        for j, candidate in enumerate(candidates):
            logits = model(torch.tensor([row + candidate]), media=_one(media, i), use_cache=False).logits[0]
            logprobs = logits[len(row) - 1 : -1].log_softmax(-1)
            expected = logprobs.gather(1, torch.tensor(candidate)[:, None]).sum()
            assert_close(scores[i, j], expected, atol=1e-3, rtol=1e-3, msg=lambda text: f"candidates differ: {text}")

    prefix = Prefix.of(model, torch.tensor(rows[1][:13]), media.select([2, 3], ((0,),)))
    texts = [rows[1], [*rows[1][:13], *rows[1][13:][::-1]], [*rows[1], 5, 6]]
    for chosen in (texts[:2], texts):
        if any(IMAGE not in text[13:] for text in chosen):
            raise AssertionError("the check's own texts are wrong")
        batch = pad_left(chosen)
        shifts = [batch["input_ids"].shape[1] - len(text) for text in chosen]
        known = prefix.cache(shifts, model.shares_prompts)
        both = Media(media.latents, media.keys_values, ((2, 3),) * len(chosen))
        given = {**batch, "media": both, **options}
        found = model.generate(past_key_values=known, **given) if known is not None else None
        expected = model.generate(use_cache=False, **given)
        assert found is None or found.tolist() == expected.tolist(), "few-shot answers differ"


def _one(media: Media, row: int) -> Media:
    return Media(media.latents, media.keys_values, (media.rows[row],))
