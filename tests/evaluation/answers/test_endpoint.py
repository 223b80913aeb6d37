"""A served model: its chats, failures that pass, budgets, replies on disk, and errors that name what is wrong."""

import base64
import io
import json
import signal
from pathlib import Path

import pytest
from PIL import Image

from flamboyance.cli import main
from flamboyance.evaluation import run
from flamboyance.evaluation.answers.budget import Budget, BudgetSpentError
from flamboyance.evaluation.answers.endpoint import EndpointAnswers, EndpointError, _choice
from flamboyance.evaluation.answers.http_client import Client, RefusedError
from flamboyance.evaluation.run import Settings
from flamboyance.images import load_image
from tests.evaluation.answers.scripted_server import chat, serving
from tests.evaluation.small_tasks import captions, draw, questions
from tests.processes import Child, until


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write into the working folder, if no --output says where."""
    monkeypatch.chdir(tmp_path)


def endpoint(server, folder: Path | None = None, budget: Budget | None = None, timeout: float = 30, **options):
    client = Client(server.url, server.key, timeout, budget=budget, first_wait=0.01)
    return EndpointAnswers(client, "tiny", folder and folder / ".replies", **{"concurrency": 4, **options})


def evaluated(task, answers, output: Path, **settings):
    about = {"model": answers.describe(), "protocol": "papers", "fixed": {}, "tasks": {}}
    options = {"shots": (2,), "seeds": (0,), "batch_size": 8, **settings}
    try:
        run.evaluate([task], answers, Settings(output, **options), about, say=lambda _: None)
    finally:
        answers.close()
    return rows(output / task.name / "2-random-0")


def rows(folder: Path):
    lines = [one for file in folder.glob("predictions*.jsonl") for one in file.read_text("utf-8").splitlines()]
    return {row["id"]: row for row in map(json.loads, lines)}


def picture(part) -> Image.Image:
    kind, _, content = part["image_url"]["url"].partition(";base64,")
    assert kind.startswith("data:image/")
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_a_chat_shows_demonstrations_as_turns_and_the_pictures_as_they_are(tmp_path):
    task = questions(tmp_path / "data", labels=None)
    with serving() as server:
        found = evaluated(task, endpoint(server), tmp_path / "run")
    assert len(found) == 9 == len(server.requests) == server.sent
    query = {one.id: one for one in task.queries}
    for body in server.requests:
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("tiny", 20, 0)
        assert [one["role"] for one in body["messages"]] == ["user", "assistant", "user", "assistant", "user"]
    shown = {row["generated"]: row for row in found.values()}
    for body in server.requests:
        row = shown[server.answer(body)]
        *turns, last = body["messages"]
        for turn, answer, one in zip(turns[::2], turns[1::2], row["demonstrations"], strict=True):
            image, text = turn["content"]
            assert text["text"] == f"Question:{one['asked'][0]} Short answer:" and answer["content"] == one["answer"]
            assert picture(image).tobytes() == load_image(one["image"]).tobytes()
        assert picture(last["content"][0]).tobytes() == load_image(query[row["id"]].image).tobytes()


def test_zero_shots_show_texts_alone(tmp_path):
    with serving() as server:
        evaluated(captions(tmp_path / "data", queries=2), endpoint(server), tmp_path / "run", shots=(0,))
    for body in server.requests:
        kinds = [[part["type"] for part in one["content"]] for one in body["messages"] if one["role"] == "user"]
        assert kinds == [["text"], ["text"], ["image_url", "text"]]


def test_turned_and_transparent_pictures_are_sent_as_a_local_model_sees_them(tmp_path):
    from flamboyance.images.data_url import data_url

    exif = Image.Exif()
    exif[0x0112] = 6
    (drawn,) = draw(tmp_path, 1, 0)
    content = Image.open(drawn)
    content.crop((0, 0, 16, 8)).save(tmp_path / "turned.jpg", exif=exif)
    content.convert("RGBA").save(tmp_path / "clear.png")
    content.convert("P").save(tmp_path / "palette.gif")
    for name in ("0.png", "turned.jpg", "clear.png", "palette.gif"):
        sent = picture({"image_url": {"url": data_url(tmp_path / name)}})
        local = load_image(tmp_path / name)
        assert (sent.mode, sent.size, sent.tobytes()) == ("RGB", local.size, local.tobytes()), name
    assert data_url(drawn).endswith(base64.b64encode(drawn.read_bytes()).decode())


FAILURES = {
    "busy": (429, {"Retry-After": "0"}, b'{"error": {"message": "slow down"}}'),
    "failed": 500,
    "overloaded": 503,
    "no JSON": "not json",
    "cut off": "cut off",
    "hung up": "hang up",
    "no choices": (200, {}, b'{"choices": []}'),
    "half an answer": (200, {}, b'{"choices": [{"message": {"content": "a re'),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=list(FAILURES))
def test_failures_pass(failure, tmp_path):
    task = captions(tmp_path / "data", queries=4)
    with serving() as server:
        expected = evaluated(task, endpoint(server), tmp_path / "good")
        server.failures = [failure, failure, failure]
        found = evaluated(task, endpoint(server), tmp_path / "bad")
    assert found == expected
    assert server.sent == 4 + 4 + 3


def test_slow_answers_are_asked_for_again(tmp_path):
    task = captions(tmp_path / "data", queries=3)
    with serving() as server:
        server.failures = [60.0]
        found = evaluated(task, endpoint(server, timeout=1.0), tmp_path / "run")
        assert len(found) == 3 and server.sent >= 4  # others may be slow too, on a busy machine


def test_a_busy_server_gets_the_pause_it_asks_for_from_all_threads(tmp_path, monkeypatch):
    with serving() as server:
        client = Client(server.url, first_wait=0.01)
        slept = []
        monkeypatch.setattr(client, "_sleep", lambda seconds: slept.append(seconds))
        monkeypatch.setattr("time.monotonic", lambda: 100.0 + sum(slept))
        server.failures = [(429, {"Retry-After": "30"}, b"")]
        client.post("chat/completions", {"model": "tiny", "messages": []}, lambda _: None)
        assert 30 <= slept[0] < 31
        slept.clear()
        client._not_before = 100.0 + 5
        client.post("chat/completions", {"model": "tiny", "messages": []}, lambda _: None)
        assert slept == [5.0]


def test_waits_grow_and_differ(monkeypatch):
    with serving() as server:
        client = Client(server.url, attempts=8, first_wait=1.0)
        slept = []
        monkeypatch.setattr(client, "_sleep", lambda seconds: slept.append(seconds))
        server.failures = [500] * 8
        with pytest.raises(RefusedError, match=r"HTTP 500.*in 8 attempts"):
            client.post("chat/completions", {"model": "tiny", "messages": []}, lambda _: None)
        assert len(slept) == 7 and all(2**i / 2 <= wait <= min(60, 2**i) for i, wait in enumerate(slept))


def test_requests_are_sent_at_the_same_time(tmp_path):
    def answer(_):
        if len(server.requests):  # the first is sent alone
            until(lambda: server.at_once == 4)
        return "a cat"

    with serving(answer) as server:
        found = evaluated(captions(tmp_path / "data"), endpoint(server), tmp_path / "run")
    assert server.at_once == 4 and {row["answer"] for row in found.values()} == {"a cat"}


def test_nothing_is_asked_twice(tmp_path):
    task = captions(tmp_path / "data")
    with serving() as server:
        first = evaluated(task, endpoint(server, tmp_path / "run"), tmp_path / "run")
        asked = server.sent
        for file in (tmp_path / "run" / "captions").rglob("*"):
            file.is_file() and file.unlink()
        again = endpoint(server, tmp_path / "run")
        assert evaluated(task, again, tmp_path / "run") == first
        assert (server.sent, again.known, again.asked) == (asked, 9, 0)
        # A damaged reply is asked for again, and only that one.
        (tmp_path / "run" / "captions" / "2-random-0" / "score.json").unlink()
        (tmp_path / "run" / "captions" / "2-random-0" / "predictions.jsonl").unlink()
        damaged = min((tmp_path / "run" / ".replies").rglob("*.json"))
        damaged.write_bytes(damaged.read_bytes()[:20])
        assert evaluated(task, endpoint(server, tmp_path / "run"), tmp_path / "run") == first
        assert server.sent == asked + 1


def test_equal_requests_are_sent_once(tmp_path):
    one = captions(tmp_path / "data", queries=1)
    task = type(one)(**{**vars(one), "queries": [one.queries[0]] * 1, "support": one.support[:2]})
    with serving() as server:
        answers = endpoint(server, tmp_path)
        prompts = [run.Prompt.of(task, 0, (0, 1), 2) for _ in range(6)]
        assert len(set(answers.generate(prompts))) == 1 == server.sent
        answers.close()


def test_a_budget_of_requests_stops_and_the_same_run_resumes(tmp_path):
    task = captions(tmp_path / "data")
    with serving() as server:
        answers = endpoint(server, tmp_path, Budget(requests=5))
        with pytest.raises(BudgetSpentError, match="5 requests"):
            evaluated(task, answers, tmp_path / "run")
        assert server.sent == 5 and answers.known == 0
        assert len(rows(tmp_path / "run" / "captions" / "2-random-0")) == 5
        assert len(evaluated(task, endpoint(server, tmp_path), tmp_path / "run")) == 9
        assert server.sent == 9


def test_a_budget_of_tokens_is_kept(tmp_path):
    with serving() as server:
        task = captions(tmp_path / "data")
        budget = Budget(tokens=45_000)  # a reply takes 10,007
        with pytest.raises(BudgetSpentError, match="45,000 tokens"):
            evaluated(task, endpoint(server, tmp_path, budget), tmp_path / "run")
        assert budget.used == 40_028 and server.sent == 4
        server.answer = lambda body: {"choices": [{"message": {"content": "a cat"}}]}
        with pytest.raises(ValueError, match="max-requests"):
            evaluated(task, endpoint(server, None, Budget(tokens=45_000)), tmp_path / "other")


# Errors ---------------------------------------------------------------------------------------------------------------


def one_line(capsys) -> str:
    error = [line for line in capsys.readouterr().err.splitlines() if "requests, " not in line]
    assert len(error) == 1, error
    return error[0]


def command(server, data: Path, output: Path, *options: str) -> int:
    words = ["--model", server.url, "--name", "tiny", "--shots", "2", "--seeds", "0", "--output", str(output)]
    return main(["evaluate", str(data), *words, *options])


@pytest.fixture
def pets(tmp_path) -> Path:
    draw(tmp_path / "pets", 6, 0)
    lines = [f"pets/{i}.png,what is it?,{('cat', 'dog')[i % 2]}" for i in range(6)]
    (tmp_path / "pets.csv").write_text("\n".join(["image,question,answer", *lines]) + "\n", encoding="utf-8")
    return tmp_path / "pets.csv"


def test_a_wrong_key_is_one_line_and_the_key_is_never_written(pets, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-wrong-secret")
    with serving() as server:
        server.key = "sk-right-secret"
        assert command(server, pets, tmp_path / "run", "--key-variable", "MY_KEY") == 2
        line = one_line(capsys)
        assert "MY_KEY" in line and server.url in line and "wrong-secret" not in line
        assert server.sent == 1
        monkeypatch.setenv("MY_KEY", "sk-right-secret")
        assert command(server, pets, tmp_path / "run", "--key-variable", "MY_KEY") == 0
        assert server.keys == {"Bearer sk-wrong-secret", "Bearer sk-right-secret"}
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert len(files) > 8 and not any(b"secret" in file.read_bytes() for file in files)
    assert "secret" not in "".join(capsys.readouterr())


def test_without_a_key_the_line_says_how_to_give_one(pets, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving() as server:
        server.key = "sk-right"
        assert command(server, pets, tmp_path / "run") == 2
        assert "set OPENAI_API_KEY" in one_line(capsys)
    assert command(server, pets, tmp_path / "run", "--key-variable", "NO_SUCH") == 2
    assert "NO_SUCH" in one_line(capsys)


def test_an_unknown_model_is_one_line_with_those_that_there_are(pets, tmp_path, capsys):
    with serving() as server:
        server.names = ["small", "large"]
        assert command(server, pets, tmp_path / "run") == 2
        line = one_line(capsys)
        assert "'tiny'" in line and "small, large" in line
        words = ["evaluate", str(pets), "--model", server.url, "--output", str(tmp_path / "run")]
        words += ["--shots", "1", "--seeds", "0"]
        assert main(words) == 2
        assert "small, large" in one_line(capsys) and server.sent == 1
        server.names = ["small"]
        assert main(words) == 0
        assert server.requests[0]["model"] == "small"


def test_a_model_for_texts_alone_is_one_line(pets, tmp_path, capsys):
    with serving() as server:
        server.texts_only = True
        assert command(server, pets, tmp_path / "run") == 2
        assert "takes no images" in one_line(capsys)


@pytest.mark.parametrize("shots", ["2", "0,2"])
def test_a_server_that_takes_fewer_images_is_one_line(shots, pets, tmp_path, capsys):
    """As vLLM, which took one image of a request by default."""
    with serving() as server:
        server.most_images = 1
        assert command(server, pets, tmp_path / "run", "--shots", shots) == 2
        (line,) = [one for one in capsys.readouterr().err.splitlines() if "refuses a request with 3 images" in one]
        for word in ("At most 1 image(s)", "--limit-mm-per-prompt", "fewer --shots"):
            assert word in line, line
        server.most_images = 3
        assert command(server, pets, tmp_path / "run", "--shots", shots) == 0


def test_a_server_that_leaves_images_out_is_one_line(tmp_path):
    """As `transformers serve` does for a language model."""

    def answer(body):
        texts = [
            one["content"] if isinstance(one["content"], str) else one["content"][-1]["text"]
            for one in body["messages"]
        ]
        prompt = sum(len(text.split()) + 4 for text in texts)
        return chat("a cat") | {"usage": {"prompt_tokens": prompt, "completion_tokens": 1}}

    with serving(answer) as server, pytest.raises(EndpointError, match="takes no images"):
        evaluated(captions(tmp_path / "data", queries=2), endpoint(server), tmp_path / "run")


@pytest.mark.parametrize("tokens", [0, 1, 20, 30, 100])
def test_a_server_that_counts_tokens_wrongly_is_not_taken_for_blind(tokens, tmp_path):
    with serving(lambda _: chat("a cat") | {"usage": {"prompt_tokens": tokens, "completion_tokens": 1}}) as server:
        found = evaluated(captions(tmp_path / "data", queries=2), endpoint(server), tmp_path / "run")
    assert len(found) == 2


def test_a_server_that_is_not_there_is_one_line(pets, tmp_path, capsys):
    with serving() as server:
        pass
    assert command(server, pets, tmp_path / "run") == 2
    assert f"{server.url} cannot be reached" in one_line(capsys)
    words = ["evaluate", str(pets), "--name", "x", "--shots", "1", "--output", str(tmp_path / "run"), "--model"]
    assert main([*words, "http://no-such-host.invalid/v1"]) == 2
    assert "no-such-host.invalid" in one_line(capsys)


@pytest.mark.parametrize(
    "url", ["http://", "http://user:secret@host/v1", "http://host:port/v1", "http://h/v1?key=secret"]
)
def test_no_address(url, pets, tmp_path, capsys):
    assert main(["evaluate", str(pets), "--model", url, "--output", str(tmp_path / "run"), "--shots", "1"]) == 2
    assert "secret" not in one_line(capsys)


def test_a_wrong_path_and_a_redirect_are_named(pets, tmp_path, capsys):
    with serving() as server:
        for named in (["--name", "tiny"], []):
            assert main(["evaluate", str(pets), *named, "--model", server.url[:-3], "--shots", "1"]) == 2
            assert "ends in /v1" in one_line(capsys)
        server.failures = [(307, {"Location": "http://elsewhere/v1"}, b"")]
        assert command(server, pets, tmp_path / "run") == 2
        assert "http://elsewhere/v1" in one_line(capsys)


def test_options_of_servers_need_a_server(pets, capsys):
    assert main(["evaluate", str(pets), "--max-requests", "3"]) == 2
    assert "--max-requests" in one_line(capsys)
    assert main(["evaluate", str(pets), "--model", "http://localhost:1/v1", "--beams", "3", "--shots", "1"]) == 2
    assert "--beams" in one_line(capsys)
    assert main(["evaluate", str(pets), "--model", "http://localhost:1/v1", "--quantize", "int8", "--shots", "1"]) == 2
    assert "--quantize" in one_line(capsys)


def test_options_that_a_server_does_not_know_are_left_out_or_renamed(tmp_path):
    task = captions(tmp_path / "data", queries=3)
    with serving() as server:
        server.refused = {
            "max_tokens": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
            "temperature": "Unsupported value: 'temperature' does not support 0 with this model.",
        }
        said = []
        assert len(evaluated(task, endpoint(server, say=said.append), tmp_path / "run")) == 3
        assert all(body["max_completion_tokens"] == 4 and "temperature" not in body for body in server.requests)
        assert server.sent == 5 and len(said) == 1


def test_a_refused_content_is_no_answer(tmp_path):
    task = captions(tmp_path / "data", queries=3)
    with serving() as server:
        server.failures = [(400, {}, b'{"error": {"message": "no", "code": "content_filter"}}')]
        said = []
        found = evaluated(task, endpoint(server, say=said.append), tmp_path / "run")
    assert sorted(row["generated"] == "" for row in found.values()) == [False, False, True] and len(said) == 1


def test_refused_content_has_no_label_before_another():
    """So that the area under a curve can be measured of the other queries."""
    refused = {"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}], "usage": None}
    found = _choice(refused, ("yes", "no"), "logprobs")
    assert found.label == "" and found.scores == (pytest.approx(-0.6931, abs=1e-4),) * 2


# The command ---------------------------------------------------------------------------------------------------------


def test_the_command_reports_and_resumes_with_a_larger_budget(pets, tmp_path, capsys):
    with serving(lambda body: "cat") as server:
        assert command(server, pets, tmp_path / "run", "--max-requests", "4") == 1
        error = capsys.readouterr().err
        assert "4 requests" in error and "4 answers" in error and "resumes" in error
        assert command(server, pets, tmp_path / "run", "--json") == 0
        assert server.sent == 6
        score = json.loads(capsys.readouterr().out)
        assert score["model"] == "tiny" and score["scores"][0]["mean"] == 50.0
        about = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
        assert about["machine"]["device"] == server.url and about["model"] == {"name": "tiny", "kind": "endpoint"}
        assert main(["report", str(tmp_path / "run")]) == 0
    report = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "tiny" in report and "endpoint" in report and "127.0.0.1" in report


def test_a_killed_run_resumes(pets, tmp_path):
    def answer(body):
        if len(server.requests) >= 3 and not killed:
            server.closing.wait(600)
        return "cat"

    killed: list[int] = []
    with serving(answer) as server:
        words = ["--model", server.url, "--name", "tiny", "--shots", "2", "--seeds", "0", "--concurrency", "1"]
        output = str(tmp_path / "run")
        process = Child(main, ["evaluate", str(pets), *words, "--output", output], log=tmp_path / "log")
        until(lambda: len(server.requests) == 3 and server.sent == 4, 300)  # starting a process may take long
        assert process.kill() == -signal.SIGKILL, process.printed
        killed.append(1)
        assert command(server, pets, tmp_path / "run") == 0
        assert server.sent == 4 + 3  # the one that was under way is asked again
    assert len(rows(tmp_path / "run" / "pets" / "2-random-0")) == 6
