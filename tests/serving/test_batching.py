"""Requests that are computed together give what each gives alone, whenever they come."""

import queue
import threading

import pytest
import torch

from flamboyance import FewShotTask, templates
from flamboyance.prompting import tokens_after_a_chunk
from flamboyance.serving.batching import Busy, Engine, Picture, Request, Stopped
from flamboyance.serving.sampling import Chosen, Dice, Sampling, choose
from tests.model.families import make
from tests.model.zoo import tiny_config
from tests.test_few_shot import DEMONSTRATIONS, picture, processor

SECONDS = 60
TEXTS = [
    ("<image>Output:", 1),
    ("w1 w2", 0),
    ("<image>what is this ?<|endofchunk|><image>is w5 w6 w7 w8 w9 this", 2),
    ("<image>a red", 1),
]


@pytest.fixture
def started():
    engines = []

    def start(*given, **named):
        engines.append(Engine(*given, **named))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def ask(engine, request):
    """Submits a request; its pieces are in the queue."""
    pieces = queue.Queue()
    ticket = engine.submit(request, pieces.put)
    return ticket, pieces


def last(pieces, choices=1):
    """The last piece of each choice, by its number."""
    found = {}
    while len(found) < choices:
        piece = pieces.get(timeout=SECONDS)
        if isinstance(piece, Exception):
            raise piece
        if piece.ended is not None:
            found[piece.choice] = piece
    return found[0] if choices == 1 else found


def pictures(reader, *numbers):
    return tuple(Picture(bytes([n]), reader.prepare(picture(n)).pixels) for n in numbers)


def offline(model, reader, text, images, new):
    inputs = reader([text], [images])
    out = model.generate(
        **inputs, do_sample=False, max_new_tokens=new, output_logits=True, return_dict_in_generate=True
    )
    ids = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    never = torch.tensor(model._never_generated())
    logits = torch.stack([step[0] for step in out.logits]).index_fill(1, never, float("-inf"))
    return ids, logits.log_softmax(-1)[range(len(ids)), ids]


@pytest.mark.parametrize("family", ["llama", "mpt", "gemma3_text", "lfm2", "every image"])
def test_rows_that_join_and_leave_get_what_generate_gives(family, started):
    if family == "lfm2":  # its state is not keys and values alone
        model = make(family, cross_attn_every_n_layers=2, text_config=tiny_config(family))
    elif family == "every image":
        model = make("llama", only_attend_immediate_media=False)
    else:
        model = make(family)
    reader = processor()
    task = FewShotTask(model, reader, DEMONSTRATIONS, template=templates.vqa)
    shots = [image for image, *_ in DEMONSTRATIONS]
    requests, expected = [], []
    for number, (text, count) in enumerate(TEXTS):
        new = 3 + 2 * number
        shown = list(range(10 + number, 10 + number + count))
        (ids,) = reader.tokenize([text])
        asked = Sampling(logprobs=0)
        requests.append(Request(tuple(ids), pictures(reader, *shown), max_new_tokens=new, sampling=asked))
        expected.append(offline(model, reader, text, [picture(n) for n in shown], new))
        if count != 1:
            continue
        # The same query behind demonstrations that are computed already.
        whole = "".join(task.texts) + text
        (after,) = tokens_after_a_chunk(reader, [text])
        ids = (*task.prefix.ids.tolist(), *after)
        requests.append(Request(ids, pictures(reader, *shown), task.prefix, new, asked))
        expected.append(offline(model, reader, whole, [*shots, picture(shown[0])], new))

    engine = started(model, reader)
    # The first request streams; each of its tokens brings another one, which joins the batch in the next step.
    rest = iter(requests[1:])
    queues = []

    def bring(_):
        if (request := next(rest, None)) is not None:
            queues.append(ask(engine, request)[1])

    first = queue.Queue()
    streamed = Request(**vars(requests[0]) | {"stream": True, "max_new_tokens": 12})
    engine.submit(streamed, lambda piece: (bring(piece), first.put(piece)))
    last(first)
    for request in rest:
        queues.append(ask(engine, request)[1])
    for (ids, logprobs), pieces in zip(expected[1:], queues, strict=True):
        piece = last(pieces)
        kept = [one for one in ids if one != model.config.eoc_token_id]
        assert [one.token for one in piece.tokens] == kept
        found = torch.tensor([one.logprob for one in piece.tokens])
        torch.testing.assert_close(found, logprobs[: len(kept)], atol=1e-4, rtol=1e-4)
        assert piece.count == len(ids) and piece.ended == ("stop" if len(kept) < len(ids) else "length")
    assert engine.counts.failures == 0
    if family != "lfm2":
        assert engine.counts.steps < engine.counts.stepped_rows, "no step had several rows"


