"The proof of exact resume: what it asks of a run, and what it finds"
import pytest

from vitnb.exactness import assert_exact_resume


def test_the_proof_wants_checkpoints(warm):
    with pytest.raises(ValueError, match="wrote no checkpoint"): assert_exact_resume(lambda folder: 1, warm=warm)
    with pytest.raises(RuntimeError, match="(?s)failed before anything was killed.*division"): assert_exact_resume(lambda folder: 1/0, warm=warm)
    with pytest.raises(FileNotFoundError): assert_exact_resume("no_such_script.py", warm=warm)


def test_a_script(warm, tmp_path):
    f = tmp_path/"train.py"
    f.write_text("import sys\nfrom vitnb.testing import tiny_fit\ntiny_fit(sys.argv[1], epochs=2)\n")
    assert assert_exact_resume(f, kills=1, warm=warm)["identical"] == 1
