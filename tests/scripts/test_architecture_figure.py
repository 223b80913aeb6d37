"""docs/pictures/architecture.svg is what its source draws."""

from xml.etree import ElementTree

from scripts import architecture_figure


def test_the_figure_is_what_its_source_draws() -> None:
    assert architecture_figure.FILE.read_text(encoding="utf-8") == architecture_figure.draw()


def test_the_figure_is_valid_and_fits_its_frame() -> None:
    root = ElementTree.fromstring(architecture_figure.draw())
    for box in root.iter("{http://www.w3.org/2000/svg}rect"):
        x, y, width, height = (float(box.attrib[name]) for name in ("x", "y", "width", "height"))
        assert x >= 0 and x + width <= architecture_figure.WIDTH
        assert y >= 0 and y + height <= architecture_figure.HEIGHT
