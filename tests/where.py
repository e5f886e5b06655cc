"""The README's table of files, made from the tree: python -m tests.where

Every file and folder of the package with the first sentence of its docstring, from the
top layer down.
"""

import ast
import pathlib

from tests.test_layers import LAYERS

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
BEGIN = "<!-- made by python -m tests.where -->"
END = "<!-- end -->"


def table() -> str:
    """The table as it should stand in the README."""
    lines = ["| file or folder | what |", "|---|---|"]
    for layer in reversed(LAYERS):
        for name in layer:
            if path := _path(name):
                lines.append(f"| `{path.relative_to(ROOT)}` | {_summary(path)} |")
    return "\n".join(lines)


def shown() -> str:
    """The table that stands in the README."""
    _, _, rest = README.read_text().partition(f"{BEGIN}\n\n")
    return rest.partition(f"\n\n{END}")[0]


def _path(name: str) -> pathlib.Path | None:
    """The file or folder of a unit of LAYERS; None for one that is yet to come."""
    candidates = [ROOT / "sdpo_jax" / f"{name}.py", ROOT / "sdpo_jax" / name]
    candidates += [ROOT / name / "topk_tail_kl"]
    return next((path for path in candidates if path.exists()), None)


def _summary(path: pathlib.Path) -> str:
    file = path / "__init__.py" if path.is_dir() else path
    docstring = ast.get_docstring(ast.parse(file.read_text()))
    # The first paragraph, which is one sentence, on one line.
    return " ".join(docstring.partition("\n\n")[0].split()).rstrip(".")


if __name__ == "__main__":
    text = README.read_text()
    README.write_text(text.replace(shown(), table()))
