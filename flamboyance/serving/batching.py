"""Continuous batching: requests are computed together as they come.

One thread computes everything. In each of its rounds it takes the requests that have arrived, encodes their images,
computes their prompts together, and lets the new rows join those that are already generating; then all rows generate
one token. A row that has ended leaves in the next round. So a request waits for one step of the others, not for their
answers, and the weights of the language model are read once per step, however many requests there are.

The rows of a batch end together (padding on the left, as in `generate`), and their masks hide what is before the
shorter ones: a row's result does not depend on the others. Rows join and leave by copying keys and values, in
`cache.aligned`. A language model whose state is not keys and values alone (a recurrent one) cannot be aligned: its
requests generate one by one, in turns.

Shape letters: B prompts, R rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import torch
from torch import Tensor

from flamboyance.flamingo import FlamingoForConditionalGeneration
from flamboyance.model.cache import aligned, branch, empty, is_plain
from flamboyance.model.finite import refuse_nan
from flamboyance.model.kept_media import KeptMedia, apart
from flamboyance.model.media import Media, count_seen
from flamboyance.processing import FlamingoProcessor, frames_and_counts
from flamboyance.prompting import Prefix
from flamboyance.serving.sampling import Chosen, Dice, Sampling, choose
from flamboyance.serving.writing import Writing
from flamboyance.templates import Template

PROMPT_TOKENS = 8192  # of the prompts that are computed together, padding included
FRAMES = 32  # encoded together, an image being one; or a longer video alone

log = logging.getLogger("flamboyance.serving")


@dataclass(frozen=True, eq=False)
class Picture:
    """An image or a video of a request.

    Attributes:
        key: a hash of its content and preprocessing.
        pixels: (F, C, H, W), as the processor prepares it; or the encoded image, from `Engine.kept`.
    """

    key: bytes
    pixels: Tensor | Media


@dataclass(frozen=True, eq=False)
class Request:
    """What is to be generated.

    Attributes:
        ids: the whole prompt.
        pictures: the images after the prefix, one for each of their `<image>`.
        prefix: demonstrations that are computed already, with which `ids` begins.
        max_new_tokens: of each choice.
        choices: number of texts.
        seed: the first choice draws from this seed, the others from the next ones; None: from any.
        stops, template: see Writing.
        stream: pieces of text are reported as they come.
    """

    ids: tuple[int, ...]
    pictures: tuple[Picture, ...] = ()
    prefix: Prefix | None = None
    max_new_tokens: int = 20
    sampling: Sampling = field(default_factory=Sampling)
    choices: int = 1
    seed: int | None = None
    stops: tuple[str, ...] = ()
    template: Template | None = None
    stream: bool = False

    @property
    def computed(self) -> int:
        """Number of tokens of the prefix."""
        return 0 if self.prefix is None else len(self.prefix.ids)


Reason = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """News of one choice.

    Attributes:
        text: the new text if the request streams; the whole text at the end otherwise.
        tokens: the tokens of that text, if log-probabilities were asked for.
        ended: why the choice has ended; None if it has not.
        count: number of tokens generated so far, including the one that ended the text.
    """

    choice: int
    text: str
    tokens: tuple[Chosen, ...]
    ended: Reason | None
    count: int


Report = Callable[[Piece | Exception], None]


class Busy(Exception):
    """The server has as much to do as it takes on."""


class Stopped(Exception):
    """The server has stopped."""


class Ticket:
    """A submitted request, to cancel it with."""

    def __init__(self, request: Request, report: Report):
        self.request, self._report = request, report
        self.cancelled = False

    def cancel(self) -> None:
        """Its rows leave in the next round. Without effect on a request that has ended."""
        self.cancelled = True

    def report(self, news: Piece | Exception) -> None:
        if not self.cancelled:
            self._report(news)


@dataclass(eq=False)
class Row:
    """One choice of a request that is generating.

    Attributes:
        length: tokens of its prompt and answer that are in the cache.
        media: the images that generated tokens attend to: the last one, or all; None without images.
        chosen: the tokens of the answer so far; the last one is not in the cache.
    """

    ticket: Ticket
    choice: int
    length: int
    media: Media | None
    dice: Dice
    writing: Writing
    chosen: list[Chosen] = field(default_factory=list)
    reported: int = 0  # tokens that earlier pieces have reported
    ended: bool = False

    @property
    def gone(self) -> bool:
        return self.ended or self.ticket.cancelled


@dataclass(eq=False)
class Batch:
    """Rows that generate together. Their cache ends with the last token before each row's newest."""

    rows: list[Row]
    cache: Any
    mask: Tensor  # (R, T) on the device
    media: Media | None = None  # a prompt for each row, with what its steps need


