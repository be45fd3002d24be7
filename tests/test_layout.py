"The house as the README describes it: numbers, rooms, arrows, sizes, signatures, and the anatomy of an experiment"
import ast
import importlib
import io
import json
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest
import surface
from fastai.callback.core import event

from vitnb.experiment.notebook import card

ROOT = Path(__file__).resolve().parents[1]
NUMBERED = sorted(p for p in (ROOT/"nbs"/"library").glob("*.ipynb") if not p.name.startswith("_"))
SHOWN = sorted(p for p in (ROOT/"nbs").glob("*.ipynb") if not p.name.startswith("_")) # what a person runs
EXPERIMENTS = [p for p in SHOWN if p.stem != "index"]
NBS = SHOWN + NUMBERED
VERBS = "train pretrain finetune benchmark explore sweep compare evaluate".split()

# room: what it may import besides itself and core; a room that is not here may import nothing of ours
ALLOW = dict(core="", written="", seeding="", files="written", escape="", renamed="", progress="", device="", measured="files", environment="", runwords="", launch="", kernel="launch progress", runfolder="written files kernel launch progress", gather="", storage="", hub="written files", runweights="runfolder", parameters="renamed files escape", kinds="", task="kinds", data="task", models="task",
    losses="task", figures="task", drawings="task figures", spectra="figures", chestfigures="figures metrics", metrics="task losses",
    callback="task data losses metrics figures drawings spectra",
    learner="task data models losses metrics figures drawings spectra callback", experiment="figures learner",
    explore="models figures spectra",
    testing="task data models losses metrics figures drawings spectra callback learner experiment explore",
    exactness="callback learner experiment testing")
ALWAYS = {"core", "written", "seeding", "files", "escape", "renamed", "progress", "device", "launch", "kernel", "runfolder", "runweights", "gather", "storage", "hub", "measured", "environment", "parameters", "runwords"} # every room may import these


@surface.once
def all_cells(path): return json.loads(path.read_text(encoding="utf-8"))["cells"]
def cells(path, kind="code"): return [c for c in all_cells(path) if c["cell_type"] == kind]
def source(c): return "".join(c["source"])
def exported(path): return [s for s in map(source, cells(path)) if re.search(r"^#\|\s*export", s, re.M)]
def module(path): return path.stem.split("_", 1)[1]
@surface.once
def tree(path): return ast.parse("\n".join(exported(path)))
def imports(t): return [n for n in surface.nodes(t) if isinstance(n, (ast.Import, ast.ImportFrom))]
def ids(paths): return dict(argvalues=paths, ids=[p.stem for p in paths])


@surface.once
def python(path):
    "The code cells of a notebook without magics"
    return ast.parse("\n".join(s for s in map(source, cells(path)) if not re.search(r"^\s*[%!]", s, re.M)))


def ours(t):
    "Modules of vitnb that a tree imports"
    for n in imports(t):
        if isinstance(n, ast.ImportFrom): names = [n.module or ""] if n.module != "vitnb" else [f"vitnb.{a.name}" for a in n.names]
        else: names = [a.name for a in n.names]
        yield from (m.removeprefix("vitnb.") for m in names if m.startswith("vitnb."))


def functions(t):
    "Every function of a tree with the class it stands in"
    for n in surface.nodes(t):
        for f in getattr(n, "body", []) if isinstance(n, (ast.Module, ast.ClassDef)) else []:
            if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)): yield f, n if isinstance(n, ast.ClassDef) else None


def test_there_is_a_house(): assert len(NUMBERED) > 2


@pytest.mark.parametrize("p", **ids(NUMBERED))
def test_a_number_means_export(p):
    assert re.fullmatch(r"\d\d\d_[a-z]+(\.[a-z]+)?", p.stem), "name it NNN_room.module"
    assert source(cells(p)[0]).strip() == f"#| default_exp {module(p)}", "the first cell names the module, and nothing else"
    first = [c for c in json.loads(p.read_text())["cells"]][1]
    assert first["cell_type"] == "markdown" and re.match(rf"# {re.escape(module(p))}\n+> \S", source(first)), "the second cell is `# room.module` and `> one sentence`"
    assert exported(p), "it exports nothing"


def test_no_number_means_no_export():
    for p in SHOWN: assert "default_exp" not in p.read_text(), f"{p.name} exports, so it belongs into nbs/library, with a number"


