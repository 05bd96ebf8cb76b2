"""Errors of Hermes as answers of the server: a 4xx or 5xx status with a reason in ``detail``."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from fastapi import HTTPException
from monailabel.interfaces.exception import MONAILabelException

from hermes.errors import HermesError

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def answers_errors(call: Callable[P, T]) -> Callable[P, T]:
    """The function with every expected error turned into an ``HTTPException``.

    MONAI Label's endpoints call the app directly, so the exception reaches FastAPI, which answers with its
    status and ``{"detail": reason}``; otherwise each would be a bare 500 without text.
    """

    @functools.wraps(call)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(*args, **kwargs)
        except HermesError as error:
            if error.status >= 500:
                logger.exception("Request failed")
            raise HTTPException(status_code=error.status, detail=str(error)) from error
        except MONAILabelException as error:
            raise HTTPException(status_code=400, detail=error.msg) from error

    return guarded
