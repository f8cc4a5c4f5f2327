"""The loss head as a package of its own: built by `make kernels-wheel`, installed alone beside another `kernels`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ("test_losses.py", "test_row_losses.py", "test_kernels.py")


def test_both_packages_have_the_same_version_and_the_same_torch() -> None:
    whole, alone = (
        tomllib.loads((ROOT / name).read_text(encoding="utf-8"))["project"]
        for name in ("pyproject.toml", "kernels/pyproject.toml")
    )
    assert alone["version"] == whole["version"] and alone["requires-python"] == whole["requires-python"]
    assert alone["dependencies"] == [name for name in whole["dependencies"] if name.startswith("torch>")]
    assert alone["optional-dependencies"]["models"][0] in whole["dependencies"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and a package named `kernels` that is another one, as Hugging Face's is."""
    folder = tmp_path_factory.mktemp("own-wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "kernels", source / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "LICENSE", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, source / name)
    environment = source / ".venv"  # this one, as if it had been set up there
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to(sys.executable)
    for made in (".run", ".dev"):
        (environment / made).touch()
    # Python finds its packages by the folder that it is started from
    (environment / "pyvenv.cfg").write_text((Path(sys.prefix) / "pyvenv.cfg").read_text(encoding="utf-8"))
    (environment / "lib").symlink_to(Path(sys.prefix) / "lib")
    subprocess.run(["make", "--no-print-directory", "kernels-wheel"], cwd=source, check=True)
    assert sorted(path.name for path in source.iterdir()) == sorted(
        (".venv", "LICENSE", "Makefile", "constraints.txt", "dist", "kernels", "pyproject.toml")
    )
    (wheel,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        metadata = Parser().parsestr(packed.read(next(n for n in names if n.endswith("METADATA"))).decode())
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"fortifai_kernels"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    required = [name for name in metadata.get_all("Requires-Dist") if "extra ==" not in name]
    assert required == ["torch>=2.11"] and "fortifai_kernels" in metadata.get_payload()
    installed = folder / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-deps", "--target", installed, wheel], check=True)
    (installed / "kernels").mkdir()
    # what transformers asks of it at import
    (installed / "kernels" / "__init__.py").write_text("def get_kernel(name):\n    raise RuntimeError(name)\n")
    shutil.rmtree(source)
    return installed


_USE = """
import sys
import kernels
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from fortifai_kernels import install_loss_head, linear_cross_entropy, losses

site = sys.argv[1]
assert kernels.__file__.startswith(site) and hasattr(kernels, "get_kernel"), kernels.__file__
torch.manual_seed(0)
hidden, weight = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
for loss in (losses.truncated(0.9), losses.eaft(), losses.tail(0.5)):
    for impl in ("torch", "chunked", "triton"):
        output = linear_cross_entropy(
            hidden.view(2, 3, 4), weight, torch.arange(6).view(2, 3), loss=loss, impl=impl, entropy=True
        )
        output.loss.backward()
assert hidden.grad.isfinite().all() and output.statistics.entropy.shape == (2, 3)
model = LlamaForCausalLM(LlamaConfig(vocab_size=61, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                     num_attention_heads=2))
ids = torch.arange(12).view(2, 6)
stock = model(input_ids=ids, labels=ids).loss
install_loss_head(model)
torch.testing.assert_close(model(input_ids=ids, labels=ids).loss, stock)
ours = [name for name in sys.modules if name.partition(".")[0] in ("fortifai_core", "flows", "tasks", "storage")]
assert not ours and not any(name.startswith("kernels.") for name in sys.modules), ours
assert all(sys.modules[n].__file__.startswith(site) for n in sys.modules if n.startswith("fortifai_kernels"))
print("fine")
"""


def _environment(site: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}


@pytest.mark.long
def test_the_wheel_works_beside_another_package_named_kernels(site: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _USE, str(site)]
    done = subprocess.run(command, cwd=tmp_path, env=_environment(site), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip() == "fine"


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_wheel_passes_its_own_tests(site: Path, tmp_path: Path) -> None:
    for name in TESTS:
        text = (ROOT / "tests" / "kernels" / name).read_text(encoding="utf-8")
        # what they import, and no word of them else
        text = re.sub(r"\b(from|import) kernels\b", r"\1 fortifai_kernels", text).replace(
            "import sys, kernels; ", "import sys, fortifai_kernels as kernels; "
        )
        (tmp_path / name).write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "conftest.py")
    ini = ["-c", os.devnull, "--rootdir", tmp_path, "-p", "no:cacheprovider", "-W", "ignore"]
    marks = ["-o", "markers=cuda: needs a CUDA device"]
    command = [sys.executable, "-m", "pytest", "-q", *ini, *marks, "--import-mode=importlib", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, env=_environment(site), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"^\d{3,} passed", done.stdout, flags=re.MULTILINE), done.stdout[-400:]
    assert not list((site / "kernels").glob("losses*")), "the stand-in was written over"
