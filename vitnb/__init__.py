__version__ = "0.1.0"

import warnings

# Libraries below still script functions while they are imported; the warning is theirs to heed and would open every notebook
warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated", category=FutureWarning)
