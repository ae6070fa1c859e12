"""Runs share a row, or a table, only if nothing but the seed, or the strategy, is between them."""

import json
import re
import shutil

import huggingface_hub
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

import plots
from comparison.rows import compare
from comparison.runs import find_runs
from measurement.columns import deepspeed_settings
from measurement.environment import ARITHMETIC, SPEED, file_digest, own_settings, source_digest
from measurement.run_json import RunJson, describe_run, mark_ended, workload_hash
from tests.shared.made_up_runs import rows_of, write_run, write_seeds
from tests.shared.runs import EXACT, ROOT, FinishedRun, stray_lines
from tests.shared.small_inputs import open_small
from tests.shared.warm_ranks import run_ranks
from workload.batches import BatchSplit
from workload.digests import content_of, examples_digest
from workload.job import Job
from workload.launch.processes import Processes


def zero_config(**settings):
    """As zero.py hands it to DeepSpeed, with some settings of ZeRO's."""
    return {"train_batch_size": 32, "train_micro_batch_size_per_gpu": 16, "gradient_accumulation_steps": 1,
            "gradient_clipping": 1.0, "wall_clock_breakdown": False, "zero_optimization": {"stage": 2} | settings}


# ---------------------------------------------------------------------- a row: DeepSpeed's settings

def test_what_flags_decide_is_no_setting_of_deepspeeds():
    offload = zero_config(offload_optimizer={"device": "cpu", "pin_memory": True}, reduce_bucket_size=5e8)
    offload |= {"zero_force_ds_cpu_optimizer": False, "torch_autocast": {"enabled": True}, "steps_per_print": None}
    assert deepspeed_settings(offload) == (
        'steps_per_print=null; wall_clock_breakdown=false; zero_optimization.offload_optimizer.pin_memory=true; '
        'zero_optimization.reduce_bucket_size=500000000')
    assert deepspeed_settings({"train_batch_size": 32, "zero_optimization": {"stage": 1}}) == "default"
    assert deepspeed_settings(None) is None


CASES = {  # settings of two rows -> what tells their names apart
    "a number": [{"reduce_bucket_size": 1000}, {"reduce_bucket_size": 500}, "reduce_bucket_size 1000",
                 "reduce_bucket_size 500"],
    "one by default": [{"overlap_comm": True}, {}, "overlap_comm true", "overlap_comm by default"],
    "two of them": [{"overlap_comm": True}, {"overlap_comm": False, "contiguous_gradients": False},
                    "contiguous_gradients by default, overlap_comm true",
                    "contiguous_gradients false, overlap_comm false"],
    "in a block": [{"offload_optimizer": {"pin_memory": True}}, {"offload_optimizer": {"pin_memory": False}},
                   "pin_memory true", "pin_memory false"],
    "of two blocks": [{"a": {"x": 1}, "b": {"x": 1}}, {"a": {"x": 2}, "b": {"x": 2}},
                      "zero_optimization.a.x 1, zero_optimization.b.x 1",
                      "zero_optimization.a.x 2, zero_optimization.b.x 2"],
}


@pytest.mark.parametrize("recorded", [True, False], ids=["column", "run.json only, as in earlier commits"])
@pytest.mark.parametrize("case", CASES)
def test_other_deepspeed_settings_are_another_row_named_by_what_differs(tmp_path, case, recorded):
    for number, settings in enumerate(CASES[case][:2]):
        for seed in (0, 1):
            config = zero_config(**settings)
            text = {"deepspeed_settings": deepspeed_settings(config)} if recorded else {}
            folder = write_run(tmp_path / f"{number}{seed}", "zero2", 2, 100 + 10 * number + seed, seed=seed, **text)
            description = {"status": "finished", "deepspeed_config": config}
            (folder / "run.json").write_text(json.dumps(description), encoding="utf-8")
    rows = rows_of(tmp_path)
    assert sorted(rows.index) == sorted(f"ZeRO-2 x 2, {words}" for words in CASES[case][2:])
    assert list(rows["runs"]) == [2, 2]


