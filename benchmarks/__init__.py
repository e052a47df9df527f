"""Measurements, one file a claim. Peers and the model in process get one BLAS thread, as a replica does."""

import os

# A replica's threads are its engine's; a BLAS that starts as many again would only slow down what is compared.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
