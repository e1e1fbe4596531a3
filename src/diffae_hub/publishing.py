"""Publishes the folder of a pipeline or component on the Hugging Face Hub.

It sends the configurations and safetensors of the components, our card with its pictures, and loader files: short
Python files through which plain diffusers finds our classes, with `trust_remote_code=True`.
"""

import json
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from diffusers.utils import logging

from .files import read_json, write_text
from .model_card import card_with_header, render_model_card, results_of_evaluation
from .network import CONFIGURATIONS, INDEX, WEIGHTS, component_folders, hub_requests
from .pretrained import bundled_or_own

logger = logging.get_logger("diffusers.diffae_hub")  # follows diffusers' verbosity

_KINDS = (*CONFIGURATIONS, f"{WEIGHTS}*.safetensors", f"{WEIGHTS}.safetensors.index*.json")
_PICTURES_AND_PAGES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".md")
# The file that a Markdown image or link, or an HTML image, points to, unless it is an address. In Markdown a place in
# the file or a title may follow.
_TARGETS = (
    re.compile(r"\]\(([^)\s:#]+)(?:#[^)\s]*)?(?:\s+\"[^\"]*\")?\)"),
    re.compile(r"<img\s[^>]*\bsrc=\"([^\":#]+)\""),
)
# Folder and variant of a file of weights or of an index of their shards (where the variant is at another place).
_WEIGHTS_FILE = re.compile(
    rf"(.*/)?{WEIGHTS}(?:\.(?!safetensors)(.+?))?(?:-\d+-of-\d+)?\.safetensors(?:\.index(?:\.(.+))?\.json)?"
)
# Arguments of diffusers' `save_pretrained`; the others are for `push_to_hub`.
_SAVING = {"is_main_process", "save_function", "safe_serialization", "variant", "max_shard_size"}
_LIBRARIES = ("diffae_hub", "diffusers")
_ALIAS = "diffae_hub.__init__"  # a name of the package that no loader file has
_LOADER = '''"""Lets diffusers find the class."""

try:
    from diffae_hub import {}
except ModuleNotFoundError as error:
    raise ImportError("this model needs a package: pip install diffae_hub") from error
'''


def ensure_repository(repo_id: str, private: bool | None = False, token: str | None = None) -> str:
    """Creates a model repository unless it is there, and returns its full id. Raises ValueError if the Hub refuses."""
    from huggingface_hub import HfApi

    try:
        with hub_requests(f"repo_id {repo_id!r} cannot be written"):
            return HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True).repo_id
    except ConnectionError as error:  # mostly because of the user's arguments
        raise ValueError(str(error)) from error


def publish(
    folder: Path,
    repo_id: str,
    card: str | Path | None,
    figures: Mapping[str, Any],
    private: bool | None,
    token: str | None = None,
    **commit: Any,
) -> Any:
    """Uploads what `save_pretrained` wrote in one commit, and creates the repository unless it is there.

    Files that cannot be sent, such as links, are refused first; other files are left out. Older weights of the same
    variants, in other files, are deleted: shards would be loaded instead of a whole file. The repository's card stays
    if a new one would only say what the configurations hold. `card` is a page to upload as README.md, with the pictures
    and pages beside it that it links to; None takes the folder's README.md unless there are figures for a new one.
    `figures` are those of [`~diffae_hub.model_card.render_model_card`], in addition to the folder's figures.json.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    repository_files(folder, repo_id, card, figures)
    full_id = ensure_repository(repo_id, private, token)
    files, is_new = repository_files(folder, full_id, card, figures)
    api = HfApi(token=token)
    with hub_requests(f"repo_id {repo_id!r} cannot be written"):
        present, weights = api.list_repo_files(full_id), {*map(_kind_of_weights, files)} - {None}
        old = [name for name in present if name not in files and _kind_of_weights(name) in weights]
        if not is_new and "README.md" in present:
            del files["README.md"]
        operations = [CommitOperationAdd(name, content) for name, content in sorted(files.items())]
        return api.create_commit(full_id, [*operations, *map(CommitOperationDelete, old)], **commit)


def repository_files(
    folder: Path, repo_id: str, card: str | Path | None, figures: Mapping[str, Any]
) -> tuple[dict[str, Path | bytes], bool]:
    """Returns all files that [`publish`] sends, by name, and whether the card says more than the configurations."""
    files, given = model_files(folder), folder / "figures.json"
    measured = {**(read_json(given) if given.is_file() else {}), **figures}
    page = Path(card or folder / "README.md")
    is_new = page.is_file() or bool(figures.keys() - {"class_name"})
    if card is not None or (page.is_file() and not given.is_file()):
        root, text = page.parent, card_with_header(page, {"model_name": repo_id, **measured}, figures)
    else:
        root, text = folder, render_model_card({**_described(files), **measured, "model_name": repo_id})
    files = _linked_files(text, root.resolve()) | files  # a card's files must not replace the model's
    files["README.md"] = text.encode()
    return files, is_new


def card_figures(card: str | Path | None, license: str | None, evaluation: str | Path | None) -> dict[str, Any]:
    """Collects the licence and the results of an evaluation's report.json, if they are given."""
    if card is not None and not Path(card).is_file():
        raise ValueError(f"card must be a Markdown file, got {card}")
    figures = {"license": license} if license else {}
    if evaluation is not None:
        keys = ("dataset", "num_images", "modes", "results")
        figures["results"] = results_of_evaluation(read_json(Path(evaluation), keys))
        figures["evaluation"] = None  # the training's sentence about its own results
    return figures


