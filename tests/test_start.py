"""Starting: help and mistakes come at once, public names are imported when they are used, Ctrl-C is one line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import flamboyance
from flamboyance.cli import COMMANDS

HEAVY = ("torch", "transformers", "rich", "PIL", "matplotlib")


def python(code: str, *arguments: str) -> str:
    """What a new process prints."""
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_help_and_mistakes_do_not_import_torch() -> None:
    code = f"""
import contextlib, io, sys
from flamboyance.cli import COMMANDS, main
cases = [[], ["--help"], ["--version"], ["captoin"], ["caption"], ["caption", "a.png", "--beems", "3"]]
cases += [["caption", "gone.png"], ["caption", ".", "--output", "out.txt"], ["classify", "x", "--labels", "cat"]]
cases += [[*one.name.split(), "--help"] for one in COMMANDS]
cases += [["train", recipe, "--help"] for recipe in ("finetune", "openflamingo-9b")]
cases += [["train"], ["train", "finetun", "output=x"], ["train", "finetune", "output"], ["plan", "finetun"]]
cases += [["train", "finetune", "data=x", "output=y", "stepz=3"], ["train", "mini", "output=y", "steps=many"]]
for case in cases:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            main(case)
        except SystemExit:
            pass
    for name in {HEAVY}:
        assert name not in sys.modules, (case, name)
"""
    python(code)


def test_help_of_mini_imports_neither_torch_nor_transformers() -> None:
    code = """
import contextlib, io, sys
from flamboyance.cli import main
with contextlib.redirect_stdout(io.StringIO()) as page:
    main(["train", "mini", "--help"])
print("steps" in page.getvalue(), *({"torch", "transformers"} & set(sys.modules)))
"""
    assert python(code).split() == ["True"]


def cpu_time(*command: str) -> float:
    """Seconds of processor time, which other work on the machine does not change."""
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, _, used = os.wait4(process.pid, 0)
        process.returncode = 0
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["captoin"], ["evaluate", "--help"]])
def test_start_takes_little_time(arguments: list[str]) -> None:
    limit = 0.4 + 2 * cpu_time("-c", "pass")
    # Importing torch alone takes seconds.
    assert min(cpu_time("-m", "flamboyance", *arguments) for _ in range(2)) < limit


def test_as_a_module() -> None:
    shown = subprocess.run([sys.executable, "-m", "flamboyance", "--version"], capture_output=True, text=True)
    assert shown.stdout == f"flamboyance {flamboyance.__version__}\n"


def test_every_public_name_is_there() -> None:
    assert set(flamboyance.__all__) <= set(dir(flamboyance))
    assert all(getattr(flamboyance, name) is not None for name in flamboyance.__all__)
    assert callable(flamboyance.metrics.cider)
    with pytest.raises(AttributeError, match="'FewShotTsk'"):
        flamboyance.FewShotTsk  # noqa: B018  ty: ignore[unresolved-attribute]


QUICK = {
    "through generation": "import flamboyance; from transformers import GenerationMixin",
    "a submodule first": "import flamboyance.model.network",
}
SLOW = {
    "flamboyance first": "import flamboyance; from transformers import AutoModelForImageTextToText, AutoConfig",
    "transformers first": "from transformers import AutoModelForImageTextToText, AutoConfig; import flamboyance",
    "transformers half imported": "import transformers; transformers.AutoConfig; import flamboyance",
    "a model first": "from flamboyance import FlamingoForConditionalGeneration",
    "configuration first": "from flamboyance.configuration import FlamingoConfig",
}


@pytest.mark.parametrize("order", [*QUICK, *(pytest.param(order, marks=pytest.mark.slow) for order in SLOW)])
def test_auto_classes_know_flamingo_whatever_is_imported_first(order: str) -> None:
    code = f"""
{(QUICK | SLOW)[order]}
from transformers import AutoConfig, AutoModelForImageTextToText
config = AutoConfig.for_model("flamingo")
assert type(config).__module__ == "flamboyance.configuration"
print(AutoModelForImageTextToText._model_mapping[type(config)].__name__)
"""
    assert python(code) == "FlamingoForConditionalGeneration\n"


def test_registration_waits_for_the_auto_class() -> None:
    seen = "'torch' in sys.modules, 'flamboyance.configuration' in sys.modules"
    code = f"import sys, flamboyance, transformers; print({seen})"
    assert python(code) == "False False\n"


def _heed_interrupts() -> None:
    """Processes that a shell starts in the background ignore SIGINT, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("turned_into", ["KeyboardInterrupt", "ImportError('x')", "RuntimeError('x')", "nothing", "-"])
def test_interrupt_during_imports_is_one_line(tmp_path: Path, turned_into: str) -> None:
    """The interrupt reaches a module while it is imported, which may make another error of it, or drop it ("nothing");
    with "-", the one that is sent then comes early, while Python still reports the first."""
    library = "import os, signal, threading, time\n"
    if turned_into == "-":
        library += "start = threading.Thread.start\n"
        library += "threading.Thread.start = lambda thread: (start(thread), time.sleep(0.5))\n"
    if turned_into not in ("nothing", "-"):
        library += "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(20)\n"
        library += f"except KeyboardInterrupt:\n    raise {turned_into}\n"
    else:
        library += "class Dropped:\n    def __del__(self):\n        os.kill(os.getpid(), signal.SIGINT)\n"
        library += "        time.sleep(20)\ndropped = Dropped()\ndel dropped\ntime.sleep(20)\n"
    (tmp_path / "torch.py").write_text(library, encoding="utf-8")
    (tmp_path / "transformers.py").write_text("import torch", encoding="utf-8")
    (tmp_path / "a.png").write_bytes(b"")
    command = [sys.executable, "-m", "flamboyance", "caption", str(tmp_path / "a.png"), "--model", "mini"]
    found = os.pathsep.join([str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    env = os.environ | {"PYTHONPATH": found}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=env, preexec_fn=_heed_interrupts)
    assert (run.returncode, run.stderr.splitlines()[-1]) == (130, "flamboyance: interrupted")
    assert "Traceback" not in run.stderr


def test_sigterm_is_one_line(tmp_path: Path) -> None:
    library = "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(20)\n"
    (tmp_path / "transformers.py").write_text(library, encoding="utf-8")
    found = os.pathsep.join([str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    command = [sys.executable, "-m", "flamboyance", "info", "mini"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": found})
    assert (run.returncode, run.stderr) == (143, "flamboyance: terminated\n")


def test_commands_are_named_once() -> None:
    names = [one.name for one in COMMANDS]
    assert len(set(names)) == len(names)
