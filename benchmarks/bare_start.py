"""`bare_start.py NETWORK NUM_CLASSES CACHE_FILE…`: the least before a first step; prints the time."""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
import torchvision

network, num_classes, *paths = sys.argv[1:]
if network == "tiny":
    from benchmarks.networks import tiny

    model = tiny(int(num_classes))
else:
    model = torchvision.models.get_model(network, num_classes=int(num_classes))
maps = [torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="c")) for path in paths]
print(time.perf_counter())
