"""The loss head under what is put around a model: torch.compile, DDP and FSDP2. The stock forward is the reference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from kernels import install_loss_head, losses

ROOT = Path(__file__).parents[2]


def tiny() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    return transformers.LlamaForCausalLM(config)


def test_torch_compile_breaks_the_graph_at_the_head_only() -> None:
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    ids = torch.arange(24).view(2, 12) * 3 % 97
    model = tiny()
    handle = install_loss_head(model, loss=losses.truncated(0.5), chunk_rows=7)
    eager = model(input_ids=ids, labels=ids, use_cache=False).loss
    eager.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    graphs = CompileCounter()
    compiled = torch.compile(model, backend=graphs)
    loss = compiled(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    torch.testing.assert_close(loss, eager)
    torch.testing.assert_close({name: p.grad for name, p in model.named_parameters()}, wanted)
    assert graphs.frame_count == 1  # the whole of the model under the head
    assert graphs.op_count > 50
    assert handle.statistics is not None
    compiled(input_ids=ids, labels=ids, use_cache=False)
    assert graphs.frame_count == 1
    torch._dynamo.reset()


_WORKER = """
import sys
import torch, torch.distributed as dist, transformers
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from kernels import install_loss_head, losses

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
tied = sys.argv[1] == "tied"

def tiny():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=97, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=tied))

def batch(of):
    return torch.randint(0, 97, (2, 12), generator=torch.Generator().manual_seed(of))

def steps(model, wrapped, ids):
    # two steps, so that gathering, reducing and resharding happen again after an update
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        outputs = [wrapped(input_ids=i, labels=i, use_cache=False) for i in ids]
        loss = sum(o.loss for o in outputs) / len(outputs)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return outputs[0], losses

tce = losses.truncated(0.012)  # about half of the tokens of a fresh model with 97 words
reference = tiny()
install_loss_head(reference, loss=tce, impl="torch")
steps(reference, reference, [batch(0), batch(1)])
wanted = dict(reference.named_parameters())

model = tiny()
handle = install_loss_head(model, loss=tce, chunk_rows=5)
output, _ = steps(model, DistributedDataParallel(model), [batch(rank)])
assert output.logits is None and 0 < handle.statistics.live_fraction < 1
for name, p in model.named_parameters():
    torch.testing.assert_close(p, wanted[name], msg=lambda m: f"DDP {name}: {m}")

model = tiny()
handle = install_loss_head(model, loss=tce, chunk_rows=5)
for layer in model.model.layers:
    fully_shard(layer)
fully_shard(model)
assert all(isinstance(p, DTensor) for p in model.parameters())
output, _ = steps(model, model, [batch(rank)])
assert output.logits is None and 0 < handle.statistics.live_fraction < 1
assert all(isinstance(p, DTensor) for p in model.parameters())
for name, p in model.named_parameters():
    torch.testing.assert_close(p.full_tensor(), wanted[name].data, msg=lambda m: f"FSDP2 {name}: {m}")

model = tiny()
install_loss_head(model, loss=tce)
if not tied:
    fully_shard(model.lm_head)
    fully_shard(model)
    try:
        model(input_ids=batch(0), labels=batch(0))
    except TypeError as error:
        assert "sharded on its own" in str(error), error
    else:
        raise AssertionError("a head sharded on its own was not refused")
dist.barrier()
dist.destroy_process_group()
print("fine", rank)
"""


@pytest.mark.long
@pytest.mark.parametrize("embeddings", ["tied", "untied"])
def test_two_processes_take_the_steps_of_one(tmp_path: Path, embeddings: str) -> None:
    script = tmp_path / "worker.py"
    script.write_text(_WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, embeddings], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("fine") == 2
