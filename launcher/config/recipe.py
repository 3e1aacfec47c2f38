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

from launcher.config.batch import BatchSchedule, BatchStage
from launcher.config.guards import GuardsConfig
from launcher.config.objectives import MaskedObjective, ObjectiveConfig
from launcher.config.record import Decay, FolderPath, Record, Share
from launcher.errors import RecipeError


class CorpusConfig(Record):
    """One corpus of a mixture."""

    shards: FolderPath
    """Folder of prepared shards."""
    weight: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1.0
    """Its part of the samples, relative to the others'; 0 leaves it out until a change brings it in."""
    exclude: FolderPath | None = None
    """File that names documents to leave out, a line each: FILE:LINE, or the xxh3-128 of the text."""


class WeightChange(Record):
    """Other weights from a step on."""

    step: PositiveInt
    """Number of steps taken when the weights change."""
    weights: dict[str, Annotated[float, Field(ge=0.0, allow_inf_nan=False)]]
    """By corpus; one that is not named keeps its weight."""


class DataConfig(Record):
    """Which text, cut how."""

    shards: FolderPath | None = None
    """Folder of prepared shards (`pretrain prepare … --out FOLDER`); or give a `mixture`."""
    seq_len: Annotated[int, Field(ge=8)]
    """Tokens of one training sequence, special tokens included."""
    mixture: dict[str, CorpusConfig] = Field(default_factory=dict)
    """Several folders of shards by name, in place of `shards`: `{law: {shards: data/law/shards, weight: 0.7}, …}`."""
    changes: tuple[WeightChange, ...] = ()
    """Weights that change at a step. A run that goes on may add changes that lie ahead, and corpora they bring in."""
    packing: Literal["concat", "bestfit", "pad"] = "concat"
    """`concat` cuts the stream of documents into sequences; `bestfit` packs whole documents, and cuts only those that
    are longer than a sequence; `pad` puts one document into each, and drops what does not fit."""
    documents: Literal["joined", "apart"] = "joined"
    """Whether the documents of a sequence see each other: `apart` keeps attention and positions inside a document, and
    predicts nothing across its end. It costs a mask of sequence by sequence, except with flash and flex attention."""
    exclude: FolderPath | None = None
    """File that names documents to leave out, a line each: FILE:LINE, or the xxh3-128 of the text. No other document
    moves: their tokens become padding without attention or loss."""
    verify: Literal["touch", "open", "off"] = "touch"
    """When blocks of the shards are held against their checksums: when first touched, all at the start, never."""
    corpus: tuple[str, ...] = ()
    """Files the shards are made from. Only used to print the command that prepares them."""
    tokenizer: FolderPath | None = None
    """Tokenizer folder the shards were made with; where it exists, training checks that it is the same one."""

    @field_validator("corpus", "changes", mode="before")
    @classmethod
    def _as_tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _is_one_or_several(self) -> DataConfig:
        if (self.shards is None) == (not self.mixture):
            raise ValueError("give either shards (one folder) or mixture (several)")
        if self.mixture and self.exclude is not None:
            raise ValueError("with a mixture, exclude stands beside the shards it is about: mixture.NAME.exclude")
        steps = [change.step for change in self.changes]
        if steps != sorted(set(steps)):
            raise ValueError(f"changes come one after another, not at steps {steps}")
        unknown = {name for change in self.changes for name in change.weights} - set(self.corpora)
        if unknown:
            raise ValueError(f"changes name {', '.join(sorted(unknown))}, the mixture has {', '.join(self.corpora)}")
        for weights in self.phases().values():
            if not any(weights.values()):
                raise ValueError("at every step some corpus needs a weight above 0")
        return self

    @property
    def corpora(self) -> dict[str, CorpusConfig]:
        """Every folder of shards by its name; of a single one, the folder's."""
        if self.shards is None:
            return self.mixture
        return {self.shards.name: CorpusConfig(shards=self.shards, exclude=self.exclude)}

    @property
    def tokenizer_folder(self) -> Path:
        """The tokenizer beside the shards; that of any corpus, since all have the same."""
        return next(iter(self.corpora.values())).shards / "tokenizer"

    @property
    def keeps_documents_apart(self) -> bool:
        """Whether a row may hold several documents that do not see each other."""
        return self.documents == "apart" and self.packing != "pad"

    def phases(self) -> dict[int, dict[str, float]]:
        """The weights of all corpora from each step on at which they change, from step 0."""
        weights = {name: corpus.weight for name, corpus in self.corpora.items()}
        phases = {0: weights}
        for change in self.changes:
            weights = {**weights, **change.weights}
            phases[change.step] = weights
        return phases


