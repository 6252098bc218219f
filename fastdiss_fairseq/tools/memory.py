"""How much memory a computation takes."""

import os
from typing import Callable

import torch
from torch.autograd.profiler import profile

MIB = 2**20


def peak_memory_mb(device: torch.device) -> float:
    """Most memory held so far in MiB: allocated by torch on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / MIB, 1)
    import resource  # not on Windows

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)


def working_memory_mb(run: Callable[[object], object], batch, device: torch.device) -> float:
    """The most that ``run(batch)`` holds at once of torch's memory, in MiB, beyond what was held before: not the weights, and
    nothing that other libraries or kernels allocate by themselves."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run(batch)
        return round((torch.cuda.max_memory_allocated(device) - before) / MIB, 2)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else torch 2.13 writes two lines on stderr each time
    with profile(profile_memory=True) as profiled:
        run(batch)
    changes = [event for event in profiled.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns() if hasattr(event, "start_ns") else event.start_us())
    held = most = 0
    for event in changes:
        held += event.nbytes()
        most = max(most, held)
    return round(most / MIB, 2)
