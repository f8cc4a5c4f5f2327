"""A user's own code: finds and loads the function that a configuration names, before any compute is spent.

A configuration may come from anywhere: a downloaded file, somebody else's store, a page that asks a server. So it can
name code and never allow it. The person does: by installing a package that offers a function by name, or at the
terminal by the name of a module. Nothing here imports torch, so that a configuration can be checked without it.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import site
import sysconfig
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from fortifai_core.errors import ConfigError

ALLOWED = "FORTIFAI_ALLOW_CODE"  # names of modules, with commas; inherited by what a process starts
ROOMS = ("deployments", "flows", "fortifai_core", "kernels", "storage", "tasks")


def allow_code(modules: Iterable[str]) -> None:
    """Allow this process, and what it starts, to import these modules where a configuration names them.

    To be called with what the person at the terminal said, and with nothing that was read.
    """
    os.environ[ALLOWED] = ",".join(dict.fromkeys([*allowed_code(), *modules]))


def allowed_code() -> list[str]:
    """The modules that the person at the terminal allowed."""
    return [name.strip() for name in os.environ.get(ALLOWED, "").split(",") if name.strip()]


class Kind(NamedTuple):
    """What a function is to be: the group of entry points that offers it, what it is called, and of what it is one.

    Attributes:
        given: what it gets after that, where its parameters without a default name it.
    """

    group: str
    what: str
    of: str
    given: tuple[str, ...] = ()

    def asked(self, function: Callable[..., Any]) -> list[str]:
        """Those of `given` that a function asks for."""
        after = list(inspect.signature(function).parameters.values())[1:]
        names = (p.name for p in after if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD)
        return [name for name in names if name in self.given]


@dataclass(frozen=True)
class Source:
    """Where a function comes from that a configuration names: `name` in `module`, which is this `file`."""

    module: str
    name: str
    file: Path

    @property
    def digest(self) -> str:
        """sha256 of the module's file."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()


@dataclass(frozen=True)
class InstalledSource(Source):
    """The same of a function that an installed package offers by a name, which may come to mean another one."""

    @property
    def digest(self) -> str:
        """sha256 of what the name stands for and of the module's file."""
        return hashlib.sha256(f"{self.module}:{self.name}\n".encode() + self.file.read_bytes()).hexdigest()


def source_of(kind: Kind, function: str, field: str) -> Source:
    """The source of what a configuration names, which may be run; nothing of it is imported.

    A plain name is that of an entry point: whoever installed the package allowed its code. `module:function` is a
    user's own file, which the person at the terminal has to allow. The packages that a dotted module is in are
    imported, and these are as allowed as the module.

    Raises:
        ConfigError: nobody allowed it, it is not there, or a user's own module belongs to Python, to an installed
            package, or to this software.
    """
    if ":" not in function:
        return _installed(kind, function, field)
    module, _, name = function.partition(":")
    if not (module and name):
        raise ConfigError(field, function, "write it as `module:function`")
    if module not in allowed_code():
        raise ConfigError(
            field,
            function,
            f"would run the code of module {module}: if it is yours, say so with --allow-code {module} "
            f"(or {ALLOWED}={module})",
        )
    file: Path | None = None
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):  # a package is looked at before the import of what is in it imports it
        spec = _spec(".".join(parts[:depth]), function, field)
        if spec is None:
            remedy = "its module cannot be found: put its folder on PYTHONPATH (PYTHONPATH=. is the current one)"
            raise ConfigError(field, function, remedy)
        places = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or [])
        if not places or any(_is_installed(Path(place)) for place in places):
            raise ConfigError(
                field,
                function,
                f"module {module} is no file of your own, and a {kind.what} may come from such a file alone",
            )
        file = Path(spec.origin) if spec.has_location and spec.origin else None
    return Source(module, name, _source_file(file, module, function, field))


def _installed(kind: Kind, function: str, field: str) -> InstalledSource:
    """The source of the entry point of this name."""
    offered = entry_points(group=kind.group)
    named = offered.select(name=function)
    if not named:
        known = f" (there are: {', '.join(sorted(offered.names))})" if offered else ""
        remedy = f"no installed package offers a {kind.what} of this name{known}"
        raise ConfigError(field, function, f"{remedy}; a function of your own is `module:function`")
    if len({entry.value for entry in named}) > 1:
        owners = ", ".join(sorted(entry.dist.name if entry.dist else entry.value for entry in named))
        remedy = f"several installed packages offer a {kind.what} of this name ({owners}): keep one"
        raise ConfigError(field, function, remedy)
    (entry, *_) = named
    try:
        module, name = entry.module, entry.attr
    except AttributeError:  # no `module:function`
        module, name = entry.value, ""
    spec = _spec(module, function, field)
    if spec is None:
        raise ConfigError(field, function, f"its module {module} cannot be found: install its package again")
    file = Path(spec.origin) if spec.has_location and spec.origin else None
    return InstalledSource(module, name, _source_file(file, module, function, field))


def _spec(module: str, function: str, field: str) -> ModuleSpec | None:
    try:
        return find_spec(module)
    except Exception as error:
        raise ConfigError(field, function, f"its module cannot be found ({line_of(error)})") from error


def _source_file(file: Path | None, module: str, function: str, field: str) -> Path:
    if file is None or file.suffix != ".py" or not file.is_file():
        raise ConfigError(field, function, f"module {module} is no file of Python source")
    return file


def _is_installed(place: Path) -> bool:
    """Whether a file belongs to Python, to an installed package or to this software."""
    named = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    named += [*site.getsitepackages(), site.getusersitepackages()]
    root = Path(__file__).resolve().parents[2]
    theirs = {Path(folder).resolve() for folder in named} | {root / room for room in ROOMS}
    return bool(theirs & {place.resolve(), *place.resolve().parents})


def load_function(kind: Kind, function: str, options: Mapping[str, Any], field: str) -> Callable[..., Any]:
    """Import f(…, **options), a user's own from `module:function` or an installed one by its name.

    Args:
        field: where the configuration names it, for the errors.

    Raises:
        ConfigError: as `source_of`; or the module cannot be imported, or `function` is no plain function that is
            defined there, or does not take the options.
    """
    source = source_of(kind, function, field)
    module_name, name = source.module, source.name
    try:
        module = import_module(module_name)
    except Exception as error:
        raise ConfigError(field, function, f"its module cannot be imported: {line_of(error)}") from error
    found = getattr(module, name, None)
    if found is None:
        raise ConfigError(field, function, f"module {module_name!r} has no {name!r}")
    if not isinstance(found, types.FunctionType) or found.__module__ != module_name:
        what = f"a {type(found).__name__}" + (f" of {found.__module__}" if hasattr(found, "__module__") else "")
        raise ConfigError(
            field, function, f"{name!r} is {what}, not a function of {kind.of} that is defined in {module_name}"
        )
    try:
        inspect.signature(found).bind(None, *kind.asked(found), **options)
    except TypeError as error:
        raise ConfigError(
            field.removesuffix("function") + "options",
            dict(options),
            f"{function} is called as f({kind.of}, **options), but {error}",
        ) from error
    return partial(found, **options)


def line_of(error: Exception) -> str:
    """An error of somebody else's code, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
