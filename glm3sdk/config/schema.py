"""What a run can be told: one attrs value a section of the YAML file.

The names are the field's; `docs/configuration.md` lists them beside MindFormers' own.
"""

from __future__ import annotations

from enum import StrEnum

import attrs

from glm3sdk.config.checks import flag, integer, memory, number, one_of, section, text, texts

DTYPES = ("float32", "float16", "bfloat16")
# Far above any use; an array of a far larger size is a ValueError of numpy's.
_MOST = 2**20


class RunMode(StrEnum):
    """What to do with the configuration."""

    FINETUNE = "finetune"
    EVALUATE = "evaluate"
    PREDICT = "predict"


class DataFormat(StrEnum):
    """How a data file's records become token ids.

    ADGEN trains content + summary without role tokens, as the reference does; ADGEN_CHAT
    makes a user and an assistant message of them; MULTITURN reads ToolAlpaca conversations
    and chat messages (OpenAI's form too).
    """

    ADGEN = "adgen"
    ADGEN_CHAT = "adgen-chat"
    MULTITURN = "multiturn"


class ScheduleKind(StrEnum):
    """The shape of the learning rate after warmup."""

    CONSTANT = "constant"
    COSINE = "cosine"
    POLYNOMIAL = "polynomial"


@attrs.frozen(kw_only=True)
class RuntimeSettings:
    """Where the model runs.

    Attributes:
        name: "mindspore-cpu", "mindspore-ascend", "openvino" or a plugin's; None is what the model
            was converted for, else "mindspore-cpu".
        dtype: what weights are computed in; None is the runtime's default.
        device_id: which card.
        max_device_memory: most memory to take of it, such as "59GB".
    """

    name: str | None = attrs.field(default=None, validator=text(optional=True))
    dtype: str | None = attrs.field(default=None, validator=one_of(DTYPES, optional=True))
    device_id: int = attrs.field(default=0, validator=integer(0))
    max_device_memory: str | None = attrs.field(default=None, validator=memory(optional=True))


@attrs.frozen(kw_only=True)
class ModelSettings:
    """The model to start from.

    Attributes:
        path: "tiny", a directory in Hugging Face layout, or an earlier run's directory.
        tokenizer: a tokenizer.model, where it is not the model's own.
        recompute: recompute activations in the backward pass instead of keeping them.
        flash_attention: train with Ascend's fused attention, which takes sequence lengths
            that are a multiple of 16. A CPU has no such kernel; generation on Ascend always
            uses its kernels.
    """

    path: str = attrs.field(default="tiny", validator=text())
    tokenizer: str | None = attrs.field(default=None, validator=text(optional=True))
    recompute: bool = attrs.field(default=False, validator=flag())
    flash_attention: bool = attrs.field(default=False, validator=flag())


@attrs.frozen(kw_only=True)
class LoraSettings:
    """Low-rank adapters (Hu et al. 2021) beside frozen linear layers.

    Attributes:
        rank: r.
        alpha: the adapter's output is scaled by alpha / r.
        dropout: share of the adapter's inputs dropped in training.
        targets: names of linear layers, such as "query_key_value".
    """

    rank: int = attrs.field(default=8, validator=integer(1))
    alpha: float = attrs.field(default=32.0, validator=number(above=0))
    dropout: float = attrs.field(default=0.1, validator=number(low=0, below=1))
    targets: tuple[str, ...] = attrs.field(default=("query_key_value",), validator=texts())


@attrs.frozen(kw_only=True)
class DataSettings:
    """A data file and how it is read.

    Attributes:
        path: a JSON Lines file.
        format: how records become token ids.
        columns: for the adgen formats, the keys of the source and the target text.
        max_source_length: for adgen, most tokens of the source (prefix included).
        max_target_length: for adgen, most tokens of the target.
        max_seq_length: for multiturn and adgen-chat, the sequence length.
        pack: put several short conversations into one sequence.
        shuffle: visit the records in an order that the seed decides.
    """

    path: str = attrs.field(validator=text())
    format: DataFormat = attrs.field(default=DataFormat.MULTITURN, validator=one_of(DataFormat))
    columns: tuple[str, str] = attrs.field(default=("content", "summary"), validator=texts(2))
    max_source_length: int | None = attrs.field(
        default=None, validator=integer(2, _MOST, optional=True)
    )
    max_target_length: int | None = attrs.field(
        default=None, validator=integer(1, _MOST, optional=True)
    )
    max_seq_length: int | None = attrs.field(
        default=None, validator=integer(1, _MOST, optional=True)
    )
    pack: bool = attrs.field(default=False, validator=flag())
    shuffle: bool = attrs.field(default=True, validator=flag())


