"""sentence-transformers in a process and an environment of its own, spoken to in JSON lines.

Run by the benchmarks with the Python of an environment that has it (the project's own has not):

    python -m venv /tmp/st && /tmp/st/bin/pip install torch==2.13.0 'sentence-transformers==6.*'

Requests, one a line: {"texts": [...], "batch_size": 32, "precision": "fp32", "max_seq_length": 256, "out": "x.npy"}
("out" may be null). Answer: {"seconds": 1.25, "cpu_seconds": 2.4}. Before the first request it tells its versions.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import metadata

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from sentence_transformers import SentenceTransformer


def main(folder: str, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    models = {"fp32": SentenceTransformer(folder, device="cpu")}
    models["bf16"] = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": torch.bfloat16})
    versions = {name: metadata.version(name) for name in ("sentence-transformers", "transformers", "torch")}
    print(json.dumps({"versions": versions}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        model = models[request["precision"]]
        model.max_seq_length = request["max_seq_length"]
        started, cpu_started = time.perf_counter(), time.process_time()
        vectors = model.encode(
            request["texts"], batch_size=request["batch_size"], normalize_embeddings=True, convert_to_numpy=False
        )
        answer = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu_started}
        if request["out"]:
            np.save(request["out"], torch.stack([v.float() for v in vectors]).numpy())
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
