"""A conversation is the same text as one prompt, and computes only what is new."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor, load_mini
from flamboyance.cli import main
from flamboyance.commands.chat import parts_of
from flamboyance.conversation import OPENING, Conversation, answer_of
from flamboyance.images import ImageError
from tests.tiny import save_tiny_flamingo

TURNS = [("what is this ?", 1), ("a red cat", 0), ("what", 2), ("yes", 0), ("is this a dog ?", 1)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_flamingo(tmp_path_factory.mktemp("talk"), max_frames=4)


@pytest.fixture(scope="module")
def parts(directory: Path) -> tuple[Any, Any]:
    return FlamingoForConditionalGeneration.from_pretrained(directory), FlamingoProcessor.from_pretrained(directory)


def media(count: int) -> list[Any]:
    """Pictures, and one video of three frames."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)) for _ in range(count + 2)]
    return [pictures[0], pictures[-3:], *pictures[1 : count - 1]]


@pytest.mark.parametrize("which", ["tiny", "mini"])
def test_five_turns_are_one_prompt(which: str, parts: tuple[Any, Any]) -> None:
    model, processor = parts if which == "tiny" else load_mini()
    shown = media(4) if which == "tiny" else [medium for medium in media(5) if not isinstance(medium, list)]
    talk, given = Conversation(model, processor), 0
    for text, count in TURNS:
        before = talk.text
        new = shown[given : given + count]
        answer = talk.say(text, new, max_new_tokens=6)
        given += count
        prompt = f"{before}User: {'<image>' * count}{text}\nFlamingo:"
        inputs = processor([prompt], [shown[:given]])
        afresh = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs.input_ids.shape[1] :]
        assert answer == answer_of(afresh.tolist(), processor)
        assert talk.text == f"{prompt} {answer}\n"
    assert talk.text.startswith(OPENING) and len(talk.media) == given
    talk.reset()
    assert talk.text == f"{OPENING}\n" and not talk.media


def test_a_model_that_changes_reads_the_conversation_again(directory: Path) -> None:
    model, processor = (
        kind.from_pretrained(directory) for kind in (FlamingoForConditionalGeneration, FlamingoProcessor)
    )
    talk = Conversation(model, processor)
    talk.say("what is this ?", media(1), max_new_tokens=4)
    with torch.no_grad():
        for parameter in (*model.resampler.parameters(), *model.cross_attention.parameters()):
            parameter.mul_(-1.5)
    fresh = Conversation(model, processor)
    fresh.text, fresh.media = talk.text, talk.media
    assert talk.say("what", max_new_tokens=6) == fresh.say("what", max_new_tokens=6)


def test_only_new_tokens_and_media_are_computed(parts: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = parts
    talk = Conversation(model, processor, opening="a red cat " * 40)
    tokens, pictures = [], []
    encode = model.encode_media

    def watched(_: Any, given: tuple[Any, ...], options: dict[str, Any]) -> None:
        tokens.append((given[0] if given else options["input_ids"]).shape[1])

    def counted(pixels: Any, *given: Any) -> Any:
        pictures.append(len(pixels))
        return encode(pixels, *given)

    monkeypatch.setattr(model, "encode_media", counted)
    hook = model.register_forward_pre_hook(watched, with_kwargs=True)
    talk.say("what is this ?", media(2)[:1], max_new_tokens=3)
    first = max(tokens)
    tokens.clear()
    talk.say("yes", media(3)[2:], max_new_tokens=3)
    hook.remove()
    assert first > 120 and max(tokens) < 30 and pictures == [1, 1]


def test_a_turn_that_fails_changes_nothing(parts: tuple[Any, Any], tmp_path: Path) -> None:
    talk = Conversation(*parts)
    talk.say("what", media(2)[:1], max_new_tokens=2)
    before = talk.text
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ImageError):
        talk.say("and this", [tmp_path / "bad.png"])
    for text, message in (("", "text is empty"), ("a<image>b", "'<image>'"), ("a " * 600, "positions")):
        with pytest.raises(ValueError, match=message):
            talk.say(text)
    assert talk.text == before and len(talk.media) == 1
    assert isinstance(talk.say("yes", max_new_tokens=2), str)


def test_paths_are_found_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "my clip.mp4", "plain"):
        Path(name).write_bytes(b"x")
    assert parts_of("What is a.png ?") == ("What is ?", [Path("a.png")])
    assert parts_of("""'my clip.mp4' and @plain @"a.png" it's "so" e.g. png.""") == (
        """and it's "so" e.g. png.""",
        [Path("my clip.mp4"), Path("plain"), Path("a.png")],
    )
    assert parts_of("What is in a.png?") == ("What is in?", [Path("a.png")])
    assert parts_of("a.png, please, and @plain!") == (", please, and!", [Path("a.png"), Path("plain")])
    for line, text in (
        ('What is in "a.png"?', "What is in?"),
        ("What happens in 'my clip.mp4'?", "What happens in?"),
        ('see "my clip.mp4".', "see."),
        ('@"my clip.mp4"? why', "? why"),
        ("compare (a.png) with", "compare with"),
        ("is it [@plain], or", "is it, or"),
        ("what is a.png's colour", "what is 's colour"),
        ("look at a.png…", "look at…"),
        ("(as in a.png)", "(as in)"),
    ):
        found, paths = parts_of(line)
        assert (found, len(paths)) == (text, 1), line
    assert parts_of('"a.png" "plain"!') == ('"plain"!', [Path("a.png")])  # no suffix, no @: words
    for line in ("Are there ~5 cats?", "~nobody", "w" * 300, f"{'w' * 300}?"):
        assert parts_of(line) == (line, [])
    Path("~red.png").write_bytes(b"x")
    assert parts_of("what is ~red.png?") == ("what is?", [Path("~red.png")])
    Path("odd.png.").write_bytes(b"x")
    assert parts_of("@odd.png.") == ("", [Path("odd.png.")])
    for line in (
        "what is @gone.png",
        "what is gone.png",
        "what is gone.png?",
        "'gone.png'",
        '"my gone.png"?',
        "(gone.png)",
    ):
        with pytest.raises(FileNotFoundError, match=r"no such image or video: (my )?gone\.png(;|$)"):
            parts_of(line)


def test_the_command(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], parts: Any
) -> None:
    pictures = media(3)
    names = []
    for number, picture in enumerate((pictures[0], pictures[2])):
        picture.save(tmp_path / f"{number}.png")
        names.append(str(tmp_path / f"{number}.png"))
    lines = [f"what is this ? {names[0]}", "", "@gone.png", "/nonsense", "yes", f"{names[1]} a dog", "/prompt", "/new"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*lines, "what", "/quit", "never"]) + "\n"))
    assert main(["chat", "--model", str(directory), "--max-new-tokens", "4", "--opening", "none"]) == 0
    shown = capsys.readouterr()
    talk = Conversation(*parts, opening="")
    expected = [talk.say("what is this ?", names[:1], max_new_tokens=4), talk.say("yes", max_new_tokens=4)]
    expected.append(talk.say("a dog", names[1:], max_new_tokens=4))
    expected += talk.text.splitlines()
    talk.reset()
    expected.append(talk.say("what", max_new_tokens=4))
    assert shown.out.splitlines() == expected
    assert "no such image or video: gone.png" in shown.err and "unknown command '/nonsense'" in shown.err
