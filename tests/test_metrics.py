import json
import math
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from sdpo_jax import json_files, metrics

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def write_run(folder, steps, resume_from=None):
    log = metrics.RunLog(folder, num_steps=9, resume_from=resume_from)
    for step in steps:
        log.write_metrics(step, {"train/loss": 1 / (step + 3), "train/solved": step})
        log.write_timings(step, {"sample": time.perf_counter()})
        log.write_attempts(step, [{"text": f"try {step}\n"}, {"text": "\ud800 é"}])
    log.close()


def lines_of(folder, name):
    return list(json_files.read_lines(folder / name))


def test_every_number_comes_back_exactly(folder):
    numbers = {
        "python": 0.1 + 0.2,
        "float32": jnp.float32(0.1),
        "bfloat16": jnp.bfloat16(0.1),
        "numpy": np.float64(1e-310),
        "integer": jnp.int32(7),
        "vector": np.array([0.5, 2**-40]),
    }
    log = metrics.RunLog(folder, num_steps=1)

    log.write_metrics(1, numbers)
    log.close()

    (line,) = lines_of(folder, metrics.METRICS)
    assert line.pop("step") == 1
    expected = {k: np.asarray(v, np.float64).tolist() for k, v in numbers.items()}
    assert line == expected
    assert type(line["integer"]) is int


def test_numbers_that_are_not_finite_are_valid_json_and_read_back(folder):
    log = metrics.RunLog(folder, num_steps=1)

    log.write_metrics(1, {"a": math.nan, "b": jnp.float32(jnp.inf), "c": [-math.inf]})
    log.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    line = json.loads((folder / metrics.METRICS).read_text(), parse_constant=refuse)
    assert line == {"step": 1, "a": "NaN", "b": "Infinity", "c": ["-Infinity"]}
    assert float(line["b"]) == math.inf and math.isnan(float(line["a"]))


def test_metrics_hold_nothing_that_the_clock_decides(folder, tmp_path):
    write_run(folder, range(4))
    write_run(tmp_path / "again", range(4))

    for name in (metrics.METRICS, metrics.ATTEMPTS):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert lines_of(folder, metrics.TIMINGS)[0]["sample"] > 0


def test_a_value_called_step_is_refused(folder):
    log = metrics.RunLog(folder, num_steps=1)

    with pytest.raises(ValueError, match=r"has its own step \(1\).*got 5"):
        log.write_metrics(1, {"step": 5})
    log.close()


def test_any_text_survives_in_a_transcript(folder):
    text = 'quote " newline \n null \0 lone \ud800 emoji \U0001f600 line sep \u2028'
    log = metrics.RunLog(folder, num_steps=1)

    log.write_attempts(3, [{"text": text, "score": 0.5}, {"text": ""}])
    log.close()

    assert lines_of(folder, metrics.ATTEMPTS) == [
        {"step": 3, "text": text, "score": 0.5},
        {"step": 3, "text": ""},
    ]


def test_each_line_is_on_file_before_the_log_is_closed(folder):
    log = metrics.RunLog(folder, num_steps=2)

    log.write_metrics(1, {"loss": 0.5})

    assert lines_of(folder, metrics.METRICS) == [{"step": 1, "loss": 0.5}]
    log.close()


def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(folder, tmp_path):
    write_run(tmp_path / "undisturbed", range(9))

    write_run(folder, range(7))
    write_run(folder, range(5, 9), resume_from=4)

    for name in (metrics.METRICS, metrics.ATTEMPTS):
        expected = (tmp_path / "undisturbed" / name).read_bytes()
        assert (folder / name).read_bytes() == expected
    assert [t["step"] for t in lines_of(folder, metrics.TIMINGS)] == list(range(9))


def test_a_run_that_starts_anew_drops_every_line(folder):
    write_run(folder, range(3))

    write_run(folder, [0])

    assert [line["step"] for line in lines_of(folder, metrics.METRICS)] == [0]


