"""A Hugging Face hub of one data set on this machine: over HTTP what `datasets` and `huggingface_hub` ask the real one.

Give a process `environment(cache)` and it knows no other hub.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

OWNER_NAME = "pleisto/wikipedia-cn"


@dataclass
class Hub:
    """The data set, and what becomes of those who read it."""

    files: dict[str, bytes]
    """Of its present revision, by path."""
    port: int = 0
    cuts: dict[str, int] = field(default_factory=dict)
    """How many times more a read of a file loses its connection halfway."""
    held: set[str] = field(default_factory=set)
    """Files whose readers wait."""
    refused: dict[str, int] = field(default_factory=dict)
    """Files that nobody gets any more, and the status they are told; of what there is at all: the empty name."""
    reads: list[str] = field(default_factory=list)
    """Paths of the files of which bytes were asked for, in order."""
    _revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @property
    def revision(self) -> str:
        """Of the files as they are now; those of before can still be had."""
        told = json.dumps({path: _digest(content) for path, content in sorted(self.files.items())})
        sha = hashlib.sha1(told.encode()).hexdigest()
        self._revisions.setdefault(sha, dict(self.files))
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]]:
        """The commit that a revision means, and its files."""
        sha = self.revision if revision == "main" else revision
        return sha, self._revisions[sha]

    def environment(self, cache: Path) -> dict[str, str]:
        """Variables for a process that is to find this hub and no cached data set."""
        return {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }


@contextmanager
def hub_of(files: dict[str, bytes]) -> Iterator[Hub]:
    """Serve a data set."""
    hub = Hub(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def log_message(self, format: str, *args: object) -> None:  # pytest shows what matters
            pass

        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            asked = parse_qs(self.rfile.read(length).decode()) if length else {}
            path = unquote(urlsplit(self.path).path)
            api = f"/api/datasets/{OWNER_NAME}"
            if "" in hub.refused:
                self._refuse(hub.refused[""], "Refused")
            elif found := re.fullmatch(rf"{api}(?:/revision/(\w+))?", path):
                self._tell(hub.at(found[1] or "main")[0], None)
            elif found := re.fullmatch(rf"{api}/tree/(\w+)(?:/(.*))?", path):
                self._tell(hub.at(found[1])[0], _entries(hub.at(found[1])[1], found[2] or ""))
            elif found := re.fullmatch(rf"{api}/paths-info/(\w+)", path):
                files = hub.at(found[1])[1]
                self._tell("", [_entry(one, files[one]) for one in asked["paths"] if one in files])
            elif found := re.fullmatch(rf"/datasets/{OWNER_NAME}/resolve/(\w+)/(.*)", path):
                self._give(found[1], found[2])
            else:
                self._refuse(404, "RepoNotFound" if "/datasets/" in path else "EntryNotFound")

        def _tell(self, sha: str, entries: list[dict[str, object]] | None) -> None:
            told = {"id": OWNER_NAME, "sha": sha, "private": False, "gated": False, "siblings": [], "tags": []}
            body = json.dumps(told if entries is None else entries).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _give(self, revision: str, path: str) -> None:
            sha, files = hub.at(revision)
            if path not in files:
                self._refuse(404, "EntryNotFound")
                return
            content, status = files[path], 200
            if self.command == "GET":
                hub.reads.append(path)
                while path in hub.held:
                    time.sleep(0.02)
                if path in hub.refused:
                    self._refuse(hub.refused[path], "Refused")
                    return
            first, last = 0, len(content) - 1
            if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
                first, last, status = int(found[1]), min(int(found[2] or last), last), 206
            self.send_response(status)
            self.send_header("X-Repo-Commit", sha)
            self.send_header("ETag", f'"{_digest(content)}"')
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(last - first + 1))
            if status == 206:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.cuts.get(path, 0) > 0:
                hub.cuts[path] -= 1
                self.wfile.write(content[first : (first + last) // 2])
                self.close_connection = True
                return
            self.wfile.write(content[first : last + 1])

    return Handler


def _entry(path: str, content: bytes) -> dict[str, object]:
    return {
        "type": "file",
        "path": path,
        "size": len(content),
        "oid": hashlib.sha1(content).hexdigest(),
        "lfs": {"oid": _digest(content), "size": len(content), "pointerSize": 134},
    }


def _entries(files: dict[str, bytes], folder: str) -> list[dict[str, object]]:
    """All below a folder, folders too: it is asked for recursively."""
    inside = {path: content for path, content in files.items() if not folder or path.startswith(f"{folder}/")}
    folders = {str(parent) for path in inside for parent in Path(path).parents if str(parent) not in (".", folder)}
    return [
        *({"type": "directory", "path": one, "oid": hashlib.sha1(one.encode()).hexdigest()} for one in sorted(folders)),
        *(_entry(path, content) for path, content in sorted(inside.items())),
    ]
