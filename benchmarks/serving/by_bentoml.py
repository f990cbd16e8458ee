"""A BentoML service whose `@bentoml.api` takes an array, with default settings."""

import bentoml
import numpy as np
from peers import SHAPE, open_session


@bentoml.service
class Default:
    def __init__(self) -> None:
        self.session = open_session()

    @bentoml.api
    def predict(self, rows: np.ndarray) -> np.ndarray:
        outputs: np.ndarray = self.session.run(None, {"x": rows.astype(np.float32).reshape(-1, *SHAPE)})[0]
        return outputs
