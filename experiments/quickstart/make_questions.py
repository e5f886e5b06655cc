"""Write the questions of the quickstart task.

  python -m experiments.quickstart.make_questions --seed=0 \
      --folder=experiments/quickstart/questions

The seed decides the meaning of the made-up words and the lists of words in the
questions. The three splits share the words but no list. The same seed writes the same
bytes.
"""

import argparse
import itertools
import json
import pathlib
import random

from experiments.quickstart import task

# Split -> its number of lists of one, two and three words.
SPLITS = {"train": (16, 56, 56), "validation": (0, 32, 32), "heldout": (0, 64, 64)}


def questions(seed: int) -> dict[str, list[dict]]:
    """Split -> its rows, in the order of the file."""
    rng = random.Random(seed)
    meaning = task.draw_meaning(rng)
    pools = []
    for length in (1, 2, 3):
        pool = list(itertools.permutations(task.MADE_UP, length))
        rng.shuffle(pool)
        pools.append(iter(pool))
    rows = {}
    for split, counts in SPLITS.items():
        lists = [
            words
            for pool, count in zip(pools, counts, strict=True)
            for words in itertools.islice(pool, count)
        ]
        rng.shuffle(lists)
        rows[split] = [
            _row(f"{split}-{index}", words, meaning, rng)
            for index, words in enumerate(lists)
        ]
    return rows


def _row(name: str, words, meaning, rng: random.Random) -> dict:
    inputs = sorted(rng.sample(task.INPUTS, task.NUM_INPUTS))
    return task.row(name, words, meaning, inputs)


def write(seed: int, folder: pathlib.Path) -> None:
    """Write one file of JSON lines per split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in questions(seed).items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines)
        print(f"{folder / split}.jsonl: {len(rows)} questions")


def main() -> None:
    """Read the command line and write the questions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    write(arguments.seed, arguments.folder)


if __name__ == "__main__":
    main()
