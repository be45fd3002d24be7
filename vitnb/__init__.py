__version__ = "0.1.0"

import os
import sys
import warnings

# Libraries below still script functions while they are imported; the warning is theirs to heed and would open every notebook
warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated", category=FutureWarning)

# GNU's OpenMP reads this once, when torch is imported: by default threads that wait spin for milliseconds, and beside
# other programs they keep the very cores busy that they wait for. So many turns are some microseconds; alone nothing is lost
if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ: os.environ.setdefault("GOMP_SPINCOUNT", "1000")
