"""Secrets of the environment stay there: no file of a run, no output and no error message has one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from flows.cli.running import _resume
from flows.hints import command_line
from flows.load import load_any_config
from flows.local import _announce
from flows.prepare import Prepared, prepare_experiment
from flows.terminal import Terminal
from fortifai_core.config.stages import Runtime
from storage.catalog.catalog import query, refresh_catalog
from tasks.engine.build import build

SECRETS = {
    name: f"secret-{number}-of-the-environment"
    for number, name in enumerate(
        (
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "PREFECT_API_KEY",
            "PREFECT_API_AUTH_STRING",
            "PREFECT_SERVER_API_AUTH_STRING",
            "PREFECT_API_DATABASE_PASSWORD",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "OPENAI_API_KEY",
            "HTTPS_PROXY_PASSWORD",
        )
    )
}
TINY = ["family.samples=100", "family.replicates=2", "family.segment=2", "generations=2", "runtime.workers=1"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A whole experiment, stage by stage in this process, with every secret in its environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, secret in SECRETS.items():
            patch.setenv(name, secret)
        store = tmp_path_factory.mktemp("secrets") / "store"
        one = prepare_experiment(load_any_config("gaussian", TINY), store=str(store), refresh=[])
        for stage in one.plan.stages():
            build(stage, one.store, Runtime(), progress=lambda *_: None)
        refresh_catalog(one.store)
        return one


def leaked(text: bytes) -> list[str]:
    return [name for name, secret in SECRETS.items() if secret.encode() in text]


def test_no_file_of_a_run_has_a_secret(ran: Prepared) -> None:
    files = [path for path in ran.store.root.rglob("*") if path.is_file()]
    assert {"manifest.json", "report.html", "catalog.duckdb", "table.json"} <= {path.name for path in files}
    assert {str(path): found for path in files if (found := leaked(path.read_bytes()))} == {}
    # Parquet is compressed: what is in it is asked for
    for view in ("experiments", "artifacts", "metrics", "stages"):
        assert leaked(str(query(ran.store, f"FROM {view}")).encode()) == []


def test_the_mark_would_show(ran: Prepared, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(f"token {SECRETS['HF_TOKEN']}")
    assert leaked((tmp_path / "log").read_bytes()) == ["HF_TOKEN"]


@pytest.mark.parametrize(
    "command",
    [
        ["plan", "gaussian", "--set", "generations=2"],
        ["ls"],
        ["show", "latest"],
        ["report"],
        ["sql", "FROM artifacts"],
        ["sql", "FROM duckdb_settings()"],
        ["sql", "SELECT getenv('HF_TOKEN')"],
        ["show", "no-such-key"],
        ["run", "gaussian", "--set", "family.samples=${HF_TOKEN}"],
        ["run", "$HF_TOKEN.yaml"],
        ["doctor"],
    ],
)
def test_no_command_prints_a_secret(command: list[str], ran: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    monkeypatch.setenv("PREFECT_API_URL", "")
    done = CliRunner().invoke(app, [*command, "--store", str(ran.store.root)])
    assert leaked((done.output + str(done.exception)).encode()) == []
    assert os.environ["HF_TOKEN"] == SECRETS["HF_TOKEN"]


@pytest.mark.parametrize(
    ("store", "printed"),
    [
        (None, "fortifai resume mine --allow-code losses"),
        ("s3://bucket/store", "fortifai resume mine --store s3://bucket/store --allow-code losses"),
        ("/data/my {own} store", "fortifai resume mine --store '/data/my {own} store' --allow-code losses"),
    ],
)
def test_how_to_go_on_can_be_copied(store: str | None, printed: str) -> None:
    assert command_line("resume mine", store=store, allow=["losses"]) == printed


def test_how_to_go_on_repeats_no_password(ran: Prepared, capsys: pytest.CaptureFixture[str]) -> None:
    """What a run announces, and what a failed one ends with."""
    resume = _resume("ftp://me:hunter2@host/store?token=hunter3", ["losses"])
    anew = replace(ran, refresh=frozenset(stage.reference for stage in ran.plan.stages()))
    _announce(anew, Terminal(width=300), command=resume.replace("{name}", ran.record_id))
    said = capsys.readouterr().out
    assert f"go on with: fortifai resume {ran.record_id} --allow-code losses" in said
    assert "FORTIFAI_STORE" in said and "hunter" not in said
