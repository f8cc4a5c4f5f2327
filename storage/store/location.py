"""Where a store lies, from what a user wrote: a folder, or a URL that fsspec opens."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fortifai_core.errors import StoreError, Unusable
from fortifai_core.parsing import local_path

_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<rest>.+)", re.DOTALL)
# What only looks like a folder: `s3:/bucket`, `://x`, `S3://x`, `file:x`.
_ALMOST_URL = re.compile(r"[A-Za-z0-9+.-]*:/.*|(file|s3|gs|gcs|abfs|az|memory|https?):.*", re.DOTALL)
# They cannot be written, or would put a store into a file of its own.
_READ_ONLY = {"http", "https", "data", "zip", "tar", "simplecache", "filecache", "blockcache", "cached", "reference"}
_REMEDY = "name a folder, or write a URL as s3://bucket/prefix"


def parse_location(text: str) -> Path | str:
    """The folder, absolute, or the URL.

    Raises:
        StoreError: it is neither; or of a kind that nothing can be written to.
    """
    url = _URL.fullmatch(text)
    if url is not None and "::" not in text and url["scheme"] not in _READ_ONLY and "\0" not in text:
        if url["scheme"] != "file":
            return text
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise StoreError("store", text, "a file:// URL has no host: write it as file:///folder")
        text = unquote(parts.path)
    elif url is not None or "::" in text or "://" in text or _ALMOST_URL.fullmatch(text):
        raise StoreError("store", text, f"is no place for a store: {_REMEDY}")
    try:
        return local_path(text).absolute()
    except Unusable as error:
        raise StoreError("store", text, f"{error.remedy}; {_REMEDY}") from error
