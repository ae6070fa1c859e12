"""Who is missing when nothing goes on: a rank that hangs in a collective waits for another, and this says for which."""

import os
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from measurement.run_json import mark_ended

BEAT_S = 1.0  # between two signs of life


class Heartbeat:
    """A thread that tells the others how far this rank is, and ends the process if that stays the same for too long.

    Args:
        run_json: to be told which rank is missing.
        rank: this one.
        ranks: all, as `devices_of_rank` describes them.
        timeout_s: seconds that a step may take.
    """

    def __init__(self, run_json: Path, rank: int, ranks: list[dict], timeout_s: float) -> None:
        self.run_json, self.rank, self.ranks, self.timeout_s = run_json, rank, ranks, timeout_s
        self.step = 0
        self.since: float | None = None  # when the step began, None where nothing is to be expected
        store = dist.distributed_c10d._get_default_store()
        while hasattr(store, "underlying_store"):
            store = store.underlying_store
        self.store = dist.PrefixStore("heartbeat", store.clone())  # the training's own may be blocked
        self.store.set_timeout(timedelta(seconds=5))
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def expect(self, step: int) -> None:
        """A step begins, which must end in time."""
        self.step, self.since = step, time.monotonic()

    def pause(self) -> None:
        """What follows takes as long as it takes: an evaluation, a checkpoint."""
        self.since = None

    def _beat(self) -> None:
        beats = 0
        while True:
            beats += 1
            try:
                self.store.set(str(self.rank), f"{beats} {self.step}")
            except RuntimeError:  # the store is gone, and with it the run
                return
            since = self.since
            # One rank after the other, so that one speaks for all.
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
            reason = f"{waited}; all ranks are in it. --hang_timeout_s gives it longer"
        mark_ended(self.run_json, "failed", reason)
        print("error:", reason, file=sys.stderr, flush=True)
        for rank in self.ranks:  # what does not answer heeds no other signal either
            if rank["rank"] in silent and rank["node"] == self.ranks[self.rank]["node"]:
                os.kill(rank["pid"], signal.SIGKILL)
        os._exit(1)

    def _missing(self) -> tuple[list[int], list[int]]:
        """Ranks that give no sign of life, and those that do but are behind this one."""
        before = self._signs()
        time.sleep(3 * BEAT_S)
        now = self._signs()
        others = [rank["rank"] for rank in self.ranks if rank["rank"] != self.rank]
        silent = [rank for rank in others if now.get(rank) in (None, before.get(rank))]
        return silent, [rank for rank in others if rank not in silent and int(now[rank].split()[1]) < self.step]

    def _signs(self) -> dict[int, str]:
        signs = {}
        for rank in range(len(self.ranks)):
            try:
                signs[rank] = self.store.get(str(rank)).decode()
            except (dist.DistStoreError, RuntimeError):
                continue
        return signs


def _in_words(ranks: list[int]) -> str:
    return " and ".join(f"rank {rank}" for rank in ranks)
