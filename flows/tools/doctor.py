"""`fortifai doctor`: is this machine fit to run experiments, and if not, what to do about it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
from rich.console import Console
from rich.table import Table

from flows import access
from flows.embedded import configured_api
from flows.fit import memory_needed, shape_of
from flows.load import load_any_config
from flows.prepare import check_model, check_space, plan_for
from flows.stores import default_store, open_store
from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.errors import FortifaiError, InputError
from fortifai_core.outside import markup
from storage.sources import mirror, pretrained
from storage.store.store import LITTLE_SPACE
from tasks.engine.needs import missing_stages
from tasks.engine.pool import check_processes, pool_size

State = Literal["fine", "note", "broken"]
SHOWN = ("prefect", "transformers", "datasets", "duckdb", "pyarrow")
VERSION = "/admin/version"
LITTLE_MEMORY = 3e9  # bytes; two workers with torch loaded
MOVED = ("work", "artifacts", "damaged")  # folders of a store between which artifacts are renamed
# Asks the API of the configured server: path and body of a POST, to the JSON that it answers.
Ask = Callable[[str, Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Check:
    """One line of the table. `remedy`: what to do, where something is broken or worth a note."""

    name: str
    state: State
    found: str
    remedy: str = ""


def examine(store: str | None, console: Console, *, experiment: str | None = None) -> int:
    """Print what was found; 0 when experiments can run here, 1 when something is broken.

    Args:
        experiment: a preset or file that is to be run here: does it fit?
    """
    checks = list(checks_of(store, experiment))
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    signs = {"fine": "[green]fine[/]", "note": "[yellow]note[/]", "broken": "[red]broken[/]"}
    for check in checks:
        text = markup(check.found) + (f"\n→ {markup(check.remedy)}" if check.remedy else "")
        table.add_row(check.name, signs[check.state], text)
    console.print(table)
    broken = sum(check.state == "broken" for check in checks)
    console.print(f"\n{broken} broken" if broken else "\nnothing is broken")
    return 1 if broken else 0


def checks_of(store: str | None, experiment: str | None = None) -> Iterator[Check]:
    """Every check, one after the other; each is over before the next is asked for."""
    yield check_python()
    yield check_machine()
    yield from check_packages()
    yield check_torch()
    yield check_kernels()
    yield check_store(store)
    yield check_mirror()
    yield check_models()
    server = check_server()
    yield server
    if server.state != "broken" and configured_api():
        yield from check_deployments(_ask)
    if experiment is not None:
        yield check_experiment(experiment, store)


def check_python() -> Check:
    """Which Python this is; one that is too old does not get this far."""
    return Check("python", "fine", ".".join(str(part) for part in sys.version_info[:3]) + f", {sys.executable}")


def check_machine() -> Check:
    """Cores and memory, as this process may use them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = _memory()
    machine = f"{cores} cores, {memory / 1e9:.0f} GB of memory"
    if memory < LITTLE_MEMORY:
        return Check("machine", "note", machine, "with so little memory, run with --set runtime.workers=1")
    return Check("machine", "fine", machine)


def _memory() -> int:
    """Bytes of memory: the machine's, or the container's where it has less."""
    whole = psutil.virtual_memory().total
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="utf-8").strip() if limit.is_file() else "max"
    return min(whole, int(text)) if text.isdigit() else whole


