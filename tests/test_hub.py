"""`push_to_hub` and `from_pretrained` against a small local server that speaks the part of the Hub that they use."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
REPOSITORY = "tester/tiny-virst"
COMMIT = "0" * 40

PUSH = """
import sys
from virst_hf import VirstForVideoSegmentation, VirstProcessor
VirstForVideoSegmentation.from_pretrained(sys.argv[1]).push_to_hub(sys.argv[2])
VirstProcessor.from_pretrained(sys.argv[1]).push_to_hub(sys.argv[2])
"""
PULL = """
import sys
import torch, virst_hf
from transformers import AutoModel, AutoProcessor
here, there = (AutoModel.from_pretrained(name) for name in sys.argv[1:])
assert torch.equal(torch.cat([p.flatten() for p in here.parameters()]),
                   torch.cat([p.flatten() for p in there.parameters()]))
here, there = (AutoProcessor.from_pretrained(name) for name in sys.argv[1:])
print(type(there).__name__, here.to_dict() == there.to_dict())
"""


class HubHandler(BaseHTTPRequestHandler):
    """Keeps the files of one repository in memory: commits, uploads of large files, and downloads."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    uploads: dict[str, bytes]
    unknown: list[str]

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(self, status: int, body: bytes = b"", content_type: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, content: object) -> None:
        self.answer(200, json.dumps(content).encode())

    @property
    def url(self) -> str:
        return f"http://{self.headers['Host']}"

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self) -> None:
        body, path = self.read_body(), self.path.split("?")[0]
        if path == "/api/repos/create":
            self.answer_json({"url": f"{self.url}/{REPOSITORY}", "id": REPOSITORY, "name": REPOSITORY})
        elif path == "/api/validate-yaml":
            self.answer_json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            asked = json.loads(body)["files"]
            large = [file["path"].endswith(".safetensors") for file in asked]
            modes = ["lfs" if is_large else "regular" for is_large in large]
            self.answer_json(
                {
                    "files": [
                        {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}
                        for file, mode in zip(asked, modes, strict=True)
                    ]
                }
            )
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**entry, "actions": {"upload": {"href": f"{self.url}/upload/{entry['oid']}", "header": {}}}}
                for entry in json.loads(body)["objects"]
            ]
            self.answer_json({"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[value["path"]] = self.uploads[value["oid"]]
            self.answer_json({"success": True, "commitOid": COMMIT, "commitUrl": f"{self.url}/{REPOSITORY}/commit/0"})
        else:
            self.refuse()

    def do_PUT(self) -> None:
        content = self.read_body()
        self.uploads[hashlib.sha256(content).hexdigest()] = content
        self.answer(200)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/api/whoami-v2":
            self.answer_json({"type": "user", "name": "tester", "orgs": []})
        elif match := re.fullmatch(rf"/{REPOSITORY}/resolve/[^/]+/(.+)", path):
            self.send_file(match[1])
        elif match := re.fullmatch(rf"/api/models/{REPOSITORY}/tree/[^/]+/?(.*)", path):
            self.send_tree(match[1])
        elif path.startswith(f"/api/models/{REPOSITORY}"):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer_json({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False})
        else:
            self.refuse()

    def send_file(self, name: str) -> None:
        if name not in self.files:
            self.answer(404, **{"X-Error-Code": "EntryNotFound"})
            return
        content = self.files[name]
        self.answer(200, content, "application/octet-stream", ETag=f'"{hashlib.sha256(content).hexdigest()}"')

    def send_tree(self, folder: str) -> None:
        names = [name for name in self.files if name.startswith(f"{folder}/" if folder else "")]
        if not names:
            self.answer(404, **{"X-Error-Code": "EntryNotFound"})
            return
        self.answer_json([{"type": "file", "path": n, "size": len(self.files[n]), "oid": COMMIT} for n in names])

    def refuse(self) -> None:
        # Some calls of the client are optional (statistics); whether one of these was not is seen by its failure.
        self.unknown.append(f"{self.command} {self.path}")
        self.answer(404)


@pytest.fixture()
def hub() -> Iterator[type[HubHandler]]:
    handler = type("Handler", (HubHandler,), {"files": {}, "uploads": {}, "unknown": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    handler.endpoint = f"http://127.0.0.1:{server.server_port}"
    yield handler
    server.shutdown()
    server.server_close()


def run_with_hub(code: str, hub: type[HubHandler], home: Path, *arguments: str) -> str:
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    env |= {
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home),
        # Any text does: the server asks for none, the client does.
        "HF_TOKEN": "hf_" + "x" * 34,
    }
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=env, cwd=home)
    assert done.returncode == 0, f"{done.stderr}\nNot served: {hub.unknown}"
    return done.stdout.strip()


@pytest.mark.slow
def test_push_and_pull(hub: type[HubHandler], tmp_path: Path):
    from virst_hf import make_untrained_model

    folder = make_untrained_model(tmp_path / "model")
    run_with_hub(PUSH, hub, tmp_path, str(folder), REPOSITORY)
    written = {path.name for path in folder.iterdir()}
    assert {"README.md", "config.json", "model.safetensors"} <= set(hub.files)
    assert written <= set(hub.files)
    assert b"library_name" in hub.files["README.md"]
    assert json.loads(hub.files["config.json"])["model_type"] == "virst"
    assert run_with_hub(PULL, hub, tmp_path, str(folder), REPOSITORY) == "VirstProcessor True"
