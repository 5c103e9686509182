"""The same networks and updates in PyTorch, for speed.py to compare with."""

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits


def generator():
    """z (N, 100) -> images (N, 3, 64, 64)."""
    net = [nn.Linear(100, 512 * 4 * 4), nn.Unflatten(1, (512, 4, 4)), nn.BatchNorm2d(512), nn.ReLU(inplace=True)]
    for channels in (256, 128, 64):
        net += [nn.ConvTranspose2d(2 * channels, channels, 5, stride=2, padding=2, output_padding=1)]
        net += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*net, nn.ConvTranspose2d(64, 3, 5, stride=2, padding=2, output_padding=1), nn.Tanh())


def discriminator():
    """Images (N, 3, 64, 64) -> logits (N, 1). Pads 2 pixels on each side where SAME pads 1 and 2: as much work."""
    net = [nn.Conv2d(3, 64, 5, stride=2, padding=2), nn.LeakyReLU(0.2, inplace=True)]
    for channels in (128, 256, 512):
        net += [nn.Conv2d(channels // 2, channels, 5, stride=2, padding=2)]
        net += [nn.BatchNorm2d(channels), nn.LeakyReLU(0.2, inplace=True)]
    return nn.Sequential(*net, nn.Flatten(), nn.Linear(512 * 4 * 4, 1))


def train_step(batch_size, compiled):
    """A function of no arguments that makes one update of D and two of G, on random values; returns G's loss."""
    nets = [net().to(memory_format=torch.channels_last) for net in (generator, discriminator)]
    g_optimizer, d_optimizer = (torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999), 1e-8) for net in nets)
    g, d = (torch.compile(net) for net in nets) if compiled else nets
    images = (torch.rand(batch_size, 3, 64, 64) * 2 - 1).to(memory_format=torch.channels_last)
    z = torch.rand(batch_size, 100) * 2 - 1

    def cross_entropy(logits, label):
        return binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))

    def step():
        d_optimizer.zero_grad()
        fakes = g(z).detach()
        (cross_entropy(d(images), 1) + cross_entropy(d(fakes), 0)).backward()
        d_optimizer.step()
        d.requires_grad_(False)  # else the updates of G would compute D's gradients too
        for _ in range(2):
            g_optimizer.zero_grad()
            loss = cross_entropy(d(g(z)), 1)
            loss.backward()
            g_optimizer.step()
        d.requires_grad_(True)
        return loss.detach()

    return step
