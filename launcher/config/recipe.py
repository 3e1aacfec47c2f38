"""The run as its user asked for it: frozen records, each field with its meaning below it.

A record checks itself; a check that needs two records stands in `Recipe`. What a field means is read from these
strings by `pretrain recipe --explain`, so they are written for users.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from launcher.config.batch import BatchPlan, BatchSchedule, BatchStage, plan_batch
from launcher.config.data import DataConfig
from launcher.config.guards import GuardsConfig
from launcher.config.model import ModelConfig
from launcher.config.objectives import ObjectiveConfig
from launcher.config.record import Decay, FolderPath, Record, Share
from launcher.errors import RecipeError


class WarmupStage(Record):
    """The global batch from a step on."""

    step: Annotated[int, Field(ge=0)] | None = None
    """Number of steps taken when it begins."""
    samples: Annotated[int, Field(ge=0)] | None = None
    """Sequences trained on when it begins, in place of `step`."""
    global_batch: PositiveInt
    """Sequences of one optimizer step, over all ranks; or its tokens, written `16384 tokens`."""

    @model_validator(mode="after")
    def _begins_somewhere(self) -> WarmupStage:
        if (self.step is None) == (self.samples is None):
            raise ValueError("a stage begins either at a step or at a number of samples")
        return self


class BatchConfig(Record):
    """How many sequences make a step, and how many go through at once."""

    global_batch: PositiveInt
    """Sequences of one optimizer step, over all ranks; or its tokens, written `65536 tokens`, a multiple of
    data.seq_len. It stays the same whatever the number of ranks."""
    micro_batch: PositiveInt | Literal["auto"] | None = None
    """Sequences of one forward pass on one rank; without it, all of a rank's share at once; `auto` measures before the
    first step how many fit into memory, and a run that goes on keeps what fits."""
    warmup: tuple[WarmupStage, ...] = ()
    """Smaller batches in the beginning: `[{step: 0, global_batch: 64}, {step: 1000, global_batch: 256}]`, growing; the
    last is batch.global_batch. A stage may begin at `samples` in place of a step."""

    @field_validator("warmup", mode="before")
    @classmethod
    def _as_tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("micro_batch", mode="before")
    @classmethod
    def _is_a_number_or_auto(cls, value: object) -> object:
        if value is None or value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
            return value
        raise ValueError("a number of sequences from 1 on, or auto")

    @model_validator(mode="after")
    def _grows_to_the_global_batch(self) -> BatchConfig:
        if not self.warmup:
            return self
        sizes = [stage.global_batch for stage in self.warmup]
        if (self.warmup[0].step or self.warmup[0].samples or 0) != 0:
            raise ValueError("the first stage of warmup begins at step: 0")
        if any(after <= before for before, after in pairwise(sizes)):
            raise ValueError(f"warmup grows from stage to stage, not {' → '.join(map(str, sizes))}")
        if sizes[-1] != self.global_batch:
            raise ValueError(f"the last stage of warmup is global_batch, {self.global_batch}, not {sizes[-1]}")
        steps = [stage.first_step for stage in self.schedule.stages]
        if any(after <= before for before, after in pairwise(steps)):
            raise ValueError(f"the stages of warmup begin one after another, not at steps {steps}")
        return self

    @property
    def schedule(self) -> BatchSchedule:
        """The samples of every step."""
        if not self.warmup:
            return BatchSchedule.constant(self.global_batch)
        stages = [BatchStage(0, 0, self.warmup[0].global_batch)]
        for given in self.warmup[1:]:
            before = stages[-1]
            # A stage that begins at a number of samples begins with the first step that has consumed them.
            num_steps = (
                given.step - before.first_step
                if given.step is not None
                else -(-((given.samples or 0) - before.first_position) // before.global_batch)
            )
            position = before.first_position + num_steps * before.global_batch
            stages.append(BatchStage(before.first_step + num_steps, position, given.global_batch))
        return BatchSchedule(tuple(stages))


class OptimConfig(Record):
    """AdamW. Biases, norms and other one-dimensional parameters are not decayed."""

    lr: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    """Highest learning rate of the schedule."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay of the first and second moment (GPT-3's, Brown et al. 2020, appendix B)."""
    eps: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    """Decoupled weight decay (GPT-3's)."""
    grad_clip: Annotated[float, Field(ge=0.0)] = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    host_adam: Literal["auto", "cpu_adam", "torch"] = "auto"
    """Of an optimizer that --ds_config offloads: DeepSpeed's CPU Adam, compiled on first use, or torch's AdamW on the
    host; `auto` is CPU Adam where it can be compiled, else torch's."""

    @field_validator("betas", mode="before")
    @classmethod
    def _as_tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value


