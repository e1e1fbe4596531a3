"""A small Hugging Face Hub on loopback, in memory: enough of it for pushing and loading a model repository.

The real client runs against it in a process of its own, a [`Client`], because it reads its environment when it is
imported. `HubServer.fault = (mode, pattern)` makes it misbehave where "METHOD path" matches the pattern; the modes are
those of `_Handler._misbehave` and `_Handler._send`.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

OWNER = "tester"
TOKEN = "hf_test"
LARGE_SUFFIX = ".safetensors"


@dataclass
class Repository:
    """A model repository: one branch, its commits in order, each a mapping from path to content."""

    private: bool
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)  # (id, title, files)

    def commit(self, title: str, files: dict[str, bytes]) -> str:
        identity = hashlib.sha1(f"{len(self.commits)} {title}".encode()).hexdigest()
        self.commits.append((identity, title, files))
        return identity

    def at(self, revision: str) -> tuple[str, str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.fault: tuple[str, str] | None = None
        self.closing = threading.Event()
        self.sent_bytes = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def store(self, name: str, folder: Path) -> None:
        """Puts the files of a folder into a repository, without a client."""
        repository = self.repositories.setdefault(name, Repository(private=False))
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        repository.commit("stored", files)


def _git_identity(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *arguments: object) -> None:
        """Nothing on stderr."""

    def _reply(self, status: int, document: object = None, headers: dict[str, str] | None = None) -> None:
        self._send(status, b"" if document is None else json.dumps(document).encode(), headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        headers, length = {"Content-Type": "application/json", **(headers or {})}, len(content)
        if self.fault == "wrong content":
            content = content[:-1] + bytes([content[-1] ^ 1])
        elif self.fault == "dropped":
            content = content[: length // 2]
        elif self.fault == "truncated":
            content = content[: length // 2]
            length = len(content)
        elif self.fault == "hostile etag":
            headers |= {"ETag": '"../../../../evil"', "X-Linked-Etag": '"../../../../evil"'}
        elif self.fault == "hostile commit":
            headers |= {"X-Repo-Commit": "../../../../evil"}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
            self.close_connection = self.close_connection or self.fault == "dropped"

    def _misbehave(self) -> bool:
        """Whether the request was answered, or not, by a fault that needs no repository."""
        if self.fault == "silent":
            self.server.closing.wait()
        elif self.fault == "closed":
            self.close_connection = True
        elif self.fault in ("endless", "slow"):
            self.send_response(200)
            for name in ("ETag", "X-Repo-Commit"):
                self.send_header(name, "0" * 40)
            self.end_headers()
            self.close_connection = True
            chunk, pause = (b"0" * 2**20, 0.0) if self.fault == "endless" else (b"0", 0.2)
            with suppress(OSError):  # until the client has enough
                while not self.server.closing.wait(pause):
                    self.wfile.write(chunk)
                    self.server.sent_bytes += len(chunk)
        elif self.fault == "nonsense":
            self._send(200, b"[null]")
        elif self.fault == "redirected":
            self._send(302, b"", {"Location": self.path})
        elif self.fault.isdecimal():
            self._send(int(self.fault), b'{"error": "\x1b[31mno\x1b[0m"}', {"Retry-After": "86400"})
        else:
            return False
        return True

    def _refuse(self, status: int, code: str) -> None:
        self._reply(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        authorised = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        mode, pattern = self.server.fault or ("", "^$")
        self.fault = mode if re.search(pattern, f"{self.command} {path}") else ""
        if self.fault and self._misbehave():
            return
        if path.startswith("/large/"):
            self.server.large_files[path.removeprefix("/large/")] = body
            self._reply(200, {})
        elif self.command in ("POST", "PUT", "DELETE") and not authorised:
            self._refuse(401, "Unauthorized")
        elif path == "/api/validate-yaml":
            self._reply(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._plan_large(json.loads(body))
        elif call := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)(?:/(.*))?)?", path):
            self._repository_call(call[1], call[2] or "revision", call[3] or "main", body)
        elif download := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._download(*download.groups())
        else:
            self._refuse(404, "NotImplemented")

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _create(self, request: dict) -> None:
        name = f"{request.get('organization') or OWNER}/{request['name']}"
        url = f"{self.server.url}/{name}"
        if name in self.server.repositories:
            self._reply(409, {"error": "You already created this model repo", "url": url})
            return
        private = bool(request.get("private")) or request.get("visibility") == "private"
        repository = self.server.repositories[name] = Repository(private)
        repository.commit("initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self._reply(200, {"url": url, "name": name, "id": name})

    def _plan_large(self, request: dict) -> None:
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.server.url}/large/{item['oid']}", "header": {}}}}
            for item in request["objects"]
        ]
        headers = {"Content-Type": "application/vnd.git-lfs+json"}
        self._reply(200, {"transfer": "basic", "objects": objects}, headers)

    def _repository_call(self, name: str, verb: str, rest: str, body: bytes) -> None:
        repository = self.server.repositories.get(name)
        if repository is None:
            self._refuse(404, "RepoNotFound")
            return
        found = repository.at(rest.split("/")[0])
        if found is None:
            self._refuse(404, "RevisionNotFound")
            return
        identity, _, files = found
        if verb == "preupload":
            answers = []
            for item in json.loads(body)["files"]:
                mode = "lfs" if item["path"].endswith(LARGE_SUFFIX) else "regular"
                answers.append({"path": item["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None})
            self._reply(200, {"files": answers})
        elif verb == "commit":
            self._commit(name, repository, files, body)
        elif verb == "tree":
            self._reply(200, [self._entry(path, content) for path, content in sorted(files.items())])
        elif verb == "revision":
            siblings = [{"rfilename": path} for path in sorted(files)]
            description = {"id": name, "sha": identity, "private": repository.private, "siblings": siblings}
            self._reply(200, description | {"_id": "1", "modelId": name, "tags": [], "downloads": 0, "likes": 0})
        else:
            self._refuse(404, "NotImplemented")

    def _commit(self, name: str, repository: Repository, files: dict[str, bytes], body: bytes) -> None:
        files, title = dict(files), ""
        for entry in map(json.loads, body.splitlines()):
            value = entry["value"]
            if entry["key"] == "header":
                title = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":  # a KeyError, should it be missing
                files[value["path"]] = self.server.large_files[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        identity = repository.commit(title, files)
        url = f"{self.server.url}/{name}/commit/{identity}"
        self._reply(200, {"success": True, "commitOid": identity, "commitUrl": url, "hookOutput": ""})

    def _entry(self, path: str, content: bytes) -> dict:
        entry = {"type": "file", "path": path, "size": len(content), "oid": _git_identity(content)}
        if path.endswith(LARGE_SUFFIX):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return entry

    def _download(self, name: str, revision: str, path: str) -> None:
        repository = self.server.repositories.get(name)
        found = repository.at(revision) if repository else None
        if found is None:
            self._refuse(404, "RepoNotFound" if repository is None else "RevisionNotFound")
            return
        identity, _, files = found
        if path not in files:
            self._reply(404, {"error": "EntryNotFound"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": identity})
            return
        content, large = files[path], path.endswith(LARGE_SUFFIX)
        tag = hashlib.sha256(content).hexdigest() if large else _git_identity(content)
        headers = {"X-Repo-Commit": identity, "ETag": f'"{tag}"', "Content-Type": "application/octet-stream"}
        if large:
            headers |= {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(content))}
        self._send(200, content, headers)


# Each line of input is a command line, or Python code and its arguments; each line of output is
# [exit code, stderr, stdout].
_DRIVER = """
import contextlib, io, json, os, sys, time, traceback
from diffae_hub.cli import main as command_line
from diffae_hub.network import download