def test_very_different_deepspeed_settings_are_told_apart_by_a_hash(tmp_path):
    for number in (0, 1):
        text = deepspeed_settings(zero_config(**{f"setting_with_a_long_name_{n}": n + number for n in range(9)}))
        write_run(tmp_path / str(number), "zero2", 2, deepspeed_settings=text)
    names = list(rows_of(tmp_path).index)
    assert all(len(name) == len("ZeRO-2 x 2, DeepSpeed settings 12345678") for name in names) and len(set(names)) == 2


def test_equal_and_unrecorded_settings(tmp_path):
    """What a spelling changes is no difference; a run of which nothing is known has a row of its own."""
    for number, size in enumerate((5e8, 500_000_000)):
        text = deepspeed_settings(zero_config(reduce_bucket_size=size))
        write_run(tmp_path / f"same{number}", "zero2", 2, seed=number, deepspeed_settings=text)
    assert list(rows_of(tmp_path)["runs"]) == [2]
    write_run(tmp_path / "unknown", "zero2", 2)
    [name] = [name for name in rows_of(tmp_path).index if "unrecorded" in name]
    assert name == "ZeRO-2 x 2, unrecorded deepspeed settings"


def test_scaling_relates_rows_of_the_same_deepspeed_settings(tmp_path):
    for size, rates in ((1000, (50, 90)), (500, (60, 80))):
        text = deepspeed_settings(zero_config(reduce_bucket_size=size))
        for devices, rate in zip((1, 2), rates, strict=True):
            write_seeds(tmp_path, f"{size}-{devices}-", [rate], "zero2", devices, deepspeed_settings=text)
    rows, _ = compare(find_runs(tmp_path, plots.STUDY), plots.STUDY)
    rows = rows.set_index("setting")
    assert rows.loc["ZeRO-2 x 2, reduce_bucket_size 1000", "own_speedup"] == pytest.approx(90 / 50)
    assert rows.loc["ZeRO-2 x 2, reduce_bucket_size 500", "own_speedup"] == pytest.approx(80 / 60)


def test_all_tables_and_figures_can_show_such_rows(tmp_path, monkeypatch, capsys):
    for size in (1000, 500):
        text = deepspeed_settings(zero_config(reduce_bucket_size=size))
        for devices in (1, 2):
            write_run(tmp_path / f"{size}-{devices}", "zero2", devices, 50.0 * devices, epoch_s=4 / devices,
                      deepspeed_settings=text, epoch_workload="e", curves=True)
    monkeypatch.setattr("sys.argv", ["plots.py", str(tmp_path)])
    plots.main()
    assert "ZeRO-2, reduce_bucket_size 1000" in capsys.readouterr().out, "a column of the scaling table"


def test_runs_that_measured_otherwise_are_rows_of_their_own(tmp_path):
    """What measuring costs is no difference between seeds; and MFU is relative to a peak rate."""
    write_run(tmp_path / "all", devices=2)
    bare = write_run(tmp_path / "bare", devices=2, seed=1)
    (bare / "run.json").write_text('{"status": "finished", "flags": {"measure": "throughput"}}')
    assert set(rows_of(tmp_path).index) == {"DDP x 2, --measure all", "DDP x 2, --measure throughput"}
    for number, peak in enumerate(("312", "312.0", "989")):
        write_run(tmp_path / "peaks" / str(number), "fsdp", 2, seed=number, peak_tflops=peak, mfu_pct=40)
    assert rows_of(tmp_path / "peaks")["runs"].to_dict() == {
        "FSDP x 2, peak 312 TFLOPS": 2, "FSDP x 2, peak 989 TFLOPS": 1}


# ---------------------------------------------------------------------- a table: what lies behind a path

@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    """A folder with a model's config, weights in two files, and tokenizer."""
    from transformers import AutoConfig, BertForQuestionAnswering

    folder = tmp_path_factory.mktemp("models") / "model"
    shutil.copytree(ROOT / "data" / "tiny_bert", folder)
    BertForQuestionAnswering._from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder,
                                                                                              max_shard_size="2MB")
    assert len(list(folder.glob("model-*.safetensors"))) == 2
    return folder


@pytest.fixture
def model(saved_model, tmp_path):
    """A copy to be changed."""
    return shutil.copytree(saved_model, tmp_path / "model")


