"""The figure of docs/what-is-flamingo.md. Edit this file and run it: it is the figure's source.

    python -m scripts.architecture_figure        # writes docs/pictures/architecture.svg

The colours follow the reader's light or dark setting.
"""

from __future__ import annotations

from pathlib import Path

from flamboyance.files import write_text

FILE = Path(__file__).parents[1] / "docs" / "pictures" / "architecture.svg"
WIDTH, HEIGHT = 640, 720
STYLE = """
  svg { --ink: #23202b; --soft: #6b6675; --frozen: #dbe9f6; --frozen-line: #3b76ad; --trained: #fbdbe6;
        --trained-line: #b3245b; --paper: #ffffff }
  @media (prefers-color-scheme: dark) {
    svg { --ink: #efedf3; --soft: #aaa5b5; --frozen: #1f3448; --frozen-line: #7db4e6; --trained: #4b1e30;
          --trained-line: #ff8fb5; --paper: #2b2833 } }
  text { font: 16px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: var(--ink) }
  .small { font-size: 13.5px; fill: var(--soft) }
  .code { font: 14px ui-monospace, "DejaVu Sans Mono", monospace }
  .frozen { fill: var(--frozen); stroke: var(--frozen-line); stroke-width: 1.5 }
  .trained { fill: var(--trained); stroke: var(--trained-line); stroke-width: 1.5 }
  .paper { fill: var(--paper); stroke: var(--soft) }
  .arrow { fill: none; stroke: var(--soft); stroke-width: 1.6; marker-end: url(#head) }
  .line { fill: none; stroke: var(--soft); stroke-width: 1.6 }
"""
LEFT, RIGHT = 125, 455  # the middles of the two columns
BUS = 268  # where the latents' line runs up to the blocks


def draw() -> str:
    """The SVG."""
    parts = [
        *legend(),
        # What the images go through, from below.
        *picture(70, 625, "#d03a3a"),
        *picture(180, 625, "#2f9e44"),
        label(LEFT, 692, "images", "small"),
        arrow(70, 595, 70, 566),
        arrow(180, 595, 180, 566),
        *box("frozen", LEFT, 510, 210, 54, "vision tower"),
        arrow(LEFT, 510, LEFT, 466),
        label(LEFT + 10, 493, "patches", "small", "start"),
        *box("trained", LEFT, 410, 210, 54, "resampler"),
        arrow(LEFT, 410, LEFT, 366),
        *latents(),
        f'<path class="line" d="M231 340 H{BUS}"/>',
        f'<path class="line" d="M{BUS} 487 V210"/>',
        # What the text goes through, from below.
        *box("paper", RIGHT, 590, 330, 70, ""),
        label(RIGHT, 620, "&lt;image&gt;Output:a large red ring", "code"),
        label(RIGHT, 643, "&lt;|endofchunk|&gt;&lt;image&gt;Output:", "code"),
        label(RIGHT, 692, "text", "small"),
        arrow(RIGHT, 590, RIGHT, 566),
        *box("frozen", RIGHT, 526, 290, 38, "token embeddings"),
        arrow(RIGHT, 526, RIGHT, 512),
        *box("trained", RIGHT, 464, 290, 46, "gated cross-attention"),
        arrow(RIGHT, 464, RIGHT, 450),
        *box("frozen", RIGHT, 402, 290, 46, "language model, layer 1"),
        arrow(RIGHT, 402, RIGHT, 340),
        label(RIGHT, 324, "· · ·"),
        arrow(RIGHT, 304, RIGHT, 235),
        *box("trained", RIGHT, 187, 290, 46, "gated cross-attention"),
        arrow(RIGHT, 187, RIGHT, 173),
        *box("frozen", RIGHT, 125, 290, 46, "language model, layer n"),
        arrow(RIGHT, 125, RIGHT, 111),
        *box("frozen", RIGHT, 71, 290, 38, "output head"),
        arrow(RIGHT, 71, RIGHT, 48),
        label(RIGHT, 36, "a large green ring", "code"),
        *(arrow(BUS, y, RIGHT - 147, y) for y in (210, 487)),
    ]
    title = "Images go through the vision tower and the resampler; gated cross-attention brings them to the text"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
            f"<title>{title}</title>",
            f"<style>{STYLE}</style>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
            ' orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="var(--soft)"/></marker></defs>',
            *parts,
            "</svg>\n",
        ]
    )


def box(kind: str, x: int, y: int, width: int, height: int, text: str) -> list[str]:
    """A box with a text, centred at x; y is its upper edge."""
    shape = f'<rect class="{kind}" x="{x - width // 2}" y="{y}" width="{width}" height="{height}" rx="9"/>'
    return [shape, label(x, y + height // 2 + 6, text)] if text else [shape]


def label(x: int, y: int, text: str, kind: str = "", anchor: str = "middle") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'


def arrow(x1: int, y1: int, x2: int, y2: int) -> str:
    return f'<path class="arrow" d="M{x1} {y1} L{x2} {y2}"/>'


def picture(x: int, y: int, color: str) -> list[str]:
    """A drawing of a ring, 60 pixels wide, centred."""
    return [
        f'<rect class="paper" x="{x - 30}" y="{y - 30}" width="60" height="60" rx="5"/>',
        f'<circle cx="{x}" cy="{y}" r="16" fill="none" stroke="{color}" stroke-width="8"/>',
    ]


def latents() -> list[str]:
    """Two rows of small squares: the latents of two images."""
    squares = [
        f'<rect class="trained" x="{33 + 25 * column}" y="{y}" width="17" height="17" rx="4"/>'
        for y in (318, 343)
        for column in range(8)
    ]
    return [*squares, label(LEFT, 302, "latents: 64 for each image", "small")]


def legend() -> list[str]:
    return [
        '<rect class="frozen" x="22" y="24" width="30" height="22" rx="6"/>',
        label(62, 41, "frozen: as it was pretrained", "small", "start"),
        '<rect class="trained" x="22" y="58" width="30" height="22" rx="6"/>',
        label(62, 75, "trained", "small", "start"),
    ]


if __name__ == "__main__":
    write_text(FILE, draw())
