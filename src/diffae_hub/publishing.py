"""Publishing a folder of a pipeline or component on the Hugging Face Hub: what is sent, and the methods that send it.

Sent are the configurations and safetensors of the components, our card with its pictures, and loader files: short
Python files through which plain diffusers finds our classes, with `trust_remote_code=True`.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .files import write_text
from .model_card import CARD_FIGURES, card_data, render_model_card
from .network import CONFIGURATIONS, WEIGHTS, component_folders, hub_errors, limited_requests

_INDEX = "model_index.json"
_FIGURES = "figures.json"
_PICTURES_AND_PAGES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".md")
# The file that a Markdown image or link names, unless it is an address or a place in the page.
_MARKDOWN_TARGET = re.compile(r"\]\(([^)\s:#]+)\)")
_ALIAS = "diffae_hub.__init__"  # the package by a name that no loader file bears
_LOADER = '''"""Lets diffusers find the class."""

try:
    from diffae_hub import {}
except ModuleNotFoundError as error:
    raise ImportError("this model needs a package: pip install diffae_hub") from error
'''


def ensure_repository(repo_id: str, private: bool | None = False, token: str | None = None) -> str:
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
    from huggingface_hub import HfApi

    with _writing(repo_id):
        return HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True).repo_id


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | None = None,
    commit_message: str = "Upload diffusion autoencoder",
    create_pr: bool = False,
    card: str | Path | None = None,
    figures: Mapping[str, Any] | None = None,
) -> Any:
    """Uploads the files of a pipeline or component in one commit: an interrupted upload is never visible.

    Args:
        folder: What `save_pretrained` wrote. Links are refused, and other files stay behind.
        repo_id: "owner/name", which exists; see [`ensure_repository`].
        token: As in [`ensure_repository`].
        commit_message: Title of the commit.
        create_pr: Whether to open a pull request instead.
        card: A Markdown page to upload as README.md, with the pictures and pages beside it that it links to. None
            takes the folder's README.md unless there are figures for a new one.
        figures: Figures of the card beyond those in the folder's figures.json; see
            [`~diffae_hub.model_card.render_model_card`].

    Returns:
        huggingface_hub's `CommitInfo`.

    Raises:
        ValueError: If a file is missing or a link, the card cannot be read, or the repository cannot be written.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    folder = Path(folder)
    given = json.loads((folder / _FIGURES).read_text()) if (folder / _FIGURES).is_file() else {}
    page = folder / "README.md" if card is None else Path(card)
    files = _linked_files(page) if page.is_file() or card is not None else {}
    files |= model_files(folder)  # a card replaces none of them
    if card is not None or (page.is_file() and not given):
        files["README.md"] = _with_header(page, {"model_name": repo_id, **given, **(figures or {})})
    else:
        files["README.md"] = render_model_card(
            {**_described(folder), **given, **(figures or {}), "model_name": repo_id}
        ).encode()
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=files[name]) for name in sorted(files)]
    with _writing(repo_id):
        return HfApi(token=token).create_commit(repo_id, operations, commit_message=commit_message, create_pr=create_pr)


@contextmanager
def _writing(repo_id: str) -> Iterator[None]:
    try:
        with hub_errors("the Hub did not take it"), limited_requests(repo_id):
            yield
    except (ConnectionError, ValueError) as error:
        raise ValueError(f"repo_id must name a repository that can be written, got {repo_id!r}: {error}") from error


def model_files(folder: Path) -> dict[str, Path | bytes]:
    """Name in the repository -> file, of the components and what loads them."""
    if (folder / _INDEX).is_file():
        folders, index = component_folders(folder / _INDEX), _for_diffusers(folder / _INDEX)
        files: dict[str, Path | bytes] = {_INDEX: _json(index), "pipeline.py": _loader(index["_class_name"][-1])}
        for name in folders:
            if index[name][0] == "diffae_hub":
                files[f"{name}/diffae_hub.py"] = _loader(index[name][1])
    elif any((folder / name).is_file() for name in CONFIGURATIONS):
        folders, files = [""], {}
    else:
        raise ValueError(f"folder must be a pipeline folder with a {_INDEX}, got {folder}")
    kinds = (*CONFIGURATIONS, f"{WEIGHTS}*.safetensors", f"{WEIGHTS}.safetensors.index*.json")
    for name in folders:
        found = [path for kind in kinds for path in sorted((folder / name).glob(kind))]
        if not found:
            raise ValueError(f"folder must hold the {name} that its {_INDEX} names, got {folder}")
        for path in found:
            if path.is_symlink() or (name and path.parent.is_symlink()) or not path.is_file():
                raise ValueError(f"folder must hold its files themselves, not links, got {path}")
            files[path.relative_to(folder).as_posix()] = _configuration(path) if path.name in CONFIGURATIONS else path
    return files


