"""Read a MindFormers configuration of ChatGLM3 as it is.

The keys are those of MindFormers' `configs/glm3/*.yaml` (and `glm2` for LoRA). A key that is
not used here is named with its line; one that asks for what this package cannot do is a
problem; one that asks for what it always does counts as used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import attrs

from glm3sdk.config.checks import shown
from glm3sdk.config.document import Node
from glm3sdk.config.mindformers_keys import (
    ALWAYS,
    EMPTY,
    LOADERS,
    MODEL,
    MODES,
    OPTIMIZERS,
    RUNTIMES,
    SAME,
    SAME_IN_DATA,
    SCHEDULES,
)
from glm3sdk.errors import Problem


@attrs.frozen
class Translation:
    """A MindFormers configuration in our schema.

    Attributes:
        tree: ours, each value with its place in the original file.
        ignored: every key that was not used, as `file:line: key (why)`.
        problems: what the file asks for and this package does not do.
    """

    tree: Node
    ignored: tuple[str, ...]
    problems: tuple[Problem, ...]


def is_mindformers(tree: Node) -> bool:
    """Whether a tree has MindFormers' sections and not ours."""
    model = tree.value.get("model")
    in_model = isinstance(model, Node) and isinstance(model.value, dict)
    return (
        "runner_config" in tree.value
        or "run_mode" in tree.value
        or (in_model and "model_config" in model.value)
    )


def translate(tree: Node) -> Translation:
    """Translate a tree for which `is_mindformers` holds; every value is checked later."""
    return _Translator(tree).translate()


