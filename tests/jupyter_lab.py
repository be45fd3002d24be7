"A JupyterLab of its own for a test that looks at it in a browser"
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from process_state import quiet_port


@contextmanager
def jupyter_lab(folder, notebook, *options, **env):
    "Serve `notebook` (a path in `folder`, or below it) with logs and settings in `folder`; gives the address of its page"
    pytest.importorskip("playwright")
    if not shutil.which("chromium"): pytest.skip("no chromium on this machine")
    port,token = quiet_port(),"seen"
    env = {**os.environ, "JUPYTER_CONFIG_DIR":str(folder/"config"), "JUPYTER_DATA_DIR":str(folder/"data"), "PATH":f"{Path(sys.executable).parent}:{os.environ['PATH']}", **env}
    env.pop("VITNB_HEADLESS", None)
    cmd = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", f"--IdentityProvider.token={token}",
           f"--ServerApp.root_dir={notebook.parent}", *options]
    with (folder/"lab.log").open("w") as log:
        p = subprocess.Popen(cmd, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            for _ in range(600):
                try: urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=1); break
                except OSError: time.sleep(.5)
            else: pytest.fail((folder/"lab.log").read_text()[-2000:])
            yield f"http://127.0.0.1:{port}/lab/tree/{notebook.name}?token={token}&reset"
        finally:
            p.terminate()
            p.wait(200)
