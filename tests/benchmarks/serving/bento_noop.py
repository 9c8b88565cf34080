"""The least that can be answered inside a BentoML service, with the same switches off as ours."""

import bentoml

from prodml.serve.bento import untimed

untimed()


async def app(scope, receive, send):
    if scope["type"] != "http":
        while scope["type"] == "lifespan":
            stage = (await receive())["type"].rpartition(".")[2]
            await send({"type": f"lifespan.{stage}.complete"})
            if stage == "shutdown":
                return
        return
    while (await receive()).get("more_body"):
        pass
    head = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": b"{}"})


@bentoml.service(
    workers=1,
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": [".*"]},
)
@bentoml.asgi_app(app)
class Noop:
    """Answers `{}`."""
