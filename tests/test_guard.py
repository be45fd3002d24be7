"A command tells in one line what went wrong, with an exit code"
import subprocess
import sys
from pathlib import Path

import pytest

from vitnb.experiment.cli import main
from vitnb.experiment.guard import guarded, lasting_output

CODES = {FileNotFoundError:3, OSError:2, ValueError:2, RuntimeError:1}


def fails(error): raise error


@pytest.mark.parametrize("error,code", [(FileNotFoundError("no a.png"), 3), (PermissionError("not yours"), 2), (ValueError("bs=0"), 2), (RuntimeError("full"), 1)])
def test_the_first_kind_that_fits_gives_the_code(error, code, capsys):
    assert guarded("predict", fails, error, CODES) == code
    out,err = capsys.readouterr()
    assert (out, err) == ("", f"vitnb predict: {error}\n")


def test_an_interruption_is_130_in_words_of_the_command(capsys):
    assert guarded("search", fails, KeyboardInterrupt(), CODES, "the trial is queued again") == 130
    assert capsys.readouterr().err == "vitnb search: the trial is queued again\n"


def test_what_is_not_expected_is_not_hidden():
    with pytest.raises(ZeroDivisionError): guarded("predict", fails, ZeroDivisionError(), CODES)


def test_an_end_without_an_error_is_the_commands_own(capsys):
    assert guarded("predict", lambda args: args + 1, 6, CODES) == 7 and capsys.readouterr().err == ""


def through(command, tmp_path, read=1):
    "What a command's error output is, and its code, when its reader leaves after so many lines"
    process = subprocess.Popen([sys.executable, "-u", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    for _ in range(read): process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    return process.wait(timeout=120), error


@pytest.mark.parametrize("says", ["print('x'*100_000)", "import csv; [csv.writer(sys.stdout).writerow(['x'*1000]) for _ in range(1000)]", "sys.stdout.writelines(['x'*1000]*1000)"])
def test_what_nobody_reads_any_more_is_dropped_and_the_command_goes_on(tmp_path, says):
    command = f"import sys, pathlib\nfrom vitnb.experiment.guard import lasting_output\nwith lasting_output():\n print('first', flush=True)\n {says}\n print('last', flush=True)\npathlib.Path('done').touch()"
    assert through(command, tmp_path) == (0, "") and (tmp_path/"done").exists()


@pytest.mark.parametrize("command", [["--help"], ["run", "NOTEBOOK", "--show"], ["run", "--help", "NOTEBOOK"], ["search", "--help"], ["predict", "nowhere", "x.png"]])
def test_no_command_ends_in_a_traceback_when_its_reader_leaves(tmp_path, command):
    "Also where it complains: standard error is the same pipe"
    notebook = str(Path(__file__).resolve().parents[1]/"nbs"/"train_swin.ipynb")
    argv = [notebook if part == "NOTEBOOK" else part for part in command]
    code = ("import os, sys, time\nfrom vitnb.experiment import cli\nreader,writer = os.pipe()\nos.close(reader)\nkept = os.dup(2)\nos.dup2(writer, 1)\nos.dup2(writer, 2)\n"
            f"try: code = cli.main({argv!r})\nexcept SystemExit as e: code = e.code\nexcept BaseException as e: os.write(kept, repr(e).encode()); code = 99\nos._exit(code)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2 if command[0] == "predict" else 0, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
def test_a_full_disk_behind_standard_output_is_named(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["run", str(Path(__file__).resolve().parents[1]/"nbs"/"train_swin.ipynb"), "--show"]) == 2
    assert "No space left on device; make room there, or write elsewhere: 'standard output'" in capsys.readouterr().err


def test_without_standard_streams_there_is_nothing_to_guard(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with lasting_output(): assert sys.stdout is None
