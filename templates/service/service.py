"""The service of $name, release $release, made by `prodml build`. Read it, change it: it is yours.

    bentoml serve service:Service

It starts only while the release's evidence stands: signed by the key below, unchanged, fresh, passed.
"""

from pathlib import Path

import bentoml

from prodml.serve.app import create_app

RELEASE = Path(__file__).parent / "$release"
TRUSTED = [
    """$trusted""",
]

app = create_app(RELEASE, TRUSTED, max_age_days=$max_age_days, max_rows=$max_rows)


@bentoml.service(
    name="$name",
    workers=1,
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ["/predict"]},
)
@bentoml.asgi_app(app, path="/")
class Service:
    """Answers /predict with the contract enforced."""
