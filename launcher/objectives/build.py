"""From a recipe's objective section to the objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from launcher.config.objectives import (
    CausalObjective,
    MaskedObjective,
    MixedObjective,
    Mode,
    ModeTokens,
    ObjectiveConfig,
    PrefixObjective,
    SpanObjective,
    UL2Objective,
)
from launcher.errors import ObjectiveError, ShardError
from launcher.objectives.base import Objective
from launcher.objectives.clm import CausalLM
from launcher.objectives.mixed import ObjectiveMixture
from launcher.objectives.mlm import MaskedLM
from launcher.objectives.pairs import MaskedPairs
from launcher.objectives.prefix import CausalPrefixLM, PrefixLM
from launcher.objectives.span import SpanCorruption, natural_window
from launcher.shards.manifest import TokenizerInfo

MODES: tuple[Mode, ...] = ("R", "S", "X")


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """All that objectives follow from besides their own section of the recipe."""

    seq_len: int
    """Tokens of one training sequence."""
    tokenizer: TokenizerInfo
    """Of the shards."""
    seed: int
    """Chooses the noise of every position."""
    tells_words: Mapping[str, bool]
    """Whether the shards of each corpus tell words, by name."""

    def build(self, config: ObjectiveConfig) -> Objective:
        """The objective.

        Raises:
            ObjectiveError: The tokenizer or the length cannot serve it.
            ShardError: It masks words, and a corpus does not tell them.
        """
        if not isinstance(config, MixedObjective | UL2Objective):
            return self._one(config, "tokenizer", None)
        # Windows of one length, so that each part can read every sample: those of the part that fits the least.
        windows = [
            self._natural_window(part, config.mode_tokens)
            for part in config.parts
            if isinstance(part, SpanObjective | PrefixObjective)
        ]
        parts = tuple(self._one(part, config.mode_tokens, min(windows, default=None)) for part in config.parts)
        return ObjectiveMixture(parts, tuple(part.weight for part in config.parts), self.seed)

    def _one(
        self,
        config: MaskedObjective | CausalObjective | SpanObjective | PrefixObjective,
        mode_tokens: ModeTokens,
        window: int | None,
    ) -> Objective:
        seq_len, seed, special = self.seq_len, self.seed, self.tokenizer.special
        match config:
            case MaskedObjective():
                if config.unit in ("word", "ngram"):
                    self._refuse_wordless()
                masked = MaskedLM(
                    seq_len,
                    seed,
                    special,
                    self.tokenizer.vocab_size,
                    mask_share=config.mask_share,
                    unit=config.unit,
                    max_ngram=config.max_ngram,
                    has_words=any(self.tells_words.values()),
                )
                return masked if config.sentence_pairs == "none" else MaskedPairs(masked)
            case CausalObjective():
                return CausalLM(
                    seq_len, special, seed=seed, fim_share=config.fim_share, fim_spm_share=config.fim_spm_share
                )
            case SpanObjective():
                mode = self._mode_token(config.mode, mode_tokens)
                return SpanCorruption(seq_len, seed, special, config.density, config.mean_span, mode, window)
            case PrefixObjective(head="causal"):
                return CausalPrefixLM(seq_len, seed, special, config.written_share)
            case PrefixObjective():
                mode = self._mode_token(config.mode, mode_tokens)
                return PrefixLM(seq_len, seed, special, mode, window, config.written_share)

    def _refuse_wordless(self) -> None:
        """Raises ShardError where a corpus does not tell words."""
        for name, tells in self.tells_words.items():
            if not tells:
                raise ShardError(
                    "the shards do not say which tokens continue a word",
                    f"corpus {name!r}",
                    "prepare them again with --words, or mask single tokens",
                )

    def _natural_window(self, config: SpanObjective | PrefixObjective, mode_tokens: ModeTokens) -> int:
        room = self.seq_len - (config.mode is not None and mode_tokens != "none")
        return natural_window(room, config.density, config.mean_span) if isinstance(config, SpanObjective) else room

    def _mode_token(self, mode: Mode | None, mode_tokens: ModeTokens) -> int | None:
        """The token that names a kind of denoiser.

        Raises:
            ObjectiveError: The tokenizer has none, or lacks the one given.
        """
        if mode is None or mode_tokens == "none":
            return None
        ids = self.tokenizer.special.modes if mode_tokens == "tokenizer" else mode_tokens
        last = list(self.tokenizer.special.sentinels[-len(MODES) :])
        fix = f"objective.mode_tokens={str(last).replace(' ', '')}, its last sentinels, or " if len(last) == 3 else ""
        if len(ids) != len(MODES):
            raise ObjectiveError(
                f"the objective names its denoisers {', '.join(MODES)}, and the tokenizer has no tokens for them",
                "objective.mode_tokens",
                f"use {fix}objective.mode_tokens=none (of a mixture), or `pretrain tokenizer --kind bpe` or `unigram`",
            )
        if len(set(ids)) != len(ids) or not all(0 <= token_id < self.tokenizer.vocab_size for token_id in ids):
            raise ObjectiveError(
                f"{list(ids)} are not three tokens of a tokenizer with {self.tokenizer.vocab_size}",
                "objective.mode_tokens",
                f"use {fix}none",
            )
        return ids[MODES.index(mode)]
