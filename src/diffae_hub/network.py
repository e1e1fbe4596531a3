"""The one door to the Hugging Face Hub: waiting and bytes are bounded, and what goes wrong is a ConnectionError.

huggingface_hub trusts its server: some requests wait for ever, an answer may never end, and a header names the file
that is written. [`limited_requests`] puts the bounds into its HTTP client, whose hooks see every request.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

CONFIGURATIONS = ("config.json", "scheduler_config.json")
WEIGHTS = "diffusion_pytorch_model"  # diffusers' name

_SMALL = 64 * 2**20  # bytes that everything but the announced files may have
_BYTES_PER_SECOND = 1000  # a server that sends less makes us wait on purpose
_ATTEMPTS, _ATTEMPTS_IN_VAIN = 6, 3  # requests of one kind to one address


class _Limits:
    """Hooks for the HTTP client. Files count as bytes if they are of `repo_id`: other threads may load other things."""

    def __init__(self, repo_id: str) -> None:
        from huggingface_hub import constants

        self.allowed_bytes = _SMALL
        self._timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        self._addresses = {f"/{repo_id}", f"{constants.ENDPOINT}/api/"}  # parts of the addresses that concern us
        self._attempts: Counter[tuple[str, str]] = Counter()
        self._answers: Counter[tuple[str, str]] = Counter()

    def before(self, request: Any) -> None:
        """Sets the timeouts and ends hopeless repetitions."""
        patience = self._timeout * (1 if request.method in ("GET", "HEAD") else 2)  # a commit takes the Hub longer
        given = request.extensions.get("timeout", {})
        timeouts = {
            phase: min(given.get(phase) or patience, patience) for phase in ("connect", "read", "write", "pool")
        }
        request.extensions = {**request.extensions, "timeout": timeouts}
        key = (request.method, str(request.url))
        if self._attempts[key] >= _ATTEMPTS or self._attempts[key] - self._answers[key] >= _ATTEMPTS_IN_VAIN:
            raise ConnectionError(f"{request.url} was asked {self._attempts[key]} times in vain")
        self._attempts[key] += 1

    def after(self, response: Any) -> None:
        """Refuses headers that would name a file elsewhere, and bounds the body."""
        address, headers = str(response.request.url), response.headers
        for name in ("etag", "x-linked-etag", "x-repo-commit"):  # they become names of files in the cache
            if not re.fullmatch(r'(W/)?"?[\w.:+=-]*"?', headers.get(name, "")) or ".." in headers.get(name, ""):
                raise ConnectionError(f"{address} was answered with a header {name} that is no name: {headers[name]!r}")
        if response.status_code >= 429 or response.status_code == 409:
            for name in ("retry-after", "ratelimit"):  # it may ask us to wait for days
                headers.pop(name, None)
        elif not 300 <= response.status_code < 400:
            self._answers[response.request.method, address] += 1
        if any(part in address for part in self._addresses):
            if "location" in headers:
                self._addresses.add(headers["location"].partition("?")[0])
            self._bound_body(response)

    def _bound_body(self, response: Any) -> None:
        start, received, raw, decoded = time.monotonic(), 0, response.iter_raw, response.iter_bytes

        def received_in_time(chunk_size: int | None = None) -> Iterator[bytes]:
            nonlocal received
            for chunk in raw(chunk_size):
                received += len(chunk)
                if time.monotonic() - start > 6 * self._timeout + received / _BYTES_PER_SECOND:
                    raise ConnectionError(f"{response.request.url} sends too slowly")
                yield chunk

        def within_size(chunk_size: int | None = None) -> Iterator[bytes]:
            for chunk in decoded(min(chunk_size or 2**20, 2**20)):
                self.allowed_bytes -= len(chunk)
                if self.allowed_bytes < 0:
                    raise ConnectionError(f"{response.request.url} sends more than the Hub announced")
                yield chunk

        response.iter_raw, response.iter_bytes = received_in_time, within_size


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turns every kind of failure in talking to the Hub into a ConnectionError that begins with `what`.

    A ValueError, of a name that is not allowed, and a failure of the own disk stay what they are.
    """
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"{what}: {error}") from error
    except Exception as error:  # httpx's, requests', JSON's, and what a client makes of a nonsensical answer
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise ConnectionError(f"{what}: {str(error) or type(error).__name__}") from error


@contextmanager
def limited_requests(repo_id: str) -> Iterator[_Limits]:
    """Bounds what huggingface_hub's client does for a repository; its timeouts are `HF_HUB_DOWNLOAD_TIMEOUT`."""
    from huggingface_hub.utils import get_session

    limits, hooks = _Limits(repo_id), get_session().event_hooks
    hooks["request"].append(limits.before)
    hooks["response"].append(limits.after)
    try:
        yield limits
    finally:
        hooks["request"].remove(limits.before)
        hooks["response"].remove(limits.after)


def check_hub_answers() -> None:
    """Raises ConnectionError where the Hub does not answer: its client would try for half a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    with hub_errors(f"{constants.ENDPOINT} does not answer"):
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)


def component_folders(model_index: Path) -> list[str]:
    """The folders of a pipeline's components, as its model_index.json names them."""
    content = json.loads(model_index.read_text(encoding="utf-8"))
    entries = content.items() if isinstance(content, dict) else ()
    return [name for name, entry in entries if name.isidentifier() and name[0] != "_" and entry != [None, None]]