HUNDREDS = dict(core=0, written=0, seeding=0, files=0, escape=0, renamed=0, progress=0, device=0, measured=0, environment=0, runwords=0, launch=0, kernel=0, runfolder=0, runweights=0, gather=0, storage=0, hub=0, parameters=0, kinds=0, task=0, data=1, models=2, losses=3, metrics=3, figures=3, drawings=3, spectra=3, chestfigures=3, callback=4, learner=5, experiment=6, explore=7, testing=8, exactness=8)


@pytest.mark.parametrize("p", **ids(NUMBERED))
def test_a_room_is_a_hundred(p): assert int(p.name[0]) == HUNDREDS[module(p).split(".")[0]]


def test_numbers_are_used_once():
    numbers = [p.name[:3] for p in NUMBERED]
    assert len(set(numbers)) == len(numbers), sorted(n for n in numbers if numbers.count(n) > 1)


@pytest.mark.parametrize("p", **ids(NUMBERED))
def test_rooms(p):
    room = module(p).split(".")[0]
    allowed = ALLOW.get(room, "").split()
    may = {*ALWAYS, room, *allowed} if room not in ALWAYS else {"core", *allowed} - {room}
    wrong = [m for m in ours(tree(p)) if m.split(".")[0] not in may]
    assert not wrong, f"{room} may import {sorted(may)}, not {wrong}"


@pytest.mark.parametrize("p", **ids(NUMBERED))
def test_only_lower_numbers(p):
    "What a callback does is shown on a Learner, so the examples of that room may import what comes later; what is exported may not"
    number = {module(q): int(q.name[:3]) for q in NUMBERED}
    looked = tree(p) if module(p).startswith("callback.") else python(p)
    wrong = [m for m in ours(looked) if number.get(m, 1000) >= int(p.name[:3])]
    assert not wrong, f"{p.name} imports {wrong}, which come later or do not exist"


@cache
def given_methods():
    "(class, method) -> the module that gives a class of another module this method"
    found = {}
    for p in NUMBERED:
        own = {n.name for n in tree(p).body if isinstance(n, ast.ClassDef)}
        for f in tree(p).body:
            if not isinstance(f, ast.FunctionDef) or "patch" not in {ast.unparse(d) for d in f.decorator_list}: continue
            owner = ast.unparse(f.args.args[0].annotation)
            if owner not in own: found[owner, f.name] = module(p)
    return found


def with_all_below(t):
    "Modules of vitnb that are loaded with a tree"
    trees = {module(p):tree(p) for p in NUMBERED}
    found,left = set(), list(ours(t))
    while left:
        name = left.pop()
        if name not in found and name in trees: left += ours(trees[name])
        found.add(name)
    return found


def methods_without_a_room(t):
    "Methods that a function calls on what it is given, whose module nobody has loaded"
    for f,_ in functions(t):
        for a in (*f.args.args, *f.args.kwonlyargs):
            kinds = {n.id for n in ast.walk(a.annotation) if isinstance(n, ast.Name)} if a.annotation else set()
            used = {n.attr for n in ast.walk(f) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == a.arg}
            for (owner, name),home in given_methods().items():
                if owner in kinds and name in used and home not in with_all_below(t): yield f"{f.name}: {owner}.{name} of {home}"


LOADED_ABOVE = {"fit: VitLearner.resume_callbacks of learner.resume"} # by what makes every Learner


@pytest.mark.parametrize("p", **ids(NUMBERED))
def test_what_a_room_calls_is_loaded_with_it(p):
    missing = {line for line in methods_without_a_room(tree(p)) if not line.endswith(f" of {module(p)}")}
    assert missing <= LOADED_ABOVE, f"import the module that gives the class this method: {missing}"


def test_the_search_for_methods_sees():
    t = ast.parse("from vitnb.learner.trained import LoadedRun\ndef f(run:LoadedRun, items): return run.read(items)")
    assert list(methods_without_a_room(t)) == ["f: LoadedRun.read of learner.predict"]


@pytest.mark.parametrize("p", **ids(NUMBERED))
def test_imports_are_explicit(p):
    stars = [n.module for n in imports(tree(p)) if any(a.name == "*" for a in n.names)]
    assert not stars, f"exported star imports: {stars}"


@pytest.mark.parametrize("p", **ids(NUMBERED))
def test_functions_are_short(p):
    lines = "\n".join(exported(p)).splitlines()
    body = lambda f: sum(bool(s.strip()) for s in lines[f.body[0].lineno-1:f.end_lineno])
    long = {f.name: body(f) for f in ast.walk(tree(p)) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) and body(f) > 30}
    assert not long, f"over 30 lines: {long}"


