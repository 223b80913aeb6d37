"""The page's layout, in Gradio: demonstrations and query on one side, what the models make of them on the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import lru_cache, partial, wraps
from itertools import count
from pathlib import Path
from typing import Any

import gradio as gr

from flamboyance import examples, templates
from flamboyance.files import read_text
from flamboyance.images import load_image
from flamboyance.task_files import TaskFile, as_json, parse_task
from flamboyance.templates import Template
from flamboyance.videos import find_video
from flamboyance.web import drawing
from flamboyance.web.answers import CAPTION, OWN, QUESTION, Answers, Shot, Side, kind_of, labels_of, template_of

HERE = Path(__file__).parent
NOTHING, WITHOUT = "Nothing", "No demonstrations"
ALL_BLOCKS = "All blocks, weighted by their gates"
PATTERN = "<image>A picture of {text}."
MOST = 64  # demonstrations
MISTAKES = (ValueError, OSError, RuntimeError)  # what is said on the page
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
# The browser saves a text as a file by itself.
SAVE_FILE = """(name, text) => {
  if (!text) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = `${name.trim() || "task"}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}"""
HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
KEEP = object()
STILLS = "the model is one of still images"
_numbers = count(1)


def theme() -> gr.themes.Base:
    """Quiet surfaces, one accent, and the fonts that the reader's system has."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.rose,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=FONTS,
        font_mono=MONO,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_500",
        block_shadow="none",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
    )


def build(answers: Answers) -> gr.Blocks:
    """The page over these models; the first one answers, and the others can be compared with it."""
    names = list(answers.models)
    layers = answers.models[names[0]][0].cross_attention_layers
    videos = answers.takes_videos(names[0])
    files = ["image", "video"] if videos else ["image"]
    with gr.Blocks(title="Flamboyance", analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as page:
        gr.HTML(drawing.header(names))
        shots, found, saved = gr.State([]), gr.State([]), gr.Textbox(visible=False)
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=5, min_width=320):
                with gr.Row(elem_classes="tools"):
                    captions = gr.Button("Example: captions", size="sm", min_width=140, elem_id="example-captions")
                    asked = gr.Button("Example: a question", size="sm", min_width=140, elem_id="example-question")
                    opened = gr.UploadButton(
                        "Open a task", size="sm", file_types=[".json"], min_width=140, elem_id="open"
                    )
                kind = gr.Radio(
                    [CAPTION, QUESTION, OWN],
                    value=CAPTION,
                    label="What the model does",
                    interactive=True,
                    elem_id="kind",
                )
                pattern = gr.Textbox(
                    PATTERN,
                    label="Pattern (press Enter to use it)",
                    info="<image> stands for the image; the last field in braces is the answer",
                    visible=False,
                    interactive=True,
                    elem_id="pattern",
                )
                gr.HTML("<h2>Demonstrations</h2>")

                # Listeners that read the texts of the demonstrations are made with the boxes that hold them.
                @gr.render(
                    inputs=[shots, kind, pattern],
                    triggers=[page.load, shots.change, kind.change, pattern.submit],
                    show_progress="hidden",
                )
                def _demonstrations(now: list[Shot], chosen: str, own: str) -> None:
                    rows = [_row(shot, place, _known(chosen, own)) for place, shot in enumerate(now)]
                    if not rows:
                        gr.HTML('<p class="hint">None yet: without them, the model answers the query alone.</p>')
                    boxes = [box for row in rows for box in row.boxes]
                    for place, row in enumerate(rows):
                        for button, change in ((row.up, _moved(place, -1)), (row.down, _moved(place, 1))):
                            button.click(_on_shots(change), [shots, *boxes], shots, **HIDDEN)
                        row.remove.click(_on_shots(_removed(place)), [shots, *boxes], shots, **HIDDEN)
                    added.upload(
                        partial(_with_media, videos), [added, shots, *boxes], [shots, added, problem], **HIDDEN
                    )
                    setting = [image, video, question, labels, beside, tokens, beams, layer]
                    running = gr.on(
                        [run.click, question.submit],
                        _runner(answers),
                        [kind, pattern, *setting, shots, *boxes],
                        [result, found, layer, problem, stop],
                        **HIDDEN,
                    )
                    stop.click(lambda: gr.update(visible=False), None, stop, cancels=[running], **HIDDEN)
                    save.click(
                        _task_text, [kind, pattern, name, shots, *boxes], [saved, problem], **HIDDEN
                    ).then(None, [name, saved], js=SAVE_FILE)  # fmt: skip

                added = gr.File(
                    label="Add demonstrations",
                    show_label=False,
                    file_count="multiple",
                    file_types=files,
                    height=72,
                    interactive=True,
                    elem_id="add",
                    elem_classes=["drop", "videos"] if videos else ["drop"],
                )
                gr.HTML("<h2>Query</h2>")
                with gr.Row(elem_id="query"):
                    image = gr.Image(
                        type="filepath",
                        image_mode=None,
                        sources=["upload", "clipboard"],
                        label="Image",
                        height=200,
                        buttons=[],
                        interactive=True,
                        min_width=160,
                        elem_id="query-image",
                    )
                    with gr.Column(min_width=160):
                        video = gr.File(
                            label="Or a video",
                            show_label=False,
                            file_types=["video"],
                            height=72,
                            visible=videos,
                            interactive=True,
                            elem_id="query-video",
                            elem_classes="drop",
                        )
                        question = gr.Textbox(label="Question", visible=False, interactive=True, elem_id="question")
                        labels = gr.Textbox(
                            label="Answers to choose from (optional)",
                            placeholder="ring, cross, square",
                            lines=2,
                            max_lines=6,
                            interactive=True,
                            elem_id="labels",
                        )
                with gr.Accordion("Settings", open=False):
                    beside = gr.Radio(
                        [NOTHING, WITHOUT, *names[1:]], value=NOTHING, label="Compare with", interactive=True
                    )
                    tokens = gr.Slider(1, 100, 20, step=1, label="Longest answer, in tokens", interactive=True)
                    beams = gr.Slider(
                        1, 5, 1, step=1, label="Beams (with 1, the answer is shown as it grows)", interactive=True
                    )
                with gr.Row(elem_classes="tools"):
                    run = gr.Button("Run", variant="primary", elem_id="run", min_width=140)
                    stop = gr.Button("Stop", visible=False, elem_id="stop", min_width=80)
                with gr.Row(elem_classes="tools saving"):
                    name = gr.Textbox("my task", label="Task name", interactive=True, elem_id="name", min_width=140)
                    save = gr.Button("Save task", elem_id="save", min_width=120)
            with gr.Column(scale=6, min_width=320, elem_id="results"):
                problem = gr.HTML(elem_id="problem")
                result = gr.HTML(drawing.sides([], None), elem_id="result")
                layer = gr.Dropdown(
                    [(ALL_BLOCKS, -1), *((f"The block before layer {number}", number) for number in layers)],
                    value=-1,
                    label="Heat maps of",
                    visible=False,
                    interactive=True,
                    elem_id="layer",
                )
        gr.HTML('<p class="foot">Everything is computed on this machine. Nothing is sent anywhere.</p>')

        prompt = [shots, kind, pattern, image, video, question, problem]
        captions.click(lambda: _example(CAPTION), None, prompt, **HIDDEN)
        asked.click(lambda: _example(QUESTION), None, prompt, **HIDDEN)
        opened.upload(partial(_opened, videos), opened, [shots, kind, pattern, problem], **HIDDEN)
        gr.on(
            [page.load, kind.change, pattern.submit],
            lambda chosen, own: (
                gr.update(visible=chosen == OWN),
                gr.update(visible=len(_known(chosen, own).fields) > 1),
            ),
            [kind, pattern],
            [pattern, question],
            **HIDDEN,
        )
        layer.change(drawing.sides, [found, layer], result, **HIDDEN)
    return page.queue(default_concurrency_limit=1)


# Demonstrations -----------------------------------------------------------------------------------------------------


class _row:
    """The controls of one demonstration: its image, a box for each text, and buttons."""

    def __init__(self, shot: Shot, place: int, template: Template) -> None:
        with gr.Row(elem_classes="shot"):
            gr.HTML(_thumbnail(shot.image, f"demonstration {place + 1}"), elem_classes="thumb", min_width=64)
            with gr.Column(min_width=100, elem_classes="texts"):
                self.boxes = [
                    gr.Textbox(
                        text,
                        label=f"{field.capitalize()} of demonstration {place + 1}",
                        placeholder="what the model should say of it" if field == template.fields[-1] else field,
                        show_label=False,
                        container=False,
                        key=f"{shot.number}-{len(template.fields) - at}",  # what is typed stays when rows move
                        interactive=True,
                        elem_classes="said",
                    )
                    for at, (field, text) in enumerate(zip(template.fields, shot.fields(template), strict=True))
                ]
            with gr.Row(elem_classes="buttons"):
                self.up, self.down, self.remove = (
                    gr.Button(f"{what} demonstration {place + 1}", size="sm", min_width=32, elem_classes=["icon", kind])
                    for what, kind in (("Move up", "up"), ("Move down", "down"), ("Remove", "remove"))
                )


@lru_cache(maxsize=64)
def _thumbnail(content: bytes, name: str) -> str:
    video = find_video(content)
    return drawing.thumbnail(load_image(content) if video is None else video.middle(), name)


def _with_texts(now: Sequence[Shot], texts: Sequence[str]) -> list[Shot]:
    """The demonstrations with what is in their boxes: as many for each."""
    each = len(texts) // len(now) if now else 0
    return [
        Shot(shot.image, tuple(text or "" for text in texts[i * each : (i + 1) * each]), shot.number)
        for i, shot in enumerate(now)
    ]


def _on_shots(change: Callable[[list[Shot]], list[Shot]]) -> Callable[..., list[Shot]]:
    return lambda now, *texts: change(_with_texts(now, texts))


def _moved(place: int, by: int) -> Callable[[list[Shot]], list[Shot]]:
    def move(now: list[Shot]) -> list[Shot]:
        to = max(0, min(len(now) - 1, place + by))
        now[place], now[to] = now[to], now[place]
        return now

    return move


def _removed(place: int) -> Callable[[list[Shot]], list[Shot]]:
    return lambda now: now[:place] + now[place + 1 :]


def _shot(content: bytes, *texts: str) -> Shot:
    return Shot(content, texts, next(_numbers))


def _said(*after_mistake: Any) -> Callable[..., Callable[..., tuple[Any, ...]]]:
    """Adds the message to a listener's outputs. `after_mistake`: the outputs then; KEEP leaves one as it is."""

    def decorate(work: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
        @wraps(work)
        def listener(*given: Any) -> tuple[Any, ...]:
            try:
                return (*work(*given), "")
            except MISTAKES as error:
                return (*(gr.skip() if one is KEEP else one for one in after_mistake), drawing.message(str(error)))

        return listener

    return decorate


@_said(KEEP, KEEP)
def _with_media(videos: bool, paths: list[str], now: list[Shot], *texts: str) -> tuple[Any, ...]:
    """`videos`: whether the model takes them."""
    if len(now) + len(paths) > MOST:
        raise ValueError(f"{len(now) + len(paths)} demonstrations are too many; the page takes {MOST}.")
    return [*_with_texts(now, texts), *(_shot(_medium(path, videos)) for path in paths)], None


def _medium(path: str, videos: bool) -> bytes:
    """The content of an image or video file that was uploaded.

    `videos`: whether the model takes them.
    """
    content = Path(path).read_bytes()
    try:
        video = find_video(content) if content else None
        if video is None:
            load_image(content)
        elif videos:
            video.middle()
        else:
            raise ValueError(f"it is a video or an animation, and {STILLS}")
    except ValueError as error:
        raise ValueError(f"{Path(path).name} cannot be used: {error}") from error
    return content


# Tasks --------------------------------------------------------------------------------------------------------------


def _known(kind: str, own: str) -> Template:
    """The template of the page's choice; while its pattern is not valid, that of captions."""
    try:
        return _template(kind, own)
    except ValueError:
        return templates.caption


def _template(kind: str, own: str) -> Template:
    template = template_of(kind, own)
    if len(template.fields) > 2 or template.pattern.count("<image>") != 1:
        raise ValueError(
            f"The pattern {template.pattern!r} cannot be used on this page: it takes one <image>, the answer, and at "
            "most one field before it."
        )
    return template


@_said(KEEP, KEEP, KEEP, KEEP, KEEP, KEEP)
def _example(kind: str) -> tuple[Any, ...]:
    if kind == CAPTION:
        shots = [_shot(path.read_bytes(), text) for path, text in examples.demonstrations]
        return shots, CAPTION, gr.skip(), str(examples.queries[0]), None, ""
    shots = [
        _shot(path.read_bytes(), f"what color is the {text.split()[-1]}?", text.split()[-2])
        for path, text in examples.demonstrations[:2]
    ]
    return shots, QUESTION, gr.skip(), str(examples.queries[1]), None, "what color is the cross?"


@_said(KEEP, KEEP, KEEP)
def _opened(videos: bool, path: str) -> tuple[Any, ...]:
    """`videos`: whether the model takes them."""
    task = parse_task(read_text(path), Path(path).name)
    kind, pattern = kind_of(task.template)
    ours = (_template(kind, pattern), templates.classification)  # which is written as a caption
    if task.template not in ours:
        raise ValueError(
            f"{Path(path).name} has the template {task.template!r}. The page has fields for the pattern alone, and "
            "would end answers elsewhere; use the task with `flamboyance caption --demonstrations`, or the server."
        )
    if not videos and _any_video(image for image, *_ in task.demonstrations):
        raise ValueError(f"{Path(path).name} has a video or an animation among its demonstrations, and {STILLS}.")
    return [_shot(*demonstration) for demonstration in task.demonstrations], kind, pattern if kind == OWN else PATTERN


def _any_video(contents: Iterable[bytes]) -> bool:
    return any(find_video(content) is not None for content in contents)


@_said("")
def _task_text(kind: str, own: str, name: str, now: list[Shot], *texts: str) -> tuple[Any, ...]:
    template = _template(kind, own)
    if not now:
        raise ValueError("There is nothing to save yet: add a demonstration.")
    shots = [(shot.image, *shot.fields(template)) for shot in _with_texts(now, texts)]
    return (json.dumps(as_json(TaskFile(name, template, tuple(shots))), ensure_ascii=False),)


# Answers ------------------------------------------------------------------------------------------------------------


def _runner(answers: Answers) -> Callable[..., Generator[tuple[Any, ...]]]:
    first = next(iter(answers.models))

    def run(
        kind: str,
        own: str,
        image: str | None,
        video: str | None,
        question: str,
        labels: str,
        beside: str,
        tokens: float,
        beams: float,
        layer: int,
        now: list[Shot],
        *texts: str,
    ) -> Generator[tuple[Any, ...]]:
        shown: list[Side] = []

        def outputs(problem: str = "", busy: bool = True) -> tuple[Any, ...]:
            has_maps = any(side.maps is not None for side in shown)
            maps = gr.update(visible=has_maps)
            return drawing.sides(shown, layer), shown, maps, drawing.message(problem), gr.update(visible=busy)

        try:
            template = _template(kind, own)
            if image is not None and video is not None:
                raise ValueError("The query has an image and a video: remove one of them.")
            if (given := image or video) is None:
                raise ValueError("The query has no image yet: drop one under Query.")
            asked = [question.strip()] if len(template.fields) > 1 else []
            if asked == [""]:
                raise ValueError("The query has no question yet: write one beside its image.")
            query = (_medium(given, answers.takes_videos(first)), *asked)
            choices = labels_of(labels)
            if len(choices) == 1:
                raise ValueError(f"There is one answer to choose from, {choices[0]!r}: write two or more, or none.")
            shots = _with_texts(now, texts)
            shown += _sides(first, beside, shots)
            for side in shown:
                if not answers.takes_videos(side.model) and _any_video(
                    [query[0], *(shot.image for shot in side.shots)]
                ):
                    raise ValueError(f"{side.model} cannot be compared here: {STILLS}, and there is a video.")
            for side in shown:
                side.state = "reading the demonstrations" if side.shots else "reading the image"
                yield outputs()
                task = answers.task(side, template)
                for side.answer in answers.stream(task, query, int(tokens), int(beams)):
                    side.state = "writing"
                    yield outputs()
                if choices:
                    side.state = "comparing the answers"
                    yield outputs()
                    side.chances = answers.chances(task, query, choices)
                side.state = "looking"
                yield outputs()
                side.maps = answers.look(task, query, side.answer)
                side.state = ""
            yield outputs(busy=False)
        except MISTAKES as error:
            shown = [side for side in shown if side.answer]
            for side in shown:
                side.state = ""
            yield outputs(str(error), busy=False)

    return run


def _sides(first: str, beside: str, shots: list[Shot]) -> list[Side]:
    """The answers to show: the first model's, and what it is compared with."""
    number = f"{len(shots)} demonstration{'' if len(shots) == 1 else 's'}"
    if beside == NOTHING:
        return [Side(first, shots, f"{first}, {number}")]
    if beside == WITHOUT:
        return [Side(first, shots, number), Side(first, [], "No demonstrations")]
    return [Side(first, shots, f"{first}, {number}"), Side(beside, shots, f"{beside}, {number}")]
