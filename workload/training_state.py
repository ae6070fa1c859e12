"""The state of training, in a form that every strategy can resume from: whole tensors by their Hugging Face names.

For each parameter these are its value and AdamW's two moments, however the devices divide them. Everything else that a
strategy keeps is rebuilt: a resumed run first does one step and discards it, which leaves buckets, buffers and empty
optimizer states as they were; then `restore` fills in the values.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from workload.models.layers import Layer

MOMENTS = ("exp_avg", "exp_avg_sq")


class TrainingState:
    """The state of a strategy whose ranks hold parameters or DTensors, and an optimizer over these.

    Args:
        parameters: this rank's, under their names in the Hugging Face model; copies of one share its name.
        optimizer: ours, of `build_optimizer`.
        schedule: of its learning rate.
        scaler: fp16's loss scaler; anything with `state_dict` and `load_state_dict`.
        devices: those whose random generators dropout uses.
    """

    def __init__(self, parameters: Iterable[tuple[str, torch.nn.Parameter]], optimizer: torch.optim.AdamW,
                 schedule: LRScheduler, scaler: Any, devices: Iterable[torch.device]) -> None:
        self.parameters = list(parameters)
        self.optimizer, self.schedule, self.scaler = optimizer, schedule, scaler
        self.gpus = [device for device in devices if device.type == "cuda"]

    def save(self, folder: Path) -> dict:
        """Write all ranks' tensors; to be called on every rank. Returns the rest, which is the same on each.

        Raises:
            OSError: on every rank, if one could not write.
        """
        # These take a second, and few runs write checkpoints.
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        try:
            save(self._tensors() | self._random_states(),
                 storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
        except CheckpointException as error:  # a BaseException that holds each rank's error
            raise next(iter(error.failures.values()))[0] from None
        steps = {int(state["step"]) for state in self.optimizer.state.values()}
        return {"optimizer_updates": steps.pop(), "schedule_steps": self.schedule.last_epoch,
                "scaler": self.scaler.state_dict(), "processes": dist.get_world_size()}

    def restore(self, folder: Path, rest: dict, same_processes: bool) -> None:
        """Put back the tensors in `folder`, of which each rank reads its own, and the `rest` that `save` returned.

        Args:
            same_processes: whether the same strategy saved them with as many processes. If not, random generators are
                left as they are, because other processes draw other numbers. So they are if this process has a device
                for which no state was saved, such as a GPU after CPU processes.
        """
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        reader = HuggingFaceStorageReader(str(folder))
        tensors, random_states = self._tensors(), self._random_states()
        if not same_processes or not random_states.keys() <= reader.read_metadata().state_dict_metadata.keys():
            random_states = {}
        load(tensors | random_states, storage_reader=reader)
        with torch.no_grad():
            self._put(tensors)
        for state in self.optimizer.state.values():
            if isinstance(state["step"], Tensor):
                state["step"].fill_(rest["optimizer_updates"])
            else:
                state["step"] = rest["optimizer_updates"]
        self.schedule.last_epoch = rest["schedule_steps"] - 1
        self.schedule.step()
        self.scaler.load_state_dict(rest["scaler"])
        if random_states:
            self._put_random_states(list(random_states.values()))

    def _tensors(self) -> dict[str, Tensor]:
        """Parameters and moments; here the very tensors that are trained, so that reading into them restores them."""
        tensors = {}
        for name, parameter in self.parameters:
            tensors[name] = parameter.detach()
            tensors |= {f"{name}/{moment}": self._moment(parameter, moment) for moment in MOMENTS}
        return tensors

    def _moment(self, parameter: torch.nn.Parameter, name: str) -> Tensor:
        return self.optimizer.state[parameter][name]

    def _put(self, tensors: dict[str, Tensor]) -> None:
        """Copy tensors that were read to those that are trained, unless they are the same."""
        for name, parameter in self.parameters:
            parameter.copy_(tensors[name])
            for moment in MOMENTS:
                self._moment(parameter, moment).copy_(tensors[f"{name}/{moment}"])

    def _random_states(self) -> dict[str, Tensor]:
        """The CPU's, then those of this process's GPUs, by their place among them: their index depends on the node."""
        states = {"cpu": torch.get_rng_state()}
        states |= {f"gpu{place}": torch.cuda.get_rng_state(gpu) for place, gpu in enumerate(self.gpus)}
        return {f"random/{dist.get_rank()}/{device}": state for device, state in states.items()}

    def _put_random_states(self, states: list[Tensor]) -> None:
        """Put back what `_random_states` gave, in its order."""
        cpu, *of_gpus = states
        torch.set_rng_state(cpu)
        for gpu, state in zip(self.gpus, of_gpus, strict=True):
            torch.cuda.set_rng_state(state, gpu)


class ZeroTrainingState(TrainingState):
    """The state under DeepSpeed's ZeRO 1 to 3: its ranks hold pieces of long vectors, put together for a checkpoint.

    While one is written or read, every process holds all of it in the CPU's memory: three times the parameters in fp32.

    Args:
        zero_optimizer: DeepSpeed's, around ours.
    """

    def __init__(self, parameters: Iterable[tuple[str, torch.nn.Parameter]], optimizer: torch.optim.AdamW,
                 schedule: LRScheduler, zero_optimizer: Any, devices: Iterable[torch.device]) -> None:
        super().__init__(parameters, optimizer, schedule, _ZeroLossScaler(zero_optimizer), devices)
        self.zero_optimizer = zero_optimizer

    def _tensors(self) -> dict[str, Tensor]:
        from deepspeed.utils import (
            lazy_init_hp_params_optimizer_state,
            safe_get_full_fp32_param,
            safe_get_full_optimizer_state,
        )

        # ZeRO 1 and 2 look up where all moments are while they update the first group; those of the second are missing.
        for whole, piece in zip(getattr(self.zero_optimizer, "bit16_groups", ()),
                                getattr(self.zero_optimizer, "single_partition_of_fp32_groups", ()), strict=True):
            lazy_init_hp_params_optimizer_state(whole, piece, self.optimizer.state)
        tensors = {}
        for name, parameter in self.parameters:
            tensors[name] = _on_cpu(safe_get_full_fp32_param(parameter))
            tensors |= {f"{name}/{moment}": _on_cpu(safe_get_full_optimizer_state(parameter, moment))
                        for moment in MOMENTS}
        return tensors

    def _put(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters:
            values = [tensors[name], *(tensors[f"{name}/{moment}"] for moment in MOMENTS)]
            if hasattr(parameter, "ds_tensor"):
                self._put_into_partition(parameter, *values)
            else:
                self._put_into_fragment(parameter, *values)
        if hasattr(self.zero_optimizer, "invalidate_secondary_tensor"):  # ZeRO-3's; hpZ's second copy is out of date
            self.zero_optimizer.invalidate_secondary_tensor()

    def _put_into_fragment(self, parameter: torch.nn.Parameter, value: Tensor, *moments: Tensor) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        parameter.copy_(value)
        safe_set_full_fp32_param(parameter, value)
        for name, moment in zip(MOMENTS, moments, strict=True):
            safe_set_full_optimizer_state(parameter, moment, name)

    def _put_into_partition(self, parameter: Any, value: Tensor, *moments: Tensor) -> None:
        """For ZeRO-3. DeepSpeed's functions for whole tensors fail on those that do not divide evenly.

        Args:
            parameter: with the attributes that ZeRO-3 gives to a `torch.nn.Parameter`.
        """
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        size = parameter.ds_tensor.ds_numel

        def mine(whole: Tensor) -> Tensor:
            piece = whole.flatten()[size * dist.get_rank():size * (dist.get_rank() + 1)]
            return torch.nn.functional.pad(piece, (0, size - len(piece)))

        parameter.ds_tensor.copy_(mine(value).view_as(parameter.ds_tensor))
        if parameter.ds_status.name == "AVAILABLE":  # it is gathered at the moment, or always
            parameter.data.copy_(value)
        safe_set_local_fp32_param(parameter, mine(value))
        for name, moment in zip(MOMENTS, moments, strict=True):
            safe_set_local_optimizer_state(parameter, mine(moment), name)


def _on_cpu(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # DeepSpeed has none for a parameter that it does not train
    return tensor.cpu()


class _ZeroLossScaler:
    """DeepSpeed's scaler of ZeRO's fp16 losses, to be saved and put back as PyTorch's is.

    Args:
        zero_optimizer: DeepSpeed's, which holds the scaler.
    """

    def __init__(self, zero_optimizer: Any) -> None:
        self.zero_optimizer = zero_optimizer

    def state_dict(self) -> dict[str, int | float | bool]:
        return {name: value for name, value in vars(self.zero_optimizer.loss_scaler).items()
                if isinstance(value, int | float)}

    def load_state_dict(self, state: dict[str, int | float | bool]) -> None:
        vars(self.zero_optimizer.loss_scaler).update(state)


def names_in_model(layers: dict[str, Layer], pieces: list[dict[str, Layer]], is_shared: bool,
                   ) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The parameters of some of `ordered_layers`, under their names in the Hugging Face model.

    Args:
        layers: this rank's.
        pieces: all layers, as `cut` returns them.
        is_shared: whether the first and the last share a weight, which is then named after the first.
    """
    first, last = next(iter(pieces[0])), list(pieces[-1])[-1]
    for name, layer in layers.items():
        for key, parameter in layer.module.named_parameters():
            yield f"{first if is_shared and name == last else name}.{key}", parameter
