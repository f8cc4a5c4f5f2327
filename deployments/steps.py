"""Steps that `prefect deploy` and workers take, named in `prefect.yaml` and `containers.yaml`."""

from __future__ import annotations

from typing import Any

from flows.load import load_any_config, presets


def read_presets() -> dict[str, dict[str, Any]]:
    """Every preset by its name, read from its file: `purpose`, and `experiment`, its configuration."""
    return {
        name: {"purpose": purpose, "experiment": load_any_config(name).model_dump(mode="json")}
        for name, purpose in presets().items()
    }


def use_installed_package() -> dict[str, str]:
    """In place of a pull step: the worker imports the flows from the installed package.

    Without one, Prefect would have every worker change to the folder from which the deployment was made.
    """
    return {}
