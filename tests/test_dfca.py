"Cross-attention with a prior for lesions: against a second implementation, and its limits"
import pytest
import torch
import torch.nn.functional as F
from test_hvit import images

from vitnb.models.dfca import DFCA, ConcatFusion, attention_weights, lesion_bias


def slow_dfca(layer, x, s, m):
    "One sample, written out from the formula of the notebook; `m` is the share of a lesion at each key"
    w = dict(layer.named_parameters())
    linear = lambda t,name: t @ w[f"{name}.weight"].T + w[f"{name}.bias"]
    norm = lambda t,name: F.layer_norm(t, t.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])
    if "align.weight" in w: s = linear(s, "align")
    key,value = linear(s, "kv").chunk(2, -1)
    query,c,out = linear(x, "q"),layer.prototypes.shape[1],[]
    for h in range(layer.num_heads):
        part,rows = slice(h*c, (h + 1)*c),[]
        for i in range(len(x)):
            logits = [query[i,part] @ key[j,part]/c**.5 + torch.sigmoid(s[j,part] @ layer.prototypes[h]/c**.5).log() + m[j].log() for j in range(len(s))]
            rows.append(torch.stack(logits).softmax(0) @ value[:,part])
        out.append(torch.stack(rows))
    y = norm(x + linear(torch.cat(out, -1), "proj"), "norm1")
    return norm(y + linear(F.gelu(linear(y, "mlp.fc1")), "mlp.fc2"), "norm2")

def dfca(dim=12, heads=3, spectral_dim=None, prototypes=1.):
    torch.manual_seed(0)
    layer = DFCA(dim, heads, spectral_dim).eval()
    with torch.no_grad(): layer.prototypes.normal_(0, prototypes)
    return layer

@pytest.mark.parametrize("spectral_dim", [None, 8])
def test_cross_attention_is_its_second_implementation(spectral_dim):
    layer = dfca(spectral_dim=spectral_dim)
    x,s,lesion = images(1, 4, 12),images(1, 6, spectral_dim or 12, seed=2),torch.rand(1, 1, 2, 3)*.9 + .05
    with torch.no_grad():
        assert torch.allclose(layer(x, s, lesion_bias(lesion, (2, 3)))[0], slow_dfca(layer, x[0], s[0], lesion.flatten()), atol=1e-5)

@pytest.mark.parametrize("scale", [.5, 3.])
def test_the_prior_changes_attention(scale):
    "A constant vector added to all keys moves it by 4e-8"
    x,s = images(2, 4, 12),images(2, 6, 12, seed=2)
    with torch.no_grad(): moved = (attention_weights(dfca(prototypes=scale), x, s) - attention_weights(dfca(prototypes=0.), x, s)).abs()
    assert moved.max() > .01

def test_a_prior_of_0_is_plain_attention():
    x,s = images(2, 4, 12),images(2, 6, 12, seed=2)
    layer = dfca(prototypes=0.)
    with torch.no_grad():
        query,key,_,_ = layer.parts(x, s)
        assert torch.allclose(attention_weights(layer, x, s), (query @ key.transpose(-2, -1)/2).softmax(-1), atol=1e-6)

def test_the_prior_draws_attention_to_tokens_like_its_prototype():
    layer,s = dfca(heads=1, prototypes=0.),.1*images(1, 6, 12)
    with torch.no_grad():
        layer.prototypes.copy_(9*F.normalize(torch.ones(1, 12)))
        s[0,4] += 3
        weights = attention_weights(layer, .01*images(1, 3, 12), s)
    assert (weights.argmax(-1) == 4).all()

def test_the_prior_is_learnt():
    "Its gradient is not 0 where training begins"
    layer = dfca(prototypes=0.)
    layer(images(2, 4, 12), images(2, 6, 12, seed=2)).square().sum().backward()
    layer.zero_grad()
    (layer(images(2, 4, 12), images(2, 6, 12, seed=2))*images(2, 4, 12, seed=3)).sum().backward()
    assert layer.prototypes.grad.abs().max() > 1e-5

def test_a_lesion_mask_takes_attention_to_the_lesion():
    layer = dfca()
    lesion = torch.zeros(1, 1, 8, 8)
    lesion[:,:,:4,4:] = 1
    with torch.no_grad(): weights = attention_weights(layer, images(1, 4, 12), images(1, 4, 12, seed=2), lesion_bias(lesion, (2, 2)))
    assert (weights[...,1] > .98).all() and torch.allclose(weights.sum(-1), torch.ones(1, 3, 4))

def test_a_mask_of_ones_changes_nothing():
    layer,x,s = dfca(),images(2, 4, 12),images(2, 4, 12, seed=2)
    with torch.no_grad(): assert torch.allclose(layer(x, s, lesion_bias(torch.ones(2, 1, 4, 4), (2, 2))), layer(x, s), atol=1e-6)

@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 8, 8)])
def test_a_mask_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="it has one channel"): lesion_bias(torch.ones(shape), (2, 2))

def test_dropout_of_cross_attention_acts_in_training_only():
    layer,x,s = dfca(),images(2, 4, 12),images(2, 4, 12, seed=2)
    assert torch.equal(layer(x, s), layer(x, s)) and not torch.equal(layer.train()(x, s), layer(x, s))

def test_side_by_side_is_a_linear_layer_of_both():
    layer = ConcatFusion(4, 6)
    x,s = images(2, 5, 4),images(2, 5, 6, seed=2)
    assert torch.allclose(layer(x, s)[1,3], layer.proj.weight @ torch.cat([x[1,3], s[1,3]]) + layer.proj.bias, atol=1e-6)
