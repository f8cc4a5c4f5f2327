"""`fortifai bench kernels | regeneration | model | catalog | store | engines | …`: measured in one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.outputs import file_to_write
from flows.terminal import Terminal
from fortifai_core.errors import InputError
from fortifai_core.outside import markup

benches = typer.Typer(help="Speed and memory on this machine, as ratios within one run.", no_args_is_help=True)
Quick = Annotated[bool, typer.Option("--quick", help="Tiny sizes: to see that it works.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _say(text: str) -> None:
    Terminal(stderr=True).print(f"[dim]{markup(text)}[/]", highlight=False, soft_wrap=True)


@benches.command("kernels")
def kernels(
    quick: Quick = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the result there, .svg or .png.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch, on the CPU.")] = None,
    memory: Annotated[bool, typer.Option(help="Measure peak memory too.")] = True,
    step: Annotated[bool, typer.Option(help="Measure a whole training step too.")] = True,
    as_json: Json = False,
) -> None:
    """The loss heads against each other and against the floor of their GEMMs (also: python -m kernels.bench)."""
    if plot is not None:
        plot = file_to_write("--plot", plot, endings=(".svg", ".png"))
    import torch

    from kernels import bench

    if threads is not None:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    say = (lambda line: None) if as_json else print
    result = bench.run(quick=quick, device=device, memory=memory, step=step, say=say)
    if plot is not None:
        bench.plot(result, plot)
    if as_json:
        typer.echo(json.dumps(result, indent=2, default=str))


def check_device(device: str) -> None:
    """That there is such a device here."""
    if device not in ("cpu", "cuda"):
        raise InputError("--device", device, "choose cpu or cuda")
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device", device, "torch sees no such device here; choose cpu")


@benches.command("regeneration")
def regeneration(
    shape: Annotated[str, typer.Option(help="Shape of the model: demo, wikitext or 1b.")] = "demo",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    experiment: Annotated[str | None, typer.Option(help="Instead: the models and text of this experiment.")] = None,
    generation: Annotated[list[int] | None, typer.Option(help="Which of its models. May be repeated. [0]")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Only so many tokens of its text.")] = None,
    store: Annotated[str | None, typer.Option("--store", help="Its store. [FORTIFAI_STORE]")] = None,
    quick: Quick = False,
    as_json: Json = False,
) -> None:
    """Rewriting: the aligned engine against the reference, generate and continuous batching."""
    check_device(device)
    from flows.bench.regeneration import SHAPES, bench_regeneration, regeneration_table

    if shape not in SHAPES:
        raise InputError("--shape", shape, f"choose {', '.join(SHAPES)}")
    if experiment is None:
        rows = bench_regeneration(shape=shape, device=device, quick=quick, say=_say)
    else:
        from flows.bench.experiment import bench_experiment
        from flows.stores import open_store
        from storage.store.experiments import load_experiment

        opened = open_store(store)
        record = load_experiment(opened, experiment)
        repeats = 1 if quick else 3
        rows = bench_experiment(opened, record, generations=generation or [0], repeats=repeats, tokens=tokens, say=_say)
    if as_json:
        typer.echo(json.dumps(rows, indent=2, default=str))
    else:
        regeneration_table(rows, Terminal())


@benches.command("model")
def model(
    path: Annotated[str | None, typer.Option("--model", help="Hub id (FORTIFAI_MODELS first), or a folder.")] = None,
    gguf_file: Annotated[str | None, typer.Option(help="The GGUF file there.")] = None,
    part: Annotated[list[str] | None, typer.Option(help="training, rewriting or scoring; repeatable. [all]")] = None,
    context: Annotated[list[int] | None, typer.Option(min=1, help="C of the rewriting; repeatable. [64, 512]")] = None,
    blocks: Annotated[int, typer.Option(min=1, help="Blocks of 32 tokens that are rewritten.")] = 16,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch, on the CPU.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; the median counts.")] = 3,
    quick: Quick = False,
    as_json: Json = False,
) -> None:
    """A model's training step, rewriting and scoring against the best that others offer."""
    from flows.bench.model import PARTS, bench_model, model_table, tiny

    check_device(device)
    for name in part or ():
        if name not in PARTS:
            raise InputError("--part", name, f"choose {', '.join(PARTS)}")
    if dtype not in ("float32", "bfloat16"):
        raise InputError("--dtype", dtype, "choose float32 or bfloat16")
    if path is None and not quick:
        raise InputError("--model", "", "name a model, or try a tiny random one with --quick")
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    sizes: dict[str, Any] = {"contexts": context or (64, 512), "blocks": blocks}
    if path is None:
        chosen, tokenizer = tiny()
        sizes = {"contexts": context or (64,), "blocks": min(blocks, 4), "rows": 2, "length": 32, "questions": 8}
    else:
        from storage.sources.pretrained import Pretrained

        found = Pretrained.find(path, None, gguf_file)
        found.check(longest=max(sizes["contexts"]) + 32 * blocks)
        chosen, tokenizer = found.fetch_model(dtype="float32"), found.fetch_tokenizer()
    rows = bench_model(
        chosen.to(device),
        tokenizer,
        parts=part or PARTS,
        dtype=dtype,
        repeats=1 if quick else repeats,
        say=_say,
        **sizes,
    )
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        model_table(rows, Terminal())


