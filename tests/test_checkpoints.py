"""An interrupted run resumes from its last checkpoint as if nothing had happened, also with another strategy.

`benchmarks/kill_and_resume.py` kills runs at random steps; here finished runs are cut back to what a kill leaves.
"""

import shutil

import pytest
import torch
import torch.distributed as dist

from tests.shared.runs import EXACT, ONE_PROCESS, ROWS, assert_same_computation, rows, weight_difference
from workload.arguments import Arguments
from workload.optimizer import build_lr_schedule, build_optimizer
from workload.precision import build_scaler
from workload.training_state import TrainingState

DDP, GPT2 = ROWS["DDP x 2"], ("--task", "oscar", "--max_seq_length", "64")
OWN_TIMES = {"elapsed_s", "step_s", "data_s", "epoch_s"}


def without_times(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name not in OWN_TIMES} for row in rows]


@pytest.mark.parametrize("command", rows("one process", "DDP x 2", "FSDP x 2", "ZeRO-2 x 2", "ZeRO-3 x 2",
                                         "pipeline 2 x 2", "torch zbv x 2", "HF Trainer x 2",
                                         "pipeline recompute x 2", "FSDP hybrid 2 x 2", "ZeRO-3 hpZ x 2", "tensor x 2",
                                         "tensor sequence FSDP 2 x 2"))
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(command, train, broken_off, resume):
    command = (*command, "--dropout", "0.1", "--eval_steps", "5")
    whole = train(*command)
    folder = broken_off(whole)
    run = resume(folder, *command)
    for name in ("steps.csv", "evaluations.csv", "epochs.csv"):
        assert without_times(run.rows(name)) == without_times(whole.rows(name))
    assert [row["step"] for row in run.rows("steps.csv")] == [str(step) for step in range(1, 9)]
    assert weight_difference(run, whole) == 0
    assert run.description["order_hash"] == whole.description["order_hash"]
    same = ("validation_loss", "f1", "samples", "optimizer_steps", "workload", "noise_scale_samples")
    assert {name: run.summary[name] for name in same} == {name: whole.summary[name] for name in same}
    first, second = run.description["attempts"]
    assert (first["from_step"], second["from_step"]) == (0, 6)
    assert first["source_digest"] == second["source_digest"] == run.summary["source_digest"]


@pytest.mark.parametrize("first, second", [
    *((DDP, ROWS[row]) for row in ("pipeline x 4", "ZeRO-2 x 2", "FSDP x 2", "ZeRO-3 x 4", "torch 1f1b 2 x 2",
                                   "FSDP hybrid 2 x 2", "tensor x 2", "tensor sequence FSDP 2 x 2")),
    (DDP, ONE_PROCESS),
    *((ROWS[row], DDP) for row in ("pipeline x 4", "ZeRO-2 x 2", "FSDP x 2", "torch zbv x 2", "FSDP hybrid 2 x 2",
                                   "tensor x 2", "tensor sequence FSDP 2 x 2")),
], ids=lambda command: "-".join(command[::2]))
def test_a_run_goes_on_with_another_strategy(first, second, train, broken_off, resume):
    run = resume(broken_off(train(*first)), *second)
    assert_same_computation(run, train(*ONE_PROCESS))
    attempts = run.description["attempts"]
    assert [attempt["devices"] for attempt in attempts] == [int(each[2]) for each in (first, second)]
    assert attempts[0]["strategy"] != attempts[1]["strategy"] or first[2] != second[2]
    assert run.summary["strategy"] == attempts[-1]["strategy"]


@pytest.mark.parametrize("first, second", [(DDP, ROWS["torch zbv x 2"]), (ROWS["pipeline x 2"], DDP),
                                           (DDP, ROWS["tensor x 2"]), (ROWS["tensor x 2"], DDP)])
def test_a_weight_that_two_stages_share_goes_on(first, second, train, broken_off, resume):
    run = resume(broken_off(train(*first, *GPT2)), *second, *GPT2)
    assert_same_computation(run, train(*ONE_PROCESS, *GPT2))


