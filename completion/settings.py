"""The settings of the search for z and of what joins its result: flags of complete.py, and keywords of `Completer`."""

import cli

_step, _count = cli.number(float, 0, 10**6, above=True), cli.number(int, 1, 10**9)
# by name: the flag, what parses it or the choices, the default (None: it depends), and what it is
SEARCH = {
    "approach": ("approach", ["momentum", "adam", "hmc"], "momentum", "update rule"),
    "prior": ("prior", cli.number(float, 0, 10**6), 100.0, "cost of leaving the encoder's z"),
    "iterations": ("nIter", cli.number(int, 0, 10**9), None, "iterations (from the encoder's z 20, else 200)"),
    "lr": ("lr", _step, None, "learning rate (momentum: 3 / sum of weights, adam: 0.1; less from the encoder's z)"),
    "schedule": ("schedule", ["cosine", "constant"], "cosine", "of the learning rate"),
    "momentum": ("momentum", cli.number(float, 0, 0.9999), 0.9, "momentum"),
    "lam": ("lam", cli.number(float, 0, 10**6), 0.1, "weight of the perceptual loss"),
    "candidates": ("candidates", _count, 2048, "start from the best of so many random z"),
    "hmc_beta": ("hmcBeta", _step, 0.2, "inverse temperature of hmc"),
    "hmc_eps": ("hmcEps", _step, 0.001, "length of a leapfrog step of hmc"),
    "hmc_l": ("hmcL", _count, 100, "leapfrog steps per iteration of hmc"),
    "hmc_anneal": ("hmcAnneal", _step, 1.0, "factor on hmcBeta per iteration"),
    "interval": ("outInterval", _count, None, "iterations between pictures (a quarter, 20 at most)"),
}
DETAIL = 0.75  # how much of what G drew beyond the most probable face is kept
