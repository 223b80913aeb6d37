"""MosaicGPT against a plain re-statement of its mathematics, and as a citizen of Transformers."""

import json
import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, StaticCache

from flamboyance.model.mosaic_gpt import MosaicGPTConfig, MosaicGPTForCausalLM

HUB_CONFIG = json.loads(  # the published file's keys, at a small size
    """{
    "_name_or_path": "mosaicml/mpt-1b", "architectures": ["MosaicGPT"], "model_type": "mosaic_gpt",
    "auto_map": {"AutoConfig": "configuration_mosaic_gpt.X", "AutoModelForCausalLM": "mosaic_gpt.MosaicGPT"},
    "d_model": 32, "n_heads": 4, "n_layers": 3, "mlp_ratio": 4, "max_seq_len": 64, "vocab_size": 50,
    "alibi": true, "alibi_bias_max": 8, "attn_qk_ln": true, "no_bias": true,
    "attn_clip_qkv": null, "softmax_scale": null, "logit_scale": null, "embedding_fraction": 1.0,
    "prefix_lm": false, "attn_uses_sequence_id": false, "use_cache": false,
    "attn_pdrop": 0, "emb_pdrop": 0, "resid_pdrop": 0,
    "attn_impl": "torch", "low_precision_layernorm": true, "init_device": "cpu", "init_std": 0.02,
    "param_init_fn": "kaiming_normal_", "fan_mode": "fan_in", "emb_init_std": null, "verbose": 0,
    "tokenizer_name": "EleutherAI/gpt-neox-20b", "torch_dtype": "float32", "transformers_version": "4.27.4"
    }"""
)


def build(**changes) -> MosaicGPTForCausalLM:
    config = MosaicGPTConfig(**{**{k: v for k, v in HUB_CONFIG.items() if k != "auto_map"}, **changes})
    model = MosaicGPTForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(1 + 0.1 * noise if p.ndim == 1 else noise / math.sqrt(p.shape[-1]))
    return model


def ids(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 50, shape, generator=torch.Generator().manual_seed(seed))


