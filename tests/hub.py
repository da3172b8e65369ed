"""A small server that speaks the endpoints of the Hugging Face hub which its client asks for."""

import hashlib
import json
import re
import socket
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlparse

import numpy as np
from safetensors.numpy import save

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40
TENSORS = save({"weight": np.arange(5000, dtype=np.float32)})
FILES = {
    "model_index.json": b'{"_class_name": "A"}',
    "unet/diffusion_pytorch_model.fp16.safetensors": TENSORS,
    "unet/diffusion_pytorch_model.bin": b"a pickle",
    "README.md": b"not wanted",
}


@dataclass
class Hub:
    """What the server holds and was asked for."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    gated: bool = False
    cut: int | None = None  # bytes after which a download breaks off, once
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *given: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = urlparse(self.path).path
            hub.asked.append((self.command, path, self.headers.get("Range")))
            if not path.removeprefix("/api/models").startswith("/some/tiny"):
                return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
            if re.fullmatch(r"/api/models/some/tiny/revision/\w+", path):
                return self.answer(200, json.dumps({"id": "some/tiny", "sha": COMMIT}).encode())
            if match := re.fullmatch(r"/api/models/some/tiny/tree/(\w+)", path):
                if match[1] != COMMIT:
                    return self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
                return self.answer(200, json.dumps([self.entry(name) for name in hub.files]).encode())
            if match := re.fullmatch(r"/some/tiny/resolve/(\w+)/(.+)", path):
                if hub.gated:
                    return self.answer(403, b"{}", X_Error_Code="GatedRepo")
                return self.file(match[2])
            return self.answer(404, b"{}")

        def entry(self, name: str) -> dict[str, object]:
            content = hub.files[name]
            found = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            if name.endswith((".safetensors", ".bin")):
                found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            return found

        def file(self, name: str) -> None:
            content = hub.files[name]
            tag = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X_Repo_Commit": COMMIT}
            given = self.headers.get("Range")
            start = int(given.removeprefix("bytes=").split("-")[0]) if given else 0
            if start:
                tag["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            if hub.cut is not None and self.command == "GET" and len(content) > hub.cut:
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: hub.cut])
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                hub.cut = None
                return
            self.answer(206 if start else 200, content[start:], **tag)

    return Handler
