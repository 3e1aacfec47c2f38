"""Parameters that a recipe keeps from learning."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

from launcher.config.model import ModelConfig
from launcher.errors import ModelError, nearest


def freeze(model: nn.Module, wanted: ModelConfig) -> None:
    """Let the parameters that `model.freeze` names stay as they are.

    Args:
        model: Whole or partitioned, under transformers' names.
        wanted: The recipe's model section.

    Raises:
        ModelError: A pattern names no parameter, nothing is left that learns, or experts are shared among ranks.
    """
    if not wanted.freeze:
        return
    if wanted.expert_parallel > 1:
        raise ModelError("experts that are shared among ranks all learn", "model.freeze", "use model.expert_parallel=1")
    parameters = dict(model.named_parameters(remove_duplicate=False))  # a tied one under each of its names
    for pattern in wanted.freeze:
        named = [parameter for name, parameter in parameters.items() if fnmatchcase(name, pattern)]
        if not named:
            match = nearest(pattern, parameters)
            fix = f"did you mean {match!r}?" if match else f"names are like {', '.join(list(parameters)[:4])}"
            raise ModelError(f"no parameter is called {pattern}", "model.freeze", fix)
        for parameter in named:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ModelError("all parameters are frozen: nothing learns", "model.freeze", "name fewer of them")
