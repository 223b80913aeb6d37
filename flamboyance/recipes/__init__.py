"""Whole training runs as Python functions: typed keyword arguments -> flamboyance.training.run.Run."""

from flamboyance.recipes import openflamingo
from flamboyance.recipes.finetune import finetune
from flamboyance.recipes.mini import mini

RECIPES = {"mini": mini, **openflamingo.RECIPES, "finetune": finetune}
