"""A user's own network, returned by a function of the recipe's author.

The function's source code is part of the config, so a trained network can be rebuilt without the recipe's folder.

Shapes: B rows, K outputs.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

import torch
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.config import Custom

_WHERE = "model.function in the recipe"
_TOLERANCE = 1e-3  # of an output; the order of sums depends on the batch size


def build(config: Custom, layout: Layout, num_outputs: int) -> nn.Module:
    """Calls the function with `layout` and `num_outputs`, and checks the network on two rows.

    Raises:
        RecipeInvalid: the function does not exist or fails, or its result is not a network for these rows.
    """
    try:
        network = _import_function(config)(layout, num_outputs, **config.options)
    except RecipeInvalid:
        raise
    except Exception as failure:
        problem = f"{config.function} failed: {_describe(failure)}"
        raise _unsuitable(config, problem, "a function that returns a network") from failure
    if not isinstance(network, nn.Module):
        raise _unsuitable(config, f"{config.function} returned a {type(network).__name__}", "a torch.nn.Module")
    _require_valid_outputs(config, network, layout, num_outputs)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise _unsuitable(
            config, f"the network of {config.function} has no trainable parameter", "at least one trainable parameter"
        )
    return network.train()


def _require_valid_outputs(config: Custom, network: nn.Module, layout: Layout, num_outputs: int) -> None:
    # Category 0 exists always, and token 0 is padding.
    x = torch.full((2, *layout.shape), 1.0 if layout.kind == "tokens" else 0.0)
    x[1] = min(2.0, (layout.num_tokens or 3) - 1)
    x[1, [position for position, _ in layout.categories]] = 0.0
    required = f"float32 (B, {num_outputs}) for x float32 (B, {', '.join(map(str, layout.shape))})"
    try:
        with torch.no_grad():
            outputs, output_alone = network.eval()(x), network(x[1:])
    except Exception as failure:
        problem = f"the network of {config.function} failed on {tuple(x.shape)}: {_describe(failure)}"
        raise _unsuitable(config, problem, required) from failure
    if not isinstance(outputs, torch.Tensor):
        raise _unsuitable(config, f"the network of {config.function} returned a {type(outputs).__name__}", required)
    if outputs.shape != (2, num_outputs) or outputs.dtype != torch.float32:
        dtype = str(outputs.dtype).removeprefix("torch.")
        problem = f"the network of {config.function} returned {dtype} {tuple(outputs.shape)} for {tuple(x.shape)}"
        raise _unsuitable(config, problem, required)
    difference = float((outputs[1:] - output_alone).abs().max())
    if difference > _TOLERANCE:
        change = f"changes its output for a row by {difference:.2g} beside another row"
        problem = f"the network of {config.function} {change}"
        raise _unsuitable(config, problem, "outputs that depend on their own row only, in evaluation mode")


def _describe(failure: Exception) -> str:
    return f"{type(failure).__name__}: {failure}"


def _unsuitable(config: Custom, problem: str, required: str) -> RecipeInvalid:
    return RecipeInvalid(
        problem,
        required=required,
        where=_WHERE,
        remedy=f"correct {config.function} or its `options` {config.options}; see docs/bring-your-own.md",
    )


class _Loader(InspectLoader):
    """Loads a module from its source text, so that tracebacks and `inspect` show its lines."""

    def __init__(self, text: str, *, is_package: bool) -> None:
        self.text = text
        self._is_package = is_package

    def get_source(self, fullname: str) -> str:
        return self.text

    def is_package(self, fullname: str) -> bool:
        return self._is_package


class _Finder(MetaPathFinder):
    """Finds the modules of the config that was built last."""

    def __init__(self) -> None:
        self.modules: dict[str, _Loader] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        loader = self.modules.get(fullname)
        return None if loader is None else spec_from_loader(fullname, loader)


_FINDER = _Finder()


def _import_function(config: Custom) -> Callable[..., Any]:
    module, _, name = config.function.partition(":")
    modules = _source_modules(config.code)
    _unload_outdated(modules)
    _FINDER.modules = modules
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    try:
        imported = importlib.import_module(module)
    except Exception as failure:
        problem = f"module {module} cannot be imported: {_describe(failure)}"
        raise _unsuitable(config, problem, "a module beside the recipe, or in an installed package") from failure
    function = getattr(imported, name, None)
    if not callable(function):
        functions = ", ".join(
            candidate
            for candidate, value in vars(imported).items()
            if callable(value) and not candidate.startswith("_")
        )
        raise _unsuitable(config, f"module {module} has no function {name}", f"one of {functions or 'its functions'}")
    return function


def _source_modules(code: dict[str, str]) -> dict[str, _Loader]:
    """The modules by dotted name; a folder without `__init__.py` is an empty package."""
    modules: dict[str, _Loader] = {}
    for path, text in code.items():
        *folders, file = path.split("/")
        for depth in range(1, len(folders) + 1):
            modules.setdefault(".".join(folders[:depth]), _Loader("", is_package=True))
        is_package = file == "__init__.py"
        name = ".".join(folders if is_package else [*folders, file.removesuffix(".py")])
        modules[name] = _Loader(text, is_package=is_package)
    return modules


def _unload_outdated(modules: dict[str, _Loader]) -> None:
    """Removes outdated versions of `modules` from `sys.modules`, so that they are imported again.

    Raises:
        RecipeInvalid: a module of the same name was imported from somewhere else.
    """
    loaded = {name: getattr(sys.modules[name], "__loader__", None) for name in modules if name in sys.modules}
    for name, loader in loaded.items():
        if not isinstance(loader, _Loader):
            raise RecipeInvalid(
                f"a module {name} is already imported from {getattr(sys.modules[name], '__file__', 'elsewhere')}",
                required="unique names for the modules beside the recipe",
                where=_WHERE,
                remedy="rename the file and its imports",
            )
    if any(isinstance(loader, _Loader) and loader.text != modules[name].text for name, loader in loaded.items()):
        for name in loaded:
            del sys.modules[name]
