"""Drafts for the next step: asks the drafter, and gets by without it.

Knows requests and a `Drafter`; knows nothing of logits. Drafts make a step worth more and can do nothing else, so a drafter
that fails costs speed only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from nano_qwen3_serving.interfaces import Drafter, RequestUpdate
from nano_qwen3_serving.request import RequestStatus

logger = logging.getLogger(__name__)


class Drafting:
    """Puts drafts on the requests that got tokens in a step and go on.

    Args:
        drafter: guesses; None is nobody.
        num_drafts: a request's most in a step.
    """

    def __init__(self, drafter: Drafter | None, num_drafts: int) -> None:
        self._drafter = drafter
        self._num_drafts = num_drafts

    def prepare(self, updates: Sequence[RequestUpdate]) -> None:
        """Asks for drafts that follow what the updates brought. A drafter that fails is not asked again."""
        if self._drafter is None or not self._num_drafts:
            return
        going_on = [update.request for update in updates if update.request.status is RequestStatus.RUNNING]
        try:
            drafts = self._drafter.propose(going_on, self._num_drafts)
            for request, guesses in zip(going_on, drafts, strict=True):
                request.draft_token_ids = list(guesses[: self._num_drafts])
        except Exception:
            logger.exception("the drafter failed, and is not asked again; requests go on without drafts")
            self._drafter = None
