"""What the processes of `tests/processes.py` have imported when they are born."""

from importlib import import_module

import torch

import flamboyance

torch.set_num_threads(1)
for name in dir(flamboyance):
    getattr(flamboyance, name)
for name in ("commands.evaluate", "evaluation.answers.flamingo", "evaluation.run", "training.loop"):
    import_module(f"flamboyance.{name}")
import_module("flamboyance.evaluation.tasks.user_data")
import_module("tests.training.tiny_run")