@attrs.frozen(kw_only=True)
class TrainingSettings:
    """How long and how wide.

    Attributes:
        epochs: passes over the data.
        max_steps: stop after so many optimizer steps, whatever the epochs.
        batch_size: sequences of a micro-batch, on each data-parallel rank.
        accumulate: micro-batches of one optimizer step.
        seq_length: sequence length; must fit the data's lengths. None takes it from them.
        seed: of shuffling, dropout and adapter initialisation.
        log_every: steps between log lines.
    """

    epochs: int = attrs.field(default=1, validator=integer(1))
    max_steps: int | None = attrs.field(default=None, validator=integer(1, optional=True))
    batch_size: int = attrs.field(default=1, validator=integer(1, _MOST))
    accumulate: int = attrs.field(default=1, validator=integer(1))
    seq_length: int | None = attrs.field(default=None, validator=integer(1, optional=True))
    seed: int = attrs.field(default=0, validator=integer(0, 2**32 - 1))
    log_every: int = attrs.field(default=10, validator=integer(1))


@attrs.frozen(kw_only=True)
class OptimizerSettings:
    """AdamW's constants; see `glm3sdk.ports.training.AdamW`."""

    beta1: float = attrs.field(default=0.9, validator=number(low=0, below=1))
    beta2: float = attrs.field(default=0.95, validator=number(low=0, below=1))
    epsilon: float = attrs.field(default=1e-8, validator=number(above=0))
    weight_decay: float = attrs.field(default=0.1, validator=number(low=0))
    clip_norm: float | None = attrs.field(default=1.0, validator=number(above=0, optional=True))


@attrs.frozen(kw_only=True)
class ScheduleSettings:
    """The learning rate over the run.

    Attributes:
        kind: its shape after warmup.
        learning_rate: the highest one.
        end: the last one (cosine and polynomial).
        warmup_steps: steps of the linear rise from 0.
        power: of the polynomial; 1 is a straight line.
        total_steps: steps after which the rate is `end`; None is the length of the run.
    """

    kind: ScheduleKind = attrs.field(
        default=ScheduleKind.POLYNOMIAL, validator=one_of(ScheduleKind)
    )
    learning_rate: float = attrs.field(default=5e-5, validator=number(above=0))
    end: float = attrs.field(default=1e-6, validator=number(low=0))
    warmup_steps: int = attrs.field(default=0, validator=integer(0))
    power: float = attrs.field(default=1.0, validator=number(above=0))
    total_steps: int | None = attrs.field(default=None, validator=integer(1, optional=True))


@attrs.frozen(kw_only=True)
class LossScaleSettings:
    """Dynamic loss scale for float16.

    Attributes:
        initial: the first scale.
        factor: divides the scale after an overflow, multiplies it after `window` good steps.
        window: good steps before the scale grows.
    """

    initial: float = attrs.field(default=65536.0, validator=number(low=1))
    factor: float = attrs.field(default=2.0, validator=number(above=1))
    window: int = attrs.field(default=1000, validator=integer(1))


@attrs.frozen(kw_only=True)
class CheckpointSettings:
    """What the run keeps.

    Attributes:
        every: optimizer steps between checkpoints.
        keep: newest checkpoints that stay.
    """

    every: int = attrs.field(default=1000, validator=integer(1))
    keep: int = attrs.field(default=1, validator=integer(1))


@attrs.frozen(kw_only=True)
class MetricSettings:
    """Where a run's figures go.

    Attributes:
        sinks: "csv", "tensorboard" or a plugin's; without csv no plot is drawn.
    """

    sinks: tuple[str, ...] = attrs.field(default=("csv", "tensorboard"), validator=texts())


@attrs.frozen(kw_only=True)
class EvaluationSettings:
    """Evaluation during training.

    Attributes:
        during_training: False leaves eval_data to `glm3 evaluate`.
        every: optimizer steps between evaluations of the loss; None evaluates at the end.
        max_records: records used, from the first.
    """

    during_training: bool = attrs.field(default=True, validator=flag())
    every: int | None = attrs.field(default=None, validator=integer(1, optional=True))
    max_records: int | None = attrs.field(default=None, validator=integer(1, optional=True))


