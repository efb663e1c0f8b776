"""What a network costs: parameters, multiply-adds and FLOPs, counted; time, memory and throughput, measured."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from csamnet.baselines import PUBLISHED
from csamnet.config import make_config
from csamnet.evaluate import autocast, build_model, pick_device, pick_precision
from csamnet.files import InputError, read_json, write_json
from csamnet.processes import fresh_processes
from csamnet.results import hardware, libraries


def complexity(model: nn.Module, size: int = 256) -> dict[str, int]:
    """Parameters, multiply-adds and FLOPs of one image `(1, 3, size, size)` in inference.

    Counted are convolutions, plain and transposed, and matrix products: linear layers and attention. A multiply-add is
    two FLOPs. Not counted are biases, norms, activations, pooling, interpolation, sampling and element-wise products.
    Only shapes are followed, on the meta device: the weights are neither copied nor used.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    shapes = {name: tensor.detach().to("meta") for name, tensor in tensors}
    training = model.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        functional_call(model.eval(), shapes, torch.zeros(1, 3, size, size, device="meta"))
    model.train(training)
    flops = counter.get_total_flops()
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "multiply_adds": flops // 2, "flops": flops}


def complexity_table(size: int = 256) -> pd.DataFrame:
    """A row a network: what we count at full size, beside what the paper prints (`PUBLISHED`).

    The paper's M is 2**20, to the printed digit; its G fits some networks as 2**30 and others as 1e9. Here
    `paper_parameters` and `paper_multiply_adds` are the printed numbers times 2**20 and 2**30.
    """
    rows = []
    for name, (millions, gmacs) in PUBLISHED.items():
        rows.append({"model": name, **complexity(full_size(name), size), "printed_m": millions, "printed_g": gmacs})
    table = pd.DataFrame(rows).set_index("model")
    return table.assign(paper_parameters=table.printed_m * 2**20, paper_multiply_adds=table.printed_g * 2**30)


def full_size(name: str) -> nn.Module:
    """A network by its name without values, on the meta device; `CSAMNet`, as the paper says, is size S."""
    with torch.device("meta"):
        return build_model(make_config(model="CSAMNet-S" if name == "CSAMNet" else name))


def latency(
    model: nn.Module,
    size: int = 256,
    device: str = "auto",
    *,
    batch: int = 1,
    precision: str = "auto",
    runs: int = 20,
    warmup: int = 5,
) -> dict[str, float | None]:
    """Median seconds and peak memory in MiB of one forward pass of `(batch, 3, size, size)`, in inference.

    The model is moved to the device, channels last. Peak memory is that of all tensors on a GPU, weights included;
    on a CPU under Linux, the largest resident memory of the whole process during the runs, Python and libraries
    included (`VmHWM`), and what it held before and has not given back; elsewhere None.
    """
    place = pick_device(device)
    model = model.to(place, memory_format=torch.channels_last).eval()
    images = torch.rand(batch, 3, size, size, device=place).contiguous(memory_format=torch.channels_last)
    seconds = []
    with torch.inference_mode(), autocast(precision, place):
        for run in range(warmup + runs):
            if run == warmup:
                known = _reset_peak(place)
            started = time.perf_counter()
            model(images)
            if place.type == "cuda":
                torch.cuda.synchronize(place)
            seconds.append(time.perf_counter() - started)
    return {"seconds": statistics.median(seconds[warmup:]), "peak_memory_mb": _peak_mb(place) if known else None}


def throughput(
    model: nn.Module,
    device: str = "auto",
    *,
    size: int = 256,
    batches: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128),
    precision: str = "auto",
    runs: int = 5,
) -> dict[str, float]:
    """Images per second at the best of `batches`, and that batch.

    Stops after two batches in a row that bring less than 2 %, and at one that does not fit on the GPU.
    """
    best, idle = {"images_per_s": 0.0, "batch": 0}, 0
    for batch in batches:
        try:
            timed = latency(model, size, device, batch=batch, precision=precision, runs=runs, warmup=2)
        except torch.OutOfMemoryError:
            break
        rate = batch / timed["seconds"]
        idle = 0 if rate > 1.02 * best["images_per_s"] else idle + 1
        if rate > best["images_per_s"]:
            best = {"images_per_s": rate, "batch": batch}
        if idle == 2:
            break
    return best


def measure_costs(
    models: Sequence[str], out: Path | str, device: str = "auto", say: Callable[[str], None] = print
) -> Path:
    """Count and time full-size networks at 256 and 1024 pixels; write `<out>/<device>.json`, one network at a time.

    A network that the file already has, of the same libraries and hardware, is not measured again; where they differ
    the file is `<device>-2.json`, and so on. Raises InputError for an unknown name.
    """
    place = pick_device(device)
    about = {"hardware": hardware(place), "libraries": libraries(), "precision": pick_precision("auto", place)}
    stem = re.sub(r"[^A-Za-z0-9]+", "-", about["hardware"]["device"])
    paths = (Path(out) / f"{stem}{'' if n == 1 else f'-{n}'}.json" for n in count(1))
    path = next(path for path in paths if not path.exists() or _same(read_costs(path), about))
    known = {row["model"]: row for row in (read_costs(path)["rows"] if path.exists() else [])}
    for name in [make_config(model=name).model for name in models]:
        known[name] = row = known.get(name) or {"model": name} | _apart(name, device)
        write_json(path, about | {"rows": [*known.values()]})
        say(f"{name}: {1e3 * row['seconds_256']:.0f} ms, {row['images_per_s']:.1f} images/s")
    return path


def _same(old: dict, about: dict) -> bool:
    return all(old[key] == about[key] for key in ("hardware", "libraries", "precision"))


def read_costs(path: Path) -> dict:
    """A file that `measure_costs` wrote. Raises InputError where it is damaged."""
    about, needed = read_json(path), ("hardware", "libraries", "precision", "rows")
    try:
        sound = all(key in about for key in needed) and isinstance(about["libraries"]["torch"], str)
        for row in about["rows"] if sound else ():
            values = [row[key] for key in COSTS] + [row[key] for key in MEMORY if row[key] is not None]
            sound = sound and isinstance(row["model"], str) and all(value > 0 for value in values)
    except (KeyError, TypeError):
        sound = False
    if not sound:
        mend = "remove it and run csamnet complexity"
        raise InputError("not what csamnet complexity writes", path=path, expected=", ".join(needed), mend=mend)
    return about


COSTS = ("parameters", "multiply_adds", "flops", "seconds_256", "seconds_1024", "images_per_s", "batch")
MEMORY = ("peak_memory_mb_256", "peak_memory_mb_1024")


def _apart(name: str, device: str) -> dict[str, float]:
    """`_measured` in a process of its own, since one that has held a large network keeps its memory."""
    with fresh_processes(1) as pool:
        return pool.submit(_measured, name, device).result()


def _measured(name: str, device: str) -> dict[str, float]:
    """Everything about one network with random weights: neither counts nor times depend on them."""
    network = build_model(make_config(model=name))
    row = complexity(network)
    for size in (256, 1024):
        row |= {f"{key}_{size}": value for key, value in latency(network, size, device, runs=3, warmup=1).items()}
    return row | throughput(network, device, runs=3)


def _reset_peak(device: torch.device) -> bool:
    """Start to measure peak memory anew; False where that cannot be done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed
        return False
    return True


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**10
