"""Tier R: a worker on another machine, over HTTP; `server.py` runs there.

Only programs and inputs go over; what comes back is judged and compared here.
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
    most_bytes,
    most_seconds,
)

TOKEN = "SDPO_SANDBOX_TOKEN"  # Environment variable, on both machines.
ANSWER_BYTES = 4096  # Of what is no list of records.
PATIENCE_S = 60.0  # A grader that restarts is waited for.


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Raises a redirect as an HTTPError."""

    def redirect_request(self, *_) -> None:
        return None


# A token goes to the machine that it is meant for: by no proxy, and no further.
_OPENER = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))


class RemoteWorker:
    """What `process.Worker` is, on the machine behind `url`.

    Args:
      url: of the server, such as "http://grader:8000".
      limits: of its programs.
      packages: what its programs can import; looked up there.

    Raises:
      SandboxUnavailable: if no server answers, or not for this token.
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
            self.about = self._ask({}, ANSWER_BYTES, PATIENCE_S)
        except SandboxFailure as failure:
            raise SandboxUnavailable(str(failure)) from failure

    def exchange(self, request: Mapping[str, Any]) -> list[dict]:
        """Have one request answered.

        Raises:
          SandboxFailure: if the server cannot, or does not in time.
        """
        wait_s = PATIENCE_S + most_seconds(request)
        answer = self._ask({"request": request}, most_bytes(request), wait_s)
        if not isinstance(answer.get("records"), list):
            raise SandboxFailure(f"{self._url} sent no records")
        return answer["records"]

    def close(self) -> None:
        """Nothing to end here."""

    def _ask(self, message: dict, most: int, wait_s: float) -> dict:
        """One answer; a server that is not there is tried again for a while."""
        text = json.dumps({**self._sandbox, **message}).encode()
        headers = {"Content-Type": "application/json"}
        if token := os.environ.get(TOKEN):
            headers["Authorization"] = f"Bearer {token}"
        deadline, pause_s = time.monotonic() + PATIENCE_S, 0.1
        while True:
            request = urllib.request.Request(self._url, text, headers, method="POST")
            try:
                with _OPENER.open(request, timeout=wait_s) as response:
                    return _read(response, most)
            except urllib.error.HTTPError as error:
                said = error.read(ANSWER_BYTES).decode("utf-8", "replace")
                raise SandboxFailure(f"{self._url}: {error.code} {said}") from error
            except (OSError, http.client.HTTPException) as error:
                if time.monotonic() + pause_s > deadline:
                    raise SandboxFailure(f"{self._url}: {error}") from error
            time.sleep(pause_s)
            pause_s *= 2


def _read(response: http.client.HTTPResponse, most: int) -> dict:
    text = response.read(most + 1)
    if len(text) > most:
        raise SandboxFailure(f"the grader sent more than the {most} bytes allowed")
    try:
        answer = json.loads(text)
    except ValueError as error:
        raise SandboxFailure(f"the grader sent no JSON: {error}") from error
    if not isinstance(answer, dict):
        raise SandboxFailure("the grader sent no JSON object")
    return answer