class _Translator:
    def __init__(self, tree: Node) -> None:
        self._tree = tree
        self._result: dict[str, Any] = {}
        self._used: set[str] = set()
        self._reasons: dict[str, str] = {}
        self._problems: list[Problem] = []

    def translate(self) -> Translation:
        self._mode = self._choose("run_mode", "mode", MODES) or "finetune"
        for theirs, ours in SAME.items():
            self._copy(theirs, ours)
        self._model()
        self._lora()
        self._lengths()
        for section, ours in (("train_dataset", "train_data"), ("eval_dataset", "eval_data")):
            self._data(section, ours)
        self._evaluation()
        self._training()
        self._schedule()
        self._parallel()
        self._callbacks()
        self._constants()
        return Translation(
            Node(self._result, self._tree.place, self._tree.key_place),
            tuple(self._unused(self._tree, "")),
            tuple(self._problems),
        )

    # Reading and writing, by dotted keys.

    def _find(self, key: str) -> Node | None:
        node = self._tree
        for part in key.split("."):
            if not isinstance(node.value, dict) or part not in node.value:
                return None
            node = node.value[part]
        return None if node.value in EMPTY else node

    def _take(self, key: str) -> Node | None:
        node = self._find(key)
        if node is not None:
            self._used.add(key)
        return node

    def _put(self, ours: str, node: Node, **changes: Any) -> None:
        *sections, name = ours.split(".")
        into = self._result
        for section in sections:
            origin = Node({}, self._tree.place, self._tree.key_place)
            if section not in into:
                place = attrs.evolve(node.key_place, key=section)
                into[section] = attrs.evolve(origin, place=place, key_place=place)
            into = into[section].value
        into[name] = attrs.evolve(node, **changes)

    def _copy(self, theirs: str, ours: str) -> None:
        if (node := self._take(theirs)) is not None:
            self._put(ours, node)

    def _choose(self, theirs: str, ours: str | None, words: dict[str, str]) -> str | None:
        """Translate a word; one without a counterpart is a problem."""
        node = self._take(theirs)
        if node is None:
            return None
        word = words.get(node.value) if isinstance(node.value, str) else None
        if word is None:
            self._refuse(node, f"{shown(node.value)} is not supported (known: {', '.join(words)})")
        elif ours is not None:
            self._put(ours, node, value=word)
        return word

    def _refuse(self, node: Node, message: str) -> None:
        self._problems.append(node.place.problem(message))

    def _ignore(self, key: str, reason: str) -> None:
        self._reasons[key] = reason

    # The sections.

    def _model(self) -> None:
        if self._choose("context.device_target", "runtime.name", RUNTIMES) is None:
            # MindFormers' own default.
            self._put("runtime.name", self._tree, value="mindspore-ascend")
        self._choose(f"{MODEL}.type", None, {"ChatGLM2Config": "", "ChatGLM3Config": ""})
        self._copy(f"{MODEL}.compute_dtype", "runtime.dtype")
        held, computed = (
            self._find(f"{MODEL}.{name}") for name in ("param_init_type", "compute_dtype")
        )
        if held is not None and computed is not None and held.value == computed.value:
            self._take(f"{MODEL}.param_init_type")
        else:
            self._ignore(f"{MODEL}.param_init_type", "weights are held in compute_dtype")
        use_past = self._find(f"{MODEL}.use_past")
        if use_past is not None and use_past.value is (self._mode != "finetune"):
            self._take(f"{MODEL}.use_past")
        self._ignore(f"{MODEL}.use_past", "a kv_cache is kept in every mode but training")
        checkpoint = self._take("load_checkpoint")
        named = f"{MODEL}.checkpoint_name_or_path"
        if checkpoint is None:
            checkpoint = self._take(named)
        self._ignore(named, "load_checkpoint comes first")
        if checkpoint is None:
            # Training from random weights is never what a finetune wants; the empty path is an
            # error unless an override gives one.
            place = attrs.evolve(self._tree.place, key="load_checkpoint")
            checkpoint = self._tree.value.get("load_checkpoint", Node("", place, place))
            checkpoint = attrs.evolve(checkpoint, value="")
        self._put("model.path", checkpoint)
        for section in ("train_dataset.tokenizer", "processor.tokenizer"):
            self._copy(f"{section}.vocab_file", "model.tokenizer")

    def _lora(self) -> None:
        pet = f"{MODEL}.pet_config"
        section = self._find(pet)
        if section is None:
            return
        kind = self._take(f"{pet}.pet_type")
        if kind is not None and str(kind.value).lower() != "lora":
            self._refuse(kind, f"{shown(kind.value)} is not supported (known: lora)")
        if "lora" not in self._result:
            self._put("lora", section, value={})
        targets = self._take(f"{pet}.target_modules")
        if targets is None:
            return
        names = [re.sub(r"^\.\*|\.?\*$", "", part) for part in str(targets.value).split("|")]
        if all(re.fullmatch(r"\w+", name) for name in names):
            items = [attrs.evolve(targets, value=name) for name in names]
            self._put("lora.targets", targets, value=items)
        else:
            self._refuse(targets, "must be names such as '.*query_key_value*', joined by |")

    def _lengths(self) -> None:
        ours = "training.seq_length" if self._mode == "finetune" else "generation.max_seq_length"
        self._copy(f"{MODEL}.seq_length", ours)
        for name in ("max_decode_length", "max_length"):  # the later one wins
            self._copy(f"{MODEL}.{name}", "generation.max_length")

    def _data(self, section: str, ours: str) -> None:
        if self._choose(f"{section}.data_loader.type", f"{ours}.format", LOADERS) is None:
            return
        for theirs, name in SAME_IN_DATA.items():
            self._copy(f"{section}.{theirs}", f"{ours}.{name}")
        task = self._find(f"{section}_task.dataset_config")
        data = self._find(section)
        if task is not None and data is not None and task.place.line == data.place.line:
            self._used.add(f"{section}_task")  # the same section through an alias

    def _evaluation(self) -> None:
        do_eval = self._take("do_eval")
        during = do_eval is not None and do_eval.value is True
        self._put("evaluation.during_training", do_eval or self._tree, value=during)
        if during:
            self._copy("eval_step_interval", "evaluation.every")
        self._ignore("eval_step_interval", "do_eval is false")

    def _training(self) -> None:
        for ours in ("training.batch_size", "generation.batch_size"):
            self._copy("runner_config.batch_size", ours)
        self._choose("optimizer.type", None, OPTIMIZERS)
        betas = self._take("optimizer.betas")
        if betas is not None and isinstance(betas.value, list) and len(betas.value) == 2:
            self._put("optimizer.beta1", betas.value[0])
            self._put("optimizer.beta2", betas.value[1])
        elif betas is not None:
            self._refuse(betas, "must be a list of two numbers")
        for name in ("beta1", "beta2"):
            self._copy(f"optimizer.{name}", f"optimizer.{name}")
        optimizer = self._find("optimizer")
        if optimizer is not None:  # MindFormers' defaults, where they are not ours
            given = self._result["optimizer"].value if "optimizer" in self._result else {}
            for name, value in (("beta2", 0.999), ("epsilon", 1e-6), ("weight_decay", 0.0)):
                if name not in given:
                    self._put(f"optimizer.{name}", optimizer, value=value)
        self._wrapper()

    def _wrapper(self) -> None:
        clip = self._take("runner_wrapper.use_clip_grad")
        limit = self._find("runner_wrapper.max_grad_norm")
        if clip is not None and clip.value is True:
            self._take("runner_wrapper.max_grad_norm")
            self._put("optimizer.clip_norm", limit or clip, value=limit.value if limit else 1.0)
        elif self._find("runner_wrapper") is not None:
            self._put("optimizer.clip_norm", clip or self._tree, value=None)
        scale = "runner_wrapper.scale_sense"
        kind, dtype = self._find(f"{scale}.type"), self._find(f"{MODEL}.compute_dtype")
        if kind is None or kind.value != "DynamicLossScaleUpdateCell":
            self._ignore(scale, "only DynamicLossScaleUpdateCell is known")
        elif dtype is None or dtype.value != "float16":
            self._ignore(scale, "only float16 needs a loss scale")
        else:
            self._take(f"{scale}.type")
            self._put("loss_scale", kind, value={})
            names = {"loss_scale_value": "initial", "scale_factor": "factor"}
            for theirs, ours in (names | {"scale_window": "window"}).items():
                self._copy(f"{scale}.{theirs}", f"loss_scale.{ours}")

    def _schedule(self) -> None:
        kind = self._choose("lr_schedule.type", "schedule.kind", SCHEDULES)
        for section in ("lr_schedule", "optimizer"):
            if "learning_rate" not in getattr(self._result.get("schedule"), "value", {}):
                self._copy(f"{section}.learning_rate", "schedule.learning_rate")
        self._ignore("optimizer.learning_rate", "lr_schedule.learning_rate comes first")
        self._copy("lr_schedule.warmup_steps", "schedule.warmup_steps")
        self._ignore("lr_schedule.warmup_ratio", "give lr_schedule.warmup_steps")
        total = self._find("lr_schedule.total_steps")
        if total is not None and total.value != -1:
            self._copy("lr_schedule.total_steps", "schedule.total_steps")
        schedule = self._find("lr_schedule")
        if kind in ("polynomial", "cosine") and schedule is not None:
            if self._find("lr_schedule.lr_end") is not None:
                self._copy("lr_schedule.lr_end", "schedule.end")
            else:  # MindFormers' defaults
                end = 1e-7 if kind == "polynomial" else 0.0
                self._put("schedule.end", schedule, value=end)
        elif schedule is None and self._find("optimizer.learning_rate") is not None:
            self._put("schedule.kind", self._tree, value="constant")

    def _parallel(self) -> None:
        together = self._take("use_parallel")
        for name in ("pipeline_stage", "expert_parallel"):
            stages = self._find(f"parallel_config.{name}")
            wanted = together is not None and together.value is True
            if wanted and stages is not None and stages.value != 1:
                self._used.add(f"parallel_config.{name}")
                self._refuse(stages, f"{shown(stages.value)} is not supported: use 1")
        if together is None or together.value is not True:
            for section in ("parallel", "parallel_config"):
                self._ignore(section, "use_parallel is false")
            return
        self._copy("parallel_config.data_parallel", "parallel.data")
        self._copy("parallel_config.model_parallel", "parallel.tensor")
        self._copy("parallel.enable_parallel_optimizer", "parallel.optimizer_shard")

    def _callbacks(self) -> None:
        callbacks = self._find("callbacks")
        if callbacks is None or not isinstance(callbacks.value, list):
            return
        for index, callback in enumerate(callbacks.value):
            children = callback.value if isinstance(callback.value, dict) else {}
            kind = children["type"].value if "type" in children else None
            names = {}
            # Both spellings are in MindFormers' own files.
            if kind in ("CheckpointMonitor", "CheckpointMointor"):
                names = {"save_checkpoint_steps": "every", "keep_checkpoint_max": "keep"}
                names = {theirs: f"checkpoints.{ours}" for theirs, ours in names.items()}
            elif kind == "MFLossMonitor":
                names = {"per_print_times": "training.log_every"}
            if names:
                self._used.add(f"callbacks[{index}].type")
            for theirs, ours in names.items():
                if theirs in children:
                    self._used.add(f"callbacks[{index}].{theirs}")
                    self._put(ours, children[theirs])

    def _constants(self) -> None:
        off = () if "parallel" not in self._reasons else ("parallel.", "parallel_config.")
        for key, values in ALWAYS.items():
            node = self._find(key)
            if node is None or key.startswith(off or "\0"):
                continue
            if any(node.value == value and type(node.value) is not list for value in values):
                self._used.add(key)
            elif key not in self._used:
                always = " or ".join(shown(value) for value in values)
                self._ignore(key, f"always {always} here")

    def _told(self) -> Iterator[str]:
        """The keys that were used or have a reason of their own for not being used."""
        yield from self._used
        yield from self._reasons

    def _unused(self, node: Node, key: str) -> Iterator[str]:
        """The largest unused sections, and the unused keys of the others."""
        if isinstance(node.value, dict):
            children = [(f"{key}.{name}" if key else name, c) for name, c in node.value.items()]
        elif key == "callbacks" and isinstance(node.value, list):
            children = [(f"{key}[{index}]", item) for index, item in enumerate(node.value)]
        else:
            children = []
        for name, child in children:
            if name in self._used or child.value in EMPTY:
                continue
            if any(told.startswith((f"{name}.", f"{name}[")) for told in self._told()):
                yield from self._unused(child, name)
                continue
            place = child.key_place
            where = f"{place.file}:{place.line}: " if place.line else ""
            reason = self._reasons.get(name)
            yield f"{where}{name}" + (f" ({reason})" if reason else "")
