"""The drift of a real table, and the harm that a model of its early rows came to in the later."""

import numpy as np
import pandas as pd
from xgboost import XGBClassifier

from prodml.frame import learn_contract, make_table
from prodml.gates.performance import Answers, performance
from prodml.gates.reference import reference_windows
from prodml.profile import profile
from prodml.settings import Data, Settings

LIMITS = {"max_error_increase": 0.05, "max_calibration_shift": 0.05, "max_ranking_drop": 0.05}


def parts(data, name, time, drop, share):
    """The rows up to a share of the time, and those after; rows of one time in no order."""
    frame = pd.read_csv(data / f"{name}.csv.gz", low_memory=False).sample(frac=1, random_state=0)
    frame = frame.sort_values(time, kind="stable").drop(columns=drop).reset_index(drop=True)
    edge = frame[time].iloc[int(len(frame) * share) - 1]
    return frame[frame[time] <= edge], frame[frame[time] > edge].reset_index(drop=True)


def watched(data, name, target, time, drop=(), share=0.33, looks=30, positive=""):
    """The drift of the later rows in so many looks, and the performance of a model of the early."""
    early, later = parts(data, name, time, list(drop), share)
    settings = Settings(data=Data(target=target, positive=positive, time=time))
    contract = learn_contract(early, settings)
    windows = reference_windows(early, time, "")
    known = profile(early, contract, windows=windows, sketch=False)
    place = np.arange(len(later)) * looks // len(later)
    current = profile(later, like=known, windows=place, sketch=False)
    half = len(early) * 2 // 3
    learn, judge, new = (make_table(contract, p) for p in (early[:half], early[half:], later))

    def prepared(features):
        levels = {c.name: list(c.levels) for c in contract.features if not c.numeric}
        return features.assign(**{n: pd.Categorical(features[n], v) for n, v in levels.items()})

    model = XGBClassifier(n_estimators=80, max_depth=4, learning_rate=0.1, n_jobs=1)
    model.set_params(enable_categorical=True).fit(prepared(learn.features), learn.target)
    old, now = (
        Answers(p.target, model.predict_proba(prepared(p.features)).astype(float))
        for p in (judge, new)
    )
    place = np.arange(len(new.target)) * looks // len(new.target)
    rows = [np.flatnonzero(place == i) for i in range(looks)]
    harm = performance("binary", old, now, rows, LIMITS, horizon=365)[0]
    return known, current, harm
