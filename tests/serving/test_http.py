"""OpenAI's own client talks to a real server, and gets the answers that the model gives offline."""

import contextlib
import json
import threading
import uuid
from dataclasses import replace

import openai
import pytest

import flamboyance as fl
from flamboyance.serving.protocol import TemplateBody
from flamboyance.serving.tasks import read_template
from tests.serving.server import SECONDS, data_url, image_part, running, text_part

CAPTIONED, NEW = fl.examples.demonstrations, fl.examples.queries
OUTPUT = text_part("Output:")


@pytest.fixture(scope="module")
def mini():
    return fl.load_mini()


@pytest.fixture(scope="module")
def server(mini):
    with running(*mini) as one:
        yield one


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=SECONDS) as one:
        yield one


@pytest.fixture(scope="module")
def captions(mini):
    return fl.FewShotTask(*mini, CAPTIONED)(NEW)


def few_shot(query, shots=CAPTIONED):
    messages = []
    for image, caption in shots:
        messages.append({"role": "user", "content": [image_part(image), OUTPUT]})
        messages.append({"role": "assistant", "content": caption})
    return [*messages, {"role": "user", "content": [image_part(query), OUTPUT]}]


def offline(mini, messages, **settings):
    """What `generate` writes after the chat."""
    model, processor = mini
    read = lambda url: {"type": "image", "base64": url.partition(",")[2]}  # noqa: E731
    chat = [
        {
            "role": message["role"],
            "content": message["content"]
            if isinstance(message["content"], str)
            else [part if part["type"] == "text" else read(part["image_url"]["url"]) for part in message["content"]],
        }
        for message in messages
    ]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True)
    out = model.generate(**inputs, do_sample=False, **settings)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(out).strip(), len(out), inputs["input_ids"].shape[1]


def test_a_plain_answer_is_that_of_generate(client, mini, captions):
    for query, caption in zip(NEW, captions, strict=True):
        answer = client.chat.completions.create(model="mini", messages=few_shot(query))
        text, count, prompt = offline(mini, few_shot(query), max_new_tokens=64)
        (choice,) = answer.choices
        assert choice.message.content == text == caption and choice.finish_reason == "stop"
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, count)
        assert answer.object == "chat.completion" and answer.model == "mini"


def test_several_images_with_texts_between_them(client, mini):
    content = [text_part("the first"), image_part(NEW[0]), text_part("and the second"), image_part(NEW[1]), OUTPUT]
    messages = [{"role": "system", "content": "captions"}, {"role": "user", "content": content}]
    answer = client.chat.completions.create(model="mini", messages=messages, max_tokens=7)
    assert answer.choices[0].message.content == offline(mini, messages, max_new_tokens=7)[0]
    swapped = [content[0], content[3], content[2], content[1], OUTPUT]
    other = client.chat.completions.create(model="mini", messages=[{"role": "user", "content": swapped}], max_tokens=7)
    assert (
        other.choices[0].message.content == offline(mini, [{"role": "user", "content": swapped}], max_new_tokens=7)[0]
    )


def test_a_streamed_answer_is_the_plain_one(client, captions):
    settings = {"logprobs": True, "top_logprobs": 2, "n": 2}
    plain = client.chat.completions.create(model="mini", messages=few_shot(NEW[0]), **settings)
    chunks = list(
        client.chat.completions.create(
            model="mini",
            messages=few_shot(NEW[0]),
            stream=True,
            stream_options={"include_usage": True},
            **settings,
        )
    )
    *pieces, end = chunks
    assert end.usage == plain.usage and not end.choices
    assert len({chunk.id for chunk in chunks}) == 1
    for index in (0, 1):
        own = [chunk.choices[0] for chunk in pieces if chunk.choices[0].index == index]
        assert own[0].delta.role == "assistant" and own[-1].finish_reason == "stop"
        assert "".join(one.delta.content or "" for one in own) == captions[0]
        assert len(own) >= 4, "a piece for each word"
        tokens = [token for one in own for token in one.logprobs.content]
        wanted = plain.choices[index].logprobs.content
        assert [token.token for token in tokens] == [token.token for token in wanted] == captions[0].split()
        for found, other in zip(tokens, wanted, strict=True):
            assert found.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert found.top_logprobs[0].token == found.token and len(found.top_logprobs) == 2


