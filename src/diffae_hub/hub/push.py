"""Pushing a pipeline folder to the Hugging Face Hub, with the real client. The endpoint is `HF_ENDPOINT`'s."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

# The client's HTTP library differs between its versions; its connection errors share a base with its status errors.
_CLIENT_ERRORS = (HFValidationError, LocalTokenNotFoundError, *HfHubHTTPError.__bases__, OSError)
# The file that a Markdown image or link names, unless it is an address or a place in the page.
_MARKDOWN_TARGET = re.compile(r"\]\(([^)\s:#]+)\)")


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
    card: str | Path | None = None,
) -> str:
    """Uploads a pipeline folder in one commit; the repository is created if needed.

    Args:
        folder: What `DiffusionAutoencoderPipeline.save_pretrained` wrote, with its README.md if it has one. Hidden
            files, among them partial ones of interrupted writes, stay behind.
        repo_id: "name" or "owner/name".
        private: Whether a new repository is private.
        token: None takes the one of `HF_TOKEN` or of `hf auth login`.
        commit_message: Title of the commit.
        card: A Markdown page to upload as README.md, with the files beside it that it shows or links to.

    Returns:
        The full id, "owner/name".

    Raises:
        ValueError: If the folder is no pipeline, the card cannot be read, or the repository cannot be written.
    """
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"folder must be a pipeline folder with a model_index.json, got {folder}")
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    files = {name.as_posix(): folder / name for name in names if not any(part.startswith(".") for part in name.parts)}
    if card is not None:
        files |= _card_files(Path(card))
    full_id = ensure_repository(repo_id, private, token)
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
    try:
        HfApi(token=token).create_commit(full_id, operations, commit_message=commit_message)
    except _CLIENT_ERRORS as error:
        raise ValueError(f"repo_id must name a repository that can be written, got {full_id!r}: {error}") from error
    return full_id


def _card_files(card: Path) -> dict[str, Path]:
    """Name in the repository -> file, of a card and of what it shows or links to below its own folder."""
    try:
        page = card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"card must be a readable Markdown file, got {card}: {error}") from error
    root = card.parent.resolve()
    linked = {name: (root / name).resolve() for name in _MARKDOWN_TARGET.findall(page)}
    files = {
        path.relative_to(root).as_posix(): path
        for path in linked.values()
        if path.is_file() and path.is_relative_to(root)
    }
    return {"README.md": card, **files}
