"""`kernels` and `fortifai_core` are taken into other people's training: they work where the rest is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_HIDE = """
import sys

HIDDEN = {"prefect", "duckdb", "datasets", "pyarrow"}

class Without:  # finds what the other finder finds, but nothing hidden: as if it were not installed
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
for name in HIDDEN:
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"{name} is not hidden")
"""
_USE = """
import importlib, pkgutil
import torch
import fortifai_core, kernels

for package in (fortifai_core, kernels):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)

from kernels import cross_entropy, install_loss_head, linear_cross_entropy, losses

tce = losses.truncated(0.9)
hidden, weight = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
for impl in ("torch", "chunked", "triton"):
    output = linear_cross_entropy(hidden, weight, torch.arange(6), loss=tce, impl=impl)
    output.loss.backward()
cross_entropy(hidden @ weight.T, torch.arange(6), loss=tce).loss.backward()
assert hidden.grad.isfinite().all() and output.statistics.tokens == 6

from transformers import LlamaConfig, LlamaForCausalLM
model = LlamaForCausalLM(LlamaConfig(vocab_size=61, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                     num_attention_heads=2))
install_loss_head(model, loss=tce)
ids = torch.arange(12).view(2, 6)
model(input_ids=ids, labels=ids).loss.backward()
model.save_pretrained(sys.argv[1])

assert not HIDDEN & {name.partition(".")[0] for name in sys.modules}
print("fine")
"""


def test_kernels_and_core_without_prefect_duckdb_datasets_and_pyarrow(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", _HIDE + _USE, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip() == "fine"


_WATCH = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
import fortifai_core.watch.synthetic
from fortifai_core.watch.probe import Size
from fortifai_core.watch.watch import Watch

class Tokenizer:  # letters
    bos_token_id, pad_token_id, eos_token_id, all_special_ids = None, 0, 0, [0]
    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [ord(letter) - 31 for letter in text]}
    def __len__(self):
        return 97
    def batch_decode(self, rows):
        return ["".join(chr(31 + token) for token in row) for row in rows]

torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=97, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                     num_attention_heads=2, max_position_embeddings=64))
size = Size(windows=8, window_tokens=24, prompt_tokens=4, sample_tokens=8, batch_tokens=32)
watch = Watch(Tokenizer(), [f"document number {n} says something of {n * n}" for n in range(9)], every=1, size=size)
watch.start(model)
ids = torch.randint(1, 97, (2, 16))
model.train()
model(input_ids=ids, labels=ids).loss.backward()
assert watch.step(1).values["watch/live-fraction"] == 1.0
assert not HIDDEN & {name.partition(".")[0] for name in sys.modules}
print("fine")
"""


def test_the_watch_with_torch_and_transformers_alone() -> None:
    more = '"pydantic", "scipy", "sklearn", "jinja2", "pandas", "rich", "typer", "peft", "lm_eval"'
    hide = _HIDE.replace('"pyarrow"}', f'"pyarrow", {more}}}')
    assert hide != _HIDE
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", hide + _WATCH]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip() == "fine"


def test_kernels_without_triton() -> None:
    code = """
import sys
sys.modules["triton"] = None  # importing it fails, and looking for it finds nothing
import torch
from kernels import cross_entropy, linear_cross_entropy
hidden, weight = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4)
linear_cross_entropy(hidden, weight, torch.arange(6)).loss.backward()
cross_entropy(hidden @ weight.T, torch.arange(6)).loss.backward()
try:
    linear_cross_entropy(hidden, weight, torch.arange(6), impl="triton")
except RuntimeError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.startswith("impl = 'triton' is not available here: triton is not installed"), done.stdout
