import http.client
import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading

import pytest

from sdpo_jax.envs.programming.grader import Programming
from sdpo_jax.sandbox import remote
from sdpo_jax.sandbox import server as grader_server
from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.server import Server
from sdpo_jax.sandbox.values import (
    Call,
    Limits,
    Packages,
    SandboxFailure,
    SandboxUnavailable,
    Stdin,
)

ROOT = pathlib.Path(__file__).parents[2]
LIMITS = Limits(cpu_s=1.0, wall_s=4.0, memory_mb=512, output_kb=64)
ADD = "def f(a, b):\n    return a + b"


class Recorder(Server):
    """A server that records its messages and answers."""

    def answer(self, message):
        answer = super().answer(message)
        self.recorded = [*getattr(self, "recorded", []), message, answer]
        return answer


def serving(server):
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def server():
    yield from serving(Recorder(("127.0.0.1", 0), "", workers=2))


def url(server):
    return f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture
def box(server):
    with Sandbox(LIMITS, url(server)) as box:
        yield box


def test_programs_run_remotely_as_they_would_locally(box):
    tests = [
        Call("f", [1, 2]),
        Call("f", {"a": 1, "b": [1]}),
        Call("f", ["x", "\ud800"]),
        Call("f", [10**5000, 1]),
    ]
    fields = ("status", "result", "error_type", "error_line")
    with Sandbox(LIMITS, workers=1) as local:
        expected = local.run(ADD, tests)

    executions = box.run(ADD, tests)

    values = lambda runs: [[getattr(run, name) for name in fields] for run in runs]
    assert values(executions) == values(expected)
    assert [run.status for run in executions] == ["ok", "error", "ok", "ok"]


def test_tier_names_the_tier_of_the_server(box):
    assert box.tier in ("R/A", "R/B", "R/C")
    assert box.workers == 2


def test_limits_are_those_of_the_trainer(box):
    (endless,) = box.run("while True: pass", [Stdin("")], cpu_s=0.3)
    (loud,) = box.run("while True: print('x' * 1000)", [Stdin("")])
    assert (endless.status, loud.status) == ("time_limit", "output_limit")


def test_output_that_json_makes_six_times_as_long_is_received(box):
    program = "import os\nos.write(1, bytes(30_000))\nos.write(1, bytes(30_000))"
    (execution,) = box.run(program, [Stdin("")])
    assert execution.stdout == "\0" * 60_000


def test_programs_are_confined_on_the_server(box):
    program = "import os\ndef f():\n    return os.fork()"
    (execution,) = box.run(program, [Call("f", [])])
    assert execution.error_type == "PermissionError"


def test_packages_are_looked_up_on_the_server(server):
    program = "def f(n):\n    import numpy\n    return int(numpy.arange(n).sum())"
    with Sandbox(LIMITS, url(server), packages=Packages(("numpy",))) as box:
        (execution,) = box.run(program, [Call("f", [5])])
    assert execution.result == 10
    with pytest.raises(SandboxUnavailable, match="pip install not-there"):
        Sandbox(LIMITS, url(server), packages=Packages(("not_there",)))


