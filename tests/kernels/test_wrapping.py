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
import faulthandler, sys
faulthandler.dump_traceback_later(200, exit=True)  # whoever waits for ever says where
import torch, torch.distributed as dist, transformers
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from kernels import install_loss_head, losses

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, mesh = dist.get_rank(), init_device_mesh("cpu", (2,))
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
    values = []
    for _ in range(2):
        optimizer.zero_grad()
        outputs = [wrapped(input_ids=i, labels=i, use_cache=False) for i in ids]
        loss = sum(o.loss for o in outputs) / len(outputs)
        loss.backward()
        optimizer.step()
        values.append(loss.detach())
    return outputs[0], torch.stack(values)

def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()

tce = losses.truncated(0.012)  # about half of the tokens of a fresh model with 97 words
reference = tiny()
install_loss_head(reference, loss=tce, impl="torch")
_, wanted_losses = steps(reference, reference, [batch(0), batch(1)])
wanted = dict(reference.named_parameters())

def same(what, model, handle, wrapped):
    output, found = steps(model, wrapped, [batch(rank)])
    assert output.logits is None and 0 < handle.statistics.live_fraction < 1
    dist.all_reduce(found)
    torch.testing.assert_close(found / dist.get_world_size(), wanted_losses, msg=lambda m: f"{what}, losses: {m}")
    for name, p in model.named_parameters():
        torch.testing.assert_close(whole(p.grad), wanted[name].grad, msg=lambda m: f"{what}, gradient of {name}: {m}")
        torch.testing.assert_close(whole(p), wanted[name].detach(), msg=lambda m: f"{what}, {name}: {m}")

def sharded(*, head_alone):
    model = tiny()
    handle = install_loss_head(model, loss=tce, chunk_rows=5)
    for part in [*model.model.layers, *([model.lm_head] if head_alone else []), model]:
        fully_shard(part)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    return model, handle

model = tiny()
handle = install_loss_head(model, loss=tce, chunk_rows=5)
same("DDP", model, handle, DistributedDataParallel(model))

model, handle = sharded(head_alone=False)
same("FSDP2", model, handle, model)
assert all(isinstance(p, DTensor) for p in model.parameters())

if not tied:  # a weight that is shared belongs into one group, says torch
    model, handle = sharded(head_alone=True)
    same("FSDP2, head alone", model, handle, model)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    assert "forward" not in model.lm_head.__dict__

model = tiny()
install_loss_head(model, loss=tce)
model.lm_head.weight = torch.nn.Parameter(distribute_tensor(model.lm_head.weight.detach(), mesh))
try:
    model(input_ids=batch(0), labels=batch(0))
except TypeError as error:
    assert "no fully_shard" in str(error), error
else:
    raise AssertionError("a head of which each process has a part was not refused")
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
