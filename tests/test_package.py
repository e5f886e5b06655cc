"""What pip installs: every folder of both packages, under one version."""

import pathlib
import tomllib

import sdpo_jax

ROOT = pathlib.Path(__file__).parents[1]
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("sdpo_jax", "pallas_kernels")


def test_the_version_has_one_source():
    assert SETUP["project"]["dynamic"] == ["dependencies", "version"]
    dynamic = SETUP["tool"]["setuptools"]["dynamic"]
    assert dynamic["version"] == {"attr": "sdpo_jax.__version__"}
    # Read from the file as it stands there, without importing the package.
    first, _, rest = (ROOT / "sdpo_jax" / "__init__.py").read_text().partition("= ")
    assert first.endswith("__version__ ") and rest == f'"{sdpo_jax.__version__}"\n'


def test_every_folder_with_code_is_found_by_pip():
    found = SETUP["tool"]["setuptools"]["packages"]["find"]["include"]

    assert found == [f"{name}*" for name in PACKAGES]
    for name in PACKAGES:
        for file in (ROOT / name).rglob("*.py"):
            assert (file.parent / "__init__.py").exists(), file.parent


def test_both_commands_of_the_readme_install_the_package():
    makefile = (ROOT / "Makefile").read_text()

    (recipe,) = [
        part for part in makefile.split("\n\n") if "\n$(VENV)/installed: " in part
    ]

    assert "--no-deps --editable ." in recipe
    assert "quickstart: $(VENV)/installed\n" in makefile
    assert "$(VENV)/installed-test: $(VENV)/installed " in makefile
