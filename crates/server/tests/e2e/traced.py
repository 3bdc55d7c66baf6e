"""An official Python server that says which trace context reached it: `traced.py stdio`, or `traced.py http` on any port."""

import json
import socket
import sys

import anyio
import uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from opentelemetry import trace

server = MCPServer("traced")


def context_of(ctx: Context) -> dict:
    """What `_meta` holds of the trace, and whose child the server's own instrumentation takes the call for."""
    meta = dict(ctx.request_context.meta or {})
    span = trace.get_current_span().get_span_context()
    kept = {name: meta[name] for name in ("traceparent", "tracestate", "baggage") if name in meta}
    return kept | {"parent": f"{span.span_id:016x}", "trace": f"{span.trace_id:032x}", "sampled": int(span.trace_flags)}


@server.tool()
async def context(ctx: Context) -> str:
    return json.dumps(context_of(ctx))


@server.tool()
async def works(ctx: Context) -> str:
    await ctx.report_progress(1, 3)
    await ctx.report_progress(2.5, 3)
    return json.dumps(context_of(ctx))


@server.tool()
async def waits(ctx: Context) -> str:
    await ctx.report_progress(0)
    await anyio.sleep(30)
    return "nobody waited"


def over_http():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        # Who connects from now on waits until it is served, and is not refused.
        listener.listen()
        print(listener.getsockname()[1], flush=True)
        config = uvicorn.Config(server.streamable_http_app(), log_level="error")
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    over_http() if sys.argv[1] == "http" else server.run("stdio")
