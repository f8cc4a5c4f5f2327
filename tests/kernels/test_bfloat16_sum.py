"""The sum of the weight's gradient in bfloat16 on the CPU."""

from __future__ import annotations

import pytest
import torch

from kernels import linear_cross_entropy
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
