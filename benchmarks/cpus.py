"""The CPUs that this process may run on. Imported before torch, which may bind the main thread to one of them."""

import os

ALL = os.sched_getaffinity(0)
