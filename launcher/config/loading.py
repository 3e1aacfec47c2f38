"""From a YAML file and `key=value` words to a checked `Recipe` that knows where each field came from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from launcher.config import places
from launcher.config.recipe import Recipe
from launcher.errors import CheckpointError, RecipeError, did_you_mean

DEFAULT_RECIPE = "law-bert-zh"

# Fields a resumed run may change: they decide how long, how often and in how many pieces, not what is learnt when.
FREE_TO_CHANGE = (
    "train.num_steps",
    "train.time_collectives",
    "batch.micro_batch",
    "model.experts",
    "model.expert_parallel",
    "model.sequence_parallel",
    "model.tensor_parallel",
    "optim.host_adam",
    "eval.",
    "checkpoint.",
    "guards.",
    "runs",
    "data.corpus",
    "data.tokenizer",
    "data.verify",
    # What has been served of them is guarded by the cursor's fingerprint; what lies ahead may change.
    "data.shards",
    "data.mixture",
    "data.changes",
    "data.exclude",
)


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's numbers and booleans: in 1.1, `1e-3` is text for want of a dot, and `off` is false."""


_BOOLEAN, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOLEAN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOLEAN, re.compile(r"^(true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(_FLOAT, re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRecipe:
    """A recipe and the story of each of its fields."""

    recipe: Recipe
    """The checked records."""
    origins: dict[str, str]
    """Dotted field → the file it stands in, or `override`; a field that is missing here has its default."""
    is_quickstart: bool
    """Whether the file is the shipped default recipe."""

    def origin(self, field: str) -> str:
        """Where a dotted field's value came from."""
        while field:
            if field in self.origins:
                return self.origins[field]
            field = field.rpartition(".")[0]
        return "default"


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe, apply `key=value` overrides, and check everything.

    Args:
        name_or_path: A YAML file, or the name of a shipped recipe.
        overrides: Words like `train.num_steps=50`; values are read as YAML.

    Raises:
        RecipeError: The file is missing or not YAML, a key is unknown, a value does not fit.
    """
    path = places.find("recipes", name_or_path, ".yaml")
    if path is None:
        known = places.names("recipes", ".yaml")
        raise RecipeError(
            f"there is no recipe {name_or_path!r}",
            fix=f"{did_you_mean(Path(name_or_path).stem, known)} (or the path of a YAML file)",
        )
    tree = read_yaml(path)
    _refuse_unknown(tree, Recipe, "", str(path))
    origins = {field: str(path) for field in _leaves(tree)}
    for word in overrides:
        field, value = _parse_override(word)
        _refuse_unknown(_nested(field, value), Recipe, "", f"override {word!r}")
        _set(tree, field, value, word)
        origins = {key: origin for key, origin in origins.items() if not key.startswith(f"{field}.")}
        origins[field] = "override"
    where = f"{path} with overrides" if overrides else str(path)
    is_quickstart = path.resolve() == (places.shipped("recipes") / f"{DEFAULT_RECIPE}.yaml").resolve()
    return LoadedRecipe(recipe=check_recipe(tree, where), origins=origins, is_quickstart=is_quickstart)


def check_recipe(tree: dict[str, Any], where: str) -> Recipe:
    """Turn plain dicts into records.

    Raises:
        RecipeError: A key is unknown, missing, or its value does not fit; all of them are named at once.
    """
    _refuse_unknown(tree, Recipe, "", where)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        problems = [_describe(dict(item)) for item in error.errors()]
        raise RecipeError(
            "; ".join(problems), where, "`pretrain recipe --explain` lists every field and its meaning"
        ) from None


def resolved_yaml(recipe: Recipe) -> str:
    """The recipe as YAML with every field present, as it is kept in the run's folder."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), allow_unicode=True, sort_keys=False)


def fingerprint(recipe: Recipe) -> str:
    """A short hash of every field that decides what is learnt, in which order."""
    fixed = {key: value for key, value in flat(recipe).items() if not key.startswith(FREE_TO_CHANGE)}
    text = json.dumps(fixed, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(before: Recipe, after: Recipe) -> list[str]:
    """The fields that a resumed run must not change but that differ, as `field: before → after`."""
    old, new = flat(before), flat(after)
    return [
        f"{key}: {old.get(key)} → {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if not key.startswith(FREE_TO_CHANGE) and old.get(key) != new.get(key)
    ]


def refuse_other_recipe(recipe: Recipe, before: Recipe, checkpoint: Path) -> None:
    """Going on from a checkpoint with another recipe would be another run under the same name.

    Args:
        recipe: Of the run.
        before: The one that the checkpoint was made with.
        checkpoint: Where it lies.

    Raises:
        CheckpointError: A field that decides what is learnt differs.
    """
    changed = differences(before, recipe)
    if changed:
        raise CheckpointError(
            f"the run was started with another recipe: {'; '.join(changed)}",
            str(checkpoint),
            f"take the change back, give the run another name (name=…), or delete {recipe.run_folder}",
        )


def flat(recipe: Recipe) -> dict[str, Any]:
    """Dotted field → JSON value."""
    return dict(_walk(recipe.model_dump(mode="json"), ""))


def describe_fields() -> dict[str, str]:
    """Dotted field → what it means, for every field a recipe can have."""
    return dict(_describe_record(Recipe, ""))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a recipe file as plain dicts.

    Raises:
        RecipeError: It cannot be read, or is no YAML mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe cannot be read: {error}", str(path)) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """The text of a recipe file as plain dicts.

    Raises:
        RecipeError: It is no YAML mapping.
    """
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(
            "this is not YAML: " + " ".join(str(error).split()), where, "mend the line named above"
        ) from None
    if not isinstance(tree, dict):
        raise RecipeError("a recipe is a YAML mapping with sections such as data, model and train", where)
    return tree


def _parse_override(word: str) -> tuple[str, Any]:
    field, equals, text = word.partition("=")
    if not equals or not field:
        raise RecipeError(
            f"{word!r} is not an override", "command line", "write section.field=value, e.g. train.num_steps=50"
        )
    try:
        return field, yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise RecipeError(f"the value of {word!r} is not YAML", "command line", "put quotes around it") from None


def _nested(field: str, value: Any) -> dict[str, Any]:
    for part in reversed(field.split(".")):
        value = {part: value}
    return dict(value)


def _set(tree: dict[str, Any], field: str, value: Any, word: str) -> None:
    *parents, last = field.split(".")
    for part in parents:
        child = tree.setdefault(part, {})
        if not isinstance(child, dict):
            raise RecipeError(f"{part!r} is a value, not a section", f"override {word!r}")
        tree = child
    tree[last] = value


def _records(annotation: Any) -> list[type[BaseModel]]:
    """The record types an annotation admits (several for a union)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return [record for part in get_args(annotation) for record in _records(part)]
    return []


def _refuse_unknown(tree: dict[str, Any], record: type[BaseModel], prefix: str, where: str) -> None:
    fields = record.model_fields
    for key, value in tree.items():
        if key not in fields:
            raise RecipeError(f"unknown key {prefix}{key}", where, did_you_mean(str(key), fields))
        annotation = fields[key].annotation
        if get_origin(annotation) is dict and isinstance(value, dict):  # records by a name of the user's
            for name, inner in value.items():
                for named in _records(get_args(annotation)[1]) if isinstance(inner, dict) else ():
                    _refuse_unknown(inner, named, f"{prefix}{key}.{name}.", where)
            continue
        records = _records(annotation)
        if not records or not isinstance(value, dict):
            continue
        chosen = (
            [r for r in records if value.get("kind") in get_args(r.model_fields["kind"].annotation)]
            if len(records) > 1
            else records
        )
        if len(chosen) == 1:
            _refuse_unknown(value, chosen[0], f"{prefix}{key}.", where)
        else:  # no kind given (an override of one field): any of the union's fields will do, pydantic decides
            known = {name for r in records for name in r.model_fields}
            for name in value:
                if name not in known:
                    raise RecipeError(f"unknown key {prefix}{key}.{name}", where, did_you_mean(str(name), known))


def _describe(error: dict[str, Any]) -> str:
    # pydantic names the chosen member of a union in the path ("objective.mlm.mask_share"); users did not write it.
    path = [str(part) for part in error["loc"]]
    if len(path) > 2 and path[0] == "objective":
        del path[1]
        if len(path) > 4 and path[1] == "parts":
            del path[3]
    field = ".".join(path)
    if error["type"] == "missing":
        return f"{field} is missing"
    message = error["msg"][0].lower() + error["msg"][1:]
    return f"{field}: {message}, got {error['input']!r}"


def _walk(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _walk(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _leaves(tree: dict[str, Any]) -> list[str]:
    return [field for field, _ in _walk(tree, "")]


def _describe_record(record: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, field in record.model_fields.items():
        records = _records(field.annotation)
        of_field: dict[str, list[str]] = {}
        for inner in records:
            for dotted, meaning in _describe_record(inner, f"{prefix}{name}."):
                of_field.setdefault(dotted, []).append(meaning)
        # A field that several records of a union have, such as `kind`, may mean something in each.
        yield from ((dotted, " ".join(dict.fromkeys(meanings))) for dotted, meanings in of_field.items())
        if not records:
            yield f"{prefix}{name}", " ".join((field.description or "").split())
