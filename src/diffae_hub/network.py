"""All requests to the Hugging Face Hub, with limits on time and bytes. Failures become ConnectionErrors.

huggingface_hub trusts its server: some requests wait forever, an answer may never end, and a header names the file
that is written. [`hub_requests`] adds limits to its HTTP client, whose hooks see every request.
"""

import errno
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INDEX = "model_index.json"
CONFIGURATIONS = ("config.json", "scheduler_config.json")
WEIGHTS = "diffusion_pytorch_model"  # diffusers' name

_MOST_BYTES = 64 * 2**20  # of an answer without a declared length, and of any answer of the API
_BYTES_PER_SECOND = 1000  # a server that sends less is taken to stall on purpose
_ATTEMPTS = 4  # failed requests of one kind to one address
_OWN_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
_ONE_THREAD = threading.RLock()  # all share the client and its settings


class _Limits:
    """Hooks that limit the HTTP client."""

    def __init__(self) -> None:
        from huggingface_hub import constants

        self._timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        self._in_vain: Counter[tuple[str, str]] = Counter()

    def before(self, request: Any) -> None:
        """Sets the timeouts, ends hopeless repetitions, and asks for no compression, which could hide any size."""
        request.headers["accept-encoding"] = "identity"
        patience = self._timeout * (1 if request.method in ("GET", "HEAD") else 2)  # a commit takes the Hub longer
        given = request.extensions.get("timeout", {})
        phases = ("connect", "read", "write", "pool")
        timeouts = {phase: min(given.get(phase) or patience, patience) for phase in phases}
        request.extensions = {**request.extensions, "timeout": timeouts}
        key = (request.method, str(request.url))
        if self._in_vain[key] == _ATTEMPTS:
            raise ConnectionError(f"{request.url} was requested {_ATTEMPTS} times in vain")
        self._in_vain[key] += 1

    def after(self, response: Any) -> None:
        """Refuses file names that lead out of the cache, and limits the body."""
        request, headers = response.request, response.headers
        for name in ("retry-after", "ratelimit", "content-encoding"):  # the first two may ask us to wait for days
            headers.pop(name, None)
        for name in ("etag", "x-linked-etag", "x-repo-commit"):  # they name files in the cache
            if request.method == "HEAD" and not re.fullmatch(r'(W/)?"?[\w:+=-]*"?', headers.get(name, "")):
                raise ConnectionError(f"{request.url} was answered with an invalid {name}: {headers[name]!r}")
        # The client itself enforces the length that a server announces.
        bounded = "/api/" in str(request.url) or "content-length" not in headers
        start, chunks = time.monotonic(), response.iter_bytes

        def in_bounds(chunk_size: int | None = None) -> Iterator[bytes]:
            size = 0
            for chunk in chunks():  # as they come: to wait for `chunk_size` bytes could take forever
                size += len(chunk)
                if bounded and size > _MOST_BYTES:
                    raise ConnectionError(f"{request.url} sends more than {_MOST_BYTES:,} bytes")
                if time.monotonic() - start > 6 * self._timeout + size / _BYTES_PER_SECOND:
                    raise ConnectionError(f"{request.url} sends too slowly")
                yield chunk
            if response.status_code < 300:
                del self._in_vain[request.method, str(request.url)]

        response.iter_bytes = in_bounds


@contextmanager
def hub_requests(what: str) -> Iterator[None]:
    """Limits huggingface_hub's client, and turns its failures into a ConnectionError that begins with `what`.

    A name that is not allowed raises ValueError, and errors of the local disk are raised as they are. Timeouts follow
    huggingface_hub's `HF_HUB_DOWNLOAD_TIMEOUT`. Other threads wait for their turn.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import get_session

    with _ONE_THREAD:
        limits, hooks, disable_xet = _Limits(), get_session().event_hooks, constants.HF_HUB_DISABLE_XET
        hooks["request"].append(limits.before)
        hooks["response"].append(limits.after)
        constants.HF_HUB_DISABLE_XET = True  # Xet has a client of its own, without these limits
        try:
            yield
        except HFValidationError as error:
            raise ValueError(f"{what}: {error}") from error
        except Exception as error:  # of HTTP, of JSON, or from a nonsensical answer
            if isinstance(error, OSError) and error.errno in _OWN_DISK:
                raise
            raise ConnectionError(f"{what}: {str(error) or type(error).__name__}") from error
        finally:
            hooks["request"].remove(limits.before)
            hooks["response"].remove(limits.after)
            constants.HF_HUB_DISABLE_XET = disable_xet


def check_hub_answers() -> None:
    """Raises ConnectionError if the Hub does not answer; its own client would try for half a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    with hub_requests(f"{constants.ENDPOINT} does not answer"):
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)


