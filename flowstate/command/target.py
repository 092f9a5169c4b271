"""The flow that a command line names: ``module:name`` or ``path/file.py:name``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from flowstate.api.stream import Flow
from flowstate.errors import InvalidFlow, did_you_mean


def is_flow(text: str) -> bool:
    """Whether `text` names a flow, rather than an address or a URL."""
    place, colon, name = text.rpartition(":")
    return bool(colon and place) and name.isidentifier() and "://" not in text


def load_outputs(target: str, settings: Sequence[str] = ()) -> tuple[list[Flow], str]:
    """The outputs that `target` names, and the folder that its module lies in. A function is called with `settings`, texts ``name=value``,
    as its arguments. The module goes to the cluster by value, so that nobody there has to find it."""
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise InvalidFlow("say where the flow is as module:name or file.py:name", got=target)
    module, folder = _load(place)
    if not hasattr(module, name):
        known = [each for each in vars(module) if not each.startswith("_")]
        raise InvalidFlow(f"{place} has no {name!r}{did_you_mean(name, known)}")
    cloudpickle.register_pickle_by_value(module)
    found: Any = getattr(module, name)
    if callable(found) and not isinstance(found, Flow):
        found = found(**_arguments(found, target, settings))
    elif settings:
        raise InvalidFlow("only a function takes --set; this is no function", target=target)
    outputs = [found] if isinstance(found, Flow) else found
    if not isinstance(outputs, Sequence) or not outputs or not all(isinstance(each, Flow) for each in outputs):
        message = "this is no flow: it should be views and sinks, or a function without arguments that returns them"
        raise InvalidFlow(message, target=target, got=type(found).__name__)
    return list(outputs), folder


def _arguments(function: Any, target: str, settings: Sequence[str]) -> dict[str, Any]:
    """Of a call of `function`: what `settings` say, each in the type that its parameter has, or its default."""
    parameters = inspect.signature(function, eval_str=True).parameters
    found: dict[str, Any] = {}
    for each in settings:
        name, equals, text = each.partition("=")
        if not equals or not name:
            raise InvalidFlow("--set is NAME=VALUE, and may be given again for another name", got=each)
        if name not in parameters or name in found:
            raise InvalidFlow(
                f"{target} has no parameter {name!r} to be set{did_you_mean(name, set(parameters) - set(found))}"
            )
        found[name] = _value(name, text, parameters[name])
    positional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    missing = [
        name
        for name, each in parameters.items()
        if name not in found and each.default is each.empty and each.kind not in positional
    ]
    if missing:
        raise InvalidFlow(f"{target} needs {' '.join(f'--set {name}=...' for name in missing)}")
    return found


def _value(name: str, text: str, parameter: inspect.Parameter) -> Any:
    kind = parameter.annotation
    if kind is parameter.empty and parameter.default is not parameter.empty:
        kind = type(parameter.default)
    if kind is bool:
        if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
            raise InvalidFlow(f"{name} is true or false", got=text)
        return text.lower() in ("true", "yes", "1")
    if kind in (int, float, Decimal):
        try:
            return kind(text)
        except (ValueError, ArithmeticError):
            raise InvalidFlow(f"{name} is a number ({kind.__name__})", got=text) from None
    return Path(text) if kind is Path else text


def _load(place: str) -> tuple[ModuleType, str]:
    if place.endswith(".py") or os.sep in place:
        path = Path(place).resolve()
        spec = importlib.util.spec_from_file_location(path.stem, path) if path.is_file() else None
        if spec is None or spec.loader is None:
            raise InvalidFlow("there is no such file", file=str(path))
        sys.path.insert(0, str(path.parent))
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        return module, str(path.parent)
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(place), folder
    except ModuleNotFoundError as error:
        if error.name is None or not (place == error.name or place.startswith(f"{error.name}.")):
            raise  # the module is there; it is an import of its own that fails, and its traceback says where
        raise InvalidFlow("there is no such module here or on the Python path", module=place, folder=folder) from error