class ModelConfig(Record):
    """The `transformers` model: from scratch by its numbers, or continued from a folder."""

    family: str | None = None
    """`model_type` of transformers: bert, modernbert, gpt2, llama, qwen3_moe, t5, … Needed from scratch."""
    continue_from: FolderPath | None = None
    """Folder of a `transformers` model whose weights training starts from, in place of `family` and the numbers."""
    hidden_size: PositiveInt | None = None
    """Width of the residual stream."""
    num_hidden_layers: PositiveInt | None = None
    """Number of layers (of the encoder and of the decoder each, for T5)."""
    num_attention_heads: PositiveInt | None = None
    """Attention heads of a layer."""
    num_key_value_heads: PositiveInt | None = None
    """Key and value heads of a layer (grouped-query attention), where the family has them; as many as attention heads
    unless given."""
    intermediate_size: PositiveInt | None = None
    """Width of the feed-forward layer."""
    max_position_embeddings: PositiveInt | None = None
    """Longest sequence the model can take, where the family has such a limit."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Any other field of the family's transformers configuration, by its own name."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"] = "sdpa"
    """Attention implementation."""
    activation_checkpointing: bool | PositiveInt = False
    """Recompute activations in the backward pass: less memory, about a third more time. `true` for every layer, a
    number k for every k-th."""
    initialisation: Literal["family", "depth_scaled"] = "family"
    """`family`: as its authors prescribe; `depth_scaled`: the matrices that write into the residual stream are drawn
    smaller by the root of twice the number of layers (GPT-2's, Radford et al. 2019, section 2.3)."""
    freeze: tuple[str, ...] = ()
    """Parameters that do not learn, as patterns of their names (`*embeddings*`, `model.layers.[0-3].*`): they take no
    memory for gradients and optimizer. What is tied to one of them does not learn either."""
    compile: bool = False
    """Let torch.compile fuse what it can; the first steps take minutes."""
    liger: bool = False
    """Replace norms, rotary positions and gated feed-forwards by Liger's fused kernels (a GPU, `pip install
    liger-kernel`), where it has them for the family."""
    chunked_loss: Literal["auto", "on", "off"] = "auto"
    """Compute the loss of a few hundred tokens at a time, so that the scores of a batch never lie in memory together;
    `auto` where they would take more than 256 MiB."""
    experts: Literal["auto", "eager", "batched_mm", "grouped_mm", "megablocks"] = "auto"
    """How a mixture's experts are computed: `auto` is grouped_mm where the family has it, else eager; `megablocks`
    needs CUDA and that package."""
    expert_parallel: PositiveInt = 1
    """Ranks that share the experts of a layer, each computing its part of them for all (DeepSpeed's AutoEP): at ZeRO
    stage 3, mixtral and qwen3_moe."""
    sequence_parallel: PositiveInt = 1
    """Ranks that compute every sequence together, a part each (DeepSpeed's Ulysses): for sequences whose activations do
    not fit on one device. Decoders of llama, qwen3, mistral, olmo and gpt2; data.seq_len and the heads must divide."""
    router_aux_loss: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = None
    """Mixtures of experts: weight of the loss that spreads tokens over the experts (Fedus et al. 2021, equation 4, for
    every layer; their mean). Without it, the family's own, `router_aux_loss_coef` of its configuration."""
    router_z_loss: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    """Mixtures of experts: weight of the routers' mean squared log partition function (ST-MoE's is 1e-3, Zoph et al.
    2022, section 3.3)."""

    @field_validator("freeze", mode="before")
    @classmethod
    def _as_patterns(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


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
        if not isinstance(self.objective, MaskedObjective) or self.objective.sentence_pairs == "none":
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
