"""The losses of VQGAN autoencoders in a few lines of float64 for one picture after the other."""

import torch
import torch.nn.functional as F


def discriminate(state, x, layers=3, norm="group"):
    """PatchGAN by its weights: 4×4 convolutions, `layers` of them with stride 2, and LeakyReLU of slope 0.2."""
    keys = sorted({int(name.split(".")[1]) for name in state})
    number = 0
    for key in keys:
        weight, bias = state[f"body.{key}.weight"], state.get(f"body.{key}.bias")
        if weight.dim() == 4:
            x = F.conv2d(x, weight, bias, stride=2 if number < layers else 1, padding=1)
            number += 1
            if number == 1:
                x = torch.maximum(x, 0.2 * x)
        else:
            groups = x.reshape(len(x), 32, -1) if norm == "group" else x.transpose(0, 1).reshape(1, x.shape[1], -1)
            deviation = (groups.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            normal = (groups - groups.mean(-1, keepdim=True)) / deviation
            b, c, h, w = x.shape
            x = normal.reshape(x.shape) if norm == "group" else normal.reshape(c, b, h, w).transpose(0, 1)
            x = x * weight[:, None, None] + bias[:, None, None]
            x = torch.maximum(x, 0.2 * x)
    return x


def reconstruct(autoencoder, image):
    """(x̂, z, e): the gradient of x̂ passes from e to z as it is."""
    z, codes = autoencoder.encode(image), autoencoder.quantize.embedding.weight
    distances = (z.permute(0, 2, 3, 1)[..., None, :] - codes).square().sum(-1)
    e = codes[distances.argmin(-1)].permute(0, 3, 1, 2)
    return autoencoder.decode(z + (e - z).detach(), quantize=False), z, e


def losses(autoencoder, discriminator, image, *, lpips, beta, distance, adversarial):
    """Loss of the autoencoder, and λ: section 3.1 of arXiv 2012.09841."""
    reconstruction, codebook, generator, count = 0, 0, 0, len(image)
    for i in range(count):
        x = image[i : i + 1]
        x_hat, z, e = reconstruct(autoencoder, x)
        reconstruction = reconstruction + (x - x_hat).abs().mean() / count
        if lpips:
            reconstruction = reconstruction + lpips * distance(x_hat, x)[0] / count
        moved = ((z.detach() - e) ** 2).mean() + beta * ((z - e.detach()) ** 2).mean()
        codebook = codebook + moved / count
        generator = generator - discriminate(discriminator, x_hat).mean() / count
    if not adversarial:
        return reconstruction + codebook, None
    last = autoencoder.decoder.conv_out.weight
    norms = [torch.autograd.grad(one, last, retain_graph=True)[0].norm() for one in (reconstruction, generator)]
    weight = (norms[0] / (norms[1] + 1e-6)).detach()
    return reconstruction + codebook + adversarial * weight * generator, weight


def discriminator_loss(a, b, kind):
    """Hinge or vanilla loss from the discriminator's values for images and for reconstructions."""
    if kind == "hinge":
        return (torch.relu(1 - a).mean() + torch.relu(1 + b).mean()) / 2
    return -(torch.sigmoid(a).log().mean() + (1 - torch.sigmoid(b)).log().mean()) / 2
