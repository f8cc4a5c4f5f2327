"""What a store is called where people read it: no password, and in one line what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fortifai_core.errors import StoreError
from storage.store.experiments import list_experiments
from storage.store.remote import without_secrets
from storage.store.store import ArtifactStore


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://me:secret@bucket/x", "s3://me:***@bucket/x"),
        ("sftp://me:se@cr@host/x and ftp://a:b@c", "sftp://me:***@host/x and ftp://a:***@c"),
        ("https://host/x?token=secret&y=1", "https://host/x?token=***&y=1"),
        ("simplecache::s3://:secret@bucket", "simplecache::s3://:***@bucket"),
        ("s3://bucket/me@home", "s3://bucket/me@home"),
        ("/a/folder", "/a/folder"),
    ],
)
def test_passwords_are_left_out(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


def test_no_error_and_no_name_of_a_store_holds_its_password(tmp_path: Path) -> None:
    store = ArtifactStore("memory://me:secret@bucket/x", cache=tmp_path)
    assert "secret" not in store.name + repr(store) and "secret" in store.url
    for url in ("nonsense://me:secret@host/x", "://me:secret@host"):
        with pytest.raises(StoreError) as caught:
            ArtifactStore(url)
        assert "secret" not in str(caught.value)


def test_a_store_that_is_a_file_is_no_empty_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is a file"):
        list_experiments(ArtifactStore(tmp_path / "file"))
    assert list_experiments(ArtifactStore(tmp_path / "not there yet")) == []


@pytest.mark.parametrize("url", ["://", "://x", "1://x", "a b://x"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match="s3://bucket/prefix"):
        ArtifactStore(url)
