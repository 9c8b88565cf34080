"""The service made by `prodml build`. To run it: `bentoml serve`.

Read it; to change it, copy the folder: `prodml build` and `prodml serve` make this one anew.

It starts only while the evidence of its release stands: unchanged, fresh, passed, and signed by a
key that `service.json` trusts. The file `current`, here or where PRODML_POINTER says, may name
another release, which takes over within two seconds.
"""

import gc
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import bentoml

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # the copy of prodml beside this file goes first

from prodml.deployment import root_of  # noqa: E402
from prodml.serve.app import close_app, create_app, is_ready, start_app  # noqa: E402
from prodml.serve.bento import aloud, bounded, part, untimed  # noqa: E402
from prodml.serve.why import told_reasons  # noqa: E402
from prodml.settings import Mistake, Serve  # noqa: E402

os.environ["PRODML_ROOT"] = str(root_of(HERE).resolve())  # where relative paths begin
told = json.loads((HERE / "service.json").read_text(encoding="utf-8"))
serve = Serve(**told["serve"])
if "bentoml" in sys.argv[0] and sys.argv[1:2] == ["build"]:
    serve = replace(serve, tokens="")  # a secret is needed to serve, and none to build
pointer = os.environ.get("PRODML_POINTER", HERE / "current")
try:
    release = HERE / "release" / told["release"]
    why = told_reasons(told)
    asked = {**told["checks"], "serve": serve, "pointer": pointer, "why": why}
    app = create_app(release, **asked, apart=True)
except Mistake as mistake:
    sys.exit(f"Not served. {mistake}")
untimed()  # the application has a deadline of its own
bounded()  # the server has none for what comes before a body
app.guard.partings.append(part)  # who keeps a connection open is told when it must stop
aloud()  # that another release was taken, for instance


image = bentoml.images.Image(  # what `bentoml containerize` makes
    base_image=told["base"],
    distro="",  # no compiler, no git
    lock_python_packages=False,  # it is locked
    python_requirements=(HERE / "requirements.lock").read_text(encoding="utf-8"),
    build_include_paths=["requirements.lock"],
    post_commands=[(HERE / "image.dockerfile").read_text(encoding="utf-8")],
)


@bentoml.service(
    name=told["name"],
    image=image,
    workers=serve.workers,
    metrics={"enabled": False},  # these three cost more than the model itself
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": [".*"]},
)
@bentoml.asgi_app(app)
class Service:
    """Answers `POST /predict`; `GET /metadata` says how to ask."""

    def __init__(self) -> None:
        start_app(app)  # in each worker
        gc.collect()
        gc.freeze()  # what was loaded stays, and need not be looked at again
        gc.set_threshold(10_000, 20, 20)  # requests leave no cycles behind; errors leave a few

    async def __is_ready__(self) -> bool:  # /readyz: no longer, once the server is asked to stop
        return is_ready(app)

    @bentoml.on_shutdown
    def end(self) -> None:
        close_app(app)