@benches.command("watch")
def watch(
    seconds: Annotated[float | None, typer.Option(min=1, help="Of training. [1200; 60 with --quick]")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch, on the CPU.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    quick: Quick = False,
    as_json: Json = False,
) -> None:
    """What a watch costs a training of the demo's model, as a share of its time."""
    check_device(device)
    import torch

    from flows.bench.watch import bench_watch

    if threads is not None:
        torch.set_num_threads(threads)
    length = seconds if seconds is not None else 60 if quick else 1200
    found = bench_watch(seconds=length, quick=quick, device=device, say=_say)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        Terminal().print(
            f"{found['share']:.2%} of the training's time: {found['probes']} probes, the baseline among them, in "
            f"{found['train_seconds']:.0f} s of training ({found['steps']:,} steps)",
            highlight=False,
        )


@benches.command("synthetic")
def synthetic(
    path: Annotated[str, typer.Option("--model", help="Hub id (FORTIFAI_MODELS first), or a folder.")],
    text: Annotated[Path, typer.Option("--text", help="Real documents: .txt, .jsonl or .parquet.")],
    other: Annotated[Path | None, typer.Option(help="Real documents of another kind.")] = None,
    gguf_file: Annotated[str | None, typer.Option(help="The GGUF file there.")] = None,
    text_field: Annotated[str, typer.Option(help="Column of the text in .jsonl and .parquet files.")] = "text",
    tokens: Annotated[int, typer.Option(min=32, help="Of each document.")] = 96,
    documents: Annotated[int, typer.Option(min=16, help="Of a mixture.")] = 80,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: Json = False,
) -> None:
    """How often the estimate of a text's synthetic share is right, on mixtures of known share."""
    check_device(device)
    from dataclasses import asdict

    from rich.table import Table

    from flows.bench.synthetic import bench_synthetic
    from flows.tools.watching import texts_of
    from storage.sources.pretrained import Pretrained

    texts = texts_of("--text", text, text_field=text_field)
    others = [] if other is None else texts_of("--other", other, text_field=text_field)
    found = Pretrained.find(path, None, gguf_file)
    found.check(longest=tokens + 1)
    rows = bench_synthetic(
        found.fetch_model(dtype="float32").to(device),
        found.fetch_tokenizer(),
        texts,
        others=others,
        tokens=tokens,
        documents=documents,
        most=3 * max(documents, 100),
        say=_say,
    )
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    table = Table("the text is", "T", "supposed", "share", "told", "held", "estimate", "width", "gap", box=None)
    for row in rows:
        rates = ["–" if v is None else f"{v:.0%}" for v in (row.told, row.covered, row.estimate, row.width)]
        cells = (f"{row.temperature:g}", f"{row.supposed:g}", f"{row.share:.0%}", *rates, f"{row.gap:+.2f}")
        table.add_row(row.condition, *cells)
    Terminal().print(table)


@benches.command("catalog")
def catalog(
    artifacts: Annotated[
        list[int] | None, typer.Option(min=100, help="How many; repeatable. [1000, 10000, 100000]")
    ] = None,
    quick: Quick = False,
    as_json: Json = False,
) -> None:
    """How long a store of many artifacts takes to answer `sql`, `ls` and `resume`."""
    from flows.bench.catalog import SIZES, bench_catalog, catalog_table

    rows = bench_catalog(artifacts or ((100,) if quick else SIZES), say=_say)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        catalog_table(rows, Terminal())


@benches.command("store")
def store(
    url: Annotated[str, typer.Argument(help="Where: s3://bucket/prefix, or a folder; what it makes there it removes.")],
    quick: Quick = False,
    as_json: Json = False,
) -> None:
    """Committing, looking up and reading artifacts in a store there, beside a local one."""
    from flows.bench.store import bench_store, store_table

    rows = bench_store(url, quick=quick)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        store_table(rows, Terminal())


@benches.command("engines")
def engines(
    workers: Annotated[int, typer.Option(min=1, help="Stages computed at once.")] = 1,
    address: Annotated[
        str | None, typer.Option(help="host:port of a Ray cluster. [one that starts and ends with each run]")
    ] = None,
    ray: Annotated[bool, typer.Option(help="Measure Ray too.")] = True,
    rounds: Annotated[int, typer.Option(min=1, help="How often; each figure is the median.")] = 3,
    as_json: Json = False,
) -> None:
    """What orchestration adds to a run and to each stage, with worker processes and on Ray."""
    from flows.bench.engines import bench_engines, engines_table

    rows = bench_engines(workers=workers, address=address, ray=ray, rounds=rounds, say=_say)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        engines_table(rows, Terminal())
