"""The network: equal to the released one, and usable at any size, precision and switch."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from scipy.ndimage import binary_opening
from torch.export import Dim
from torch.utils.flop_counter import FlopCounterMode

from csamnet.config import SIZES
from csamnet.files import InputError
from csamnet.model import CSAM, DCF, CSAMNet, DropBlock, load_strictly, pool_to_eighth, released_key

STATISTICS = "running_after_one_step."


def network(width: int = 4, seed: int = 0, **switches) -> CSAMNet:
    torch.manual_seed(seed)
    return CSAMNet(width, **switches).eval()


def picture(batch: int = 2, height: int = 128, width: int = 144) -> torch.Tensor:
    return 4 * torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)) - 2


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, in the Euclidean norm."""
    found, expected = found.double(), expected.double()
    return ((found - expected).norm() / expected.norm()).item()


# ------------------------------------------------------------------------------ the released network


def read_golden(folder: Path, width: int, scratch: Path) -> SimpleNamespace:
    stem = folder / "golden" / f"csamnet_unet{width}"
    stored = load_file(stem.with_suffix(".safetensors"))
    state = {key.removeprefix("state."): value for key, value in stored.items() if key.startswith("state.")}
    save_file(state, scratch / "weights.safetensors")
    about = json.loads(stem.with_suffix(".json").read_text())
    return SimpleNamespace(width=width, stored=stored, state=state, about=about, path=scratch / "weights.safetensors")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> SimpleNamespace:
    """What the released network gave at width 4: copied from `shared/golden`."""
    return read_golden(Path(__file__).parent, 4, tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module", params=[4, 8])
def golden(request, tmp_path_factory) -> SimpleNamespace:
    """The same at both widths; only width 4 lies beside the tests."""
    if request.param == 4:
        return request.getfixturevalue("small")
    return read_golden(request.getfixturevalue("shared"), 8, tmp_path_factory.mktemp("released"))


def test_golden_logits_and_features_in_inference(golden):
    model = CSAMNet.from_released(golden.path).double().eval()
    assert model.width == golden.width
    seen, modules = {}, {"csam": model.csam}
    for kind, blocks in (("encoder", model.encoder), ("dcf", model.dcf)):
        modules |= {f"{kind}.{number}": block for number, block in enumerate(blocks, 1)}
    for name, module in modules.items():
        module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output.clone()}))
    with torch.no_grad():
        logits = model(golden.stored["input"].double())
    assert distance(logits, golden.stored["logits_eval"]) < 1e-9
    features = {key.removeprefix("feature."): v for key, v in golden.stored.items() if "feature." in key}
    assert len(features) == (9 if golden.width == 8 else 0)
    for name, expected in features.items():
        assert distance(seen[name], expected) < 1e-6, name


def test_golden_training_step(golden):
    model = CSAMNet.from_released(golden.path).double().train()
    logits = model(golden.stored["input"].double())
    assert distance(logits, golden.stored["logits_train"]) < 1e-9
    loss = F.cross_entropy(logits, golden.stored["target"].long())
    assert loss.item() == pytest.approx(golden.about["loss_train_cross_entropy"], rel=1e-9)
    loss.backward()
    norms = {released_key(key): p.grad.norm().item() for key, p in model.named_parameters()}
    expected = golden.about["grad_l2_norm"]
    encoder_biases = {f"backbone.module{stage}.conv{i}.bias" for stage in (1, 2, 3, 4) for i in (1, 2)}
    assert norms.keys() - expected.keys() == encoder_biases
    assert {key: norms[key] for key in expected} == pytest.approx(expected, rel=1e-9)
    state = {STATISTICS + released_key(key): value for key, value in model.state_dict().items()}
    statistics = [key for key in golden.stored if key.startswith(STATISTICS)]
    assert len(statistics) == 72
    for key in statistics:
        assert distance(state[key], golden.stored[key]) < 1e-6, key


