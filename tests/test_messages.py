"""What a newcomer reads: no bars for the embedded model, and messages that name what is missing and the fix."""

import sys

import pytest
from transformers.utils import logging

import flamboyance as fl
from flamboyance import __main__
from flamboyance.mini.world import scenes


@pytest.mark.parametrize("shown", [True, False])
def test_the_embedded_model_loads_without_bars_and_leaves_the_setting_alone(shown, capfd):
    before = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    try:
        fl.load_mini()
        assert "Loading weights" not in capfd.readouterr().err
        assert logging.is_progress_bar_enabled() == shown
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()


def test_digits_without_scikit_learn_name_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        scenes._all_digits.__wrapped__()


def test_a_tokenizer_out_of_reach_is_named(tmp_path):
    with pytest.raises(OSError, match=r"nowhere.*tokenizer"):
        fl.FlamingoProcessor.of_released(
            "OpenFlamingo-3B-vitl-mpt1b", tokenizer=str(tmp_path / "nowhere"), local_files_only=True
        )


def test_an_interrupt_while_the_command_is_imported_is_no_traceback(monkeypatch, capsys):
    class Interrupting:
        def find_spec(self, name, path=None, target=None):
            if name == "flamboyance.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "flamboyance.cli", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    assert __main__.main() == 130
    assert capsys.readouterr().err == "flamboyance: interrupted\n"
