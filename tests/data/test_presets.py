"""The presets hold the published values (facts 4.4 and 8)."""

import dataclasses
import json
from pathlib import Path

import pytest

from flamboyance.data.formats.mmc4 import MMC4
from flamboyance.data.formats.pairs import Pairs
from flamboyance.data.presets import flamingo, openflamingo


def test_openflamingo() -> None:
    sources = openflamingo("laion.tar", "mmc4.tar")
    laion, mmc4 = sources["laion"], sources["mmc4"]
    assert isinstance(laion, Pairs) and isinstance(mmc4, MMC4)
    assert (laion.batch_size, laion.weight, laion.max_tokens, laion.flip, laion.leading_space) == (64, 0.2, 32, 0.5, 0)
    assert (mmc4.batch_size, mmc4.weight, mmc4.max_tokens, mmc4.flip) == (32, 1.0, 256, 0.5)
    assert (mmc4.max_images, mmc4.min_images, mmc4.reject_single) == (6, 1, 0.5)
    assert (mmc4.similarity_threshold, mmc4.assignment, mmc4.min_image_bytes) == (0.24, "one_to_one", 11_000)
    assert (mmc4.window, mmc4.next_image, mmc4.protocol) == ("start", 0.0, "aligned")
    # A bare MMC4 is the same.
    assert mmc4 == MMC4(shards=("mmc4.tar",), batch_size=32)


def test_openflamingo_with_sequences_and_its_errors() -> None:
    mmc4 = openflamingo("laion.tar", ("a.tar", "b.tar"), "gpt.tar", batch_size=4, protocol="openflamingo")["mmc4"]
    assert isinstance(mmc4, MMC4)
    assert mmc4.shards == ("a.tar", "b.tar", "gpt.tar")
    assert mmc4.batch_size == 4 and mmc4.protocol == "openflamingo"


def test_flamingo() -> None:
    sources = flamingo("laion.tar", "mmc4.tar", batch_size=256)
    laion, mmc4 = sources["laion"], sources["mmc4"]
    assert isinstance(laion, Pairs) and isinstance(mmc4, MMC4)
    assert (laion.batch_size, laion.weight, laion.max_tokens, laion.leading_space) == (512, 0.2, 32, 0.5)
    assert (mmc4.batch_size, mmc4.weight, mmc4.max_tokens, mmc4.max_images) == (256, 1.0, 256, 5)
    assert (mmc4.window, mmc4.next_image, mmc4.reject_single) == ("random", 0.5, 0.0)
    assert laion.flip == mmc4.flip == 0.5


def test_flamingos_four_parts() -> None:
    sources = flamingo("laion.tar", "mmc4.tar", "captions.tar", ("videos.tar",), batch_size=256)
    weights = {name: source.weight for name, source in sources.items()}
    assert weights == {"laion": 0.2, "captions": 0.2, "videos": 0.03, "mmc4": 1.0}
    assert {name: source.batch_size for name, source in sources.items()} == {
        "laion": 512,
        "captions": 512,
        "videos": 64,
        "mmc4": 256,
    }


@pytest.mark.parametrize("preset", [openflamingo, flamingo])
def test_sources_can_be_written_down(preset) -> None:
    for source in preset("laion-{000..002}.tar", "mmc4.tar").values():
        values = json.loads(json.dumps(dataclasses.asdict(source)))
        values["shards"] = source.shards
        assert type(source)(**values) == source


def test_the_table_in_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.split("## Options")[1].splitlines()]
    rows = [row for row in rows if len(row) == 6 and row[0].startswith("`")]
    assert len(rows) == 17
    plain = {"Pairs": Pairs(shards="", batch_size=1), "MMC4": MMC4(shards="", batch_size=1)}
    made = [{type(s).__name__: s for s in preset("a", "b").values()} for preset in (openflamingo, flamingo)]
    for option, names, *values, _ in rows:
        for name in names.split(", "):
            for told, sources in zip(values, [plain, *made], strict=True):
                if told:
                    assert str(getattr(sources[name], option.strip("`"))) == told, (option, name)
