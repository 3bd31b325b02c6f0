"""What a key or value that is not ours was probably meant to be: by how it is spelt, and by what other trainers call it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

_THEIRS = {
    "seed": "random_seed manual_seed seed_everything",
    "run_dir": (
        "output_dir save_dir dump_folder save checkpoint_dir out_dir default_root_dir logging_dir run_name experiment_name "
        "exp_name log_dir ckpt_dir checkpoint.folder checkpoint_path"
    ),
    "model.family, or train.init_from with a folder that has its config.json": "model.name model.flavor model_type model_name",
    "train.tokens": "train_tokens num_train_tokens max_tokens token_budget",
    "train.steps (of train.global_batch packs)": "num_train_samples train_samples",
    "train.steps": "num_train_steps max_steps train_iters training_steps num_steps max_iters",
    "train.steps, or epochs of each source of data.blend": "num_train_epochs num_epochs epochs max_epochs",
    "train.global_batch": "global_batch_size train_batch_size total_batch_size gbs",
    "train.micro_batch": (
        "micro_batch_size per_device_train_batch_size local_batch_size train_micro_batch_size_per_gpu micro_bs mbs"
    ),
    "train.global_batch (packs of a step) or train.micro_batch (packs of a forward pass)": "batch_size",
    "nothing: accumulation steps are train.global_batch / (train.micro_batch x data-parallel processes)": (
        "gradient_accumulation_steps grad_accum_steps grad_acc_steps accumulate_grad_batches"
    ),
    "train.lr": "learning_rate peak_lr max_lr base_lr",
    "train.min_lr_ratio (a share of train.lr)": "min_lr lr_min end_lr final_lr min_lr_factor",
    "train.warmup": "warmup_steps num_warmup_steps lr_warmup_steps lr_warmup_iters warmup_iters",
    "train.warmup (steps, no share of them)": "warmup_ratio lr_warmup_fraction",
    "train.weight_decay": "wd weightdecay",
    "train.clip": "max_grad_norm clip_grad clip_grad_norm grad_clip gradient_clipping gradient_clip_val max_norm",
    "train.betas=[0.9, 0.95]": "adam_beta1 adam_beta2 beta1 beta2 adam_betas",
    "train.eps": "adam_epsilon adam_eps epsilon",
    "train.lr, train.betas, train.eps and train.weight_decay: the optimizer is always AdamW": (
        "optimizer optimiser optim adamw adam momentum"
    ),
    "train.ema": "ema_decay ema_rate use_ema",
    "train.schedule": "scheduler lr_scheduler lr_scheduler_type lr_decay_style lr_schedule decay_type",
    "train.decay_steps": "lr_decay_steps lr_decay_iters lr_wsd_decay_iters num_decay_steps decay_ratio",
    "train.batch_stages": "rampup_batch_size batch_size_rampup batch_size_warmup",
    "train.param_groups": "freeze frozen group_overrides param_group_overrides no_decay layerwise_lr_decay",
    "train.precision=bf16": "bf16 mixed_precision mixed_precision_param dtype torch_dtype amp half",
    "train.precision=fp32": "fp32",
    "train.precision=bf16: fp16 with a scaled loss is not offered": "fp16",
    "nothing: no dropout is applied": "dropout attention_dropout hidden_dropout",
    "train.activation_checkpointing": (
        "gradient_checkpointing recompute recompute_granularity recompute_activations activation_checkpoint"
    ),
    "train.compile": "torch_compile compile_model",
    "nothing: attention is chosen by the device": "flash_attention flash_attn use_flash_attn attn_implementation sdpa",
    "nothing: weights are trained in full; train.param_groups with lr_scale: 0 keeps some as they are": (
        "lora peft lora_rank adapter quantization load_in_8bit load_in_4bit"
    ),
    "nothing: it is not offered": ("label_smoothing early_stopping early_stopping_patience patience swa"),
    "train.eval_every": "eval_steps eval_interval val_check_interval",
    "train.eval_packs": "eval_iters max_eval_samples limit_val_batches",
    "train.init_from": "model_name_or_path pretrained_model_name_or_path pretrained finetune_from model_path",
    "nothing: the tokenizer lies beside the shards": "tokenizer tokenizer_path tokenizer_name tokenizer_model tokenizer_type",
    "nothing: the order of packs is a function of seed, and every pack is read once an epoch": "shuffle drop_last sampler",
    "data.train": "train_data train_file train_files data_path dataset train_dataset dataset_name dataset_path data_dir",
    "data.valid": "valid_data validation_file eval_data val_data eval_dataset validation_data",
    "data.prefetch": "num_workers dataloader_num_workers prefetch_factor",
    "telemetry.log_every": "logging_steps log_interval log_freq log_every_n_steps",
    "telemetry.wandb=online or telemetry.tensorboard=true": "report_to use_wandb enable_wandb logger",
    "telemetry.wandb": "wandb_mode",
    "telemetry.wandb_project": "project project_name",
    "telemetry.peak_tflops": "peak_flops gpu_peak_flops promised_flops",
    "checkpoint.save_every": "save_steps save_interval checkpoint_interval ckpt_every checkpoint.interval checkpoint.every save_freq",
    "checkpoint.save_every_minutes": "train_time_interval every_n_minutes save_interval_minutes",
    "checkpoint.keep_last": "save_total_limit keep_latest_k",
    "checkpoint.async_save": "async_mode checkpoint.async_mode async_checkpoint",
    "checkpoint.local_every": "non_persistent_save_interval",
    "checkpoint.local_dir": "non_persistent_local_ckpt_dir",
    "--resume PATH, or the run_dir of the run to go on with": "resume_from_checkpoint resume_from load load_path",
    "parallel.tensor": "tensor_model_parallel_size tensor_parallel_degree tensor_parallel_size tp",
    "parallel.pipeline": "pipeline_model_parallel_size pipeline_parallel_degree pipeline_parallel_size pp",
    "parallel.ulysses": "context_parallel_size context_parallel_degree sequence_parallel_size cp sp",
    "nothing: data parallelism is the processes that are started / (parallel.tensor x pipeline x ulysses)": (
        "data_parallel_size data_parallel_replicate_degree dp world_size num_gpus gpus devices device num_nodes nnodes ddp strategy"
    ),
    "deepspeed=ds_configs/zeroN.json": "zero_stage zero_optimization zero zero3 fsdp fsdp_config sharding deepspeed_config",
    "deepspeed=ds_configs/zero3_offload.json": "cpu_offload offload",
    "model.lora.r": "lora_r lora_rank lora.rank peft.dim adapter_dim",
    "model.lora.lora_alpha": "lora_alpha lora.alpha",
    "model.lora.target_modules": "lora_target lora_target_modules lora.target target_modules",
    "nothing: the model draws nothing, so that a loss is the same in every layout": "lora_dropout lora.dropout",
    "model.hidden_size": "hidden_dim d_model dim n_embd embed_dim",
    "model.num_layers": "num_hidden_layers n_layers n_layer depth",
    "model.num_heads": "num_attention_heads n_heads n_head heads",
    "model.num_kv_heads": "num_key_value_heads n_kv_heads num_query_groups",
    "model.ffn_hidden_size": "intermediate_size ffn_dim mlp_dim d_ff",
    "model.rms_norm_eps": "norm_eps layernorm_epsilon layer_norm_eps",
    "model.tie_embeddings": "tie_word_embeddings weight_tying",
    "model.init_std": "initializer_range init_method_std",
    "model.rope_theta": "rotary_base theta rope_base",
    "nothing: the vocabulary comes from the token layout of the shards": "vocab_size padded_vocab_size",
    "nothing: the length of packs comes from the shards (data_prep pack --seq-len)": (
        "seq_length max_seq_len max_position_embeddings sequence_length max_length block_size seq_len context_length ctx_len n_ctx"
    ),
    "objective.kind or objective.preset": "loss loss_type",
    "objective.masking": "mask_ratio masking_ratio p_mask mask_prob",
    "telemetry.memory_history": "record_memory_history enable_memory_snapshot memory_snapshot memory_snapshot_path save_memory_snapshot",
    "guard.recompute": "rerun_mode check_for_nan_in_loss_and_grad check_for_nan rerun_state_machine",
    "guard.stop_after (minutes)": "max_time time_limit exit_duration_in_mins",
    "guard.step_timeout and guard.start_timeout": "timeout ddp_timeout nccl_timeout",
}
"""Our key, or what to do where there is none, and what other trainers call it."""
OTHER_NAMES = {theirs: ours for ours, names in _THEIRS.items() for theirs in names.split()}
VALUES = {
    "data.train": "give a shard, e.g. data.train=shards/train, or data.blend and `data.train=`",
    "telemetry.wandb": "online sends records to the service, offline keeps them on this machine",
    "train.precision": "bf16 has the speed of fp16 and the range of fp32",
}
"""What the choices of a key mean, for those who wrote another one."""


def unknown_key(key: str, known: Sequence[str]) -> str:
    """The message for a key that is none of `known`, in which `*` stands for what users choose."""
    named = [_named_like(name, key) for name in known]
    if key in named:
        section, _, name = key.partition(".")
        return f"`{key}` is one word here; write it as a section: `{section}:`, and `{name}:` indented below it"
    meant = _meant(key.lower().replace("-", "_"), named, OTHER_NAMES if "train.lr" in known else {})
    if meant is None:
        section = key.partition(".")[0]
        there = [name for name in named if name.partition(".")[0] == section and name.count(".") == 1]
        others = there or [name for name in named if "." not in name]
        return f"unknown key `{key}`; known {f'keys of {section}' if there else 'sections'}: {', '.join(others)}"
    if meant.startswith("nothing: "):
        return f"unknown key `{key}`; there is none: {meant.removeprefix('nothing: ')}"
    return f"unknown key `{key}`; did you mean `{meant}`?" if " " not in meant else f"unknown key `{key}`; use {meant}"


def _meant(key: str, named: Sequence[str], other_names: Mapping[str, str]) -> str | None:
    """The known key that `key` stands for, or what is said of it: by what others call it, by its spelling, by its words."""
    section, _, last = key.rpartition(".")
    if key in other_names or last in other_names:
        return other_names.get(key) or other_names[last]
    same = [name for name in named if name.rpartition(".")[2] == last]
    if section:  # its own name in another section, or in none; then one of that section that is spelt alike
        same = sorted((name for name in same if name.count(".") < 2), key=lambda name: name.count("."))
        close = same or difflib.get_close_matches(key, named, n=1, cutoff=0.75)
    else:  # a bare name is rather one of a section than a section's own, which it may look like
        lasts = {name.rpartition(".")[2]: name for name in reversed(named)}
        close = same or [lasts[name] for name in difflib.get_close_matches(last, lasts, n=1, cutoff=0.75)]
    if close:
        return close[0]
    above = [part for part in reversed(section.split(".")) if part in other_names]
    theirs = (
        above or difflib.get_close_matches(last, other_names, n=1, cutoff=0.85) or _of_like_words(last, other_names)
    )
    return other_names[theirs[0]] if theirs else None


def _of_like_words(name: str, others: Iterable[str]) -> list[str]:
    """The one of `others` that shares most of its words with `name`, and more than half of all words of both."""
    words = set(name.split("_"))
    shares = {other: len(words & (there := set(other.split("_")))) / len(words | there) for other in others}
    best = max(shares, key=lambda other: shares[other], default="")
    return [best] if shares.get(best, 0.0) > 0.5 else []


def _named_like(pattern: str, key: str) -> str:
    """A known key whose `*` (a name or number of the user's choice) is what `key` has in its place."""
    theirs = key.split(".")
    parts = enumerate(pattern.split("."))
    return ".".join(theirs[i] if part == "*" and i < len(theirs) else part for i, part in parts)
