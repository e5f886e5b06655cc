"""Runs programs for trainers on other machines, over HTTP (tier R).

  SDPO_SANDBOX_TOKEN=... python -m sdpo_jax.sandbox.server --port=8000

and on the trainer `env.sandbox.tier=http://this-machine:8000` and the same token.
Anyone with the token can run Python here, and the `prepare` source of packages runs
before it is confined: use the machine for nothing else. HTTP is not encrypted: use it
only within a private network.
"""

import argparse
import contextlib
import hmac
import http.server
import json
import logging
import os
import sys
import threading
from typing import Any

from sdpo_jax.sandbox import tiers
from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.remote import TOKEN
from sdpo_jax.sandbox.values import Limits, Packages, SandboxFailure, SandboxUnavailable

_log = logging.getLogger(__name__)
_MAX_REQUEST_BYTES = 256 << 20  # For a program and all its inputs.
_MAX_SANDBOXES = 4  # One per combination of limits and packages, each with workers.
_LOCAL = ("127.0.0.1", "::1", "localhost")


class Server(http.server.ThreadingHTTPServer):
    """Runs each request in a sandbox with its limits and packages, made on demand.

    Args:
      address: host and port; port 0 selects a free one.
      token: that requests must have; may be empty only for a local address.
      tier: of every sandbox.
      workers: programs run at the same time in each sandbox; None for one per
        processor.

    Raises:
      ValueError: if other machines could send programs without a token.
    """

    # All workers of a trainer may connect at once; the default is 5.
    request_queue_size = 256
    daemon_threads = True

    def __init__(
        self,
        address: tuple[str, int],
        token: str,
        tier: str = "auto",
        workers: int | None = None,
    ):
        if not token and address[0] not in _LOCAL:
            raise ValueError(f"set {TOKEN}: {address[0]} can be reached by others")
        self.token = token
        self._tier, self._workers = tier, workers
        self._lock = threading.Lock()
        self._sandboxes: dict[tuple, Sandbox] = {}
        super().__init__(address, _Handler)

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """The answer to the message of a trainer.

        Raises:
          KeyError, TypeError, ValueError: if the message is malformed.
          SandboxFailure, SandboxUnavailable: if the sandbox fails.
        """
        limits = Limits(**message["limits"])
        packages = Packages(tuple(message["modules"]), message["prepare"])
        sandbox = self._sandbox(limits, packages)
        # A new `RemoteWorker` asks what there is before it sends a program.
        if "request" not in message:
            return {"tier": sandbox.tier, "workers": sandbox.workers}
        return {"records": sandbox.exchange(message["request"])}

    def _sandbox(self, limits: Limits, packages: Packages) -> Sandbox:
        """The sandbox of these settings; closes the least recently used beyond four."""
        with self._lock:
            # Removed and inserted again: the dictionary stays in order of last use.
            sandbox = self._sandboxes.pop((limits, packages), None)
            if sandbox is None:
                if len(self._sandboxes) == _MAX_SANDBOXES:
                    least_recent = next(iter(self._sandboxes))
                    self._sandboxes.pop(least_recent).close()
                sandbox = Sandbox(limits, self._tier, self._workers, packages=packages)
            self._sandboxes[limits, packages] = sandbox
            return sandbox

    def server_close(self) -> None:
        """Stop listening and end every sandbox."""
        super().server_close()
        with self._lock:
            for sandbox in self._sandboxes.values():
                sandbox.close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    timeout = 60  # Seconds that a read may wait, so that idle clients hold no thread.

    def do_POST(self):
        received = self.headers.get("Authorization", "").encode("utf-8", "replace")
        expected = f"Bearer {self.server.token}".encode()
        # In constant time: `==` would reveal how many characters match.
        if self.server.token and not hmac.compare_digest(received, expected):
            return self._send(401, {"error": f"{TOKEN} is missing or wrong"})
        size = self.headers.get("Content-Length", "")
        if not size.isdigit() or int(size) > _MAX_REQUEST_BYTES:
            message = f"expected a Content-Length of at most {_MAX_REQUEST_BYTES}"
            return self._send(413, {"error": message})
        try:
            message = json.loads(self.rfile.read(int(size)))
            return self._send(200, self.server.answer(message))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            return self._send(400, {"error": f"{type(error).__name__}: {error}"})
        except (SandboxFailure, SandboxUnavailable) as failure:
            return self._send(503, {"error": str(failure)})

    def _send(self, code: int, message: dict) -> None:
        text = json.dumps(message).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format, *arguments):
        _log.debug(format, *arguments)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--tier", choices=("auto", *tiers.LOCAL), default="auto")
    parser.add_argument("--workers", type=int, help="default: one per processor")
    flags = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    token = os.environ.get(TOKEN, "")
    try:
        server = Server((flags.host, flags.port), token, flags.tier, flags.workers)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    with contextlib.suppress(KeyboardInterrupt), server:
        _log.info("grader on %s:%d", *server.server_address[:2])
        server.serve_forever()


if __name__ == "__main__":
    main()