@pytest.mark.parametrize("p", **ids(NBS))
def test_the_surface_is_no_worse_than_it_was(p):
    "Faults that were there when a rule came stand in `surface.json`, which may only shrink"
    was = surface.allowed().get(p.stem, {})
    for rule,found in surface.surface(p).faults.items():
        assert len(found) <= was.get(rule, 0), f"{rule}: {found}; `python tests/surface.py {p.stem}` says all"
        assert len(found) >= was.get(rule, 0), f"{rule}: fewer than before; `python tests/surface.py --write` notes it"


def test_few_notebooks_are_longer():
    assert len(surface.EXCEPTIONS) <= 3 and set(surface.EXCEPTIONS) <= {p.stem for p in NUMBERED}


def test_the_library_as_a_whole_reads_well():
    for rule,value in surface.shares([surface.surface(p) for p in NUMBERED]).items():
        limit = surface.allowed().get("library", {}).get(rule, surface.SHARES[rule])
        assert value <= limit, f"{rule}: {value:.1f}; at most {limit}"


SAMPLES = dict( # rule: a cell that breaks it, and its sister that does not
    long_lines=("a = 1" + " "*115 + "# b", "a = 1" + " "*100 + "# b"),
    semicolons=("a = 1; b = 2", "plt.show();"),
    long_bodies=("def f():\n" + "    a = 1\n"*26, "def f():\n" + '    "Do."\n' + "    a = 1\n"*25),
    wide_lambdas=("f = lambda x: (x +\n    1)", "f = lambda x: x + 1"),
    nested_conditionals=("a = 1 if b else 2 if c else 3", "a = 1 if b else 2"),
    long_cells=("a = 1\n"*41, "def f(\n" + "    a, # why\n"*30 + "):\n" + "    a = 1\n"*20 + "a = 1\n"*20),
    long_notebooks=("\n".join("a = 1" for _ in range(301)), "\n".join("a = 1" for _ in range(300))))


@pytest.mark.parametrize("rule", SAMPLES)
@pytest.mark.parametrize("broken", [True, False])
def test_each_rule_of_the_surface_sees(tmp_path, monkeypatch, rule, broken):
    monkeypatch.setattr(surface, "LIBRARY", tmp_path)
    lines = SAMPLES[rule][0 if broken else 1].splitlines()
    size = surface.CELL_LINES if rule == "long_notebooks" else len(lines)
    parts = ["\n".join(lines[i:i+size]) for i in range(0, len(lines), size)]
    notebook = dict(cells=[dict(cell_type="code", metadata={}, source=f"#| export\n{part}") for part in parts])
    (tmp_path/"900_a.b.ipynb").write_text(json.dumps(notebook))
    faults = surface.surface(tmp_path/"900_a.b.ipynb").faults
    assert {k for k,v in faults.items() if v} == ({rule} if broken else set())


def test_the_shares_count():
    counts = lambda code: [len(f(ast.parse(code))) for f in (surface.tuple_assignments, surface.conditional_expressions, surface.stored_names)]
    assert counts("a,b = 1,2\nh,w = x.shape\nc = d = (1, 2)") == [1, 0, 6]
    assert counts("a = b if c else d\nfor i in x: pass\ny = [z for z in x]") == [0, 1, 4]


def file_of_tests(names):
    "The file with the tests of each module, by its last name where no other module has the same"
    last = [name.split(".")[-1] for name in names]
    return {name:f"test_{end if last.count(end) == 1 else name.replace('.', '_')}.py" for name,end in zip(names, last)}


def has_tests(path): return path.is_file() and bool(re.search(r"^def test_", path.read_text(encoding="utf-8"), re.M))


@pytest.mark.parametrize("name,file", file_of_tests(list(map(module, NUMBERED))).items())
def test_each_module_has_its_tests(name, file):
    assert has_tests(ROOT/"tests"/file), f"the tests of {name} are looked for in tests/{file}"


def test_the_search_for_tests_sees(tmp_path):
    "Two modules that end alike are told apart by their rooms, and a file without a test is none"
    assert file_of_tests(["core", "data.mix", "callback.mix", "learner.core", "data.once"]) == {
        "core":"test_core.py", "data.mix":"test_data_mix.py", "callback.mix":"test_callback_mix.py",
        "learner.core":"test_learner_core.py", "data.once":"test_once.py"}
    (tmp_path/"test_once.py").write_text("import pytest\n")
    assert not has_tests(tmp_path/"test_once.py") and not has_tests(tmp_path/"test_core.py")
    (tmp_path/"test_once.py").write_text("def test_all(): pass\n")
    assert has_tests(tmp_path/"test_once.py")


