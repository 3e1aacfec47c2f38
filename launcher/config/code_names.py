"""Names under which code that came with a model is trusted."""

from __future__ import annotations


def can_be_named(file: str) -> bool:
    """Whether a file can be trusted by its name: Python of a model's folder itself, not of a folder in it, nor code
    that `REPOSITORY--module.Class` takes from elsewhere.
    """
    return file.endswith(".py") and "/" not in file and "--" not in file
