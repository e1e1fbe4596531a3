"""Pushing a pipeline folder to the Hugging Face Hub, with the real client. The endpoint is `HF_ENDPOINT`'s."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

# The client's HTTP library differs between its versions; its connection errors share a base with its status errors.
_CLIENT_ERRORS = (HFValidationError, LocalTokenNotFoundError, *HfHubHTTPError.__bases__, OSError)
# Partial files of interrupted writes and whatever an operating system leaves behind.
_IGNORED = [".*", "**/.*", "*.partial"]


def ensure_repository(repo_id: str, private: bool = False, token: str | None = None) -> str:
    """Creates a model repository unless it is there, so that a training learns at its beginning whether it can push.

    Args:
        repo_id: "name" or "owner/name"; without an owner, the token's user.
        private: Whether a new repository is private.
        token: None takes the one of `HF_TOKEN` or of `hf auth login`.

    Returns:
        The full id, "owner/name".

    Raises:
        ValueError: If the name is not allowed, there is no valid token, or the Hub cannot be reached.
    """
    try:
        return HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True).repo_id
    except _CLIENT_ERRORS as error:
        raise ValueError(f"repo_id must name a repository that can be written, got {repo_id!r}: {error}") from error


def push_pipeline(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Upload diffusion autoencoder",
) -> str:
    """Uploads a pipeline folder in one commit; the repository is created if needed.

    Args:
        folder: What `DiffusionAutoencoderPipeline.save_pretrained` wrote, with its README.md if it has one.
        repo_id: "name" or "owner/name".
        private: Whether a new repository is private.
        token: None takes the one of `HF_TOKEN` or of `hf auth login`.
        commit_message: Title of the commit.

    Returns:
        The full id, "owner/name".

    Raises:
        ValueError: If the folder is no pipeline, or the repository cannot be written.
    """
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"folder must be a pipeline folder with a model_index.json, got {folder}")
    full_id = ensure_repository(repo_id, private, token)
    try:
        HfApi(token=token).upload_folder(
            repo_id=full_id, folder_path=folder, commit_message=commit_message, ignore_patterns=_IGNORED
        )
    except _CLIENT_ERRORS as error:
        raise ValueError(f"repo_id must name a repository that can be written, got {full_id!r}: {error}") from error
    return full_id