def _configuration(path: Path) -> Path | bytes:
    """The file, unless it says which local folder the component was loaded from."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return _json(content) if content.pop("_name_or_path", None) is not None else path


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _loader(class_name: str) -> bytes:
    return _LOADER.format(class_name).encode()


def _for_diffusers(index: Path) -> dict[str, Any]:
    """A model_index.json that names the loader file of the pipeline's class."""
    content = json.loads(index.read_text(encoding="utf-8"))
    content.pop("_name_or_path", None)  # a local folder
    name = content.get("_class_name")
    content["_class_name"] = ["pipeline", name[-1] if isinstance(name, list) else str(name)]
    return content


def _described(folder: Path) -> dict[str, Any]:
    """What the configurations say, for the card."""
    files = {path.parent: path for name in CONFIGURATIONS for path in (*folder.glob(name), *folder.glob(f"*/{name}"))}
    networks, class_name = {}, None
    for path in files.values():
        content = json.loads(path.read_text(encoding="utf-8"))
        class_name = content.get("_class_name")
        part = path.parent.name if path.parent != folder else class_name
        networks[part] = {key: value for key, value in content.items() if not key.startswith("_")}
    whole = (folder / _INDEX).is_file()
    return {"networks": networks} | ({} if whole else {"class_name": class_name})


def _with_header(page: Path, figures: Mapping[str, Any]) -> bytes:
    """A page, with what its header lacks of ours."""
    from huggingface_hub import CardData, ModelCard

    try:
        card = ModelCard(page.read_text(encoding="utf-8"))
    except Exception as error:  # of the file, of UTF-8, of YAML
        raise ValueError(f"card must be a readable Markdown file, got {page}: {error}") from error
    data = CardData(**(card_data(figures).to_dict() | card.data.to_dict()))
    return f"---\n{data.to_yaml()}\n---\n{card.text}".encode()


def _linked_files(page: Path) -> dict[str, Path | bytes]:
    """Name in the repository -> file, of the pictures and pages below its folder that a page links to."""
    try:
        names = _MARKDOWN_TARGET.findall(page.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"card must be a readable Markdown file, got {page}: {error}") from error
    root = page.parent.resolve()
    paths = [(root / name).resolve() for name in names if name.lower().endswith(_PICTURES_AND_PAGES)]
    return {path.relative_to(root).as_posix(): path for path in paths if path.is_file() and path.is_relative_to(root)}


class PublishingMixin:
    """`push_to_hub` and `save_pretrained(push_to_hub=True)` with our card; stands before diffusers' classes.

    Both take, beside diffusers' arguments, figures of the card, such as `license`, `datasets`, `tags`, `base_model`;
    see [`~diffae_hub.model_card.render_model_card`].
    """

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        **figures: Any,
    ) -> Any:
        """Uploads weights, configuration and card in one commit; the repository is created if needed.

        Returns:
            huggingface_hub's `CommitInfo`.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization must be True: weights are written as safetensors only, got False")
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **({"variant": variant} if variant else {}))
            full_id = ensure_repository(repo_id, private, token)
            message = commit_message or f"Upload {type(self).__name__}"
            return publish(folder, full_id, token=token, commit_message=message, create_pr=create_pr, figures=figures)

    def save_pretrained(self, save_directory: str | Path, *args: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Saves as diffusers does, a pipeline with the loader file that plain diffusers needs."""
        options = {}
        if push_to_hub:
            names = ("repo_id", "commit_message", "private", "token", "create_pr", *CARD_FIGURES)
            options = {name: kwargs.pop(name) for name in names if name in kwargs}
        super().save_pretrained(save_directory, *args, **kwargs)
        index = Path(save_directory) / _INDEX
        if index.is_file():
            write_text(index, _json(_for_diffusers(index)).decode())
            write_text(index.with_name("pipeline.py"), _loader(type(self).__name__).decode())
        if push_to_hub:
            repo_id = options.pop("repo_id", Path(save_directory).resolve().name)
            variant = kwargs.get("variant")
            PublishingMixin.push_to_hub(self, repo_id, variant=variant, **options)

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """As diffusers does, but a pipeline of ours needs no loader files: nobody's Python file is run."""
        loaded = super().load_config(*args, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if isinstance(config.get("_class_name"), list):
            config["_class_name"] = config["_class_name"][-1]
            sys.modules.setdefault(_ALIAS, sys.modules["diffae_hub"])
            for entry in config.values():
                if isinstance(entry, list) and entry[:1] == ["diffae_hub"]:
                    entry[0] = _ALIAS
        return loaded
