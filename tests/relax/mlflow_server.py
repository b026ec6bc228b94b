"""A tracking server of a few lines that speaks enough of MLflow's REST interface to be started, stopped and read."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class TrackingServer:
    """Keeps experiments, runs, parameters and metrics in memory, over any number of `start` and `stop`."""

    def __init__(self) -> None:
        self.metrics: list[tuple[str, int, float]] = []
        self.params: dict[str, str] = {}
        self.status = ""
        self.port = 0
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> str:
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        match path.rpartition("mlflow/")[2]:
            case "experiments/get-by-name":
                return {"experiment": {"experiment_id": "1", "name": "relax", "lifecycle_stage": "active"}}
            case "runs/create" | "runs/get" | "runs/update":
                self.status = body.get("status", self.status or "RUNNING")
                info = {"run_id": "abc", "experiment_id": "1", "status": self.status, "lifecycle_stage": "active"}
                params = [{"key": key, "value": value} for key, value in self.params.items()]
                return {"run": {"info": info, "data": {"params": params}}, "run_info": info}
            case "runs/log-batch":
                self.metrics += [(m["key"], int(m["step"]), m["value"]) for m in body.get("metrics", [])]
                self.params |= {p["key"]: p["value"] for p in body.get("params", [])}
        return {}


def _handler(server: TrackingServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            reply = json.dumps(server.answer(self.path.partition("?")[0], json.loads(body or b"{}"))).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        do_GET = do_PATCH = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