RUN = 4 # exported cells in a row that a reader takes without an example


def defines(code):
    "Whether an exported cell has more than imports"
    is_exported = re.search(r"^#\|\s*export", code, re.M)
    return bool(is_exported) and not all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(code).body)


def is_example(code): return not re.search(r"^#\|\s*(export|hide|default_exp)", code, re.M)


def long_runs(codes):
    "How many cells of definitions follow one another without an example between them, where they are too many"
    runs = [0]
    for code in codes:
        if is_example(code): runs.append(0)
        else: runs[-1] += defines(code)
    return [n for n in runs if n > RUN]


@pytest.mark.parametrize("p", **ids(NUMBERED))
def test_definitions_are_followed_by_an_example(p):
    found = long_runs(map(source, cells(p)))
    assert not found, f"{found} exported cells without an example among them; show a value after {RUN} at most"


def test_the_search_for_examples_sees():
    "Hidden cells show nothing, and cells of imports define nothing"
    cell,imported,hidden,example = "#| export\ndef f(): pass", "#| export\nimport os", "#| hide\nimport os", "f()"
    assert long_runs([cell]*RUN + [hidden, cell]) == [RUN + 1] and long_runs([cell]*2*RUN) == [2*RUN]
    assert long_runs([imported, *[cell]*RUN, example, *[cell]*RUN, imported]) == []


WHOLE = r"`[^`]*`|\[[^\]]*\]\([^)]*\)" # code and links, which are not broken


def wide_prose(path, columns=surface.COLUMNS["experiment"]):
    "Lines of text that are wider than JupyterLab shows; tables, titles, pictures and code stay whole"
    texts = [re.sub(r"^```.*?^```", "", source(c), flags=re.M | re.S) for c in cells(path, "markdown")]
    lines = [line for text in texts for line in text.splitlines() if not re.match(r"\s*(\||<|>|#|!\[)", line)]
    return [line for line in lines if len(line) > columns and " " in re.sub(WHOLE, "x", line).strip("-* ")]


@pytest.mark.parametrize("p", **ids(SHOWN))
def test_prose_is_as_wide_as_the_page(p):
    assert not wide_prose(p), "break these lines where a reader breathes"


def test_the_measure_of_prose_sees(tmp_path):
    page = tmp_path/"train_a.ipynb"
    def said(*lines):
        page.write_text(json.dumps(dict(cells=[dict(cell_type="markdown", source="\n".join(lines))])))
        return wide_prose(page)
    assert said("word "*20, "word "*21) == ["word "*21]
    assert said("| " + "cell | "*30, "[text](" + "path/"*30 + ")", "- `" + "run "*30 + "`", "```", "word "*30, "```") == []


def blankets(t):
    "Handlers that catch everything: without a type, or a broad one whose body does nothing"
    for n in surface.nodes(t):
        if not isinstance(n, ast.ExceptHandler): continue
        broad = isinstance(n.type, ast.Name) and n.type.id in ("Exception", "BaseException")
        if n.type is None or (broad and all(isinstance(b, (ast.Pass, ast.Continue)) for b in n.body)): yield n.lineno


@pytest.mark.parametrize("p", **ids(NBS))
def test_nothing_is_swallowed(p): assert not list(blankets(python(p)))


def sniffing(t):
    "Where a tree asks what fastai's own callbacks leave on a Learner, in place of its phase"
    marks = ("lr_finder", "gather_preds")
    for n in surface.nodes(t):
        said = n.attr if isinstance(n, ast.Attribute) else n.id if isinstance(n, ast.Name) else n.value if isinstance(n, ast.Constant) else None
        if said in marks: yield f"{said} in line {n.lineno}"


@pytest.mark.parametrize("p", **ids(NUMBERED))
def test_the_phase_is_asked_and_not_guessed(p):
    found = list(sniffing(tree(p)))
    assert not found, f"{found}: a callback names its phases (TrainCallback), and a Learner says `learn.phase`"


