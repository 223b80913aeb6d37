"""The five released models, built at full size on the meta device, against the keys of their checkpoints."""

import json
import re
from pathlib import Path

import pytest
import torch

from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor, names
from flamboyance.checkpoints import openflamingo, released

KEYS = json.loads((Path(__file__).parent.parent / "parity" / "openflamingo_keys.json").read_text(encoding="utf-8"))
MPT_1B, MPT_1B_DOLLY, RPJ, RPJ_INSTRUCT, MPT_7B = KEYS

# Published: layers with a block, and parameters of blocks and resampler, of the embedding table, and what trains.
FACTS = {
    MPT_1B: (range(24), 881_000_496, 102_973_440, 1_046_992_944),
    MPT_1B_DOLLY: (range(24), 881_000_496, 102_973_440, 1_046_992_944),
    RPJ: (range(1, 32, 2), 897_744_928, 128_716_800, 960_763_936),
    RPJ_INSTRUCT: (range(1, 32, 2), 897_744_928, 128_716_800, 960_763_936),
    MPT_7B: (range(3, 32, 4), 1_115_815_952, 205_946_880, 1_384_781_840),
}


@pytest.fixture(scope="module")
def models():
    with torch.device("meta"):
        return {name: FlamingoForConditionalGeneration(released.config_for(name)) for name in KEYS}


@pytest.fixture(params=KEYS)
def name(request):
    return request.param


def state_of(name):
    return {key: torch.empty(shape, device="meta") for key, shape in KEYS[name].items()}


def translate(model, state):
    return openflamingo.translate(model, openflamingo.parse(state))


def size(parameters):
    return sum(p.numel() for p in parameters)


def test_every_key_is_consumed_and_none_is_missing(models, name):
    model = models[name]
    theirs = openflamingo.reference_names(model)
    assert {*theirs.parameters, *theirs.tables} == set(KEYS[name])
    translated = translate(model, state_of(name))
    wanted = model.trained_parameters()
    assert {key: t.shape for key, t in translated.items()} == {key: p.shape for key, p in wanted.items()}
    exported = openflamingo.export(model)
    assert {key: list(t.shape) for key, t in exported.items()} == KEYS[name]


def test_sizes_are_the_published_ones(models, name):
    model = models[name]
    blocks, in_blocks, table, trains = FACTS[name]
    assert model.cross_attention_layers == list(blocks)
    assert size(model.cross_attention.parameters()) == in_blocks
    assert size(model.resampler.parameters()) == 63_019_008
    # The reference counts the whole table as trained; 4B's was frozen. Here the added tokens' rows alone train.
    whole = 0 if name in (RPJ, RPJ_INSTRUCT) else table
    assert in_blocks + 63_019_008 + whole == trains
    assert table == model.config.vocab_size * model.config.text_config.hidden_size
    rows = 3 * model.config.text_config.hidden_size * (2 if name in (RPJ, RPJ_INSTRUCT) else 1)
    assert size(model.trained_parameters().values()) == in_blocks + 63_019_008 + rows
    assert size(p for p in model.parameters() if p.requires_grad) == in_blocks + 63_019_008 + rows


@pytest.mark.parametrize(
    "language, parameters", [(RPJ, 2_775_864_320), (MPT_7B, 6_649_286_656)], ids=["RedPajama-3B", "MPT-7B"]
)
def test_language_models_have_their_published_size(models, language, parameters):
    assert size(models[language].language_model.parameters()) == parameters


def one_of_each_kind(name):
    """A key of the resampler, a gate, a matrix of the last block, and every table."""
    blocks = [key for key in KEYS[name] if "gated_cross_attn_layer" in key]
    tables = [key for key in KEYS[name] if key.endswith(("wte.weight", "embed_in.weight", "embed_out.weight"))]
    norm = next(key for key in blocks if key.endswith("attn.norm.weight"))
    return ["perceiver.latents", "perceiver.layers.3.1.1.weight", blocks[0], norm, blocks[-1], *tables]


def test_a_key_renamed_is_refused_by_name(models, name):
    for key in one_of_each_kind(name):
        state = state_of(name)
        state[key + "_"] = state.pop(key)
        with pytest.raises(ValueError, match=f"{re.escape(key)}.*{re.escape(key)}_"):
            translate(models[name], state)