def test_settings_of_generation(client, mini):
    messages = [{"role": "user", "content": "a large"}]
    ask = lambda **settings: client.chat.completions.create(model="mini", messages=messages, **settings)  # noqa: E731
    whole = ask(max_tokens=6).choices[0]
    words = whole.message.content.split()
    assert whole.finish_reason == "length" and len(words) == 6
    assert whole.message.content == offline(mini, messages, max_new_tokens=6)[0]
    assert ask(max_completion_tokens=2).choices[0].message.content == " ".join(words[:2])
    stop = next(word for word in words if word != words[0])
    stopped = ask(max_tokens=6, stop=[stop, "zzz"]).choices[0]
    assert stopped.message.content == " ".join(words[: words.index(stop)]) and stopped.finish_reason == "stop"
    drawn = [ask(max_tokens=6, temperature=2.0, top_p=0.9, seed=4, n=3) for _ in range(2)]
    texts = [[choice.message.content for choice in answer.choices] for answer in drawn]
    assert texts[0] == texts[1] and len(set(texts[0])) > 1


def test_models_are_listed(client):
    assert "mini" in [model.id for model in client.models.list()]
    assert client.models.retrieve("mini").owned_by == "flamboyance"
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "no model 'gpt-4'"),
        ({"model": "mini:nothing"}, openai.NotFoundError, "no task 'nothing'"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, openai.BadRequestError, "messages.0.role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, openai.BadRequestError, "the last message"),
        ({"messages": [{"role": "user", "content": "an <image>"}]}, openai.BadRequestError, "<image>"),
        ({"messages": [{"role": "user", "content": "a " * 1100}]}, openai.BadRequestError, "too long"),
        ({"temperature": "hot"}, openai.BadRequestError, "temperature"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"top_p": 0}, openai.BadRequestError, "top_p"),
        ({"n": 100}, openai.BadRequestError, "n is 100"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "512"),
        ({"max_tokens": 3, "max_completion_tokens": 3}, openai.BadRequestError, "both given"),
        ({"stop": ["a"] * 5}, openai.BadRequestError, "stop"),
        ({"stop": [""]}, openai.BadRequestError, "stop"),
        ({"top_logprobs": 3}, openai.BadRequestError, "logprobs"),
        ({"frequency_penalty": 0.5}, openai.BadRequestError, "frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, openai.BadRequestError, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "tools"),
        ({"extra_body": {"best_of": 3}}, openai.BadRequestError, "best_of"),
        ({"stream_options": {"include_usage": True}}, openai.BadRequestError, "stream"),
    ],
)
def test_mistakes_are_errors_of_the_client(client, change, kind, says):
    settings = {"model": "mini", "messages": [{"role": "user", "content": "a"}]} | change
    with pytest.raises(kind, match=says) as raised:
        client.chat.completions.create(**settings)
    assert raised.value.type == ("not_found_error" if kind is openai.NotFoundError else "invalid_request_error")


def make_task(server, name, template="caption", shots=None):
    demonstrations = shots or [{"image": data_url(image), "text": text} for image, text in CAPTIONED]
    return server.ask("POST", "/v1/tasks", {"name": name, "template": template, "demonstrations": demonstrations})


