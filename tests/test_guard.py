"A command tells in one line what went wrong, with an exit code"
import pytest

from vitnb.experiment.guard import guarded

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
