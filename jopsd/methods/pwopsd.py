"""PW-OPSD: OPSD with tokens weighted by their position in the completion.

Late tokens, where the teacher's knowledge of the solution is reliable, count more than early ones.
"""

from typing import Annotated, Literal

from pydantic import Field

from jopsd.losses import position_weights
from jopsd.losses.reduce import Reduction
from jopsd.methods.opsd import Opsd


class PwOpsd(Opsd):
    """OPSD's per-token loss times a sigmoid ramp over each completion, averaged per sequence.

    The paper's 2x2 ablation: `w_min: 1` switches the ramp off, `reduction: token_mean` the per-sequence average.

    Attributes:
      w_min, tau, s: floor, middle and width of the ramp; the defaults are the paper's "moderate" schedule.
    """

    name: Literal["pwopsd"] = "pwopsd"
    w_min: Annotated[float, Field(ge=0, le=1)] = 0.25
    tau: Annotated[float, Field(ge=0, le=1)] = 0.3
    s: Annotated[float, Field(ge=0)] = 0.1
    reduction: Reduction = "sequence_mean"

    def weigh(self, scores, batch, step):
        weight = super().weigh(scores, batch, step)["weight"]
        return {"weight": weight * position_weights(batch.mask, self.w_min, self.tau, self.s)}
