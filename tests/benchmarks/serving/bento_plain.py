"""The service of BentoML's own tutorial: a method that takes rows, a data frame, the pipeline."""

import bentoml
from servers import loaded


@bentoml.service(workers=1)
class Plain:
    def __init__(self) -> None:
        self.model, self.table = loaded()

    @bentoml.api
    def predict(self, rows: list[dict]) -> list[float]:
        return self.model.predict_proba(self.table(rows))[:, 1].tolist()
