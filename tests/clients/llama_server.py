"""Serves a model with llama.cpp's own server: `llama_server.py FILE`.

Prints the URL once it serves, and ends with its stdin: it outlives no test.
"""

import sys

import xllamacpp


def main(path):
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.model_alias = {"tiny"}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = 2048
    params.n_parallel = 2
    params.warmup = False
    # For requests without a limit: this model does not know when to stop.
    params.n_predict = 64
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
