"""Answers an evaluation's prompts with a served model: vLLM, SGLang, llama.cpp, `transformers serve`, a provider's API.

A demonstration is two turns of a chat: the user's image, as a data URL, with the request, and the assistant's answer.
Requests are sent from several threads, and each reply is kept on disk, so a stopped run resumes without a request that
was answered before.

A label is chosen in the first of these ways that the server offers (see label_choice.py), and each prediction says in
which:

logprobs   the log-probabilities of the first tokens that the labels differ in
schema     an answer that a JSON schema confines to the labels
text       the label that a plain answer gives; an answer that gives none is wrong
"""

from __future__ import annotations

import math
import os
import queue
import sys
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from flamboyance.evaluation.answers import label_choice
from flamboyance.evaluation.answers.budget import Budget
from flamboyance.evaluation.answers.http_client import Client, RefusedError, Reply
from flamboyance.evaluation.answers.reply_cache import ReplyCache
from flamboyance.evaluation.answers.turns import Turn, turns
from flamboyance.evaluation.prompts import Prompt
from flamboyance.evaluation.task import Choice, Generated
from flamboyance.images.data_url import data_url

WAYS = ("logprobs", "schema", "text")
ALTERNATIVES = 20  # of each token; the most that OpenAI's API gives
LISTED = 100  # up to this number of labels are listed in the first request, if nothing else confines the answer to them
IMAGES = 512  # data URLs kept in memory
CHAT = "chat/completions"
FILTERED = ("content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation")
TOO_MANY = (400, 413, 422, 500)  # HTTP's words for more images than a server takes
NOT_OFFERED = (400, 422, 501)  # HTTP's words for an option that a server does not know
TEXTS_ONLY = "answers texts and takes no images: expected a vision-language model"


class EndpointError(ValueError):
    """A server that cannot be evaluated. The message says why, and what to do."""


