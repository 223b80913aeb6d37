"""Whole training runs as Python functions: typed keyword arguments -> flamboyance.training.run.Run."""

from flamboyance.recipes import finetune, mini, openflamingo

RECIPES = {"mini": mini.mini, **openflamingo.RECIPES, "finetune": finetune.finetune}