def change_weight(model):
    path = sorted(model.glob("model*.safetensors"))[-1]
    weights = load_file(path)
    next(iter(weights.values())).view(-1)[-1] += 1e-3
    save_file(weights, path, metadata={"format": "pt"})


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def swap_words(model):
    """Give two words of the vocabulary each other's numbers."""
    path = model / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    words = content["model"]["vocab"]
    first, second = list(words)[-2:]
    words[first], words[second] = words[second], words[first]
    path.write_text(json.dumps(content), encoding="utf-8")


def content(tmp_path, model, *flags):
    return content_of(open_small("squad_v2", tmp_path, "--model", str(model), *flags))


CHANGES = {
    "weights": (change_weight, {"model"}),
    "config": (lambda model: change_json(model / "config.json", layer_norm_eps=1e-5), {"model"}),
    "vocabulary": (swap_words, {"tokenizer"}),
    "special tokens": (lambda model: change_json(model / "tokenizer_config.json", mask_token="the"), {"tokenizer"}),
    "a text about it": (lambda model: (model / "README.md").write_text("good"), set()),
    "an optimizer's state": (lambda model: torch.save({}, model / "optimizer.pt"), set()),
    "weights that are not read": (lambda model: torch.save({}, model / "pytorch_model.bin"), set()),
}


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("change", CHANGES)
def test_what_lies_behind_the_path_of_a_model_is_told_apart(model, tmp_path, change):
    before = content(tmp_path, model)
    action, changed = CHANGES[change]
    action(model)
    after = content(tmp_path, model)
    assert {name for name in before if before[name] != after[name]} == changed


@pytest.mark.usefixtures("cache")
def test_a_model_is_the_same_elsewhere_and_its_tokenizer_after_use(model, tmp_path):
    before = content(tmp_path, model)
    elsewhere = shutil.copytree(model, tmp_path / "elsewhere")
    task = open_small("squad_v2", tmp_path, "--model", str(elsewhere) + "/")
    assert content_of(task) == before
    task.load()
    assert content_of(task) == before


@pytest.mark.usefixtures("cache")
def test_random_weights_depend_on_no_file_of_weights(model, tmp_path):
    before = content(tmp_path, model, "--from_scratch", "true")
    change_weight(model)
    assert content(tmp_path, model, "--from_scratch", "true") == before
    change_json(model / "config.json", layer_norm_eps=1e-5)
    assert content(tmp_path, model, "--from_scratch", "true") != before


@pytest.mark.usefixtures("cache")
def test_pickled_weights_count_where_there_are_no_others(model, tmp_path):
    for path in model.glob("model*"):
        path.unlink()
    digests = set()
    for value in (0.0, 1.0):
        torch.save({"qa_outputs.bias": torch.full((2,), value)}, model / "pytorch_model.bin")
        digests.add(content_of(open_small("squad_v2", tmp_path, "--model", str(model)))["model"])
    assert len(digests) == 2


