"Cells run one after the other, and what they give is in the notebook as papermill's own client has it"
import nbformat
import papermill
import pytest
from command_helpers import notebook
from papermill.engines import papermill_engines

from vitnb.experiment.client import client_class
from vitnb.experiment.engine import Engine

CELLS = ("a = 2", "print('x', a)\nimport sys\nprint('y', file=sys.stderr)\na*3", "from IPython.display import clear_output\nprint('gone')\nclear_output()\nprint('stays')")


@pytest.fixture(autouse=True)
def entered(): papermill_engines.register("vitnb", Engine)


def outputs(nb):
    "What each cell gave, without the numbers of executions"
    return [[(o.output_type, o.get("name"), o.get("text"), dict(o.get("data", {}))) for o in cell.outputs] for cell in nb.cells]


def test_the_outputs_are_those_of_papermills_own_client(tmp_path):
    source = notebook(tmp_path/"a.ipynb", *CELLS)
    both = [papermill.execute_notebook(str(source), str(tmp_path/f"{name or 'own'}.ipynb"), engine_name=name, progress_bar=False) for name in ("vitnb", None)]
    assert outputs(both[0]) == outputs(both[1]) and "6" in str(outputs(both[0]))
    assert outputs(nbformat.read(tmp_path/"vitnb.ipynb", 4)) == outputs(both[1])


def test_papermills_class_is_extended_and_made_once():
    from papermill.clientwrap import PapermillNotebookClient
    assert issubclass(client_class(), PapermillNotebookClient) and client_class() is client_class()
