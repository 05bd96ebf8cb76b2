"""Everything Hermes raises on purpose.

::

    HermesError                     status of the HTTP answer
    ├── BadRequestError             400  the request is malformed or names an unknown option
    │   ├── UnknownSettingError          a --conf key that no setting has
    │   ├── UnknownStructureError        a structure name that the label space does not know
    │   └── BadLabelError                a label file that cannot be what the annotator meant
    │       └── GeometryMismatchError    ... because it is not on the grid of its image
    ├── BadImageError               422  an image that cannot be read or used
    ├── NotFoundError               404  an image, model, label or version that does not exist
    ├── ConflictError               409  the campaign's state forbids it now
    │   └── NothingToTrainError          training was asked for and no usable label exists
    ├── BusyError                   429  something of which there is one is in use
    ├── CancelledError              409  stopped on request
    │   └── GaveWayError                 work in the background made room for a request
    ├── PacsError                   503  the PACS cannot be reached, or refuses what it is given
    ├── DamagedDatabaseError        500  the campaign's database cannot be read any more
    └── CheckpointError             500  a model directory that does not hold what it says
        └── WeightsMismatchError         a missing, surplus or misshapen tensor

A message says what was expected, what came and what to do. It never holds a patient's identifiers.
"""

from __future__ import annotations


class HermesError(Exception):
    """Root of all errors raised by this package; ``status`` is the HTTP status of the answer."""

    status = 500


class BadRequestError(HermesError):
    """The request is malformed."""

    status = 400


class UnknownSettingError(BadRequestError):
    """A ``--conf`` key that no setting has."""


class UnknownStructureError(BadRequestError):
    """A structure name that the label space does not know."""


class BadLabelError(BadRequestError):
    """A label file that cannot be what the annotator meant."""


class GeometryMismatchError(BadLabelError):
    """A label that is not on the grid of its image."""


class BadImageError(HermesError):
    """An image that cannot be read or used."""

    status = 422


class NotFoundError(HermesError):
    """An image, model, label or version that does not exist."""

    status = 404


class ConflictError(HermesError):
    """The state of the campaign forbids it now."""

    status = 409


class NothingToTrainError(ConflictError):
    """Training was asked for and no usable label exists."""


class BusyError(HermesError):
    """Something of which there is one is in use."""

    status = 429


class CancelledError(HermesError):
    """Stopped on request."""

    status = 409


class GaveWayError(CancelledError):
    """Work in the background made room for a request; it may be tried again."""


class PacsError(HermesError):
    """The PACS cannot be reached, or refuses what it is given."""

    status = 503


class DamagedDatabaseError(HermesError):
    """The campaign's database cannot be read any more."""


class CheckpointError(HermesError):
    """A model directory that does not hold what it says."""


class WeightsMismatchError(CheckpointError):
    """A missing, surplus or misshapen tensor in a set of weights."""
