"""The sum of the weight's gradient in bfloat16 on the CPU, and the memory that it and the logits are in."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from kernels import linear_cross_entropy, pages
from kernels.bfloat16_sum import Bfloat16Sum

VOCABULARY, WIDTH = 600, 16


def integers(rows: int, *, width: int, most: int, seed: int) -> torch.Tensor:
    """Small enough that every sum of the tests below is exact in bfloat16, which holds integers up to 256."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-most, most + 1, (rows, width), generator=g).bfloat16()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_integers_are_summed_exactly(chunk: int, dtype: torch.dtype) -> None:
    """Any number of chunks; targets that occur once and more often, in one chunk and in several; what was rounded."""
    rows = 40
    d_logits = integers(rows, width=VOCABULARY, most=1, seed=0)
    x, targets = integers(rows, width=WIDTH, most=2, seed=1), torch.arange(rows).remainder(23) * 5
    rest = torch.arange(rows).remainder(3).float()
    wanted = d_logits.float().T @ x.float()
    wanted.index_add_(0, targets, rest[:, None] * x.float())
    assert wanted.abs().max() < 256
    total = Bfloat16Sum(torch.empty(VOCABULARY, WIDTH, dtype=torch.bfloat16))
    for start in range(0, rows, chunk):
        part = slice(start, start + chunk)
        total.add(d_logits[part].clone(), x[part], targets[part], rest[part])
    found = total.result(dtype)
    assert found.dtype == (dtype if chunk > 1 else torch.float32)  # 40 products do not go into a sum in bfloat16
    assert torch.equal(found.float(), wanted)


def test_small_numbers_are_not_lost_in_a_sum_that_has_grown() -> None:
    """In bfloat16, 256 + 1 is 256: a sum that adds 1 for each of 4,000 chunks would end there."""
    chunks = 4000
    total = Bfloat16Sum(torch.empty(VOCABULARY, 2, dtype=torch.bfloat16))
    one, x = torch.ones(1, VOCABULARY, dtype=torch.bfloat16), torch.ones(1, 2, dtype=torch.bfloat16)
    for _ in range(chunks):
        total.add(one.clone(), x, torch.tensor([3]), torch.zeros(1))
    assert total.result(torch.bfloat16).eq(chunks).all()


def test_what_waits_does_not_grow_with_the_number_of_chunks() -> None:
    total = Bfloat16Sum(torch.empty(VOCABULARY, WIDTH, dtype=torch.bfloat16))
    for chunk in range(100):
        d_logits, x = integers(2, width=VOCABULARY, most=1, seed=chunk), integers(2, width=WIDTH, most=1, seed=chunk)
        total.add(d_logits, x, torch.tensor([1, 2]), torch.zeros(2))
        assert len(total.spared) <= 8


def test_an_upstream_gradient_asked_for_twice_gives_the_same_twice() -> None:
    """retain_graph: what is stored for the second backward pass is not the tensor that became .grad in the first."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCABULARY, WIDTH, generator=g).bfloat16().requires_grad_()
    hidden = torch.randn(30, WIDTH, generator=g).bfloat16()
    loss = linear_cross_entropy(hidden, weight, torch.arange(30), impl="chunked", chunk_rows=10).loss
    loss.backward(retain_graph=True)
    first = weight.grad.clone()
    loss.backward()
    assert first.any() and torch.equal(weight.grad, first + first)


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for on Linux only")
def test_large_tensors_ask_for_huge_pages_and_small_ones_do_not() -> None:
    modes = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not modes.exists():
        pytest.skip("this system has no transparent huge pages")
    like = torch.empty(1, dtype=torch.bfloat16)
    large, small = pages.empty(like, 2**13, 2**13, dtype=torch.float32), pages.empty(like, 3, 5)
    assert large.shape == (2**13, 2**13) and large.dtype == torch.float32
    assert small.shape == (3, 5) and small.dtype == torch.bfloat16
    assert "hg" in flags_at(large.data_ptr() + 2**22)
    assert "hg" not in flags_at(small.data_ptr())


def flags_at(address: int) -> list[str]:
    """VmFlags of the mapping that holds the address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"no mapping holds {address:#x}")
