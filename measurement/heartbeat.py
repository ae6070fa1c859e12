"""Names the missing rank when a run hangs: the others wait for it in a collective and cannot tell."""

import os
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from measurement.run_json import mark_ended

BEAT_S = 1.0  # seconds between heartbeats


class Heartbeat:
    """A thread that publishes this rank's step, and ends the process if a step takes too long.

    Args:
        run_json: where to record which rank is missing.
        rank: this one.
        ranks: all ranks, as `devices_of_rank` describes them.
        timeout_s: how long a step may take, in seconds.
    """

    def __init__(self, run_json: Path, rank: int, ranks: list[dict], timeout_s: float) -> None:
        self.run_json, self.rank, self.ranks, self.timeout_s = run_json, rank, ranks, timeout_s
        self.step = 0
        self.since: float | None = None  # when the step began; None between steps
        store = dist.distributed_c10d._get_default_store()
        while isinstance(store, PrefixStore):
            store = store.underlying_store
        # A clone, as the training's own connection may be blocked.
        connection = store.clone()  # pyright: ignore[reportAttributeAccessIssue]  PyTorch's stub lacks it
        self.store = PrefixStore("heartbeat", connection)
        self.store.set_timeout(timedelta(seconds=5))
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def expect(self, step: int) -> None:
        """A step begins; it must end within the timeout."""
        self.step, self.since = step, time.monotonic()

    def pause(self) -> None:
        """No timeout until the next step: an evaluation or a checkpoint may take any time."""
        self.since = None

    def _beat(self) -> None:
        beats = 0
        while True:
            beats += 1
            try:
                self.store.set(str(self.rank), f"{beats} {self.step}")
            except RuntimeError:  # the store is gone, so the run has ended
                return
            since = self.since
            # Ranks time out one after the other, so that only one reports.
            if since is not None and time.monotonic() - since > self.timeout_s + self.rank * BEAT_S:
                self._give_up()
            time.sleep(BEAT_S)

    def _give_up(self) -> None:
        silent, behind = self._missing()
        waited = f"step {self.step} did not end within {self.timeout_s:g} s"
        if silent:
            reason = f"{waited}: {_in_words(silent)} is silent"
        elif behind:
            reason = f"{waited}: {_in_words(behind)} is still at an earlier one"
        else:
            reason = f"{waited}; all ranks are in it. Use a larger --hang_timeout_s if it needs longer"
        mark_ended(self.run_json, "failed", reason)
        print("error:", reason, file=sys.stderr, flush=True)
        for rank in self.ranks:  # a silent process does not react to other signals either
            if rank["rank"] in silent and rank["node"] == self.ranks[self.rank]["node"]:
                os.kill(rank["pid"], signal.SIGKILL)
        os._exit(1)

    def _missing(self) -> tuple[list[int], list[int]]:
        """Ranks without a heartbeat, and ranks with one that are behind this one."""
        before = self._heartbeats()
        time.sleep(3 * BEAT_S)
        now = self._heartbeats()
        others = [rank["rank"] for rank in self.ranks if rank["rank"] != self.rank]
        silent = [rank for rank in others if now.get(rank) in (None, before.get(rank))]
        return silent, [rank for rank in others if rank not in silent and int(now[rank].split()[1]) < self.step]

    def _heartbeats(self) -> dict[int, str]:
        beats = {}
        for rank in range(len(self.ranks)):
            try:
                beats[rank] = self.store.get(str(rank)).decode()
            except (dist.DistStoreError, RuntimeError):
                continue
        return beats


def _in_words(ranks: list[int]) -> str:
    return " and ".join(f"rank {rank}" for rank in ranks)
