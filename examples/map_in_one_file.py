"""Masked autoregressive pretraining (MAP) in one file of plain PyTorch: the whole story, readable from top to bottom.

    image ─ 1 patches ─ 2 hide half of them ─ 3 encode the visible ones (Mamba, Mamba, Mamba, Transformer)
          ─ 4 put mask tokens into the gaps ─ 5 decode, each row of patches looking at itself and the rows above
          ─ 6 compare the predictions of the hidden patches with their pixels

                       row 0  row 1  row 2          The only thing that makes this MAP is `allowed` in step 5.
    query in row 0       ■      ·      ·            All ones: MAE. Only the diagonal blocks: local MAE.
    query in row 1       ■      ■      ·            One patch per row: autoregression, token by token.
    query in row 2       ■      ■      ■

Nothing of the library is imported, and nothing is fast: the scan is a Python loop. With the same weights and the same mask this
file and the library compute the same loss, which a test asserts; parameters have the same names in both.
Run it: `python examples/map_in_one_file.py` (half a minute on one core; the loss falls).
Source: MAP (arXiv:2410.00871).
"""

import torch
import torch.nn.functional as F
from torch import nn

# 1. Patches


def patchify(images, patch):
    """(B, C, H, W) -> (B, rows * columns, patch * patch * C), row by row, the channel fastest."""
    B, C, H, W = images.shape
    cut = images.reshape(B, C, H // patch, patch, W // patch, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(B, (H // patch) * (W // patch), patch * patch * C)


# 2. Masking


def random_mask(batch, patches, ratio):
    """True = hidden; the same number in every sample."""
    return torch.rand(batch, patches).argsort(1) < round(patches * ratio)


# 3. The encoder: Mamba layers in both directions, and a Transformer block after every third of them


class Direction(nn.Module):
    """The selective scan of Mamba, in one direction."""

    def __init__(self, inner, rank, states=16, width=4):
        super().__init__()
        self.conv = nn.Conv1d(inner, inner, width, groups=inner, padding=width - 1)
        self.x_proj = nn.Linear(inner, rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        steps = torch.empty(inner).uniform_(-7, -2.3).exp()  # log-uniform from 0.001 to 0.1
        self.dt_proj.bias.data = steps + (-torch.expm1(-steps)).log()  # the inverse of softplus

    def forward(self, x, z):
        L = x.shape[1]
        c = F.silu(self.conv(x.transpose(1, 2))[..., :L].transpose(1, 2))  # causal: the padding on the right is cut off
        delta, B, C = self.x_proj(c).split([self.dt_proj.in_features, *[self.A_log.shape[1]] * 2], dim=-1)
        dt = F.softplus(self.dt_proj(delta))  # (B, L, E): how far this token moves the state
        A = -self.A_log.exp()  # (E, S)
        h, out = 0.0, []
        for t in range(L):
            h = (dt[:, t, :, None] * A).exp() * h + (dt[:, t] * c[:, t])[..., None] * B[:, t, None]  # (B, E, S): the memory
            out.append((h * C[:, t, None]).sum(-1))
        return (torch.stack(out, 1) + self.D * c) * F.silu(z)


class Mixer(nn.Module):
    """Both directions share the maps in and out; their mean is taken."""

    def __init__(self, dim):
        super().__init__()
        inner, rank = 2 * dim, -(-dim // 16)
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.dirs = nn.ModuleDict({"fwd": Direction(inner, rank), "bwd": Direction(inner, rank)})
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, u):
        x, z = self.in_proj(u).chunk(2, dim=-1)
        forward, backward = self.dirs["fwd"](x, z), self.dirs["bwd"](x.flip(1), z.flip(1)).flip(1)
        return self.out_proj((forward + backward) / 2)


class MambaLayer(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm, self.mixer = nn.RMSNorm(dim, 1e-5), Mixer(dim)


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class TransformerLayer(nn.Module):
    def __init__(self, dim, heads, ratio):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, 1e-5), Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim, 1e-5), MLP(dim, ratio * dim)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class HybridNet(nn.Module):
    """A Mamba layer adds the last branch to the stream and returns a new branch; a Transformer block works on the branch."""

    def __init__(self, dim, patches, patch, layout, heads):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, patches, dim) * 0.02)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, patch, patch)})
        self.layers = nn.ModuleList(MambaLayer(dim) if kind == "M" else TransformerLayer(dim, heads, 2) for kind in layout)
        self.norm = nn.RMSNorm(dim, 1e-5)

    def forward(self, images, visible):
        tokens = self.patch_embed["proj"](images).flatten(2).transpose(1, 2) + self.pos_embed  # (B, N, D)
        branch, stream = take(tokens, visible), 0.0  # from here on the hidden patches do not exist
        for layer in self.layers:
            if isinstance(layer, MambaLayer):
                stream = stream + branch
                branch = layer.mixer(layer.norm(stream))
            else:
                branch = branch + layer(branch)
        return self.norm(stream + branch)  # (B, V, D)


