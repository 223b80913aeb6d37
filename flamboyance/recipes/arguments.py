"""`key=value` on the command line -> a recipe's arguments, the run's settings, and the fields of its sources."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import math
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from flamboyance.files import local
from flamboyance.recipes.summaries import unknown
from flamboyance.training.config import TrainingConfig
from flamboyance.training.run import TrainingRun

Recipe = Callable[..., TrainingRun]

_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_NUMBERS = {int: "a whole number", float: "a number"}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter of a recipe, or a field of a dataclass; without a default, that is `inspect.Parameter.empty`."""

    name: str
    kind: Any
    default: Any

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


def find(name: str, recipes: dict[str, Recipe]) -> Recipe:
    """The recipe of that name; or the function of `path/to/file.py:function`, whose folder becomes importable.

    Raises:
        ValueError: there is none.
        OSError: the file does not exist.
    """
    if ".py:" in name:
        return _function(*name.rsplit(":", 1))
    if name not in recipes:
        raise unknown(name, recipes)
    return recipes[name]


def _function(path: str, function: str) -> Recipe:
    file = local(path).resolve()
    if not file.is_file():
        raise FileNotFoundError(f"no such recipe file: {path}")
    # Imported as a module of its folder, so that worker processes can import what it defines too.
    sys.path.insert(0, str(file.parent))
    module = importlib.import_module(file.stem)
    if Path(getattr(module, "__file__", None) or "").resolve() != file:
        raise ValueError(f"{path}: another module is called {file.stem}; give the recipe's file another name")
    made = getattr(module, function, None)
    if not callable(made):
        functions = {key: value for key, value in vars(module).items() if inspect.isfunction(value)}
        own = [key for key, value in functions.items() if value.__module__ == file.stem and not key.startswith("_")]
        raise ValueError(f"{path} has no function {function}; it has {', '.join(own) or 'none'}")
    return made


def parameters(recipe: Recipe) -> dict[str, Parameter]:
    """The parameters of a recipe, with the fields of a group in the group's place.

    A group is a parameter whose type is a dataclass. A parameter without annotation has the type of its default, or is
    a text.
    """
    found: dict[str, Parameter] = {}
    for name, one in _signature(recipe).items():
        found |= fields(one.kind) if dataclasses.is_dataclass(one.kind) else {name: one}
    return found


def call(recipe: Recipe, values: dict[str, Any]) -> TrainingRun:
    """The recipe's run.

    Args:
        values: of `parameters(recipe)`, by name; all required ones are among them.
    """
    given = {}
    for name, one in _signature(recipe).items():
        if dataclasses.is_dataclass(one.kind):
            given[name] = one.kind(**{field: values[field] for field in fields(one.kind) if field in values})
        elif name in values:
            given[name] = values[name]
    return recipe(**given)


def documentation(recipe: Recipe) -> str:
    """The docstrings of a recipe and of its groups."""
    groups = [one.kind for one in _signature(recipe).values() if dataclasses.is_dataclass(one.kind)]
    return "\n\n".join(filter(None, map(inspect.getdoc, (recipe, *groups))))


def _signature(recipe: Recipe) -> dict[str, Parameter]:
    hints = get_type_hints(recipe)
    found = {}
    for name, one in inspect.signature(recipe).parameters.items():
        guess = str if one.default in (None, one.empty) else type(one.default)
        found[name] = Parameter(name, hints.get(name, guess), one.default)
    return found


def fields(dataclass: Any) -> dict[str, Parameter]:
    """The fields of a dataclass, or of an instance, as parameters."""
    hints = get_type_hints(dataclass if isinstance(dataclass, type) else type(dataclass))
    found = {}
    for field in dataclasses.fields(dataclass):
        default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        found[field.name] = Parameter(field.name, hints[field.name], default)
    return found


def settings() -> dict[str, Parameter]:
    """The fields of `TrainingConfig` that a command line can set."""
    return {name: one for name, one in fields(TrainingConfig).items() if name not in ("sources", "output")}


def resolve(recipe: Recipe, given: Iterable[str]) -> TrainingRun:
    """The recipe's run with these settings.

    Args:
        given: `key=value`, each key a parameter of the recipe, a field of `TrainingConfig`, or `SOURCE.field`.

    Raises:
        ValueError: a key is unknown or given twice, a value has the wrong type, or a required parameter is missing.
    """
    values = _split(given)
    taken = parameters(recipe)
    general = {name: one for name, one in settings().items() if name not in taken}
    known = taken | general
    for key in values:
        if key not in known and "." not in key:
            raise _unknown(key, list(known), "the recipe takes")
    dotted = {key: value for key, value in values.items() if "." in key}
    plain = {key: convert(value, known[key].kind, key) for key, value in values.items() if key not in dotted}
    arguments = {key: value for key, value in plain.items() if key in taken}
    replaced = {key: value for key, value in plain.items() if key in general}
    missing = [name for name, one in taken.items() if one.required and name not in arguments]
    if missing:
        needed = " ".join(f"{name}={_EXAMPLES.get(name, '…')}" for name in missing)
        raise ValueError(f"the recipe needs {', '.join(missing)}: add {needed}")
    run = call(recipe, arguments)
    run = dataclasses.replace(run, training=dataclasses.replace(run.training, **replaced))
    return run.with_sources(*_sources(run.training.sources, run.validation, dotted))


