"""The flow that a command line names: ``module:name`` or ``path/file.py:name``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
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


def load_outputs(target: str) -> tuple[list[Flow], str]:
    """The outputs that `target` names, and the folder that its module lies in. A function is called without arguments. The module goes to
    the cluster by value, so that nobody there has to find it."""
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
        found = found()
    outputs = [found] if isinstance(found, Flow) else found
    if not isinstance(outputs, Sequence) or not outputs or not all(isinstance(each, Flow) for each in outputs):
        message = "this is no flow: it should be views and sinks, or a function without arguments that returns them"
        raise InvalidFlow(message, target=target, got=type(found).__name__)
    return list(outputs), folder


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