def test_the_phase_check_sees():
    "The check itself: each of these guesses, the last does not"
    for code in ('hasattr(self.learn, "lr_finder")', "self.gather_preds", "getattr(learn, 'gather_preds', None)", "lr_finder.run"): assert list(sniffing(ast.parse(code))), code
    assert not list(sniffing(ast.parse("'a text about lr_finder'; self.learn.phase == 'lr_find'")))


@pytest.mark.parametrize("p", **ids(NUMBERED))
def test_mistakes_are_errors_not_asserts(p):
    found = [ast.unparse(n)[:80] for n in ast.walk(tree(p)) if isinstance(n, ast.Assert)]
    assert not found, f"assert in an exported cell (use ValueError with value, rule and remedy): {found}"


def inherited(cls, name):
    "Whether a class only overrides `name`, whose meaning stands at the base, or answers to a name whose meaning torch or fastai gives"
    known = name in ("forward", "state_dict", "load_state_dict") or name in vars(event)
    return known or any(name in vars(base) for base in getattr(cls, "__mro__", ())[1:])


def patched(f):
    "Name of the class that a function is patched into; empty if none"
    note = f.args.args[0].annotation if f.args.args and f.args.args[0].arg == "self" else None
    return note.id if isinstance(note, ast.Name) else ""


def explainable(t, space):
    "Public functions, `__init__` and public methods that override nothing, with their names"
    for f,cls in functions(t):
        if (f.name.startswith("_") and f.name != "__init__") or (cls and cls.name.startswith("_")): continue
        method = cls or (f.args.args and f.args.args[0].arg == "self") # in a class, or patched into one
        owner = cls.name if cls else patched(f)
        if method and f.name != "__init__" and inherited(space.get(owner), f.name): continue
        yield f, cls, f"{cls.name}.{f.name}" if cls else f.name


def unexplained(text, space):
    "What a reader of the signatures would miss, by name; `text` is exported code, `space` the module it makes"
    lines = {t.start[0] for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT}
    for f,cls,name in explainable(ast.parse(text), space):
        args = [a for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs) if a.arg not in ("self", "cls")]
        for a in args:
            if a.annotation is None: yield f"{name}({a.arg}) has no type"
            elif a.end_lineno not in lines and (not cls or f.name == "__init__"): yield f"{name}({a.arg}) has no comment"
        if cls: continue # what a method gives may be clear from its one line
        if f.returns is None and not any(a.arg == "self" for a in f.args.args): yield f"{name} does not say what it returns"
        if ast.get_docstring(f) is None: yield f"{name} has no docstring"


@pytest.mark.parametrize("p", **ids(NUMBERED))
def test_signatures_explain(p):
    missing = list(unexplained("\n\n".join(exported(p)), vars(importlib.import_module(f"vitnb.{module(p)}"))))
    assert not missing, "\n".join(missing)


def test_the_signature_check_sees():
    "The check itself: each of these lacks something"
    bad = {"def f(x): 'd'": "type", "def f(x:int)->int: 'd'": "comment", "def f(\n  x:int, # an x\n): 'd'": "returns", "def f()->int: pass": "docstring",
        "class A:\n  def __init__(self, x:int): pass": "comment", "class A:\n  def g(self, x): pass": "type"}
    for code,word in bad.items():
        exec(code, space := {})
        assert [m for m in unexplained(code, space) if word in m], code
    good = "def f(\n  x:int, # an x\n)->int: # twice\n  'd'\ndef _g(x): pass\nclass A(list):\n  def append(self, x): pass"
    exec(good, space := {})
    assert not list(unexplained(good, space))


@pytest.mark.parametrize("p", **ids(NBS))
def test_weight(p): assert p.stat().st_size <= 200_000, f"{p.stat().st_size//1000} kB; keep pictures small"


TEXTS = sorted(p for pattern in ("*.md", "*.toml", "*.ini", "nbs/**/*.ipynb", "vitnb/**/*.py", "tests/*.py", "outputs/README.md", ".ci/*", ".github/**/*.yml")
    for p in ROOT.glob(pattern) if p.is_file())


@pytest.mark.parametrize("p", argvalues=TEXTS, ids=[str(p.relative_to(ROOT)) for p in TEXTS])
def test_no_path_of_one_machine(p):
    word = "|".join(("work", "tmp", "farm", "root", "opt", "home", "Users")) # joined, so that this file does not match itself
    found = re.findall(rf"(?<![\w./~])/(?:{word})/\S*", p.read_text(encoding="utf-8"))
    assert not found, found