class ScheduleConfig(Record):
    """The learning rate over the run, a pure function of the step."""

    kind: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """What follows the warm-up: no change, a straight fall, a cosine fall, or warm-up-stable-decay."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear rise from zero."""
    final_share: Share = 0.1
    """Learning rate of the last step as a share of the highest."""
    decay_share: Share = 0.2
    """`wsd` only: the last share of the steps, in which the rate falls (Hu et al. 2024, arXiv:2404.06395)."""


class TrainConfig(Record):
    """Length, precision and seed."""

    num_steps: PositiveInt
    """Optimizer steps of the whole run."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "bf16_autocast"] = "bf16"
    """bf16 and fp16 keep fp32 master weights; `bf16_autocast` keeps fp32 weights and computes matmuls in bf16;
    `auto` is bf16_autocast where the hardware multiplies bf16 and fp32 elsewhere."""
    z_loss: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    """Weight of the squared log partition function beside the loss: keeps scores from drifting (PaLM's is 1e-4)."""
    seed: int = 0
    """Decides initial weights, order, noise and dropout."""
    time_collectives: Annotated[int, Field(ge=0)] = 0
    """The last so many steps wait for each of DeepSpeed's collectives and time it; `metrics.jsonl` then has a line of
    what every rank waited (`pretrain scale` asks for it)."""


class EvalConfig(Record):
    """Validation on the documents held out when the shards were made."""

    every_steps: Annotated[int, Field(ge=0)] = 0
    """Steps between validations; 0 validates only before the first and after the last step."""
    max_samples: PositiveInt | None = None
    """Sequences of one validation; without it, the whole validation split."""
    micro_batch: PositiveInt = 16
    """Sequences of one validation pass on one rank."""
    prompts: tuple[str, ...] = ()
    """Texts the exported model answers when the run is done: with a [MASK] to fill, or a beginning to go on from."""

    @field_validator("prompts", mode="before")
    @classmethod
    def _as_tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value


class CheckpointConfig(Record):
    """When to save, and how much to keep."""

    every_steps: Annotated[int, Field(ge=0)] = 0
    """Steps between checkpoints; 0 saves only at the end."""
    asynchronous: bool = True
    """Copy the state to host memory and train on while it is written; a rank then needs as much more host memory as its
    part of a checkpoint. `false`, where a host has no room for that, and where the optimizer lies on NVMe: training
    waits while it is written, through 16 MiB."""
    keep_last: PositiveInt = 2
    """Newest complete checkpoints to keep."""
    keep_every: Annotated[int, Field(ge=0)] = 0
    """Keep also those of steps that are a multiple of it; 0 for none."""
    keep_best: Annotated[int, Field(ge=0)] = 0
    """Keep also so many with the lowest validation loss, of those saved at a step with a validation."""
    retry_s: Annotated[float, Field(ge=0.0, le=3600.0)] = 60.0
    """Seconds over which a save that failed is tried again, before training goes on without it."""


class Recipe(Record):
    """One whole run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the run and of its folder."""
    data: DataConfig
    objective: ObjectiveConfig
    model: ModelConfig
    batch: BatchConfig
    optim: OptimConfig
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guards: GuardsConfig = GuardsConfig()
    runs: FolderPath = Path("runs")
    """Folder that holds the runs' folders."""

    @model_validator(mode="before")
    @classmethod
    def _tokens_are_whole_sequences(cls, tree: Any) -> Any:
        """A batch in tokens becomes one in sequences."""
        batch, data = (tree.get(name) for name in ("batch", "data")) if isinstance(tree, dict) else (None, None)
        if not isinstance(batch, dict) or not isinstance(data, dict):
            return tree
        seq_len = data.get("seq_len")
        if not isinstance(seq_len, int) or seq_len < 1:
            return tree
        batch = _in_sequences(batch, seq_len, "batch")
        if isinstance(batch.get("warmup"), list | tuple):
            stages = [_in_sequences(stage, seq_len, "batch.warmup") for stage in batch["warmup"]]
            batch = {**batch, "warmup": stages}
        return {**tree, "batch": batch}

    @model_validator(mode="after")
    def _pairs_are_of_one_document(self) -> Recipe:
        if not self.objective.has_pairs:
            return self
        wanted = {"packing": "concat", "documents": "joined"}
        for field, only in wanted.items():
            if getattr(self.data, field) != only:
                raise RecipeError(
                    f"sentence pairs are made of the sentences of one document each: {field} "
                    f"{getattr(self.data, field)} has nothing to do there",
                    f"data.{field}",
                    f"delete it from the recipe ({only} is the default), or use objective.sentence_pairs=none",
                )
        return self

    @model_validator(mode="after")
    def _sequences_can_be_shared(self) -> Recipe:
        ranks = self.model.sequence_parallel
        if ranks == 1:
            return self
        if self.data.seq_len % ranks:
            below = self.data.seq_len // ranks * ranks
            nearest = " or ".join(str(length) for length in (below, below + ranks) if length >= 8)
            raise RecipeError(
                f"sequences of {self.data.seq_len} tokens cannot be cut among {ranks} ranks",
                "data.seq_len",
                f"use {nearest}",
            )
        # Ulysses 0.19.8 drops masks: what is hidden by more than the order of the places would be seen.
        for refused, what, where, fix in (
            (self.objective.head != "causal", "ranks share the sequences of decoders only", "objective",
             "use objective.kind=clm"),
            (self.data.keeps_documents_apart, "shared sequences cannot keep documents apart", "data.documents",
             "use data.documents=joined, or data.packing=pad"),
            (any(corpus.exclude for corpus in self.data.corpora.values()), "shared sequences cannot hide documents",
             "data.exclude", "leave it out, or prepare the shards without them"),
            (self.model.attention not in ("sdpa", "flash_attention_2", "flash_attention_3"),
             f"shared sequences cannot be computed by {self.model.attention}", "model.attention",
             "use model.attention=sdpa"),
            (self.model.expert_parallel > 1, "ranks share either experts or sequences", "model.expert_parallel",
             "use model.expert_parallel=1"),
        ):  # fmt: skip
            if refused:
                raise RecipeError(what, where, f"{fix}; or model.sequence_parallel=1")
        return self

    @model_validator(mode="after")
    def _matrices_can_be_shared(self) -> Recipe:
        model = self.model
        if model.tensor_parallel == 1:
            return self
        for refused, what, where, fix in (
            (model.sequence_parallel > 1, "ranks share either sequences or matrices", "model.sequence_parallel",
             "use model.sequence_parallel=1"),
            (model.expert_parallel > 1, "ranks share either experts or matrices", "model.expert_parallel",
             "use model.expert_parallel=1"),
            (model.liger, "Liger's layers do not add up what ranks have of a matrix", "model.liger",
             "use model.liger=false"),
            (model.compile, "torch.compile was not tried with matrices that ranks share", "model.compile",
             "use model.compile=false"),
        ):  # fmt: skip
            if refused:
                raise RecipeError(what, where, f"{fix}; or model.tensor_parallel=1")
        return self

    def cut_batch(self, world_size: int) -> BatchPlan:
        """How the steps of this run are cut on so many ranks; raises what `plan_batch` does."""
        model, batch = self.model, self.batch
        return plan_batch(batch.schedule, batch.micro_batch, world_size, model.sequence_parallel, model.tensor_parallel)

    @property
    def run_folder(self) -> Path:
        """Where everything of this run goes."""
        return self.runs / self.name


def _in_sequences(batch: Any, seq_len: int, where: str) -> Any:
    """A section whose `global_batch` is given in tokens, with it in sequences.

    Raises:
        RecipeError: The tokens are no whole number of sequences.
    """
    given = batch.get("global_batch") if isinstance(batch, dict) else None
    tokens = re.fullmatch(r"([0-9][0-9_]*) tokens", given) if isinstance(given, str) else None
    if tokens is None:
        return batch
    num_tokens = int(tokens[1])
    num_sequences, over = divmod(num_tokens, seq_len)
    if over or not num_sequences:
        below = [num_sequences * seq_len] if num_sequences else []
        nearest = " or ".join(f"{value} tokens" for value in (*below, (num_sequences + 1) * seq_len))
        raise RecipeError(
            f"{num_tokens} tokens are no whole number of sequences of {seq_len}",
            f"{where}.global_batch",
            f"use {nearest}",
        )
    return {**batch, "global_batch": num_sequences}
