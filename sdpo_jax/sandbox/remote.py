"""Tier R: a worker on another machine, over HTTP; `server.py` runs there.

Only programs and inputs leave the trainer. It compares the outputs itself.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from sdpo_jax.sandbox.values import (
    Limits,
    Packages,
    SandboxFailure,
    SandboxUnavailable,
    max_answer_bytes,
    max_answer_s,
)

TOKEN = "SDPO_SANDBOX_TOKEN"  # Environment variable on both machines.
SHORT_ANSWER_BYTES = 4096  # Limit for an answer without records, or an error.
PATIENCE_S = 60.0  # How long requests are repeated while the server restarts.


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Makes a redirect an HTTPError, because urllib would send the token there."""

    def redirect_request(self, *_) -> None:
        return None


# Neither a proxy nor the target of a redirect must see the token.
_OPENER = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))


class RemoteWorker:
    """A worker with the interface of `process.Worker`, behind the server at `url`.

    Args:
      url: of the server, such as "http://grader:8000".
      limits: of each test.
      packages: modules that its programs can import; must be installed on the server.

    Raises:
      SandboxUnavailable: if no server answers, or it rejects the token.
    """

    def __init__(self, url: str, limits: Limits, packages: Packages):
        self._url = url.rstrip("/")
        self._sandbox = {
            "limits": limits.as_message(),
            "modules": list(packages.modules),
            "prepare": packages.prepare,
        }
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise SandboxUnavailable(
                f"env.sandbox.tier={url!r}: expected http://host:port of a grader"
            )
        try:
            self.about = self._ask({}, SHORT_ANSWER_BYTES, PATIENCE_S)
        except SandboxFailure as failure:
            raise SandboxUnavailable(str(failure)) from failure

    def exchange(self, request: Mapping[str, Any]) -> list[dict]:
        """Send a request; return the record of each test that was run, in order.

        Raises:
          SandboxFailure: if the server reports a failure or does not answer in time.
        """
        wait_s = PATIENCE_S + max_answer_s(request)
        answer = self._ask({"request": request}, max_answer_bytes(request), wait_s)
        if not isinstance(answer.get("records"), list):
            raise SandboxFailure(f"{self._url} sent no records")
        return answer["records"]

    def close(self) -> None:
        """Do nothing: the server ends its workers."""

    def _ask(self, message: dict, max_bytes: int, wait_s: float) -> dict:
        """The server's answer; retries for `PATIENCE_S` if no server responds."""
        text = json.dumps({**self._sandbox, **message}).encode()
        headers = {"Content-Type": "application/json"}
        if token := os.environ.get(TOKEN):
            headers["Authorization"] = f"Bearer {token}"
        deadline, pause_s = time.monotonic() + PATIENCE_S, 0.1
        while True:
            request = urllib.request.Request(self._url, text, headers, method="POST")
            try:
                with _OPENER.open(request, timeout=wait_s) as response:
                    return _read(response, max_bytes)
            # The server responded, so another try would get the same error.
            except urllib.error.HTTPError as error:
                body = error.read(SHORT_ANSWER_BYTES).decode("utf-8", "replace")
                raise SandboxFailure(f"{self._url}: {error.code} {body}") from error
            except (OSError, http.client.HTTPException) as error:
                if time.monotonic() + pause_s > deadline:
                    raise SandboxFailure(f"{self._url}: {error}") from error
            time.sleep(pause_s)
            pause_s *= 2


def _read(response: http.client.HTTPResponse, max_bytes: int) -> dict:
    """The JSON object in a response of at most `max_bytes`."""
    text = response.read(max_bytes + 1)
    if len(text) > max_bytes:
        raise SandboxFailure(f"the grader sent more than the {max_bytes} bytes allowed")
    try:
        answer = json.loads(text)
    except ValueError as error:
        raise SandboxFailure(f"the grader sent no JSON: {error}") from error
    if not isinstance(answer, dict):
        raise SandboxFailure("the grader sent no JSON object")
    return answer
