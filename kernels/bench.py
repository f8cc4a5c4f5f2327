"""Time and memory of the loss heads on this machine, as ratios within one run; needs torch only.

    python -m kernels.bench                        the cases of this machine's device, a few minutes
    python -m kernels.bench --quick                to see that it works, in seconds
    python -m kernels.bench --json r.json --plot r.svg

Every head runs forward and backward, in interleaved rounds, and the median counts. A ratio to the best peer is the
median of the rounds' ratios, so that a busy moment hits both alike; peers that are out of the running after three
rounds leave the rest to those that are not. The floor is (1 + 2f) GEMMs at the rate that the three GEMMs of the case
reach here by themselves. Peak memory is what a head needs on top of its inputs: on CUDA by torch's allocator; on the
CPU in a process of its own, by the kernel's high-water mark of resident memory (VmHWM, reset after a warm-up call,
against the resident memory then).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import bench_heads as heads
from .bench_heads import Batch, Case, Entry

_HOPELESS, _BEHIND = 4, 1.5  # times as slow as the fastest head, the fastest peer: timed no further
_ROUNDS_OF_ALL = 3


def run(
    *,
    quick: bool,
    device: str,
    dtype: str | None = None,
    memory: bool = True,
    step: bool = True,
    say: Callable[[str], None] = print,
) -> Any:
    """All cases of the device, or those of one type.

    Returns what `--json` writes: the machine, and a list of cases, each with its heads.

    Times first: until `say` is told that memory comes, the machine should have nothing else to do.
    """
    cases = cases_of(device, quick=quick, dtype=dtype)
    entries = heads.entries(device, say, quick=quick)
    result: dict[str, Any] = {"machine": machine(device), "cases": []}
    say(" · ".join(f"{key} {value}" for key, value in result["machine"].items()))
    for case in cases:
        result["cases"].append(run_case(case, entries, device=device, say=say))
        if not memory:
            say(table(result["cases"][-1]))
    if device == "cuda":
        result["logits"] = [run_logits(case, say=say) for case in cases]
    if step:
        result["step"] = run_steps(device, quick=quick, say=say)
    if memory:
        say("\ntimes are taken; now the memory")
        for case, measured in zip(cases, result["cases"], strict=True):
            for entry, row in zip(entries, measured["heads"], strict=True):
                if "seconds" in row:  # it ran
                    row["peak_bytes"] = peak(case, entry, device)
            say(table(measured))
        if result.get("step"):
            add_step_peaks(result["step"]["heads"], device, quick=quick)
    if result.get("step"):
        say(step_table(result["step"]))
    return result


def cases_of(device: str, *, quick: bool, dtype: str | None = None) -> list[Case]:
    """What is measured on it."""
    cases = heads.QUICK_CASES if quick else heads.CUDA_CASES if device == "cuda" else heads.CPU_CASES
    return [case for case in cases if dtype in (None, case.dtype)]


def machine(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.processor() or platform.machine()} CPU"
    return {"device": name, "torch": torch.__version__, "threads": torch.get_num_threads(), "python": sys.version[:6]}


def run_case(case: Case, entries: list[Entry], *, device: str, say: Callable[[str], None]) -> dict[str, Any]:
    """The times of one case."""
    say(f"timing {case.title}")
    batches = {live: heads.make_batch(case, live, device) for live in heads.LIVE}
    rate = matmul_rate(batches[1.0], case.rounds)
    runs: dict[int, Callable[[], Any]] = {}
    rows: list[dict[str, Any]] = []
    for number, entry in enumerate(entries):
        row: dict[str, Any] = {"head": entry.name, "live": entry.live, "peer": entry.peer}
        rows.append(row)
        try:
            call = _forward_backward(entry, batches[entry.live])
            call()
        except Exception as error:  # a peer that cannot do this case is reported, and the others go on
            if entry.name == "this package":
                raise
            row["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
            say(f"failed: {entry.name}: {row['failed']}")
            continue
        runs[number] = call
    contest = {number for number in runs if rows[number]["peer"]}
    taken = rounds_of(runs, case.rounds, device, peers=contest)
    for number, seconds in taken.items():
        rows[number]["seconds"], rows[number]["rounds"] = statistics.median(seconds), len(seconds)
    gemm = 2 * case.rows * case.width * case.vocabulary / rate
    best = min(contest, key=lambda number: rows[number]["seconds"])
    measured = {live: heads.live_share(batch) for live, batch in batches.items()}
    for number, row in enumerate(rows):
        row["measured_live"] = 1.0 if row["peer"] else measured[row["live"]]
        if number in runs:
            row["floor_seconds"] = (1 + 2 * row["live"]) * gemm
            row["times_floor"] = row["seconds"] / row["floor_seconds"]
            row["speed_to_eager"] = rows[len(heads.LIVE)]["seconds"] / row["seconds"]
            row["speed_to_best_peer"] = paired(taken[best], taken[number])
    del batches
    errors = {live: heads.error_against_float32(case, live, device) for live in heads.LIVE}
    return {**asdict(case), "title": case.title, "flop_per_second": rate, "gradient_error": errors, "heads": rows}


def _forward_backward(entry: Entry, batch: Batch) -> Callable[[], Any]:
    def call() -> None:
        batch.clear()
        torch.autograd.backward(entry.head(batch))

    return call


def timed(runs: dict[int, Callable[[], Any]], rounds: int, device: str) -> dict[int, float]:
    """Median seconds of each."""
    return {number: statistics.median(values) for number, values in rounds_of(runs, rounds, device).items()}


def paired(one: list[float], other: list[float]) -> float:
    """How many times as long `one` took as `other`: the median over the rounds that both were in."""
    return statistics.median(a / b for a, b in zip(one, other, strict=False))


def rounds_of(
    runs: dict[int, Callable[[], Any]], rounds: int, device: str, peers: Collection[int] = ()
) -> dict[int, list[float]]:
    """Seconds of each in every round; they take turns. Each was called once already.

    What is more than `_HOPELESS` times as slow as the fastest in the first round is timed no further, nor, after
    `_ROUNDS_OF_ALL`, a peer that is `_BEHIND` times as slow as the fastest of them.
    """
    seconds: dict[int, list[float]] = {number: [] for number in runs}
    left = list(runs)
    for done in range(rounds):
        if done == 1:
            fastest = min(values[0] for values in seconds.values())
            left = [number for number in left if seconds[number][0] <= _HOPELESS * fastest]
        if done == _ROUNDS_OF_ALL and peers:
            medians = {number: statistics.median(seconds[number]) for number in peers}
            behind = {number for number in peers if medians[number] > _BEHIND * min(medians.values())}
            left = [number for number in left if number not in behind]
        for number in left:
            call = runs[number]
            _wait(device)
            started = time.perf_counter()
            call()
            _wait(device)
            seconds[number].append(time.perf_counter() - started)
    return seconds


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def matmul_rate(batch: Batch, rounds: int) -> float:
    """FLOP/s over the three GEMMs of a dense head, on a chunk of 1024 rows (CUDA: all), with memory at hand."""
    n = batch.hidden.shape[0] if batch.hidden.is_cuda else min(1024, batch.hidden.shape[0])
    x, w = batch.hidden.detach()[:n], batch.weight.detach()
    z, dw, dx = x @ w.T, torch.empty_like(w), torch.empty_like(x)
    runs = {0: lambda: torch.mm(x, w.T, out=z), 1: lambda: torch.mm(z.T, x, out=dw), 2: lambda: torch.mm(z, w, out=dx)}
    for call in runs.values():
        call()
    return 3 * 2 * n * w.numel() / sum(timed(runs, max(3, rounds), batch.hidden.device.type).values())


def peak(case: Case, entry: Entry, device: str) -> int:
    """Bytes on top of the inputs."""
    if device == "cuda":
        batch = heads.make_batch(case, entry.live, device)
        return _cuda_peak(_forward_backward(entry, batch), batch.clear)
    asked = {"case": asdict(case), "name": entry.name, "live": entry.live, "threads": torch.get_num_threads()}
    return _child(asked)


def _cuda_peak(call: Callable[[], Any], clear: Callable[[], Any]) -> int:
    clear()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    clear()
    return peak


def _child(asked: dict[str, Any]) -> int:
    command = [sys.executable, "-m", f"{__package__}.bench", "--child", json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(f"measuring memory of {asked} failed:\n{done.stderr[-2000:]}")
    return int(done.stdout.strip().splitlines()[-1])


def child(asked: dict[str, Any]) -> int:
    """Peak memory of one call on the CPU, in a process that does nothing else (Linux)."""
    torch.set_num_threads(asked["threads"])
    if "step" in asked:
        call, _ = heads.training_step("cpu", quick=asked["quick"], head=asked["step"])
    else:
        case = Case(**asked["case"])
        batch = heads.make_batch(case, asked["live"], "cpu")
        chosen = [e for e in heads.entries("cpu", lambda _: None) if (e.name, e.live) == (asked["name"], asked["live"])]
        call = _forward_backward(chosen[0], batch)
    call()
    if "step" not in asked:
        batch.clear()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def run_logits(case: Case, *, say: Callable[[str], None]) -> dict[str, Any]:
    """The logits-level losses, in bytes moved at the rate of a copy."""
    rows = []
    for live in heads.LIVE:
        pairs = heads.logits_entries(case, live, "cuda")
        leaf = pairs[0][2]
        other = torch.empty_like(leaf)

        def copy(other: Tensor = other, leaf: Tensor = leaf) -> None:
            other.copy_(leaf.detach())

        def call(head: Callable[[], Tensor], leaf: Tensor) -> Callable[[], None]:
            def both() -> None:
                leaf.grad = None
                torch.autograd.backward(head())

            return both

        runs: dict[int, Callable[[], Any]] = {0: copy, **{i + 1: call(h, leaf) for i, (_, h, _) in enumerate(pairs)}}
        for each in runs.values():
            each()
        seconds = timed(runs, case.rounds, "cuda")
        for (name, _, _), taken in zip(pairs, list(seconds.values())[1:], strict=True):
            times = {"seconds": taken, "times_one_read_one_write": taken / seconds[0]}
            rows.append({"head": name, "live": live, **times})
    say(f"\nlogits-level, {case.title}, a quarter of the rows: time as a multiple of one read and one write")
    for row in rows:
        say(f"  {row['head']:<16} f={row['live']:<5} {row['times_one_read_one_write']:.2f}")
    return {**asdict(case), "heads": rows}


def run_steps(device: str, *, quick: bool, say: Callable[[str], None]) -> Any:
    """A whole training step against the stock head; None without transformers."""
    names = ("stock", "ce", "tce")
    try:
        made = {name: heads.training_step(device, quick=quick, head=name) for name in names}
    except ImportError as error:
        say(f"skipped: a training step ({error})")
        return None
    say(f"timing a training step: {made['stock'][1]}")
    runs: dict[int, Callable[[], Any]] = {i: made[name][0] for i, name in enumerate(names)}
    for call in runs.values():
        call()
    seconds = timed(runs, 2 if quick else 7, device)
    rows = [
        {"head": name, "seconds": seconds[i], "speed_to_stock": seconds[0] / seconds[i]} for i, name in enumerate(names)
    ]
    return {"title": made["stock"][1], "heads": rows}


def add_step_peaks(rows: list[dict[str, Any]], device: str, *, quick: bool) -> None:
    """To each training step its peak memory."""
    for row in rows:
        if device == "cuda":
            row["peak_bytes"] = _cuda_peak(heads.training_step(device, quick=quick, head=row["head"])[0], lambda: None)
        else:
            row["peak_bytes"] = _child({"step": row["head"], "quick": quick, "threads": torch.get_num_threads()})


def step_table(step: dict[str, Any]) -> str:
    """The training step as text."""
    lines = [f"\na training step: {step['title']}"]
    for row in step["heads"]:
        size = f"{row['peak_bytes'] / 2**20:9.0f} MiB" if "peak_bytes" in row else ""
        lines.append(f"  {row['head']:<6} {row['seconds']:8.3f} s  {row['speed_to_stock']:5.2f}×{size}")
    return "\n".join(lines)


def table(case: dict[str, Any]) -> str:
    """A case as text, one head a line."""
    lines = [
        f"\n{case['title']}",
        f"  {'head':<34}{'f':>6}{'s':>9}{'× eager':>9}{'× best peer':>13}{'× floor':>9}"
        f"{'peak MiB':>10}{'of eager':>10}",
    ]
    base = case["heads"][len(heads.LIVE)].get("peak_bytes")
    for row in case["heads"]:
        if "seconds" not in row:
            lines.append(f"  {row['head']:<34}  {row['failed']}")
            continue
        line = f"  {row['head']:<34}{row['measured_live']:>6.2f}{row['seconds']:>9.4f}{row['speed_to_eager']:>9.2f}"
        line += f"{row['speed_to_best_peer']:>13.2f}{row['times_floor']:>9.2f}"
        if base:
            line += f"{row['peak_bytes'] / 2**20:>10.0f}{row['peak_bytes'] / base:>10.2f}"
        lines.append(line)
    errors = ", ".join(f"{error:.1e} at f={live}" for live, error in case["gradient_error"].items())
    lines.append(
        f"  GEMMs at {case['flop_per_second'] / 1e9:.0f} GFLOP/s; gradients off the fp32 reference by {errors}"
    )
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """Speed relative to the best peer, a panel per case. Needs matplotlib."""
    from matplotlib.figure import Figure

    cases = result["cases"]
    figure = Figure(figsize=(4 * len(cases), 4), layout="tight")
    panels = figure.subplots(1, len(cases), sharey=True, squeeze=False)
    for panel, case in zip(panels[0], cases, strict=True):
        rows = [row for row in case["heads"] if "seconds" in row]
        names = [row["head"] if row["peer"] else f"{row['head']}, f = {row['live']:g}" for row in rows]
        colours = ["#1b6ca8" if row["head"] == "this package" else "#b0b0b0" for row in rows]
        panel.barh(names, [row["speed_to_best_peer"] for row in rows], color=colours)
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set_title(case["title"].replace(": ", "\n"), fontsize=8)
        panel.set_xlabel("speed, best peer = 1")
        panel.tick_params(labelsize=7)
    panels[0][0].invert_yaxis()  # the panels share it
    figure.suptitle(f"forward and backward of the loss head, {result['machine']['device']}", fontsize=9)
    figure.savefig(path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small shapes, two rounds: seconds")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="only the cases in this type")
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--no-step", action="store_true", help="do not measure a training step")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--plot", type=Path, help="draw there (.svg or .png); needs matplotlib")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.child:
        print(child(json.loads(given.child)))
        return 0
    for option, path in (("--json", given.json), ("--plot", given.plot)):
        if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK)):
            parser.error(f"{option} {path}: no file can be written there; name another place")
    if given.plot is not None and given.plot.suffix not in (".svg", ".png"):
        parser.error(f"--plot {given.plot}: name a file that ends in .svg or .png")
    if given.threads:
        torch.set_num_threads(given.threads)
        os.environ["OMP_NUM_THREADS"] = str(given.threads)
    if not cases_of(given.device, quick=given.quick, dtype=given.dtype):
        parser.error(f"--dtype {given.dtype}: no case on {given.device} is in this type; leave it out")
    result = run(
        quick=given.quick, device=given.device, dtype=given.dtype, memory=not given.no_memory, step=not given.no_step
    )
    if given.json:
        given.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    if given.plot:
        plot(result, given.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
