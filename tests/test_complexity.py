"""Costs against values worked by hand, and a clock and a memory meter that are seen to work."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csamnet.baselines import PUBLISHED
from csamnet.files import InputError, write_json
from csamnet.model import CSAMNet
from csamnet.pages import complexity as module
from csamnet.pages.complexity import complexity, complexity_table, latency, throughput
from csamnet.pages.tables import costs_measured
from csamnet.processes import fresh_processes


class Attention(nn.Module):
    """Every pixel of a 2 x 2 mean image attends to all four."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 2).flatten(2).mT[:, None]  # (B, 1, 4, 3)
        return F.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize(
    ("layer", "parameters", "multiply_adds"),
    [
        (nn.Conv2d(3, 5, 3, padding=1), 3 * 5 * 9 + 5, 3 * 5 * 9 * 8 * 8),
        (nn.Conv2d(3, 5, 3), 3 * 5 * 9 + 5, 3 * 5 * 9 * 6 * 6),
        (nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), 3 * 4 * 9, 3 * 4 * 9 * 4 * 4),
        (nn.Conv2d(3, 6, 5, padding=2, groups=3), 6 * 25 + 6, 6 * 25 * 8 * 8),
        (nn.ConvTranspose2d(3, 2, 2, stride=2), 3 * 2 * 4 + 2, 3 * 2 * 4 * 8 * 8),
        (nn.Linear(8, 4), 8 * 4 + 4, 8 * 4 * 3 * 8),
        (Attention(), 0, 2 * 4 * 4 * 3),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Upsample(scale_factor=2)), 6, 0),
    ],
    ids=["conv", "valid", "strided", "grouped", "transposed", "linear", "attention", "not counted"],
)
def test_multiply_adds_by_hand(layer, parameters, multiply_adds):
    expected = {"parameters": parameters, "multiply_adds": multiply_adds, "flops": 2 * multiply_adds}
    assert complexity(layer, 8) == expected


def test_counting_leaves_the_model_as_it_is():
    model = CSAMNet(4).train()
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    found = complexity(model, 128)
    assert model.training
    assert all(p.device.type == "cpu" for p in model.parameters())
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())
    with torch.device("meta"):
        layer = nn.Conv2d(3, 1, 1)
    assert complexity(layer, 4)["multiply_adds"] == 3 * 16
    assert found["parameters"] == 110_052


def test_the_released_network():
    found = complexity(CSAMNet())
    assert found["parameters"] == 6_757_014
    assert found["flops"] / 1e9 == pytest.approx(11.10, abs=0.005)


def test_table_of_all_networks(monkeypatch):
    monkeypatch.setattr(module, "complexity", lambda model, size: {"parameters": 7, "multiply_adds": size, "flops": 0})
    monkeypatch.setattr(module, "full_size", lambda name: name)
    table = complexity_table(64)
    assert [*table.index] == [*PUBLISHED]
    assert (table["multiply_adds"] == 64).all()
    assert table.loc["UNet", "paper_parameters"] == 32.92 * 2**20
    assert table.loc["UNet", "paper_multiply_adds"] == 61 * 2**30
    assert table.loc["HoVer-NeXt", ["printed_m", "printed_g", "paper_parameters"]].isna().all()


def test_names_of_the_paper():
    assert [module.full_size(name).width for name in ("CSAMNet", "CSAMNet-M", "CSAMNet-L")] == [32, 40, 72]
    assert next(module.full_size("SegNet").parameters()).is_meta