def test_a_seed_draws_the_same_alone_and_in_company(started):
    model, reader = make("llama"), processor()
    engine = started(model, reader)
    (ids,) = reader.tokenize(["<image>Output:"])
    settings = {"max_new_tokens": 8, "sampling": Sampling(1.5, 0.95, 0), "choices": 3}

    def drawn(seed, company=()):
        others = [ask(engine, request) for request in company]
        _, pieces = ask(engine, Request(tuple(ids), pictures(reader, 3), seed=seed, **settings))
        found = last(pieces, 3)
        for _, other in others:
            last(other)
        return [[one.token for one in found[choice].tokens] for choice in range(3)]

    alone = drawn(5)
    (long,) = reader.tokenize(["w1 w2 w3 w4 w5 w6 w7 w8 w9"])
    assert drawn(5, [Request(tuple(long), max_new_tokens=11)] * 2) == alone
    assert drawn(6)[:2] == alone[1:], "choice n of a seed is choice 0 of the seed n larger"
    assert drawn(900) != alone and len({tuple(one) for one in alone}) > 1


def test_tokens_are_drawn_by_their_probability():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -30.0])
    count = 2000
    for sampling in (Sampling(1.0, 1.0), Sampling(0.5, 1.0), Sampling(1.0, 0.85)):
        chosen = choose(logits.expand(count, -1), [sampling] * count, [Dice(i) for i in range(count)])
        found = torch.tensor([one.token for one in chosen]).bincount(minlength=5) / count
        wanted = (logits / sampling.temperature).softmax(-1)
        if sampling.top_p < 1:
            wanted[2:] = 0  # the first two have 0.88 together
            wanted /= wanted.sum()
        # Deviations of a share of 2,000 draws are below 0.012.
        assert (found - wanted).abs().max() < 0.07, (sampling, found, wanted)
        assert (found[wanted < 1e-9] == 0).all()
    tiny = choose(logits[None] * 1e30, [Sampling(1e-3, 1e-9)], [Dice(0)])
    assert tiny == [Chosen(0)]


def test_logprobs_are_those_of_the_model_whatever_the_temperature():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 5.0]])
    first, second = choose(logits, [Sampling(0.0, 1.0, 2), Sampling(0.0)], [Dice(0), Dice(0)])
    wanted = logits[0].log_softmax(-1)
    assert first.token == 0 and first.logprob == pytest.approx(float(wanted[0]), abs=1e-5)
    assert [token for token, _ in first.top] == [0, 1]
    assert [value for _, value in first.top] == pytest.approx(wanted[:2].tolist(), abs=1e-5)
    assert second == Chosen(2)


def test_stops_end_a_text_and_its_row(started):
    model, reader = make("llama"), processor()
    engine = started(model, reader)
    (ids,) = reader.tokenize(["<image>Output:"])
    plain = Request(tuple(ids), pictures(reader, 3), max_new_tokens=12, sampling=Sampling(logprobs=0))
    whole = last(ask(engine, plain)[1])
    words = whole.text.split()
    assert len(words) > 6 and words[5] not in words[:5]
    steps = engine.counts.steps
    stopped = last(ask(engine, Request(**vars(plain) | {"stops": (words[5],)}))[1])
    assert stopped.text == " ".join(words[:5]) and stopped.ended == "stop"
    assert stopped.tokens == whole.tokens[:5] and stopped.count == 6
    assert engine.counts.steps - steps == 5, "the row left where its text ended"


