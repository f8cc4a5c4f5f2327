"""The watch in a training of two processes: both probe at the steps that the first one chooses, and none waits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[3]
pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

PROGRAM = """
import faulthandler, json, sys, time, torch, torch.distributed as dist
from pathlib import Path
from tasks.engine.messages import die_with_parent

die_with_parent()
faulthandler.dump_traceback_later(200, exit=True)  # whoever waits for ever says where
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from invented import documents
from fortifai_core.corpus.tokenization import train_tokenizer
from fortifai_core.errors import InputError
from fortifai_core.watch.probe import Size
from fortifai_core.watch.watch import Watch

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, folder, told = dist.get_rank(), Path(sys.argv[1]), {}
tokenizer = train_tokenizer(documents(60, seed=0), vocabulary=400)
size = Size(windows=8, window_tokens=32, prompt_tokens=4, sample_tokens=8, batch_tokens=64)
draw = torch.Generator().manual_seed(7 + rank)
batches = [torch.randint(1, 300, (4, 32), generator=draw) for _ in range(40)]
if rank:  # rows without a target: the live fraction reads fewer of them here
    answers = [batch.clone() for batch in batches]
    for answer in answers:
        answer[::2] = -100
else:
    answers = batches

def tiny():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48,
                                        num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=128))

def watch_of(name, **more):
    return Watch(tokenizer, documents(12, seed=1), size=size, to=folder / f"{name}-{rank}.parquet", **more)

def loop(watch, of):
    model = tiny()
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probed = []
    if watch is not None:
        watch.start(wrapped if of == "wrapped" else model)
    for step, (ids, labels) in enumerate(zip(batches, answers), start=1):
        wrapped(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        time.sleep(0.02 * rank)  # one is slower, and measures another cost
        if watch is not None and watch.step(step) is not None:
            probed.append(step)
        if watch is not None and watch.should_stop:
            break
    if watch is not None:
        watch.stop()
    return probed, step, [p.detach() for p in model.parameters()]

_, _, alone = loop(None, "")
for of, pace in (("bare", {"cost": 1.0}), ("wrapped", {"every": 7})):
    watch = watch_of(of, **pace)
    probed, last, weights = loop(watch, of)
    told[of] = [probed, last, all(torch.equal(a, b) for a, b in zip(alone, weights))]

# the first one alone finds that it is time to stop: any KL is beyond its limit, none beyond the other's
watch = watch_of("stopped", every=5, stop_on=["kl"], limits={"kl": 1e9 if rank else -1.0})
probed, last, _ = loop(watch, "bare")
told["stopped"] = [probed, last, True]

rows = [{"input_ids": row, "labels": row} for batch in batches[:10] for row in batch]
arguments = TrainingArguments(output_dir=str(folder / "trainer"), max_steps=20, per_device_train_batch_size=2,
                              report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True, logging_steps=5)
trainer = Trainer(model=tiny(), args=arguments, train_dataset=rows)
watch = watch_of("trainer", every=6).attach(trainer)
trainer.train()
told["trainer"] = [[entry["step"] for entry in trainer.state.log_history if "watch/entropy" in entry],
                   trainer.state.global_step, trainer.args.world_size == 2]

from torch.distributed.fsdp import fully_shard
try:
    watch_of("sharded").start(fully_shard(tiny()))
    told["sharded"] = "not refused"
except InputError as error:
    told["sharded"] = str(error)
(folder / f"told-{rank}.json").write_text(json.dumps(told))
dist.barrier()
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have left what they did, and one of them its tables."""
    folder = tmp_path_factory.mktemp("two")
    program = folder / "ranks.py"
    program.write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT}/tests/support", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, str(folder)], env={**os.environ, **environment}, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def told(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("given", ["bare", "wrapped"])
def test_both_probe_at_the_same_steps_and_train_the_same_bits(
    told: list[dict[str, Any]], folder: Path, given: str
) -> None:
    """By measured time, as the bare model is probed, each would choose its own: the second one is slower."""
    assert told[0][given] == told[1][given]
    probed, last, same = told[0][given]
    assert last == 40 and same and (given == "bare" or probed == [7, 14, 21, 28, 35])
    assert not (folder / f"{given}-1.parquet").exists()
    steps = set(pq.read_table(folder / f"{given}-0.parquet")["step"].to_pylist())
    assert steps >= {0, *probed} and steps <= {0, *probed, 40}


def test_all_stop_when_the_first_one_says_so(told: list[dict[str, Any]]) -> None:
    assert told[0]["stopped"] == told[1]["stopped"] == [[5], 5, True]


def test_the_trainer_is_watched_in_both_processes(told: list[dict[str, Any]], folder: Path) -> None:
    assert told[0]["trainer"] == told[1]["trainer"] == [[0, 6, 12, 18, 20], 20, True]
    steps = set(pq.read_table(folder / "trainer-0.parquet")["step"].to_pylist())
    assert steps == {0, 6, 12, 18, 20} and not (folder / "trainer-1.parquet").exists()


def test_sharded_weights_are_refused_in_one_line(told: list[dict[str, Any]]) -> None:
    for each in told:
        assert "part of the weights" in each["sharded"] and "\n" not in each["sharded"]
