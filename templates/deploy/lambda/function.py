"""The model as an AWS Lambda function: its handler is `function.handler`. It is yours to change.

It starts only while the evidence of its release stands: unchanged, fresh, passed, and signed by a
key that `service.json` trusts. All of it is loaded here, while the function starts, and not with
the first request.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # the copy of prodml beside this file goes first

from prodml.serve.function import lambda_handler, service_app  # noqa: E402

handler = lambda_handler(service_app(HERE))