@pytest.mark.parametrize("saved_on, restored_on, is_restored", [
    (["cuda:5"], ["cuda:1"], True),  # rank 5 of a node with 8 GPUs, then of two nodes with 4
    (["cuda:0", "cuda:1"], ["cuda:0", "cuda:1"], True),
    ([], ["cuda:0"], False), (["cuda:0"], ["cuda:0", "cuda:1"], False),  # GPUs for which no numbers were saved
])
def test_random_numbers_continue_by_a_gpus_place_in_its_process(saved_on, restored_on, is_restored, tmp_path,
                                                                monkeypatch):
    """If the state of one GPU is missing, none of the process's generators is restored."""
    of_gpus = {torch.device(name): torch.full((16,), place, dtype=torch.uint8) for place, name in enumerate(saved_on)}
    restored: dict[torch.device, torch.Tensor] = {}
    monkeypatch.setattr(torch.cuda, "get_rng_state",
                        lambda gpu: of_gpus.get(gpu, torch.full((16,), 9, dtype=torch.uint8)).clone())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, gpu: restored.update({gpu: state}))
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        def state_of(gpus: list[str]) -> TrainingState:
            model = torch.nn.Linear(2, 2)
            optimizer = build_optimizer(model.parameters(), Arguments())
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            return TrainingState(model.named_parameters(), optimizer, build_lr_schedule(optimizer, Arguments(), 10),
                                 build_scaler("fp32", torch.device("cpu")), map(torch.device, gpus))

        torch.manual_seed(1)
        rest = state_of(saved_on).save(tmp_path)
        following = torch.rand(3)
        state = state_of(restored_on)
        torch.manual_seed(2)
        state.restore(tmp_path, rest, same_processes=True)
        assert torch.equal(torch.rand(3), following) == is_restored
        expected = dict(zip(map(torch.device, restored_on), of_gpus.values(), strict=True)) if is_restored else {}
        assert restored.keys() == expected.keys()
        assert all(torch.equal(restored[gpu], expected[gpu]) for gpu in restored)
    finally:
        dist.destroy_process_group()


def test_a_broken_checkpoint_is_passed_over_for_the_one_before(train, broken_off, resume):
    whole = train(*ONE_PROCESS)
    folder = broken_off(whole)
    tensors = next((folder / "checkpoints" / "step-6").glob("*.safetensors"))
    tensors.write_bytes(tensors.read_bytes()[:-1000])
    run = resume(folder, *ONE_PROCESS)
    assert "step-6: skipped" in run.output.stderr
    assert run.description["attempts"][-1]["from_step"] == 3
    assert weight_difference(run, whole) == 0


def test_time_that_was_lost_counts_towards_runtime_only(train, broken_off, resume):
    whole = train(*ONE_PROCESS)
    folder = broken_off(whole)
    last = float(whole.rows("steps.csv")[6]["elapsed_s"])  # step 7 will be done again
    run = resume(folder, *ONE_PROCESS)
    again = [float(row["elapsed_s"]) for row in run.rows("steps.csv")][6:]
    assert again[0] > last and float(run.summary["runtime_s"]) > again[1]
    steps = run.rows("steps.csv")[2:6]  # two are not timed at the beginning of each attempt
    assert float(run.summary["throughput_samples_per_s"]) == pytest.approx(
        32 * len(steps) / sum(float(row["step_s"]) for row in steps), rel=0.2)


@pytest.mark.parametrize("flags, words", [
    (["--learning_rate", "1e-4"], ["--learning_rate", "3e-05", "0.0001"]),
    (["--seed", "1"], ["--seed 0", "not 1"]),
    (["--overwrite"], ["--overwrite", "--resume"]),
    (["--profile_steps", "1"], ["--profile_steps"]),
])
def test_another_job_is_not_gone_on_with(flags, words, train, broken_off, start_ranks):
    folder = broken_off(train(*ONE_PROCESS))
    before = (folder / "steps.csv").read_text()
    done = start_ranks("bert_baseline.py", *EXACT, "--output_dir", folder.parent, "--run_name", folder.name, "--resume",
                       *flags)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert (folder / "steps.csv").read_text() == before


def test_what_there_is_to_resume(start_ranks, train, tmp_path):
    finished = train(*ONE_PROCESS)
    where = ["--output_dir", tmp_path, "--run_name", "run"]
    done = start_ranks("bert_baseline.py", *EXACT, *where, "--resume")
    assert done.returncode == 2 and "--resume auto" in done.stderr and not (tmp_path / "run").exists()
    shutil.copytree(finished.folder, tmp_path / "run")
    for count in (1, 2):  # no rank waits for one that has ended
        done = start_ranks("bert_baseline.py", *EXACT, *where, "--resume", "auto", count=count)
        assert done.returncode == 0 and done.stdout.count("is finished") == 1
    done = start_ranks("bert_baseline.py", *EXACT, *where, "--resume", "auto", "--learning-rate", "0.5")
    assert done.returncode == 2 and "--learning_rate 3e-05, not 0.5" in done.stderr


def test_a_run_without_a_checkpoint_is_not_replaced_unasked(train, broken_off, start_ranks):
    folder = broken_off(train(*ONE_PROCESS))
    shutil.rmtree(folder / "checkpoints")
    before = (folder / "steps.csv").read_text()
    command = ["bert_baseline.py", *EXACT, "--output_dir", folder.parent, "--run_name", folder.name, "--resume"]
    done = start_ranks(*command)
    assert done.returncode == 2 and "holds no checkpoint" in done.stderr and done.stderr.count("\n") == 1
    (folder / "run.json").write_text("{")
    done = start_ranks(*command)
    assert done.returncode == 2 and "run.json cannot be read" in done.stderr and done.stderr.count("\n") == 1
    assert (folder / "steps.csv").read_text() == before


def test_the_last_two_checkpoints_are_kept(train):
    folder = train(*ONE_PROCESS, "--checkpoint_steps", "1").folder / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-6", "step-7"]
