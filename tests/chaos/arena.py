"""Microscopic experiments, run by the command line in processes of their own, to be disturbed and compared."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import psutil

from flows.access import login_for
from flows.embedded import server_url
from helpers import COMMAND, environment
from storage.store.store import ArtifactStore

DATABASE = "PREFECT_API_DATABASE_CONNECTION_URL"
ONE = ["runtime.workers=1"]
LANGUAGE = [
    *ONE,
    "runtime.threads=1",
    "runtime.save_steps=2",
    "corpus.pretraining_entities=8",
    "model.pretraining_epochs=1",
    "losses=[{type: tce, gamma: 0.9}]",
]
VAE = ["family.epochs=2", "family.channels=4", "family.latent=3", "family.samples=300", "family.classifier_epochs=1"]
# name: the preset that it is made from, and what makes it microscopic; `{base}` is a folder with a tiny model
EXPERIMENTS: dict[str, tuple[str, list[str]]] = {
    "language": ("smoke", LANGUAGE),
    "lora": ("smoke", [*LANGUAGE, "model={type: pretrained, path: '{base}', lora: {rank: 2, alpha: 4}}"]),
    "beam": ("smoke", [*LANGUAGE, "regeneration.decoding=beam", "regeneration.beams=2"]),
    "gmm": ("gmm", [*ONE, "family.data.samples=120", "family.components=2", "seeds=[1]", "generations=21"]),
    "gaussian": ("gaussian", [*ONE, "family.samples=200", "family.replicates=6", "family.segment=4", "generations=20"]),
    "vae": ("vae", [*ONE, *VAE, "family.measured_images=100", "seeds=[1]", "generations=3"]),
    "torchrun": ("smoke", [*LANGUAGE, "runtime.launcher=torchrun", "runtime.processes=2"]),
    "ray": ("smoke", [*LANGUAGE, "runtime.engine=ray"]),
}


def possible() -> list[str]:
    """The experiments that this machine can run."""
    lacking = {"torchrun": (os.cpu_count() or 1) < 2, "ray": find_spec("ray") is None}
    return [name for name in EXPERIMENTS if not lacking.get(name)]


@dataclass
class Arena:
    """A folder with a store for each run, and one Prefect server for all that shall not start their own."""

    root: Path
    api: str
    undisturbed: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)

    def overrides(self, name: str) -> tuple[str, list[str]]:
        """The preset of an experiment, and its settings."""
        preset, settings = EXPERIMENTS[name]
        return preset, [setting.replace("{base}", str(self.base())) for setting in settings]

    def command(self, name: str, *more: str) -> list[str]:
        """`run PRESET --set …` of an experiment."""
        preset, settings = self.overrides(name)
        return ["run", preset, *(part for setting in (*settings, *more) for part in ("--set", setting))]

    def base(self) -> Path:
        """A folder with a tiny pretrained model."""
        folder = self.root / "base"
        if not folder.exists():
            save_model(folder)
        return folder

    def start(
        self, arguments: Sequence[str], *, store: Path, output: Path, home: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """`fortifai ARGUMENTS` as the first process of a session; what it prints is in the file `output`.

        Args:
            home: Prefect's; given, it starts a server of its own, otherwise the arena's is used.
        """
        settings = environment(self.root, store.name) | {"PREFECT_HOME": str(home or self.root / "home")}
        if home is None:
            settings |= {"PREFECT_API_URL": self.api, "PREFECT_API_AUTH_STRING": login_for(self.api) or ""}
        with output.open("ab") as file:
            return subprocess.Popen(
                [*COMMAND, *arguments], env=settings, stdout=file, stderr=file, start_new_session=True
            )

    def run(self, arguments: Sequence[str], *, store: Path, home: Path | None = None) -> str:
        """The same to its end; what it printed."""
        output = self.root / f"{store.name}.out"
        output.unlink(missing_ok=True)
        process = self.start(arguments, store=store, output=output, home=home)
        code = process.wait(timeout=300)
        text = output.read_text(errors="replace")
        assert code == 0, f"{arguments}: exit code {code}\n{text}"
        return text

    def whole(self, name: str) -> dict[str, dict[str, str]]:
        """The digests of an experiment that nobody disturbed."""
        if name not in self.undisturbed:
            store = self.root / f"whole-{name}"
            self.run(self.command(name), store=store)
            self.undisturbed[name] = results(store)
        return self.undisturbed[name]


@contextmanager
def arena(root: Path) -> Iterator[Arena]:
    """An arena in a folder, with its server."""
    root.mkdir(parents=True, exist_ok=True)
    with a_server(root / "server.log", "") as api:
        yield Arena(root, api)


@contextmanager
def a_server(log: Path, database: str) -> Iterator[str]:
    """A Prefect server as `fortifai run` starts it; its database is SQLite beside the log unless another is given."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    home = log.with_suffix(".home")
    where = {"PREFECT_HOME": str(home), DATABASE: database or f"sqlite+aiosqlite:///{home}/prefect.db"}
    with (
        mock.patch.dict(os.environ, where),
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        server_url(log) as api,
    ):
        yield api


def results(store: Path) -> dict[str, dict[str, str]]:
    """sha256 of every file of every artifact of a store; of a report its table, since its page has times."""
    opened = ArtifactStore(store)
    damaged = opened.verify().damaged
    assert not damaged, damaged
    return {
        f"{m.kind}/{m.key}": {
            e["name"]: e["sha256"] for e in m.files if m.kind != "report" or e["name"] == "table.json"
        }
        for m in opened.ls()
    }


def below(process: int, holds: Callable[[list[str]], bool]) -> list[psutil.Process]:
    """The processes that a process started, or that these did, of whose command line this holds."""
    found = []
    with suppress(psutil.Error):
        for one in psutil.Process(process).children(recursive=True):
            with suppress(psutil.Error):  # it ended meanwhile
                if holds(one.cmdline()):
                    found.append(one)
    return found


def save_model(folder: Path) -> None:
    """A Llama of a few thousand random weights, with a byte-level tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from fortifai_core.corpus.tokenization import train_tokenizer

    tokenizer = train_tokenizer(["The town of Ardenlith was founded in 1340."] * 4, vocabulary=300)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=320,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=256,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
