"""Make the run folders of tests/fixtures/format1, which later versions must read as they are

It ran once, with the code of commit 2cdb6f0, the last before checkpoints changed. To repeat it, in a checkout that
holds this file:

    git worktree add ../old 2cdb6f0
    cd ../old
    export PYTHONPATH=$PWD PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
    python ../new/tests/make_format1_fixtures.py ../new/tests/fixtures/format1

where ../new is the first checkout. With newer code the folders would no longer be old, so it refuses any other commit.

Each folder is what `Run`, `run_callbacks` and `run.finish` leave behind after a few steps of a tiny model, and beside
it predictions.pt:

    raw            what the set holds: digits `uint8` (n,H,W,3), cubes of reflectance `float32` (n,C,H,W)
    inputs         the same as the loader gives it to the model, normalised
    targets        classes (n,); of the label map (n,H,W), -100 where a pixel has none; of the autoencoder valid pixels
                   (n,1,H,W)
    outputs        logits, or the dictionary that the autoencoder gives for the masks `order`; by name of the checkpoint
    probabilities  softmax of the logits over classes; by name of the checkpoint
    filled         of the autoencoder: cubes with the removed voxels filled in; by name of the checkpoint
    order          of the autoencoder: the masks
    normalizer     of cubes: the state of what made `inputs` from `raw`; the checkpoint of a label map does not hold it

What names the machine is replaced in environment.json and status.json; everything else is as it was written.
"""
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import vitnb
from vitnb.callback.masked import VALID_EPOCH
from vitnb.data.cube import cube_loaders, load_cube_set
from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.experiment.recipes import callback_args, learner_args, loader_args, resolve
from vitnb.experiment.run import Run, read_json, release, write_json
from vitnb.learner.core import load_model, run_callbacks, train_callbacks
from vitnb.learner.predict import predict_split, vit_learner
from vitnb.learner.spectral import (cube_args, evaluate_model, find_checkpoint, spectral_args, spectral_learner,
                                    spectral_recipe)
from vitnb.losses.spectral import reconstruct
from vitnb.metrics.classify import classification_report
from vitnb.seeding import set_seed

COMMIT = "2cdb6f0"
FILES = ("best_model.pth", "last_model.pth")
CLASSIFIERS = dict( # family: what is not as in its recipe
    swin=dict(model_kw=dict(embed_dim=12, depths=[1, 1], num_heads=[2, 2]), epochs=5, bs=32, lr=5e-3),
    densenet=dict(model_kw=dict(growth_rate=6, block_config=[2, 2]), epochs=4, bs=32, lr=.1, ema_decay=.5))
SPECTRAL = dict(
    data_kw=dict(n=24, bands=10, size=16), normalize="zscore", patch_size=[4, 5], epochs=6, bs=4, lr=3e-3,
    model_kw=dict(embed_dim=12, depth=2, num_heads=2, decoder_embed_dim=8, decoder_depth=1))


def begin(folder, name, params):
    "A run in this folder"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ["VITNB_RUN_DIR"] = str(folder)
    return Run(name, dict(seed=1, device="cpu", **params))


def end(run, told):
    "Store the predictions, and take the machine's name out"
    torch.save(told, run.dir/"predictions.pt")
    release(run.dir)
    (run.dir/".lock").unlink(missing_ok=True)
    for name,facts in (("environment", dict(platform="Linux")), ("status", dict(host="host", pid=1))):
        write_json(run.dir/f"{name}.json", read_json(run.dir/f"{name}.json") | facts)


@torch.no_grad()
def by_file(run, f): return {k:f(load_model(run.checkpoints/k)) for k in FILES}


def classifier(folder, family, given):
    "As train_swin and train_densenet, on digits"
    run = begin(folder, f"train_{family}", given)
    r = resolve(family, "digits", given)
    set_seed(1)
    run.save("recipe", r)
    digits = load_set(r.data, limit=40)
    dls = image_loaders(digits, seed=1, workers=0, device="cpu", **loader_args(r))
    run.note(data=digits.fingerprint)
    learn = vit_learner(dls, seed=1, device="cpu", cbs=train_callbacks(**callback_args(r)), **learner_args(r))
    learn.progress.plot = False
    learn.fit(r.epochs, cbs=run_callbacks(run.dir, steps=5, tracker="none"))
    probs,targets = predict_split(learn, "test")
    report = classification_report(probs, targets, dls.vocab)
    run.finish(test_accuracy=report["accuracy"], test_n=report["n"], epochs=r.epochs)
    index = range(0, len(targets), 40)
    inputs,targets = dls.test.make_batch(index, 0)
    outputs = by_file(run, lambda model: model(inputs))
    raw = torch.stack([torch.from_numpy(digits.read("test", i)) for i in index])
    probabilities = {k:v.softmax(-1) for k,v in outputs.items()}
    end(run, dict(raw=raw, inputs=inputs, targets=targets, outputs=outputs, probabilities=probabilities))