def test_a_task_is_uploaded_once_and_used_by_name(server, client, captions):
    status, _, made = make_task(server, "shapes")
    assert status == 201 and made["model"] == "mini:shapes" and made["demonstrations"] == 4
    for query, caption in zip(NEW, captions, strict=True):
        message = {"role": "user", "content": [image_part(query)]}
        answer = client.chat.completions.create(model="mini:shapes", messages=[message])
        assert answer.choices[0].message.content == caption
        assert answer.usage.prompt_tokens_details.cached_tokens == made["prefix_tokens"] > 30
        streamed = client.chat.completions.create(model="mini:shapes", messages=[message], stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == caption
    assert client.models.retrieve("mini:shapes")
    assert server.ask("GET", "/v1/tasks/shapes")[2] == made
    assert make_task(server, "shapes")[0] == 409
    assert server.ask("DELETE", "/v1/tasks/shapes")[2]["deleted"]
    assert server.ask("GET", "/v1/tasks/shapes")[0] == server.ask("DELETE", "/v1/tasks/shapes")[0] == 404
    assert [one["id"] for one in server.ask("GET", "/v1/tasks")[2]["data"]] == []


def test_a_form_makes_the_same_task_as_json(server, mini):
    edge = uuid.uuid4().hex
    parts = [("name", None, b"form"), ("template", None, b"vqa")]
    questions = ["what color is the object?"] * 4
    for (image, caption), question in zip(CAPTIONED, questions, strict=True):
        parts += [("image", image.name, image.read_bytes()), ("question", None, question.encode())]
        parts += [("answer", None, caption.split()[2].encode())]
    body = b""
    for name, file, data in parts:
        named = f'name="{name}"' + (f'; filename="{file}"' if file else "")
        body += f"--{edge}\r\nContent-Disposition: form-data; {named}\r\n\r\n".encode() + data + b"\r\n"
    body += f"--{edge}--\r\n".encode()
    status, _, made = server.ask("POST", "/v1/tasks", body, kind=f"multipart/form-data; boundary={edge}")
    assert status == 201 and made["fields"] == ["question", "answer"], made
    shots = [
        (image, question, caption.split()[2]) for (image, caption), question in zip(CAPTIONED, questions, strict=True)
    ]
    asked = "what color is the object?"
    expected = fl.FewShotTask(*mini, shots, template=fl.templates.vqa)([(NEW[0], asked)])
    status, _, answer = server.chat(image_part(NEW[0]), text_part(asked), model="mini:form")
    assert status == 200 and [choice["message"]["content"] for choice in answer["choices"]] == expected
    # Earlier turns are further demonstrations.
    more = fl.FewShotTask(*mini, [*shots, (NEW[1], asked, "yellow")], template=fl.templates.vqa)([(NEW[0], asked)])
    messages = [
        {"role": "user", "content": [image_part(NEW[1]), text_part(asked)]},
        {"role": "assistant", "content": "yellow"},
        {"role": "user", "content": [image_part(NEW[0]), text_part(asked)]},
    ]
    answer = server.ask("POST", "/v1/chat/completions", {"model": "mini:form", "messages": messages})[2]
    assert [choice["message"]["content"] for choice in answer["choices"]] == more
    assert server.chat(image_part(NEW[0]), model="mini:form")[0] == 400, "no question"
    assert server.chat(text_part(asked), model="mini:form")[0] == 400, "no image"
    server.ask("DELETE", "/v1/tasks/form")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "../up"}, "name"),
        ({"template": "captoin"}, "template"),
        ({"template": {"pattern": "no picture {text}"}}, "<image>"),
        ({"template": "vqa"}, "question, answer"),
        ({"template": {"pattern": "caption", "stops": [""]}}, "stops"),
        ({"template": {"pattern": "<image>{text}", "stops": ["a", ""]}}, "stops"),
        ({"demonstrations": []}, "demonstrations"),
        ({"demonstrations": [{"text": "a"}]}, "image"),
        ({"demonstrations": [{"image": "cat.png", "text": "a"}]}, "cat.png"),
        ({"demonstrations": [{"image": data_url(NEW[0]), "text": "an <image>"}]}, "<image>"),
        ({"demonstrations": [{"image": data_url(NEW[0]), "text": "a"}] * 65}, "64"),
    ],
)
def test_a_task_that_cannot_be(server, change, says):
    body = {"name": "x", "demonstrations": [{"image": data_url(NEW[0]), "text": "a"}]} | change
    status, _, answer = server.ask("POST", "/v1/tasks", body)
    assert status == 400 and says in answer["error"]["message"], answer
    assert server.ask("GET", "/v1/tasks/x")[0] == 404


def test_a_named_template_with_fields_of_the_request(server):
    given = {"pattern": "caption", "stops": [" green"]}
    status, _, made = make_task(server, "changed", given)
    assert status == 201 and made["template"] == {"pattern": fl.templates.caption.pattern, "stops": [" green"]}
    answer = server.chat(image_part(NEW[0]), model="mini:changed")[2]
    assert answer["choices"][0]["message"]["content"] == "a large"
    server.ask("DELETE", "/v1/tasks/changed")
    for changes in ({}, {"stops": []}, {"drop": "a"}, {"strip": False, "drop": ""}):
        body = TemplateBody.model_validate_json(json.dumps({"pattern": "caption"} | changes))
        expected = {name: tuple(value) if name == "stops" else value for name, value in changes.items()}
        assert read_template(body) == replace(fl.templates.caption, **expected)


