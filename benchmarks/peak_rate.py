"""The rate at which one device multiplies large matrices: what to give as --peak_tflops where no data sheet is at hand.

    python -m benchmarks.peak_rate                    # one CPU thread, fp32
    python -m benchmarks.peak_rate --cpu_threads 2 --precision bf16

A data sheet's peak is higher than any program reaches; this is what PyTorch's own matrix product does reach, so an
MFU against it is a share of the attainable. Say which one was used when you quote it.
"""

import statistics
import time

import torch

from workload.flag_groups import Parser

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> None:
    parser = Parser()
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--cpu_threads", type=int, default=1)
    parser.add_argument("--size", type=int, default=None, help="of the square matrices (8192 on a GPU, 1024 on a CPU)")
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(options.cpu_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = options.size or (8192 if device.type == "cuda" else 1024)
    a, b = (torch.randn(size, size, device=device, dtype=DTYPES[options.precision]) for _ in range(2))
    rates = []
    for _ in range(options.repeats + 5):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()
        rates.append(2 * size**3 / (time.perf_counter() - began) / 1e12)
    rates = rates[5:]  # the first ones choose kernels and wake clocks
    print(f"{options.precision}, {size} x {size}, {device}: median {statistics.median(rates):.4g} TFLOPS, "
          f"{min(rates):.4g} to {max(rates):.4g} in {len(rates)} products")


if __name__ == "__main__":
    main()