def test_all_py_has_every_room():
    have = [n.module.removeprefix("vitnb.") for n in imports(ast.parse((ROOT/"vitnb"/"all.py").read_text()))]
    want = [module(p) for p in NUMBERED]
    assert have == want, f"vitnb/all.py: add {[f'from vitnb.{m} import *' for m in want if m not in have]}, remove {[m for m in have if m not in want]}, in the order of the numbers"


def test_all_py_hides_nothing():
    "A public name belongs to one room, or `from vitnb.all import *` would hide one of two"
    home = {}
    for p in NUMBERED:
        for name in importlib.import_module(f"vitnb.{module(p)}").__all__: home.setdefault(name, []).append(module(p))
    assert not {k: v for k,v in home.items() if len(v) > 1}


@pytest.mark.parametrize("p", **ids(EXPERIMENTS))
def test_experiment_head(p):
    verb = p.stem.split("_")[0]
    assert verb in VERBS, f"name it verb_subject with a verb of {VERBS}"
    first,second = json.loads(p.read_text())["cells"][:2]
    assert re.fullmatch(rf"# {p.stem}\n+> .+\?\s*", source(first)), "the first cell is `# name` and `> question?`"
    said = card(dict(cells=[dict(source=source(c)) for c in (first, second)]))
    assert all(said.get(k) for k in ("Run", "Cost", "Expect")), f"the second cell is the card with Run, Cost and Expect; found {said}"
    assert p.name in said["Run"], "Run gives the command with the notebook's path"
    blank = [s for c in cells(p, "markdown") for s in source(c).splitlines() if re.fullmatch(r"(\*\*\w+\*\* )?[A-Z]{3,}", s.strip())]
    assert not blank, f"still to be written: {blank}"


