"""Weights in formats that are not read: what to do about each."""

import fnmatch
import os

_SAVE_AGAIN = (
    "load it with transformers and torch, and save_pretrained() it to a new directory"
)
_MERGE = "merge the adapters into their base model first"
_OTHER_LAYOUT = "take the model in the layout of transformers"
# Pattern of a file's name -> what to do.
_REMEDIES = {
    "adapter_*.safetensors": _MERGE,
    "adapter_*.bin": _MERGE,
    "consolidated*.safetensors": _OTHER_LAYOUT,
    "*.pth": _OTHER_LAYOUT,
    "*.gguf": "take the original model that it was made from",
    # From the hub, only the index of such files is there.
    "pytorch_model*.bin*": _SAVE_AGAIN,
    "*.pt": _SAVE_AGAIN,
    "tf_model.h5": _SAVE_AGAIN,
    "flax_model*.msgpack": _SAVE_AGAIN,
}


def refuse(directory: str | os.PathLike) -> None:
    """Raise ValueError if a directory without readable weights has some of these."""
    for name in sorted(os.listdir(directory)):
        if do := remedy(name):
            raise ValueError(
                f"{directory} holds {name}, but only safetensors in the layout of "
                f"transformers are read; {do}"
            )


def remedy(name: str) -> str | None:
    """What to do about a file; None if it is none of these."""
    return next((do for p, do in _REMEDIES.items() if fnmatch.fnmatch(name, p)), None)
