"""The comparison networks: called like CSAMNet, trainable, and as large as an independent count says."""

from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from csamnet.baselines import BASELINES, COSTS, PUBLISHED, SMALL, build
from csamnet.baselines.blocks import Baseline, Decoder, ResNet
from csamnet.baselines.fields import CPPNet, DenseDecoder, HoVerNet, ResponseNorm
from csamnet.baselines.otsu import otsu_haematoxylin
from csamnet.baselines.transformers import Attention, Block, ViT, relative
from csamnet.baselines.unets import Gate, SplitAttention, vgg
from csamnet.files import InputError
from csamnet.losses import segmentation_loss
from csamnet.model import load_strictly
from csamnet.pages.complexity import complexity

every = pytest.mark.parametrize("name", BASELINES)


def small(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build(name, "small")


def full(name: str) -> nn.Module:
    with torch.device("meta"):
        return build(name)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def weights(module: nn.Module) -> int:
    """Parameters less the biases of convolutions and linear layers."""
    layers = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    return count(module) - sum(m.bias.numel() for m in module.modules() if isinstance(m, layers) and m.bias is not None)


def picture(batch: int = 2, height: int = 64, width: int = 64, seed: int = 1) -> torch.Tensor:
    return 4 * torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) - 2


def discs() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images of dark discs on light ground, and their masks."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    masks = torch.stack([(y - a) ** 2 + (x - b) ** 2 < 250 for a, b in ((25, 40), (40, 30))])
    return picture() / 2 - 1.5 * (masks[:, None].float() - 0.5), masks.long()


def step(model: nn.Module, images: torch.Tensor, target: torch.Tensor, optimizer) -> float:
    loss = segmentation_loss(model(images), target)[0]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def copy_in_order(source: nn.Module, target: nn.Module) -> None:
    """Weights and statistics from one module to another of the same layers in the same order."""
    theirs, ours = list(source.state_dict().values()), target.state_dict()
    assert len(theirs) == len(ours)
    target.load_state_dict({key: value.view_as(ours[key]) for key, value in zip(ours, theirs, strict=True)})


# -------------------------------------------------------------------------------- what every network does


