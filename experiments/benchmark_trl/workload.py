"""The workloads of both sides, and their measurements; imports neither JAX nor torch.

A word `wN` in the texts is token N of the model, so every length here is exact.
"""

import argparse
import dataclasses
import json
import pathlib
import random
import time
from collections.abc import Callable, Mapping, Sequence

PAD, STOP = "<pad>", "<stop>"
_HEADER = "w1 "  # Opens the user's turn.
_ANSWER = " w2"  # Opens the assistant's turn.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    f"{{{{- '{_HEADER}' + message['content'] }}}}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    f"{{{{- '{_ANSWER}' }}}}"
    "{%- endif %}"
)
_CHAT_TOKENS = 2
_SOLUTION_TOKENS = 3

WARMUP = 2  # Steps that are not timed.
SEED = 0
LEARNING_RATE = 1e-5
WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0
TEACHER_RATE = 0.05
MIXTURE = 0.5
IMPORTANCE_RATIO_CAP = 2.0


@dataclasses.dataclass(frozen=True)
class Workload:
    """The sizes of a model, a batch and a run.

    Args:
      questions: per rollout batch, which is one optimiser step.
      attempts: per question; one of them is graded as solved, whatever its text.
      prompt: tokens of a student's prompt, including chat tokens.
      response: tokens of every response; none stops earlier.
      reprompt: tokens of a teacher's prompt that shows a solution.
      top_k: the student's most likely tokens, and a tail; 0 for the full vocabulary.
      steps: number of timed steps in each process.
    """

    name: str
    vocab: int
    width: int
    mlp_width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    questions: int
    attempts: int
    prompt: int
    response: int
    reprompt: int
    top_k: int
    steps: int

    @property
    def updates(self) -> int:
        """Steps of a process, including the warm-up."""
        return WARMUP + self.steps

    @property
    def rows(self) -> int:
        """Attempts per step."""
        return self.questions * self.attempts

    @property
    def rows_with_target(self) -> int:
        """Rows that are trained on; a question's only solved attempt has no teacher."""
        return self.questions * (self.attempts - 1)

    @property
    def solution_template(self) -> str:
        """The template of a solution, with a few words before `{solution}`."""
        return f" {_words(range(3, 3 + _SOLUTION_TOKENS))} {{solution}}"

    @property
    def instruction(self) -> str:
        """The last words of a teacher's prompt; they fill it to its exact length."""
        count = self.reprompt - self.prompt - self.response - _SOLUTION_TOKENS
        return f" {_words(range(10, 10 + count))}"

    def prompts(self) -> list[str]:
        """The user turns of all questions, all different and of equal length."""
        rng = random.Random(SEED)
        length = self.prompt - _CHAT_TOKENS
        draw = lambda: [rng.randrange(100, self.vocab) for _ in range(length)]
        return [_words(draw()) for _ in range(self.updates * self.questions)]


def _words(numbers: Sequence[int]) -> str:
    return " ".join(f"w{number}" for number in numbers)


LARGE = Workload(
    name="large",
    vocab=4096,
    width=256,
    mlp_width=768,
    layers=4,
    heads=4,
    kv_heads=2,
    head_width=64,
    questions=8,
    attempts=4,
    prompt=64,
    response=64,
    reprompt=135,
    top_k=100,
    steps=10,
)
# The quickstart's model with the same lengths.
SMALL = dataclasses.replace(
    LARGE,
    name="small",
    vocab=640,
    width=128,
    mlp_width=320,
    layers=3,
    head_width=32,
    steps=30,
)
# The quickstart's model with the quickstart's lengths.
QUICKSTART = dataclasses.replace(
    SMALL,
    name="quickstart",
    attempts=8,
    prompt=12,
    response=16,
    reprompt=48,
    top_k=0,
    steps=50,
)
WORKLOADS = {w.name: w for w in (LARGE, SMALL, QUICKSTART)}


class Record:
    """The measurements of one process: seconds by step and phase, and peak memory."""

    def __init__(self):
        self._marks = [(time.perf_counter(), time.process_time())]
        self._parts: list[Mapping[str, float]] = []

    def step(self, parts: Mapping[str, float]) -> None:
        """End a step; `parts` holds the seconds of its phases."""
        self._parts.append(dict(parts))
        self._marks.append((time.perf_counter(), time.process_time()))

    def result(self) -> dict:
        """Seconds of each step after the warm-up, and the peak memory of all steps."""
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        whole_s = [after[0] - before[0] for before, after in pairs]
        cpu_s = [after[1] - before[1] for before, after in pairs]
        timed = slice(WARMUP, None)
        names = self._parts[-1]
        return {
            "first_step_s": whole_s[0],
            "whole_s": whole_s[timed],
            **{f"{n}_s": [p[n] for p in self._parts[timed]] for n in names},
            "cpu_s": cpu_s[timed],
            "core_share": sum(cpu_s[timed]) / sum(whole_s[timed]),
            "peak_mib": peak_mib(),
        }


def peak_mib() -> float:
    """The peak resident memory of this process, in MiB."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmHWM; this needs Linux")


def check(workload: Workload, seen: Mapping[str, int]) -> None:
    """Raise ValueError if a side did not do the work of its workload."""
    expected = {
        "prompt": workload.prompt,
        "response": workload.response,
        "reprompt": workload.reprompt,
        "rows": workload.rows,
        "rows_with_target": workload.rows_with_target,
    }
    if dict(seen) != expected:
        raise ValueError(f"{workload.name}: expected {expected}, got {dict(seen)}")


def run_side(measure: Callable[[Workload, str], dict], doc: str) -> None:
    """Run the measurement that the command line names, and write its result to a file.

    Args:
      measure: trains on a workload, from the checkpoint at a path.
      doc: the side's docstring.
    """
    flag = argparse.ArgumentParser(description=doc.splitlines()[0])
    flag.add_argument("--workload", choices=WORKLOADS, required=True)
    flag.add_argument("--checkpoint", required=True)
    flag.add_argument("--out", type=pathlib.Path, required=True)
    given = flag.parse_args()
    result = measure(WORKLOADS[given.workload], given.checkpoint)
    given.out.write_text(json.dumps(result) + "\n")