def model_files(folder: Path) -> dict[str, Path | bytes]:
    """Maps names in the repository to files of components and loaders. Raises ValueError for missing files or links."""
    files: dict[str, Path | bytes] = {}
    folders = [""]
    if (folder / INDEX).is_file():
        folders, index = component_folders(folder / INDEX), _for_diffusers(folder / INDEX)
        files |= {INDEX: _json(index), "pipeline.py": _loader(index["_class_name"][-1])}
        ours = [name for name in folders if index[name][0] == "diffae_hub"]
        files |= {f"{name}/diffae_hub.py": _loader(index[name][1]) for name in ours}
    for name in folders:
        found = [path for kind in _KINDS for path in (folder / name).glob(kind)]
        if not found:
            raise ValueError(f"folder must hold a pipeline with {INDEX} and its components, got {folder / name}")
        for path in found:
            if path.is_symlink() or (name and path.parent.is_symlink()) or not path.is_file():
                raise ValueError(f"folder must hold its files themselves, not links, got {path}")
            content = _json(_without_origin(path)) if path.name in CONFIGURATIONS else path
            files[path.relative_to(folder).as_posix()] = content
    return files


def _without_origin(path: Path) -> dict[str, Any]:
    """A configuration without the local folder that it was loaded from."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return {name: value for name, value in content.items() if name != "_name_or_path"}


def _for_diffusers(index: Path) -> dict[str, Any]:
    """A model_index.json that names the loader file of the pipeline's class."""
    content = _without_origin(index)
    name = content.get("_class_name")
    return content | {"_class_name": ["pipeline", name[-1] if isinstance(name, list) else str(name)]}


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _loader(class_name: str) -> bytes:
    return _LOADER.format(class_name).encode()


def _described(files: Mapping[str, Path | bytes]) -> dict[str, Any]:
    """Collects what the configurations say, for the card."""
    configs = {name: json.loads(files[name]) for name in files if name.endswith(CONFIGURATIONS)}
    networks = {
        Path(name).parent.name or config["_class_name"]: {
            key: value for key, value in config.items() if not key.startswith("_") and key != "trained_betas"
        }
        for name, config in configs.items()
    }
    variant = min((kind[1] or "" for kind in map(_kind_of_weights, files) if kind), default="")  # "" comes first
    described = {"networks": networks} | ({"variant": variant} if variant else {})
    return described | ({} if INDEX in files else {"class_name": next(iter(networks))})


def _kind_of_weights(name: str) -> tuple[str | None, str | None] | None:
    """Folder and variant of a file of weights; None for other files."""
    found = _WEIGHTS_FILE.fullmatch(name)
    return (found[1], found[2] or found[3]) if found else None


def _linked_files(page: str, root: Path) -> dict[str, Path | bytes]:
    """Maps names in the repository to pictures and pages below `root` that a page, or a page it links to, links to."""
    found: dict[str, Path | bytes] = {}
    pages = [(root, page)]
    for folder, text in pages:
        for target in (unquote(found) for pattern in _TARGETS for found in pattern.findall(text)):
            path = (folder / target).resolve()
            if target.lower().endswith(_PICTURES_AND_PAGES) and path.is_relative_to(root) and path.is_file():
                name = path.relative_to(root).as_posix()
                if path.suffix.lower() == ".md" and name not in found:
                    pages.append((path.parent, path.read_text(encoding="utf-8", errors="replace")))
                found[name] = path
    return found


