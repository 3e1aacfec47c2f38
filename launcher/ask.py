"""Ask a trained model: fill blanks, or go on from a beginning."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
)
from transformers.utils.logging import disable_progress_bar

from launcher.errors import ModelError, UsageError
from launcher.models.configuration import positions_of
from launcher.models.local import (
    has_own_class,
    local,
    read_config,
    read_tokenizer,
    reading_weights,
    refuse_incomplete,
)
from launcher.models.moe import choose_experts_that_fit

MASK_WORD = "[MASK]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blank:
    """The most likely words for one blank, most likely first."""

    words: tuple[str, ...]
    shares: tuple[float, ...]
    """Their probabilities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How each next token is taken."""

    temperature: float = 0.0
    """0: the most likely token; above, one is drawn after the scores were divided by this."""
    top_p: float = 1.0
    """Draw from the fewest tokens that together are so likely (Holtzman et al. 2019, arXiv:1904.09751)."""
    seed: int = 0
    """Of the draws: the same seed gives a text the same answer, whatever is asked beside it."""


GREEDY = Sampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model made of one text."""

    prompt: str
    text: str
    """The prompt with its blanks filled by the most likely words, or the text the model went on with."""
    blanks: tuple[Blank, ...] = ()


def exported_folder(run_or_folder: Path) -> Path:
    """The `transformers` folder that a run's folder or a model folder means.

    Raises:
        ModelError: Neither is there.
    """
    for folder in (run_or_folder, run_or_folder / "export"):
        if (folder / "config.json").is_file():
            return folder
    raise ModelError(
        "there is no exported model here",
        str(run_or_folder),
        f"pretrain export {run_or_folder} --out {run_or_folder}/export",
    )


def fill(folder: Path, prompts: list[str], top: int = 3, trusted: Collection[str] = ()) -> list[Answer]:
    """Fill the `[MASK]`s of each text with a masked language model.

    Args:
        folder: A `transformers` folder.
        prompts: Texts; `[MASK]` stands for the model's own mask token.
        top: Words to name for each blank.
        trusted: Files in the folder whose code may run.

    Raises:
        ModelError: The model is no masked language model, not whole, or needs code that is not trusted.
        UsageError: A text has no blank, or is too long for the model.
    """
    config, tokenizer = _open(folder, trusted)
    is_masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING or has_own_class(config, "AutoModelForMaskedLM")
    if not is_masked or config.is_encoder_decoder or _is_decoder(config):
        raise ModelError(f"{config.model_type} is no masked language model", str(folder), "use `pretrain generate`")
    if tokenizer.mask_token is None:
        raise ModelError("its tokenizer has no mask token", str(folder), "give the folder of a masked language model")
    for prompt in prompts:
        check_blanks(prompt, tokenizer.mask_token)
        _room(tokenizer, prompt.replace(MASK_WORD, tokenizer.mask_token), 2, config)
    model = _read(AutoModelForMaskedLM, folder, trusted)
    return [_fill_one(model, tokenizer, prompt, top) for prompt in prompts]


def generate(
    folder: Path,
    prompts: list[str],
    max_tokens: int = 40,
    sampling: Sampling = GREEDY,
    trusted: Collection[str] = (),
) -> list[Answer]:
    """Go on from each text with a causal model, or write the missing spans with an encoder-decoder.

    Args:
        folder: A `transformers` folder.
        prompts: Texts; for an encoder-decoder with sentinels (`<extra_id_0>`) where spans are missing.
        max_tokens: Longest answer; shorter where the model ends it, or its positions end before.
        sampling: How tokens are taken.
        trusted: Files in the folder whose code may run.

    Raises:
        ModelError: The model can do neither, is not whole, or needs code that is not trusted.
        UsageError: A text has no tokens, or is too long for the model.
    """
    config, tokenizer = _open(folder, trusted)
    rooms = [_room(tokenizer, prompt, 1, config) for prompt in prompts]
    if type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING or has_own_class(config, "AutoModelForSeq2SeqLM"):
        model = _read(AutoModelForSeq2SeqLM, folder, trusted)
    elif has_own_class(config, "AutoModelForCausalLM") or (
        type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
        and (type(config) not in MODEL_FOR_MASKED_LM_MAPPING or _is_decoder(config))
    ):
        model = _read(AutoModelForCausalLM, folder, trusted)
    else:
        raise ModelError(f"{config.model_type} does not generate text", str(folder), "use `pretrain fill`")
    choose_experts_that_fit(model, model.dtype.itemsize)
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if config.is_encoder_decoder and end is None:
        raise ModelError("its tokenizer has no end token", str(folder), "give it an eos_token in tokenizer_config.json")
    answers = []
    for prompt, room in zip(prompts, rooms, strict=True):
        # A causal model was trained on text without special tokens before it; an encoder with the end token behind.
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        if config.is_encoder_decoder:
            ids = torch.cat([ids, torch.tensor([[end]])], dim=1)
        with torch.no_grad(), torch.random.fork_rng(devices=()):
            torch.manual_seed(sampling.seed)
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=min(max_tokens, room),
                num_beams=1,
                **_choices(sampling),
            )
        text = tokenizer.decode(made[0], skip_special_tokens=not config.is_encoder_decoder)
        answers.append(Answer(prompt=prompt, text=_without_gaps(text)))
    return answers


