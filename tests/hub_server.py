"""A stand-in for the Hugging Face hub on the loopback: real sockets, repositories in memory.

It answers what ``huggingface_hub`` asks when it uploads and downloads: make a repository, how to upload each
file, the storage of large files at a host of its own, commits, and files by commit.
"""

import base64
import hashlib
import json
import threading
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

TOKEN = "hf_secretSecretSecret"
LARGE = 8 * 1024
"""Bytes above which a file goes to the storage of large files."""


@dataclass
class Asked:
    method: str
    host: str
    path: str
    authorization: str | None


@dataclass
class HubServer:
    """Serves until the block ends.

    Attributes:
        repositories: Of each name, its commits: id → path → content.
        storage: Large files by sha256.
        asked: Every request, in order.
        status: Answered to everything, where it is set.
    """

    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    storage: dict[str, bytes] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    status: int | None = None

    def __enter__(self) -> Self:
        hub = self

        class Bound(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def storage_url(self) -> str:
        """Another host than the hub's, as in life, so that tokens that travel too far are seen."""
        return f"http://localhost:{self._server.server_port}/storage"

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        """Add files to the newest commit of a repository."""
        commits = self.repositories.setdefault(name, {})
        newest = list(commits.values())[-1] if commits else {".gitattributes": b""}
        oid = hashlib.sha1(f"{name}{len(commits)}".encode()).hexdigest()
        commits[oid] = {**newest, **files}
        return oid

    def files(self, name: str) -> dict[str, bytes]:
        return list(self.repositories[name].values())[-1]


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(
        self,
        status: int,
        content: object = b"",
        headers: dict[str, str] | None = None,
        size: int | None = None,
    ) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if size is None else size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_request(self) -> None:
        hub = self.server_hub
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        authorization = self.headers.get("Authorization")
        hub.asked.append(Asked(self.command, self.headers["Host"], self.path, authorization))
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/")
        if hub.status is not None:
            self.answer(hub.status, {"error": "as the test wants it"})
        elif path.startswith("storage/"):
            self.store(path.removeprefix("storage/"), content)
        elif authorization != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid credentials"})
        elif path == "api/repos/create":
            self.create(json.loads(content))
        elif path.startswith("api/models/"):
            organisation, name, *rest = path.removeprefix("api/models/").split("/")
            self.model(f"{organisation}/{name}", rest, content)
        elif path.endswith(".git/info/lfs/objects/batch"):
            self.batch(json.loads(content))
        else:
            organisation, name, _, revision, *rest = path.split("/")
            self.resolve(f"{organisation}/{name}", revision, "/".join(rest))

    do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815

    def create(self, asked: dict[str, str]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        known = name in self.server_hub.repositories
        self.server_hub.repositories.setdefault(name, {})
        self.answer(409 if known else 200, {"url": f"{self.server_hub.url}/{name}"})

    def model(self, name: str, rest: list[str], content: bytes) -> None:
        hub = self.server_hub
        if name not in hub.repositories:
            self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif rest[:1] == ["preupload"]:
            files = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["size"] > LARGE else "regular",
                    "shouldIgnore": False,
                }
                for each in json.loads(content)["files"]
            ]
            self.answer(200, {"files": files})
        elif rest[:1] == ["commit"]:
            oid = hub.commit(name, dict(self.committed(content)))
            self.answer(200, {"commitUrl": f"{hub.url}/{name}/commit/{oid}", "commitOid": oid})
        else:
            self.describe(name, rest[1] if rest[:1] == ["revision"] else "main")

    def committed(self, content: bytes) -> list[tuple[str, bytes]]:
        files = []
        for line in content.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files.append((value["path"], base64.b64decode(value["content"])))
            elif item["key"] == "lfsFile":
                files.append((value["path"], self.server_hub.storage[value["oid"]]))
        return files

    def at(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.server_hub.repositories.get(name, {})
        oid = list(commits)[-1] if revision == "main" and commits else revision
        return (oid, commits[oid]) if oid in commits else None

    def describe(self, name: str, revision: str) -> None:
        found = self.at(name, revision)
        if found is None:
            self.answer(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [{"rfilename": path, "size": len(body)} for path, body in found[1].items()]
        self.answer(200, {"id": name, "sha": found[0], "siblings": siblings})

    def batch(self, asked: dict[str, list[dict[str, object]]]) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.server_hub.storage_url}/{each['oid']}"}}}
            for each in asked["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def store(self, oid: str, content: bytes) -> None:
        if self.command == "PUT":
            self.server_hub.storage[hashlib.sha256(content).hexdigest()] = content
            self.answer(200)
        else:
            self.answer(200, self.server_hub.storage[oid])

    def resolve(self, name: str, revision: str, path: str) -> None:
        found = self.at(name, revision)
        if found is None or path not in found[1]:
            self.answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        content = found[1][path]
        digest = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": found[0], "ETag": f'"{digest}"'}
        if len(content) <= LARGE:
            self.answer(200, content, headers)
            return
        self.server_hub.storage[digest] = content
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{digest}"'}
        self.answer(302, b"", {**headers, "Location": f"{self.server_hub.storage_url}/{digest}"})
