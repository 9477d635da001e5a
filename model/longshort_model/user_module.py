"""A user's own PyTorch module: found, built, given its weights.

Owns the import and what can go wrong with it. What the module computes, others look at.
"""

from __future__ import annotations

import importlib
import pickle
import sys
import traceback
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from longshort_model.export import ExportError

MOST_WORDS: Final = 400  # characters of an error's own text; of large modules every weight is named


def load(target: str, arguments: dict[str, Any], weights: Path | None = None) -> nn.Module:
    """Return what `module:name` names, ready for inference: a class, a function that makes a module, or a module.

    The current folder is searched first, as `python -m` does. `arguments` are passed by keyword; `weights` is a state
    dict that torch.save wrote, or a dict with one under `state_dict`. Raises ExportError, which names the line where
    the user's code failed.
    """
    found = _find(target)
    if isinstance(found, nn.Module):
        if arguments:
            raise ExportError(f"{target} is a module already and takes no arguments")
        made: Any = found
    elif callable(found):
        try:
            made = found(**arguments)
        except Exception as error:
            raise ExportError(f"{target} could not be made: {failure(error)}") from error
    else:
        made = found
    if not isinstance(made, nn.Module):
        raise ExportError(f"{target} gives a {type(made).__name__}, no torch.nn.Module")
    if weights is not None:
        _load_weights(made, weights)
    return made.eval().requires_grad_(requires_grad=False)


def failure(error: BaseException) -> str:
    """Return what an error of the user's code says and the line that it came from, in one line."""
    words = _shortened(error)
    return (f"{type(error).__name__}: {words}" if words else type(error).__name__) + place_of(error)


def place_of(error: BaseException) -> str:
    """Return the line of the user's code that an error came from, in brackets after a space; "" if there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = ("torch", "longshort_model", "importlib", "<frozen")
    own = [f for f in frames if not any(part in f.filename for part in inside)]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


def _shortened(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return words if len(words) <= MOST_WORDS else words[:MOST_WORDS] + " ..."


def _find(target: str) -> Any:
    module_name, _, path = target.partition(":")
    if not module_name or not path:
        raise ExportError(f"{target!r}: name it as module:ClassName, for example my_models:Wave")
    folder = str(Path.cwd())
    if sys.path[:1] != [folder]:  # it stays there: modules import others when they are made and called, too
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        where = (
            "" if error.name and error.name != module_name.split(".")[0] else "; looked in this folder too"
        )
        raise ExportError(f"{module_name} cannot be imported: {error}{where}") from error
    except SystemExit as error:  # a program without `if __name__ == "__main__"`
        raise ExportError(f"{module_name} ends its process when it is imported, as a script does") from error
    except Exception as error:
        raise ExportError(f"{module_name} cannot be imported: {failure(error)}") from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise ExportError(f"{module_name} has no {path}")
        found = getattr(found, name)
    return found


def _load_weights(module: nn.Module, path: Path) -> None:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror or error}") from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ExportError(
            f"{path}: no file of weights alone, as torch.save(module.state_dict(), path) writes it"
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict):
        raise ExportError(f"{path}: holds a {type(loaded).__name__}, no state dict")
    try:
        module.load_state_dict(loaded)
    except RuntimeError as error:
        raise ExportError(f"{path}: {_shortened(error)}") from error
