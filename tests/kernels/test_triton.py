"""What only the Triton implementation has: the kernels one by one, the logits-level loss, availability, compilation.

Runs on the GPU where there is one, else in triton's interpreter (see conftest.py); never skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kernels import cross_entropy, dispatch, linear_cross_entropy, losses

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.cuda] if DEVICE == "cuda" else []
ROOT = Path(__file__).parents[2]
LOSSES = {
    "ce": losses.cross_entropy(),
    "tce": losses.truncated(0.5),
    "tce-live": losses.truncated(0.5, denominator="live"),
    "focal": losses.focal(2.0),
    "custom": losses.custom(lambda nll: torch.log1p(nll) ** 2),
    "smoothing": losses.label_smoothing(0.2),
    "z": losses.z_loss(0.05),
    "custom-entropy": losses.custom(lambda nll, entropy: (1 + entropy) * nll**2),
    "typical": losses.truncated_by_entropy(),
    "untempered": losses.undo_temperature(0.8),
}


def logits_and_targets(
    rows: int = 17, vocabulary: int = 13, *, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, vocabulary, generator=g, dtype=torch.float64)
    targets = torch.randint(vocabulary, (rows,), generator=g)
    logits[torch.arange(0, rows, 2), targets[::2]] += 5  # about half of the rows are confident
    targets[4::5] = -100
    return logits.to(DEVICE, dtype), targets.to(DEVICE)


def test_the_kernels_can_run_here() -> None:
    from kernels import triton_kernels

    assert triton_kernels.interpreted() == (DEVICE == "cpu"), "conftest.py must set TRITON_INTERPRET before triton"


# -------------------------------------------------------------------------------------- kernel by kernel


# V below, at and above powers of two and of one block of columns; one row; far-away numbers
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 64), (5, 63), (2, 4096), (2, 4097), (3, 9001)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_row_statistics(shape: tuple[int, int], dtype: torch.dtype) -> None:
    from kernels import triton_kernels

    g = torch.Generator().manual_seed(1)
    logits = (30 * torch.randn(shape, generator=g)).to(DEVICE, dtype)
    targets = torch.randint(shape[1], shape[:1], generator=g).to(DEVICE)
    targets[0] = logits[0].argmax()
    found = triton_kernels.rows(logits, targets, ignore_index=-100, scale=1.0, softcap=None)
    exact = logits.double()
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    wanted = F.cross_entropy(exact, targets, reduction="none")
    torch.testing.assert_close(found.nll.double(), wanted, rtol=1e-6, atol=5e-6)
    assert found.nll.dtype == kind and found.nll.ge(0).all()
    assert torch.equal(found.highest.double(), exact.amax(1))
    assert torch.equal(found.hits, exact.gather(1, targets[:, None]).squeeze(1) >= exact.amax(1))
    lse = found.highest.double() + found.total.double().log()
    torch.testing.assert_close(lse, exact.logsumexp(1), rtol=1e-6, atol=1e-6)
    # beside nll, which is the same to the bit, what a loss may ask for
    needs, temperature = ("entropy", "lse", "smooth", "tempered"), 0.7
    asked = triton_kernels.rows(
        logits, targets, ignore_index=-100, scale=1.0, softcap=None, needs=needs, temperature=temperature
    ).statistics
    assert torch.equal(asked.nll, found.nll) and found.statistics[1:] == (None,) * 4
    log_p = exact.log_softmax(1)
    for name, value in (
        ("entropy", -(log_p.exp() * log_p).sum(1)),
        ("lse", exact.logsumexp(1)),
        ("smooth", -log_p.mean(1)),
        ("tempered", (log_p / temperature).logsumexp(1)),
    ):
        torch.testing.assert_close(getattr(asked, name).double(), value, rtol=2e-6, atol=5e-6, msg=name)


@pytest.mark.parametrize("rows", [1, 2, 7, 64, 1500])  # 1500: more than one step of the prefix count
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_compaction_fills_holes_with_live_rows(rows: int, share: float) -> None:
    from kernels import triton_kernels

    g = torch.Generator().manual_seed(rows)
    live = torch.rand(rows, generator=g) < share
    count, source = triton_kernels.live_rows(live.float().mul(-2.5).to(DEVICE))
    assert count == live.sum()
    if count in (0, rows):
        assert source is None
        return
    assert source is not None
    source = source.cpu()
    # every live row once; those below `count` stay, so that a tile is never read after somebody wrote to it
    assert torch.equal(source.sort().values, live.nonzero().squeeze(1))
    slots = torch.arange(count)
    assert torch.equal(source[live[:count]], slots[live[:count]])
    assert (source[~live[:count]] >= count).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_d_logits_in_place_are_those_of_autograd(dtype: torch.dtype) -> None:
    from kernels import triton_kernels

    logits, targets = logits_and_targets(12, 4100, dtype=dtype)
    targets = targets.clamp_min(0)
    c = torch.tensor([0, 1, 0, 0, 2, 0.5, 0, -1, 3, 0, 0, 1], device=DEVICE)
    leaf = logits.float().requires_grad_()
    (F.cross_entropy(leaf, targets, reduction="none") * c).sum().backward()
    found = triton_kernels.rows(logits, targets, ignore_index=-100, scale=1.0, softcap=None)
    count, source = triton_kernels.live_rows(c)
    assert count == 6 and source is not None
    triton_kernels.dlogits(
        logits, logits[:count], targets, c, highest=found.highest, total=found.total,
        source=source, upstream=None, scale=1.0, softcap=None,
    )  # fmt: skip
    tolerance = {"rtol": 1e-5, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 2**-8, "atol": 1e-30}
    torch.testing.assert_close(logits[:count].float(), leaf.grad[source], **tolerance)


# ------------------------------------------------------------------------------------------- logits-level


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_logits_level_is_the_reference(name: str, reduction: str) -> None:
    logits, targets = logits_and_targets()
    weights = torch.linspace(0, 2, 17, dtype=torch.float64, device=DEVICE)
    # a zero in front: the upstream gradient of a row must stay its own
    upstream = torch.linspace(0, 3, 17, dtype=torch.float64, device=DEVICE) if reduction == "none" else None
    results = []
    for impl in ("torch", "triton"):
        leaf = logits.clone().requires_grad_()
        output = cross_entropy(
            leaf, targets, loss=LOSSES[name], reduction=reduction, impl=impl,  # type: ignore[arg-type]
            softcap=4.0, logit_scale=0.7, token_weights=weights,
        )  # fmt: skip
        output.loss.backward(upstream)
        results.append((output.loss.detach(), tuple(output.statistics), leaf.grad))
        assert torch.equal(leaf.detach(), logits)
    torch.testing.assert_close(results[1], results[0])


# of the others the weight is a constant for the gradient: test_row_losses.py
@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("custom-entropy", "untempered")])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_logits_level_gradcheck(name: str, reduction: str) -> None:
    logits, targets = logits_and_targets(5, 4)

    def f(z: torch.Tensor) -> torch.Tensor:
        return cross_entropy(z, targets, loss=LOSSES[name], reduction=reduction, impl="triton", softcap=9.0).loss

    assert torch.autograd.gradcheck(f, [logits.requires_grad_()], fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_level_in_short_types_errs_no_more_than_the_reference(dtype: torch.dtype) -> None:
    logits, targets = logits_and_targets(40, 301, dtype=dtype)
    grads = {}
    for impl, kind in (("torch", torch.float64), ("torch", dtype), ("triton", dtype)):
        leaf = logits.to(kind).clone().requires_grad_()
        cross_entropy(leaf, targets, loss=LOSSES["focal"], impl=impl).loss.backward()  # type: ignore[arg-type]
        grads[impl, kind] = leaf.grad.double()
    exact = grads["torch", torch.float64]
    assert (grads["triton", dtype] - exact).norm() <= (grads["torch", dtype] - exact).norm() * 1.05


def test_logits_level_contract() -> None:
    logits, targets = logits_and_targets(dtype=torch.float32)
    batched = logits.view(1, 17, 13).transpose(1, 2).contiguous().transpose(1, 2)  # unit stride along rows
    leaf = batched.clone(memory_format=torch.preserve_format).requires_grad_()
    assert leaf.stride(-1) != 1
    loss = cross_entropy(leaf, targets.view(1, 17), loss=LOSSES["tce"], impl="triton").loss
    with pytest.raises(RuntimeError, match=r"impl = 'triton' has no second derivative.*impl = 'torch'"):
        torch.autograd.grad(loss, leaf, create_graph=True)
    (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    (again,) = torch.autograd.grad(3 * loss, leaf)
    torch.testing.assert_close(again, 3 * gradient)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    for rows in (slice(0, 0), slice(4, 5)):  # empty; all ignored
        leaf = logits[rows].requires_grad_()
        value = cross_entropy(leaf, targets[rows], impl="triton").loss
        value.backward()
        assert value == 0 and leaf.grad.eq(0).all()
    with pytest.raises(ValueError, match="impl = 'chunked' is unknown here; available: auto, torch, triton"):
        cross_entropy(logits, targets, impl="chunked")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- what is to be had


def test_auto_is_triton_on_cuda_where_triton_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from kernels import chunked, fused

    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert dispatch.linear_implementation("auto", cuda) is fused.linear_terms
    assert dispatch.linear_implementation("auto", cpu) is chunked.linear_terms
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    assert dispatch.linear_implementation("auto", cuda) is chunked.linear_terms
    with pytest.raises(RuntimeError, match=r"^impl = 'triton' is not available here: triton is not installed"):
        linear_cross_entropy(torch.ones(4, 8), torch.ones(13, 8), torch.arange(4), impl="triton")
    with pytest.raises(RuntimeError, match=r"^impl = 'triton' is not available here: triton is not installed"):
        cross_entropy(torch.ones(4, 8), torch.arange(4), impl="triton")


def test_triton_by_name_on_a_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from kernels import triton_kernels

    monkeypatch.setattr(triton_kernels, "interpreted", lambda: False)
    with pytest.raises(RuntimeError, match=r"^impl = 'triton' is not available for tensors on cpu: it needs a CUDA"):
        linear_cross_entropy(torch.ones(4, 8), torch.ones(13, 8), torch.arange(4), impl="triton")
    with pytest.raises(RuntimeError, match=r"^impl = 'triton' is not available for tensors on cpu: it needs a CUDA"):
        cross_entropy(torch.ones(4, 8), torch.arange(4), impl="triton")


def test_chunks_are_chosen_by_memory_and_rows_are_aligned() -> None:
    from kernels.fused import _Fused
    from kernels.plain import Options

    def engine(rows: int, vocabulary: int, chunk_rows: int | None = None) -> Any:
        hidden, weight = torch.zeros(rows, 8), torch.zeros(vocabulary, 8)
        return _Fused(
            hidden, weight, None, rows=rows, wanted=(True, True, False), compute=torch.float32,
            options=Options(loss=losses.cross_entropy(), chunk_rows=chunk_rows),
        )  # fmt: skip

    if DEVICE == "cpu":  # the interpreter's budget is 1 MiB
        assert engine(1000, 1001).at_once == 256 and engine(100, 1001).at_once == 100
        assert engine(100, 10**6).at_once == 1
    assert engine(1000, 1001, chunk_rows=7).at_once == 7
    odd = engine(10, 1001)
    assert odd.buffer.shape == (10, 1001) and odd.buffer.stride() == (1004, 1)


_COMPILE = """
import triton.language as tl
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kernels import triton_kernels as k

