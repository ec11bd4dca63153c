"""How the tests run: graphs are checked after every pass, and each process has one thread.

Users' runs check a graph once, at the end. `make test` runs a process on each core.
"""

import os

os.environ["JITQUANT_CHECK_EACH_PASS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