def test_a_full_queue_refuses_and_a_failure_is_one_requests_own(started):
    model, reader = make("llama"), processor()
    engine = started(model, reader, waiting=3)
    (ids,) = reader.tokenize(["w1 w2"])
    begun, hold = threading.Event(), threading.Event()
    held = engine.call(lambda: begun.set() or hold.wait(SECONDS))
    assert begun.wait(SECONDS)
    good = Request(tuple(ids), max_new_tokens=3)
    wrong = Request((*ids, model.config.image_token_id), max_new_tokens=3)  # no image for its <image>
    asked = [ask(engine, request)[1] for request in (good, wrong, good)]
    with pytest.raises(Busy):
        engine.submit(good, print)
    hold.set()
    assert held.result(SECONDS)
    assert last(asked[0]).text == last(asked[2]).text
    with pytest.raises(ValueError, match="1 <image>"):
        last(asked[1])
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda: 1 / 0).result(SECONDS)
    assert last(ask(engine, good)[1]).ended == "length", "the engine still works"


def test_a_cancelled_request_leaves(started):
    model, reader = make("llama"), processor()
    engine = started(model, reader)
    (ids,) = reader.tokenize(["w1 w2"])
    ticket, pieces = ask(engine, Request(tuple(ids), max_new_tokens=400, stream=True, sampling=Sampling(1.0), seed=1))
    pieces.get(timeout=SECONDS)
    ticket.cancel()
    assert last(ask(engine, Request(tuple(ids), max_new_tokens=3))[1]).count <= 3
    # This call runs after the round in which both rows are gone.
    assert engine.call(lambda: sum(len(batch.rows) for batch in engine._batches)).result(SECONDS) <= 1
    assert engine.counts.tokens < 400


def test_closing_ends_what_runs_and_what_waits():
    model, reader = make("llama"), processor()
    engine = Engine(model, reader, rows=1)
    (ids,) = reader.tokenize(["w1 w2"])
    hold = threading.Event()
    engine.call(lambda: hold.wait(SECONDS))
    asked = [ask(engine, Request(tuple(ids), max_new_tokens=400))[1] for _ in range(3)]
    closing = threading.Thread(target=engine.close)
    closing.start()
    while not engine._stopping:
        closing.join(0.01)
    hold.set()
    closing.join(SECONDS)
    for pieces in asked:
        with pytest.raises(Stopped):
            last(pieces)
    with pytest.raises(Stopped):
        engine.submit(Request(tuple(ids)), print)
    assert not engine.alive


def test_images_are_encoded_once_and_what_is_kept_is_bounded(started):
    model, reader = make("llama"), processor()
    engine = started(model, reader)
    (ids,) = reader.tokenize(["<image>Output:"])
    for number in (1, 2, 1, 1):
        last(ask(engine, Request(tuple(ids), pictures(reader, number), max_new_tokens=1))[1])
    assert (engine.counts.images_encoded, engine.counts.images_kept) == (2, 2)
    one = engine.counts.kept_bytes // 2
    small = started(model, reader, media_bytes=1.5 * one)
    for number in (1, 2, 2, 1):
        last(ask(small, Request(tuple(ids), pictures(reader, number), max_new_tokens=1))[1])
    assert (small.counts.images_encoded, small.counts.images_kept) == (3, 1)
    assert small.counts.kept_bytes == one
    # An image that was read when it was kept is used although it has been dropped since.
    known = engine.kept(bytes([1]))
    assert known is not None
    last(ask(small, Request(tuple(ids), (Picture(bytes([9]), known),), max_new_tokens=1))[1])
    assert small.counts.images_encoded == 3