def test_tasks_are_kept_in_their_folder(mini, tmp_path, captions):
    message = image_part(NEW[0])
    with running(*mini, tasks=tmp_path) as first, running(*mini, tasks=tmp_path) as second:
        assert make_task(first, "shapes")[0] == 201
        answer = second.chat(message, model="mini:shapes")[2]
        assert answer["choices"][0]["message"]["content"] == captions[0], "the other server has loaded it"
        assert make_task(second, "shapes")[0] == 409
    assert fl.FewShotTask.load(tmp_path / "shapes", *mini)(NEW) == captions, "a file that the library loads"
    with running(*mini, tasks=tmp_path) as again:
        assert [one["id"] for one in again.ask("GET", "/v1/tasks")[2]["data"]] == ["shapes"]
        assert again.ask("DELETE", "/v1/tasks/shapes")[0] == 200
    assert list(tmp_path.iterdir()) == []


def test_a_stored_task_that_was_written_anew_is_read_anew(mini, tmp_path):
    with running(*mini, tasks=tmp_path) as first, running(*mini, tasks=tmp_path) as second:
        assert make_task(first, "shapes")[0] == 201
        before = second.ask("GET", "/v1/tasks/shapes")[2]["demonstrations"]
        assert first.ask("DELETE", "/v1/tasks/shapes")[0] == 200
        fl.FewShotTask(*mini, CAPTIONED[:1]).save(tmp_path / "shapes")
        assert second.ask("GET", "/v1/tasks/shapes")[2]["demonstrations"] == 1 != before
        fl.FewShotTask(*mini, CAPTIONED[:2]).save(tmp_path / "shapes")  # in place
        assert second.ask("GET", "/v1/tasks/shapes")[2]["demonstrations"] == 2


def test_tasks_that_cannot_be_used_neither_stop_the_server_nor_stay(mini, tmp_path, monkeypatch):
    fl.FewShotTask(*mini, CAPTIONED[:1]).save(tmp_path / "other")
    about = json.loads((tmp_path / "other" / "task.json").read_text())
    (tmp_path / "other" / "task.json").write_text(json.dumps(about | {"model": "another"}))
    with contextlib.ExitStack() as stack:
        with pytest.warns(UserWarning, match="'other' cannot be used"):
            server = stack.enter_context(running(*mini, tasks=tmp_path))
        assert server.ask("GET", "/v1/tasks/other")[0] == 409 and server.ask("GET", "/v1/tasks")[2]["data"] == []
        assert server.ask("DELETE", "/v1/tasks/other")[0] == 200 and not (tmp_path / "other").exists()
        assert server.ask("DELETE", "/v1/tasks/other")[0] == 404

        def full(self, directory):
            directory.mkdir()
            raise OSError("no space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(fl.FewShotTask, "save", full)
            assert make_task(server, "shapes")[0] == 500
        assert make_task(server, "shapes")[0] == 201


def test_health_metrics_and_schema(server):
    assert server.ask("GET", "/health")[0] == server.ask("GET", "/ready")[0] == 200
    server.chat(image_part(NEW[0]), OUTPUT)
    status, headers, text = server.ask("GET", "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    assert values['flamboyance_requests_total{route="/v1/chat/completions",status="200"}'] >= 1
    assert values["flamboyance_images_encoded_total"] >= 1 and values["flamboyance_image_cache_bytes"] > 0
    assert values["flamboyance_decode_rows_total"] >= values["flamboyance_decode_steps_total"] > 0
    assert values["flamboyance_running_rows"] == 0
    schema = server.ask("GET", "/openapi.json")[2]
    assert {"/v1/chat/completions", "/v1/tasks", "/v1/models", "/health"} <= schema["paths"].keys()


def test_many_clients_at_once_get_the_offline_answers(server, captions):
    found = [None] * 24

    def ask(number):
        answer = server.ask("POST", "/v1/chat/completions", {"model": "mini", "messages": few_shot(NEW[number % 4])})
        found[number] = answer[2]["choices"][0]["message"]["content"]

    before = server.service.engine.counts
    steps, rows = before.steps, before.stepped_rows
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert found == captions * 6
    counts = server.service.engine.counts
    assert counts.stepped_rows - rows > counts.steps - steps, "no step had several rows"


def test_a_stream_is_server_sent_events(server):
    status, headers, text = server.chat(image_part(NEW[0]), OUTPUT, stream=True)
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    *events, done, last = text.split("\n\n")
    assert done == "data: [DONE]" and last == ""
    assert all(json.loads(event.removeprefix("data: "))["object"] == "chat.completion.chunk" for event in events)
