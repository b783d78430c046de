"""Settings of other trainers: the name each has here, or why it is not supported; both for error messages."""

ALIASES = {
    # TRL's PPOConfig, up to its last release
    "learning_rate": "ppo.lr",
    "num_ppo_epochs": "ppo.ppo_epochs",
    "cliprange": "ppo.clip_range",
    "cliprange_value": "ppo.clip_range_value",
    "kl_penalty": "ppo.kl_estimator",
    "init_kl_coef": "ppo.kl_coef",
    "adap_kl_ctrl": "ppo.kl_target",
    "horizon": "ppo.kl_horizon",
    "num_mini_batches": "ppo.minibatch_size",
    "mini_batch_size": "ppo.minibatch_size",
    "per_device_train_batch_size": "ppo.microbatch_size",
    "gradient_accumulation_steps": "ppo.microbatch_size",
    "per_device_eval_batch_size": "eval.batch_size",
    "local_rollout_forward_batch_size": "ppo.microbatch_size",
    "batch_size": "ppo.rollout_batch_size",
    "response_length": "generation.max_new_tokens",
    "max_length": "generation.max_new_tokens",
    "stop_token_id": "generation.stop_ids",
    "stop_token": "generation.stop_ids",
    "eos_token_id": "generation.stop_ids",
    "stop": "generation.stop_strings",
    "suppress_tokens": "generation.suppress_ids",
    "missing_eos_penalty": "reward.missing_eos_penalty",
    "reward_model_path": "reward.model",
    "sft_model_path": "model.path",
    "model_name_or_path": "model.path",
    "dataset_name": "data.path",
    "torch_dtype": "model.dtype",
    "lora_r": "model.lora.rank",
    "lora_alpha": "model.lora.alpha",
    "lora_target_modules": "model.lora.targets",
    "num_sample_generations": "eval.every",
    "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "output_dir": "output",
    "report_to": "trackers",
    "warmup_ratio": "ppo.warmup_steps",
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
"""Last part of a setting's name in another trainer -> full name of the setting that replaces it here."""

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
"""Last part of a setting's name in another trainer -> why it is not supported, after `because`."""