@attrs.frozen(kw_only=True)
class GenerationSettings:
    """How `generate` and `evaluate` write; see `glm3sdk.GenerationConfig`.

    Attributes:
        prompt_lookup_num_tokens: most tokens to guess from the text so far; 0 guesses none.
        batch_size: prompts answered together.
        max_seq_length: room of each in the kv_cache; None is what the model was built for.
        tool_choice: "auto", "none", "required" or a tool's name.
    """

    max_length: int = attrs.field(default=8192, validator=integer(1))
    max_new_tokens: int | None = attrs.field(default=None, validator=integer(1, optional=True))
    do_sample: bool = attrs.field(default=False, validator=flag())
    temperature: float = attrs.field(default=0.8, validator=number(low=0))
    top_k: int = attrs.field(default=0, validator=integer(0))
    top_p: float = attrs.field(default=0.8, validator=number(above=0, high=1))
    repetition_penalty: float = attrs.field(default=1.0, validator=number(above=0))
    seed: int | None = attrs.field(default=None, validator=integer(0, optional=True))
    prompt_lookup_num_tokens: int = attrs.field(default=0, validator=integer(0))
    batch_size: int = attrs.field(default=8, validator=integer(1, _MOST))
    max_seq_length: int | None = attrs.field(default=None, validator=integer(1, optional=True))
    tool_choice: str | None = attrs.field(default=None, validator=text(optional=True))


@attrs.frozen(kw_only=True)
class ParallelSettings:
    """How many cards share the run.

    Attributes:
        data: data-parallel replicas.
        tensor: cards that share one replica's layers.
        optimizer_shard: each data-parallel rank keeps a share of the optimizer's state.
    """

    data: int = attrs.field(default=1, validator=integer(1))
    tensor: int = attrs.field(default=1, validator=integer(1))
    optimizer_shard: bool = attrs.field(default=False, validator=flag())


@attrs.frozen(kw_only=True)
class RunConfig:
    """A whole run.

    Every value is checked alone as it is built; `check_config` of `glm3sdk.config.loader` looks for
    values that contradict each other.

    Attributes:
        output: directory of the result, its metrics and its checkpoints; or a URI (obs://...).
        lora: None trains every weight.
        loss_scale: None needs none (float32 and bfloat16).
    """

    mode: RunMode = attrs.field(default=RunMode.FINETUNE, validator=one_of(RunMode))
    output: str = attrs.field(default="output", validator=text())
    runtime: RuntimeSettings = attrs.field(
        default=RuntimeSettings(), validator=section(RuntimeSettings)
    )
    model: ModelSettings = attrs.field(default=ModelSettings(), validator=section(ModelSettings))
    lora: LoraSettings | None = attrs.field(
        default=None, validator=section(LoraSettings, optional=True)
    )
    train_data: DataSettings | None = attrs.field(
        default=None, validator=section(DataSettings, optional=True)
    )
    eval_data: DataSettings | None = attrs.field(
        default=None, validator=section(DataSettings, optional=True)
    )
    training: TrainingSettings = attrs.field(
        default=TrainingSettings(), validator=section(TrainingSettings)
    )
    optimizer: OptimizerSettings = attrs.field(
        default=OptimizerSettings(), validator=section(OptimizerSettings)
    )
    schedule: ScheduleSettings = attrs.field(
        default=ScheduleSettings(), validator=section(ScheduleSettings)
    )
    loss_scale: LossScaleSettings | None = attrs.field(
        default=None, validator=section(LossScaleSettings, optional=True)
    )
    checkpoints: CheckpointSettings = attrs.field(
        default=CheckpointSettings(), validator=section(CheckpointSettings)
    )
    metrics: MetricSettings = attrs.field(
        default=MetricSettings(), validator=section(MetricSettings)
    )
    evaluation: EvaluationSettings = attrs.field(
        default=EvaluationSettings(), validator=section(EvaluationSettings)
    )
    generation: GenerationSettings = attrs.field(
        default=GenerationSettings(), validator=section(GenerationSettings)
    )
    parallel: ParallelSettings = attrs.field(
        default=ParallelSettings(), validator=section(ParallelSettings)
    )

    @property
    def use_past(self) -> bool:
        """Whether the run keeps a kv_cache: training has none, the other modes do."""
        return self.mode is not RunMode.FINETUNE
