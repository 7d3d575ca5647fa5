"""Tools of the commands, a file for each thing.

main.py imports this package before torch, which reads the setting below when it is loaded.
"""

import os

# Threads that wait for each other let go of their cores after about 20 microseconds (GNU's OpenMP;
# by itself it takes milliseconds). If another program computes on the same cores, they would
# otherwise wait for threads that have no core to run on. What the user has set stays.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
    os.environ["GOMP_SPINCOUNT"] = "20000"
