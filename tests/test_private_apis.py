"""Private and patched APIs of libraries (docs/private_apis.md) whose change no other test would notice."""

import json
import os
import signal
import socket
from datetime import timedelta
from types import SimpleNamespace

import datasets
import huggingface_hub
import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.elastic.multiprocessing import api as elastic
from transformers import GPT2Config, GPT2LMHeadModel, masking_utils

from tests.shared.small_inputs import open_small
from workload import hub
from workload.deepspeed_settings import checks
from workload.launch.processes import GRACE, import_deepspeed, join
from workload.models.attention import use_masks_as_given
from workload.precision import replace_zero_loss_scaler
from workload.training_state import _ZeroLossScaler

# The same runs as in the other tests, so they cost nothing here.
GPIPE = ("torch_pipeline.py", "--num_gpus", "2", "--schedule", "gpipe")
ZERO_BUBBLE = ("torch_pipeline.py", "--num_gpus", "2", "--schedule", "zero_bubble")
FP16 = ("--max_steps", "2", "--max_eval_examples", "8", "--precision", "fp16")


# ---------------------------------------------------------------------- torch

@pytest.mark.parametrize("command", [GPIPE, ZERO_BUBBLE])
def test_pytorchs_schedules_exchange_messages_where_the_timeline_looks(command, train):
    """`_batch_p2p` and `_wait_batch_p2p`: the bubble does not depend on them, so it would not tell."""
    for rank in train(*command).rows("ranks.csv"):
        assert float(rank["send_s_per_step"]) > 0 and float(rank["receive_s_per_step"]) > 0


def test_pytorchs_schedules_compute_the_loss_where_the_timeline_looks(train):
    """`_maybe_compute_loss`: a forward span of its own, where the last piece of the model is."""
    trace = json.loads((train(*ZERO_BUBBLE).folder / "timeline.json").read_text())["traceEvents"]
    for stage, spans_of_second_piece in ((0, 1), (1, 2)):
        names = sorted(each["name"] for each in trace
                       if each["ph"] == "X" and each["tid"] == stage and each["cat"] == "forward")
        assert names == sorted(name for number in range(8)
                               for name in (f"forward {number}", *[f"forward {number}'"] * spans_of_second_piece))


