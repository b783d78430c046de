"""Settings of other trainers: the name each has here, or why it is not supported; both for error messages.

Names are the last part of a setting's name there. `docs/from_trl.md` says the same of every setting of TRL 1.12; a test
compares the two.
"""

from collections.abc import Collection

ALIASES = {
    # TRL's PPOConfig, up to its last release
    "learning_rate": "ppo.lr",
    "lr_scheduler_type": "ppo.lr_schedule",
    "adam_epsilon": "ppo.adam_eps",
    "num_ppo_epochs": "ppo.ppo_epochs",
    "cliprange": "ppo.clip_range",
    "cliprange_value": "ppo.clip_range_value",
    "kl_penalty": "ppo.kl_estimator",
    "init_kl_coef": "ppo.kl_coef",
    "horizon": "ppo.kl_horizon",
    "mini_batch_size": "ppo.minibatch_size",
    "per_device_train_batch_size": "ppo.microbatch_size",
    "per_device_eval_batch_size": "eval.batch_size",
    "local_rollout_forward_batch_size": "generation.max_rows",
    "batch_size": "ppo.rollout_batch_size",
    "response_length": "generation.max_new_tokens",
    "max_length": "generation.max_new_tokens",
    "eos_token_id": "generation.stop_ids",
    "stop": "generation.stop_strings",
    "suppress_tokens": "generation.suppress_ids",
    "reward_model_path": "reward.model",
    "sft_model_path": "model.path",
    "model_name_or_path": "model.path",
    "dataset_name": "data.path",
    "dataset_train_split": "data.split",
    "dataset_test_split": "data.eval_split",
    "torch_dtype": "model.dtype",
    "torch_compile": "model.compile",
    "activation_checkpointing": "model.gradient_checkpointing",
    "lora_r": "model.lora.rank",
    "lora_alpha": "model.lora.alpha",
    "lora_target_modules": "model.lora.targets",
    "eval_steps": "eval.every",
    "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "output_dir": "output",
    "report_to": "trackers",
    "resume_from_checkpoint": "resume",
    "data_seed": "seed",
    # other trainers
    "gae_lambda": "ppo.lam",
    "lambd": "ppo.lam",
    "advantage_estimator": "ppo.estimator",
    "adv_estimator": "ppo.estimator",
    "n_samples_per_prompt": "ppo.samples_per_prompt",
    "num_generations": "ppo.samples_per_prompt",
    "clip_eps": "ppo.clip_range",
    "epsilon_high": "ppo.clip_range_high",
    "entropy_coef": "ppo.ent_coef",
    "critic_warmup": "critic.warmup_steps",
    "critic_learning_rate": "critic.lr",
    "actor_learning_rate": "ppo.lr",
}
"""Name in another trainer -> full name of the setting that has the same values here."""

SUPERVISED_ALIASES = {
    "learning_rate": "training.lr",
    "lr_scheduler_type": "training.lr_schedule",
    "adam_epsilon": "training.adam_eps",
    "num_train_epochs": "training.epochs",
    "per_device_train_batch_size": "training.microbatch_size",
    "max_seq_length": "training.max_length",
    "eval_steps": "training.eval_every",
}
"""The same for `rlhf sft`, `rlhf reward` and `rlhf dpo`, where they have no setting of that name in `ALIASES`."""

CONVERSIONS = {
    "gradient_accumulation_steps": (
        "ppo.rollout_batch_size = per_device_train_batch_size * gradient_accumulation_steps * processes"
    ),
    "num_mini_batches": "ppo.minibatch_size = ppo.rollout_batch_size / num_mini_batches",
    "num_train_epochs": "ppo.total_episodes = num_train_epochs * number of prompts",
    "max_steps": "ppo.total_episodes = max_steps * ppo.rollout_batch_size",
    "num_total_batches": "ppo.total_episodes = num_total_batches * ppo.rollout_batch_size",
    "warmup_ratio": "ppo.warmup_steps = warmup_ratio * ppo.total_episodes / ppo.rollout_batch_size",
    "adam_beta1": "ppo.adam_betas = [adam_beta1, adam_beta2]",
    "adam_beta2": "ppo.adam_betas = [adam_beta1, adam_beta2]",
    "adap_kl_ctrl": "ppo.kl_target = the target of the adaptive coefficient; null fixes the coefficient",
    "bf16": "model.mixed_precision = bf16",
    "fp16": "model.mixed_precision = fp16",
    "tf32": "model.matmul_precision = high",
    "use_peft": "model.lora.rank = lora_r; 0 trains all weights",
    "eval_strategy": "eval.every = eval_steps; 0 evaluates before the first and after the last step alone",
    "num_sample_generations": (
        "eval.every = ppo.total_episodes / ppo.rollout_batch_size / num_sample_generations; see samples.jsonl"
    ),
    "save_strategy": "checkpoint.every = save_steps; 0 saves no checkpoints",
    "stop_token": "generation.stop_ids = null, the default, for eos; or the ids, or generation.stop_strings",
    "stop_token_id": "generation.stop_ids = [stop_token_id]",
    "missing_eos_penalty": (
        "reward.missing_eos_penalty = missing_eos_penalty with reward.truncated = subtract as in TRL; replace, the "
        "default, sets the score to minus the penalty"
    ),
}
"""Name in another trainer -> how a setting here follows from it, beginning with the setting's name."""

