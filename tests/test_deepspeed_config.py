"""DeepSpeed configs: each setting is followed, or refused in one line that names it, before anything is loaded."""

import json

import pytest

from hf_trainer import zero_stage
from workload.arguments import PipelineArguments, TrainerArguments, ZeroArguments, parse_arguments
from workload.batches import BatchSplit, split_batch
from workload.deepspeed_settings.checks import check_pipeline
from workload.deepspeed_settings.config import complete_config, follow_config, read_deepspeed_config
from workload.errors import InputError

SCRIPTS = {"zero.py": ZeroArguments, "pipeline.py": PipelineArguments, "hf_trainer.py": TrainerArguments}


@pytest.fixture
def settings(tmp_path):
    """What a script hands to DeepSpeed on 2 devices, given the text of a config file and further flags."""
    def settings(script: str, content: str, *flags: str, precision: str = "fp32") -> dict:
        path = tmp_path / "config.json"
        path.write_text(content, encoding="utf-8")
        arguments = parse_arguments(SCRIPTS[script], ["--deepspeed_config", str(path), *flags])
        config = read_deepspeed_config(arguments)
        if script == "zero.py":
            follow_config(config, arguments, devices=2)
            return complete_config(config, arguments, arguments.stage, arguments.offload, split_batch(arguments, 2),
                                   precision)
        if script == "hf_trainer.py":
            return complete_config(config, arguments, zero_stage(config, arguments), False, split_batch(arguments, 2),
                                   precision)
        check_pipeline(config)
        return complete_config(config, arguments, 0, False, split_batch(arguments, 1, 8), precision)
    return settings


