"""The launch examples of docs/launch: what they would start."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from flamboyance.planning.cost import meta_model
from flamboyance.recipes import RECIPES
from flamboyance.recipes.arguments import find, resolve

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "docs" / "launch"


@pytest.fixture
def stubs(tmp_path):
    """A torchrun that prints its arguments, and what the cluster's own commands would say."""
    commands = {
        "torchrun": 'printf "%s\\n" "$@"',
        "nvidia-smi": "printf 'GPU 0\\nGPU 1\\n'",
        "scontrol": "printf 'node7\\nnode8\\n'",
        "srun": 'shift; exec "$@"',
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


def started(command, environment, *arguments):
    """The words that torchrun got; those after `train` make a run."""
    done = subprocess.run(["bash", *command, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    at = words.index("train")
    run = resolve(find(words[at + 1], RECIPES), words[at + 2 :])
    return words[:at], run.training


def test_torchrun(stubs):
    script = [str(LAUNCH / "torchrun.sh")]
    words, training = started(script, stubs, "laion=a.tar", "mmc4=b c.tar", "workers=7")
    assert words[0] == "--standalone" and words[words.index("--nproc-per-node") + 1] == "2"
    assert (
        training.gradient_accumulation_steps == 32
        and training.sources["mmc4"].shards == ("b c.tar",)
        and training.workers == 7
    )
    many = {"NODES": "128", "HOST": "node0", "RECIPE": "openflamingo-9b", "OUTPUT": "/shared/x"}
    words, training = started(script, stubs | many, "laion=a", "mmc4=b")
    assert words[words.index("--rdzv-endpoint") + 1] == "node0:29500"
    assert training.gradient_accumulation_steps == 1 and training.output == "/shared/x"


def test_slurm(stubs):
    job = {
        "SLURM_JOB_NUM_NODES": "8",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_JOB_ID": "5",
        "SLURM_JOB_NODELIST": "node[7-8]",
    }
    words, training = started(
        [str(LAUNCH / "slurm.sbatch")], stubs | job | {"SLURM_SUBMIT_DIR": "/home/me"}, "laion=a", "mmc4=b"
    )
    assert words[words.index("--rdzv-endpoint") + 1] == "node7:29500"
    assert words[words.index("--nnodes") + 1] == "8"
    assert training.output == "/home/me/runs/openflamingo-9b"


def test_skypilot(stubs):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text(encoding="utf-8"))
    given = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "8", "SKYPILOT_TASK_ID": "t"}
    values = {key: str(value) for key, value in task["envs"].items()} | {"LAION": "a", "MMC4": "b"}
    environment = stubs | given | values | {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    words, training = started(["-c", task["run"]], environment)
    assert words[words.index("--rdzv-endpoint") + 1] == "10.0.0.1:29500"
    devices = task["num_nodes"] * int(task["resources"]["accelerators"].split(":")[1])
    assert training.gradient_accumulation_steps * devices == 64 and training.output.startswith("/runs/")
    assert set(task["file_mounts"]) == {"/runs"}


def test_the_large_example_has_its_size():
    recipe = find(f"{ROOT / 'examples/recipes/flamingo_80b.py'}:flamingo_80b", RECIPES)
    run = resolve(recipe, ["output=x", "laion=a", "mmc4=b"])
    model = meta_model(run.outline(), run.training.precision)
    total = sum(p.numel() for p in model.parameters())
    assert 70e9 < total < 80e9
    assert len(model.blocks) == 11
