"""How the code reads, counted: `python tests/surface.py` prints a row for each notebook, and the whole library beside its limits

`python tests/surface.py NAME` names the faults of the notebooks whose names hold NAME; `--write` notes in `surface.json`
what is left to mend, and refuses when anything has grown.

What a count cannot see, such as whether a name says what it means, is left to readers. What it sees is held by
`test_layout.py`: rules of the first kind (a line too long, a `;`) by none at all, rules of the second kind (tuple
assignments, conditional expressions, names of one letter) by a share of the lines or names.
"""
import ast
import io
import json
import math
import re
import sys
import tokenize
from dataclasses import dataclass
from functools import cache, lru_cache, wraps
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT/"nbs"/"library"
COLUMNS = dict(library=120, experiment=100)
STATEMENTS = 25 # in the body of a function
CELL_LINES = 40 # of an exported cell, without the lines of signatures
NOTEBOOK_LINES = 300 # that a notebook exports
EXCEPTIONS = {"506_learner.loop": "the training loop is read in one piece"} # longer notebooks, three at most
PARAMETERS = 20 # that an experiment notebook shows
SHARES = dict(tuple_assignments=15, conditional_expressions=30, one_letter_names=25) # per 1,000 lines, per 1,000 lines, percent of names


def once(read):
    "Read a file again only when it was written meanwhile; many rules look at the same notebook"
    @cache
    def kept(path, written, size): return read(path)
    @wraps(read)
    def look(path):
        state = path.stat()
        return kept(path, state.st_mtime_ns, state.st_size)
    return look


@lru_cache(maxsize=256)
def nodes(tree):
    "All nodes of a tree; several rules go through the same one"
    return list(ast.walk(tree))


def code_cells(path):
    "Yield the source of each code cell, without the lines that only IPython reads"
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code": continue
        lines = "".join(cell["source"]).splitlines()
        if lines and lines[0].startswith("%%"): continue
        yield "\n".join("" if re.match(r"\s*[!%]", line) else line for line in lines)


def is_exported(source): return re.search(r"^#\|\s*export", source, re.M) is not None