def test_expected_outputs_never_leave_the_trainer(server, tmp_path):
    tests = {"testtype": "functional", "fn_name": "f", "inputs": [[20000, 24321]]}
    row = {"uid": "1", "prompt": "?", "tests": tests | {"outputs": [44321]}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    server.recorded = []
    box = Sandbox(LIMITS, url(server))
    environment = Programming({"train": tmp_path / "rows.jsonl"}, box)
    (question,) = environment.questions("train")
    wrong = "```python\ndef f(a, b):\n    return a\n```"

    verdict = environment.start(question).act(wrong, False)
    environment.close()

    assert verdict.score == 0 and "44321" in verdict.feedback
    recorded = repr(server.recorded)
    assert "24321" in recorded and "44321" not in recorded
    assert environment.versions["sandbox_tier"].startswith("R/")


def test_many_threads_share_the_workers_of_the_server(box):
    sums = [None] * 12

    def run(n):
        sums[n] = box.run(ADD, [Call("f", [n, n])])[0].result

    threads = [threading.Thread(target=run, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [2 * n for n in range(12)]


def test_other_limits_get_another_sandbox_and_the_least_recent_ends(server):
    for memory in (512, 513, 514, 515, 512, 516):
        with Sandbox(Limits(memory_mb=memory), url(server)) as box:
            assert box.run(ADD, [Call("f", [1, 2])])[0].result == 3
    kept = [limits.memory_mb for limits, _ in server._sandboxes]
    assert kept == [514, 515, 512, 516]


@pytest.fixture
def guarded(monkeypatch):
    monkeypatch.setenv(remote.TOKEN, "right")
    yield from serving(Server(("127.0.0.1", 0), "right", workers=1))


def test_server_requires_its_token(guarded, monkeypatch):
    with Sandbox(LIMITS, url(guarded)) as box:
        assert box.run(ADD, [Call("f", [1, 2])])[0].result == 3
    for token in ("wrong", ""):
        monkeypatch.setenv(remote.TOKEN, token)
        with pytest.raises(
            SandboxUnavailable, match="401.*SDPO_SANDBOX_TOKEN is missing or wrong"
        ):
            Sandbox(LIMITS, url(guarded))


def test_token_is_sent_to_no_proxy(server):
    program = (
        "import sys\n"
        "from sdpo_jax.sandbox import remote, values\n"
        "remote.PATIENCE_S = 1.0\n"
        "sandbox = values.Limits(), values.Packages()\n"
        "print(remote.RemoteWorker(sys.argv[1], *sandbox).about['workers'])"
    )
    proxy = {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    process = subprocess.run(
        [sys.executable, "-c", program, url(server)],
        cwd=ROOT,
        env=os.environ | proxy,
        capture_output=True,
        text=True,
    )
    assert process.stdout == "2\n", process.stderr


def test_server_for_other_machines_needs_a_token(monkeypatch):
    monkeypatch.delenv(remote.TOKEN, raising=False)
    monkeypatch.setattr(sys, "argv", ["server", "--host=0.0.0.0", "--port=0"])

    with pytest.raises(SystemExit, match="^error: .*set SDPO_SANDBOX_TOKEN"):
        grader_server.main()


def test_ctrl_c_ends_the_server_without_a_traceback():
    # A shell may start the tests with Ctrl-C ignored.
    program = (
        "import signal; from sdpo_jax.sandbox import server\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "server.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "--port=0"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert "grader on 127.0.0.1" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, stderr) == (0, "")


def test_lost_server_is_a_grader_failure_and_a_restarted_one_works(monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE_S", 1.0)
    life = serving(Server(("127.0.0.1", 0), "", workers=1))
    first = next(life)
    with Sandbox(LIMITS, url(first)) as box:
        assert box.run(ADD, [Call("f", [1, 2])])[0].result == 3
        next(life, None)
        with pytest.raises(SandboxFailure, match="refused"):
            box.run(ADD, [Call("f", [1, 2])])
        life = serving(Server(first.server_address, "", workers=1))
        next(life)
        assert box.run(ADD, [Call("f", [1, 2])])[0].result == 3
        next(life, None)


# Answers to a test run from a machine that is no grader.
ODD = {
    "garbage": (200, b"\xff{", "no JSON"),
    "a list": (200, b"[]", "no JSON object"),
    "no records": (200, b"{}", "no records"),
    "too much": (200, b"[" * 10**6, "bytes allowed"),
    "an error": (500, b"oops", "500 oops"),
    "a redirect": (302, b"", "302"),
}


@pytest.mark.parametrize("name", ODD)
def test_unexpected_answer_is_a_grader_failure(name):
    code, body, message = ODD[name]
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            size = int(self.headers["Content-Length"])
            asked.append(json.loads(self.rfile.read(size)))
            is_run = "request" in asked[-1]
            text = body if is_run else b'{"tier": "A", "workers": 1}'
            self.send_response(code if is_run else 200)
            self.send_header("Location", "http://127.0.0.1:9/")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    (other,) = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)]
    for server in serving(other):
        with Sandbox(LIMITS, url(server)) as box:
            with pytest.raises(SandboxFailure, match=message):
                box.run(ADD, [Call("f", [1, 2])])


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b"\xff", b"[" * 10**5, b'{"limits": {"cpu_s": 0}}'],
    ids=["empty", "list", "object", "bytes", "deep", "limits"],
)
def test_server_refuses_malformed_messages(server, body):
    request = remote.urllib.request.Request(url(server), body, method="POST")
    with pytest.raises(remote.urllib.error.HTTPError) as raised:
        remote.urllib.request.urlopen(request, timeout=10)
    assert raised.value.code == 400
    raised.value.close()


@pytest.mark.parametrize("size", ["", "x", "-1", str(1 << 40)])
def test_request_without_a_size_or_too_large_is_refused_unread(server, size):
    connection = http.client.HTTPConnection(*server.server_address, timeout=10)
    connection.putrequest("POST", "/")
    connection.putheader("Content-Length", size)
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_silent_client_is_disconnected(server, monkeypatch):
    handler = grader_server._Handler
    monkeypatch.setattr(handler, "timeout", handler.timeout / 300)
    with socket.create_connection(server.server_address, timeout=10) as client:
        assert client.recv(1) == b""


@pytest.mark.parametrize("where", ["", "grader:8000", "ftp://grader"])
def test_malformed_url_is_refused(where):
    message = "tier must be|expected http://host:port"
    with pytest.raises((ValueError, SandboxUnavailable), match=message):
        Sandbox(LIMITS, where)


def test_image_contains_all_that_the_server_imports(tmp_path):
    recipe = (ROOT / "sdpo_jax/sandbox/Dockerfile").read_text()
    for line in re.findall(r"^COPY (.*)$", recipe, re.MULTILINE):
        *sources, target = line.split()
        target = tmp_path / target.removeprefix("/grader/")
        for source in map(ROOT.joinpath, sources):
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
    command = re.search(r"^CMD (.*)$", recipe, re.MULTILINE)[1]
    _, *arguments = json.loads(command)

    process = subprocess.run(
        [sys.executable, *arguments, "--help"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )

    assert process.returncode == 0, process.stderr
    assert "--workers" in process.stdout