def take(tokens, index):
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


# 4, 5. The decoder: features of the visible patches and mask tokens in their places; who may look at whom


class CrossAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.q, self.kv, self.proj = heads, nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, queries, memory, allowed):
        q = self.q(queries).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~allowed, -torch.inf)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm_q, self.norm_kv, self.attn = nn.LayerNorm(dim), nn.LayerNorm(dim), CrossAttention(dim, heads)
        self.norm_mlp, self.mlp = nn.LayerNorm(dim), MLP(dim, 4 * dim)

    def forward(self, x, allowed):
        x = x + self.attn(self.norm_q(x), self.norm_kv(x), allowed)
        return x + self.mlp(self.norm_mlp(x))


class Decoder(nn.Module):
    def __init__(self, dim, patches, width, depth, heads, values):
        super().__init__()
        self.embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, patches, width) * 0.02)
        self.layers = nn.ModuleList(DecoderLayer(width, heads) for _ in range(depth))
        self.norm, self.pred = nn.LayerNorm(width), nn.Linear(width, values)

    def forward(self, features, visible, allowed):
        x = self.mask_token.expand(len(features), self.pos_embed.shape[1], -1)
        x = x.scatter(1, visible[..., None].expand(-1, -1, x.shape[-1]), self.embed(features)) + self.pos_embed
        for layer in self.layers:
            x = layer(x, allowed)
        return self.pred(self.norm(x))  # (B, N, values)


# 6. The objective


class MAP(nn.Module):
    def __init__(self, size=32, patch=8, dim=48, layout="MMMT", heads=4, width=64, depth=2, decoder_heads=4):
        super().__init__()
        self.patch, side = patch, size // patch
        self.backbone = HybridNet(dim, side * side, patch, layout, heads)
        self.decoder = Decoder(dim, side * side, width, depth, decoder_heads, patch * patch * 3)
        row = torch.arange(side * side) // side  # the region of each patch
        self.allowed = row[:, None] >= row[None, :]  # query i may look at patch j: its own row, and the rows above

    def forward(self, images, hidden):
        visible = (~hidden).nonzero()[:, 1].view(len(images), -1)  # ascending, so that Mamba scans in raster order
        pred = self.decoder(self.backbone(images, visible), visible, self.allowed)
        pixels = patchify(images, self.patch)
        target = (pixels - pixels.mean(-1, keepdim=True)) / (pixels.var(-1, keepdim=True) + 1e-6).sqrt()
        error = (pred - target).square().mean(-1)  # (B, N)
        return error[hidden].mean()


def waves(batch, size):
    """Pictures of plane waves with random directions, colours and phases: what lies under the mask can be guessed."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    angle, phase = torch.rand(2, batch, 3, 1, 1) * 6.283
    return torch.sin(6 * (angle.cos() * x + angle.sin() * y) + phase)


def main(steps=150):
    torch.manual_seed(0)
    model = MAP()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05)
    for step in range(steps):
        loss = model(waves(64, 32), random_mask(64, 16, 0.5))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 25 == 0 or step == steps - 1:
            print(f"step {step:4}  loss {loss.item():.3f}")
    return loss.item()


if __name__ == "__main__":
    main()
