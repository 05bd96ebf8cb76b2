"""Set before anything imports torch."""

import os

# Threads that spin while they wait take the cores from each other, as `make test` says too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
