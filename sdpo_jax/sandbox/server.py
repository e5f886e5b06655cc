"""Runs programs for trainers on other machines, over HTTP (tier R).

  SDPO_SANDBOX_TOKEN=... python -m sdpo_jax.sandbox.server --port=8000

and there `env.sandbox.tier=http://this-machine:8000` and the same token. Whoever has
the token can have Python prepared and run here: give the machine nothing else to do.
HTTP is not encrypted: keep it within a private network.
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
_MOST_BYTES = 256 << 20  # Of one request: a program and all its inputs.
_MOST_SANDBOXES = 4
_LOCAL = ("127.0.0.1", "::1", "localhost")


class Server(http.server.ThreadingHTTPServer):
    """Answers requests with the sandboxes that they describe, made when first needed.

    Args:
      address: host and port; port 0 takes a free one.
      token: that requests must carry; empty for none, on this machine only.
      tier: of every sandbox here.
      workers: programs run at the same time in each; None for one per processor.

    Raises:
      ValueError: if others could send programs without a token.
      SandboxUnavailable: if the tier does not hold here.
    """

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
        """What a trainer is sent back.

        Raises:
          KeyError, TypeError, ValueError: if the message makes no sense.
          SandboxFailure, SandboxUnavailable: if a sandbox fails.
        """
        limits = Limits(**message["limits"])
        packages = Packages(tuple(message["modules"]), message["prepare"])
        box = self._sandbox(limits, packages)
        if "request" not in message:
            return {"tier": box.tier, "workers": box.workers}
        return {"records": box.exchange(message["request"])}

    def _sandbox(self, limits: Limits, packages: Packages) -> Sandbox:
        with self._lock:
            box = self._sandboxes.pop((limits, packages), None)
            if box is None:
                if len(self._sandboxes) == _MOST_SANDBOXES:
                    longest_unused = next(iter(self._sandboxes))
                    self._sandboxes.pop(longest_unused).close()
                box = Sandbox(limits, self._tier, self._workers, packages=packages)
            self._sandboxes[limits, packages] = box
            return box

    def server_close(self) -> None:
        """Stop listening and end every sandbox."""
        super().server_close()
        with self._lock:
            for box in self._sandboxes.values():
                box.close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    timeout = 60  # Seconds in which a request must have arrived.

    def do_POST(self):
        given = self.headers.get("Authorization", "").encode("utf-8", "replace")
        wanted = f"Bearer {self.server.token}".encode()
        if self.server.token and not hmac.compare_digest(given, wanted):
            return self._send(401, {"error": f"another {TOKEN} is expected"})
        size = self.headers.get("Content-Length", "")
        if not size.isdigit() or int(size) > _MOST_BYTES:
            return self._send(413, {"error": f"at most {_MOST_BYTES} bytes"})
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
