import pytest
import torch
import torch.nn.functional as F

from hybridmap.errors import UserError
from hybridmap.layers import InferenceParams, Mamba, MambaMixer


def equations(x, z, direction, A_log):
    """One direction as a loop over tokens; x, z: (B, L, E)."""
    E, W = direction.conv.weight.shape[0], direction.conv.weight.shape[2]
    padded = F.pad(x, (0, 0, W - 1, 0))
    c = F.silu(direction.conv.bias + sum(direction.conv.weight[:, 0, k] * padded[:, k : k + x.shape[1]] for k in range(W)))
    rank, S = direction.dt_proj.in_features, A_log.shape[1]
    delta, B, C = direction.x_proj(c).split([rank, S, S], dim=-1)
    dt, A = F.softplus(direction.dt_proj(delta)), -A_log.exp()
    h, ys = x.new_zeros(x.shape[0], E, S), []
    for t in range(x.shape[1]):
        h = (dt[:, t, :, None] * A).exp() * h + (dt[:, t] * c[:, t])[:, :, None] * B[:, t, None, :]
        ys.append((h * C[:, t, None, :]).sum(-1) + direction.D * c[:, t])
    return torch.stack(ys, 1) * F.silu(z)


def mixer(**options):
    torch.manual_seed(0)
    made = MambaMixer(12, d_state=3, **options).double()
    for p in made.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    return made


