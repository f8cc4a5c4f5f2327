"""`python -m deployments.automations [TYPE/NAME]`: the automations of `automations.yaml` on the configured server.

With a notification block of yours its messages go there (`prefect block ls` lists them as TYPE/NAME); without one the
automations that send messages stay disabled. Those that are there already are brought up to date.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from fortifai_core.errors import FortifaiError, InputError

FILE = Path(__file__).with_name("automations.yaml")
NO_BLOCK = "00000000-0000-0000-0000-000000000000"


def automations(block: str | None = None) -> list[dict[str, Any]]:
    """The automations of the file; with the id of a notification block those that send to it are enabled."""
    found: list[dict[str, Any]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))["automations"]
    for one in found:
        for action in one["actions"]:
            if block is not None and action.get("block_document_id") == NO_BLOCK:
                action["block_document_id"], one["enabled"] = block, True
    return found


def create(block: str | None = None) -> list[str]:
    """Create them on the configured server, or bring them up to date there; their names.

    Args:
        block: a notification block, as TYPE/NAME.

    Raises:
        InputError: there is no such block, or it sends no messages.
    """
    from prefect.automations import Automation

    names = []
    for one in automations(_block_id(block) if block is not None else None):
        wanted = Automation.model_validate(one)
        try:
            found = Automation.read(name=wanted.name)
        except ValueError:
            wanted.create()
        else:
            assert isinstance(found, Automation)
            wanted.model_copy(update={"id": found.id}).update()
        names.append(wanted.name)
    return names


def _block_id(name: str) -> str:
    from prefect.blocks.abstract import NotificationBlock
    from prefect.blocks.core import Block

    remedy = "`prefect block ls` lists yours; make one in the UI under Blocks, e.g. slack-webhook/NAME"
    try:
        block = Block.load(name)
    except ValueError as error:
        raise InputError("block", name, f"there is no such block: {remedy}") from error
    if not isinstance(block, NotificationBlock):
        raise InputError("block", name, f"sends no messages: {remedy}")
    return str(block._block_document_id)


def main(arguments: list[str]) -> int:
    """Create them, and print their names."""
    if len(arguments) > 1:
        print(__doc__)
        return 2
    try:
        names = create(*arguments)
    except FortifaiError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print("\n".join(names))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
