"""Every error that lodestream raises on purpose.

    LodestreamError
    |-- ConfigError                 the configuration or the command line is wrong           exit 2
    |-- ModelError                  the encoder's folder is missing, incomplete or altered   exit 2
    |-- SourceError
    |   |-- SourceUnavailable       (Transient) the source cannot be reached or listed       exit 75
    |   `-- SourceContract          (Terminal) it answers, but not with what was promised    exit 1
    |-- DocumentError               one document cannot be used: goes to quarantine, the run goes on
    |-- GuardRefused                a guard stopped the run before it did harm               exit 5
    |   |-- MassDeletionRefused     too many documents vanished from their source
    |   |-- QuarantineShareExceeded too many documents failed
    |   `-- FeatureVersionMismatch  the features asked for are not those that the store serves
    |-- StoreError
    |   |-- StoreNotFound           nothing is published at that place                       exit 1
    |   |-- StoreUnwritable         no rights, no room, or not a folder                      exit 1
    |   |-- StoreSchemaMismatch     written by another schema version or vector width        exit 1
    |   |-- StoreCorrupt            a file of the store is torn, altered or gone             exit 3
    |   |-- StoreUnreachable        (Transient) a server of the store gives no answer          exit 75
    |   |-- CommitConflict          (Transient) somebody else committed first: do it again   exit 75
    |   |-- CommitStateUnknown      the reply was lost: read the pointer, settle by nonce    exit 75
    |   `-- FencedError             (Terminal) a newer epoch has taken over: stop            exit 4
    |-- LeaseError                  the right to write is somebody else's
    |   |-- LeaseHeld               (Transient) another writer is at work                    exit 4
    |   `-- LeaseLost               (Terminal) another writer took over: stop                exit 4
    |-- ExecutorError               Ray is not installed, cannot start or has too few CPUs   exit 1
    |-- KernelUnavailable           tensors on a GPU, but no triton to compute with          exit 1
    |-- ScheduleStopped             too many refreshes in a row failed                     exit 1
    |-- NotFoundError               no document or snapshot of that name                     exit 1
    `-- ServeError                  a request over HTTP cannot be answered                 status
        |-- AccessDenied            no token, a wrong one, or a foreign host name             401
        |-- RequestInvalid          (Terminal) it makes no sense as it is                     422
        |-- RequestTooLarge         (Terminal) a body, a text or a list beyond the limits     413
        |-- Overloaded              (Transient) the queue before the encoder is full          429
        |-- ServiceUnavailable      (Transient) nothing to serve yet, or shutting down        503
        `-- DeadlineExceeded        (Transient) no answer within serve.request_timeout        504

``Transient`` and ``Terminal`` are all that decides whether something is tried again.

Errors must survive pickling (Ray carries them between processes), so each passes its fields on to
``Exception.__init__`` and formats itself in ``__str__``.
"""

from __future__ import annotations

from typing import Any, ClassVar


class Transient:
    """Mix-in: the same call may succeed later."""


class Terminal:
    """Mix-in: the same call fails again until somebody changes something."""


class LodestreamError(Exception):
    """What happened (``message``) and what to do next (``hint``, may be empty).

    Both stay on the object; ``exit_code`` is what the command line exits with.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  next: {self.hint}" if self.hint else self.message

    def as_dict(self) -> dict[str, Any]:
        """The error as the ``--json`` outputs print it."""
        return {"error": type(self).__name__, "message": self.message, "hint": self.hint}


class ConfigError(LodestreamError):
    """The configuration or the command line is wrong."""

    exit_code = 2


class ModelError(LodestreamError):
    """The encoder's folder is missing, incomplete, altered, or of an architecture that is not supported."""

    exit_code = 2


class SourceError(LodestreamError):
    """A source of documents failed as a whole."""


class SourceUnavailable(Transient, SourceError):
    """The source cannot be reached or listed at present. No document is taken for deleted because of it."""

    exit_code = 75


class SourceContract(Terminal, SourceError):
    """The source answers, but not with what its configuration promises."""


class DocumentError(LodestreamError):
    """One document cannot be used. It goes to quarantine with ``message`` as the reason; the run goes on."""


