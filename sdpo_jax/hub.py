"""The Hugging Face hub: what is downloaded from it, and what to do where it is not.

Without a network its libraries would retry for half a minute or longer. Here a hub that
does not answer within seconds counts as absent, and only their caches are read.
"""

import contextlib
import functools
import json
import os
import pathlib
import re
import threading
from collections.abc import Iterator
from typing import Any

# Until the hub counts as absent; resolving its name may take as long as connecting.
_WAIT_S = 6.0
# OWNER/NAME, or a name alone for what is older than owners.
_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_OFFLINE = "HF_HUB_OFFLINE"
_ASKING = threading.Lock()


def model(name: str, *patterns: str) -> pathlib.Path:
    """The local copy of a model's files, downloaded unless the cache has them.

    Args:
      name: of the model on the hub.
      patterns: of the files, such as "*.json".

    Raises:
      ValueError: if there is no such model, or no network; one line with the remedy.
    """
    check_name(name, "model")
    import huggingface_hub  # Slow to import, and local checkpoints do without.

    try:
        with offline_if_absent():
            folder = huggingface_hub.snapshot_download(name, allow_patterns=patterns)
    except (OSError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{name!r} is neither a directory nor a model that the Hugging Face hub "
            f"let us download ({absence() or f'{type(error).__name__}: {said}'})"
        ) from error
    return pathlib.Path(folder)


def dataset_commit(name: str, revision: str | None) -> str:
    """The commit that a revision of a dataset stands for; None is its newest one.

    Raises:
      ValueError: if there is no network.
      OSError: if there is no such dataset.
    """
    if problem := absence():
        raise ValueError(problem)
    import huggingface_hub

    ask = huggingface_hub.HfApi().dataset_info
    return ask(name, revision=revision, timeout=_WAIT_S).sha


def check_path(path: str) -> None:
    """Refuse what can be neither a local checkpoint nor a model of the hub.

    A file is left to the reader of checkpoints, who knows its format.

    Raises:
      ValueError: see `refuse_run_folder` and `check_name`.
    """
    if os.path.isdir(path):
        refuse_run_folder(pathlib.Path(path))
    elif not os.path.isfile(path):
        check_name(path, "model")


def check_name(name: str, what: str) -> None:
    """Refuse a path of something local that does not exist.

    Raises:
      ValueError: if no model or dataset of the hub can have this name.
    """
    if _ID.fullmatch(name):
        return
    hint = " ('~' is not replaced here: write it out)" if name.startswith("~") else ""
    raise ValueError(
        f"{name!r}: there is no such folder{hint}, and a {what} of the Hugging Face "
        "hub is named OWNER/NAME"
    )


def refuse_run_folder(folder: pathlib.Path) -> None:
    """Refuse a run folder, or a folder in one, where a checkpoint is expected.

    Raises:
      ValueError: says how the run's weights are exported.
    """
    if _is_checkpoint(folder):
        return
    for run in (folder, *folder.resolve().parents[:3]):
        if not _is_run(run):
            continue
        export = run / "export"
        remedy = f"give {export}"
        if not _is_checkpoint(export):
            command = f"python -m sdpo_jax.main --job=export --workdir={run}"
            remedy = f"export it first ({command}), then {remedy}"
        raise ValueError(f"{folder} is of a run, and no checkpoint; {remedy}")


def _is_checkpoint(folder: pathlib.Path) -> bool:
    return "model_type" in _config(folder)


def _is_run(folder: pathlib.Path) -> bool:
    return "model.path" in _config(folder)


def _config(folder: pathlib.Path) -> dict[str, Any]:
    """The content of a folder's config.json; empty without a readable one."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@contextlib.contextmanager
def offline_if_absent(*libraries: Any) -> Iterator[None]:
    """Within it, the hub's libraries read their caches alone if the hub is absent.

    Args:
      libraries: modules with a switch of their own that is read at every call.
    """
    from huggingface_hub import constants

    switches = [constants, *libraries]
    before = [getattr(module, _OFFLINE) for module in switches]
    absent = is_absent()
    try:
        for module, is_offline in zip(switches, before, strict=True):
            setattr(module, _OFFLINE, is_offline or absent)
        yield
    finally:
        for module, is_offline in zip(switches, before, strict=True):
            setattr(module, _OFFLINE, is_offline)


def absence() -> str:
    """That the hub is absent, and what to do; empty if it is not."""
    if not is_absent():
        return ""
    from huggingface_hub import constants

    return (
        f"{constants.ENDPOINT} does not answer and there is no complete copy in the "
        "cache: connect, correct HF_ENDPOINT or HTTPS_PROXY, or give a local path"
    )


def ask_early(model: str, *sources: str) -> None:
    """Ask in the background if the hub is absent, where a run may need it.

    So the wait for a hub that does not answer passes while JAX is loaded.

    Args:
      model: the config's `model.path`.
      sources: of questions, as in the config's `env`.
    """
    if not os.path.isdir(model) or any(text.startswith("hf:") for text in sources):
        threading.Thread(target=is_absent, daemon=True).start()


def is_absent() -> bool:
    """Whether the hub does not answer when it is asked, once per process."""
    with _ASKING:
        return _is_absent()


@functools.cache
def _is_absent() -> bool:
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False  # The user's own choice, of which the libraries tell.
    works = []

    def ask() -> None:
        # The client's errors have many types; a proxy without a network answers 5xx.
        with contextlib.suppress(Exception):
            session = huggingface_hub.get_session()
            answer = session.head(constants.ENDPOINT, timeout=_WAIT_S)
            works.append(answer.status_code < 500)

    # The client's limit bounds each phase by itself, and not the look-up of the name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_WAIT_S)
    return works != [True]