@pytest.mark.parametrize("p", **ids(EXPERIMENTS))
def test_experiment_parameters(p):
    code = cells(p)
    tagged = [c for c in code if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1 and tagged[0] is code[0], "the first code cell, and no other, is tagged `parameters`"
    lines = [s for s in source(tagged[0]).splitlines() if s.strip()]
    for s in lines: assert re.fullmatch(r"[a-z]\w*\s*= .*\S\s+# \S.*", s), f"not `name = literal # reason`: {s}"
    values = {n.targets[0].id: ast.literal_eval(n.value) for n in ast.parse("\n".join(lines)).body}
    assert {"tag", "seed"} <= set(values), "every experiment has the parameters tag and seed"
    if p.stem.split("_")[0] in ("train", "pretrain", "finetune"): assert "epochs" in values, "training has the parameter epochs"
    assert re.search(rf'\bRun\("{p.stem}", globals\(\), tag(, resume)?(, family="\w+")?\)', source(code[1])), "the cell after the parameters opens the run"


@pytest.mark.parametrize("p", **ids(EXPERIMENTS))
def test_experiment_stores_nothing(p):
    assert not any(c["outputs"] or c["execution_count"] for c in cells(p)), "stored outputs: clear them; the executed copy lives in outputs/"
    assert re.search(r"\brun\.finish\(", source(cells(p)[-1])) or any("run.finish(" in source(c) for c in cells(p)), "it ends with run.finish(...)"


@pytest.mark.parametrize("p", **ids(EXPERIMENTS))
def test_experiment_defines_little(p):
    long = [f.name for f in ast.walk(python(p)) if isinstance(f, ast.FunctionDef) and f.end_lineno - f.lineno >= 10]
    assert not long, f"{long}: what is longer than ten lines deserves a numbered notebook"


def test_nbdev_test_leaves_the_experiments_out():
    "By a file beside them; the bullet that nbdev knows would stand under every title"
    assert (ROOT/"nbs"/".notest").is_file() and not (ROOT/"nbs"/"library"/".notest").exists()


def test_readme_has_the_two_commands():
    "What .ci/run reads: one block of code between each pair of marks"
    text = (ROOT/"README.md").read_text()
    for name,word in dict(main="papermill nbs/train_swin.ipynb outputs/train_swin.ipynb", test="python -m pytest").items():
        (block,) = re.findall(rf"^<!-- command: {name} -->\n```bash\n(.+?)\n```\n<!-- /command -->$", text, re.M | re.S)
        assert word in block


@pytest.mark.parametrize("page", ["README.md", "nbs/index.ipynb", "outputs/README.md"])
def test_links_lead_somewhere(page):
    "Pictures and files that a page names are there"
    text = (ROOT/page).read_text() if page.endswith(".md") else "\n".join(map(source, cells(ROOT/page, "markdown")))
    links = [t.split("#")[0] for t in re.findall(r'(?:\]\(|src="|href=")([^)"\s]+)', text) if not re.match(r"[a-z]+:|#", t)]
    gone = [t for t in links if not ((ROOT/page).parent/t).exists()]
    assert not gone, gone


# ---------------------------------------------------------------------------------------------- the two seams

KINDS = "Task Categorical OneClass MultiLabel Ordinal ClassMap Value".split()
LOADERS = "ImageLoader ImageLoaders ShardLoader DataLoader DataLoaders CubeLoader".split()
PREDICTED = {"pred", "preds", "target", "targets", "y", "yb", "said", "truth", "probs", "logits"} # as names of variables
SYSTEMS = {"swin", "densenet", "spectral", "hvit", "csi", "spectral_mae", "simclr"}
SEAM_EXCEPTIONS = { # what asks all the same, and why
    ("losses.classify", "pred.ndim != 2"): "a loss refuses rows that are no rows",
    ("metrics.classify", "targets.ndim != 1"): "a report of one class a sample refuses other arrays",
    ("learner.distribute", "isinstance(o, ImageLoader)"): "its worker processes do not travel"}


def name_of(n):
    "What an expression is called: a variable, an attribute, or a field such as `batch['target']`"
    if isinstance(n, ast.Subscript) and isinstance(n.slice, ast.Constant): return str(n.slice.value)
    return n.id if isinstance(n, ast.Name) else n.attr if isinstance(n, ast.Attribute) else ""


def attribute(n):
    "Object and name of `o.name`, `getattr(o, 'name')` and `o.name()`; (None, '') for others"
    if isinstance(n, ast.Attribute): return n.value, n.attr
    if isinstance(n, ast.Call) and name_of(n.func) == "getattr" and isinstance(n.args[1], ast.Constant): return n.args[0], n.args[1].value
    if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and not n.args: return n.func.value, n.func.attr
    return None, ""


def counts_dimensions(n):
    "Whether an expression is the number of dimensions of a target or a prediction"
    owner,name = attribute(n)
    if name in ("ndim", "dim", "ndimension"): return name_of(owner) in PREDICTED
    if not (isinstance(n, ast.Call) and name_of(n.func) == "len" and len(n.args) == 1): return False
    owner,name = attribute(n.args[0])
    return name in ("shape", "size") and name_of(owner) in PREDICTED


def is_task(n): return name_of(n) in ("task", "t", "only") or isinstance(n, ast.Subscript) and name_of(n.value) in ("tasks", "task")
def system_of(word): return next((k for k in sorted(SYSTEMS, key=len, reverse=True) if isinstance(word, str) and re.match(rf"\^?{k}(?![a-z])", word)), None)
def words(n): return [o.value for o in ast.walk(n) if isinstance(o, ast.Constant) and isinstance(o.value, str)]
def is_class_of(n): return "__class__" in ast.unparse(n) or any(isinstance(o, ast.Call) and name_of(o.func) == "type" for o in ast.walk(n))


def keys_of(n):
    "Keys of a dictionary, written in either way"
    if isinstance(n, ast.Dict): return [k for k in n.keys if k is not None]
    return [ast.Constant(k.arg) for k in n.keywords if k.arg] if isinstance(n, ast.Call) and name_of(n.func) == "dict" else []


SEARCHES = "startswith endswith removeprefix match fullmatch search fnmatch fnmatchcase".split()


def asks_by_call(n):
    "`isinstance` of a task or loader, and a search for the name of a system"
    if name_of(n.func) in ("isinstance", "issubclass"): return bool({name_of(o) for o in ast.walk(n.args[1])}.intersection(KINDS + LOADERS))
    return name_of(n.func) in SEARCHES and any(system_of(w) for a in n.args for w in words(a))


def asks_by_comparison(n):
    "A class, the name of a class, or the name of a system beside something"
    parts = [n.left, *n.comparators]
    said = {w for p in parts for w in words(p)}
    outright = [w for p in parts if isinstance(p, (ast.Constant, ast.Tuple, ast.List, ast.Set)) for w in words(p)] # not what a call is given
    if SYSTEMS & said or any(map(system_of, outright)): return True
    classes = {name_of(o) for p in parts for o in ast.walk(p)} | said
    return any(map(is_class_of, parts)) and bool(classes.intersection(KINDS + LOADERS))


def asks_by_table(n):
    "A dictionary of several systems, or of kinds of task"
    keys = keys_of(n)
    return len({system_of(k.value) for k in keys if isinstance(k, ast.Constant)} - {None}) > 1 or any(name_of(k) in KINDS + LOADERS for k in keys)


def asks_by_pattern(n):
    "A case of `match`"
    return isinstance(n, ast.MatchClass) and name_of(n.cls) in KINDS + LOADERS or isinstance(n, ast.MatchValue) and any(map(system_of, words(n)))


def asks_past_the_seams(t):
    "What a tree asks that only task and data may ask, as text"
    ways = ((ast.Call, asks_by_call), (ast.Compare, asks_by_comparison), ((ast.Dict, ast.Call), asks_by_table), (ast.pattern, asks_by_pattern))
    inside = set() # what stands in a comparison that is named as a whole
    for n in surface.nodes(t):
        owner,name = attribute(n)
        counted = isinstance(n, ast.Compare) and any(map(counts_dimensions, (n.left, *n.comparators)))
        if counted: inside.update(map(id, (n.left, *n.comparators)))
        called = isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)
        if called: inside.add(id(n.func))
        found = name == "kind" and is_task(owner) or counted or counts_dimensions(n) and id(n) not in inside
        if found or any(isinstance(n, kinds) and asks(n) for kinds,asks in ways): yield ast.unparse(n)