def refusal(settings, script: str, content: str, *flags: str, **options: str) -> str:
    with pytest.raises(InputError) as caught:
        settings(script, content, *flags, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------- what contradicts flags or strategies

@pytest.mark.parametrize("content, words", [
    ('{"train_batch_size": 7}', ["train_batch_size is 7", "--global_batch_size says 64"]),
    ('{"train_batch_size": "64"}', ['train_batch_size is "64"']),
    ('{"train_micro_batch_size_per_gpu": 5}', ["train_micro_batch_size_per_gpu is 5"]),
    ('{"gradient_clipping": 5}', ["gradient_clipping is 5", "--max_grad_norm says 1.0"]),
    ('{"gradient_clipping": null}', ["gradient_clipping is null"]),
    ('{"gradient_clipping": true}', ["gradient_clipping is true"]),
    ('{"gradient_accumulation_steps": 3}', ["gradient_accumulation_steps is 3"]),
    ('{"optimizer": {"type": "Adam", "params": {}}}', ['optimizer.type is "Adam"']),
    ('{"optimizer": {"type": "AdamW", "params": {"lr": 0.1}}}', ["optimizer.params.lr is 0.1", "--learning_rate"]),
    ('{"optimizer": {"type": "AdamW", "params": {"weight_decay": 0}}}', ["weight_decay is 0", "--weight_decay"]),
    ('{"optimizer": {"type": "AdamW", "params": {"betas": [0.8, 0.95]}}}', ["optimizer.params.betas is [0.8, 0.95]"]),
    ('{"optimizer": {"type": "AdamW", "params": {"adam_w_mode": false}}}', ["params.adam_w_mode is false"]),
    ('{"optimizer": {"type": "AdamW", "params": {"max_grad_norm": 9}}}', ["max_grad_norm is 9", "--max_grad_norm"]),
    ('{"optimizer": {"type": "AdamW", "params": {"momentum": 0.9}}}', ["optimizer.params.momentum is 0.9"]),
    ('{"optimizer": {"type": "AdamW", "params": [1]}}', ["optimizer.params is [1]", "an object"]),
    ('{"optimizer": {"type": "AdamW", "legacy_fusion": true}}', ["optimizer.legacy_fusion is true"]),
    ('{"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}}}', ["scheduler", "--lr_scheduler"]),
    ('{"bf16": {"enabled": true}}', ["bf16.enabled", "--precision"]),
    ('{"fp16": {"enabled": "true"}}', ["fp16.enabled", "--precision"]),
    ('{"bfloat16": {"enabled": 1}}', ["bfloat16.enabled", "--precision"]),
    ('{"torch_autocast": {"enabled": true}}', ["torch_autocast.enabled", "--precision"]),
    ('{"bf16": {"immediate_grad_update": true}}', ["bf16.immediate_grad_update is true"]),
    ('{"communication_data_type": "bf16"}', ['communication_data_type is "bf16"', "--precision fp32"]),
    ('{"data_types": {"grad_accum_dtype": "bf16"}}', ['data_types.grad_accum_dtype is "bf16"']),
    ('{"zero_optimization": {"offload_param": {"device": "cpu"}}}', ["offload_param", "--offload"]),
    ('{"zero_optimization": {"offload_optimizer": {"pin_memory": false}}}', ["offload_optimizer", "--offload"]),
    ('{"zero_optimization": {"cpu_offload": true}}', ["cpu_offload is true", "--offload"]),
    ('{"zero_optimization": {"zero_hpz_partition_size": 2}}', ["zero_hpz_partition_size is 2", "this run's is 1",
                                                               "--secondary_shard_group"]),
])
@pytest.mark.parametrize("script", ["zero.py", "pipeline.py"])
def test_what_contradicts_flags_or_every_strategy_is_refused(script, content, words, settings):
    line = refusal(settings, script, content)
    assert all(word in line for word in words), line


def test_loss_scaling_is_that_of_every_strategy(settings):
    block = '{"fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000}}'
    assert "fp16.loss_scale_window is 1000" in refusal(settings, "zero.py", block, precision="fp16")
    assert "fp16" not in settings("zero.py", block, precision="bf16"), "it has no effect there"


@pytest.mark.parametrize("setting", [
    '"prescale_gradients": true', '"gradient_predivide_factor": 2.0', '"gradient_allreduce_op": "sum"',
    '"curriculum_learning": {"enabled": true, "curriculum_type": "seqlen"}',
    '"compression_training": {"weight_quantization": {"shared_parameters": {"enabled": true}}}',
    '"data_efficiency": {"data_routing": {"enabled": true}}', '"progressive_layer_drop": {"enabled": true}',
    '"tensor_parallel": {"autotp_size": 2}', '"sequence_parallel_size": 2', '"compile": {"deepcompile": true}',
    '"zero_optimization": {"zero_quantized_weights": true}', '"zero_optimization": {"zero_quantized_gradients": true}',
    '"zero_optimization": {"zenflow": {"topk_ratio": 0.1}}',
    '"zero_optimization": {"stage": 2, "compute_grad_norm": false}',
])
def test_what_would_change_the_training_is_refused(setting, settings):
    line = refusal(settings, "zero.py", "{" + setting + "}")
    assert json.loads("{" + setting + "}").popitem()[0] in line and "would change the training" in line, line


@pytest.mark.parametrize("script, setting", [
    ("zero.py", '"activation_checkpointing": {"partition_activations": true}'),
    ("zero.py", '"checkpoint": {"load_universal": true}'), ("pipeline.py", '"pipeline": {"stages": 4}'),
    ("pipeline.py", '"pipeline": {"partition": "uniform"}'),
    ("zero.py", '"pipeline": {"activation_checkpoint_interval": 1}'),
    ("hf_trainer.py", '"pipeline": {"activation_checkpoint_interval": 1}'),
    ("pipeline.py", '"pipeline": {"activation_checkpoint_interval": 2}'),
    ("pipeline.py", '"pipeline": {"use_reentrant": true}'),
    ("hf_trainer.py", '"autotuning": {"enabled": true}'), ("pipeline.py", '"autotuning": {"enabled": true}'),
    ("pipeline.py", '"wall_clock_breakdown": true'),
    ("pipeline.py", '"flops_profiler": {"enabled": true, "profile_step": 1}'),
])
def test_what_would_be_ignored_or_fail_is_refused(script, setting, settings):
    key = json.loads("{" + setting + "}").popitem()[0]
    stage = '{"zero_optimization": {"stage": 2}, ' if script == "hf_trainer.py" else "{"
    assert key in refusal(settings, script, stage + setting + "}")


# ---------------------------------------------------------------------- typos, and values that DeepSpeed does not take

@pytest.mark.parametrize("content, words", [
    ('{"gradient_acumulation_steps": 2}', ["gradient_acumulation_steps is 2", "did you mean gradient_accumulation"]),
    ('{"zero_optimisation": {"stage": 2}}', ["zero_optimisation", "did you mean zero_optimization"]),
    ('{"zero_optimization": {"overlap_com": true}}', ["zero_optimization.overlap_com is true", "overlap_comm?"]),
    ('{"zero_optimization": {"offload_optimizer": {"devise": "none"}}}', ["offload_optimizer.devise", "device?"]),
    ('{"fp16": {"enable": false}}', ["fp16.enable is false", "did you mean enabled?"]),
    ('{"torch_autocast": {"enabeld": true}}', ["torch_autocast.enabeld is true", "enabled?"]),
    ('{"optimizer": {"typ": "AdamW"}}', ["optimizer.typ", "did you mean type?"]),
    ('{"pipeline": {"activation_checkpointing_interval": 1}}', ["activation_checkpoint_interval?"]),
    ('{"data_types": {"grad_acum_dtype": "fp32"}}', ["data_types.grad_acum_dtype", "grad_accum_dtype?"]),
    ('{"autotuning": {"enable": true}}', ["autotuning.enable is true", "enabled?"]),
    ('{"flops_profiler": {"profil_step": 3}}', ["flops_profiler.profil_step", "profile_step?"]),
    ('{"comms_logger": {"enabld": true}}', ["comms_logger.enabld", "enabled?"]),
    ('{"wandb": {"projet": "x"}}', ["wandb.projet", "project?"]),
    ('{"timers": {"throughput": {"enabled": "maybe"}}}', ['timers.throughput.enabled is "maybe"']),
    ('{"zero_optimization": {"stage": 4}}', ["zero_optimization.stage is 4", "0, 1, 2 or 3"]),
    ('{"zero_optimization": {"stage": "two"}}', ['zero_optimization.stage is "two"']),
    ('{"zero_optimization": {"reduce_bucket_size": 0}}', ["reduce_bucket_size is 0", "greater than 0"]),
    ('{"zero_optimization": {"reduce_bucket_size": "5e8"}}', ['reduce_bucket_size is "5e8"', "integer"]),
    ('{"zero_optimization": {"overlap_comm": "yes please"}}', ['overlap_comm is "yes please"', "boolean"]),
    ('{"zero_optimization": {"offload_optimizer": "cpu"}}', ['offload_optimizer is "cpu"']),
    ('{"zero_optimization": 2}', ["zero_optimization is 2", "object"]),
    ('{"fp16": true}', ["fp16 is true", "object"]),
    ('{"steps_per_print": "10"}', ['steps_per_print is "10"', "a number above 0"]),
    ('{"steps_per_print": 0}', ["steps_per_print is 0", "a number above 0"]),
    ('{"wall_clock_breakdown": "yes"}', ['wall_clock_breakdown is "yes"', "true or false"]),
    ('{"pipeline": {"activation_checkpoint_interval": -1}}', ["activation_checkpoint_interval is -1"]),
    ('{"log_level": "loud"}', ['log_level is "loud"', "warning"]),
    ('{"communication_data_type": "fp8"}', ["communication_data_type", "fp8"]),
    ('{"zero_optimization": {"cpu_offload": false, "offload_optimizer": {}}}', ["zero_optimization", "cpu_offload"]),
    ('{"zero_optimization": {"compute_grad_norm": false}}', ["compute_grad_norm"]),  # needs stage 1 or 2
    ('{"amp": {"enabled": false}}', ["DeepSpeed refuses it", "AMP"]),  # a feature that it no longer has
    ('{"tensorboard": {"enabled": true}}', ["tensorboard.enabled", "not installed"]),
])
@pytest.mark.parametrize("script", ["zero.py", "pipeline.py"])
def test_typos_and_impossible_values_are_named(script, content, words, settings, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = refusal(settings, script, content)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("content, words", [
    ("", ["not JSON"]), ("{", ["not JSON", "line 1 column 2"]), ("[]", ["object"]), ("null", ["object"]),
    ('{"zero_optimization": {"overlap_comm": True}}', ["not JSON", "line 1 column 40"]),
    ('{"steps_per_print": Infinity}', ["Infinity"]), ('{"a":' * 3000, ["not JSON"]),
    ('{"zero_optimization": {"stage": 2}, "zero_optimization": {"stage": 2}}', ["zero_optimization is set twice"]),
])
def test_a_file_that_is_no_config_is_refused(content, words, settings):
    line = refusal(settings, "zero.py", content)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("value", ["0", "-4", "4.5", "true", "[4]", '"4"', "1e400", "3"])
def test_a_batch_that_cannot_be_followed_is_named(value, settings):
    line = refusal(settings, "zero.py", f'{{"train_micro_batch_size_per_gpu": {value}}}')
    assert "train_micro_batch_size_per_gpu is " in line


# ---------------------------------------------------------------------- what is followed

@pytest.mark.parametrize("content, expected", [
    ('{"zero_optimization": {"stage": "1"}}', {"stage": 1}), ('{"zero_optimization": {"stage": 1.0}}', {"stage": 1}),
    ('{"zero_optimization": true}', {"stage": 1}), ('{"zero_optimization": null}', {"stage": 2}),
    ('{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "none"}}}', {"stage": 3}),
    ('{"zero_optimization": {"stage": 3, "offload_param": {"device": "none"}}}', {"stage": 3}),
    ('{"zero_optimization": {"stage": 2, "offload_optimizer": null}}', {"stage": 2}),
    ('{"zero_optimization": {"stage": 2, "cpu_offload": false}}', {"stage": 2}),
    ('{"zero_optimization": {"reduce_bucket_size": 5e8}}', {"stage": 2, "reduce_bucket_size": 5e8}),
    ('\ufeff{"zero_optimization": {"stage": 1}}', {"stage": 1}),
    ('{  // a comment\n  "zero_optimization": {"stage": 1,},\n}', {"stage": 1}),
])
def test_what_deepspeed_accepts_is_accepted(content, expected, settings):
    assert settings("zero.py", content)["zero_optimization"] == expected


AGREEING = {
    "train_batch_size": 64, "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
    "gradient_clipping": 1, "memory_breakdown": True, "steps_per_print": "auto", "communication_data_type": "fp32",
    "prescale_gradients": False, "gradient_predivide_factor": 1.0, "data_efficiency": {"enabled": False},
    "optimizer": {"type": "adamw", "params": {"lr": 3e-5, "betas": [0.9, 0.999], "eps": "auto", "torch_adam": True}},
    "fp16": {"enabled": "auto", "loss_scale_window": 1000}, "bf16": {"enabled": False},
    "activation_checkpointing": {"partition_activations": False, "number_checkpoints": None},
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_config_that_agrees_is_taken_as_it_stands(script, settings):
    config = AGREEING | {"zero_optimization": {"stage": 2}} if script == "hf_trainer.py" else AGREEING
    completed = settings(script, json.dumps(config), precision="bf16")
    assert completed["memory_breakdown"] is True and completed["train_batch_size"] == 64
    assert not {"optimizer", "fp16", "bf16", "steps_per_print"} & set(completed)
    assert completed["torch_autocast"] == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}


def test_zero_is_set_by_flags_and_tuned_by_the_file():
    arguments = parse_arguments(ZeroArguments, ["--stage", "3", "--offload"])
    config = {"zero_optimization": {"stage": 3, "overlap_comm": False, "offload_optimizer": {"pin_memory": False}}}
    completed = complete_config(config, arguments, 3, True, BatchSplit(2, 4, 8), "fp32")
    assert completed["zero_optimization"] == {"stage": 3, "overlap_comm": False,
                                              "offload_optimizer": {"pin_memory": False, "device": "cpu"}}
    assert completed["gradient_clipping"] == 1.0
    for device in ("none", "nvme"):
        config["zero_optimization"]["offload_optimizer"] = {"device": device}
        with pytest.raises(InputError, match="offload_optimizer"):
            complete_config(config, arguments, 3, True, BatchSplit(2, 4, 8), "fp32")


def test_flags_left_open_follow_the_file():
    config = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 2.0}
    for flags, expected in (([], (3, 2)), (["--stage", "1"], (1, 2)), (["--micro-batch-size", "8"], (3, 8))):
        arguments = parse_arguments(ZeroArguments, flags)
        follow_config(config, arguments, devices=2)
        assert (arguments.stage, arguments.micro_batch_size, arguments.global_batch_size) == (*expected, 64)


def test_the_default_lies_beside_the_scripts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "timers" in read_deepspeed_config(parse_arguments(ZeroArguments, []))
    with pytest.raises(InputError, match="--deepspeed_config ds_config.json: cannot be read"):
        read_deepspeed_config(parse_arguments(ZeroArguments, ["--deepspeed-config", "ds_config.json"]))


@pytest.mark.parametrize("content, flags, words", [
    ("{}", [], ["zero_optimization.stage is None", "use 1, 2 or 3"]),
    ('{"zero_optimization": {"stage": 0}}', [], ["zero_optimization.stage is 0", "DDP"]),
    ('{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}', [], ["offload_optimizer"]),
    ('{"zero_optimization": {"stage": 2}}', ["--precision", "bf16_native"], ["bf16_native", "use --precision bf16"]),
    ('{"zero_optimization": {"stage": 3}}', ["--compile"], ["stage 3", "--compile", "use stage 2"]),
])
def test_what_the_trainer_cannot_follow_is_refused(content, flags, words, settings):
    line = refusal(settings, "hf_trainer.py", content, *flags)
    assert all(word in line for word in words), line


def test_a_pipeline_is_no_zero(settings):
    assert "zero_optimization.stage is 1" in refusal(settings, "pipeline.py", '{"zero_optimization": {"stage": 1}}')
