"""How the ranks of these tests were started."""

import os

UNDER_MPI = "TORCHELASTIC_RUN_ID" not in os.environ
# The transport that needs no memory in common.
MESSAGES = "mpi" if UNDER_MPI else "gloo"