@pytest.mark.parametrize("p", **ids([p for p in NUMBERED if module(p).split(".")[0] not in ("kinds", "task", "data")]))
def test_only_task_and_data_ask_what_is_predicted(p):
    found = [o for o in asks_past_the_seams(tree(p)) if (module(p), o) not in SEAM_EXCEPTIONS]
    assert not found, f"{p.name}: {found}; ask the task, the loader or the objective for a property of its own"


def test_the_seam_check_sees():
    for code in ("task.kind == 'map'", "self.tasks['a'].kind", "pred.ndim == 2", "len(batch.target.shape) > 1", "isinstance(task, OneClass)", "isinstance(dl, (int, ImageLoader))",
                 "family == 'spectral'", "arch in ('swin', 'x')",
                 "getattr(task, 'kind') == 'map'", "getattr(self.tasks['a'], 'kind', None)", "getattr(pred, 'ndim') > 2", "x if getattr(target, 'ndim', 1) else y",
                 "pred.dim() == 2", "target.ndimension() > 1", "len(pred.size()) == 4", "[f, g][y.ndim - 1]", "if target.ndim - 1: pass", "batch['target'].ndim == 3", "match pred.ndim:\n  case 2: pass",
                 "match task:\n  case OneClass(): pass", "match task:\n  case vitnb.task.Value(unit=u): pass", "match arch:\n  case 'swin' | 'x': pass", "match task.kind:\n  case _: pass",
                 "type(task) is OneClass", "type(dl) in (ImageLoader, X)", "task.__class__ == Ordinal", "type(task).__name__ == 'OneClass'", "{OneClass: f, Value: g}[type(task)]",
                 "arch.startswith('swin')", "arch.startswith(('swin_', 'x'))", "arch == 'swin_tiny'", "re.match('densenet', arch)", "fnmatch(arch, 'hvit*')", "arch[:4] == 'swin'", "arch.split('_')[0] == 'hvit'",
                 "'spectral' in arch", "dict(swin=1, densenet=2)[family]", "{'swin': 1, 'spectral': 2}.get(family)", "arch in {'densenet121'}"):
        assert list(asks_past_the_seams(ast.parse(code))), code
    for code in ("x.ndim == 4", "len(pred.shape[1:])", "isinstance(x, Tensor)", "task.names", "param.kind", "mode == 'spectrum'", "x.dim()", "getattr(x, 'ndim') == 4",
                 "getattr(param, 'kind')", "type(x) is int", "match x:\n  case int(): pass", "name.startswith('swinging')", "dict(swin=1, other=2)", "register_family('swin', recipes={})", "f.register(OneClass)",
                 "'a text about swin'", "Tasks.of(OneClass(names))", "one_of(x, ('auto',), 'spectral_pos') == 'auto'", "pred.size(1)", "size == (1, 2)", "{'a': 1}"): assert not list(asks_past_the_seams(ast.parse(code))), code
    used = {(module(p), o) for p in NUMBERED for o in asks_past_the_seams(tree(p))}
    assert not SEAM_EXCEPTIONS.keys() - used, "an exception that is no longer needed"