@dataclass
class Counts:
    """What the engine has done and has to do; written by its thread, read by any."""

    waiting: int = 0
    rows: int = 0
    steps: int = 0
    stepped_rows: int = 0
    prompts: int = 0
    prompt_tokens: int = 0
    prefix_tokens: int = 0
    tokens: int = 0
    images_encoded: int = 0
    images_kept: int = 0  # found in the cache
    kept_bytes: int = 0
    failures: int = 0


class Engine:
    """Computes requests in a thread of its own. All methods may be called from any thread.

    Args:
        rows: the most rows that generate together.
        waiting: the most requests that wait to be computed.
        media_bytes: of encoded images that are kept for later requests.
    """

    def __init__(
        self,
        model: FlamingoForConditionalGeneration,
        processor: FlamingoProcessor,
        rows: int = 32,
        waiting: int = 256,
        media_bytes: float = 1e9,
    ):
        self.model, self.processor = model.eval(), processor
        self.rows, self.waiting = rows, waiting
        self.counts = Counts()
        self._media: KeptMedia[bytes] = KeptMedia(media_bytes)
        self._joins = is_plain(empty(model.config.text_config, room=True))
        self._ends = _ends(model)
        never = model._never_generated()
        self._never = torch.tensor(never, device=model.device)
        self._batches: list[Batch] = []
        self._queue: deque[Ticket] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._news = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="flamboyance-engine", daemon=True)
        self._thread.start()

    # For other threads ------------------------------------------------------------------------------------------

    def submit(self, request: Request, report: Report) -> Ticket:
        """Takes a request on. `report` is called in the engine's thread with each piece of each choice, or once with
        the error that ended the request.

        Raises:
            Busy: too many requests wait.
            Stopped: the engine was closed.
        """
        ticket = Ticket(request, report)
        with self._news:
            if self._stopping:
                raise Stopped("the server is shutting down")
            if len(self._queue) >= self.waiting:
                raise Busy(f"{len(self._queue)} requests are waiting already")
            self._queue.append(ticket)
            self.counts.waiting = len(self._queue)
            self._news.notify()
        return ticket

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Runs a function between two rounds, such as the computation of a task's demonstrations.

        Raises:
            Stopped: the engine was closed.
        """
        future: Future[Any] = Future()
        with self._news:
            if self._stopping:
                raise Stopped("the server is shutting down")
            self._calls.append((function, future))
            self._news.notify()
        return future

    def kept(self, key: bytes) -> Media | None:
        """The encoded image of a key, if it is kept: its file need not be decoded."""
        return self._media.get(key)

    def encode(self, pictures: Sequence[Picture]) -> list[Media]:
        """The encoded images, for a function that `call` runs."""
        found = self._encode(pictures)
        return [found[picture.key] for picture in pictures]

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        """Ends the thread. Requests that have not ended get Stopped."""
        with self._news:
            self._stopping = True
            self._news.notify()
        self._thread.join()

    # The thread -------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _run(self) -> None:
        while True:
            calls, tickets = self._next()
            if self._stopping:
                return self._abandon(calls, tickets)
            for function, future in calls:
                _run_call(function, future)
            self._round(tickets)

    def _next(self) -> tuple[list[Any], list[Ticket]]:
        """What has arrived, as far as there is room; waits for it if no row is generating."""
        with self._news:
            while not (self._queue or self._calls or self._batches or self._stopping):
                self._news.wait()
            calls, taken = list(self._calls), []
            self._calls.clear()
            running = sum(not row.gone for batch in self._batches for row in batch.rows)
            while self._queue and (
                self._stopping or not running or running + self._queue[0].request.choices <= self.rows
            ):
                ticket = self._queue.popleft()
                if not ticket.cancelled:
                    taken.append(ticket)
                    running += ticket.request.choices
            self.counts.waiting = len(self._queue)
            return calls, taken

    def _abandon(self, calls: list[Any], tickets: list[Ticket]) -> None:
        for _, future in calls:
            future.set_exception(Stopped("the server is shutting down"))
        running = [row.ticket for batch in self._batches for row in batch.rows if not row.ended]
        for ticket in dict.fromkeys([*tickets, *running]):
            ticket.report(Stopped("the server is shutting down"))

    def _round(self, tickets: list[Ticket]) -> None:
        new: list[Batch] = []
        for group in self._groups(tickets):
            new.extend(self._begin(group))
        batches, self._batches = [*self._batches, *new], []
        groups = [batches] if self._joins else [[batch] for batch in batches]
        for group in groups:
            try:
                batch = self._joined(group)
                if batch is not None:
                    self._step(batch)
                    self._batches.append(batch)
            except Exception as error:  # noqa: BLE001  the thread outlives whatever fails, as memory that is used up
                self._fail([row.ticket for one in group for row in one.rows], error)
        self.counts.rows = sum(not row.gone for batch in self._batches for row in batch.rows)
        self.counts.kept_bytes = self._media.bytes

    def _fail(self, tickets: Sequence[Ticket], error: Exception) -> None:
        if not isinstance(error, ValueError):
            self.counts.failures += 1
            log.error("a computation failed", exc_info=error)
        for ticket in dict.fromkeys(tickets):
            ticket.report(error)
            ticket.cancel()

    # Prompts ----------------------------------------------------------------------------------------------------

    def _groups(self, tickets: Sequence[Ticket]) -> list[list[Ticket]]:
        """Prompts that are computed together."""
        groups: list[list[Ticket]] = []
        width = 0
        for ticket in tickets:
            new = len(ticket.request.ids) - ticket.request.computed
            fits = groups and self._joins and max(width, new) * (len(groups[-1]) + 1) <= PROMPT_TOKENS
            if not fits:
                groups.append([])
                width = 0
            groups[-1].append(ticket)
            width = max(width, new)
        return groups

    def _begin(self, tickets: list[Ticket]) -> list[Batch]:
        """Computes prompts, and the first token of each choice."""
        try:
            images = self._encode([picture for ticket in tickets for picture in ticket.request.pictures])
            cache, mask, logits, media = self._read([ticket.request for ticket in tickets], images)
        except Exception as error:  # noqa: BLE001  see _round
            if len(tickets) > 1:  # one of them may be to blame
                return [batch for ticket in tickets for batch in self._begin([ticket])]
            self._fail(tickets, error)
            return []
        places = [place for place, ticket in enumerate(tickets) for _ in range(ticket.request.choices)]
        rows = [
            self._row(ticket, choice, media[place])
            for place, ticket in enumerate(tickets)
            for choice in range(ticket.request.choices)
        ]
        try:
            if len(rows) > len(tickets):
                index = torch.tensor(places, device=logits.device)
                logits, mask = logits[index], mask[index]
                if self._joins:
                    cache = aligned(
                        [[(layer.keys[index], layer.values[index]) for layer in cache.layers]], mask.shape[1]
                    )
            self._append(rows, logits)
        except Exception as error:  # noqa: BLE001
            self._fail(tickets, error)
            return []
        if self._joins:
            return [Batch(rows, cache, mask)]
        return [Batch([row], branch(cache, 1), mask[:1]) for row in rows]

    def _row(self, ticket: Ticket, choice: int, media: Media | None) -> Row:
        request = ticket.request
        seed = None if request.seed is None else request.seed + choice
        writing = Writing(self._decode, request.stops, request.template)
        return Row(ticket, choice, len(request.ids), media, Dice(seed), writing)

    def _decode(self, ids: list[int]) -> str:
        return self.processor.decode(ids, skip_special_tokens=True)

    def _encode(self, pictures: Sequence[Picture]) -> dict[bytes, Media]:
        """The encoded images by their keys."""
        found: dict[bytes, Media] = {}
        missing: dict[bytes, Tensor] = {}
        for picture in pictures:
            known = self._media.get(picture.key)
            source = picture.pixels if known is None else known
            if isinstance(source, Media):
                found[picture.key] = source
                self._media.keep(picture.key, source)
                self.counts.images_kept += 1
            else:
                missing[picture.key] = source
        for some in _batches(missing):
            inputs = frames_and_counts(list(some.values()))
            made = self.model.encode_media(media_counts=[1] * len(some), **inputs)
            made = made.select([image for (image,) in made.rows], tuple((i,) for i in range(len(some))))
            for key, media in zip(some, apart(made), strict=True):
                found[key] = media
                self._media.keep(key, media)
            self.counts.images_encoded += len(some)
        return found

    def _read(
        self, requests: Sequence[Request], images: dict[bytes, Media]
    ) -> tuple[Any, Tensor, Tensor, list[Media | None]]:
        """Computes B prompts, except for what their prefixes hold.

        Returns:
            The cache, its mask (B, T), the logits after each prompt (B, V), and the images that new tokens attend to.
        """
        inputs = self.processor.pad([list(request.ids) for request in requests])
        ids, mask = (inputs[name].to(self.model.device) for name in ("input_ids", "attention_mask"))
        width = ids.shape[1]
        new = max(len(request.ids) - request.computed for request in requests)
        media = _media_of(requests, images)
        seen = count_seen(ids, self.model.config.image_token_id, media)
        out = self.model(
            input_ids=ids[:, width - new :],
            attention_mask=mask,
            media=media,
            past_key_values=self._prefixes(requests, width - new),
            images_seen=seen[:, width - new :],
            logits_to_keep=1,
            use_cache=True,
        )
        self.counts.prompts += len(requests)
        self.counts.prompt_tokens += sum(len(request.ids) for request in requests)
        self.counts.prefix_tokens += sum(request.computed for request in requests)
        cache = out.past_key_values if "past_key_values" in out else out.cache
        return cache, mask, out.logits[:, -1], [self._media_of_steps(media, place) for place in range(len(requests))]

    def _media_of_steps(self, media: Media | None, place: int) -> Media | None:
        """The images of one prompt that its new tokens attend to."""
        if media is None or not media.rows[place]:
            return None
        steps = self.model.media_of_steps(Media(media.latents, media.keys_values, (media.rows[place],)))
        (row,) = steps.rows
        return steps.select(row, (tuple(range(len(row))),))

    def _prefixes(self, requests: Sequence[Request], cached: int) -> Any:
        """A cache of the first `cached` columns of a batch whose rows end together: the tokens of prefixes in them. The
        prompt with the longest new text decides how many these are; of the other prefixes, the last tokens are computed
        again."""
        if not self._joins:
            (request,) = requests
            prefix = request.prefix
            return empty(self.model.config.text_config) if prefix is None else branch(prefix.state, 1)
        if not cached:
            return empty(self.model.config.text_config, room=True)
        width = max(len(request.ids) for request in requests)
        some = next(request.prefix for request in requests if request.prefix is not None)
        parts = []
        for request in requests:
            prefix = some if request.prefix is None else request.prefix
            used = max(0, len(request.ids) - (width - cached)) if request.prefix is not None else 0
            parts.append([(keys[:, :, :used], values[:, :, :used]) for keys, values in prefix.layers])
        return aligned(parts, cached)

    # Tokens -----------------------------------------------------------------------------------------------------

    def _joined(self, batches: Sequence[Batch]) -> Batch | None:
        """The rows of several batches that have not ended, as one; None if there are none."""
        kept = [[place for place, row in enumerate(batch.rows) if not row.gone] for batch in batches]
        rows = [batch.rows[place] for batch, places in zip(batches, kept, strict=True) for place in places]
        if not rows:
            return None
        first = batches[0]
        if len(batches) == 1 and len(rows) == len(first.rows):
            if first.media is None:
                first.media = _media_of_rows(rows)
            return first
        width = max(row.length for row in rows)
        device = first.mask.device
        parts = []
        for batch, places in zip(batches, kept, strict=True):
            if places:
                index = torch.tensor(places, device=device)
                whole = len(places) == len(batch.rows)
                pairs = [(layer.keys, layer.values) for layer in batch.cache.layers]
                parts.append(pairs if whole else [(keys[index], values[index]) for keys, values in pairs])
        lengths = torch.tensor([row.length for row in rows], device=device)
        mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
        return Batch(rows, aligned(parts, width), mask, _media_of_rows(rows))

    def _step(self, batch: Batch) -> None:
        """Generates one token in each row."""
        ids = torch.tensor([[row.chosen[-1].token] for row in batch.rows], device=batch.mask.device)
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(ids), 1)], dim=1)
        out = self.model(
            input_ids=ids,
            attention_mask=batch.mask,
            media=batch.media,
            past_key_values=batch.cache,
            logits_to_keep=1,
            use_cache=True,
        )
        for row in batch.rows:
            row.length += 1
        self.counts.steps += 1
        self.counts.stepped_rows += len(batch.rows)
        self._append(batch.rows, out.logits[:, -1])

    def _append(self, rows: Sequence[Row], logits: Tensor) -> None:
        """Chooses the next token of each row, for logits (R, V), and reports what is new."""
        refuse_nan(logits, "the model's logits")
        logits = logits.float().index_fill(1, self._never, float("-inf"))
        chosen = choose(logits, [row.ticket.request.sampling for row in rows], [row.dice for row in rows])
        self.counts.tokens += len(rows)
        for row, one in zip(rows, chosen, strict=True):
            row.chosen.append(one)
            self._tell(row)

    def _tell(self, row: Row) -> None:
        """Reports the row's newest token, if there is anything to report."""
        request, count = row.ticket.request, len(row.chosen)
        ended: Reason | None = None
        if row.chosen[-1].token in self._ends:
            ended = "stop"
        elif count >= request.max_new_tokens:
            ended = "length"
        if ended is None and not request.stream and not row.writing.looks:
            return
        own = row.chosen[: count - (ended == "stop")]
        new = row.writing.read([one.token for one in own], ended is not None)
        if row.writing.stopped:
            ended = "stop"
        row.ended = ended is not None
        if row.ended:
            self.counts.rows = max(0, self.counts.rows - 1)
        if not row.ended and not (request.stream and new):
            return
        tokens = own[row.reported : row.writing.kept] if request.sampling.logprobs is not None else []
        row.reported += len(tokens)
        text = new if request.stream else row.writing.text
        row.ticket.report(Piece(row.choice, text, tuple(tokens), ended, count))