@pytest.mark.usefixtures("cache")
def test_a_model_from_the_hub_is_told_apart_by_its_files_and_names_its_commit(model, tmp_path, monkeypatch):
    """The Hub's cache, as it is without a network."""
    home = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    found = []
    for commit in ("a" * 40, "b" * 40):
        repository = home / "models--some--model"
        shutil.copytree(model, repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        found.append(content(tmp_path, "some/model"))
        assert found[-1]["hub_commit"] == commit
        if commit == "a" * 40:
            assert found[0] | {"hub_commit": None} == content(tmp_path, model), "the same files as in a folder"
        change_weight(model)
    assert found[0]["model"] != found[1]["model"] and found[0]["tokenizer"] == found[1]["tokenizer"]


def test_examples_from_the_hub_are_told_apart_by_what_they_say():
    rows = {"id": ["1", "2"], "text": ["good", "b\u00e4d"], "answers": [{"text": ["x"]}, {"text": []}]}
    digest = examples_digest(Dataset.from_dict(rows))
    assert examples_digest(Dataset.from_dict(rows).select([0, 1])) == digest, "wherever they are cached"
    assert examples_digest(Dataset.from_dict(rows).select([1, 0])) != digest
    assert examples_digest(Dataset.from_dict(rows | {"text": ["good", "bad"]})) != digest


# ---------------------------------------------------------------------- a table: the environment

IN_WORKLOAD = ("NVIDIA_TF32_OVERRIDE=0", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1", "CUBLAS_WORKSPACE_CONFIG=:4096:8",
               "CUBLASLT_WORKSPACE_SIZE=1", "CUDNN_DETERMINISTIC=1", "TORCH_BLAS_PREFER_CUBLASLT=1",
               "TORCH_CUDNN_V8_API_DISABLED=1", "MKL_CBWR=COMPATIBLE", "MKL_DEBUG_CPU_TYPE=5",
               "MKL_ENABLE_INSTRUCTIONS=SSE4_2", "ONEDNN_MAX_CPU_ISA=AVX2", "ONEDNN_DEFAULT_FPMATH_MODE=BF16",
               "DNNL_MAX_CPU_ISA=AVX2", "OPENBLAS_CORETYPE=Haswell", "ATEN_CPU_CAPABILITY=default", "NCCL_ALGO=Tree",
               "NCCL_PROTO=LL")
IN_HARDWARE = ("MALLOC_ARENA_MAX=2", "GLIBC_TUNABLES=glibc.malloc.arena_max=2", "OMP_PROC_BIND=true",
               "KMP_AFFINITY=compact", "GOMP_CPU_AFFINITY=0", "NCCL_P2P_DISABLE=1", "CUDA_LAUNCH_BLOCKING=1",
               "CUDA_DEVICE_MAX_CONNECTIONS=1", "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
               "PYTORCH_ALLOC_CONF=expandable_segments:True", "TORCHINDUCTOR_MAX_AUTOTUNE=1")
IN_NEITHER = ("OMP_NUM_THREADS=1", "MKL_NUM_THREADS=1", "MKL_VERBOSE=1", "NCCL_DEBUG=INFO", "NCCL_DEBUG_SUBSYS=ALL",
              "NCCL_VERSION=2", "CUDNN_VERSION=9", "NCCL_SOCKET_IFNAME=eth0", "CUDNN_PATH=/x", "CUDNN_LOGINFO_DBG=1",
              "TORCHINDUCTOR_CACHE_DIR=/x", "KMP_DUPLICATE_LIB_OK=1", "KMP_INIT_AT_FORK=FALSE", "OMP_DISPLAY_ENV=true",
              "HF_HOME=/x", "MKL_CBWR=")


def test_variables_that_change_arithmetic_or_speed_are_part_of_what_ran(monkeypatch):
    flags = dict.fromkeys(["max_train_examples", "max_eval_examples"]) | {"task": "imdb"}
    monkeypatch.setattr("measurement.run_json.WORKLOAD_FLAGS", tuple(flags))
    same = {"model": "m", "tokenizer": "t", "data": {}}
    for setting in own_settings(ARITHMETIC, SPEED):
        monkeypatch.delenv(setting.partition("=")[0])
    plain = workload_hash(flags, same)
    for settings, in_workload, in_hardware in ((IN_WORKLOAD, True, True), (IN_HARDWARE, False, True),
                                               (IN_NEITHER, False, False)):
        for setting in settings:
            with monkeypatch.context() as patch:
                patch.setenv(*setting.split("=", 1))
                assert own_settings(ARITHMETIC, SPEED) == [setting] * in_hardware
                assert (workload_hash(flags, same) != plain) == in_workload, setting
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so.2 /opt/x/libm.so")
    assert own_settings(SPEED) == ["LD_PRELOAD=libjemalloc.so.2 libm.so"]


def test_rows_of_another_environment_share_no_table(tmp_path):
    write_run(tmp_path / "a", devices=2, hardware="CPU X")
    write_run(tmp_path / "b", "pipeline", 2, hardware="CPU X, MKL_CBWR=COMPATIBLE")
    assert rows_of(tmp_path)["baseline"].isna().all()


# ---------------------------------------------------------------------- the code

def test_the_digest_of_the_code_covers_what_trains_and_measures(tmp_path):
    files = {"workload/a.py": "a", "workload/models/b.py": "b", "measurement/rates.csv": "1"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    digest = source_digest(tmp_path)
    for name in ("plots.py", "workload/__pycache__/a.pyc", "workload/notes.md", "measurement/.#a.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("other")
        assert source_digest(tmp_path) == digest, name
    others = set()
    for name, text in files.items():
        (tmp_path / name).write_text(text + "!")
        others.add(source_digest(tmp_path))
        (tmp_path / name).write_text(text)
    (tmp_path / "workload/a.py").rename(tmp_path / "workload/c.py")
    others.add(source_digest(tmp_path))
    assert len(others | {digest}) == 5 and re.fullmatch("[0-9a-f]{12}", digest)
    assert source_digest() == source_digest(ROOT) and file_digest(tmp_path / "nowhere.py") is None


@pytest.fixture
def job(tmp_path, cache):
    """A job of one process that has not begun."""
    task = open_small("squad_v2", tmp_path)
    task.load()
    processes = Processes(0, 0, 1, (torch.device("cpu"),), 1, None)
    folder = tmp_path / "run"
    folder.mkdir()
    return Job("ddp", task.arguments, task, processes, 1, 1, None, BatchSplit(1, 1, 2), "fp32", 4, 4, 4,
               folder, 0.0, None)


def describe(job, config=None, note=None):
    digests = {"model": "m", "hub_commit": None, "tokenizer": "t", "data": dict.fromkeys(job.task.files, "d")}
    ranks = [{"rank": 0, "replica": 0, "stage": 0, "parameters": 1}]
    return describe_run(job, ranks, config, digests, note)


def test_a_note_stands_in_the_record_from_the_beginning(job):
    """However the run ends."""
    path = job.folder / "run.json"
    assert "note" not in describe(job)
    record = RunJson(path, describe(job, note="one device"))
    assert json.loads(path.read_text())["note"] == "one device"
    for status in ("stopped", "failed"):
        record = RunJson(path, record.content)
        mark_ended(path, status, "SIGTERM, after step 3")
        ended = json.loads(path.read_text())
        assert (ended["note"], ended["status"], ended["reason"]) == ("one device", status, "SIGTERM, after step 3")
    record.finish("hash", {"f1": "none"}, "no rate", [0.5, None])
    finished = json.loads(path.read_text())
    assert (finished["note"], finished["status"], finished["reason"]) == ("one device", "finished", None)
    assert (finished["order_hash"], finished["empty"]) == ("hash", {"f1": "none"}) and finished["ended"]
    assert finished["at_the_end"]["matrix_product_s"] == [0.5, None]


def test_the_record_tells_deepspeed_configs_apart(job):
    digests = {describe(job, config)["deepspeed_config_digest"]
               for config in (None, {}, zero_config(), zero_config(overlap_comm=True))}
    assert len(digests) == 4 and None in digests
    one, same = ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert describe(job, one)["deepspeed_config_digest"] == describe(job, same)["deepspeed_config_digest"]


# ---------------------------------------------------------------------- a real run

def test_a_run_records_what_it_trained_and_is_not_resumed_with_another_model(model, tmp_path, environment):
    """Its checkpoint holds the weights, but the record would say of the new ones that they had been trained."""
    words = [*EXACT, "--model", str(model), "--max_steps", "4", "--output_dir", str(tmp_path), "--run_name", "run"]
    (tmp_path / "output").mkdir()

    def start(*more, **variables):
        return run_ranks("bert_baseline.py", [*words, *more], 1, environment | variables, tmp_path / "output", 240)

    assert start(MKL_CBWR="COMPATIBLE").returncode == 0
    run = FinishedRun(tmp_path / "run", None)
    assert run.description["environment"] == ["MKL_CBWR=COMPATIBLE"]
    assert run.summary["hardware"].endswith(", MKL_CBWR=COMPATIBLE")
    assert len(run.description["model"]["sha256"]) == len(run.description["tokenizer"]["sha256"]) == 64
    change_json(run.folder / "run.json", status="stopped")
    before = (run.folder / "steps.csv").read_text()
    for action, word in ((change_weight, "model"), (swap_words, "tokenizer")):
        kept = shutil.copytree(model, tmp_path / f"before_{word}")
        action(model)
        done = start("--resume")
        [line] = stray_lines(done)
        assert done.returncode == 2 and f"began with another {word}, whose files differ" in line
        assert (run.folder / "steps.csv").read_text() == before
        shutil.rmtree(model)
        shutil.copytree(kept, model)
    assert start("--resume").returncode == 0
