"""Does the design that was read fit any product line that is known? What tells known implants from unknown ones.

Letters: K implants, A axes of design, V values of all axes side by side, L product lines.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from implantdet.assembly.geometry import Array

SLACK = 0.3  # nats², beside the variance: of lines that always look alike the slightest surprise would count too much


def design_fit(votes: Array, likelihood: Array, prior: Array, counts: Sequence[int]) -> Array:
    """[K] how well each design fits a known line, the higher the better; NaN where nothing was read.

    The sum of two terms:

    - How typical it is of the line that it fits best: its log-likelihood, less what is usual for implants of that line
      whose axes are read as surely, in standard deviations.
    - Log-likelihood of being one of the known lines against being any design: of these, half have the usual values of
      every axis, and half have all its values alike.

    An axis adds as much as its votes: nothing if it was not read. So neither the number of axes that were read nor
    their scores decide, but what was read.

    Args:
        votes: [K, V] score of every value; what those of an axis leave open up to 1 is unread.
        likelihood: [V, L] probability that a value is read, given the line.
        prior: [L], sum 1.
        counts: [A] values of every axis.
    """
    starts = np.cumsum([0, *counts])[:-1]
    read = np.add.reduceat(votes, starts, axis=1)
    unread = np.maximum(0.0, 1 - read) / counts  # [K, A] of each value, as in ``Ranker.likelihoods``
    said = np.log(np.add.reduceat(votes[:, :, None] * likelihood, starts, axis=1) + unread[:, :, None])
    every_read, every_unread = (np.repeat(share, counts, axis=1)[:, :, None] for share in (read, unread))
    possible = np.log(every_read * likelihood + every_unread)  # [K, V, L] had it been this value
    usual = np.add.reduceat(likelihood * possible, starts, axis=1)
    variance = np.add.reduceat(likelihood * possible**2, starts, axis=1) - usual**2
    best = (np.arange(len(votes)), said.sum(axis=1).argmax(axis=1))
    typical = (said - usual).sum(axis=1)[best] / np.sqrt(variance.sum(axis=1)[best] + SLACK)
    chance = 1 / np.repeat(counts, counts)
    any_design = np.add.reduceat(votes * (likelihood @ prior + chance) / 2, starts, axis=1) + unread
    known = np.logaddexp.reduce(np.log(prior) + said.sum(axis=1), axis=1) - np.log(any_design).sum(axis=1)
    return np.where(read.any(axis=1), typical + known, np.nan)