def _batches(media: dict[bytes, Tensor]) -> Iterator[dict[bytes, Tensor]]:
    """The media (F, C, H, W) that are encoded together: of up to FRAMES frames, or one that has more."""
    some: dict[bytes, Tensor] = {}
    frames = 0
    for key, pixels in media.items():
        if some and frames + len(pixels) > FRAMES:
            yield some
            some, frames = {}, 0
        some[key] = pixels
        frames += len(pixels)
    if some:
        yield some


def _run_call(function: Callable[[], Any], future: Future[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except Exception as error:  # noqa: BLE001  it is raised where the result is awaited
        future.set_exception(error)


def _ends(model: Any) -> frozenset[int]:
    """The tokens at which `generate` stops."""
    ends = model.generation_config.eos_token_id
    return frozenset([ends] if isinstance(ends, int) else ends or ())


def _media_of(requests: Sequence[Request], images: dict[bytes, Media]) -> Media | None:
    """The media of whole prompts."""
    values: list[Media] = []
    places: dict[Any, tuple[int, ...]] = {}
    total = 0

    def place(key: Any, media: Media) -> tuple[int, ...]:
        """The indices of some images among all."""
        nonlocal total
        if key not in places:
            places[key] = tuple(total + image for image in media.rows[0])
            values.append(media)
            total += len(media.latents)
        return places[key]

    rows = []
    for request in requests:
        shown = None if request.prefix is None else request.prefix.media
        row = () if shown is None else place(id(shown), shown)
        for picture in request.pictures:
            row += place(picture.key, images[picture.key])
        rows.append(row)
    return Media.join(values, tuple(rows)) if values else None


def _media_of_rows(rows: Sequence[Row]) -> Media | None:
    """A prompt for each row, with what its steps need."""
    values = [row.media for row in rows if row.media is not None]
    if not values:
        return None
    place = count()
    images = [() if row.media is None else tuple(next(place) for _ in row.media.rows[0]) for row in rows]
    return Media.join(values, tuple(images))