def functions(tree): return [n for n in nodes(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def long_lines(source, columns):
    "Lines that are wider than the page"
    return [line for line in source.splitlines() if len(line) > columns]


def semicolons(source):
    "Two statements on a line; what ends a cell to hide its value is none"
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    ends = (tokenize.NEWLINE, tokenize.COMMENT, tokenize.ENDMARKER)
    return [a.line for a, b in zip(tokens, tokens[1:]) if a.string == ";" and a.type == tokenize.OP and b.type not in ends]


def statements(function):
    "How many statements the body has, at any depth, without the docstring"
    inside = [n for child in function.body for n in ast.walk(child) if isinstance(n, ast.stmt)]
    return len(inside) - (ast.get_docstring(function) is not None)


def long_bodies(tree): return [f.name for f in functions(tree) if statements(f) > STATEMENTS]


def wide_lambdas(tree): return [n.lineno for n in nodes(tree) if isinstance(n, ast.Lambda) and n.end_lineno > n.lineno]


def nested_conditionals(tree):
    "Conditional expressions that hold another one"
    found = [n for n in nodes(tree) if isinstance(n, ast.IfExp)]
    return [n.lineno for n in found if any(isinstance(o, ast.IfExp) for o in ast.walk(n) if o is not n)]


def signature_lines(tree):
    "The lines of decorators and parameters"
    starts = [(min([f.lineno, *(d.lineno for d in f.decorator_list)]), f.body[0].lineno) for f in functions(tree)]
    return {line for start, body in starts for line in range(start, body)}


def cell_lines(source):
    "How many lines a cell has beside its directives and its signatures"
    skipped = signature_lines(ast.parse(source))
    lines = enumerate(source.splitlines(), 1)
    return sum(n not in skipped and not line.startswith("#|") for n, line in lines)


def tuple_assignments(tree):
    "Several values to several names in one statement; taking a value apart (`h, w = x.shape`) is none"
    pairs = [(target, n.value) for n in nodes(tree) if isinstance(n, ast.Assign) for target in n.targets]
    return [target.lineno for target, value in pairs if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)]


def conditional_expressions(tree): return [n.lineno for n in nodes(tree) if isinstance(n, ast.IfExp)]


def stored_names(tree):
    "Every name that a statement, a loop or a comprehension gives"
    return [n.id for n in nodes(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]


def shown_parameters(path):
    "The names that the parameters cell of an experiment notebook assigns"
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            return [n.targets[0].id for n in ast.parse("".join(cell["source"])).body if isinstance(n, ast.Assign)]
    return []


@dataclass(frozen=True)
class Surface:
    "The counts of one notebook"
    lines:int # exported, without blank ones
    faults:dict # rule: what breaks it
    tuple_assignments:int
    conditional_expressions:int
    names:int
    one_letter_names:int


def _faults(sources, exported, columns):
    "What breaks the rules that allow nothing"
    trees = [ast.parse(s) for s in sources]
    def in_trees(rule): return [found for tree in trees for found in rule(tree)]
    return dict(
        long_lines=[line for s in sources for line in long_lines(s, columns)],
        semicolons=[line for s in sources for line in semicolons(s)],
        long_bodies=in_trees(long_bodies),
        wide_lambdas=in_trees(wide_lambdas),
        nested_conditionals=in_trees(nested_conditionals),
        long_cells=[s.splitlines()[1] for s in exported if cell_lines(s) > CELL_LINES])


@once
def surface(path):
    "Count one notebook"
    sources = list(code_cells(path))
    exported = [s for s in sources if is_exported(s)]
    is_library = path.parent == LIBRARY
    counted = ast.parse("\n".join(exported if is_library else sources))
    faults = _faults(sources, exported, COLUMNS["library" if is_library else "experiment"])
    lines = sum(bool(line.strip()) and not line.startswith("#|") for s in exported for line in s.splitlines())
    faults["long_notebooks"] = [path.stem] if lines > NOTEBOOK_LINES and path.stem not in EXCEPTIONS else []
    parameters = shown_parameters(path)
    faults["parameters"] = parameters[PARAMETERS:]
    names = stored_names(counted)
    return Surface(lines, faults, len(tuple_assignments(counted)), len(conditional_expressions(counted)),
                   len(names), sum(len(n) == 1 and n != "_" for n in names))


def shares(surfaces):
    "The library as a whole, by the rules that allow a share"
    lines = max(sum(s.lines for s in surfaces), 1)
    names = max(sum(s.names for s in surfaces), 1)
    return dict(tuple_assignments=1000*sum(s.tuple_assignments for s in surfaces)/lines,
                conditional_expressions=1000*sum(s.conditional_expressions for s in surfaces)/lines,
                one_letter_names=100*sum(s.one_letter_names for s in surfaces)/names)


BASELINE = Path(__file__).with_name("surface.json") # notebook: rule: how many faults are still allowed; it may only shrink


def allowed():
    "What was there when a rule came, and is still to be mended"
    return json.loads(BASELINE.read_text()) if BASELINE.is_file() else {}


def write_baseline():
    "Note what is left, and refuse what is new"
    before = allowed()
    now = {p.stem:{rule:len(found) for rule, found in surface(p).faults.items() if found} for p in notebooks()}
    grown = [f"{name}: {rule}" for name, faults in now.items() for rule, n in faults.items()
             if before and n > before.get(name, {}).get(rule, 0)]
    if grown: sys.exit(f"more faults than before in {', '.join(grown)}: mend them")
    whole = shares([surface(p) for p in library()])
    above = {rule:math.ceil(value) for rule, value in whole.items() if value > SHARES[rule]}
    BASELINE.write_text(json.dumps({k:v for k, v in {"library":above, **now}.items() if v}, indent=1) + "\n")


def notebooks(): return [*library(), *sorted((ROOT/"nbs").glob("*.ipynb"))]


def library(root=ROOT): return sorted((root/"nbs"/"library").glob("[0-9]*.ipynb"))


def main():
    "Print the table; with an argument, the faults of the notebooks whose names hold it"
    if "--write" in sys.argv: return write_baseline()
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    counted = {p:surface(p) for p in notebooks() if wanted in p.stem}
    rules = list(next(iter(counted.values())).faults)
    print(f"{'notebook':34}{'lines':>6}{'tuple':>6}{'cond':>6}{'1-let%':>7}  {' '.join(rules)}")
    for path, s in counted.items():
        letters = 100*s.one_letter_names/max(s.names, 1)
        counts = " ".join(f"{len(s.faults[rule]):>{len(rule)}}" for rule in rules)
        print(f"{path.stem:34}{s.lines:6}{s.tuple_assignments:6}{s.conditional_expressions:6}{letters:7.0f}  {counts}")
        if wanted: print("\n".join(f"    {rule}: {o}" for rule in rules for o in s.faults[rule]))
    whole = shares([s for p, s in counted.items() if p.parent == LIBRARY] or list(counted.values()))
    print("the whole: " + ", ".join(f"{rule} {value:.1f} (at most {SHARES[rule]})" for rule, value in whole.items()))
    print("faults: " + ", ".join(f"{rule} {sum(len(s.faults[rule]) for s in counted.values())}" for rule in rules))


if __name__ == "__main__": main()