def component_folders(index: Path) -> list[str]:
    """Reads the folders of a pipeline's components from its model_index.json."""
    entries = json.loads(index.read_text(encoding="utf-8")).items()
    return [name for name, entry in entries if name.isidentifier() and name[0] != "_" and entry != [None, None]]


def component_files(names: Iterable[str], folder: str, variant: str | None = None) -> list[str]:
    """Selects those of the files `names` that are needed to load the component in `folder` ("" for the root).

    Weights are of the variant, such as "fp16", or plain if it is missing. Raises LookupError if there are none.
    """
    prefix = f"{folder}/" if folder else ""
    inside = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    weights: list[str] = []
    for middle in ([re.escape(f".{variant}")] if variant else []) + [""]:
        pattern = rf"{WEIGHTS}({middle}(-\d{{5}}-of-\d{{5}})?\.safetensors|\.safetensors\.index{middle}\.json)"
        weights = weights or [name for name in inside if re.fullmatch(pattern, name)]
    configurations = inside & set(CONFIGURATIONS)
    if not weights and "scheduler_config.json" not in configurations:
        others = sorted(name for name in inside if re.fullmatch(rf"{WEIGHTS}\..+\.safetensors", name))
        raise LookupError(f"it lacks files of {folder or 'the model'}; other variants: {others or 'none'}")
    return sorted(prefix + name for name in [*weights, *configurations])


def download(
    repo_id: str,
    subfolder: str | None = None,
    *,
    variant: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """Downloads a model into huggingface_hub's cache: only the files needed to load it, checked against their hashes.

    If the Hub does not answer, the cached files are used. `subfolder` is the folder of a single component, "" for a
    repository that is one component, or None for a whole pipeline. Returns the folder with the files.
    """
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    def cached() -> Path | None:
        for name in (INDEX,) if subfolder is None else [f"{subfolder}/{name}".lstrip("/") for name in CONFIGURATIONS]:
            found = try_to_load_from_cache(repo_id, name, cache_dir=cache_dir, revision=revision)
            if isinstance(found, str):
                return Path(found).parents[name.count("/")]
        return None

    def fetch(name: str) -> Path:
        for force in [force_download] if folder else [force_download, True]:
            path = Path(hf_hub_download(repo_id, name, revision=commit, force_download=force, **options))
            if _is_intact(path):
                return path
            path.resolve().unlink()
        raise ConnectionError(f"{name} differs from the hash that the Hub named; it was deleted")

    with hub_requests(f"{repo_id} cannot be loaded from the Hub"):
        folder = None
        try:
            if local_files_only:
                raise ConnectionError("it is not in the cache, and the Hub may not be asked")
            info = HfApi(token=token).model_info(repo_id, revision=revision)
            names, commit = [file.rfilename for file in info.siblings or ()], info.sha or ""
        except Exception as error:
            refused = isinstance(error, HfHubHTTPError) and error.response.status_code < 429
            folder = None if refused or force_download else cached()
            if folder is None:
                raise
        if folder is not None:
            names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
            commit = folder.name
        if not re.fullmatch("[0-9a-f]{40}", commit):
            raise ConnectionError(f"the Hub named a commit {commit!r}")
        if subfolder == "" and INDEX in names:
            raise LookupError("it is a whole pipeline: give the subfolder of a component")
        options = {"cache_dir": cache_dir, "token": token, "local_files_only": folder is not None}
        folders, files = [subfolder], []
        if subfolder is None:
            folders, files = component_folders(fetch(INDEX)), [INDEX]
        files += [file for name in folders for file in component_files(names, name or "", variant)]
        if variant and not any(f".{variant}" in file for file in files):
            raise LookupError(f"none of its weights are of the variant {variant!r}")
        for name in files:
            path = fetch(name)
        if folder is None:  # so that the model is found by the revision's name without the Hub
            hf_hub_download(repo_id, name, revision=revision, **options)
        return path.parents[name.count("/")]


def _is_intact(path: Path) -> bool:
    """Tells whether a cached file has the hash that the Hub named, which is its file name: SHA-256, or Git's."""
    named = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", named):
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == named
    if re.fullmatch("[0-9a-f]{40}", named):
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == named
    return True