def reference(weights: dict, config: dict, row: list[int]) -> torch.Tensor:
    """Logits (T, V) of one unpadded row: explicit sums, no fused attention, nothing taken from the model."""

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-5)
        return x * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0)

    def linear(x, name):
        return torch.einsum("ti,oi->to", x, weights[f"{name}.weight"]) + weights.get(f"{name}.bias", 0)

    heads, width, length = config["n_heads"], config["d_model"], len(row)
    x = weights["transformer.wte.weight"][row]
    if not config["alibi"]:
        x = x + weights["transformer.wpe.weight"][:length]
    scale = config["softmax_scale"] or 1 / math.sqrt(width / heads)
    for n in range(config["n_layers"]):
        at = f"transformer.blocks.{n}."
        qkv = linear(norm(x, at + "ln_1"), at + "attn.Wqkv")
        if config["attn_clip_qkv"]:
            qkv = qkv.clamp(-config["attn_clip_qkv"], config["attn_clip_qkv"])
        q, k, v = qkv[:, :width], qkv[:, width : 2 * width], qkv[:, 2 * width :]
        if config["attn_qk_ln"]:
            q, k = norm(q, at + "attn.q_ln"), norm(k, at + "attn.k_ln")
        q, k, v = (t.reshape(length, heads, width // heads) for t in (q, k, v))
        scores = torch.einsum("ihd,jhd->hij", q, k) * scale
        for h in range(heads):
            for j in range(length):
                if config["alibi"]:
                    scores[h, :, j] += 2 ** (-config["alibi_bias_max"] * (h + 1) / heads) * (j - (length - 1))
                scores[h, :j, j] = -torch.inf
        mixed = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(length, width)
        x = x + linear(mixed, at + "attn.out_proj")
        up = linear(norm(x, at + "ln_2"), at + "mlp.mlp_up")
        x = x + linear(0.5 * up * (1 + torch.erf(up / math.sqrt(2))), at + "mlp.mlp_down")
    logits = torch.einsum("td,vd->tv", norm(x, "transformer.ln_f"), weights["transformer.wte.weight"])
    scale = config["logit_scale"]
    return logits * (width**-0.5 if scale == "inv_sqrt_d_model" else 1 if scale is None else scale)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_heads": 8, "alibi_bias_max": 5},
        {"d_model": 48, "n_heads": 6},  # no power of two: slopes are not interleaved
        {"attn_qk_ln": False, "attn_clip_qkv": 0.5, "softmax_scale": 0.3},
        {"no_bias": False, "mlp_ratio": 2, "logit_scale": "inv_sqrt_d_model"},
        {"alibi": False, "logit_scale": 0.5, "embedding_fraction": 0.1},
    ],
    ids=str,
)
def test_logits_are_those_of_the_reference(changes):
    model = build(**changes)
    rows = ids(2, 11)
    with torch.no_grad():
        got = model(rows).logits
    for row, logits in zip(rows, got, strict=True):
        expected = reference(model.state_dict(), {**HUB_CONFIG, **changes}, row.tolist())
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("alibi", [True, False])
@torch.no_grad()
def test_cache_chunks_and_padding_change_nothing(alibi):
    model = build(alibi=alibi)
    short, long = ids(1, 5, seed=2), ids(1, 9, seed=3)
    alone = model(short).logits[0]
    for side in ("left", "right"):
        pad = (4, 0) if side == "left" else (0, 4)
        batch = torch.cat([torch.nn.functional.pad(short, pad, value=7), long])
        mask = torch.nn.functional.pad(torch.ones(1, 5), pad)
        mask = torch.cat([mask, torch.ones(1, 9)])
        for dtype in (torch.bool, torch.long):
            padded = model(batch, attention_mask=mask.to(dtype)).logits
            assert padded.isfinite().all()
            kept = padded[0, -5:] if side == "left" else padded[0, :5]
            torch.testing.assert_close(kept, alone, atol=1e-5, rtol=1e-4)
        if side == "right":
            continue
        for cache in (DynamicCache(), StaticCache(config=model.config, max_cache_len=16)):
            parts = [  # prefill, a chunk, single tokens
                model(batch[:, a:b], attention_mask=mask[:, :b].long(), past_key_values=cache).logits
                for a, b in ((0, 3), (3, 7), (7, 8), (8, 9))
            ]
            torch.testing.assert_close(torch.cat(parts, 1)[:, 4:], padded[:, 4:], atol=1e-5, rtol=1e-4)
            assert cache.get_seq_length() == 9


@torch.no_grad()
def test_forward_options():
    model, rows = build(), ids(2, 6)
    full = model(rows, output_hidden_states=True)
    assert len(full.hidden_states) == 4 and isinstance(full.past_key_values, DynamicCache)
    torch.testing.assert_close(model.lm_head(full.hidden_states[-1]), full.logits)
    torch.testing.assert_close(model(inputs_embeds=model.get_input_embeddings()(rows)).logits, full.logits)
    torch.testing.assert_close(model(rows, logits_to_keep=2).logits, full.logits[:, -2:])
    assert model(rows, use_cache=False).past_key_values is None
    labels = rows.clone()
    labels[0, :3] = -100
    expected = torch.nn.functional.cross_entropy(
        full.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    torch.testing.assert_close(model(rows, labels=labels).loss, expected)
    assert torch.equal(model(rows, return_dict=False)[0], full.logits)


def test_checkpointing_and_hooks_leave_gradients_alone():
    model, rows = build().train(), ids(2, 6)
    seen = []
    model.transformer.blocks[1].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))

    def gradients():
        model.zero_grad()
        model(rows, labels=rows).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    plain = gradients()
    model.gradient_checkpointing_enable()
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name], msg=name)
    assert model(rows, use_cache=True).past_key_values is None  # recomputed blocks would write twice
    assert seen[:2] == [(2, 6, 32)] * 2  # hidden states come positionally


