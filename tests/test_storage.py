"Where studies are kept: files and servers, and passwords that stand nowhere"
import os
import shutil
import subprocess
from pathlib import Path

import optuna
import pytest
from search_helpers import demo, space_file, start, workspace # noqa: F401, two of them are fixtures

from vitnb.experiment.search import best_params, study_rows
from vitnb.experiment.study import open_study
from vitnb.storage import open_storage

pytest.importorskip("optuna")


@pytest.mark.parametrize("storage", ["missing/study.db", "postgresql://me:secret@127.0.0.1:9/studies", "redis://me:secret@host"])
def test_a_storage_that_cannot_be_reached_is_said_without_its_password(workspace, storage):
    with pytest.raises(ValueError, match="cannot be reached|of no kind") as e: open_study("s", demo(workspace), storage, workspace)
    assert "secret" not in str(e.value)


def postgres_bin():
    "Where a PostgreSQL server's programs are, None where there are none"
    found = [Path(p).parent for p in [shutil.which("initdb"), *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")))] if p]
    return found[-1] if found else None


@pytest.fixture
def postgres(tmp_path):
    "A server of our own, and the address of an empty database there"
    pytest.importorskip("psycopg")
    programs = postgres_bin()
    if programs is None: pytest.skip("no PostgreSQL server is installed")
    from vitnb.launch import free_port
    as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.getuid() == 0 else []
    if as_user and not shutil.which("setpriv"): pytest.skip("PostgreSQL does not run as root, and setpriv is missing")
    import tempfile
    home = Path(tempfile.mkdtemp(prefix="vitnb-pg-"))
    port = free_port()
    def call(*command): subprocess.run([*as_user, *map(str, command)], check=True, capture_output=True, timeout=120, cwd=home)
    try:
        if as_user: shutil.chown(home, "nobody", "nogroup")
        call(programs/"initdb", "-D", home/"data", "-A", "trust", "-U", "me", "--no-sync")
        call(programs/"pg_ctl", "-D", home/"data", "-w", "-l", home/"log", "-o", f"-p {port} -k {home} -c listen_addresses=127.0.0.1 -F", "start")
        call(programs/"createdb", "-h", "127.0.0.1", "-p", port, "-U", "me", "studies")
        yield f"postgresql://me:secret@127.0.0.1:{port}/studies"
    finally:
        if (home/"data"/"postmaster.pid").is_file(): call(programs/"pg_ctl", "-D", home/"data", "-m", "immediate", "stop")
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.slow # starts a kernel for each trial
def test_a_study_on_a_postgresql_server(workspace, postgres, space_file):
    "Two workers, one server; the password stands in no file"
    workers = [start(workspace, *space_file, "--trials", "4", "--storage", postgres, "-p", "epochs", "1") for _ in range(2)]
    outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    study = open_study("s", storage=postgres, root=workspace)
    assert [row["state"] for row in study_rows(study)] == ["complete"]*4 and best_params(study)["best_value"] is not None
    assert not [p for p in (workspace/"out").rglob("*") if p.is_file() and b"secret" in p.read_bytes()]
    assert not any("secret" in output for output in outputs)


@pytest.mark.slow # starts a server
def test_a_link_that_the_server_has_dropped_is_made_anew(workspace, postgres):
    "A42: PostgreSQL ends idle links; the next question finds out before it is asked"
    import psycopg
    study = open_study("s", demo(workspace), postgres, workspace)
    study.ask()
    with psycopg.connect(postgres, autocommit=True) as link:
        ended = link.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'studies' AND pid <> pg_backend_pid()").fetchall()
    assert ended, "no link was idle"
    assert study.ask().number == 1 and len(study.get_trials()) == 2


@pytest.mark.slow # starts a kernel for each trial
def test_a_sweep_keeps_its_study_on_a_postgresql_server(workspace, postgres):
    "Typed once, and gone on with; the password stands in no file"
    from sweep_helpers import start_sweep
    args = ["train_demo.ipynb", "--space", '{"x": {"low": 0.0, "high": 4.0}}', "--score", "near", "--better", "max", "--method", "tpe", "--workers", 2, "--storage", postgres, "-p", "epochs", "1"]
    for runs in (2, 3):
        sweep = start_sweep(workspace, *args, "--runs", runs)
        out,_ = sweep.communicate(timeout=300)
        assert sweep.returncode == 0 and f"{runs} finished" in out, out
    study = optuna.load_study(study_name="train_demo", storage=open_storage(postgres))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"]*3 and not (workspace/"out/sweeps/train_demo/study.db").exists()
    assert not [p for p in (workspace/"out").rglob("*") if p.is_file() and b"secret" in p.read_bytes()]