@every
def test_any_size_is_padded_by_reflection(name):
    model = small(name).eval()
    for height, width in ((1, 1), (1, 37), (70, 97)):
        x = picture(1, height, width)
        enough = [max(64, -(-n // 32) * 32) - n for n in (height, width)]
        padded = np.pad(x.numpy(), [(0, 0), (0, 0), (0, enough[0]), (0, enough[1])], mode="reflect")
        with torch.no_grad():
            found, expected = model(x), model(torch.from_numpy(padded))
        assert found.shape == (1, 2, height, width)
        assert torch.equal(found, expected[..., :height, :width])


@pytest.mark.parametrize(
    "bad",
    [torch.zeros(3, 64, 64), torch.zeros(1, 4, 64, 64), torch.zeros(1, 3, 0, 64), torch.zeros(1, 3, 64, 64).byte()],
    ids=lambda x: f"{tuple(x.shape)} {x.dtype}",
)
def test_what_is_no_image_is_refused_with_its_shape(bad):
    with pytest.raises(InputError) as caught:
        small("SegNet")(bad)
    assert f"found: {tuple(bad.shape)} {bad.dtype}" in str(caught.value)
    assert {network.forward for network in BASELINES.values()} == {Baseline.forward}


@every
def test_learns_one_batch_and_every_parameter_takes_part(name):
    model, (images, target) = small(name).train(), discs()
    before = segmentation_loss(model(images), target)[0]
    before.backward()
    start = {key: p.detach().clone() for key, p in model.named_parameters()}
    for key, p in model.named_parameters():
        assert p.grad is not None, key
        assert p.grad.isfinite().all(), key
        p.data -= 0.02 * p.grad / p.grad.norm().clamp(min=1e-6)
    with torch.no_grad():
        assert segmentation_loss(model(images), target)[0] < before, "one step downhill"
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=2e-2), []
    while len(losses) < 50 and min(losses, default=1) > 0.3:
        losses.append(step(model, images, target, optimizer))
    assert losses[-1] < 0.3
    assert [key for key, p in model.named_parameters() if torch.equal(p, start[key])] == []


@every
def test_inference_is_repeatable_and_ignores_the_rest_of_the_batch(name):
    model, images = small(name).train(), picture(3)
    with torch.no_grad():
        model(images)  # moves the statistics
        kept = {key: value.clone() for key, value in model.state_dict().items()}
        model.eval()
        whole = model(images)
        assert torch.equal(model(images), whole)
        assert (model(images[1:2]) - whole[1:2]).norm() < 1e-4 * whole[1:2].norm()
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())
    assert model.advance(0.5) == 0


@every
def test_weights_there_and_back(name):
    model, other, images = small(name).eval(), small(name, seed=1).eval(), picture(1)
    with torch.no_grad():
        assert not torch.equal(model(images), other(images))
        load_strictly(other, model.state_dict())
        assert torch.equal(model(images), other(images))


@every
def test_channels_last_agrees_and_half_precision_trains(name):
    model, (images, target) = small(name).train(), discs()
    last = images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(model.to(memory_format=torch.channels_last)(last), expected, rtol=1e-3, atol=1e-3)
    last[1] = 0
    with torch.autocast("cpu", torch.bfloat16):
        found = model(last)
    assert found.shape == expected.shape
    segmentation_loss(found, target)[0].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_unknown_names_and_sizes():
    with pytest.raises(InputError, match=r"unknown baseline(?s:.*)AttUNet(?s:.*)'Unet'"):
        build("Unet")
    with pytest.raises(InputError, match=r"unknown size(?s:.*)full \| small(?s:.*)'tiny'"):
        build("UNet", "tiny")


# ------------------------------------------------------------------------------------ how large they are


@every
def test_costs_are_those_of_the_full_size(name):
    found = complexity(full(name))
    assert COSTS[name] == (found["parameters"], found["multiply_adds"])
    about = BASELINES[name].__doc__
    assert f"{found['parameters'] / 1e6:.2f} M parameters, {found['multiply_adds'] / 1e9:.2f} G multiply-adds" in about


def test_published_costs_are_those_of_the_book():
    path = Path(__file__).parents[1] / "book" / "published" / "monuseg.csv"
    with open(path, newline="", encoding="utf-8") as stream:
        rows = {row["model"]: (row["params_million"], row["gmacs_256"]) for row in csv.DictReader(stream)}
    expected = {name: tuple(float(value) if value else None for value in row) for name, row in rows.items()}
    assert expected == PUBLISHED
    assert BASELINES.keys() == SMALL.keys() == COSTS.keys() == PUBLISHED.keys() - {"CSAMNet", "CSAMNet-M", "CSAMNet-L"}


def test_printed_millions_are_mebi():
    """The two comparison networks of known form whose parameters are printed to two digits."""
    assert {name: round(COSTS[name][0] / 2**20, 2) for name in ("UNet", "AttUNet")} == {"UNet": 32.92, "AttUNet": 33.26}


def test_unet_by_hand_and_beside_monai():
    from monai.networks.nets import BasicUNet

    levels = list(pairwise([64, 128, 256, 512, 1024]))
    down = [9 * a * b + 9 * b * b + 4 * b for a, b in [(3, 64), *levels]]
    up = [9 * a * b + 2 * a for a, b in levels]
    join = [9 * 2 * a * a + 9 * a * a + 4 * a for a, b in levels]
    assert count(full("UNet")) == sum(down) + sum(up) + sum(join) + 64 * 2 + 2
    with torch.device("meta"):
        theirs = BasicUNet(2, 3, 2, (64, 128, 256, 512, 1024, 64), act="relu", norm="batch", bias=False)
    transposed = [4 * a * b + a for a, b in levels]  # 2 x 2 transposed, with bias, where we convolve 3 x 3 with norm
    finest = 4 * 128 * 64 + 64 + 9 * 64 * 64  # at the finest level theirs keeps 128 channels, and joins 192
    assert count(full("UNet")) - sum(up) == count(theirs) - sum(transposed) - finest


def test_attention_gate_is_monais():
    from monai.networks.nets.attentionunet import AttentionBlock, AttentionUnet

    theirs, ours = AttentionBlock(2, f_int=8, f_g=16, f_l=16).eval(), Gate(16).eval()
    for module in theirs.modules():  # ours have no bias before the norm
        if isinstance(module, nn.Conv2d):
            module.bias = None
    parts = nn.ModuleList([theirs.W_x, theirs.W_g, theirs.psi])
    copy_in_order(parts, ours)
    skip, x = torch.randn(2, 2, 16, 8, 8)
    torch.testing.assert_close(ours(skip, x), theirs(x, skip))
    with torch.device("meta"):
        whole = AttentionUnet(2, 3, 2, channels=(64, 128, 256, 512, 1024), strides=(2, 2, 2, 2))
    channels = (64, 128, 256, 512)
    second = sum(9 * c * c + 4 * c - 1 for c in channels)  # joined by two convolutions with norm, not one with PReLU
    assert weights(full("AttUNet")) - second == weights(whole)


def test_vgg_by_hand():
    """The known sizes of VGG-16 and VGG-19 without classifier, less the biases, and norms instead."""
    for depths, known in (((2, 2, 3, 3, 3), 14_714_688), ((2, 2, 4, 4, 4), 20_024_384)):
        channels = [c for c, depth in zip((64, 128, 256, 512, 512), depths, strict=True) for _ in range(depth)]
        with torch.device("meta"):
            assert count(vgg(64, depths)) == known + sum(channels)
    model = full("SegNet")  # the mirror image, but for 64 to 2 channels with bias where 3 to 64 are convolved with norm
    assert count(model.encoder) - count(model.decoder) == 9 * 64 * 3 + 2 * 512 - (9 * 64 * 2 + 2)


def test_hovernet_is_monais_less_a_branch():
    from monai.networks.nets import HoVerNet as Theirs

    for mode, kernel in (("original", 5), ("fast", 3)):
        with torch.device("meta"):
            theirs, ours = Theirs(mode=mode), HoVerNet(kernel=kernel)
        assert count(ours) == count(theirs) - count(theirs.horizontal_vertical)
        assert count(ours.branch) == count(theirs.nucleus_prediction)
        assert count(ours.encoder) == count(theirs.res_blocks)


def test_hovernet_dense_decoder_is_monais():
    from monai.networks.nets.hovernet import _DecoderBlock

    theirs = _DecoderBlock(layers=4, num_features=128, in_channels=512, out_channels=32, same_padding=True).eval()
    ours = DenseDecoder(512, 64, 4, kernel=3).eval()
    copy_in_order(theirs, ours)
    x = torch.randn(1, 512, 6, 6)
    torch.testing.assert_close(ours(x), theirs(x))


def test_resnet_is_monais():
    from monai.networks.nets import ResNet as Theirs

    shape = {"spatial_dims": 2, "n_input_channels": 3, "conv1_t_stride": 2, "bias_downsample": False}
    with torch.device("meta"):
        theirs = Theirs("bottleneck", [3, 4, 6, 3], [64, 128, 256, 512], feed_forward=False, **shape)
        assert count(ResNet()) == count(theirs) == 23_508_032  # ResNet-50 has 25,557,032, the classifier 2,049,000
    theirs = Theirs("bottleneck", [1, 2, 1, 1], [8, 16, 32, 64], feed_forward=False, **shape).eval()
    ours = ResNet(8, (1, 2, 1, 1)).eval()
    copy_in_order(theirs, ours)
    x = picture(1)
    maps = ours(x)
    assert [tuple(f.shape[1:]) for f in maps] == [(8, 32, 32), (32, 16, 16), (64, 8, 8), (128, 4, 4), (256, 2, 2)]
    torch.testing.assert_close(maps[-1].mean((-2, -1)), theirs(x), rtol=1e-4, atol=1e-5)


def test_transformer_block_is_torchs():
    theirs = nn.TransformerEncoderLayer(32, 4, 128, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True)
    ours, attention = Block(32, 4), theirs.self_attn
    state = {"attention.qkv.weight": attention.in_proj_weight, "attention.qkv.bias": attention.in_proj_bias}
    pairs = {"norm1": theirs.norm1, "norm2": theirs.norm2, "attention.project": attention.out_proj}
    for key, layer in (pairs | {"mlp.0": theirs.linear1, "mlp.2": theirs.linear2}).items():
        state |= {f"{key}.weight": layer.weight, f"{key}.bias": layer.bias}
    ours.load_state_dict(state)
    x = torch.randn(2, 5, 6, 32)
    torch.testing.assert_close(ours(x).flatten(1, 2), theirs(x.flatten(1, 2)), rtol=1e-4, atol=1e-5)


def test_relative_positions_are_monais():
    from monai.networks.blocks.rel_pos_embedding import DecomposedRelativePosEmbedding

    ours, theirs = Attention(32, 4, span=5), DecomposedRelativePosEmbedding((5, 5), 8, 4)
    for a, b in zip(ours.tables, theirs.rel_pos_arr, strict=True):
        b.data = nn.init.normal_(a).data
    q = torch.randn(2, 4, 25, 8)
    expected = theirs(torch.zeros(2), torch.zeros(2, 4, 25, 25), q)
    torch.testing.assert_close(ours.bias(q.unflatten(2, (5, 5))), expected, rtol=1e-4, atol=1e-5)


def test_vision_transformers_have_their_known_sizes():
    with torch.device("meta"):
        vit_s, sam_b = ViT(384, 12, 6), ViT(768, 12, 12, window=14)
    # of ViT-S/16 for 224 x 224 we leave out class token and last norm, and have 256 positions for 197
    assert count(vit_s) == 21_665_664 - 384 - 2 * 384 + (256 - 197) * 384
    # of SAM's base encoder for 1024 x 1024 the neck; and positions are those of 256 x 256
    neck, tables = (768 * 256 + 2 * 256) + (9 * 256 * 256 + 2 * 256), 4 * 2 * (127 - 31) * 64
    assert count(sam_b) == 89_670_912 - neck - tables - (64 * 64 - 16 * 16) * 768


def test_cellvit_with_all_branches_has_the_parameters_of_its_paper():
    """46.75 M are printed for CellViT-256 with three branches, class token, tissue classifier and conv biases."""
    model = full("CellViT")
    assert (count(model) + 2 * count(model.branch)) / 1e6 == pytest.approx(46.75, rel=1e-3)


def test_unet_3plus_and_doubleunet_have_the_parameters_of_their_papers():
    """26.97 M are printed for UNet 3+ without deep supervision, 29.29 M for DoubleU-Net."""
    assert count(full("BIDCell")) / 1e6 == pytest.approx(26.97, abs=0.005)
    assert count(full("DoubleU-Net")) / 1e6 == pytest.approx(29.29, abs=0.005)


# ---------------------------------------------------------------------------------------------- parts


def test_relative_positions_follow_the_distance():
    table = torch.arange(5.0)[:, None]  # distances -2 to 2 of a grid of 3
    assert relative(table, 3)[..., 0].tolist() == [[2, 1, 0], [3, 2, 1], [4, 3, 2]]
    assert relative(table, 2)[..., 0].flatten().tolist() == pytest.approx([2, 1 / 3, 11 / 3, 2])


def test_windows_do_not_see_each_other():
    block, x = Block(16, 2, window=4), torch.randn(1, 6, 9, 16)
    nn.init.normal_(block.attention.tables[0])
    found = block.windowed(x)
    padded = F.pad(x, (0, 0, 0, 3, 0, 2))
    for top in (0, 4):
        for left in (0, 4, 8):
            window = block.attention(padded[:, top : top + 4, left : left + 4])
            inside = found[:, top : top + 4, left : left + 4]
            torch.testing.assert_close(inside, window[:, : inside.shape[1], : inside.shape[2]])


def test_polygon_points_are_where_the_rays_end():
    net = CPPNet(8, (1, 1, 1, 1), rays=4)  # rays to the right, down, left, up
    scores, lengths = torch.randn(1, 3, 9, 9), torch.full((1, 4, 9, 9), 4.0)
    scores[:, 2] = 0  # equal confidence
    points = [(0, 0), *[(r * a, r * b) for r in (2, 4) for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0))]]
    expected = torch.stack([scores[0, :2, 4 + dy, 4 + dx] for dy, dx in points]).mean(0)
    torch.testing.assert_close(net.gather(scores, lengths)[0, :, 4, 4], expected)
    torch.testing.assert_close(net.gather(scores, 0 * lengths), scores[:, :2])
    scores[:, 2, 4, 8] = 50  # the point to the right has all the confidence
    torch.testing.assert_close(net.gather(scores, lengths)[0, :, 4, 4], scores[0, :2, 4, 8])


