"""Every causal language model of transformers, tiny: it works, or is refused for a reason; none differs silently.

`docs/families.md` is the table of outcomes. `python -m tests.model.test_families` writes it anew.
"""

import re
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from flamboyance.model import families as supported
from flamboyance.model.cache import branch, empty, is_recurrent
from tests.model.check_family import check
from tests.model.families import images, make, pad_left, prompt
from tests.model.zoo import FAMILIES, NOT_BUILT, tiny_config

DOCS = Path(__file__).parents[2] / "docs" / "families.md"
WORKS = "works"
# One of each kind of state, for `make test`; the others are marked `families`.
QUICK = (
    "bamba", "falcon_h1", "gemma3_text", "gemma4_text", "granitemoehybrid", "jamba", "lfm2", "mistral", "nemotron_h",
    "qwen3_5_text", "qwen3_next", "zamba2",
)  # fmt: skip


def outcome(family: str) -> str:
    """WORKS, or why a family is refused or cannot be built tiny.

    Raises:
        AssertionError: it gives other numbers in one way than in another.
    """
    if family in NOT_BUILT:
        return f"not checked: {NOT_BUILT[family]}"
    try:
        check(family)
    except ValueError as error:
        reason = re.search(r"cannot be a Flamingo's language model: (.*)\.$", str(error))
        if reason is None:
            raise
        return f"refused: {reason[1]}"
    return WORKS


def documented() -> dict[str, str]:
    """Outcomes in the table of docs/families.md."""
    rows = re.findall(r"^\| `(.+?)` \| `.+?` \| (.+?) \|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(rows)


def compare(family: str) -> None:
    """A known family's outcome is the documented one; a new family, or another transformers', is only reported."""
    known = documented().get(family)
    pinned = documented_version() == transformers.__version__
    try:
        found = outcome(family)
    except AssertionError:
        raise
    except Exception as error:
        if pinned:
            raise
        found = f"not checked: {type(error).__name__}"
    if pinned:
        assert found == known
    elif found != known:
        warnings.warn(f"{family}: {found} (documented: {known})", stacklevel=1)


def documented_version() -> str:
    found = re.search(r"transformers (\d\S*\d)", DOCS.read_text(encoding="utf-8"))
    assert found
    return found[1]


@pytest.mark.parametrize("family", QUICK)
def test_a_family_of_each_kind_gives_the_same_numbers_in_every_way(family):
    compare(family)


@pytest.mark.families
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in QUICK])
def test_every_family_gives_the_same_numbers_or_is_refused(family):
    compare(family)


def test_the_table_names_every_family():
    if documented_version() == transformers.__version__:
        assert list(documented()) == FAMILIES


@pytest.mark.parametrize("family", ["mamba", "mamba2", "falcon_mamba"])
def test_state_space_models_are_refused_by_name_at_construction(family):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(family))
    with pytest.raises(ValueError, match=rf"{type(model).__name__} .*{family}"):
        supported.check(model)


def test_an_encoder_is_refused_and_a_decoder_is_not():
    config = tiny_config("bert")
    config.is_decoder = False
    with torch.device("meta"), pytest.raises(ValueError, match=r"BertLMHeadModel.*is_decoder=True"):
        supported.check(AutoModelForCausalLM.from_config(config))


@torch.no_grad()
def test_a_recurrent_state_takes_in_no_padding():
    model = make("qwen3_next", cross_attn_every_n_layers=2, text_config=tiny_config("qwen3_next"))
    inputs = pad_left([prompt(3), prompt(3, seed=1)])
    media = model.encode_media(images(1, 1))
    cache = empty(model.config.text_config)
    model(**inputs, media=media, past_key_values=cache, use_cache=True)
    assert is_recurrent(cache)
    mask = torch.cat([inputs["attention_mask"], torch.tensor([[0, 1], [1, 1]])], 1)
    with pytest.raises(ValueError, match="padding"):
        model(torch.tensor([[5, 6], [7, 8]]), attention_mask=mask, media=media, past_key_values=branch(cache, 1))


@torch.no_grad()
def test_branches_of_a_recurrent_state_do_not_see_each_other():
    model = make("lfm2", cross_attn_every_n_layers=2, text_config=tiny_config("lfm2"))
    ids, media = torch.tensor([prompt(3)]), model.encode_media(images(1))
    trunk = empty(model.config.text_config)
    model(ids, media=media, past_key_values=trunk, use_cache=True)
    after = [model(torch.tensor([[t]]), media=media, past_key_values=branch(trunk, 1)).logits for t in (5, 6, 5)]
    assert torch.equal(after[0], after[2]) and not torch.equal(after[0], after[1])


def test_looking_ahead_is_refused_where_a_state_cannot_go_back():
    model = make("qwen3_next", cross_attn_every_n_layers=2, text_config=tiny_config("qwen3_next"))
    with pytest.raises(ValueError, match="recurrent"):
        model.generate(torch.tensor([prompt(3)]), pixel_values=images(1), prompt_lookup_num_tokens=2)


LENGTHS = {"gpt2": "n_positions", "opt": "max_position_embeddings", "gpt_neo": "max_position_embeddings"}
LENGTHS |= {"gptj": "n_positions", "mpt": "max_seq_len", "llama": "max_position_embeddings"}


@torch.no_grad()
@pytest.mark.parametrize("family", LENGTHS)
def test_a_prompt_longer_than_the_positions_is_refused_with_both_numbers(family):
    from tests.model.families import FAMILIES as CONFIGS

    config = AutoConfig.for_model(family, **CONFIGS[family] | {LENGTHS[family]: 16})
    model = make(family, text_config=config)
    fits, long = torch.tensor([prompt(15)]), torch.tensor([prompt(18)])
    media = model.encode_media(images(1))
    assert model(fits, media=media).logits.isfinite().all()
    for call in (model, model.generate, lambda ids, media: model.score(ids, [[5]], media=media)):
        with pytest.raises(ValueError, match=r"19 .*16 "):
            call(long, media=media)
    with pytest.raises(ValueError, match=r"16 tokens.* 3 .*16 "):
        model.generate(fits, media=media, max_new_tokens=3)


@torch.no_grad()
def test_padding_takes_no_position():
    from tests.model.families import FAMILIES as CONFIGS

    model = make("gpt2", text_config=AutoConfig.for_model("gpt2", **CONFIGS["gpt2"] | {"n_positions": 16}))
    inputs = pad_left([prompt(15), prompt(3)])
    inputs = {name: torch.nn.functional.pad(t, (4, 0)) for name, t in inputs.items()}
    assert model(**inputs, pixel_values=images(1, 1)).logits.shape[1] == 20


def write_table() -> None:
    """Every family's outcome, with this transformers, into docs/families.md."""
    text = DOCS.read_text(encoding="utf-8")
    rows = {family: outcome(family) for family in FAMILIES}
    counts = [sum(row.startswith(kind) for row in rows.values()) for kind in (WORKS, "refused", "not checked")]
    lines = [
        "<!-- families: written by python -m tests.model.test_families -->",
        f"With transformers {transformers.__version__}: {len(rows)} families; {counts[0]} work, {counts[1]} are "
        f"refused, {counts[2]} could not be built tiny.",
        "",
        "| Family | Class | Outcome |",
        "| --- | --- | --- |",
        *(f"| `{family}` | `{MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]}` | {row} |" for family, row in rows.items()),
        "<!-- end -->",
    ]
    table = "\n".join(lines)
    text = re.sub(r"<!-- families.*<!-- end -->", lambda _: table, text, flags=re.DOTALL)
    DOCS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_table()
