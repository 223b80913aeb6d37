"""What the tests of towers share: random weights, random images, and a CLIP tower by its definition."""

import torch
from torch import nn


def randomise(module: nn.Module) -> nn.Module:
    """Norms too: a fresh final norm applied twice is the same as once, and would hide a mistake."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            scale = 0.5 if p.ndim < 2 else p[0].numel() ** -0.5
            p.copy_(torch.randn(p.shape, generator=generator) * scale)
    return module.eval()


def pixels(n: int = 2, side: int = 32, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def saved(module, directory) -> str:
    module.save_pretrained(directory)
    return str(directory)


def plain_clip(weights: dict, images: torch.Tensor, quick: bool = True) -> torch.Tensor:
    """Patch features (n, P, D) of a 2-block, 2-head CLIP tower, from the definition and a state dict."""

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-5)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x, name):
        return torch.einsum("npi,oi->npo", x, weights[f"{name}.weight"]) + weights[f"{name}.bias"]

    n, side = len(images), images.shape[2] // 8
    cells = images.reshape(n, 3, side, 8, side, 8).permute(0, 2, 4, 1, 3, 5).reshape(n, side**2, -1)
    x = cells @ weights["embeddings.patch_embedding.weight"].flatten(1).T
    x = torch.cat([weights["embeddings.class_embedding"].expand(n, 1, -1), x], 1)
    x = norm(x + weights["embeddings.position_embedding.weight"], "pre_layrnorm")
    for layer in ("encoder.layers.0.", "encoder.layers.1."):
        y = norm(x, layer + "layer_norm1")
        q, k, v = (linear(y, f"{layer}self_attn.{t}_proj").reshape(n, -1, 2, 16) for t in "qkv")
        attention = torch.einsum("nihd,njhd->nhij", q, k).div(4).softmax(-1)
        x = x + linear(torch.einsum("nhij,njhd->nihd", attention, v).flatten(2), layer + "self_attn.out_proj")
        y = linear(norm(x, layer + "layer_norm2"), layer + "mlp.fc1")
        y = y * torch.sigmoid(1.702 * y) if quick else 0.5 * y * (1 + torch.erf(y / 2**0.5))
        x = x + linear(y, layer + "mlp.fc2")
    return x[:, 1:]