def raw_cubes(dls, n): return dls.test.dataset.pixels.take(torch.arange(n).numpy()).cube


def autoencoder(folder, n=2):
    "As pretrain_spectral, on synthetic retinas"
    run = begin(folder, "pretrain_spectral", dict(recipe="synthetic", **SPECTRAL))
    r = spectral_recipe("synthetic", SPECTRAL)
    set_seed(1)
    run.save("recipe", r)
    cubes = load_cube_set(r.data, **r.data_kw)
    dls = cube_loaders(cubes, seed=1, workers=0, device="cpu", **cube_args(r))
    run.note(data=cubes.fingerprint)
    learn = spectral_learner(dls, seed=1, device="cpu", **spectral_args(r))
    learn.progress.plot = False
    learn.fit(r.epochs, cbs=run_callbacks(run.dir, "mse_masked", "min", steps=3, tracker="none"))
    scores = evaluate_model(run.dir, dls.test, device="cpu")["scores"]
    run.finish(**{f"test_{k}":v["mean"] for k,v in scores.items()}, test_n=len(dls.test.dataset), epochs=r.epochs)
    inputs,valid = dls.test.make_batch(range(n), 0)
    order = learn.model.seeded_order(1, VALID_EPOCH, range(n))
    outputs = by_file(run, lambda model: model(inputs, order))
    filled = {k:reconstruct(v, inputs) for k,v in outputs.items()}
    end(run, dict(raw=raw_cubes(dls, n), inputs=inputs, targets=valid, order=order, outputs=outputs, filled=filled,
                  normalizer=dls.normalizer.state_dict()))


def label_map(folder, encoder, n=2):
    "A class for each pixel, from the encoder that was pre-trained"
    given = dict(encoder="spectral", target="pixels", head="pixel", epochs=6, bs=4, lr=3e-3)
    run = begin(folder, "finetune_spectral", given)
    set_seed(1)
    cubes = load_cube_set("retina_synthetic", **SPECTRAL["data_kw"])
    dls = cube_loaders(cubes, given["bs"], augment="flip", normalize="zscore", target="pixels",
                       patch_size=SPECTRAL["patch_size"], seed=1, workers=0, device="cpu")
    run.note(data=cubes.fingerprint)
    model_kw = dict(SPECTRAL["model_kw"], patch_size=SPECTRAL["patch_size"], in_chans=dls.bands,
                    wavelengths=dls.wavelengths.tolist(), head="pixel")
    learn = vit_learner(dls, "spectral_mae_micro", model_kw, pretrained=str(find_checkpoint(encoder)), lr=given["lr"],
                        clip=1., schedule_kw=dict(warmup_epochs=1), seed=1, device="cpu", precision="fp32")
    learn.progress.plot = False
    learn.fit(given["epochs"], cbs=run_callbacks(run.dir, steps=3, tracker="none"))
    probs,targets = predict_split(learn, "test")
    accuracy = (probs.argmax(1) == targets).float().mean().item()
    run.finish(test_accuracy=accuracy, test_n=len(targets), epochs=given["epochs"])
    inputs,targets = dls.test.make_batch(range(n), 0)
    outputs = by_file(run, lambda model: model(inputs))
    probabilities = {k:v.softmax(1) for k,v in outputs.items()}
    end(run, dict(raw=raw_cubes(dls, n), inputs=inputs, targets=targets, outputs=outputs, probabilities=probabilities,
                  normalizer=dls.normalizer.state_dict()))


if __name__ == "__main__":
    home,out = Path(vitnb.__file__).parents[1],Path(sys.argv[1]).resolve()
    git = ["git", "-C", str(home), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout
    if not commit.startswith(COMMIT): raise SystemExit(f"vitnb is that of commit {commit[:7]}, not of {COMMIT}")
    os.environ["VITNB_WORKSPACE"] = str(home) # its commit is what environment.json names
    os.environ["VITNB_CACHE_PATH"] = tempfile.mkdtemp() # nothing is left in that checkout
    for family,given in CLASSIFIERS.items(): classifier(out/family, family, given)
    autoencoder(out/"spectral")
    label_map(out/"label_map", out/"spectral")
