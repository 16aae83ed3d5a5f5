"""A W&B server on loopback: it takes uploads as far as W&B needs it to, or it fails in one of the ways servers do."""

import gzip
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "0123456789" * 4


class Server:
    """What was uploaded is in `runs` and `history`, by id, and in `artifacts`, `views` and `charts`.

    how: "answers", "hangs", "drops", "refuses" (nobody listens), "sticks" (answers until data come, then hangs for
    good), or the HTTP status of every answer, such as "429".
    """

    def __init__(self, how: str):
        self.how = how
        self.runs: dict[str, dict] = {}
        self.history: dict[str, list[dict]] = {}
        self.artifacts: list[str] = []
        self.views: list[dict] = []
        self.charts: list[dict] = []
        self.requests: list[str] = []
        self._ended = threading.Event()
        if how == "refuses":
            with socket.socket() as taken:
                taken.bind(("127.0.0.1", 0))
                self.port = taken.getsockname()[1]
            return
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                server.answer(self)

            do_GET = do_PUT = do_POST

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.handle_error = lambda *_: None  # a client that gives up
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        if self.how != "refuses":
            self._http.shutdown()
            self._http.server_close()

    @property
    def variables(self) -> dict[str, str]:
        """What a process needs to take this for W&B's server."""
        return {"WANDB_BASE_URL": f"http://127.0.0.1:{self.port}", "WANDB_API_KEY": KEY}

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        body = gzip.decompress(body) if request.headers.get("Content-Encoding") == "gzip" else body
        self.requests.append(request.path)
        streams = request.path.endswith("/file_stream")
        if streams and self.how == "sticks":
            self.how = "hangs"
        if self.how == "hangs":
            self._ended.wait()
            request.close_connection = True
        elif self.how == "drops":
            request.close_connection = True
        elif self.how.isdigit():
            self._send(request, {"errors": [{"message": "storage quota exceeded"}]}, int(self.how))
        elif request.path == "/graphql":
            self._send(request, {"data": self._graphql(json.loads(body))})
        else:
            if streams:
                self._stream(request.path.split("/")[-2], json.loads(body))
            self._send(request, {})

    def _graphql(self, query: dict) -> dict:
        given, name = query.get("variables", {}), re.search(r"(?:query|mutation)\s+(\w+)", query["query"])[1]
        if name == "UpsertBucket":
            self.runs.setdefault(given["name"], {}).update({k: v for k, v in given.items() if v is not None})
            project = {"name": given.get("project") or "rowsft", "entity": {"name": "lab"}}
            bucket = {"id": "x", "name": given["name"], "displayName": "x", "project": project, "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"http://127.0.0.1:{self.port}/up/{file}"} for file in given["files"]]
            return {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}
        if name in ("Viewer", "GetDefaultEntity"):
            user = {"id": "u", "entity": "lab", "username": "u", "email": "", "flags": "{}", "teams": {"edges": []}}
            return {"viewer": user}
        if name == "ArtifactType":
            return {"project": None}
        if name == "UpsertView2":
            self.views.append(given)
            return {"upsertView": {"view": {"id": "v", "name": given["name"]}, "inserted": True}}
        if name == "CreateCustomChart":
            self.charts.append(given)
            return {"createCustomChart": {"chart": {"id": f"{given['entity']}/{given['chartName']}"}}}
        if name == "CreateArtifact":
            self.artifacts.append(given["input"]["artifactCollectionName"])
            # One that the server has already: no file of it need be sent.
            return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s"}}}}
        return {}

    def _stream(self, run: str, body: dict) -> None:
        lines = body.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
        self.history.setdefault(run, []).extend(json.loads(line) for line in lines)

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, content: dict, status: int = 200) -> None:
        body = json.dumps(content).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)
