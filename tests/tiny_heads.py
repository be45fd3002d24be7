"A model of any outputs, for sets of any tasks: as a user would register his own"
from contextlib import contextmanager

from torch import nn

from vitnb.models.protocol import models, register_model


class TinyHeads(nn.Module):
    "Two convolutions, and an output for each task: `n` numbers, `(zones, levels)`, or `n` maps for the tasks that `dense` names"
    def __init__(self, img_size=8, num_classes=2, in_chans=3, width=8, dense=()):
        super().__init__()
        self.num_classes,self.dense,self.several = num_classes,tuple(dense),isinstance(num_classes, dict)
        self.trunk = nn.Sequential(nn.Conv2d(in_chans, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU())
        outputs = num_classes if self.several else {"":num_classes}
        self.heads = nn.ModuleDict({f"head_{k}":self._head(k, n, width) for k,n in outputs.items()})

    def _head(self, name, n, width):
        if name in self.dense: return nn.Conv2d(width, n, 1)
        head = [nn.AdaptiveAvgPool2d(2), nn.Flatten()]
        if isinstance(n, int): return nn.Sequential(*head, nn.Linear(4*width, n))
        return nn.Sequential(*head, nn.Linear(4*width, n[0]*n[1]), nn.Unflatten(1, tuple(n)))

    def forward_features(self, x): return self.trunk(x)
    def forward_head(self, x, pre_logits=False):
        out = {k.removeprefix("head_"):head(x) for k,head in self.heads.items()}
        return out if self.several else out[""]
    def forward_intermediates(self, x):
        x = self.trunk(x)
        return x,[x]
    def forward(self, x): return self.forward_head(self.trunk(x))
    def get_classifier(self): return self.heads
    def reset_classifier(self, num_classes): raise NotImplementedError
    def group_matcher(self, coarse=False): return dict(stem=r"^trunk", blocks=r"^heads")
    def no_weight_decay(self): return set()
    def set_grad_checkpointing(self, enable=True): raise NotImplementedError


def register():
    "Called where the name is needed, not at import: other tests go through every model that vitnb has registered"
    return register_model("tiny_heads", TinyHeads)


@contextmanager
def known():
    "The name is known inside, and afterwards if it was before: what is made once may be asked for anywhere"
    before = models.get("tiny_heads")
    register()
    try: yield "tiny_heads"
    finally:
        del models["tiny_heads"]
        if before: models["tiny_heads"] = before
