"""`index.html`: what was shown, asked and answered, as one page without anything from elsewhere."""

from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from flamboyance.demo.cards import e, set_card
from flamboyance.demo.plot import DARK, LIGHT
from flamboyance.demo.results import FILE, AnsweredTask, Results
from flamboyance.demo.snippets import MINI, prompt, python
from flamboyance.files import write_text
from flamboyance.mini.world.words import COLORS, SHAPES, SIZES

PAGE = "index.html"
AT_ONCE = {"words": 8}  # sets in sight; the rest is folded away
FEW = 2


def write_page(results: Results, folder: Path) -> Path:
    """Writes `index.html`, which refers to the images and plots beside it. Every text is escaped."""
    page = folder / PAGE
    write_text(page, _document(results))
    return page


def _document(results: Results) -> str:
    css = files("flamboyance.demo").joinpath("page.css").read_text(encoding="utf-8")
    sections = "\n".join(_section(task, results) for task in results.tasks)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{e(results.model)} on held-out pictures</title>
<style>
{css}</style>
</head>
<body>
{_header(results)}
<main>
{_table(results)}
{_limits(results)}
<figure class="plot"><picture>
<source srcset="{DARK}" media="(prefers-color-scheme: dark)">
<img src="{LIGHT}" alt="Accuracy against the number of shots; the figures are those of the table">
</picture></figure>
<label class="filter"><input type="checkbox" id="wrong"> Show only queries with a wrong answer</label>
{sections}
</main>
{_footer(results)}
</body>
</html>
"""


def _header(results: Results) -> str:
    links = "".join(f'<a href="#{task.task.name}">{e(task.task.title)}</a>' for task in results.tasks)
    return f"""<header>
<h1><em>{e(results.model)}</em> on pictures it has never seen</h1>
<p>A Flamingo of {_millions(results.parameters)} parameters looks at a few pictures with their texts, the
<em>demonstrations</em>, and then says of a new picture, the <em>query</em>, what it makes of it. Its language model and
its vision tower are frozen; the {_millions(results.trained)} parameters between them have learned to look. Nothing is
trained here: what differs from shot to shot is only what stands before the query.</p>
<nav>{links}</nav>
</header>"""


def _limits(results: Results) -> str:
    """What the figures do not say."""
    world = f"""pictures of 64 × 64 pixels with up to three things ({", ".join(SHAPES)}) in {len(COLORS)} colours and
{len(SIZES)} sizes on a grey ground, or one handwritten digit"""
    if results.model != MINI:
        return f"""<section id="limits">
<h2>What these figures do not say</h2>
<p>All pictures are of one small world, for which {MINI} was made: {world}. <strong>Other pictures are outside of
it.</strong> How {e(results.model)} does here says nothing of how it does on photographs.</p>
</section>"""
    return f"""<section id="limits">
<h2>What these figures do not say</h2>
<p>All pictures are of the one small world that the model was trained on: {world}. Held out are the pictures, not the
world. <strong>Other pictures are outside of it</strong>: of a photograph, another shape or a thing of another size the
model speaks just as surely, in the few words that it knows, and what it says means nothing.</p>
<p>That it takes a made-up word from the demonstrations was not learned by the papers' loss alone: its training had an
auxiliary loss and a gate set by hand. These figures are no measure of what a large Flamingo does with real images.</p>
</section>"""


def _millions(number: int) -> str:
    return f"{number / 1e6:.1f} million" if number >= 100_000 else f"{number:,}"


def _table(results: Results) -> str:
    head = "".join(f'<th scope="col">{_shots(shots)}</th>' for shots in results.shots)
    rows = "\n".join(
        f'<tr><th scope="row"><a href="#{task.task.name}">{e(task.task.title)}</a>{_chance(task)}</th>'
        + "".join(_cell(task, shots) for shots in results.shots)
        + "</tr>"
        for task in results.tasks
    )
    return f"""<div class="wide"><table>
<caption>Right answers, with Wilson's 95 % interval (each query counted as independent)</caption>
<thead><tr><th scope="col">Task</th>{head}</tr></thead>
<tbody>
{rows}
</tbody></table></div>"""


def _chance(task: AnsweredTask) -> str:
    return "" if task.task.chance is None else f"<br><small>chance: {task.task.chance:.0%}</small>"


def _cell(task: AnsweredTask, shots: int) -> str:
    cell = task.cell(shots)
    low, high = cell.interval
    return (
        f'<td><strong>{cell.accuracy:.1%}</strong><span class="bar"><i style="width:{cell.accuracy:.1%}"></i></span>'
        f"<small>{cell.right} of {cell.total}</small><small>{100 * low:.0f}–{100 * high:.0f} %</small></td>"
    )


def _shots(shots: int) -> str:
    return f"{shots} shot{'s' * (shots != 1)}"


def _section(task: AnsweredTask, results: Results) -> str:
    cards = [set_card(number, part, results.shots) for number, part in enumerate(task.sets)]
    seen = AT_ONCE.get(task.task.name, FEW)
    rest = "\n".join(cards[seen:])
    more = f"<details><summary>{len(cards) - seen} more</summary>\n{rest}\n</details>" if rest else ""
    few = results.shots[1] if len(results.shots) > 1 else results.shots[0]
    shown = "\n".join(cards[:seen])
    return f"""<section id="{task.task.name}" class="{task.task.name}">
<h2>{e(task.task.title)}</h2>
<p>{e(task.task.about)}</p>
<details><summary>The prompt of the first query, and the same in Python</summary>
<p class="soft">What the model reads with {_shots(few)}: one line of text, broken here for reading, with a picture at
each <code>&lt;image&gt;</code>.</p>
<pre class="prompt">{prompt(task, few)}</pre>
<p class="soft">Run in this folder:</p>
<pre>{e(python(task, few, results.model))}</pre>
</details>
{shown}
{more}
</section>"""


def _footer(results: Results) -> str:
    return f"""<footer>
<p>Drawn, written and answered in {results.seconds:.0f} seconds by flamboyance {e(version("flamboyance"))}, seed
{results.seed}. Every answer above is in <a href="{FILE}">{FILE}</a>, every picture in <a href="images/">images</a>.</p>
<p>The handwritten digits are scans from the test part of the Optical Recognition of Handwritten Digits data set
(E. Alpaydin and C. Kaynak, UCI Machine Learning Repository), which scikit-learn bundles.</p>
</footer>"""