def check_packages() -> Iterator[Check]:
    """What this package requires is installed in a version that it works with."""
    from packaging.requirements import Requirement

    try:
        required = [Requirement(text) for text in importlib.metadata.requires("fortifai") or []]
    except importlib.metadata.PackageNotFoundError:
        yield Check("fortifai", "note", "runs from a folder, not installed", "pip install -e . makes the command")
        required = []
    wrong = []
    for requirement in required:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        wanted = f"{requirement.name}{requirement.specifier}"
        if version is None:
            wrong.append(Check(requirement.name, "broken", "not installed", f"pip install '{wanted}'"))
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(Check(requirement.name, "broken", version, f"pip install '{wanted}'"))
    yield from wrong
    bad = {check.name for check in wrong}
    versions = [f"{name} {version}" for name in SHOWN if name not in bad and (version := _version(name))]
    yield Check("packages", "fine" if not wrong else "note", ", ".join(versions))


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_torch() -> Check:
    """PyTorch can be imported; the devices it sees."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("torch", "broken", f"cannot be imported: {error}", "pip install --force-reinstall torch")
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if devices:
        return Check("torch", "fine", f"{torch.__version__}, {', '.join(devices)}")
    if Path("/dev/nvidiactl").exists():
        remedy = "there is an NVIDIA device: install a torch that is built for its driver's CUDA"
        return Check("torch", "note", f"{torch.__version__}, CPU only", remedy)
    return Check("torch", "fine", f"{torch.__version__}, CPU")


def check_kernels() -> Check:
    """The package `kernels` is ours: Hugging Face publishes another one under this name, and only one can be found."""
    theirs = _version("kernels")
    if theirs is not None:
        remedy = "pip uninstall kernels, then pip install --force-reinstall --no-deps fortifai: both own one folder"
        return Check("kernels", "broken", f"the Hugging Face package `kernels` {theirs} is installed as well", remedy)
    spec = importlib.util.find_spec("kernels")
    ours = importlib.util.find_spec("flows")
    if spec is None or spec.origin is None:
        return Check("kernels", "broken", "this software's package `kernels` is not there", "install fortifai anew")
    folder = Path(spec.origin).parent
    expected = Path(ours.origin).parents[1] / "kernels" if ours is not None and ours.origin else folder
    if folder.resolve() != expected.resolve() or not (folder / "install.py").is_file():
        remedy = f"remove {folder}, or take its parent off PYTHONPATH"
        return Check("kernels", "broken", f"another package of this name hides this software's: {folder}", remedy)
    return Check("kernels", "fine", "this software's own")


def check_store(url: str | None) -> Check:
    """The store can be written to, has space, and lies on one filesystem: an artifact is committed by a rename."""
    try:
        store = open_store(url)
        store.writable()
        free = store.free_bytes()
    except FortifaiError as error:
        return Check("store", "broken", str(error), "choose another: --store, or FORTIFAI_STORE")
    place = f"{store.name}, {free / 1e9:.0f} GB free"
    devices = {part.stat().st_dev: part for part in map(store.root.joinpath, MOVED) if part.exists()}
    if len(devices) > 1:
        parts = " and ".join(str(part) for part in devices.values())
        remedy = "mount the store as a whole: artifacts are moved between these folders, which one filesystem can do"
        return Check("store", "broken", f"{parts} lie on different filesystems", remedy)
    if free < LITTLE_SPACE:
        return Check("store", "note", place, f"little space: clean up, or choose another store than {default_store()}")
    return Check("store", "fine", place)


def check_mirror() -> Check:
    """The local mirror, where one is set up, and the datasets in it."""
    try:
        folder = mirror.root()
    except FortifaiError as error:
        return Check("mirror", "broken", str(error))
    if folder is None:
        return Check("mirror", "fine", f"none ({mirror.VARIABLE} is not set): data sets come from the hub")
    held = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not held:
        remedy = f"fill it, or unset {mirror.VARIABLE}: with it set, the hub is not asked"
        return Check("mirror", "broken", f"{folder} holds no data set", remedy)
    return Check("mirror", "fine", f"{folder}: {', '.join(held)}")


def check_models() -> Check:
    """The local mirror of pretrained models, and those in it."""
    try:
        folder = pretrained.root()
    except FortifaiError as error:
        return Check("models", "broken", str(error))
    held = sorted(f"{owner.name}/{model.name}" for owner in folder.glob("*/") for model in owner.glob("*/"))
    there = f"{folder}: {', '.join(held)}" if held else "none here (`make models` fetches two small ones): from the hub"
    return Check("models", "fine", there)


def check_server(fetch: Callable[[str], bytes] | None = None) -> Check:
    """The Prefect server that is configured answers; without one, each run starts its own.

    Args:
        fetch: gets the body at a URL; by default from the network.
    """
    try:
        url = configured_api()
    except InputError as error:
        return Check("server", "broken", str(error), "`fortifai run` and `serve` refuse this")
    if not url:
        return Check("server", "fine", "none configured: `fortifai run` starts its own, `fortifai serve` one with a UI")
    try:
        version = json.loads((fetch or _fetch)(url.rstrip("/") + VERSION))
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        if getattr(error, "code", None) == 401:
            remedy = "export PREFECT_API_AUTH_STRING=user:password, which `fortifai serve` prints"
            return Check("server", "broken", f"{url} wants a login", remedy)
        remedy = "start it (`fortifai serve`), or unset PREFECT_API_URL (`prefect config unset PREFECT_API_URL`)"
        return Check("server", "broken", f"{url} does not answer as a Prefect server: {reason}", remedy)
    return _versions(str(version), url)


def _versions(server: str, url: str) -> Check:
    """Prefect promises that a server understands the clients of its own minor release and of those before."""
    from packaging.version import InvalidVersion, Version

    found, ours = f"Prefect {server} at {url}", _version("prefect") or ""
    try:
        older = Version(server).release[:2] < Version(ours).release[:2]
    except InvalidVersion:
        return Check(
            "server", "broken", f"{url} does not answer as a Prefect server: {server}", "unset PREFECT_API_URL"
        )
    if older:
        remedy = f"update the server first: pip install 'prefect>={ours}' there, or run with another"
        return Check("server", "note", f"{found}, older than this machine's client, {ours}", remedy)
    return Check("server", "fine", f"{found}, client {ours}")


def check_deployments(ask: Ask) -> Iterator[Check]:
    """Work pools, deployments and concurrency limits of the configured server: would a run that is asked for start?"""
    try:
        pools = {pool["name"]: pool for pool in ask("/work_pools/filter", {})}
        deployments = [(d["name"], d.get("work_pool_name"), d.get("status")) for d in ask("/deployments/filter", {})]
        limits = [(one["tag"], one["concurrency_limit"], len(one["active_slots"])) for one in _limits(ask)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield Check(
            "deployments", "broken", f"the server does not tell: {error}", "is it a Prefect server of release 3?"
        )
        return
    yield from _check_pools(pools, {pool for _, pool, _ in deployments if pool})
    names = ", ".join(sorted(name for name, _, _ in deployments))
    unserved = sorted(name for name, pool, status in deployments if not pool and status == "NOT_READY")
    if not deployments:
        remedy = "`fortifai serve` makes them, or `prefect deploy --all --prefect-file deployments/prefect.yaml`"
        yield Check("deployments", "note", "none: runs are started by `fortifai run` alone", remedy)
    elif unserved:
        remedy = "start `fortifai serve` again: it is what runs them"
        yield Check("deployments", "note", f"nothing serves {', '.join(unserved)}", remedy)
    else:
        yield Check("deployments", "fine", names)
    full = [f"{tag} ({taken} of {limit} taken)" for tag, limit, taken in limits if taken >= limit]
    if full:
        remedy = "wait for the runs that hold them; where those are gone, `prefect concurrency-limit reset TAG`"
        yield Check("limits", "note", f"nothing more starts under {', '.join(full)}", remedy)
    else:
        yield Check("limits", "fine", ", ".join(f"{tag}: {limit}" for tag, limit, _ in limits) or "none")


def _limits(ask: Ask) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask("/concurrency_limits/filter", {})
    return found


def _check_pools(pools: Mapping[str, Mapping[str, Any]], used: set[str]) -> Iterator[Check]:
    for name in sorted(used | set(pools)):
        pool = pools.get(name)
        if pool is None:
            remedy = f"prefect work-pool create --type process {name}"
            yield Check("work pool", "broken", f"deployments name {name}, which does not exist", remedy)
        elif pool.get("is_paused"):
            yield Check("work pool", "note", f"{name} is paused", f"prefect work-pool resume {name}")
        elif pool.get("status") == "NOT_READY":
            yield Check("work pool", "note", f"no worker polls {name}", f"prefect worker start --pool {name}")
        else:
            yield Check("work pool", "fine", f"{name}, {pool.get('type')}")


def check_experiment(source: str, store: str | None) -> Check:
    """Whether an experiment can be read and fits into this machine's memory and disk, as `fortifai run` asks."""
    name = f"experiment {source}"
    try:
        config = load_any_config(source, [])
        check_processes(config.runtime)
        plan, opened = plan_for(config), open_store(store)
        check_model(plan, opened)
        check_space(config, plan, opened)
        missing = len(missing_stages(plan, opened))
    except FortifaiError as error:
        return Check(name, "broken", str(error), "`fortifai run` refuses it for the same reason")
    found = f"{missing} of {len(plan.stages())} stages to do; it fits"
    shape = shape_of(config.model) if isinstance(config, ExperimentConfig) else None
    if shape is not None and isinstance(config, ExperimentConfig):
        needed, workers = max(memory_needed(config, shape)), pool_size(config)[0]
        found += (
            f": at least {needed / 1e9:.1f} GB of memory for each of {workers} workers, of {_memory() / 1e9:.0f} GB"
        )
    return Check(name, "fine", f"{found}, {opened.free_bytes() / 1e9:.0f} GB of disk are free")


def _ask(path: str, body: Mapping[str, Any]) -> Any:
    url = str(configured_api()).rstrip("/")
    request = access.request(url + path, access.login_for(url))
    request.data = json.dumps(body).encode()
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.loads(answer.read())


def _fetch(url: str) -> bytes:
    request = access.request(url, access.login_for(url.removesuffix(VERSION)))
    with urllib.request.urlopen(request, timeout=5) as answer:
        body: bytes = answer.read(10_000)
        return body
