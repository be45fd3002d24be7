"Cells run one after the other, and what they give is in the notebook as papermill's own client has it"
import nbformat
import papermill
import pytest
from command_helpers import notebook
from papermill.engines import papermill_engines

from vitnb.experiment import client
from vitnb.experiment.client import client_class
from vitnb.experiment.engine import Engine

CELLS = """a = 2
---
print('x', a)
import sys
print('y', file=sys.stderr)
a*3
---
from IPython.display import HTML, clear_output, display
print('gone')
clear_output()
print('stays')
---
print('gone')
display('gone too')
clear_output(wait=True)
display('stays')
print('too')
---
print('stays, for nothing follows')
clear_output(wait=True)
---
for i in range(200):
    print('out', i, flush=True)
    print('err', i, file=sys.stderr, flush=True)
---
handles = [display(HTML(f'a {i}'), display_id=True) for i in range(10)]
for turn in range(20):
    for i in range(10): handles[i].update(HTML(f'{turn} {i}'))
---
for i in range(10): handles[i].update(HTML(f'from below {i}'))
display('one', display_id='same')
display('two', display_id='same')
---
print('  ', end='')
---
print('x', end='  ')
display(1)
print(' ', end='')
print('\\x1b[', end='', file=sys.stderr)
---
print('naïve ☃ 𝔘 \\x00 \\x1b[1;32mgreen\\x1b[0m a\\tb\\vc\\fd\\n\\n  \\nno end', end='')
---
print('x'*2_000_000)
for i in range(20): print(chr(97 + i)*100_000)
---
%%bash
echo hello
echo warning >&2
---
import subprocess
print(subprocess.run(['echo', 'child'], capture_output=True, text=True).stdout)
---
import asyncio
await asyncio.sleep(.05)
print('awaited')
async def later():
    await asyncio.sleep(.05)
    return 5
await later()
---
%%capture caught
print('captured')
---
caught.show()
display({'application/x-own+json':[1, {'a':None}], 'text/plain':'x'}, raw=True, metadata=dict(b=1))
---
sys.stdout.close()""".split("\n---\n")


@pytest.fixture(autouse=True)
def entered(): papermill_engines.register("vitnb", Engine)


def outputs(nb):
    "What each cell gave, without the numbers of executions"
    return [[{name:value for name,value in o.items() if name != "execution_count"} for o in cell.outputs] for cell in nb.cells]


def test_the_outputs_are_those_of_papermills_own_client(tmp_path):
    source = notebook(tmp_path/"a.ipynb", *CELLS)
    both = [papermill.execute_notebook(str(source), str(tmp_path/f"{name or 'own'}.ipynb"), engine_name=name, progress_bar=False) for name in ("vitnb", None)]
    assert outputs(both[0]) == outputs(both[1]) and "6" in str(outputs(both[0])) and all(outputs(both[0])[n] for n in (5, 6, 8, 9, 11, 12, 13, 14, 16))
    assert outputs(nbformat.read(tmp_path/"vitnb.ipynb", 4)) == outputs(both[1])


def test_papermills_class_is_extended_and_made_once():
    from papermill.clientwrap import PapermillNotebookClient
    assert issubclass(client_class(), PapermillNotebookClient) and client_class() is client_class()


LOST = """k = get_ipython().kernel
send = k.session.send
def drop(stream, kind, *args, **kw):
    if kind != 'status' or 'idle' not in str((args, kw)): return send(stream, kind, *args, **kw)
    k.session.send = send
k.session.send = drop
print('kept')"""


def test_a_dropped_end_of_a_cell_is_noticed_and_said(tmp_path, monkeypatch, capfd):
    "A kernel's bounded queue may drop the last message; the run goes on, and the cell says that outputs may be missing"
    monkeypatch.setattr(client, "_QUIET", .3)
    nb = papermill.execute_notebook(str(notebook(tmp_path/"a.ipynb", LOST, "print('next')")), str(tmp_path/"b.ipynb"), engine_name="vitnb", progress_bar=False)
    assert [[(o.name, o.text[:25]) for o in c.outputs] for c in nb.cells] == [[("stdout", "kept\n"), ("stderr", "[the kernel has dropped m")], [("stdout", "next\n")]]
    assert "has dropped messages" in capfd.readouterr().err