U = torch.randn(2, 7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def halves(m, u):
    return m.in_proj(u).chunk(2, -1)


def test_one_token_follows_the_closed_form():
    m = mixer(variant="uni")
    (x, z), d = halves(m, U[:, :1]), m.dirs["fwd"]
    c = F.silu(d.conv.bias + d.conv.weight[:, 0, -1] * x)
    delta, B, C = d.x_proj(c).split([1, 3, 3], -1)
    dt = F.softplus(d.dt_proj(delta))
    y = ((C * B).sum(-1, keepdim=True) * dt * c + d.D * c) * F.silu(z)
    torch.testing.assert_close(m(U[:, :1]), m.out_proj(y))


def test_uni_is_the_recurrence_written_as_a_loop():
    m = mixer(variant="uni")
    torch.testing.assert_close(m(U), m.out_proj(equations(*halves(m, U), m.dirs["fwd"], m.dirs["fwd"].A_log)))


@pytest.mark.parametrize(
    ("options", "scale"), [({"variant": "biscan"}, 0.5), ({"variant": "v2"}, 0.5), ({"divide": False, "variant": "v2"}, 1.0)]
)
def test_two_directions_are_forward_plus_reversed_scan_of_the_reversed_input(options, scale):
    m = mixer(**options)
    x, z = halves(m, U)
    forward = equations(x, z, m.dirs["fwd"], m.dirs["fwd"].A_log)
    backward = equations(x.flip(1), z.flip(1), m.dirs["bwd"], m.dirs["bwd"].A_log).flip(1)
    torch.testing.assert_close(m(U), m.out_proj(scale * (forward + backward)))


@pytest.mark.parametrize("walks", [[[0, 3, 6, 1, 4, 2, 5]], [[0, 3, 6, 1, 4, 2, 5], [6, 5, 0, 1, 2, 4, 3]]])
def test_four_directions_are_the_mean_of_two_along_the_sequence_and_two_along_the_second_walk(walks):
    m = mixer(variant="v3")
    expected = []
    for sample, walk in zip(U, walks * (2 // len(walks)), strict=True):
        x, z = halves(m, sample[None])
        y = equations(x, z, m.dirs["fwd"], m.dirs["fwd"].A_log)
        y = y + equations(x.flip(1), z.flip(1), m.dirs["bwd"], m.dirs["bwd"].A_log).flip(1)
        x, z = x[:, walk], z[:, walk]
        across = equations(x, z, m.dirs["col_fwd"], m.dirs["col_fwd"].A_log)
        across = across + equations(x.flip(1), z.flip(1), m.dirs["col_bwd"], m.dirs["col_bwd"].A_log).flip(1)
        back = [walk.index(t) for t in range(7)]
        expected.append(m.out_proj(0.25 * (y + across[:, back])))
    torch.testing.assert_close(m(U, across=torch.tensor(walks)), torch.cat(expected))


def test_four_directions_need_their_second_walk():
    with pytest.raises(UserError, match="variant v3 scans in a second order too"):
        mixer(variant="v3")(U)


def test_v1_shares_all_but_A_and_convolves_forward_only():
    m = mixer(variant="v1")
    assert {name for name, _ in m.dirs["bwd"].named_parameters()} == {"A_log"}
    x, z = halves(m, U)
    d = m.dirs["fwd"]
    padded = F.pad(x, (0, 0, 3, 0))
    c = F.silu(d.conv.bias + sum(d.conv.weight[:, 0, k] * padded[:, k : k + 7] for k in range(4)))
    delta, B, C = d.x_proj(c).split([1, 3, 3], -1)
    dt = F.softplus(d.dt_proj(delta))

    def scan(A_log, order):
        h, ys = 0, {}
        for t in order:
            h = (dt[:, t, :, None] * -A_log.exp()).exp() * h + (dt[:, t] * c[:, t])[..., None] * B[:, t, None]
            ys[t] = (h * C[:, t, None]).sum(-1) + d.D * c[:, t]
        return torch.stack([ys[t] for t in range(7)], 1) * F.silu(z)

    y = scan(d.A_log, range(7)) + scan(m.dirs["bwd"]["A_log"], range(6, -1, -1))
    torch.testing.assert_close(m(U), m.out_proj(y))


def test_equal_directions_commute_with_reversal():
    m = mixer()
    m.dirs["bwd"].load_state_dict(m.dirs["fwd"].state_dict())
    torch.testing.assert_close(m(U.flip(1)), m(U).flip(1))


@pytest.mark.parametrize("variant", ["uni", "v1", "v2", "biscan", "v3"])
def test_a_causal_mixer_does_not_see_later_tokens(variant):
    m = mixer(variant=variant)
    changed = U.clone()
    changed[:, 4:] += 1
    torch.testing.assert_close(m(U, causal=True)[:, :4], m(changed, causal=True)[:, :4])
    if variant != "uni":
        walk = {"across": torch.arange(7)[None]} if variant == "v3" else {}
        assert not torch.allclose(m(U, **walk)[:, :4], m(changed, **walk)[:, :4])


@pytest.mark.parametrize("variant", ["uni", "v1", "v2", "biscan"])
def test_the_gradient_is_the_derivative(variant):
    m = mixer(variant=variant)
    assert torch.autograd.gradcheck(m, U[:1, :4].clone().requires_grad_())


def test_layer_scale_multiplies_the_output():
    m = mixer(layer_scale=0.5)
    gamma, m.gamma = m.gamma, None
    plain = m(U)
    m.gamma = gamma
    torch.testing.assert_close(m(U), plain * gamma)


def test_fresh_step_sizes_lie_between_a_thousandth_and_a_tenth():
    m = MambaMixer(32)
    for direction in m.directions:
        dt = F.softplus(direction.dt_proj.bias)
        assert dt.min() >= 0.99e-3
        assert dt.max() <= 0.101
        torch.testing.assert_close(direction.A_log.exp(), torch.arange(1.0, 17).expand(64, 16))


def test_recurrence_parameters_are_marked_for_the_optimiser():
    marked = {name for name, p in MambaMixer(16).named_parameters() if getattr(p, "ssm_state", False)}
    assert marked == {f"dirs.{d}.{p}" for d in ("fwd", "bwd") for p in ("A_log", "D")}


def test_scan_parameters_stay_in_float32_under_autocast():
    m = MambaMixer(16, d_state=4)
    u = torch.randn(2, 5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = m(u)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), m(u), atol=0.02, rtol=0.05)


def test_an_unknown_variant_is_named():
    with pytest.raises(UserError, match="uni, v1, v2, biscan or v3"):
        MambaMixer(16, variant="v9")


def test_the_drop_in_has_the_usual_parameter_names_and_shapes():
    shapes = {name: tuple(p.shape) for name, p in Mamba(24, d_state=8).named_parameters()}
    assert shapes == {
        "A_log": (48, 8),
        "D": (48,),
        "in_proj.weight": (96, 24),
        "conv1d.weight": (48, 1, 4),
        "conv1d.bias": (48,),
        "x_proj.weight": (2 + 16, 48),
        "dt_proj.weight": (48, 2),
        "dt_proj.bias": (48,),
        "out_proj.weight": (24, 48),
    }


def test_the_drop_in_equals_a_forward_mixer_with_the_same_weights():
    m = mixer(variant="uni")
    drop_in = Mamba(12, d_state=3).double()
    names = {"dirs.fwd.conv.": "conv1d.", "dirs.fwd.": ""}
    state = {}
    for key, value in m.state_dict().items():
        for ours, usual in names.items():
            key = key.replace(ours, usual)
        state[key] = value
    drop_in.load_state_dict(state)
    torch.testing.assert_close(drop_in(U), m(U))


@pytest.mark.parametrize("prefill", [1, 2, 5])
def test_prefill_and_single_steps_equal_the_whole_sequence(prefill):
    torch.manual_seed(0)
    m = Mamba(12, d_state=3, layer_idx=0).double()
    params = InferenceParams(max_seqlen=7, max_batch_size=2)
    outs = [m(U[:, :prefill], params)]
    for t in range(prefill, 7):
        params.seqlen_offset = t
        outs.append(m(U[:, t : t + 1], params))
    torch.testing.assert_close(torch.cat(outs, 1), m(U))
    conv_state, ssm_state = params.key_value_memory_dict[0]
    assert conv_state.shape == (2, 24, 4)
    assert ssm_state.shape == (2, 24, 3)
    torch.testing.assert_close(conv_state.transpose(1, 2), m.in_proj(U).chunk(2, -1)[0][:, -4:])


def test_step_refuses_several_tokens():
    m = Mamba(12)
    with pytest.raises(UserError, match="one token"):
        m.step(torch.zeros(1, 2, 12), *m.allocate_inference_cache(1, 4))


def test_a_cache_needs_a_layer_number():
    with pytest.raises(UserError, match="layer_idx"):
        Mamba(12)(torch.zeros(1, 2, 12), InferenceParams(max_seqlen=4, max_batch_size=1))
