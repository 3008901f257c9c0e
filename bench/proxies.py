"""The peers in front of the plain app: Varnish and nginx, set up to coalesce and to remember for one second.

The bench asks for a URL in one herd only, so what they remember serves only requests of the same herd that
come late: all in their favour.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .processes import Server, free_port, running

_VCL = """\
vcl 4.1;
backend default {{ .host = "127.0.0.1"; .port = "{backend}"; .max_connections = 1000; }}
sub vcl_backend_response {{ set beresp.ttl = 1s; set beresp.grace = 0s; set beresp.keep = 0s; }}
"""

_NGINX = """\
daemon off; master_process off; worker_processes 1;
pid {folder}/nginx.pid; error_log stderr error;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_timeout 300s; keepalive_requests 1000000;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/temp; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  proxy_cache_path {folder}/cache keys_zone=herd:1m;
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    location / {{
      proxy_pass http://127.0.0.1:{backend}; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_cache herd; proxy_cache_lock on; proxy_cache_valid 200 1s; proxy_cache_key $request_uri;
    }}
  }}
}}
"""


class NotFoundError(Exception):
    """A program that is not installed."""


def program(name: str) -> str:
    """The path of a program. Raises NotFoundError."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        raise NotFoundError(f"{name} is not installed")
    return path


@contextmanager
def varnish(backend: Server) -> Iterator[Server]:
    """Varnish, with 32 MB of memory. Raises NotFoundError."""
    command, port = program("varnishd"), free_port()
    with tempfile.TemporaryDirectory(prefix="bench-varnish-") as folder:
        vcl = Path(folder, "bench.vcl")
        vcl.write_text(_VCL.format(backend=backend.port))
        options = ["-F", "-j", "none", "-n", f"{folder}/work", "-f", str(vcl), "-s", "malloc,32m"]
        options += ["-a", f"127.0.0.1:{port}", "-p", "timeout_idle=300", "-p", "vsl_space=8m"]
        with running("varnish", [command, *options], port) as server:
            yield server


@contextmanager
def nginx(backend: Server) -> Iterator[Server]:
    """nginx with `proxy_cache_lock`. Raises NotFoundError."""
    command, port = program("nginx"), free_port()
    with tempfile.TemporaryDirectory(prefix="bench-nginx-") as folder:
        configuration = Path(folder, "nginx.conf")
        configuration.write_text(_NGINX.format(folder=folder, port=port, backend=backend.port))
        with running("nginx", [command, "-p", folder, "-c", str(configuration), "-e", "stderr"], port) as server:
            yield server
