"""Serves a SavedModel over HTTP with TensorFlow alone, in the manner of TensorFlow Serving's REST interface.

python -m examples.serve runs/served/digits --port 8501     # the newest version in the folder
curl -d '{"signature_name": "classify", "inputs": {"images": [...]}}' http://127.0.0.1:8501/v1/models/digits:predict

To try an export, and to see what a server is asked; for production there is TensorFlow Serving, with the same folder.
"""

from __future__ import annotations

import argparse
import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import tensorflow as tf


def predict(loaded: Any, request: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request: every output of the signature, by its name."""
    signature = loaded.signatures[request.get("signature_name", "serving_default")]
    wanted = signature.structured_input_signature[1]
    inputs = {name: tf.constant(request["inputs"][name], spec.dtype) for name, spec in wanted.items()}
    return {name: [_plain(row) for row in output.numpy().tolist()] for name, output in signature(**inputs).items()}


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="of versions: 1, 2, … each a SavedModel")
    parser.add_argument("--port", type=int, default=8501, help="0: one that is free")
    arguments = parser.parse_args()
    newest = max((name for name in os.listdir(arguments.folder) if name.isdecimal()), key=int)
    loaded = tf.saved_model.load(os.path.join(arguments.folder, newest))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = 200, {"outputs": predict(loaded, request)}
            except (KeyError, TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
                status, answer = 400, {"error": {"message": str(error)}}
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler) as server:
        print(f"serves version {newest} at http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