def _loadable_class(model: Any) -> list[str]:
    """Library and name of the model's class, or of the class of ours or diffusers' that it is derived from."""
    own = type(getattr(model, "_orig_mod", model))  # the network itself, if it is compiled
    for base in own.__mro__:
        library = base.__module__.split(".")[0]
        if library in _LIBRARIES and hasattr(base, "load_config"):
            if base is not own:
                logger.warning(f"{own.__name__} is saved as {base.__name__}: what it does differently is not saved.")
            return [library, base.__name__]
    raise ValueError(f"{type(model).__name__} must be derived from a class of diffae_hub's or diffusers'")


class PublishingMixin:
    """`push_to_hub` and `save_pretrained(push_to_hub=True)` with our model card. Comes before diffusers' bases.

    Besides diffusers' arguments both take the contents of the card: `license`, `datasets`, `tags` and `base_model` as
    in the Hub's header; `evaluation`, the report.json of an evaluation; and `card`, a Markdown page to upload with its
    pictures. Without these, a card in the repository stays, but `save_pretrained` uploads one from its folder.
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
        *,
        card: str | Path | None = None,
        evaluation: str | Path | None = None,
        license: str | None = None,
        datasets: Sequence[str] = (),
        tags: Sequence[str] = (),
        base_model: str | None = None,
        saved_in: Path | None = None,
    ) -> Any:
        """Uploads weights, configuration and card in one commit and returns huggingface_hub's `CommitInfo`.

        Creates the repository if needed. Without arguments for the card, an existing card stays. `saved_in` is a folder
        that `save_pretrained` has written, to upload it as it is.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization must be True: weights are written as safetensors only, got False")
        datasets, tags = ([given] if isinstance(given, str) else [*given] for given in (datasets, tags))
        header = {"datasets": datasets, "tags": tags, "base_model": base_model}
        figures = card_figures(card, license, evaluation) | {name: value for name, value in header.items() if value}
        with tempfile.TemporaryDirectory() as temporary:
            folder = saved_in or Path(temporary)
            if saved_in is None:
                self.save_pretrained(folder, **({"variant": variant} if variant else {}))
            if not (folder / INDEX).is_file():
                figures["class_name"] = _loadable_class(self)[1]
            commit = {"commit_message": commit_message or f"Upload {type(self).__name__}", "create_pr": create_pr}
            return publish(folder, repo_id, card, figures, private, token, **commit)

    def save_pretrained(self, save_directory: str | Path, *args: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Saves as diffusers does. A pipeline gets the loader file that plain diffusers needs, too."""
        publishing = {name: kwargs.pop(name) for name in {*kwargs} - _SAVING} if push_to_hub else {}
        super().save_pretrained(save_directory, *args, **kwargs)
        index = Path(save_directory) / INDEX
        if index.is_file():
            own_name = _loadable_class(self)[1]
            content = _for_diffusers(index) | {"_class_name": ["pipeline", own_name]}
            for name, component in self.components.items():
                if component is not None and content[name][0] not in _LIBRARIES:
                    content[name] = _loadable_class(component)
            write_text(index, _json(content).decode())
            write_text(index.with_name("pipeline.py"), _loader(own_name).decode())
        if push_to_hub and kwargs.get("is_main_process", True):
            repo_id, page = publishing.pop("repo_id", Path(save_directory).resolve().name), index.with_name("README.md")
            publishing.setdefault("card", page if page.is_file() else None)
            PublishingMixin.push_to_hub(self, repo_id, saved_in=index.parent, **publishing)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any) -> Any:
        """As in diffusers, and for bundled models. It ignores loader files: no Python file of a repository is run."""
        source = bundled_or_own(pretrained_model_name_or_path)
        loaded = super().load_config(source, *args, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if isinstance(config.get("_class_name"), list):
            config["_class_name"] = config["_class_name"][-1]
            sys.modules.setdefault(_ALIAS, sys.modules["diffae_hub"])
            for entry in config.values():
                if isinstance(entry, list) and entry[:1] == ["diffae_hub"]:
                    entry[0] = _ALIAS
        return loaded