def build(function, pointers, **constants):
    names = function.arg_names
    types = [pointers.get(n, "constexpr" if n in constants else "i32") for n in names]
    source = ASTSource(fn=function, signature=dict(zip(names, types)),
                       constexprs={(names.index(n),): v for n, v in constants.items()})
    compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})

for short, wide, kind in (("*bf16", "*fp32", tl.float32), ("*fp64", "*fp64", tl.float64)):
    p = dict(logits_ptr=short, out_ptr=short, targets_ptr="*i64", source_ptr="*i64", hits_ptr="*i8", rank_ptr="*i32",
             where_ptr="*i32", count_ptr="*i32")
    p |= {n: wide for n in ("nll_ptr", "highest_ptr", "total_ptr", "others_ptr", "coefficient_ptr", "upstream_ptr")}
    for asked, power in ((False, 0.0), (True, 0.0), (True, 1.4)):
        build(k._rows, p, SCALE=0.7, CAP=30.0, ENTROPY=asked, MEAN=asked, POWER=power, WIDE=kind, BLOCK=4096)
    for upstream, has_source in (("none", True), ("rows", False)):
        for coefficients in (1, 2, 3):
            build(k._dlogits, p, SCALE=0.7, CAP=30.0, HAS_SOURCE=has_source, COEFFICIENTS=coefficients,
                  UPSTREAM=upstream, ROUND=False, WIDE=kind, BLOCK=4096)
    build(k._ranks, p, BLOCK=1024)
    p["count"] = "i32"
    build(k._sources, p, BLOCK=1024)
