"""`fortifai verify`: what it says, as text and as JSON, is what it did."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from artifacts import flip_one_of_each_kind, put
from flows.cli.app import app
from storage.store.store import ArtifactStore


def test_json_gives_an_object_for_each_damaged_artifact_and_the_number_of_sound_ones(store_url: str) -> None:
    store = ArtifactStore(store_url)
    put(store, "model", "a" * 64)
    put(store, "split", "b" * 64)
    (store.root / "artifacts" / "model" / ("a" * 64) / "a.txt").write_text("jello")
    said = CliRunner().invoke(app, ["verify", "--json"])
    assert said.exit_code == 1
    body = json.loads(said.stdout)
    (damage,) = body.pop("damaged")
    assert body == {"sound": 1}
    assert (damage["kind"], damage["key"], damage["file"]) == ("model", "a" * 64, "a.txt")
    assert "sha256" in damage["problem"] and (Path(damage["moved_to"]) / "a.txt").read_text() == "jello"
    again = CliRunner().invoke(app, ["verify", "--json"])
    assert again.exit_code == 0 and json.loads(again.stdout) == {"sound": 1, "damaged": []}


def test_the_text_counts_the_damaged_apart_and_says_where_they_are(store_url: str) -> None:
    store = ArtifactStore(store_url)
    for kind in ("model", "split", "evaluation"):
        put(store, kind, "a" * 64)
    put(store, "model", "b" * 64)
    assert set(flip_one_of_each_kind(store)) == {"model", "split", "evaluation"}
    said = CliRunner().invoke(app, ["verify"])
    assert said.exit_code == 1
    assert "1 artifacts are sound, 3 were set aside" in said.stdout
    assert said.stderr.count(f"moved to {store.root / 'damaged'}") == 3
