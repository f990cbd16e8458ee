"""A user's own network, returned by a function of the recipe's author.

The function's source code is part of the config, so a trained network can be rebuilt without the recipe's folder.

Shapes: B rows, K outputs.
"""

from __future__ import annotations

import builtins
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

import torch
from torch import nn

from bloomery.data_contracts.documents.digests import digest_of_document
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
    """Loads a module from its source text, so that `inspect` shows its lines.

    The module finds the other bundled modules by the names that it imports. Nothing else does: a `models.py` beside the
    recipe hides no installed module of that name.
    """

    def __init__(self, text: str, *, is_package: bool, package: str, bundled_names: frozenset[str]) -> None:
        self._text = text
        self._is_package = is_package
        self._package = package
        self._bundled_names = bundled_names  # top-level

    def get_source(self, fullname: str) -> str:
        return self._text

    def is_package(self, fullname: str) -> bool:
        return self._is_package

    def exec_module(self, module: ModuleType) -> None:
        # Import statements call the `__import__` of the module's own builtins.
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": self._import}
        super().exec_module(module)

    def _import(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        top_name = name.partition(".")[0]
        if level > 0 or top_name not in self._bundled_names:
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        imported = builtins.__import__(f"{self._package}.{name}", globals, locals, fromlist or (), 0)
        return imported if fromlist else sys.modules[f"{self._package}.{top_name}"]


class _Finder(MetaPathFinder):
    """Finds the modules of all configs that this process has built, each in a package of its own."""

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
    try:
        imported = importlib.import_module(f"{_add_modules(config.code)}.{module}" if config.code else module)
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


def _add_modules(code: dict[str, str]) -> str:
    """Makes the bundled modules importable, and returns the package that contains them.

    Its name depends on the texts, so several versions of a module can be loaded. A folder without `__init__.py` is an
    empty package.
    """
    package = f"recipe_code_{digest_of_document(code)[:16]}"
    names = frozenset(path.partition("/")[0].removesuffix(".py") for path in code)
    load = partial(_Loader, package=package, bundled_names=names)
    modules = {package: load("", is_package=True)}
    for path, text in code.items():
        *folders, file = path.split("/")
        for depth in range(1, len(folders) + 1):
            modules.setdefault(".".join([package, *folders[:depth]]), load("", is_package=True))
        is_package = file == "__init__.py"
        name = ".".join([package, *folders] if is_package else [package, *folders, file.removesuffix(".py")])
        modules[name] = load(text, is_package=is_package)
    _FINDER.modules |= modules
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    return package