class GuardRefused(LodestreamError):
    """A guard stopped the run before it did harm. Nothing of the run is published."""

    exit_code = 5


class MassDeletionRefused(GuardRefused):
    """More documents vanished from their source than a mishap there should be able to delete."""


class QuarantineShareExceeded(GuardRefused):
    """More documents failed than ``run.max_quarantined_share`` allows."""


class FeatureVersionMismatch(GuardRefused):
    """Features are asked for that would not fit those that the store serves: another model, setting or release."""


class StoreError(LodestreamError):
    """The feature store failed."""


class StoreNotFound(StoreError):
    """There is no store, or nothing is published in it yet."""


class StoreUnwritable(StoreError):
    """The store's place cannot be written: no rights, no room, or something else stands there."""


class StoreSchemaMismatch(StoreError):
    """The store was written by another schema version, or holds vectors of another width."""


class StoreCorrupt(StoreError):
    """A file of the store is torn, altered or gone."""

    exit_code = 3


class StoreUnreachable(Transient, StoreError):
    """The server that holds the store, or its writer's lease, gives no answer. Nothing was changed."""

    exit_code = 75


class CommitConflict(Transient, StoreError):
    """Another writer committed first. Nothing of this transaction is visible; begin it anew."""

    exit_code = 75


class CommitStateUnknown(StoreError):
    """The commit was sent and its reply lost. Read the pointer again and settle by nonce before anything else."""

    exit_code = 75


class FencedError(Terminal, StoreError):
    """A writer with a newer epoch has taken over. This writer must stop."""

    exit_code = 4


class LeaseError(LodestreamError):
    """The right to write to a store is somebody else's."""

    exit_code = 4


class LeaseHeld(Transient, LeaseError):
    """Another writer is at work: ``holder``, its ``epoch``, how long it has been (``held_s``), and for how long a dead
    one would be waited for (``retry_after_s``)."""

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        holder: str = "",
        epoch: int = 0,
        held_s: float = 0.0,
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(message, hint)
        self.holder = holder
        self.epoch = epoch
        self.held_s = held_s
        self.retry_after_s = retry_after_s

    def as_dict(self) -> dict[str, Any]:
        """The error as the ``--json`` outputs print it."""
        fields = {"holder": self.holder, "epoch": self.epoch, "held_s": self.held_s}
        return super().as_dict() | fields | {"retry_after_s": self.retry_after_s}


class LeaseLost(Terminal, LeaseError):
    """Another writer has taken the lease over, or it could not be renewed. This writer must stop."""


class ExecutorError(LodestreamError):
    """Ray is not installed, cannot be started or reached, or has too few logical CPUs for the dataflow."""


class KernelUnavailable(LodestreamError):
    """A kernel for the device that the tensors are on cannot be had."""


class ScheduleStopped(LodestreamError):
    """So many refreshes in a row failed that going on would only hide it."""


class NotFoundError(LodestreamError):
    """No document, run or snapshot of that name."""


class ServeError(LodestreamError):
    """A request over HTTP cannot be answered; ``status`` is the answer's, and ``retry_after_s`` says when the same
    request is worth another try (0: never, or at once)."""

    status: ClassVar[int] = 500

    def __init__(self, message: str, hint: str = "", *, retry_after_s: float = 0.0) -> None:
        super().__init__(message, hint)
        self.retry_after_s = retry_after_s


class AccessDenied(Terminal, ServeError):
    """No token, a wrong one, or a host name that this server does not go by."""

    status = 401


class RequestInvalid(Terminal, ServeError):
    """The request makes no sense as it is."""

    status = 422


class RequestTooLarge(Terminal, ServeError):
    """A body, a text or a list is beyond the limits."""

    status = 413


class Overloaded(Transient, ServeError):
    """The queue before the encoder is full."""

    status = 429


class ServiceUnavailable(Transient, ServeError):
    """There is nothing to serve yet, or the server is shutting down."""

    status = 503


class DeadlineExceeded(Transient, ServeError):
    """There was no answer within the time that a request may take."""

    status = 504