SUPERVISED_CONVERSIONS = {
    "gradient_accumulation_steps": (
        "training.batch_size = per_device_train_batch_size * gradient_accumulation_steps * processes"
    ),
    "max_steps": "training.epochs = max_steps * training.batch_size / number of examples",
    "warmup_ratio": "training.warmup_steps = warmup_ratio * optimizer steps",
    "adam_beta1": "training.adam_betas = [adam_beta1, adam_beta2]",
    "adam_beta2": "training.adam_betas = [adam_beta1, adam_beta2]",
    "eval_strategy": "training.eval_every = eval_steps; 0 evaluates at the end alone",
}
"""The same for `rlhf sft`, `rlhf reward` and `rlhf dpo`."""

_CHANGES_DISTRIBUTION = (
    "it changes the distribution that is sampled, so that PPO's ratios and KL would not be the policy's; "
    "generation.temperature, min_new_tokens and suppress_ids change sampling and log-probabilities alike"
)

UNSUPPORTED = dict.fromkeys(
    (
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "repetition_penalty",
        "frequency_penalty",
        "presence_penalty",
        "no_repeat_ngram_size",
        "bad_words_ids",
        "num_beams",
        "min_length_penalty",
        "length_penalty",
    ),
    _CHANGES_DISTRIBUTION,
)
"""Name in another trainer -> why it is not supported, after `because`."""

_REASONS = {
    "every step is logged to metrics.jsonl and to the trackers": (
        *("logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "logging_nan_inf_filter"),
        *("include_num_input_tokens_seen", "log_level", "log_level_replica", "disable_tqdm", "skip_memory_metrics"),
    ),
    "trackers take their own settings from the environment, and the run is named by its folder": (
        *("run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    ),
    "nothing is uploaded; model/ in the run folder is what `hf upload` takes": (
        *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
        "hub_revision",
    ),
    "model/ holds the weights with the best held-out score after penalties": (
        *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    ),
    "held-out prompts are evaluated in full, before the first step too": (
        *("eval_delay", "eval_on_start", "prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object"),
        *("eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval"),
        *("do_train", "do_eval", "do_predict"),
    ),
    "a checkpoint holds all that an exact resume needs": (
        *("save_only_model", "save_on_each_node", "enable_jit_checkpoint", "ignore_data_skip"),
        "restore_callback_states_from_checkpoint",
    ),
    "the optimizer is AdamW, and its schedule needs no further arguments": (
        *("optim", "optim_args", "optim_target_modules", "lr_scheduler_kwargs"),
    ),
    "the loss is PPO's, averaged over all processes": (
        *("label_smoothing_factor", "neftune_noise_alpha", "average_tokens_across_devices", "label_names"),
    ),
    "memory is limited by ppo.microbatch_size or ppo.microbatch_tokens, and logits are never whole": (
        *("auto_find_batch_size", "torch_empty_cache_steps", "use_liger_kernel", "liger_kernel_config", "use_cache"),
        *("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
    ),
    "model.compile has no further settings": ("torch_compile_backend", "torch_compile_mode"),
    "prompts are tokenised once, in this process, and their order follows from the seed": (
        *("dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order"),
        *("remove_unused_columns", "train_sampling_strategy", "length_column_name", "dataset_num_proc"),
        "full_determinism",
    ),
    "devices and processes are those of `accelerate launch`, and each process holds whole models": (
        *("use_cpu", "accelerator_config", "parallelism_config", "ddp_find_unused_parameters", "ddp_bucket_cap_mb"),
        *("ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout", "fsdp", "fsdp_config"),
        *("deepspeed", "debug", "local_rank", "world_size", "ds3_gather_for_generation", "ignore_bias_buffers"),
    ),
    "it follows from the batch sizes": ("micro_batch_size", "local_batch_size", "local_mini_batch_size"),
    "the policy's adapter and the reference without it have fixed names": ("model_adapter_name", "ref_adapter_name"),
    "a dataset is loaded whole; save another configuration with `save_to_disk` and name its folder as data.path": (
        *("dataset_config", "dataset_streaming"),
    ),
    "the hub's main revision is loaded; download another one and name its folder as model.path": ("model_revision",),
    "adapters are plain LoRA without dropout": (
        *("lora_dropout", "lora_target_parameters", "lora_modules_to_save", "lora_task_type", "use_rslora", "use_dora"),
    ),
    "a quantised base has 4 bits (model.load_in_4bit), in NF4 with double quantisation": (
        *("load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"),
    ),
}

WITHOUT_COUNTERPART = {name: reason for reason, names in _REASONS.items() for name in names}
"""Name in TRL 1.12 -> why nothing here corresponds to it, after a colon."""


def explain(key: str, valid: Collection[str]) -> str | None:
    """What to do about a setting of another trainer, as a whole message; None for other names.

    Args:
        key: the dotted name that was used.
        valid: the dotted names of all settings of the command.
    """
    last = key.rsplit(".", 1)[-1]
    if last in UNSUPPORTED:
        return f"{key} is not supported, because {UNSUPPORTED[last]}"
    for aliases, conversions in ((ALIASES, CONVERSIONS), (SUPERVISED_ALIASES, SUPERVISED_CONVERSIONS)):
        if aliases.get(last) in valid:
            return f"unknown setting {key}; it is called {aliases[last]} here"
        if conversions.get(last, "").split(" ")[0] in valid:
            return f"unknown setting {key}; here {conversions[last]}"
    if last in WITHOUT_COUNTERPART:
        return f"{key} has no counterpart here: {WITHOUT_COUNTERPART[last]}"
    return None