"""


def test_the_kernels_compile_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    # to machine code for Hopper, by the assembler in triton's wheel: what the interpreter accepts, the compiler may not
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", _COMPILE], check=True, cwd=ROOT, env=environment)
    assert len(list(tmp_path.rglob("*.cubin"))) == 22


# ------------------------------------------------------------------------------------------ on a GPU only


@pytest.mark.cuda
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("live", [1.0, 0.5])
def test_peak_memory_on_the_gpu(live: float) -> None:
    rows, width, vocabulary, chunk = 4096, 512, 50257, 1024
    hidden = torch.randn(rows, width, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(vocabulary, width, device=DEVICE, dtype=torch.bfloat16).mul_(0.02).requires_grad_()
    targets = torch.randint(vocabulary, (rows,), device=DEVICE)
    weights = (torch.rand(rows, device=DEVICE) < live).float()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    options: dict[str, Any] = {"impl": "triton", "chunk_rows": chunk, "token_weights": weights}
    linear_cross_entropy(hidden, weight, targets, **options).loss.backward()
    peak = torch.cuda.max_memory_allocated() - before
    buffer = 2 * chunk * (vocabulary + 8)
    gradients = vocabulary * width * (4 + 2) + rows * width * 2 * 2
    assert peak <= buffer + gradients + 32 * 2**20  # cuBLAS's workspace and the rows' numbers
