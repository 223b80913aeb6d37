"""What the processes of `tests/processes.py` have imported when they are born."""

from importlib import import_module

import torch

import flamboyance

torch.set_num_threads(1)
for name in dir(flamboyance):
    getattr(flamboyance, name)
for name in ("commands.evaluate", "evaluation.flamingo", "evaluation.run", "evaluation.tasks.own", "training.loop"):
    import_module(f"flamboyance.{name}")
import_module("tests.training.tiny_run")