def test_a_key_missing_is_refused_by_name(models, name):
    for key in one_of_each_kind(name):
        state = state_of(name)
        del state[key]
        with pytest.raises(ValueError, match=re.escape(key)):
            translate(models[name], state)


def test_a_key_of_another_shape_is_refused_by_name(models, name):
    for key in one_of_each_kind(name):
        for change in (lambda shape: [*shape[:-1], shape[-1] + 1], lambda shape: [shape[0] + 1, *shape[1:]]):
            state = state_of(name)
            state[key] = torch.empty(change(KEYS[name][key]), device="meta")
            with pytest.raises(ValueError, match=re.escape(key)) as refused:
                translate(models[name], state)
            assert str(list(state[key].shape)[-1]) in str(refused.value)


def test_an_unknown_key_is_refused_by_name(models, name):
    state = state_of(name) | {"perceiver.media_time_embs": torch.empty(4, 1, 1024, device="meta")}
    with pytest.raises(ValueError, match=r"perceiver\.media_time_embs"):
        translate(models[name], state)


@pytest.mark.parametrize(
    "given, into, said",
    [
        (MPT_1B, MPT_7B, "cross_attn_every_n_layers.* 1.* 4"),
        (MPT_7B, MPT_1B, "cross_attn_every_n_layers.* 4.* 1"),
        (RPJ, MPT_7B, r"lang_encoder\.gpt_neox\.layers.*transformer\.blocks"),
        (MPT_1B_DOLLY, RPJ, r"lang_encoder\.transformer\.blocks.*gpt_neox\.layers"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_with_what_it_fits(models, given, into, said):
    with pytest.raises(ValueError, match=said) as refused:
        translate(models[into], state_of(given))
    assert given in str(refused.value)


def test_another_depth_width_or_tower_is_told_first(models):
    model = models[MPT_7B]

    def changed(change):
        return {key: change(key, t) for key, t in state_of(MPT_7B).items() if change(key, t) is not None}

    shallow = changed(lambda key, t: None if ".31." in key else t)
    with pytest.raises(ValueError, match=r"layer 27.* 31"):
        translate(model, shallow)
    narrow = changed(lambda key, t: torch.empty(2048, device="meta") if key.endswith("attn.norm.weight") else t)
    with pytest.raises(ValueError, match=r"blocks\.3\S+attn\.norm\.weight.* 2048.* 4096"):
        translate(model, narrow)
    tower = changed(lambda key, t: torch.empty(64, 768, device="meta") if key == "perceiver.latents" else t)
    with pytest.raises(ValueError, match=r"perceiver\.latents.* 768.* 1024"):
        translate(model, tower)


def test_stray_layers_buffers_and_aliases_of_4b_are_passed_over(models):
    state = state_of(RPJ)
    for i in range(32):
        layer = f"lang_encoder.gpt_neox.layers.{i}.decoder_layer"
        state[f"{layer}.attention.query_key_value.weight"] = torch.empty(7680, 2560, device="meta")
        state[f"{layer}.attention.rotary_emb.inv_freq"] = torch.empty(40, device="meta")
        state[f"{layer}.attention.masked_bias"] = torch.empty((), device="meta")
    state |= {
        key.replace("gpt_neox.layers", "gated_cross_attn_layers").replace("gated_cross_attn_layer.", ""): t
        for key, t in state_of(RPJ).items()
        if "gated_cross_attn_layer." in key
    }
    assert len(translate(models[RPJ], state)) == len(models[RPJ].trained_parameters())


def test_names():
    assert names.released("openflamingo/OpenFlamingo-9B-vitl-mpt7b") == names.released(MPT_7B) == MPT_7B
    assert names.released("openflamingo/OpenFlamingo-9B-vitl-mpt7b-langinstruct") is None
    with pytest.raises(ValueError, match=r"'OpenFlamingo-9B'.*mpt1b"):
        released.config_for("OpenFlamingo-9B")


def test_opening_without_network_says_what_is_missing():
    for opened in (FlamingoForConditionalGeneration, FlamingoProcessor):
        with pytest.raises(OSError, match=r"openflamingo|anas-awadalla|outgoing|offline|cache"):
            opened.from_pretrained("openflamingo/OpenFlamingo-9B-vitl-mpt7b", local_files_only=True)
