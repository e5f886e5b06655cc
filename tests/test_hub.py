"""The hub: absent, slow or broken, it costs seconds and one line with the remedy."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import huggingface_hub
import pytest
from huggingface_hub import constants

from sdpo_jax import hub
from sdpo_jax.data.tokenizer import Tokenizer
from sdpo_jax.model import huggingface

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def asked():
    """Forgets the answer that this process had from the hub, before and after."""
    hub._is_absent.cache_clear()
    yield
    hub._is_absent.cache_clear()


@pytest.fixture
def listening():
    """A local server that accepts connections and answers what it is told, or not."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve(reply):
            def answer():
                with server.accept()[0] as connection:
                    connection.recv(65536)
                    connection.sendall(reply)

            threading.Thread(target=answer, daemon=True).start()

        yield f"http://127.0.0.1:{server.getsockname()[1]}", serve


def reply(status):
    return f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()


@pytest.mark.parametrize("status, absent", [("404 No", False), ("503 No", True)])
def test_hub_is_absent_where_a_proxy_answers_for_it(
    status, absent, asked, listening, monkeypatch
):
    endpoint, serve = listening
    serve(reply(status))
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setenv("NO_PROXY", "*")

    assert hub.is_absent() is absent


def test_hub_that_never_answers_is_absent_after_seconds(asked, listening, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", listening[0])
    monkeypatch.setattr(hub, "_WAIT_S", 0.3)
    monkeypatch.setenv("NO_PROXY", "*")
    begun = time.monotonic()

    assert hub.is_absent() and hub.is_absent()

    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "model, sources, asks",
    [
        ("Qwen/Qwen3-0.6B", ("a.jsonl", ""), True),
        (".", ("a.jsonl", "hf:some/set?split=train"), True),
        (".", ("a.jsonl", "share:0.1", ""), False),
    ],
)
def test_hub_is_asked_early_where_a_run_may_need_it(model, sources, asks, monkeypatch):
    asked = threading.Event()
    monkeypatch.setattr(hub, "is_absent", asked.set)

    hub.ask_early(model, *sources)

    assert asked.wait(5 if asks else 0.1) is asks


def test_hub_that_the_user_switched_off_is_not_asked(asked, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "get_session", None)

    assert not hub.is_absent()
    with pytest.raises(ValueError, match="let us download .LocalEntryNotFoundError: "):
        hub.model("some/model", "config.json")


def test_without_the_hub_only_caches_are_read(monkeypatch):
    library = type("Library", (), {"HF_HUB_OFFLINE": False})
    monkeypatch.setattr(hub, "is_absent", lambda: True)

    with hub.offline_if_absent(library):
        inside = constants.HF_HUB_OFFLINE, library.HF_HUB_OFFLINE

    assert inside == (True, True)
    assert not library.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


ABSENT = "http://127.0.0.1:9 does not answer and there is no complete copy in the cache"
PROGRAM = """
import sys
from sdpo_jax.data.tokenizer import Tokenizer
from sdpo_jax.questions import rows, sources
for make in (
    lambda: Tokenizer("some/model"),
    lambda: rows.load(sources.of("hf:some/set?split=train", "env.train"), None),
    lambda: rows.load(sources.of("hf:set?split=train&files=a.csv", "env.train"), None),
):
    try:
        make()
    except ValueError as error:
        print(error)
"""


def test_model_and_questions_of_an_absent_hub_are_told_in_seconds(tmp_path):
    pytest.importorskip("datasets", reason="the library is not installed")
    settings = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    begun = time.monotonic()

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | settings,
        capture_output=True,
        text=True,
        timeout=60,
    )

    # Without a limit of its own, the datasets library alone retried for 23 seconds.
    assert time.monotonic() - begun < 20
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all(ABSENT in line for line in lines), done


# Local folders.

CHECKPOINT = {"model_type": "qwen3"}
RUN = {"method": "sdpo", "model.path": "Qwen/Qwen3-8B"}


def written(folder, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_run_folder_is_no_checkpoint_and_its_export_is(tmp_path):
    run = written(tmp_path / "run", RUN)
    inside = run / "checkpoints" / "10"
    inside.mkdir(parents=True)
    export = f"export it first (python -m sdpo_jax.main --job=export --workdir={run}), "

    for folder in (run, inside):
        with pytest.raises(ValueError) as raised:
            huggingface.architecture(folder)
        told = (
            f"{folder} is of a run, and no checkpoint; {export}then give {run}/export"
        )
        assert str(raised.value) == told
    hub.refuse_run_folder(written(run / "export", CHECKPOINT))
    with pytest.raises(ValueError, match=f"no checkpoint; give {run}/export$"):
        hub.refuse_run_folder(run)


@pytest.mark.parametrize("content", [CHECKPOINT, {}, []])
def test_folder_that_is_of_no_run_is_left_to_the_reader(tmp_path, content):
    hub.refuse_run_folder(written(tmp_path, content))
    hub.refuse_run_folder(tmp_path / "empty")


@pytest.mark.parametrize(
    "name",
    ["/no/such", "./x", "../x", "runs/a/b", "runs/a/", "~/models/x", "a b", "a:b"],
)
def test_path_that_no_hub_id_can_be_is_refused_without_asking(name, monkeypatch):
    monkeypatch.setattr(hub, "is_absent", None)

    for use in (huggingface.architecture, Tokenizer):
        with pytest.raises(ValueError, match="there is no such folder") as raised:
            use(name)
        assert repr(name) in str(raised.value)
        assert "is named OWNER/NAME" in str(raised.value)


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen3-0.6B", "a_b/c.d-e"])
def test_names_of_the_hub_are_accepted(name):
    hub.check_name(name, "model")
