"""What `kernels.bench` measures: the cases, this package's head and its peers, each as a function of one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import losses
from .dispatch import cross_entropy, linear_cross_entropy

GAMMA = 0.9
LIVE = (1.0, 0.5, 0.25)
_CONFIDENT = 60.0  # the target's logit in a dead row; other logits there stay far below
_NLL_ROWS = 1024
_TRL_COLUMNS = 32768  # of a tile, as TRL's trainer has it


@dataclass(frozen=True)
class Case:
    """rows hidden states of `width` against a `vocabulary`, timed `rounds` times. name: whose shape that is."""

    name: str
    rows: int
    width: int
    vocabulary: int
    dtype: str
    rounds: int = 7

    @property
    def title(self) -> str:
        return f"{self.name}: N={self.rows} D={self.width} V={self.vocabulary} {self.dtype}"


QUICK_CASES = [Case("quick", 256, 64, 2048, dtype, rounds=2) for dtype in ("float32", "bfloat16")]
CPU_CASES = [
    Case(name, *shape, dtype, rounds)
    for name, shape, rounds in (
        ("small vocabulary", (4096, 256, 32768), 15),
        ("large vocabulary", (2048, 512, 128256), 9),  # seconds for each head
    )
    for dtype in ("float32", "bfloat16")
]
CUDA_CASES = [
    Case(name, 8192, width, vocabulary, "bfloat16")
    for name, width, vocabulary in (
        ("Llama-3.2-1B", 2048, 128256),
        ("gemma-3-1b", 1152, 262144),
        ("Qwen3-8B", 4096, 151936),  # at which TRL compares (trl#7244)
    )
]


@dataclass
class Batch:
    hidden: Tensor
    weight: Tensor
    targets: Tensor

    def clear(self) -> None:
        self.hidden.grad = self.weight.grad = None


def make_batch(case: Case, live: float, device: str) -> Batch:
    """Hidden states of which the share `live`, at random places, gives its target a probability below gamma.

    A dead row's hidden state points at its target's row of the weight, so p is near 1; a live one's points anywhere,
    so p is near 1 / vocabulary. The weight and the targets are the same for every share.
    """
    dtype = getattr(torch, case.dtype)
    g = torch.Generator(device=device).manual_seed(0)
    weight = torch.randn(case.vocabulary, case.width, generator=g, device=device).mul_(case.width**-0.5)
    targets = torch.randint(case.vocabulary, (case.rows,), generator=g, device=device)
    hidden = torch.randn(case.rows, case.width, generator=g, device=device)
    order = torch.randperm(case.rows, generator=g, device=device)
    dead = order[round(live * case.rows) :]
    hidden[dead] = _CONFIDENT * F.normalize(weight[targets[dead]], dim=1)
    return Batch(hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets)


Head = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Entry:
    """One thing to time. peer: computes cross entropy over all rows, so at any live fraction the same work."""

    name: str
    live: float
    head: Head
    peer: bool


def _eager(batch: Batch) -> Tensor:
    return F.cross_entropy(F.linear(batch.hidden, batch.weight), batch.targets)


def live_share(batch: Batch) -> float:
    """The share of rows that are live, as measured by the head itself."""
    loss = losses.truncated(GAMMA)
    with torch.no_grad():
        output = linear_cross_entropy(batch.hidden, batch.weight, batch.targets, loss=loss)
    return float(output.statistics.live_fraction)


def _ours(batch: Batch, impl: Any = "auto") -> Tensor:
    loss = losses.truncated(GAMMA)
    return linear_cross_entropy(batch.hidden, batch.weight, batch.targets, loss=loss, impl=impl).loss


def _without_kernels(dense: Head) -> Head:
    """1 + 3f GEMMs: nll without a graph, then a dense head on the gathered live rows."""

    def run(batch: Batch) -> Tensor:
        nll = []
        with torch.no_grad():
            for x, t in zip(batch.hidden.split(_NLL_ROWS), batch.targets.split(_NLL_ROWS), strict=True):
                nll.append(F.cross_entropy(F.linear(x, batch.weight), t, reduction="none"))
            keep = (torch.cat(nll).float() >= -torch.tensor(GAMMA).log()).nonzero().squeeze(1)
        return dense(Batch(batch.hidden[keep], batch.weight, batch.targets[keep])) * (keep.numel() / len(batch.targets))

    return run


def entries(device: str, say: Callable[[str], None], *, quick: bool = False) -> list[Entry]:
    """Everything that can be measured on this machine; what cannot is said."""
    heads = [Entry("this package", live, _ours, peer=False) for live in LIVE]
    peers: dict[str, Head] = {"linear + cross_entropy": _eager}
    dense: Head = _eager
    fused = getattr(F, "linear_cross_entropy", None)
    if fused is None:
        say(f"skipped: torch {torch.__version__} has no linear_cross_entropy")
    else:
        options = torch.nn.LinearCrossEntropyOptions
        peers["torch linear_cross_entropy"] = lambda b: fused(b.hidden, b.weight, b.targets)
        dense = peers["torch linear_cross_entropy, chunked"] = lambda b: fused(
            b.hidden, b.weight, b.targets, options=options()
        )
    if quick:
        say("skipped in a quick run: torch.compile, whose compiler takes longer than all else together")
    else:
        compiled = torch.compile(_eager_tensors, dynamic=False)
        peers["torch.compile of eager"] = lambda b: compiled(b.hidden, b.weight, b.targets)
    peers |= _trl(say)
    if device == "cuda":
        peers |= _gpu_peers(say)
        dense = peers.get("Liger", dense)
    heads += [Entry(name, 1.0, head, peer=True) for name, head in peers.items()]
    if device == "cuda":
        heads += [Entry("no kernels, 1+3f", live, _without_kernels(dense), peer=False) for live in LIVE]
    return heads


def _eager_tensors(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), targets)


def _trl(say: Callable[[str], None]) -> dict[str, Head]:
    """The head under TRL's SFTTrainer: every row's log p from tiles of logits, which it computes a second time for the
    gradients."""
    try:
        from trl.kernels import ChunkedLogProbFunction
    except ImportError as error:  # older releases have another one
        say(f"skipped: TRL's chunked nll ({error})")
        return {}

    def head(batch: Batch) -> Tensor:
        given = (batch.hidden, batch.weight, None, batch.targets, 1.0, _TRL_COLUMNS, None, 1.0, ())
        nll: Tensor = -ChunkedLogProbFunction.apply(*given)[0]
        return nll.mean()

    return {"TRL, chunked nll": head}


def _gpu_peers(say: Callable[[str], None]) -> dict[str, Head]:
    peers: dict[str, Head] = {}
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss()
        peers["Liger"] = lambda b: liger(b.weight, b.hidden, b.targets)
    except ImportError as error:
        say(f"skipped: Liger ({error})")
    try:
        from cut_cross_entropy import LinearCrossEntropyImpl
        from cut_cross_entropy import linear_cross_entropy as cut

        peers["CCE, cce"] = lambda b: cut(b.hidden, b.weight, b.targets, impl="cce")
        if hasattr(LinearCrossEntropyImpl, "CCE_EXACT"):
            peers["CCE, cce_exact"] = lambda b: cut(b.hidden, b.weight, b.targets, impl="cce_exact")
        else:  # release 25.1.1 has no such name; what is inexact in it is the filter of gradients
            peers["CCE, cce without filter"] = lambda b: cut(b.hidden, b.weight, b.targets, impl="cce", filter_eps=None)
    except ImportError as error:
        say(f"skipped: Cut Cross-Entropy ({error})")
    try:
        from quack.linear_cross_entropy import chunked_linear_cross_entropy as quack

        peers["QuACK, chunked"] = lambda b: quack(b.hidden, b.weight, b.targets)
    except (ImportError, TypeError, RuntimeError) as error:  # its releases and CUTLASS's do not always go together
        say(f"skipped: QuACK ({type(error).__name__}: {str(error)[:150]})")
    return peers


def error_against_float32(case: Case, live: float, device: str) -> float:
    """Relative error of this package's gradients against impl="torch" in float32, on a few of the case's rows."""
    small = Case(case.name, min(case.rows, 512), case.width, case.vocabulary, case.dtype)
    batch = make_batch(small, live, device)
    _ours(batch).backward()
    exact = Batch(
        batch.hidden.detach().float().requires_grad_(), batch.weight.detach().float().requires_grad_(), batch.targets
    )
    _ours(exact, impl="torch").backward()
    pairs = ((batch.hidden, exact.hidden), (batch.weight, exact.weight))
    gradients = [(a.grad, b.grad) for a, b in pairs if a.grad is not None and b.grad is not None]
    return max(float((a.float() - b).norm() / b.norm()) for a, b in gradients)


def logits_entries(case: Case, live: float, device: str) -> list[tuple[str, Callable[[], Tensor], Tensor]]:
    """Name, loss, leaf: the logits-level losses on a quarter of the case's rows."""
    small = Case(case.name, case.rows // 4, case.width, case.vocabulary, case.dtype)
    batch = make_batch(small, live, device)
    with torch.no_grad():
        logits = F.linear(batch.hidden, batch.weight)
    logits.requires_grad_()
    loss = losses.truncated(GAMMA)
    return [
        ("this package", lambda: cross_entropy(logits, batch.targets, loss=loss, impl="triton").loss, logits),
        ("F.cross_entropy", lambda: F.cross_entropy(logits, batch.targets), logits),
    ]


def training_step(device: str, *, quick: bool, head: str) -> tuple[Callable[[], Tensor], str]:
    """A function that runs a whole training step of a Llama with random weights, and its description.

    head: "stock", "ce" or "tce". Raises ImportError without transformers.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from .install import install_loss_head

    torch.manual_seed(0)
    config: Any  # keyword arguments of several types
    if device == "cuda":
        config = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
        config |= {"num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True}
        tokens, dtype, text = (4, 2048), torch.bfloat16, "1B-shaped Llama, bf16"
    else:
        config = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
        config |= {"vocab_size": 2048 if quick else 32768}
        tokens, dtype, text = (4, 64) if quick else (8, 256), torch.float32, "4-layer Llama, D=256, fp32"
    text += f", V={config['vocab_size']}, {tokens[0]} × {tokens[1]} tokens"
    with torch.device(device):
        model: Any = LlamaForCausalLM(LlamaConfig(**config))
        model.to(dtype)
        ids = torch.randint(config["vocab_size"], tokens)
    if head != "stock":
        install_loss_head(model, loss=losses.truncated(GAMMA) if head == "tce" else None)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step, text
