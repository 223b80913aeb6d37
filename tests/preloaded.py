"""What the processes of `tests/processes.py` have imported when they are born."""
# ruff: noqa: F401

import torch

import flamboyance
import flamboyance.commands.evaluate
import flamboyance.evaluation.flamingo
import flamboyance.evaluation.run
import flamboyance.evaluation.tasks.own
import flamboyance.training.loop
import tests.training.tiny_run

torch.set_num_threads(1)
for name in dir(flamboyance):
    getattr(flamboyance, name)