class EndpointAnswers:
    """Answers prompts with the model of this name on a server.

    Args:
        replies: where replies are kept; None to keep none.
        concurrency: requests under way at a time.
        labels_by: one of `WAYS`; None for the first that the server offers.
        key_variable: the variable of the environment that the key came from, for errors.
        say: called with warnings.

    Attributes:
        asked, known: replies from the server, and from `replies` as they were before.
    """

    context: int | None = None  # the server knows; a prompt that is too long is refused
    continues = False

    def __init__(
        self,
        client: Client,
        name: str,
        replies: Path | None = None,
        concurrency: int = 8,
        labels_by: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        say: Callable[[str], None] = lambda line: print(f"flamboyance: {line}", file=sys.stderr),
    ):
        self.client, self.name, self.labels_by, self.key_variable = client, name, labels_by, key_variable
        self.replies = None if replies is None else ReplyCache(replies)
        self.say = say
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.asked = self.known = 0
        self._new: set[str] = set()  # the requests that this run has sent
        self._way: str | None = None  # of choosing labels, once it is found out
        self._adapted: dict[str, str | None] = {}  # options of a request that the server wants otherwise
        self._first, self._met = threading.Lock(), False  # whether the server has answered in this run
        self._refused: EndpointError | None = None
        self._warned = False
        self._lock = threading.Lock()
        self._images: OrderedDict[Path, str] = OrderedDict()
        self._under_way: dict[Any, Future[Reply]] = {}  # by _key: an equal prompt takes over what was asked ahead
        self._asking: dict[str, threading.Lock] = {}  # equal requests wait for each other's reply
        self._jobs: queue.SimpleQueue[tuple[Future[Reply], Callable[[], Reply]]] = queue.SimpleQueue()
        for _ in range(concurrency):  # daemons: Ctrl-C does not wait for replies that are under way
            threading.Thread(target=self._work, daemon=True).start()

    @classmethod
    def open(
        cls,
        url: str,
        name: str | None = None,
        key_variable: str | None = None,
        budget: Budget | None = None,
        timeout: float = 300.0,
        **options: Any,
    ) -> EndpointAnswers:
        """The model of this name on a server.

        Args:
            url: the server's address, such as `http://localhost:8000/v1`.
            name: default: the only model that the server names.
            key_variable: the variable of the environment that holds the key; default: OPENAI_API_KEY, if it is set.
            options: the constructor's.

        Raises:
            ValueError: the address is wrong, the variable is not set, or the server names several models or none.
        """
        variable = key_variable or "OPENAI_API_KEY"
        key = os.environ.get(variable, "").strip()
        if key_variable and not key:
            raise ValueError(f"--key-variable {key_variable}: the environment has no such variable; set it to the key")
        client = Client(url, key or None, timeout, budget=budget)
        return cls(client, name or _only_model(client), key_variable=variable, **options)

    def describe(self) -> dict[str, Any]:
        """The entries by which run.json names the model; the server's address is not among them, as it may change."""
        return {"kind": "endpoint"}

    @property
    def place(self) -> str:
        """Where the model runs."""
        return self.client.url

    def lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        """A measure of the length of each prompt: the server's tokens are not known."""
        return [len(prompt.text) + 1000 * len(prompt.images) for prompt in prompts]

    def ahead(self, prompts: Sequence[Prompt]) -> None:
        """Starts to ask the prompts that come next."""
        for prompt in prompts:
            way = None if prompt.task.labels is None else self._way
            if self._met and (way is not None or prompt.task.labels is None):
                self._submit(prompt, way)

    def generate(self, prompts: Sequence[Prompt]) -> list[str]:
        """The answer to each prompt."""
        return [Generated(_text(reply), _is_cut_off(reply)) for reply in self._ask(prompts, None)]

    def choose(self, prompts: Sequence[Prompt]) -> list[Choice]:
        """The label that answers each prompt."""
        if self._way is None:
            self._way = self._find_way(prompts[0])
        labels = prompts[0].task.labels or ()
        return [_choice(reply, labels, self._way) for reply in self._ask(prompts, self._way)]

    def close(self) -> None:
        """Ends all waiting for the server."""
        self.client.close()

    # Requests ------------------------------------------------------------------------------------------------------

    def _ask(self, prompts: Sequence[Prompt], way: str | None) -> list[Reply]:
        began = time.perf_counter()
        pending = [self._submit(prompt, way) for prompt in prompts]
        try:
            return [future.result() for future in pending]
        finally:
            for prompt in prompts:
                self._under_way.pop(_key(prompt, way), None)
            self.seconds["answer"] += time.perf_counter() - began

    def _submit(self, prompt: Prompt, way: str | None) -> Future[Reply]:
        key = _key(prompt, way)
        if key not in self._under_way:
            self._under_way[key] = future = Future[Reply]()
            self._jobs.put((future, lambda: self._reply(prompt, way)))
        return self._under_way[key]

    def _work(self) -> None:
        while True:
            future, job = self._jobs.get()
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001  it is raised where the result is asked for
                future.set_exception(error)

    def _reply(self, prompt: Prompt, way: str | None) -> Reply:
        body = self._body(prompt, way)
        key = ReplyCache.key(body)
        with self._lock:
            equal = self._asking.setdefault(key, threading.Lock())
        with equal:
            found = self.replies.get(key) if self.replies else None
            if found is not None and _problem(found) is None:
                with self._lock:
                    self.known += key not in self._new
                return found
            kept = self._post_first(body) or self._post(body)
            if self.replies:
                self.replies.put(key, kept)
            with self._lock:
                self.asked += 1
                self._new.add(key)
            return kept

    def _post_first(self, body: Reply) -> Reply | None:
        """The reply to the first request of a run, which is sent alone: a wrong key is refused once. None if the server
        has answered before."""
        if self._met:
            return None
        with self._first:
            if self._refused is not None:
                raise self._refused
            if self._met:
                return None
            try:
                reply = self._post(body)
            except EndpointError as error:
                self._refused = error
                raise
            self._met = True
            return reply

    def _post(self, body: Reply) -> Reply:
        while True:
            sent = {name: value for key, value in body.items() if (name := self._adapted.get(key, key)) is not None}
            try:
                reply = self.client.post(CHAT, sent, _check)
            except RefusedError as error:
                if error.status == 400 and error.code in FILTERED:
                    self.say(f"warning: {self.client.url} refuses a query for its content, which counts as no answer")
                    return {"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}], "usage": None}
                if not self._adapt(error, sent):
                    raise self._explained(error, sent) from None
                continue
            if not self._met:
                self._check_sight(sent, reply)
            kept = _kept(reply)
            if not _text(kept).strip() and kept["choices"][0]["finish_reason"] == "length" and not self._warned:
                self._warned = True
                self.say(
                    f"warning: an answer of {self.name} is empty, cut off at {body['max_tokens']} tokens: if the model "
                    "reasons before it answers, switch that off on the server"
                )
            return kept

    def _adapt(self, error: RefusedError, sent: Reply) -> bool:
        """Whether the server refused an option that the request can do without, or names otherwise."""
        if error.status not in (400, 422):
            return False
        if "max_tokens" in sent and "max_completion_tokens" in error.said:
            self._adapted["max_tokens"] = "max_completion_tokens"
            return True
        if "temperature" in sent and "temperature" in error.said:
            self._adapted["temperature"] = None
            self.say(f"warning: {self.name} takes no temperature of 0: asked again, its answers may differ")
            return True
        return False

    def _body(self, prompt: Prompt, way: str | None) -> Reply:
        labels = prompt.task.labels or ()
        longest = max((len(label) for label in labels), default=0) // 2 + 16 if way else prompt.task.max_new_tokens
        body: Reply = {
            "model": self.name,
            "messages": self._messages(prompt, listed=bool(way) and way != "schema"),
            "max_tokens": longest,
            "temperature": 0,
        }
        if way == "logprobs":
            body |= {"logprobs": True, "top_logprobs": ALTERNATIVES}
        if way == "schema":
            body |= {"response_format": label_choice.schema(labels)}
        return body

    def _messages(self, prompt: Prompt, listed: bool) -> list[Reply]:
        labels = prompt.task.labels or ()
        opening = f"Answer with one of: {', '.join(labels)}.\n" if listed and len(labels) <= LISTED else ""
        messages: list[Reply] = []
        for turn in turns(prompt):
            messages.append({"role": "user", "content": self._content(turn, opening)})
            opening = ""
            if turn.answer is not None:
                messages.append({"role": "assistant", "content": turn.answer})
        return messages

    def _content(self, turn: Turn, opening: str) -> list[Reply]:
        images = [{"type": "image_url", "image_url": {"url": self._url(image)}} for image in turn.images]
        return [*images, {"type": "text", "text": opening + turn.request}]

    def _url(self, image: Path) -> str:
        with self._lock:
            if image in self._images:
                self._images.move_to_end(image)
                return self._images[image]
        url = data_url(image)
        with self._lock:
            self._images[image] = url
            while len(self._images) > IMAGES:
                self._images.popitem(last=False)
        return url

    # What the server offers ----------------------------------------------------------------------------------------

    def _find_way(self, prompt: Prompt) -> str:
        """The first way of choosing a label that the server offers, found out with a query.

        Raises:
            EndpointError: it does not offer the one that was asked for.
        """
        labels = prompt.task.labels or ()
        for way in (self.labels_by,) if self.labels_by else WAYS:
            try:
                (reply,) = self._ask([prompt], way)
            except RefusedError as error:
                if error.status in NOT_OFFERED and way != "text":
                    continue
                raise
            if (
                way == "text"
                or (way == "logprobs" and _positions(reply))
                or (way == "schema" and label_choice.from_schema(_text(reply), labels) is not None)
            ):
                return way
        what = "log-probabilities" if self.labels_by == "logprobs" else "answers under a JSON schema"
        raise EndpointError(f"{self.client.url} gives no {what}: use another --labels-by, or none")

    def _explained(self, error: RefusedError, sent: Reply) -> ValueError:
        """A refusal in words that say what to do; the refusal itself if it says enough."""
        said = f" ({error.said})" if error.said else ""
        url, status = self.client.url, error.status
        if status in (401, 403):
            if self.client.has_key:
                return EndpointError(f"{url} refuses the key in {self.key_variable}{said}")
            where = f"set {self.key_variable}, or name another variable with --key-variable"
            return EndpointError(f"{url} asks for a key: {where}{said}")
        if status is None or status == 429:
            return error
        images = _images(sent["messages"])
        many = status in TOO_MANY and images > 1 and "image" in error.said.lower()
        if many and (self._met or self._answers_last(sent)):
            return EndpointError(
                f"{url} refuses a request with {images} images{said}: give fewer --shots, or let the server take more; "
                f"vLLM's option is --limit-mm-per-prompt '{{\"image\": {images}}}'"
            )
        if self._met:
            return error
        known = self._served()
        if known and self.name not in known:
            more = f" and {len(known) - 10} more" if len(known) > 10 else ""
            return EndpointError(f"{url} has no model {self.name!r}; it serves {', '.join(known[:10])}{more}{said}")
        if status in (404, 405):
            if "model" in error.said.lower():
                return EndpointError(f"{url} has no model {self.name!r}{said}")
            return EndpointError(f"{url} has no chats: expected an address that ends in /v1{said}")
        if status in NOT_OFFERED and ("logprobs" in sent or "response_format" in sent):
            return error  # perhaps for that option; the request without it shows
        if status in (*NOT_OFFERED, 415, 500) and self._counts_texts(sent) is not False:
            return EndpointError(f"{self.name} at {url} {TEXTS_ONLY}{said}")
        return error

    def _served(self) -> list[str]:
        try:
            return served(self.client)
        except (RefusedError, OSError):
            return []

    def _check_sight(self, sent: Reply, reply: Reply) -> None:
        """Refuses a server that leaves out images without a word, as some do for models that read texts alone.

        It is one whose prompt takes the same number of tokens without the images, and more with more text. That is
        asked only if the first prompt's number of tokens is small for its images.
        """
        counted = _prompt_tokens(reply)
        parts, images = _parts(sent["messages"]), _images(sent["messages"])
        characters = sum(len(part.get("text", "")) for part in parts)
        turns = len(sent["messages"])
        if counted is None or not characters / 8 + 2 * turns <= counted < characters / 3 + 6 * turns + 8 * images:
            return
        if self._counts_texts(sent) == counted and self._counts_texts(sent, "word " * 20) not in (counted, None, False):
            raise EndpointError(f"{self.name} at {self.client.url} {TEXTS_ONLY} (it leaves them out)")

    def _answers_last(self, sent: Reply) -> bool:
        """Whether the server answers a request's query without its demonstrations."""
        try:
            self.client.post(CHAT, sent | {"messages": sent["messages"][-1:]}, _check, attempts=1)
        except RefusedError:
            return False
        return True

    def _counts_texts(self, sent: Reply, more: str = "") -> int | bool | None:
        """The tokens of a request without its images, and with more text; None if the server does not count, False if
        it does not answer."""
        bare = [
            one if isinstance(one["content"], str) else one | {"content": more + one["content"][-1]["text"]}
            for one in sent["messages"]
        ]
        try:
            return _prompt_tokens(self.client.post(CHAT, sent | {"messages": bare}, _check, attempts=1))
        except RefusedError:
            return False


def _key(prompt: Prompt, way: str | None) -> Any:
    """What a prompt asks. Its id is that of another prompt once it is gone."""
    return prompt.task.name, prompt.query, prompt.demonstrations, prompt.blind, way


def _parts(messages: Sequence[Reply]) -> list[Reply]:
    return [part for one in messages for part in one["content"] if isinstance(part, dict)]


def _images(messages: Sequence[Reply]) -> int:
    """The number of images of a request."""
    return sum(part["type"] == "image_url" for part in _parts(messages))


def served(client: Client) -> list[str]:
    """The names of the models that a server lists.

    Raises:
        RefusedError: it lists none.
    """
    listed = client.get("models").get("data")
    rows = listed if isinstance(listed, list) else []
    return [str(one["id"]) for one in rows if isinstance(one, dict) and one.get("id")]


def _only_model(client: Client) -> str:
    try:
        names = served(client)
    except ValueError as error:
        if isinstance(error, RefusedError) and error.status == 404 and not client.url.endswith("/v1"):
            raise EndpointError(f"{client.url} lists no models: expected an address that ends in /v1") from None
        raise EndpointError(f"{error}. If the server is there, name its model with --name") from None
    if len(names) == 1:
        return names[0]
    several = f"serves {', '.join(names[:10])}" if names else "does not say what it serves"
    raise EndpointError(f"{client.url} {several}: name the model with --name")


def _check(reply: Reply) -> None:
    if (problem := _problem(reply)) is not None:
        raise ValueError(problem)


def _problem(reply: Reply) -> str | None:
    """Why a reply is no answer to a chat; None if it is one."""
    choices = reply.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    if not isinstance(message, dict):
        return "it has no choices[0].message"
    if not isinstance(message.get("content"), str | None):
        return "its content is no text"
    return None


def _kept(reply: Reply) -> Reply:
    """What is kept of a reply."""
    first = reply["choices"][0]
    choice = {
        "message": {"content": first["message"].get("content")},
        "finish_reason": first.get("finish_reason"),
        "logprobs": first.get("logprobs"),
    }
    return {"choices": [choice], "usage": reply.get("usage")}


def _text(reply: Reply) -> str:
    return reply["choices"][0]["message"].get("content") or ""


def _is_cut_off(reply: Reply) -> bool:
    return reply["choices"][0].get("finish_reason") == "length"


def _positions(reply: Reply) -> list[Any]:
    """The answer's tokens with their alternatives; none if the server gives no log-probabilities."""
    found = reply["choices"][0].get("logprobs")
    content = found.get("content") if isinstance(found, dict) else None
    listed = content if isinstance(content, list) else []
    return listed if any(isinstance(one, dict) and one.get("top_logprobs") for one in listed) else []


def _prompt_tokens(reply: Reply) -> int | None:
    usage = reply.get("usage")
    found = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _choice(reply: Reply, labels: Sequence[str], way: str) -> Choice:
    text = _text(reply)
    if way == "logprobs" and reply["choices"][0].get("finish_reason") == "content_filter":
        return Choice("", text, (-math.log(len(labels)),) * len(labels), way)  # no answer; all labels are as likely
    if way == "logprobs" and (scores := label_choice.ranked(_positions(reply), labels)) is not None:
        best = max(scores)
        equal = [label for label, score in zip(labels, scores, strict=True) if score == best]
        label = label_choice.matched(text, equal) or equal[0]
        return Choice(label, text, tuple(scores), way)
    if way == "schema" and (found := label_choice.from_schema(text, labels)) is not None:
        return Choice(found, text, None, way)
    return Choice(label_choice.matched(text, labels) or text.strip(), text, None, "text")