time.sleep = lambda seconds: None  # huggingface_hub waits longer and longer between its attempts

def run(argv):
    if argv[0] == "download":
        command_line._run = lambda argv: print(download(argv[1], cache_dir=argv[2])) or 0
    elif argv[0] == "python":
        sys.argv = argv[1:]
        exec(argv[1], {"__name__": "code"})
        return 0
    else:
        command_line._run = original
    return command_line.main(argv)

original, answers = command_line._run, sys.stdout
for line in sys.stdin:
    errors, output = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(output):
        try:
            code = run(json.loads(line))
        except BaseException:
            traceback.print_exc()
            code = 1
    print(json.dumps([code, errors.getvalue(), output.getvalue()]), file=answers, flush=True)
"""


class Client:
    """A process with the real huggingface_hub, for many tests; it reads its environment when it is imported."""

    def __init__(self, hub: HubServer, home: Path, **environment: str) -> None:
        names = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
        names |= {"OMP_NUM_THREADS": "1", **environment}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", _DRIVER], env=os.environ | names, **pipes)

    def run(self, *argv: object) -> tuple[int, str, str]:
        """Exit code, stderr and stdout of a command line, of "download NAME CACHE" or of "python CODE ARGUMENTS"."""
        self.process.stdin.write(json.dumps([str(word) for word in argv]) + "\n")
        self.process.stdin.flush()
        code, errors, output = json.loads(self.process.stdout.readline())
        assert TOKEN not in errors + output, "a token is never printed"
        return code, errors, output

    def output(self, *argv: object) -> str:
        """What a command prints that must end well."""
        code, errors, output = self.run(*argv)
        assert code == 0, errors
        return output

    def close(self) -> None:
        self.process.kill()  # other forked processes may hold its stdin open
        self.process.wait()


@pytest.fixture(scope="session")
def session_hub() -> Iterator[HubServer]:
    """A server in a thread of this process."""
    server = HubServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def client(session_hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(session_hub, tmp_path_factory.mktemp("home"))
    yield client
    client.close()


@pytest.fixture
def hub(session_hub: HubServer) -> Iterator[HubServer]:
    session_hub.repositories.clear()
    session_hub.large_files.clear()
    session_hub.sent_bytes = 0
    yield session_hub
    session_hub.fault = None
