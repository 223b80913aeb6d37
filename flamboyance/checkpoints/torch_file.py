"""Reading PyTorch's pickled files without running code from them."""

import pickle
import re
from pathlib import Path
from typing import Any

import torch

ZIP = b"PK\x03\x04"  # torch.save's format since PyTorch 1.6; only this one can be mapped into memory
LFS_POINTER = b"version https://git-lfs"


def read_torch_file(path: str | Path) -> Any:
    """The content of a `.pt` file: tensors, containers and plain values. Anything else is refused.

    Raises:
        ValueError: missing, empty, damaged, a Git LFS pointer, or holding more than tensors and plain values.
    """
    file = Path(path)
    if not file.is_file():
        kind = "a directory" if file.is_dir() else "no such file"
        raise ValueError(f"{file} is {kind}; expected a checkpoint file such as OpenFlamingo's checkpoint.pt.")
    with file.open("rb") as start:
        head = start.read(len(LFS_POINTER))
    if not head:
        raise ValueError(f"{file} is empty. Download the checkpoint again.")
    if head == LFS_POINTER:
        raise ValueError(f"{file} only points to the checkpoint, which Git LFS keeps. Fetch it with git lfs pull.")
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=head.startswith(ZIP))
    except pickle.UnpicklingError as error:
        refers = re.search(r"GLOBAL (\S+)", str(error))
        what = f"refers to {refers[1]}, not only to tensors" if refers else "is damaged, or holds more than tensors"
        raise ValueError(
            f"{file} {what}. It was not opened, since that could run its code. Download it again, or have its maker "
            "save the plain state dict: torch.save(model.state_dict(), path)."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        reason = _first_line(error)
        raise ValueError(f"{file} is no complete PyTorch file ({reason}). Download it again.") from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
