"""A model of two columns that gives even chances, for tests of what stands around a model."""

import numpy as np

from prodml.contract import Column, Contract
from prodml.serve.scorer import Scorer


def small_contract(job="job"):
    """A contract of an age and of a `job`, under whatever name."""
    age = Column("age", "integer", "feature", minimum=18, maximum=90, fill=40.0)
    level = Column(job, "category", "feature", levels=("clerk", "farmer"), fill="clerk")
    return Contract("credit", "binary", "default", ("no", "yes"), (age, level))


def even_chances(contract):
    """The scorer of a model that says one half to every row."""
    return Scorer("release-1", contract, {}, lambda c: np.full((len(c["age"]), 2), 0.5))