def test_groups_that_libraries_make_have_our_time_limit(launched, monkeypatch):
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        monkeypatch.setattr(distributed_c10d, name, getattr(distributed_c10d, name))  # put back when the test is over
    for name in ("workload.launch.processes.keep_freed_memory", "torch.set_num_threads"):
        monkeypatch.setattr(name, lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    launched(WORLD_SIZE="1", MASTER_PORT=port)
    limit = timedelta(hours=2) + GRACE
    try:
        join(1, 1, hang_timeout_s=7200)
        group = dist.new_group(backend="gloo")
        assert group._get_backend(torch.device("cpu")).options._timeout == limit
        assert distributed_c10d._get_default_timeout("nccl") == limit
    finally:
        dist.destroy_process_group()


def test_torchrun_says_which_signal_stopped_it():
    """Its own handler for the signals that are left to it."""
    with pytest.raises(elastic.SignalException) as stopped:
        elastic._terminate_process_handler(signal.SIGHUP, None)
    assert stopped.value.sigval == signal.SIGHUP


# ---------------------------------------------------------------------- DeepSpeed

SHARED_MEMORY = """
from workload.launch.processes import join, join_deepspeed
from workload.launch.start import launch

launch(1)
join(1, 1)
join_deepspeed()
with open("/proc/self/maps") as maps:
    print([line.split(maxsplit=5)[5].strip() for line in maps if "/dev/shm/deepspeed" in line])
"""


def test_the_files_of_deepspeeds_shared_memory_have_no_names(start_ranks, tmp_path):
    (tmp_path / "shared_memory.py").write_text(SHARED_MEMORY)
    said = start_ranks(str(tmp_path / "shared_memory.py"), check=True).stdout
    assert said.count("/dev/shm/") == said.count(" (deleted)") == 1, said


@pytest.mark.parametrize("name", sorted({*checks.MODELS.values(), "runtime.config.DeepSpeedConfig", *(
    keys for keys in checks.DICTIONARIES.values() if isinstance(keys, str))}))
def test_deepspeed_has_the_classes_that_check_its_settings(name):
    assert isinstance(checks._deepspeeds(name), type)


def test_a_checkpoint_holds_all_of_deepspeeds_loss_scaler(monkeypatch):
    """Put back, its scale falls and rises at the same steps."""
    monkeypatch.setattr(import_deepspeed().comm, "get_rank", lambda: 1)  # which logs nothing
    saved, restored = SimpleNamespace(), SimpleNamespace()  # all that they need of DeepSpeed's optimizer
    for optimizer in (saved, restored):
        replace_zero_loss_scaler(optimizer)
    for step in range(7):
        saved.loss_scaler.update_scale(step == 3)
    state = json.loads(json.dumps(_ZeroLossScaler(saved).state_dict()))
    _ZeroLossScaler(restored).load_state_dict(state)
    scales = set()
    for step in range(7, 2011):  # 2000 steps behind an overflow it rises
        for optimizer in (saved, restored):
            optimizer.loss_scaler.update_scale(step == 9)
        assert restored.loss_scaler.loss_scale == saved.loss_scaler.loss_scale
        scales.add(restored.loss_scaler.loss_scale)
    assert scales == {2.0**15, 2.0**14} and saved.loss_scaler.loss_scale == 2.0**15


@pytest.mark.parametrize("script, flags", [
    ("zero.py", ("--stage", "2")), ("hf_trainer.py", ("--deepspeed_config", "experiments/zero2.json"))])
def test_zeros_loss_scale_is_what_its_gradients_carry(script, flags, train):
    """Taken out of the squared norms of micro-batches, it leaves those that one process has."""
    run = train(script, "--num_gpus", "2", *flags, *FP16)
    one = train("bert_baseline.py", "--num_gpus", "1", *FP16)
    assert run.column("micro_batch_squared_norm") == pytest.approx(one.column("micro_batch_squared_norm"), rel=1e-2)


# ---------------------------------------------------------------------- transformers, Hugging Face's Hub

def test_transformers_asks_what_we_replaced_whether_positions_begin_anew(monkeypatch):
    """On a GPU the original makes the host wait; what it gives is the same."""
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", None)  # put back when the test is over
    use_masks_as_given()
    asked, ours = [], masking_utils.find_packed_sequence_indices
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices",
                        lambda *positions: asked.append(positions) or ours(*positions))
    model = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, n_positions=40, use_cache=False,
                                       bos_token_id=0, eos_token_id=0)).eval()
    with torch.no_grad():
        model(torch.zeros(2, 8, dtype=torch.int64))
    assert len(asked) == 1


def test_transformers_believes_that_our_own_encoder_takes_sdpa(cache, tmp_path):
    """`_supports_sdpa`; without it the record would say that attention was `eager`."""
    task = open_small("imdb", tmp_path)
    task.build_model()
    assert task.model_record["attention"].startswith("sdpa")


def test_without_a_network_nobody_asks_for_the_hub_a_second_time(monkeypatch, tmp_path):
    asked = []

    def no_network(host, *_, **__):
        asked.append(host)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "0")
    for constants in (huggingface_hub.constants, datasets.config):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.go_offline_without_network.__wrapped__()
    assert len(asked) == 1
    with pytest.raises(huggingface_hub.errors.LocalEntryNotFoundError):
        huggingface_hub.hf_hub_download("someone/something", "config.json", cache_dir=tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # `datasets` has its own
    with pytest.raises(ConnectionError):
        datasets.load_dataset("someone/something", cache_dir=str(tmp_path))
    assert len(asked) == 1