@pytest.mark.parametrize("rest", ['{"step": 2, "lo', '{"step": 2}{', "\x00\x00", "nul"])
def test_a_half_written_last_line_is_left_out_and_dropped(folder, rest):
    write_run(folder, [0, 1])
    whole = (folder / metrics.METRICS).read_bytes()
    with (folder / metrics.METRICS).open("a") as file:
        file.write(rest)

    assert [line["step"] for line in lines_of(folder, metrics.METRICS)] == [0, 1]
    json_files.drop_lines_from(folder / metrics.METRICS, 9)

    assert (folder / metrics.METRICS).read_bytes() == whole


WRITER = """
import sys
from sdpo_jax import metrics
log = metrics.RunLog(sys.argv[1], num_steps=10**9)
for step in range(10**9):
    log.write_metrics(step, {"loss": step / 7})
    log.write_attempts(step, [{"text": "x" * 20000}])
    if step % 5 == 0:
        print(step, flush=True)
"""


def test_a_killed_writer_loses_at_most_the_line_it_was_writing(folder):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    announced = [int(writer.stdout.readline()) for _ in range(3)]
    writer.send_signal(signal.SIGKILL)
    announced += [int(line) for line in writer.communicate()[0].split()]

    steps = [line["step"] for line in lines_of(folder, metrics.METRICS)]
    attempts = [line["step"] for line in lines_of(folder, metrics.ATTEMPTS)]

    assert steps == list(range(len(steps))) and len(steps) > announced[-1]
    assert len(attempts) in (len(steps) - 1, len(steps))


def events_of(folder):
    """TensorBoard's records: length, checksum, protobuf, checksum."""
    events = []
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda p: p.name):
        content = path.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            events.append(event_pb2.Event.FromString(content[12 : 12 + size]))
            content = content[16 + size :]
    return events


def scalars_of(folder):
    return {
        (value.tag, event.step): value.simple_value
        for event in events_of(folder)
        for value in event.summary.value
    }


def test_tensorboard_gets_the_finite_numbers_by_group(folder):
    log = metrics.RunLog(folder, num_steps=2)

    log.write_metrics(1, {"train/loss": 0.5, "train/bad": math.nan, "note": "text"})
    log.write_timings(1, {"sample": 2.0})

    # Read before closing: a killed run keeps its curves.
    assert scalars_of(folder) == {("train/loss", 1): 0.5, ("timings/sample", 1): 2.0}
    log.close()


def test_resuming_keeps_the_old_curves_and_hides_the_later_steps(folder):
    write_run(folder, range(4))
    # Both attempts begin in the same second.
    write_run(folder, [2], resume_from=1)

    events = events_of(folder)

    assert [e.step for e in events if e.HasField("session_log")] == [0, 2]
    steps = [e.step for e in events if e.summary.value]
    # Metrics and timings have an event each.
    assert steps == [0, 0, 1, 1, 2, 2, 3, 3, 2, 2]


def test_only_the_first_process_writes(folder, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)

    write_run(folder, range(2))

    assert not folder.exists()


def test_tracker_gets_the_numbers_and_the_config(folder, monkeypatch):
    calls = []

    class Tracker:
        def __init__(self, *arguments):
            calls.append(arguments)

        def log(self, numbers, step):
            calls.append((numbers, step))

        def close(self):
            calls.append("closed")

    monkeypatch.setattr(metrics, "Tracker", Tracker)
    log = metrics.RunLog(folder, num_steps=1, wandb_project="sdpo", config={"seed": 3})
    log.write_metrics(1, {"a": 1.5, "b": math.nan})
    log.close()

    assert calls == [("sdpo", folder, {"seed": 3}), ({"a": 1.5}, 1), "closed"]


def test_timer_adds_up_by_name_and_starts_again(monkeypatch):
    clock = iter([0.0, 2.0, 10.0, 11.0, 20.0, 20.5])
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(clock))
    timer = metrics.Timer()

    with timer("sample"):
        pass
    with timer("grade"):
        pass
    with pytest.raises(KeyError), timer("sample"):
        raise KeyError

    assert timer.take() == {"sample": 2.5, "grade": 1.0}
    assert timer.take() == {}


def test_reading_a_run_does_not_import_jax():
    code = "import sys; from sdpo_jax import provenance; print('jax' in sys.modules)"

    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )

    assert out.stdout.strip() == "False", out.stderr
