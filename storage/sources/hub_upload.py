"""Putting a folder on the Hugging Face Hub, as a repository that nobody else sees until its owner opens it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fortifai_core.errors import InputError, StageFailed, without_secrets
from storage.sources.network import network_errors

Kind = Literal["model", "dataset"]
FIELD = "--push-to-hub"


def check_upload(repository: str) -> None:
    """That a folder could be put there, as far as can be told without asking the hub.

    Raises:
        InputError: the name is none of a repository, no token is found, or the hub is not to be asked.
    """
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repository)
        named = repository.count("/") == 1
    except HFValidationError:
        named = False
    if not named:
        raise InputError(FIELD, repository, "name the owner and the repository: OWNER/NAME")
    if constants.is_offline_mode():
        raise InputError(FIELD, repository, "HF_HUB_OFFLINE is set: unset it, or export to a folder alone")
    if not huggingface_hub.get_token():
        raise InputError(FIELD, repository, "no token is found: `hf auth login`, or set HF_TOKEN")


def upload_folder(folder: Path, repository: str, *, kind: Kind) -> str:
    """Put a folder's files there in one commit; the repository is made, private, where it does not exist.

    Returns:
        Its address.

    Raises:
        StageFailed: the hub refuses, or is not reached; the folder stays as it is.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        made = api.create_repo(repository, repo_type=kind, private=True, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository, repo_type=kind, commit_message="Export of fortifai")
    except (network_errors(), OSError, ValueError) as error:
        said = without_secrets(str(error)).strip().splitlines() or [type(error).__name__]
        raise StageFailed(f"{repository} was not written ({said[-1]}); {folder} has everything, try again") from error
    return str(made)