def test_response_norm_by_hand():
    norm, x = ResponseNorm(2), torch.tensor([[[[3.0, 4.0]], [[0.0, 15.0]]]])
    assert torch.equal(norm(x), x), "starts as the identity"
    norm.scale.data.fill_(1)
    expected = x + x * torch.tensor([0.5, 1.5])[:, None, None]  # norms 5 and 15, mean 10
    torch.testing.assert_close(norm(x), expected)


def test_split_attention_weighs_the_two_groups_against_each_other():
    """Where nothing speaks for either, each counts half; where all speaks for the first, the other does not count."""
    block, x = SplitAttention(8, 16).eval(), torch.randn(2, 8, 6, 6)
    first, second = block.enter(x).chunk(2, 1)
    first = block.first(first)
    second = block.second(first + second)
    nn.init.zeros_(block.weigh[-1].weight)
    for bias, mixed in ((0.0, (first + second) / 2), (50.0, first)):
        with torch.no_grad():
            block.weigh[-1].bias.copy_(torch.tensor([bias, 0.0]).repeat_interleave(6))
        torch.testing.assert_close(block(x), F.relu(block.leave(mixed) + block.shortcut(x)))


def test_decoder_joins_every_skip():
    decoder = Decoder([4, 8, 64], [16, 8, 6], lateral=12).eval()
    assert [type(m) for m in decoder.reduce] == [nn.Identity, nn.Identity, nn.Conv2d]
    assert [step[0][0].in_channels for step in decoder.steps] == [12 + 8, 16 + 4, 8]
    maps = [torch.randn(1, c, 16 // n, 16 // n) for c, n in ((4, 2), (8, 4), (64, 8))]
    assert decoder(maps).shape == (1, 6, 16, 16)


# ----------------------------------------------------------------------------------------------- Otsu


def test_otsu_finds_the_haematoxylin():
    from skimage.color import hed2rgb

    truth = np.zeros((40, 60), bool)
    truth[8:20, 10:30] = True
    rng = np.random.default_rng(0)
    stains = np.stack([np.where(truth, 0.1, 0.01), np.full(truth.shape, 0.03), np.zeros(truth.shape)], -1)
    stains[..., 0] += rng.uniform(0, 0.01, truth.shape)
    stains[..., 1] += np.where(rng.random(truth.shape) < 0.5, 0.03, 0)  # eosin, which must not count
    probability = otsu_haematoxylin((hed2rgb(stains) * 255).round().astype(np.uint8))
    assert probability.dtype == np.float32
    assert np.array_equal(probability >= 0.5, truth)
    assert probability[truth].min() > 0.5 > probability[~truth].max()


@pytest.mark.parametrize("colour", [0, 128, 255])
def test_otsu_on_one_colour_finds_nothing(colour):
    probability = otsu_haematoxylin(np.full((5, 7, 3), colour, np.uint8))
    assert probability.shape == (5, 7)
    assert (probability == 0).all()