_EXAMPLES = {"output": "runs/first", "data": "photos/", "vision": "google/siglip2-base-patch16-224"}
_EXAMPLES |= {"language": "Qwen/Qwen3-0.6B"}


def _split(given: Iterable[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for setting in given:
        key, sign, value = setting.partition("=")
        if not sign or not key:
            raise ValueError(f"invalid setting {setting!r}: expected key=value, as in steps=200")
        if key in values:
            raise ValueError(f"{key} is given twice: {values[key]!r} and {value!r}")
        values[key] = value
    return values


def _sources(
    sources: Mapping[str, Any], validation: Mapping[str, Any], dotted: dict[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sources of training and of validation with their settings. Documents for validation are read as those of the
    training's source of that name, or as those of its only source."""
    changed: dict[str, dict[str, Any]] = {}
    every = {**validation, **sources}
    for key, value in dotted.items():
        name, _, field = key.partition(".")
        if name not in every:
            raise _unknown(key, [f"{source}.{field}" for source in every], "the run's sources are", list(every))
        known = fields(every[name])
        if field not in known:
            raise _unknown(key, [f"{name}.{one}" for one in known], f"the source {name} has", list(known))
        changed.setdefault(name, {})[field] = convert(value, known[field].kind, key)

    def held(name: str) -> dict[str, Any]:
        like = next(iter(sources)) if len(sources) == 1 else name
        read_alike = {field: value for field, value in changed.get(like, {}).items() if field != "shards"}
        return read_alike if name in sources else read_alike | changed.get(name, {})

    return (
        {name: dataclasses.replace(source, **changed.get(name, {})) for name, source in sources.items()},
        {name: dataclasses.replace(source, **held(name)) for name, source in validation.items()},
    )


# Settings of earlier versions.
_RENAMED = {
    "rate": "learning_rate",
    "warmup": "warmup_steps",
    "falling": "decay_fraction",
    "final": "min_lr_factor",
    "clip": "max_grad_norm",
    "accumulate": "gradient_accumulation_steps",
    "keep": "keep_checkpoints",
    "max_skipped": "max_skipped_steps",
}


def _unknown(key: str, keys: list[str], what: str, listed: list[str] | None = None) -> ValueError:
    near = [_RENAMED[key]] if _RENAMED.get(key) in keys else difflib.get_close_matches(key, keys, 3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return ValueError(f"there is no setting {key!r}; {hint}{what} {', '.join(listed or keys)}")


# ---- values ---------------------------------------------------------------------------------------------------------


def convert(text: str, kind: Any, name: str) -> Any:
    """The text as a value of the annotated type.

    Raises:
        ValueError: the text is no such value.
    """
    if get_origin(kind) in (Union, types.UnionType):
        return _any_of(text, get_args(kind), name)
    if get_origin(kind) is Literal:
        for choice in get_args(kind):
            if str(choice) == text:
                return choice
    elif get_origin(kind) is tuple or kind is tuple:
        return _tuple(text, get_args(kind) or (str, ...), name)
    elif kind is type(None):
        if text.lower() in ("none", "null", ""):
            return None
    elif kind is bool:
        if text.lower() in _YES + _NO:
            return text.lower() in _YES
    elif kind in _NUMBERS:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    elif kind in (str, Any):
        return text
    else:
        raise ValueError(f"{name} cannot be given as text: it is {describe(kind)}; set it in a recipe file")
    raise ValueError(f"{name}={text}: expected {describe(kind)}")


def _any_of(text: str, kinds: tuple[Any, ...], name: str) -> Any:
    for kind in _expressible(kinds):
        try:
            return convert(text, kind, name)
        except ValueError:
            continue
    raise ValueError(f"{name}={text}: expected {' or '.join(map(describe, _expressible(kinds)))}")


def _expressible(kinds: tuple[Any, ...]) -> list[Any]:
    """The types of a union that a text can express, in the order in which they are tried."""
    # Every text, also one with commas, is a valid str: str is tried last, and no tuple is tried beside it.
    kept = [kind for kind in kinds if str not in kinds or get_origin(kind) is not tuple]
    return sorted(kept, key=lambda kind: kind is str)


def _tuple(text: str, kinds: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    inside = text.strip().removeprefix("(").removesuffix(")").strip()
    parts = [part.strip() for part in inside.split(",") if part.strip()]
    if kinds[-1:] == (...,):
        return tuple(convert(part, kinds[0], name) for part in parts)
    if len(parts) != len(kinds):
        raise ValueError(f"{name}={text}: expected {len(kinds)} values with commas between them, found {len(parts)}")
    return tuple(convert(part, kind, name) for part, kind in zip(parts, kinds, strict=True))


def describe(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(describe(one) for one in _expressible(get_args(kind)))
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple or kind is tuple:
        inside = get_args(kind) or (str, ...)
        return f"{describe(inside[0])}, … (with commas)" if ... in inside else ",".join(map(describe, inside))
    known = {type(None): "none", bool: "true or false", str: "a text", Any: "a text", **_NUMBERS}
    return known.get(kind) or getattr(kind, "__name__", str(kind))
