"""`python -m csamnet` is `csamnet`."""

from csamnet.cli import app

app(prog_name="csamnet")
