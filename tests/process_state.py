"What tests of one process share, and what none of them may leave changed"
import os
import random
import signal
import socket
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

import vitnb.all # noqa: F401, so that whatever registers itself has done so before a test looks
from vitnb.core import Registry
from vitnb.models.protocol import models

# variables of the environment, by how they begin
OWN = ("VITNB_", "OMP_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "PYTHONPATH", "PATH", "HOME")


def registries():
    "Every registry of vitnb that is imported, by name"
    return _registries(len(sys.modules))

@lru_cache(maxsize=1)
def _registries(n_modules):
    modules = [m for name,m in list(sys.modules.items()) if name.split(".")[0] == "vitnb"]
    return {o.kind:o for m in modules for o in vars(m).values() if isinstance(o, Registry)}


def shared():
    "The state at this moment, as plain values by name"
    out = dict(threads=torch.get_num_threads(), dtype=str(torch.get_default_dtype()), gradients=torch.is_grad_enabled(),
               anomaly=torch.is_anomaly_enabled(), deterministic=torch.are_deterministic_algorithms_enabled(),
               folder=os.getcwd(), path=list(sys.path))
    out |= {f"signal {s.name}":signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    out |= {f"environment {k}":v for k,v in os.environ.items() if k.startswith(OWN)}
    models.names() # the registry of models is filled at its first use; all others, by the import of vitnb.all
    return out | {f"{kind} {k}":id(v) for kind,r in registries().items() for k,v in r.items()}


def left(before, after):
    "What differs, by name"
    return sorted(k for k in before.keys() | after.keys() if k not in before or k not in after or after[k] != before[k])


def reseed():
    "Global generators stand where they stand when a test runs alone"
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0) # torch.manual_seed also writes down the stack for each device that is not there
    if torch.cuda.is_initialized(): torch.cuda.manual_seed_all(0)


def quiet_port(tries=200):
    "A free port from the range that the system gives to nobody by itself, so that none is taken by chance meanwhile"
    said = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first = int(said.read_text().split()[0]) if said.is_file() else 32768
    draw,end = random.SystemRandom(),first if first > 4096 else 65536
    for _ in range(tries):
        port = draw.randrange(2048, end)
        with socket.socket() as s:
            try: s.bind(("", port))
            except OSError: continue
            return port
    raise RuntimeError(f"no free port from 2048 to {end} in {tries} tries")


class Refusing:
    "A port that refuses: it is held, so that nobody else can take it, and nobody listens"
    def __enter__(self):
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        return self.socket.getsockname()[1]

    def __exit__(self, *exc): self.socket.close()