def component_files(names: Iterable[str], folder: str, variant: str | None = None) -> list[str]:
    """Those of the files `names` that loading a component reads.

    Args:
        names: Paths in the repository.
        folder: Of the component; "" for a repository that is one component.
        variant: Of the weights, as "fp16"; a component that lacks it is taken without.
    """
    prefix = f"{folder}/" if folder else ""
    inside = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}

    def weights(middle: str) -> set[str]:
        patterns = (f"{WEIGHTS}{middle}.safetensors", f"{WEIGHTS}{middle}-?????-of-?????.safetensors")
        found = {name for name in inside if any(fnmatch(name, pattern) for pattern in patterns)}
        return found | ({f"{WEIGHTS}.safetensors.index{middle}.json"} & inside)

    chosen = (weights(f".{variant}") if variant else set()) or weights("")
    return sorted(prefix + name for name in chosen | ({*CONFIGURATIONS} & inside))


def download_pipeline(
    repo_id: str,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """Brings the files of a pipeline from the Hub into huggingface_hub's cache; only those that loading reads.

    Without an answer of the Hub the cached files are used. Their hashes are compared with those that the Hub names; a
    damaged file is fetched once more.

    Args:
        repo_id: "owner/name".
        subfolder: A single component's folder, "" for a repository that is one component; None for a whole pipeline.
        revision: Branch, tag or commit; None for "main".
        variant: Variant of the weights, as "fp16".
        cache_dir, force_download, local_files_only, token: As in huggingface_hub.

    Returns:
        The folder with the files.

    Raises:
        ConnectionError: If the Hub does not give the files.
        ValueError: If the name is not allowed, or there are no weights of that variant.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.hf_api import RepoFile

    where = {"cache_dir": cache_dir, "token": token}
    prefix = f"{subfolder}/" if subfolder else ""
    first_names = ("model_index.json",) if subfolder is None else tuple(prefix + name for name in CONFIGURATIONS)

    def chosen(names: Iterable[str], folder: Path) -> list[str]:
        names = list(names)
        folders = component_folders(folder / "model_index.json") if subfolder is None else [subfolder]
        files = [file for name in folders for file in component_files(names, name, variant)]
        if variant and not any(f".{variant}" in file for file in files):
            raise HFValidationError(f"variant must be one of its weights, got {variant!r}")
        return files

    def cached() -> Path | None:
        for name in first_names:
            found = try_to_load_from_cache(repo_id, name, cache_dir=cache_dir, revision=revision)
            if isinstance(found, str):
                return Path(found.removesuffix(name))
        return None

    def from_hub(limits: _Limits) -> tuple[Path, dict[str, str]]:
        api = HfApi(token=token)
        commit = api.model_info(repo_id, revision=revision).sha or ""
        if not re.fullmatch("[0-9a-f]{40}", commit):
            raise ConnectionError(f"the Hub named a commit {commit!r}")
        tree = {
            entry.path: entry
            for entry in api.list_repo_tree(repo_id, recursive=True, revision=commit)
            if isinstance(entry, RepoFile)
        }
        first = [name for name in first_names if name in tree]
        if not first:
            raise ConnectionError(f"it has no {' or '.join(first_names)}")
        for name in first:  # under the name of the revision, so that it is found again without the Hub
            found = hf_hub_download(repo_id, name, revision=revision, force_download=force_download, **where)
        folder = Path(found.removesuffix(name))
        files = chosen(tree, folder)
        limits.allowed_bytes += sum(tree[name].size for name in files)
        snapshot_download(repo_id, revision=commit, allow_patterns=files, force_download=force_download, **where)
        return folder, {name: tree[name].lfs.sha256 for name in files if tree[name].lfs}

    def repair(limits: _Limits, folder: Path, name: str) -> None:
        limits.allowed_bytes += (folder / name).stat().st_size
        (folder / name).resolve().unlink()
        hf_hub_download(repo_id, name, revision=folder.name, force_download=True, **where)

    offline = local_files_only or constants.HF_HUB_OFFLINE
    with hub_errors(f"{repo_id} cannot be loaded from the Hub"), limited_requests(repo_id) as limits:
        folder, hashes = cached() if offline else None, {}
        if not offline:
            try:
                folder, hashes = from_hub(limits)
            except Exception as error:
                refused = isinstance(error, HfHubHTTPError) and error.response.status_code < 429
                refused = refused or force_download or isinstance(error, HFValidationError)
                folder = None if refused else cached()
                if folder is None:
                    raise
        if folder is None:
            raise ConnectionError("it is not in the cache, and the Hub may not be asked")
        present = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        for name in [*chosen(present, folder), *first_names]:
            for attempt in range(2):
                if not (folder / name).is_file() or _is_intact(folder / name, hashes.get(name)):
                    break
                if attempt or offline:
                    with suppress(OSError):
                        (folder / name).resolve().unlink()
                    raise ConnectionError(f"{name} differs from the hash that the Hub names; it was deleted")
                repair(limits, folder, name)
    return folder


def _is_intact(path: Path, sha256: str | None) -> bool:
    """Whether a cached file has the hash that the Hub named. The cache's own files are named so: SHA-256, or Git's."""
    named = sha256 or path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", named):
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == named
    if re.fullmatch("[0-9a-f]{40}", named):
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == named
    return True