def test_golden_logits_in_float32(golden):
    model = CSAMNet.from_released(golden.path).eval()
    with torch.no_grad():
        assert distance(model(golden.stored["input"]), golden.stored["logits_eval"]) < 2e-5


def test_released_names_there_and_back(golden, tmp_path):
    CSAMNet.from_released(golden.path).to_released(tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == golden.state.keys()
    assert all(torch.equal(back[key], value) for key, value in golden.state.items())
    assert [path.name for path in tmp_path.iterdir()] == ["back.safetensors"]


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


def test_weights_that_are_not_the_released_network(small, tmp_path):
    path, some = tmp_path / "w.safetensors", "head.classify.weight"
    changed = {
        'Missing key.* "head.classify.weight"': {key: v for key, v in small.state.items() if key != some},
        'Unexpected key.* "head.extra"': small.state | {"head.extra": torch.zeros(1)},
        r"size mismatch for head.classify.weight:.*\[3\].*\[2, 1, 1, 1\]": small.state | {some: torch.zeros(3)},
        "found: 1 other keys": {"x": torch.zeros(1)},
    }
    for message, state in changed.items():
        save_file(state, path)
        with pytest.raises(InputError, match=message) as caught:
            CSAMNet.from_released(path)
        assert str(path) in str(caught.value)


def test_only_safetensors_are_opened(tmp_path):
    path = tmp_path / "w.safetensors"
    network().to_released(path)
    whole = path.read_bytes()
    for content in (pickle.dumps(Bomb()), b"", whole[:1000], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"not a safetensors file(?s:.*)pickled"):
            CSAMNet.from_released(path)
    with pytest.raises(InputError, match="no weights"):
        CSAMNet.from_released(tmp_path / "gone.safetensors")
    with pytest.raises(InputError, match="not a safetensors file"):
        CSAMNet.from_released(tmp_path)


def test_weights_of_another_width_or_with_other_switches():
    with pytest.raises(InputError, match=r"of width 8(?s:.*)\[4, 3, 3, 3\].*\[8, 3, 3, 3\]"):
        load_strictly(network(8), network(4).state_dict())
    with pytest.raises(InputError, match=r'Unexpected key.* "neck\.aspp.* \.\.\.'):
        load_strictly(network(aspp=False), network().state_dict())


# ------------------------------------------------------------------------------------- size and cost


def test_number_of_parameters():
    expected = {4: 110_052, 8: 429_900, SIZES["S"]: 6_757_014}
    assert {width: sum(p.numel() for p in CSAMNet(width).parameters()) for width in expected} == expected


def test_operations_of_one_image():
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        CSAMNet().eval()(torch.zeros(1, 3, 256, 256))
    assert counter.get_total_flops() / 1e9 == pytest.approx(11.10, abs=0.005)


@pytest.mark.parametrize("width", [0, 2, 30])
def test_impossible_widths(width):
    with pytest.raises(InputError, match=f"multiple of 4(?s:.*){width}"):
        CSAMNet(width)


# --------------------------------------------------------------------------------------- ablations

ABLATIONS = [
    *({"dcf": parts} for parts in DCF if parts != "both"),
    *({"csam": parts} for parts in CSAM if parts != "both"),
    {"align": False},
    {"aspp": False},
    {"dcf": "none", "csam": "concat", "align": False, "aspp": False, "drop_rate": 0.0},
]


@pytest.mark.parametrize("switches", ABLATIONS, ids=str)
def test_every_switch_trains_and_makes_a_difference(small, switches):
    full, ablated = CSAMNet.from_released(small.path).eval(), network(**switches)
    missing, unexpected = ablated.load_state_dict(full.state_dict(), strict=False)
    assert not missing
    assert unexpected, "a switch takes weights away"
    x = picture()
    with torch.no_grad():
        assert distance(ablated(x), full(x)) > 0.01
    optimizer, losses = torch.optim.SGD(ablated.train().parameters(), lr=0.01), []
    for _ in range(2):
        loss = F.cross_entropy(ablated(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in ablated.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]


def test_unknown_switches():
    for switches in ({"dcf": "half"}, {"csam": "dc"}):
        with pytest.raises(InputError, match=r"unknown (dcf|csam)(?s:.*)both"):
            CSAMNet(4, **switches)


# --------------------------------------------------------------------------------------- any input


@pytest.mark.parametrize("size", [(1, 1), (1, 37), (130, 17), (333, 211)])
def test_any_size_is_padded_by_reflection(size):
    model, x = network(), picture(1, *size)
    enough = [max(128, -(-n // 16) * 16) - n for n in size]
    padded = np.pad(x.numpy(), [(0, 0), (0, 0), (0, enough[0]), (0, enough[1])], mode="reflect")
    with torch.no_grad():
        found, expected = model(x), model(torch.from_numpy(padded))
    assert found.shape == (1, 2, *size)
    assert torch.equal(found, expected[..., : size[0], : size[1]])


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(3, 128, 128),
        torch.zeros(1, 1, 3, 128, 128),
        torch.zeros(1, 4, 128, 128),
        torch.zeros(1, 128, 128, 3),
        torch.zeros(1, 3, 0, 128),
        torch.zeros(0, 3, 128, 128),
        torch.zeros(1, 3, 128, 128, dtype=torch.uint8),
        torch.zeros(1, 3, 128, 128, dtype=torch.complex64),
    ],
    ids=lambda x: f"{tuple(x.shape)} {x.dtype}",
)
def test_what_is_no_image_is_refused_with_its_shape(bad):
    with pytest.raises(InputError) as caught:
        network()(bad)
    assert f"found: {tuple(bad.shape)} {bad.dtype}" in str(caught.value)


# --------------------------------------------------------------------------- precision and compilers


@pytest.mark.parametrize(("dtype", "within"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)], ids=str)
def test_half_precision_agrees(golden, dtype, within):
    model, x = CSAMNet.from_released(golden.path).eval(), golden.stored["input"]
    for layout in (torch.contiguous_format, torch.channels_last):
        with torch.no_grad(), torch.autocast("cpu", dtype):
            logits = model.to(memory_format=layout)(x.contiguous(memory_format=layout))
        assert distance(logits, golden.stored["logits_eval"]) < within


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_trains(dtype):
    model, x = network().train(), picture()
    x[1] = 0  # a black image: maps full of zeros, to be divided by their norms
    with torch.autocast("cpu", dtype):
        logits = model(x)
    F.cross_entropy(logits.float(), (x[:, 0] > 0).long()).backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_channels_last_agrees():
    model, x = network(8), picture()
    last = network(8).to(memory_format=torch.channels_last)
    with torch.no_grad():
        found = last(x.contiguous(memory_format=torch.channels_last))
        assert distance(found, model(x)) < 1e-5
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(8, 8), (15, 16), (17, 31), (40, 23), (64, 65)])
def test_pooling_for_compilers_is_adaptive_max_pooling(size, monkeypatch):
    x = torch.randn(2, 3, *size)
    eager = pool_to_eighth(x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(pool_to_eighth(x), eager)
    assert eager.shape[2:] == (size[0] // 8, size[1] // 8)


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_compiles_as_one_graph_forward_and_backward(fresh_compiler):
    model, other, x = network().train(), network().train(), picture()
    compiled = torch.compile(other, fullgraph=True, backend="eager")
    found, expected = compiled(x), model(x)
    assert distance(found, expected) < 1e-5
    found.square().mean().backward()
    expected.square().mean().backward()
    for (key, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-3, atol=1e-5, msg=key)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="inductor needs a compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # inductor's own import
def test_compiled_code_agrees(fresh_compiler):
    """Of CSAM alone: a processor takes minutes to compile the whole network."""
    csam, maps = network().csam, list(torch.randn(4, 2, 4, 32, 32))
    with torch.no_grad():
        assert distance(torch.compile(csam, fullgraph=True)(maps), csam(maps)) < 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(small, fresh_compiler):
    model = CSAMNet.from_released(small.path).cuda().eval()
    x, expected = small.stored["input"].cuda(), small.stored["logits_eval"].cuda()
    last = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert distance(model(x), expected) < 0.01  # TF32 in the convolutions
        assert distance(torch.compile(model, fullgraph=True)(x), expected) < 0.01
        for dtype, within in ((torch.bfloat16, 0.1), (torch.float16, 0.02)):
            with torch.autocast("cuda", dtype):
                assert distance(model.to(memory_format=torch.channels_last)(last), expected) < within


def test_export_with_dynamic_batch_height_and_width(tmp_path):
    model = network()
    sizes = {
        0: Dim("batch", min=1, max=64),
        2: 16 * Dim("h", min=16, max=128),
        3: 16 * Dim("w", min=16, max=128),
    }
    program = torch.export.export(model, (picture(2, 272, 304),), dynamic_shapes={"image": sizes})
    torch.export.save(program, tmp_path / "network.pt2")
    exported = torch.export.load(tmp_path / "network.pt2").module()
    for size in ((1, 256, 256), (3, 256, 400), (2, 512, 272)):
        x = picture(*size)
        with torch.no_grad():
            assert distance(exported(x), model(x)) < 1e-5


# ------------------------------------------------------------------------------------------ DropBlock


def test_dropblock_blanks_blocks_at_its_rate():
    torch.manual_seed(0)
    drop = DropBlock(0.15).train()
    assert drop.advance(1.0) == pytest.approx(0.15)
    out = drop(torch.ones(200, 3, 40, 56))
    blank = out[:, 0] == 0
    assert all(torch.equal(out[:, channel] == 0, blank) for channel in (1, 2)), "one mask for all channels"
    p, axis = 0.15 / 49, [np.convolve(np.ones(n), np.ones(7), "same") for n in (40, 56)]
    expected = 1 - (1 - p) ** np.outer(*axis)  # of the seeds within reach none was drawn
    assert blank.float().mean().item() == pytest.approx(expected.mean(), rel=0.03)
    assert out.mean().item() == pytest.approx(1, abs=1e-5), "what is left is scaled up"
    assert len(out.unique()) == 2
    for mask in blank[:20].numpy():
        framed = np.pad(mask, 3, mode="edge")
        assert (binary_opening(np.pad(framed, 3), np.ones((7, 7)))[6:-6, 6:-6] >= mask).all(), "7 x 7 blocks"


def test_dropblock_rate_climbs_in_thirty_equal_steps():
    drop = DropBlock(0.15)
    rates = [drop.advance(progress) for progress in np.linspace(0, 1, 3001)]
    np.testing.assert_allclose(sorted(set(rates)), np.linspace(0, 0.15, 30), atol=1e-12)
    assert rates == sorted(rates)
    counts = np.unique(rates, return_counts=True)[1]
    assert set(counts.tolist()) <= {100, 101, 99}
    x = torch.rand(2, 3, 16, 16)
    drop.advance(0)
    assert torch.equal(drop.train()(x), x)


def test_dropblock_is_active_only_in_training():
    x = picture()
    model, never = network().train(), network(drop_rate=0.0).train()
    with torch.no_grad():
        assert torch.equal(model(x), model(x)), "rate 0 before training starts"
        assert model.advance(0.5) == pytest.approx(0.15 * 15 / 29)
        assert never.advance(0.5) == 0
        assert not torch.equal(model(x), model(x))
        assert torch.equal(never(x), never(x))
        model.eval()
        assert torch.equal(model(x), model(x))
        model.load_state_dict(network().state_dict())
        assert torch.equal(model(x), network()(x))
