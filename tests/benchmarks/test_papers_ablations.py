"""The parts that take a Flamingo's place in benchmarks/papers_ablations, and the table of what they are worth."""

import pytest
import torch

from benchmarks.papers_ablations import parts, table
from benchmarks.papers_ablations.__main__ import remaining
from benchmarks.papers_ablations.data import NAMING, made_over
from benchmarks.papers_ablations.variants import INTERLEAVED, MISALIGNED, PAIRS, VARIANTS
from flamboyance.model.resampler import PerceiverResampler


@pytest.mark.parametrize(("kind", "mixes"), [(parts.PatchMLP, False), (parts.PatchTransformer, True)])
def test_other_resamplers_have_a_vector_for_each_cell(kind, mixes):
    torch.manual_seed(0)
    resampler = PerceiverResampler(12, depth=2, heads=2, dim_head=8, latents=6, width=16)
    resampler.__class__ = kind
    cells = torch.randn(2, 1, 6, 12)
    out = resampler(cells)
    assert out.shape == (2, 6, 16)
    cells[0, 0, 2] += 1
    changed = (resampler(cells) - out).abs().amax(-1) > 1e-6
    assert changed[0].tolist() == [mixes or cell == 2 for cell in range(6)] and not changed[1].any()


def test_documents_are_made_over():
    given = [{"text": "<image>a<|endofchunk|><image>b<|endofchunk|>", "images": ["A", "B"]} for _ in range(30)]
    made = {name: [fields for _, fields in made_over(name, iter(given))] for name in (PAIRS, INTERLEAVED, MISALIGNED)}
    assert len(made[PAIRS]) == 60
    assert made[PAIRS][1]["json"] == b'{"text": "<image>b<|endofchunk|>", "images": ["B"]}'
    assert len(set(map(str, made[INTERLEAVED]))) == 1 and len(set(map(str, made[MISALIGNED]))) == 2


def training(variant, seed, right, columns=tuple(table.COLUMNS)):
    rows = [{"task": task, "shots": shots, "right": right, "total": 100} for task, shots in columns]
    return {"variant": variant, "seed": seed, "steps": 200, "trained": 7e6, "tflop": 0.25, "rows": rows}


def test_what_was_not_asked_everything_is_trained_again():
    rows = [training("mlp", 0, 30), training("late", 0, 30, columns=[(NAMING, 0)])]
    left = remaining(rows, ["mlp", "late", "middle"], [0, 1], 200)
    assert left == [("late", 0), ("middle", 0), ("mlp", 1), ("late", 1), ("middle", 1)]
    assert len(remaining(rows, ["mlp"], [0], 100)) == 1
    line = table.markdown(rows).splitlines()[3]
    assert line == f"| {VARIANTS['late'].title} | 30% (22%–40%) |  |  | 1 | 7.0 | 0.25 |  |"
    assert [len(axes.patches) for axes in table.figure(rows).axes] == [2, 1, 1]


def test_the_table_has_means_over_seeds_beside_what_the_papers_found():
    text = table.markdown([training("mlp", 0, 30), training("baseline", 0, 90), training("baseline", 1, 60)])
    lines = text.splitlines()
    assert lines[2].startswith(f"| {VARIANTS['baseline'].title} | 75% (60%–90%) |")
    assert lines[4].startswith(f"| {VARIANTS['mlp'].title} | 30% (22%–40%) |") and VARIANTS["mlp"].paper in lines[4]
    drawn = table.figure([training("mlp", 0, 30), training("baseline", 0, 90)])
    assert [text.get_text() for text in drawn.axes[0].get_yticklabels()] == [
        VARIANTS[name].title for name in ("mlp", "baseline")
    ]
    assert [[bar.get_width() for bar in axes.patches] for axes in drawn.axes] == [[30, 90]] * len(table.COLUMNS)
