"""Imports the modules of a user's project.

A module of a file lives in `sys.modules` as `user_graphs.<its path>`. That name ends up in checkpoints (LangGraph
stores where a state's classes are from), so it must be the same on every machine and never hold an absolute path.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from runs_es.execution.langgraph.configuration import GraphSource

_PACKAGE = "user_graphs"


def named_object(source: GraphSource) -> Any:
    """The object that `source` names. Raises GraphLoadError."""
    return _attribute(source, _module(source))


def _module(source: GraphSource) -> ModuleType:
    if source.is_file and not source.file.is_file():
        raise source.error(f"the file {source.file} does not exist")
    try:
        return _module_of_file(source) if source.is_file else importlib.import_module(source.target)
    except KeyboardInterrupt:
        raise  # Ctrl+C while the process starts
    except BaseException as error:
        raise source.failure(f"importing {source.target} failed", error) from error


def _module_of_file(source: GraphSource) -> ModuleType:
    """Import the file as a module of our package over its folder, so that its relative imports work."""
    folder, file = source.folder.resolve(), source.file
    if file.suffix != ".py":
        raise ImportError(f"{file} is no Python file")
    package = _package_over(folder)
    parts = file.relative_to(folder).with_suffix("").parts if file.is_relative_to(folder) else ()
    parts = parts[:-1] if parts[-1:] == ("__init__",) else parts
    if parts and all("." not in part for part in parts):
        return importlib.import_module(".".join((package, *parts)))
    name = f"{package}.{re.sub(r'[^0-9A-Za-z]+', '_', source.target)}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # before it runs: dataclasses look there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _package_over(folder: Path) -> str:
    """The name of a package that exists only in memory, whose modules are the files below `folder`.

    A second folder in one process gets a number: tests do that, servers do not.
    """
    for number in range(1, sys.maxsize):
        name = _PACKAGE if number == 1 else f"{_PACKAGE}_{number}"
        package = sys.modules.get(name)
        if package is None:
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(folder)]
            package = sys.modules[name] = importlib.util.module_from_spec(spec)
        if list(package.__path__) == [str(folder)]:
            return name
    raise AssertionError("unreachable")


def _attribute(source: GraphSource, module: ModuleType) -> Any:
    found: Any = module
    for part in source.attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise source.error(
                f"{source.target} has no {source.attribute!r}; name a variable that it defines"
            ) from None
        except Exception as error:  # of a `__getattr__` that makes it, or a property
            raise source.failure(f"reading {source.attribute} of {source.target} failed", error) from error
    return found
