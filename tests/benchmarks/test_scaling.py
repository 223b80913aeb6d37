"""docs/scaling.md has the figures that the code gives."""

import pytest

from benchmarks import scaling


@pytest.mark.slow
@pytest.mark.parametrize("name", scaling.TABLES)
def test_the_page_has_what_the_script_prints(name: str) -> None:
    assert scaling.written(name, scaling.PAGE.read_text(encoding="utf-8")) == scaling.table(name)


def test_a_page_without_a_marker_is_refused() -> None:
    with pytest.raises(ValueError, match="scaling: 3b"):
        scaling.written("3b", "| devices |")
