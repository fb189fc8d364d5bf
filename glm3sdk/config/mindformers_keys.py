"""MindFormers' keys and words beside ours, for `glm3sdk.config.mindformers`."""

from __future__ import annotations

MODEL = "model.model_config"

# MindFormers' key to ours, where the value means the same.
SAME = {
    "output_dir": "output",
    "seed": "training.seed",
    "context.device_id": "runtime.device_id",
    "context.max_device_memory": "runtime.max_device_memory",
    "recompute_config.recompute": "model.recompute",
    f"{MODEL}.use_flash_attention": "model.flash_attention",
    f"{MODEL}.pet_config.lora_rank": "lora.rank",
    f"{MODEL}.pet_config.lora_alpha": "lora.alpha",
    f"{MODEL}.pet_config.lora_dropout": "lora.dropout",
    f"{MODEL}.do_sample": "generation.do_sample",
    f"{MODEL}.temperature": "generation.temperature",
    f"{MODEL}.top_k": "generation.top_k",
    f"{MODEL}.top_p": "generation.top_p",
    f"{MODEL}.repetition_penalty": "generation.repetition_penalty",
    f"{MODEL}.max_new_tokens": "generation.max_new_tokens",
    "runner_config.epochs": "training.epochs",
    "runner_config.gradient_accumulation_steps": "training.accumulate",
    "optimizer.eps": "optimizer.epsilon",
    "optimizer.weight_decay": "optimizer.weight_decay",
    "lr_schedule.power": "schedule.power",
}
SAME_IN_DATA = {
    "data_loader.dataset_dir": "path",
    "data_loader.shuffle": "shuffle",
    "data_loader.origin_columns": "columns",
    "max_source_length": "max_source_length",
    "max_target_length": "max_target_length",
    "max_seq_length": "max_seq_length",
}

# MindFormers' word to ours, or None for what has no counterpart here.
MODES = {"train": "finetune", "finetune": "finetune", "eval": "evaluate", "predict": "predict"}
RUNTIMES = {"Ascend": "mindspore-ascend", "CPU": "mindspore-cpu"}
LOADERS = {
    "ADGenDataLoader": "adgen",
    "ToolAlpacaDataLoader": "multiturn",
    "MultiTurnDataLoader": "multiturn",
}
SCHEDULES = {
    "polynomial": "polynomial",
    "PolynomialWithWarmUpLR": "polynomial",
    "CosineWithWarmUpLR": "cosine",
    "cosine": "cosine",
    "ConstantWarmUpLR": "constant",
    "constant_with_warmup": "constant",
}
OPTIMIZERS = {
    "AdamW": "AdamW",
    "AdamWeightDecay": "AdamW",
    "FP32StateAdamWeightDecay": "AdamW",
    "FusedAdamWeightDecay": "AdamW",
    "FusedFP32StateAdamWeightDecay": "AdamW",
}

# Holds here in any case; another value is named among the ignored keys.
ALWAYS: dict[str, tuple[object, ...]] = {
    "context.mode": (0,),
    "runner_wrapper.type": ("MFTrainOneStepCell",),
    "parallel_config.pipeline_stage": (1,),
    "parallel_config.expert_parallel": (1,),
    "parallel.parallel_mode": (0, 1),
    f"{MODEL}.layernorm_compute_type": ("float32",),
    f"{MODEL}.attention_softmax_in_fp32": (True,),
    f"{MODEL}.eos_token_id": (2,),
    f"{MODEL}.pad_token_id": (0,),
    f"{MODEL}.hidden_dropout": (0,),
    f"{MODEL}.attention_dropout": (0,),
    "train_dataset.ignore_pad_token_for_loss": (True,),
    "eval_dataset.ignore_pad_token_for_loss": (True,),
    "lr_schedule.total_steps": (-1, None),
}


# "Not given", throughout MindFormers' files.
EMPTY = ("", None, "None")