class Large(nn.Module):
    """Fills 64 MiB."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(2**24).sum() + x


class Late(nn.Module):
    """Lets a clock run on by the next of its seconds at each call."""

    def __init__(self, *seconds: float):
        super().__init__()
        self.now, self.seconds = 0.0, list(seconds)

    def forward(self, x: Tensor) -> None:
        self.now += self.seconds.pop(0)


def test_latency_is_the_median_after_warm_up(monkeypatch):
    model = Late(8, 8, 1, 2, 9).train()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: model.now))
    assert latency(model, 8, "cpu", runs=3, warmup=2)["seconds"] == 2
    assert not model.training
    assert model.seconds == []
    with pytest.raises(InputError, match="unknown device"):
        latency(model, 8, "tpu")


def peaks_after_a_larger_one() -> list[float | None]:
    large = torch.ones(2**26)  # 256 MiB, and gone before the measurement
    assert large.sum() == 2**26
    del large
    return [latency(model, 8, "cpu", runs=2)["peak_memory_mb"] for model in (nn.Identity(), Large())]


def test_peak_memory_is_measured_anew(monkeypatch):
    """In a process of its own: the heap of one that has run tests may hold 64 MiB free, and then none are added."""
    with fresh_processes(1) as pool:
        nothing, large = pool.submit(peaks_after_a_larger_one).result()
    if nothing is None:
        pytest.skip("the system does not say")
    assert 56 < large - nothing < 128
    monkeypatch.setattr(module, "_reset_peak", lambda device: False)
    assert latency(nn.Identity(), 8, "cpu", runs=1)["peak_memory_mb"] is None


def test_throughput_stops_at_the_best_batch(monkeypatch):
    tried = []

    def clock(seconds: dict[int, float]):
        def timed(model, size, device, *, batch, **_):
            tried.append(batch)
            if batch not in seconds:
                raise torch.OutOfMemoryError
            return {"seconds": seconds[batch]}

        tried.clear()
        monkeypatch.setattr(module, "latency", timed)

    clock({1: 1.0, 2: 1.0, 4: 1.0, 8: 2.1, 16: 5.0, 32: 1.0})
    assert throughput(nn.Identity()) == {"images_per_s": 4.0, "batch": 4}
    assert tried == [1, 2, 4, 8, 16]
    clock({1: 1.0, 2: 1.0})
    assert throughput(nn.Identity()) == {"images_per_s": 2.0, "batch": 2}
    assert tried == [1, 2, 4]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    found = latency(CSAMNet(4), 128, "cuda", runs=3)
    assert 0 < found["peak_memory_mb"] < 500
    assert throughput(CSAMNet(4), "cuda", size=128, batches=(1, 2))["batch"] in (1, 2)


def process_of(*_) -> int:
    return os.getpid()


def test_each_network_is_measured_in_a_process_of_its_own(monkeypatch):
    """Else its memory would hold what the one before it left."""
    monkeypatch.setattr(module, "_measured", process_of)
    assert module._apart("CSAMNet-S", "cpu") != os.getpid()


def test_costs_are_measured_once_and_kept(tmp_path, monkeypatch):
    calls = []

    def timed(network, size, device, **_):
        calls.append(size)
        return {"seconds": size / 1000, "peak_memory_mb": 10.0}

    monkeypatch.setattr(module, "latency", timed)
    monkeypatch.setattr(module, "throughput", lambda *_, **__: {"images_per_s": 4.0, "batch": 2})
    monkeypatch.setattr(module, "_apart", module._measured)
    path = module.measure_costs(["CSAMNet-S"], tmp_path, "cpu", say=str)
    assert path == module.measure_costs(["CSAMNet-S", "DCSAU-Net"], tmp_path, "cpu", say=str)
    assert calls == [256, 1024] * 2, "what is there is not measured again"
    monkeypatch.setattr(module, "hardware", lambda place: {"device": "cpu", "processor": "another", "threads": 1})
    other = module.measure_costs(["CSAMNet-S"], tmp_path, "cpu", say=str)
    assert (path.name, other.name) == ("cpu.json", "cpu-2.json")
    assert len(module.read_costs(path)["rows"]) == 2, "another machine has a file of its own"

    def stopped(name, device):
        raise KeyboardInterrupt

    monkeypatch.undo()
    monkeypatch.setattr(module, "_apart", stopped)
    with pytest.raises(KeyboardInterrupt):
        module.measure_costs(["CSAMNet-S", "UNet", "DCSAU-Net"], tmp_path, "cpu", say=str)
    kept = [row["model"] for row in module.read_costs(path)["rows"]]
    assert kept == ["CSAMNet-S", "DCSAU-Net"], "one that is stopped loses nothing"
    module.measure_costs(["DCSAU-Net", "DCSAU-Net"], tmp_path, "cpu", say=str)
    assert len(module.read_costs(path)["rows"]) == 2, "named twice, told once"
    other.unlink()
    table = costs_measured(tmp_path.parent / tmp_path.name)
    assert table.startswith("*not run*"), "looks in <results>/complexity"
    (tmp_path / "complexity").mkdir()
    path.rename(tmp_path / "complexity" / path.name)
    rows = costs_measured(tmp_path).splitlines()
    assert rows[4] == "| CSAMNet-S | 6.76 M | 5.6 G | 11.1 G | 256 ms | 10 MiB | 1,024 ms | 10 MiB | 4.0 (batch 2) |"
    with pytest.raises(InputError, match="unknown model"):
        module.measure_costs(["UNett"], tmp_path, "cpu")
    about = module.read_costs(tmp_path / "complexity" / path.name)
    (row,) = (row for row in about["rows"] if row["model"] == "CSAMNet-S")
    rows = [None, [{"model": "UNet"}], [row | {"seconds_256": -5}], [row | {"batch": "2"}]]
    for change in ({"libraries": {}}, *({"rows": each} for each in rows)):
        write_json(tmp_path / "damaged.json", about | change)
        with pytest.raises(InputError, match=r"(?s)damaged\.json.*csamnet complexity"):
            module.read_costs(tmp_path / "damaged.json")
