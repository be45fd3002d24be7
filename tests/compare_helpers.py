"Run folders that were never run"
import json

import pytest


def write_run(folder, **files):
    "Write a run folder: params, status, result, columns, history ..."
    folder.mkdir(parents=True, exist_ok=True)
    files = {"status":dict(status="finished", seconds=5, name=folder.parent.name), **files}
    for name,content in files.items(): (folder/f"{name}.json").write_text(json.dumps(content))
    return folder


def scored(folder, accuracy, **params):
    "A run with a score, its interval, and a column that declares the direction"
    result = dict(test_accuracy=accuracy, test_accuracy_lo=accuracy - .02, test_accuracy_hi=accuracy + .02, test_n=90)
    history = [dict(epoch=epoch, accuracy=accuracy*epoch/3) for epoch in (1, 2, 3)]
    return write_run(folder, params=params, result=result, columns=dict(accuracy=dict(better="max")), history=history)


@pytest.fixture
def outputs(tmp_path):
    "Two learning rates on three seeds; 0.2 is better by 0.03 on each seed, and seeds differ by more"
    for seed in range(3):
        for lr in (.1, .2): scored(tmp_path/"out"/"train_a"/f"lr{lr}_{seed}", .7 + .1*seed + .03*(lr > .1) + .001*seed*(lr > .1), lr=lr, seed=seed, bs=8)
    return tmp_path/"out"
