import pytest
import torch

from hybridmap import ops
from hybridmap.layers import SS2D


def mixer(dim=6, **options):
    torch.manual_seed(0)
    made = SS2D(dim, **options).double()
    for p in made.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    return made


U = torch.randn(2, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def share(m, source):
    """Give direction k the parameters of direction ``source[k]``."""
    for name in ("x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds"):
        p = getattr(m, name)
        parts = p.data.view(4, -1)
        p.data.copy_(parts[source].view(p.shape))
    return m


@pytest.mark.parametrize("states", [1, 3])
def test_one_position_follows_the_closed_form(states):
    m, u = mixer(d_state=states), U[:, :1, :1]
    x = torch.nn.functional.silu(m.in_proj(u) * m.conv2d.weight[:, 0, 1, 1])
    total = torch.zeros_like(x)
    for k, D in enumerate(m.Ds.chunk(4)):
        delta, B, C = (x @ m.x_proj_weight[k].T).split([1, states, states], -1)
        step = torch.nn.functional.softplus(delta @ m.dt_projs_weight[k].T + m.dt_projs_bias[k])
        total = total + (B * C).sum(-1, keepdim=True) * step * x + D * x
    torch.testing.assert_close(m(u), m.out_proj(m.out_norm(total)))


def test_with_one_set_of_parameters_the_mixer_commutes_with_transposition_and_half_turns():
    m = share(mixer(), [0, 0, 0, 0])
    m.conv2d.weight.data.copy_(m.conv2d.weight[:, :, :1, :1].expand(-1, -1, 3, 3))  # a convolution that has no direction either
    torch.testing.assert_close(m(U.transpose(1, 2)), m(U).transpose(1, 2))
    torch.testing.assert_close(m(U.flip(1, 2)), m(U).flip(1, 2))


def test_directions_are_rows_columns_and_both_reversed():
    m = mixer()
    m.conv2d.weight.data.copy_(m.conv2d.weight[:, :, :1, :1].expand(-1, -1, 3, 3))
    out = m(U)
    torch.testing.assert_close(share(mixer_like(m), [1, 0, 3, 2])(U.transpose(1, 2)), out.transpose(1, 2))
    torch.testing.assert_close(share(mixer_like(m), [2, 3, 0, 1])(U.flip(1, 2)), out.flip(1, 2))


def mixer_like(m):
    other = mixer()
    other.load_state_dict(m.state_dict())
    return other


def test_each_position_hears_every_other():
    m = mixer()
    u = U[:1].clone().requires_grad_()
    for i, j in ((0, 0), (1, 2), (2, 3)):
        (heard,) = torch.autograd.grad(m(u)[0, i, j].square().sum(), u)
        assert (heard.abs().amax(-1) > 0).all()


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_every_backend_computes_what_the_reference_does(backend):
    u = torch.randn(2, 5, 7, 16, dtype=torch.float64)
    results = []
    for dtype, name in ((torch.float64, None), (torch.float32, backend)):
        m = mixer(16).to(dtype)
        x = u.to(dtype, copy=True).requires_grad_()
        with ops.use_backend(name):
            out = m(x)
            out.square().sum().backward()
        results.append([out, x.grad, *(p.grad for p in m.parameters())])
    for reference, ours in zip(*results, strict=True):
        atol = 1e-5 * float(reference.detach().abs().max())
        torch.testing.assert_close(ours.double(), reference, rtol=1e-4, atol=atol)


def test_autocast_computes_in_the_lower_precision():
    m, u = mixer().float(), U.float()
    with torch.autocast("cpu", torch.bfloat16):
        out = m(u)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), m(u), rtol=0.1, atol=0.1)
