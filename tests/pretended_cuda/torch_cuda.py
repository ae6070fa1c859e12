"""`torch.cuda` over the pretended device: its own Python code where that stands on few functions of `torch._C`."""

import ctypes
import time
from types import ModuleType, SimpleNamespace

import torch

GIB = 2**30


def install(device: ModuleType) -> None:
    """Let `torch.cuda` find the GPUs of `device`."""
    cuda, count = torch.cuda, device.device_count()

    def exchange(index: int) -> int:
        before = device.current_device()
        device.set_device(index)
        return before

    def memory(index: int) -> dict:
        stats = {"current": device.allocated(index), "peak": device.peak(index)}
        return {name: {"all": stats} for name in ("allocated_bytes", "reserved_bytes", "active_bytes")} | {
            "num_alloc_retries": 0, "num_ooms": 0}

    primitives = {
        "getDeviceCount": lambda: min(count, len(cuda._parse_visible_devices())),  # by CUDA_VISIBLE_DEVICES
        "getDevice": device.current_device, "setDevice": device.set_device,
        "synchronize": lambda: device.wait_for_device("synchronize"), "emptyCache": lambda: None,
        "memoryStats": memory, "resetPeakMemoryStats": device.reset_peak, "getCompiledVersion": lambda: 13000,
        "getCurrentRawStream": lambda index: 0}
    for name, function in primitives.items():
        setattr(torch._C, f"_cuda_{name}", function)
    cuda.nvtx._nvtx = SimpleNamespace(rangePushA=lambda message: 0, rangePop=lambda: 0, markA=lambda message: None)
    torch.version.cuda, cuda.nccl.version = "13.0", lambda: (2, 28, 9)
    cuda._initialized = True
    cuda._exchange_device = cuda._maybe_exchange_device = exchange
    cuda.default_generators = tuple(map(device.generator, range(count)))
    cuda.get_device_properties = lambda of=None: SimpleNamespace(
        name="NVIDIA H100 80GB HBM3", major=9, minor=0, total_memory=80 * GIB, multi_processor_count=132,
        uuid=f"00000000-0000-0000-0000-{cuda._utils._get_device_index(of, True):012}")
    cuda.mem_get_info = lambda of=None: (70 * GIB, 80 * GIB)
    cuda.is_current_stream_capturing = lambda: False
    cuda.can_device_access_peer = lambda one, other: True
    _install_streams(device, count)

    storage_resize = torch.UntypedStorage.resize_

    def resize_(self, size):
        if self.device.type != "cuda":
            return storage_resize(self, size)
        device.resize_storage(self, size)
        return self
    torch.UntypedStorage.resize_ = resize_
    torch.Tensor.record_stream = lambda self, stream: None


def _install_streams(device: ModuleType, count: int) -> None:
    """Streams and events. Work is done when it is issued; an event knows when that was, and what copies came before."""
    cuda = torch.cuda

    class Event:
        def __init__(self, enable_timing=False, **_):
            self.enable_timing, self.moment, self.issued = enable_timing, None, 0

        def record(self, stream=None):
            self.moment, self.issued = time.perf_counter(), device.issued()

        def query(self):
            device.arrive(self.issued)
            return True

        def synchronize(self):
            device.wait_for_device("event.synchronize")

        def wait(self, stream=None):
            pass

        def elapsed_time(self, end):
            """Milliseconds, in CUDA's precision."""
            if not (self.enable_timing and end.enable_timing and self.moment and end.moment):
                raise ValueError("both events must be made with enable_timing=True, and recorded")
            return ctypes.c_float(1000 * (end.moment - self.moment)).value

    class Stream:
        device_type = 1

        def __init__(self, device=None, priority=0, **_):
            self.device_index = cuda._utils._get_device_index(device, True)
            self.device = torch.device("cuda", self.device_index)
            self.stream_id = self.cuda_stream = id(self) % 2**31

        def record_event(self, event=None):
            event = event or Event()
            event.record(self)
            return event

        def synchronize(self):
            device.wait_for_device("stream.synchronize")

        def query(self):
            return True

        def wait_stream(self, stream):
            pass

        wait_event = wait_stream

    defaults = [Stream(index) for index in range(count)]
    current = list(defaults)

    def set_stream(stream):
        current[stream.device_index] = stream

    cuda.Event, cuda.Stream, cuda.ExternalStream, cuda.set_stream = Event, Stream, Stream, set_stream
    cuda.current_stream = lambda of=None: current[cuda._utils._get_device_index(of, True)]
    cuda.default_stream = lambda of=None: defaults[cuda._utils._get_device_index(of, True)]