def _choices(sampling: Sampling) -> dict[str, Any]:
    """What transformers calls them; it would draw from the 50 most likely tokens unless told otherwise."""
    if not sampling.temperature:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}


def check_blanks(prompt: str, mask_token: str) -> None:
    """See that there is something to fill.

    Raises:
        UsageError: There is not.
    """
    if MASK_WORD not in prompt and mask_token not in prompt:
        raise UsageError(f"there is no blank in {prompt!r}", fix=f"write {MASK_WORD} where a word is missing")


def _open(folder: Path, trusted: Collection[str]) -> tuple[Any, Any]:
    disable_progress_bar()
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")):
        raise ModelError("the folder holds no tokenizer", str(folder), "copy the files of the model's tokenizer there")
    try:
        return read_config(folder, trusted), read_tokenizer(folder)
    except (OSError, ValueError, KeyError) as error:
        first_sentence = " ".join(str(error).split()).partition(". ")[0]
        raise ModelError(f"transformers cannot open this folder: {first_sentence}", str(folder)) from None


def _read(auto_class: Any, folder: Path, trusted: Collection[str]) -> Any:
    with reading_weights(folder):
        model, told = auto_class.from_pretrained(folder, output_loading_info=True, **local(folder, trusted))
    refuse_incomplete(told["missing_keys"], folder, "give the folder of a model that was saved with its head")
    return model.eval()


def _is_decoder(config: Any) -> bool:
    return bool(getattr(config, "is_decoder", False))


def _room(tokenizer: Any, prompt: str, num_more: int, config: Any) -> int:
    """Tokens that the model has positions for behind a text; of an encoder-decoder, in its decoder.

    Raises:
        UsageError: The text has no tokens, or leaves less room than `num_more`.
    """
    num_tokens = len(tokenizer(prompt, add_special_tokens=False).input_ids)
    positions = positions_of(config)
    if num_tokens == 0:
        raise UsageError(f"there is no token in {prompt!r}", fix="write something to go on from")
    if positions is None:
        return sys.maxsize
    if num_tokens + num_more > positions:
        raise UsageError(
            f"a text of {num_tokens} tokens is too long for a model of {positions} positions", fix="shorten it"
        )
    return positions - (1 if config.is_encoder_decoder else num_tokens)


def _fill_one(model: Any, tokenizer: Any, prompt: str, top: int) -> Answer:
    text = prompt.replace(MASK_WORD, tokenizer.mask_token)
    begin = tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id
    end = tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id
    # As rows were laid out in training; not every tokenizer has a template that does it.
    ids = torch.tensor([[begin, *tokenizer(text, add_special_tokens=False).input_ids, end]])
    places = (ids[0] == tokenizer.mask_token_id).nonzero().flatten()
    with torch.no_grad():
        shares_NV = model(input_ids=ids).logits[0, places].float().softmax(-1)
    best = shares_NV.topk(min(top, shares_NV.shape[1]))
    blanks = [
        Blank(words=tuple(_word(tokenizer, token_id) for token_id in row.tolist()), shares=tuple(values.tolist()))
        for row, values in zip(best.indices, best.values, strict=True)
    ]
    text = prompt.replace(tokenizer.mask_token, MASK_WORD)
    for blank in blanks:
        text = text.replace(MASK_WORD, blank.words[0].removeprefix("##"), 1)
    return Answer(prompt=prompt, text=text, blanks=tuple(blanks))


def _word(tokenizer: Any, token_id: int) -> str:
    """A token as people read it; of half a character, or a token of another kind, its name."""
    token: str = tokenizer.convert_ids_to_tokens(token_id)
    decoded: str = tokenizer.decode([token_id])
    return token if token.startswith("##") or "\ufffd" in decoded or not decoded.strip() else decoded


def _without_gaps(text: str) -> str:
    """Take out the spaces that a WordPiece decoder puts between Chinese characters."""
    kept = []
    for index, char in enumerate(text):
        before, after = text[index - 1 : index], text[index + 1 : index + 2]
        if char == " " and (before > "\u2e80" or after > "\u2e80"):
            continue
        kept.append(char)
    return "".join(kept)
