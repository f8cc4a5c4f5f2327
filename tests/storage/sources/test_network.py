"""The hub's client says trouble of the network in its own way, and that is known as such."""

from __future__ import annotations

import socket

import pytest
from huggingface_hub import HfApi

from storage.sources.network import network_errors


def test_an_endpoint_that_nobody_answers_is_trouble_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with socket.socket() as taken:  # bound and not listening: every connection is refused
        taken.bind(("127.0.0.1", 0))
        api = HfApi(endpoint=f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(network_errors()):
            api.model_info("nobody/nothing", timeout=5)
