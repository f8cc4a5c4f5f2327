"""What goes wrong between here and the hub."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def network_errors() -> type[Exception]:
    """The base of what the hub's client raises where nobody answers, of the HTTP library that its version brings."""
    client: Any = import_module("huggingface_hub.utils").httpx  # httpx, or its successor httpx2
    error: type[Exception] = client.HTTPError
    return error
