"""A finetune run's plan from its configuration; neither weights nor data need be there."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from glm3sdk.adapters.mindspore.profiles import PROFILES, DeviceProfile
from glm3sdk.adapters.storage.hugging_face import CONFIG_FILE, TOKENIZER_FILE
from glm3sdk.adapters.storage.jsonl import JsonLinesFile
from glm3sdk.bootstrap.models import BUNDLED, is_fetched, model_directory
from glm3sdk.bootstrap.pulling import pull_without_weights
from glm3sdk.bootstrap.rank_tables import read_rank_table
from glm3sdk.bootstrap.runtimes import DEFAULT_RUNTIME, runtime_factory
from glm3sdk.bootstrap.serving import load_tokenizer
from glm3sdk.config.loader import check_config, load_config
from glm3sdk.config.schema import RunConfig
from glm3sdk.domain.communication import Collectives
from glm3sdk.domain.dataset import Dropped
from glm3sdk.domain.lora import ADAPTER_CONFIG, Lora
from glm3sdk.domain.model import PRESETS, Glm3Config
from glm3sdk.domain.rank_table import RankTable
from glm3sdk.errors import InvalidCheckpointError, InvalidConfigError, UserError
from glm3sdk.services.datasets import open_dataset
from glm3sdk.services.planning import NPROC, plan_run
from glm3sdk.services.record_layout import training_layout
from glm3sdk.services.run_plan import RunPlan

_MOST_ADAPTERS = 8

# Steps of float32 models of 4 and 8 layers, hidden 512, 4 x 512 tokens, full and LoRA: peak
# resident memory beyond weights and state was 3.8 to 4.9 times what is planned.
_ON_A_CPU = (
    "on a CPU MindSpore frees little within a step, and recomputing saves nothing: "
    "measured steps took 4 to 5 times these activations and logits"
)


def load_plan(
    config: RunConfig | str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    devices: int | None = None,
    nproc: int | None = None,
    rank_table: Path | None = None,
) -> RunPlan:
    """Plan a finetune run; nothing is loaded but the model's config.json and the data.

    Args:
        config: a `RunConfig`, a YAML file, or a preset's name. Its `model.path` may name
            published hyper-parameters too, such as "glm3-6b".
        overrides: for a file or preset, `key=value` texts.
        devices: cards that there are; None is what the configuration asks for.
        nproc: cards of a server; None is 8.
        rank_table: a HCCL rank table, which tells both.

    Raises:
        InvalidRunConfigError: the configuration is wrong, or does not divide over the cards.
        InvalidRankTableError: the rank table cannot be used.
        UserError: a rank table and another number of cards are given.
        InvalidCheckpointError: there is no such model.
        InvalidConfigError: its config.json cannot be used.
        UnknownNameError: no runtime goes by that name.
        UnsupportedOptionError: the runtime does not compute in that dtype.
        InvalidDatasetError: the data file is there and cannot be used.
    """
    if isinstance(config, RunConfig):
        check_config(config)
    else:
        config = load_config(os.fspath(config), overrides=overrides)
    runtime = config.runtime.name or DEFAULT_RUNTIME
    runtime_factory(runtime)
    profile = PROFILES.get(runtime)
    if profile is None:
        dtype = config.runtime.dtype or "float32"
    else:
        dtype = profile.choose_dtype(config.runtime.dtype)
    if rank_table is not None:
        if devices is not None or nproc is not None:
            raise UserError("a rank table tells the cards: leave --devices and --nproc out")
        table = read_rank_table(rank_table)
        devices, nproc = table.rank_size, _ranks_together(table)
    model, directory = _model(config.model.path, adapters_left=_MOST_ADAPTERS)
    plan = partial(
        plan_run,
        config,
        model,
        dtype=dtype,
        fused=profile is not None and profile.fused_swiglu,
        collectives=_collectives(profile),
        devices=devices,
        nproc=nproc or NPROC,
    )
    plan()  # one that cannot be is refused before a large data file is read
    records, *notes = _records(config, model, directory)
    if profile is not None and profile.device_target == "CPU":
        notes.append(_ON_A_CPU)
    return plan(records=records, notes=tuple(note for note in notes if note))


def _collectives(profile: DeviceProfile | None) -> Collectives:
    if profile is None:
        return Collectives()
    return Collectives(
        gathers_in_groups=profile.gathers_in_groups, reduce_scatter=profile.reduce_scatter
    )


def _ranks_together(table: RankTable) -> int:
    """How many ranks in a row are on one server, wherever one looks in the table."""
    together = 0
    for server in table.servers:
        ranks = sorted(device.rank_id for device in server.devices)
        in_a_row = ranks[-1] - ranks[0] == len(ranks) - 1
        together = math.gcd(together, len(ranks) if in_a_row else 1)
    return together


def _model(name: str, *, adapters_left: int) -> tuple[Glm3Config, Path | None]:
    """The hyper-parameters, and the directory where there is one."""
    if name in PRESETS and name not in BUNDLED and not Path(name).exists():
        return PRESETS[name], None
    try:
        # A plan needs no weights.
        path = pull_without_weights(name) if is_fetched(name) else model_directory(name)
    except InvalidCheckpointError as exc:
        published = ", ".join(preset for preset in PRESETS if preset not in BUNDLED)
        raise InvalidCheckpointError(
            f"model.path: {exc}; to plan without a model, set it to one of {published}"
        ) from exc
    if not (path / ADAPTER_CONFIG).is_file():
        return Glm3Config.from_hugging_face(_read_json(path / CONFIG_FILE)), path
    if not adapters_left:
        raise InvalidCheckpointError(f"{path}: too many adapters on one another")
    _, base = Lora.from_peft(_read_json(path / ADAPTER_CONFIG))
    config, below = _model(base, adapters_left=adapters_left - 1)
    return config, path if (path / TOKENIZER_FILE).is_file() else below


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise InvalidConfigError(f"{path} cannot be read: {exc}") from exc


def _records(
    config: RunConfig, model: Glm3Config, directory: Path | None
) -> tuple[int | None, str | None]:
    """Sequences of the training data, and what must be said about that number."""
    settings = config.train_data
    if settings is None:
        return None, None
    if not Path(settings.path).exists():
        return None, f"no file {settings.path}: how many steps an epoch has is not known"
    source = JsonLinesFile(Path(settings.path))
    tokenizer = config.model.tokenizer or (directory and directory / TOKENIZER_FILE)
    if tokenizer and Path(tokenizer).is_file():
        dataset = open_dataset(
            source,
            settings,
            load_tokenizer(tokenizer),
            seq_length=config.training.seq_length,
            padded_vocab_size=model.padded_vocab_size,
        )
        return len(dataset), None
    layout = training_layout(settings, seq_length=config.training.seq_length)
    records = sum(not isinstance(layout.parse(line), Dropped) for line in source.lines())
    return records, "no tokenizer: records are counted as if each took a sequence and taught"
