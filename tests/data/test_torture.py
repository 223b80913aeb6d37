"""Everything that goes wrong in data from the web costs the documents that it hits, and is counted by reason."""

import itertools
import json
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from flamboyance import FlamingoProcessor
from flamboyance.data.loader import Loader, merge_states
from flamboyance.images import ImageProcessor
from tests.data.torture import Torture, write
from tests.tiny import tiny_tokenizer

PROCESSOR = FlamingoProcessor(ImageProcessor.clip(16), tiny_tokenizer())


@pytest.fixture(scope="module")
def torture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Torture]:
    return write(tmp_path_factory.mktemp("torture") / "shards", batch_size=1)


@pytest.mark.parametrize("name", ["pairs", "pages"])
def test_every_drop_is_counted_once_a_pass(torture: dict[str, Torture], name: str) -> None:
    given = torture[name]
    loader = Loader({name: given.source}, PROCESSOR, seed=0, workers=0)
    # An epoch is given to its end before the next begins: two of them have been dropped when the third one gives its
    # first document, and no more than two when the second gives its last.
    for _ in range(2 * given.documents):
        next(loader)
    last = loader.drops
    next(loader)
    following = loader.drops
    for reason, count in given.drops.items():
        assert last[name, reason] <= 2 * count <= following[name, reason], reason
    assert set(following) == {(name, reason) for reason in given.drops}
    assert sum(last.values()) >= 2 * sum(given.drops.values()) - 5  # few are left for the end


@pytest.mark.parametrize("workers", [0, 2])
def test_both_sources_go_through_and_on(torture: dict[str, Torture], workers: int) -> None:
    sources = {name: one.source for name, one in torture.items()}
    loader = Loader(sources, PROCESSOR, seed=0, workers=workers)
    images: Counter[int] = Counter()
    for item in itertools.islice(loader, 60):
        assert item["pairs"].media_counts == (1,)
        images.update(item["pages"].media_counts)
    assert set(images) == {1, 2, 6}  # of 200 images the first six
    dropped = {reason for _, reason in loader.drops}
    assert dropped == {reason for one in torture.values() for reason in one.drops}
    state = json.loads(json.dumps(merge_states([loader.state()])))
    again = Loader(sources, PROCESSOR, seed=0, workers=workers, state=state)
    for _ in range(5):
        ours, other = next(loader), next(again)
        assert all((ours[name].images == other[name].images).all() for name in sources)
    assert again.drops == loader.drops
    loader.close()
    again.close()


def test_memory_stays_bounded(torture: dict[str, Torture], tmp_path: Path) -> None:
    loader = Loader({name: one.source for name, one in torture.items()}, PROCESSOR, seed=0, workers=0)
    tracemalloc.start()
    for _ in range(40):
        next(loader)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20
