"The tests themselves: no neighbour, allocator, kind of CPU or order of tests decides what they say"
import ast
import os
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from process_state import Refusing, left, quiet_port, registries, reseed, shared

HERE = Path(__file__).resolve().parent
FILES = sorted(HERE.glob("*.py"))
CHANGES = ("torch.set_num_threads", "torch.set_default_dtype", "torch.manual_seed", "np.random.seed", "random.seed",
           "matplotlib.use", "os.chdir", "os.environ.update", "os.environ.setdefault", "os.putenv", "sys.path.insert",
           "sys.path.append")
CLOCK = r"\btime\.(?:time|monotonic|perf_counter)\(\)"
each_file = pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)


def tree(path): return ast.parse(path.read_text(encoding="utf-8"))


def at_import(node):
    "What runs when a module is imported: all but the bodies of functions"
    for n in ast.iter_child_nodes(node):
        if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)): continue
        if isinstance(n, ast.If) and ast.unparse(n.test) == "__name__ == '__main__'": continue
        yield n
        yield from at_import(n)


def changes(t):
    "Calls and assignments at import that change what all tests share"
    for n in at_import(t):
        if isinstance(n, ast.Call) and ast.unparse(n.func) in CHANGES: yield ast.unparse(n)
        goals = [ast.unparse(o) for o in n.targets] if isinstance(n, ast.Assign) else []
        if any(o.startswith("os.environ[") for o in goals): yield ast.unparse(n)


def generators(t):
    "Generators of numbers that a module makes once and several tests draw from: each gets what the others left"
    makers = ("default_rng", "Generator", "RandomState", "Random")
    calls = [n for n in t.body if isinstance(n, ast.Assign) and isinstance(n.value, ast.Call)]
    calls = [n for n in calls if ast.unparse(n.value.func).split(".")[-1] in makers]
    made = {o.id for n in calls for o in n.targets if isinstance(o, ast.Name)}
    functions = [f for f in ast.walk(t) if isinstance(f, ast.FunctionDef)]
    used = {n.id for f in functions for n in ast.walk(f) if isinstance(n, ast.Name)}
    return sorted(made & used)


def clocks(t):
    "Assertions that compare a clock with a number: of seconds that a neighbour can take away"
    for n in ast.walk(t):
        if not isinstance(n, ast.Assert): continue
        for c in ast.walk(n.test):
            if not isinstance(c, ast.Compare): continue
            parts = [ast.unparse(o) for o in (c.left, *c.comparators)]
            if any(re.search(rf"{CLOCK}\s*-|-\s*{CLOCK}", o) for o in parts): yield ast.unparse(c)


PATIENCE = 60 # seconds; what comes at once may take as long on a machine with other work


def short_waits(t):
    "Waits of the test's own that end in an error before a busy machine is done: they wait for an event, and the limit is for what hangs"
    for n in ast.walk(t):
        if not isinstance(n, ast.Call): continue
        name = ast.unparse(n.func).split(".")[-1]
        limits = [k.value for k in n.keywords if k.arg == "timeout"]
        if name == "wait" and not limits: limits = n.args[:1]
        if name not in ("wait", "communicate", "run", "check_output", "get", "join"): continue
        for o in limits:
            if isinstance(o, ast.Constant) and isinstance(o.value, (int, float)) and o.value <= PATIENCE: yield ast.unparse(n)


@each_file
def test_no_wait_is_shorter_than_a_busy_machine_needs(path): assert not list(short_waits(tree(path)))


@each_file
def test_importing_a_test_file_changes_nothing_for_others(path): assert not list(changes(tree(path)))


@each_file
def test_no_generator_is_shared_by_tests(path): assert not generators(tree(path))


@each_file
def test_no_assertion_measures_seconds(path): assert not list(clocks(tree(path)))


@each_file
def test_resident_memory_is_not_read_from_what_a_parent_had(path):
    assert path.name == "test_process.py" or "getrusage" not in path.read_text(encoding="utf-8")


def test_the_checks_see():
    "Each of these is found, and its harmless sister is not"
    for code in ("import torch\ntorch.set_num_threads(1)", "class A:\n  np.random.seed(0)", "os.environ['A'] = '1'"):
        assert list(changes(ast.parse(code))), code
    assert not list(changes(ast.parse("def test_a():\n  torch.set_num_threads(2)")))
    assert generators(ast.parse("rng = np.random.default_rng(0)\ndef f(): return rng.random()")) == ["rng"]
    assert not generators(ast.parse("X = np.random.default_rng(0).random(3)\ndef f(): return X"))
    for code in ("p.wait(20)", "p.communicate(timeout=60)", "subprocess.run(a, timeout=5)", "queue.get(timeout=.5)", "t.join(timeout=1)"):
        assert list(short_waits(ast.parse(code))), code
    for code in ("p.wait()", "p.wait(200)", "d.get(k, 1)", "t.join()", "urlopen(u, timeout=1)", "ranks.wait()"): assert not list(short_waits(ast.parse(code))), code
    for code in ("assert time.time() - before < 9", "assert a and b - time.monotonic() > 1"):
        assert list(clocks(ast.parse(code))), code
    assert not list(clocks(ast.parse("while True:\n  assert time.monotonic() < end, 'it did not come'")))


def test_what_a_test_leaves_is_named(monkeypatch, tmp_path):
    from vitnb.models.protocol import models, register_model
    before = shared()
    assert not left(before, shared())
    with monkeypatch.context() as m:
        m.setenv("VITNB_SEED", "3")
        m.chdir(tmp_path)
        m.setitem(models, "mine", test_what_a_test_leaves_is_named)
        assert left(before, shared()) == ["environment VITNB_SEED", "folder", "model mine"]
    register_model("mine", torch.nn.Linear)
    try: assert left(before, shared()) == ["model mine"]
    finally: del models["mine"]
    torch.set_num_threads(2)
    try: assert left(before, shared()) == ["threads"]
    finally: torch.set_num_threads(1)
    assert not left(before, shared()) and "model" in registries()


def test_a_test_begins_with_the_same_generators_wherever_it_runs(pytestconfig):
    if pytestconfig.getoption("randomly_reset_seed", False): pytest.skip("pytest-randomly seeds each test again after the fixture")
    a = torch.rand(3),np.random.rand(3)
    reseed()
    assert torch.equal(torch.rand(3), a[0]) and (np.random.rand(3) == a[1]).all() and torch.get_num_threads() == 1


def test_nothing_is_read_from_or_written_to_the_checkout_by_default():
    "A measurement that an earlier suite left, on a busy machine, would decide the precision of this one"
    from vitnb.core import settings
    for path in (settings().cache_path, settings().outputs_path): assert not path.is_relative_to(HERE.parent)
    assert {k for k in os.environ if k.startswith("VITNB_")} == {"VITNB_CACHE_PATH", "VITNB_OUTPUTS_PATH"}


def test_ports():
    "One that nobody is given by chance, and one that refuses for as long as it is needed"
    port = quiet_port()
    with socket.socket() as s: s.bind(("127.0.0.1", port))
    with Refusing() as port, socket.socket() as s:
        assert s.connect_ex(("127.0.0.1", port)) != 0
        with socket.socket() as other, pytest.raises(OSError): other.bind(("127.0.0.1", port))
