"""Whether the machine stayed the same, from made-up counters and on a real run."""

import time
from collections import namedtuple

import psutil
import pytest

from measurement.columns import DEVICE_COLUMNS, MACHINE
from measurement.machine_state import ProcessorShares, cpu_clock_mhz, drift_pct
from measurement.monitor import Monitor
from measurement.table import Table
from tests.shared.runs import ROWS

Linux = namedtuple("Linux", "user nice system idle iowait irq softirq steal guest guest_nice")
MacOs = namedtuple("MacOs", "user nice system idle")


@pytest.mark.parametrize("products, drift", [
    ([2.0, 2.0], 0), ([2.0, 3.0], 50), ([2.0, 1.0], -50), ([2.0, 2.2, 1.9], 10), ([2.0, 2.2, 1.0, 2.0], -50)])
def test_drift_is_the_largest_change_from_the_first_measurement(products, drift):
    assert drift_pct(products) == pytest.approx(drift)


def test_one_measurement_says_nothing_of_drift():
    assert drift_pct([]) is None and drift_pct([2.0]) is None


def shares(monkeypatch, before, after, own_seconds: float) -> dict[str, float]:
    counters = iter([before, after])
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(counters))
    return ProcessorShares().since_last_call(own_seconds)


def test_who_had_the_processors(monkeypatch):
    # 20 s of all cores: 12 busy, 1 of them for a guest (counted in user, too), 2 stolen, 5 idle, 1 waiting for a disk.
    after = Linux(user=6, nice=1, system=3, idle=5, iowait=1, irq=1, softirq=1, steal=2, guest=1, guest_nice=0)
    found = shares(monkeypatch, Linux(*[0] * 10), after, own_seconds=9)
    assert found == {"other_load_pct": pytest.approx(15), "steal_pct": pytest.approx(10)}
    found = shares(monkeypatch, MacOs(1, 0, 1, 8), MacOs(5, 0, 3, 12), own_seconds=6)
    assert found == {"other_load_pct": pytest.approx(0)}, "a system that does not count steal"
    assert not shares(monkeypatch, MacOs(1, 0, 1, 8), MacOs(1, 0, 1, 8), own_seconds=0), "no time has passed"


def test_the_monitor_counts_what_others_had_while_throughput_was_measured(monkeypatch, tmp_path):
    elapsed = iter(range(100))
    monkeypatch.setattr(psutil, "cpu_times", lambda: MacOs(user=(now := next(elapsed)), nice=0, system=0, idle=3 * now))
    monitor = Monitor(Table(tmp_path / "devices.csv", DEVICE_COLUMNS), time.time(), [{
        "rank": 0, "pid": psutil.Process().ppid(), "devices": [{"device": "cpu", "gpu": None}]}])
    monitor.open_window()
    time.sleep(1.2)
    readings = monitor.stop()[0]
    # The parent process waits for this one.
    assert readings["other_load_pct"] == pytest.approx(25, abs=3) and readings["steal_pct"] is None
    assert readings["cpu_clock_mhz"] == pytest.approx(cpu_clock_mhz(), rel=0.9)


def test_a_run_tells_how_its_machine_was(train):
    run = train(*ROWS["DDP x 2"])
    [attempt], end = run.description["attempts"], run.description["at_the_end"]
    assert all(product > 0 for product in attempt["matrix_product_s"] + end["matrix_product_s"])
    assert attempt["load_average"] > 0 and end["load_average"] > 0
    drifts = [100 * (after / before - 1) for before, after in
              zip(attempt["matrix_product_s"], end["matrix_product_s"], strict=True)]
    assert [float(row["machine_drift_pct"]) for row in run.rows("ranks.csv")] == pytest.approx(drifts)
    assert float(run.summary["machine_drift_pct"]) == pytest.approx(max(drifts, key=abs))
    assert all(run.summary[name] or run.description["empty"][name] for name in MACHINE)
    assert run.description["empty"]["sm_clock_mhz"] == "the run used no GPU"