@torch.no_grad()
def test_generation():
    model, prompt = build(), ids(1, 4)
    expected = prompt.clone()
    for _ in range(6):
        logits = reference(model.state_dict(), HUB_CONFIG, expected[0].tolist())
        expected = torch.cat([expected, logits[-1].argmax()[None, None]], 1)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    lengths = []
    handle = model.transformer.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    assert torch.equal(model.generate(prompt, **options), expected)
    assert lengths == [4, 1, 1, 1, 1, 1]  # the cache is used although the published config says otherwise
    handle.remove()
    assert torch.equal(model.generate(prompt, use_cache=False, **options), expected)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), prompt], 1)
    mask = (torch.arange(7) >= 3).long()[None]
    assert torch.equal(model.generate(padded, attention_mask=mask, **options)[:, 3:], expected)
    beams = model.generate(padded, attention_mask=mask, num_beams=3, **options)
    assert torch.equal(beams[:, 3:], model.generate(prompt, num_beams=3, use_cache=False, **options))
    assert torch.equal(model.generate(prompt, cache_implementation="static", **options), expected)


def test_published_directory_loads_without_remote_code(tmp_path):
    from safetensors.torch import load_file, save_file

    model = build()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert "lm_head.weight" not in weights
    (tmp_path / "config.json").write_text(json.dumps(HUB_CONFIG), encoding="utf-8")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False, output_loading_info=True)
    assert type(loaded) is MosaicGPTForCausalLM
    assert not any(info.values()), info
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    rows = ids(1, 5)
    assert torch.equal(loaded(rows).logits, model(rows).logits)

    loaded.save_pretrained(tmp_path / "again")
    assert set(load_file(tmp_path / "again/model.safetensors")) == set(weights)
    config = AutoConfig.from_pretrained(tmp_path / "again")
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (32, 3, 4)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.bfloat16)
    assert again.dtype == torch.bfloat16 and again(rows).logits.isfinite().all()


def test_published_size_and_keys():
    with torch.device("meta"):
        model = MosaicGPTForCausalLM(
            MosaicGPTConfig(
                d_model=2048,
                n_heads=16,
                n_layers=24,
                vocab_size=50432,
                alibi=True,
                attn_qk_ln=True,
                no_bias=True,
            )
        )
    block = {
        "ln_1": (2048,),
        "attn.Wqkv": (6144, 2048),
        "attn.q_ln": (2048,),
        "attn.k_ln": (2048,),
        "attn.out_proj": (2048, 2048),
        "ln_2": (2048,),
        "mlp.mlp_up": (8192, 2048),
        "mlp.mlp_down": (2048, 8192),
    }
    expected = {f"transformer.blocks.{n}.{k}.weight": s for n in range(24) for k, s in block.items()}
    expected |= {"transformer.wte.weight": (50432, 2048), "transformer.ln_f.weight": (2048,)}
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes == expected and len(shapes) == 194
    assert sum(p.numel() for p in model.parameters()) == 1_311_442_944
    assert set(model.state_dict()) - set(shapes) == {"lm_head.weight"}  # the same tensor under its second name


@torch.no_grad()
def test_half_precision_keeps_distances_exact():
    """At length 600 bf16 cannot hold every index; a distance counted from the query stays right nearby."""
    model = build(max_seq_len=1024)
    rows = ids(1, 600)
    exact = model(rows).logits
    error = (model.to(torch.bfloat16)(rows).logits.float() - exact).abs().mean()
    assert error < 0.05 * exact.abs().mean()


@torch.no_grad()
def test_autocast_and_length_beyond_training():
    model, rows = build(max_seq_len=8), ids(1, 12)
    exact = model(rows).logits  # ALiBi extrapolates
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(rows).logits
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), exact, atol=0.2, rtol=0.1)
    with pytest.raises(ValueError, match=r"12 .*8"):
        build(max_seq_len=8, alibi=False)(rows)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"prefix_lm": True}, "prefix_lm"),
        ({"attn_uses_sequence_id": True}, "attn_uses_sequence_id"),
        ({"tie_word_embeddings": False}, "embedding"),
        ({"n_heads": 5}, "d_model=32.*n_heads=5"),
        ({"logit_scale": "sqrt"}, "inv_sqrt_d_model"),
        ({"embedding_fraction": 0}, "fraction"),
    ],
)
def test_unsupported_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_bad_calls_are_refused():
    model, rows = build(), ids(2, 4)
    cache = model(rows).past_key_values
    with pytest.raises(ValueError, match=r"attention_mask.*\(2, 1\).*\(2, 5\)"):
        model(rows[:, :1], attention_mask=torch.ones(2, 1), past_key_values=cache)
    with pytest.raises(ValueError, match=r"input_ids.*inputs_embeds"):
        model()
