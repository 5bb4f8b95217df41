"""Products and attention of the frozen backbone against torch's own modules and timm's."""

import copy
import math

import pytest
import timm
import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn.functional import linear

from backbone import frozen
from backbone.frozen import FrozenLinear, attended, freeze_products, packs, understands

D = 32


@pytest.fixture
def layer() -> nn.Linear:
    made = nn.Linear(D, 3 * D).requires_grad_(False)
    nn.init.normal_(made.bias)
    return made


@pytest.fixture(params=[True, False], ids=["packed", "rounded"])
def packing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and not packs():
        pytest.skip("this processor has no products in bfloat16")
    monkeypatch.setattr(frozen, "packs", lambda: request.param)


def reduced(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return layer(x)


def test_in_float32_it_is_the_layer_bit_for_bit(layer):
    x = torch.randn(4, 7, D)
    assert torch.equal(FrozenLinear(layer)(x), layer(x))
    assert torch.equal(FrozenLinear(layer).rows(x, (D, 3 * D)), linear(x, layer.weight[D:], layer.bias[D:]))
    assert FrozenLinear(layer).state_dict().keys() == layer.state_dict().keys()


@pytest.mark.usefixtures("packing")
@pytest.mark.parametrize("bias", [True, False])
def test_in_bfloat16_values_and_gradient_are_those_of_the_rounded_layer(layer, bias):
    layer.bias = layer.bias if bias else None
    x = torch.randn(4, 7, D, requires_grad=True)
    out = reduced(FrozenLinear(layer), x)
    out.float().square().sum().backward()
    again = x.detach().clone().requires_grad_()
    expected = reduced(layer, again)
    expected.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, rtol=2**-7, atol=2**-7)
    torch.testing.assert_close(x.grad, again.grad, rtol=2**-6, atol=0.02 * float(again.grad.abs().max()))


@pytest.mark.usefixtures("packing")
@pytest.mark.parametrize("change", ["load", "in place", "another"])
def test_what_is_kept_follows_the_weights(layer, change):
    fixed, x = FrozenLinear(layer), torch.randn(4, 7, D)
    before = reduced(fixed, x)
    other = {name: 2 * value for name, value in layer.state_dict().items()}
    if change == "load":
        fixed.load_state_dict(other)
    elif change == "in place":
        with torch.no_grad():
            fixed.weight.mul_(2)
            fixed.bias.mul_(2)
    else:
        fixed.weight, fixed.bias = (nn.Parameter(other[name], requires_grad=False) for name in ("weight", "bias"))
    torch.testing.assert_close(reduced(fixed, x), 2 * before, rtol=0, atol=0)


@pytest.mark.usefixtures("packing")
def test_a_copy_has_values_of_its_own(layer):
    fixed, x = FrozenLinear(layer), torch.randn(4, 7, D)
    before = reduced(fixed, x)
    copied = copy.deepcopy(fixed)
    with torch.no_grad():
        copied.weight.zero_()
        copied.bias.zero_()
    assert not reduced(copied, x).any()
    assert torch.equal(reduced(fixed, x), before)


def attention(**keys: bool) -> Attention:
    made = Attention(D, num_heads=4, qkv_bias=True, norm_layer=nn.LayerNorm, **keys).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.normal_(std=0.3)
    freeze_products(made)
    return made


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_is_timms(qk_norm):
    attn, x = attention(qk_norm=qk_norm), torch.randn(3, 7, D)
    assert torch.equal(attn.proj(attended(attn, x, 7)), attn(x))
    torch.testing.assert_close(attended(attn, x, 1), attended(attn, x, 7)[:, :1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("queries", [1, 7])
def test_in_bfloat16_attention_with_a_gradient_is_that_without_up_to_rounding(queries):
    attn, x = attention(), torch.randn(3, 7, D)
    exact = x.clone().requires_grad_()
    attended(attn, exact, queries).square().sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        without, with_gradient = attended(attn, x, queries), attended(attn, x.requires_grad_(), queries)
    with_gradient.float().square().sum().backward()
    assert with_gradient.dtype == torch.bfloat16
    torch.testing.assert_close(with_gradient, without, rtol=0.05, atol=0.05)
    assert float((x.grad - exact.grad).norm() / exact.grad.norm()) < 0.03


def test_plain_attention_is_the_softmax_of_scaled_products(monkeypatch):
    """softmax(q k / sqrt(E)) v of one query, written out."""
    q, k, v = torch.randn(1, 2, 1, 4), torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4, dtype=torch.bfloat16)
    found = frozen._attention(q.bfloat16(), k.bfloat16(), v.requires_grad_(), 0.5)
    for head in range(2):
        shares = [math.exp(0.5 * float(q[0, head, 0] @ k[0, head, token])) for token in range(3)]
        value = sum(share * v[0, head, token].float() for token, share in enumerate(shares)) / sum(shares)
        torch.testing.assert_close(found[0, head, 0].float(), value, rtol=0.05, atol=0.05)


def test_every_product_of_a_block_is_frozen_with_its_names_and_values():
    block = timm.create_model("vit_tiny_patch16_224", embed_dim=D, depth=1, num_heads=4, img_size=32).blocks[0]
    before = {name: value.clone() for name, value in block.state_dict().items()}
    freeze_products(block)
    assert {name for name, module in block.named_modules() if isinstance(module, FrozenLinear)} == {
        "attn.qkv",
        "attn.proj",
        "mlp.fc1",
        "mlp.fc2",
    }
    after = block.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_attention_with_parts_of_its_own_is_left_to_timm():
    class Other(Attention):
        pass

    plain, other = Attention(D), Other(D)
    assert understands(plain)
    assert not understands(other)
    plain.gate = nn.Linear(D, D)
    assert not understands(plain)
