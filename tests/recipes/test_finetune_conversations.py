"""`train finetune` on conversations: the trained model answers in a chat, and ends its answers."""

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from flamboyance import FlamingoForConditionalGeneration, FlamingoProcessor
from flamboyance.cli import main
from flamboyance.conversation import Conversation
from flamboyance.recipes.arguments import resolve
from flamboyance.recipes.finetune import finetune
from flamboyance.training.loop import train
from tests import tiny
from tests.training.tiny_run import jpeg

COLORS = ("red", "blue", "green")


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model whose tokenizer knows line breaks and the words of a chat."""
    monkeypatch.setattr(tiny, "TEXT", f"{tiny.TEXT} User Flamingo : \n , and")

    def tokenizer() -> PreTrainedTokenizerFast:
        words = ["<unk>", "</s>", *tiny.TEXT.split(" ")]
        made = Tokenizer(models.WordLevel({token: i for i, token in enumerate(dict.fromkeys(words))}, "<unk>"))
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Punctuation()]
        )
        return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>")

    monkeypatch.setattr(tiny, "tiny_tokenizer", tokenizer)
    return tiny.save_tiny_flamingo(tmp_path / "start")


def test_a_model_learns_to_answer_in_a_chat(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    rows = []
    for number in range(24):
        first, second = COLORS[number % 3], COLORS[number // 3 % 3]
        for place, color in enumerate((first, second)):
            (tmp_path / f"{number}-{place}.jpg").write_bytes(jpeg(color, 2 * number + place))
        turns = [("user", "<image>what is this"), ("assistant", f"a {first} square")]
        turns += [("user", "and <image>"), ("assistant", second), ("user", "yes ?"), ("assistant", "yes yes")]
        messages = [{"role": role, "content": text} for role, text in turns]
        rows.append({"messages": messages, "images": [f"{number}-{place}.jpg" for place in (0, 1)]})
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = [f"data={chats}", f"output={tmp_path / 'run'}", f"model={start}", "steps=150", "learning_rate=1e-2"]
    settings += ["batch_size=8", "precision=fp32", "workers=0", "threads=1", "schedule=constant"]
    directory = train(resolve(finetune, settings))
    model = FlamingoForConditionalGeneration.from_pretrained(directory)
    talk = Conversation(model, FlamingoProcessor.from_pretrained(directory))
    shown = []
    for number, color in enumerate(("blue", "red")):
        Image.open(io.BytesIO(jpeg(color, 1000 + number))).save(tmp_path / f"new-{number}.png")
        shown.append(str(tmp_path / f"new-{number}.png"))
    answers = [talk.say("what is this", shown[:1]), talk.say("and", shown[1:]), talk.say("yes ?")]
    assert answers == ["a blue square", "red", "yes yes"]  # not a word more, of the fifty that it may write
    lines = f"what is this {shown[0]}\nand {shown[1]}\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert main(["chat", "--model", str(directory)]) == 0
    assert capsys.readouterr().out.splitlines() == answers[:2]
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    held_out = [line["evaluation/loss"] for line in log if "evaluation/loss" in line]
    assert held_out[-1] < 0.6 * held_out[0] and "evaluation/exact" not in log[-1]
