"""A user's own loss: loads the function that a configuration names, and tries it before any compute is spent.

A configuration may come from anywhere: a downloaded file, somebody else's store, a page that asks a server. So it can
name code and never allow it. The person does: by installing a package that offers a loss by name, or at the terminal by
the name of a module. Nothing here imports torch before a loss is tried, so that a configuration can be checked without
it.
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
from typing import TYPE_CHECKING, Any

from fortifai_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

LOSSES = "fortifai.losses"  # group of entry points
ALLOWED = "FORTIFAI_ALLOW_CODE"  # names of modules, with commas; inherited by what a process starts
GIVEN = (
    "entropy",
    "lse",
    "smooth",
)  # what a loss is given after nll, where it names it: `kernels.losses.RowStatistics`
ROOMS = ("deployments", "flows", "fortifai_core", "kernels", "storage", "tasks")


def allow_code(modules: Iterable[str]) -> None:
    """Allow this process, and what it starts, to import these modules where a configuration names them.

    To be called with what the person at the terminal said, and with nothing that was read.
    """
    os.environ[ALLOWED] = ",".join(dict.fromkeys([*allowed_code(), *modules]))


def allowed_code() -> list[str]:
    """The modules that the person at the terminal allowed."""
    return [name.strip() for name in os.environ.get(ALLOWED, "").split(",") if name.strip()]


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


def source_of(function: str, field: str = "losses.function") -> Source:
    """The source of what a configuration names, which may be run; nothing of it is imported.

    A plain name is that of an entry point: whoever installed the package allowed its code. `module:function` is a
    user's own file, which the person at the terminal has to allow. The packages that a dotted module is in are
    imported, and these are as allowed as the module.

    Raises:
        ConfigError: nobody allowed it, it is not there, or a user's own module belongs to Python, to an installed
            package, or to this software.
    """
    if ":" not in function:
        return _installed(function, field)
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
                field, function, f"module {module} is no file of your own, and a loss may come from such a file alone"
            )
        file = Path(spec.origin) if spec.has_location and spec.origin else None
    return Source(module, name, _source_file(file, module, function, field))


def _installed(function: str, field: str) -> InstalledSource:
    """The source of the entry point of this name."""
    offered = entry_points(group=LOSSES)
    named = offered.select(name=function)
    if not named:
        known = f" (there are: {', '.join(sorted(offered.names))})" if offered else ""
        remedy = f"no installed package offers a loss of this name{known}; a function of your own is `module:function`"
        raise ConfigError(field, function, remedy)
    if len({entry.value for entry in named}) > 1:
        owners = ", ".join(sorted(entry.dist.name if entry.dist else entry.value for entry in named))
        raise ConfigError(field, function, f"several installed packages offer a loss of this name ({owners}): keep one")
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
        raise ConfigError(field, function, f"its module cannot be found ({_line(error)})") from error


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


def load_custom(function: str, options: Mapping[str, Any], field: str = "losses.function") -> Callable[..., Tensor]:
    """Import f(nll, **options), a user's own from `module:function` or an installed one by its name.

    It may be f(nll, entropy, **options): of `GIVEN` it gets what its parameters without a default name.

    Args:
        field: where the configuration names it, for the errors.

    Raises:
        ConfigError: as `source_of`; or the module cannot be imported, or `function` is no plain function that is
            defined there, or does not take the options.
    """
    source = source_of(function, field)
    module_name, name = source.module, source.name
    try:
        module = import_module(module_name)
    except Exception as error:
        raise ConfigError(field, function, f"its module cannot be imported: {_line(error)}") from error
    loss = getattr(module, name, None)
    if loss is None:
        raise ConfigError(field, function, f"module {module_name!r} has no {name!r}")
    if not isinstance(loss, types.FunctionType) or loss.__module__ != module_name:
        what = f"a {type(loss).__name__}" + (f" of {loss.__module__}" if hasattr(loss, "__module__") else "")
        raise ConfigError(
            field, function, f"{name!r} is {what}, not a function of nll that is defined in {module_name}"
        )
    try:
        inspect.signature(loss).bind(None, *_given(loss), **options)
    except TypeError as error:
        raise ConfigError(
            field.removesuffix("function") + "options",
            dict(options),
            f"{function} is called as f(nll, **options), but {error}",
        ) from error
    return partial(loss, **options)


def _given(loss: Callable[..., Tensor]) -> list[str]:
    """What a loss is given after nll, by the names of its parameters."""
    after = list(inspect.signature(loss).parameters.values())[1:]
    asked = (p.name for p in after if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD)
    return [name for name in asked if name in GIVEN]


def check_elementwise(function: str, value: Callable[..., Tensor], field: str = "losses.function") -> None:
    """Try a custom loss on a few tokens, before any compute is spent.

    Raises:
        ConfigError: it fails, does not return one finite number with a finite derivative for each token, or one token's
            loss depends on others.
    """
    import torch

    trial = {
        "nll": torch.tensor([0.0, 1e-3, 0.1, 0.7, 2.0, 8.0, 100.0]),
        "entropy": torch.tensor([0.0, 9.0, 1e-3, 0.5, 3.0, 6.0, 0.1]),
        "lse": torch.tensor([-3.0, 0.0, 9.0, 30.0, 1.0, 2.0, 3.0]),
        "smooth": torch.tensor([9.0, 12.0, 30.0, 10.0, 11.0, 3.0, 100.0]),
    }
    names = ["nll", *_given(value)]

    def of(tokens: slice) -> tuple[Tensor, Tensor]:
        """Losses and their derivatives, by all that they are given but the entropy, which is a constant."""
        given = {name: trial[name][tokens].clone().requires_grad_(name != "entropy") for name in names}
        loss, shape = value(*given.values()), tuple(given["nll"].shape)
        if not isinstance(loss, torch.Tensor) or loss.shape != shape:
            got = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
            remedy = f"must return one loss for each token; for shape {shape} it gave {got}"
            raise ConfigError(field, function, remedy)
        if not loss.requires_grad:
            raise ConfigError(field, function, f"has no derivative: torch must compute it from {', '.join(names)}")
        leaves = [each for each in given.values() if each.requires_grad]
        derivatives = torch.autograd.grad(loss.sum(), leaves, allow_unused=True, materialize_grads=True)
        return loss.detach(), torch.stack(derivatives).sum(0)

    nll = trial["nll"]
    try:
        loss, derivative = of(slice(None))
        alone = torch.cat([of(slice(i, i + 1))[0] for i in range(len(nll))])
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(field, function, f"fails on a few tokens: {_line(error)}") from error
    for what, values in (("is", loss), ("has a derivative that is", derivative)):
        if not bool(values.isfinite().all()):
            raise ConfigError(field, function, f"{what} not finite for nll = {nll[~values.isfinite()].tolist()}")
    if not torch.allclose(alone, loss, rtol=1e-4, atol=1e-6):
        raise ConfigError(field, function, "is not elementwise: the loss of a token changes with the others")


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
