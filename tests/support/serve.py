"""A real llama-server in this process, with the process name and the options of the original.

`xllamacpp` contains llama.cpp's own server. `tests.support.llama_server` starts it; it ends with its standard input.
"""

import argparse
import ctypes
import sys

import xllamacpp

PR_SET_NAME = 15

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--alias")
parser.add_argument("--host", default="127.0.0.1")
parser.add_argument("--port", type=int, default=8080)
parser.add_argument("--api-key")
parser.add_argument("--api-prefix", default="")
parser.add_argument("--ssl-cert-file", default="")
parser.add_argument("--ssl-key-file", default="")
parser.add_argument("--metrics", action="store_true")
parser.add_argument("--sleep-idle-seconds", type=int, default=-1)
parser.add_argument("--ctx-size", type=int, default=1024)
parser.add_argument("--process-name", default="llama-server")
options = parser.parse_args()

ctypes.CDLL(None).prctl(PR_SET_NAME, options.process_name.encode(), 0, 0, 0)
parameters = xllamacpp.CommonParams()
parameters.model.path = options.model
parameters.endpoint_metrics = options.metrics
parameters.n_ctx = options.ctx_size
parameters.n_parallel = 2
parameters.warmup = False
if hasattr(parameters, "hostnames"):
    parameters.hostnames = [options.host]
else:  # until September 2026
    parameters.hostname = options.host
parameters.port = options.port
parameters.api_prefix = options.api_prefix
if options.alias:
    parameters.model_alias = {options.alias} if isinstance(parameters.model_alias, set) else options.alias
if options.api_key:
    parameters.api_keys = [options.api_key]
if options.ssl_cert_file:
    parameters.ssl_file_cert, parameters.ssl_file_key = options.ssl_cert_file, options.ssl_key_file
if options.sleep_idle_seconds > 0:
    parameters.sleep_idle_seconds = options.sleep_idle_seconds
server = xllamacpp.Server(parameters)
sys.stdin.read()
