"""Every error that Apiary raises on purpose, drawn as a tree.

    ApiaryError
    ├── SettingsError         a setting, a flag or a file named by one is wrong           exit 2
    │   └── NotReady              ... now, perhaps not in a minute: a port, a clock, a file   exit 11
    ├── DataError             pictures, labels or data sets that cannot be used           exit 3
    │   └── CameraError           a camera that is not there, or no longer
    ├── BusError              the broker                                                  exit 4
    │   ├── BrokerUnreachable     no connection within the time allowed
    │   ├── BrokerRefused         it refused: credentials, rights, version
    │   ├── NoAnswer              no coordinator is there, or it did not answer in time
    │   └── ServiceUnreachable    no enrolment service answers
    ├── WireError             a peer sent what the protocol does not allow                exit 5
    │   ├── TopicError
    │   ├── MessageError
    │   │   └── VersionError      another version of the protocol
    │   ├── ChunkError
    │   ├── BlobError
    │   └── SignatureRefused      not signed by its sender, or repeated
    │       ├── MessageUnsigned
    │       ├── MessageAltered
    │       ├── MessageAhead
    │       └── MessageRepeated
    ├── ModelError            a model, recipe or runtime that cannot do its job           exit 6
    │   ├── RuntimeUnavailable    no runtime of that name on this machine
    │   ├── EimError              an `.eim` program that does not answer as it should
    │   └── ExportError           the exported file differs from Keras, or does not convert
    ├── RunFailed             a run that ended without a usable model                     exit 7
    ├── StoreError            files and journals: full disk, torn file, locked folder     exit 8
    ├── PublishError          a finished model that could not be published                exit 9
    └── RequestRefused        the coordinator, or a node, refused an operator's request   exit 10

A message names who, what came, what was expected and how to mend it. What a bad *peer* does is data
(`Rejected`), not an exception; an exception that is not an `ApiaryError` is our own bug.
"""


class ApiaryError(Exception):
    """The root; `exit_code` is what the `apiary` command ends with."""

    exit_code = 1


class SettingsError(ApiaryError):
    """A setting, a flag or a file that one names is wrong."""

    exit_code = 2


class NotReady(SettingsError):  # noqa: N818 - a state that may pass, not a mistake
    """What the settings want is not there now: a port, an address, a file that is whole, a clock that is set.

    A minute or a start later it may be, so a service is started again after it.
    """

    exit_code = 11


class DataError(ApiaryError):
    """Pictures, labels or data sets that cannot be used."""

    exit_code = 3


class CameraError(DataError):
    """A camera that is not there, is gone, or cannot be used as configured."""


class BusError(ApiaryError):
    """Something between this party and the broker."""

    exit_code = 4


class BrokerUnreachable(BusError):  # noqa: N818 - reads as what happened, like ConnectionRefused
    """No connection within the time allowed."""


class BrokerRefused(BusError):  # noqa: N818
    """The broker refused: credentials, rights or protocol version."""


class NoAnswer(BusError):  # noqa: N818
    """No coordinator is there, or it did not answer in time."""


class ServiceUnreachable(BusError):  # noqa: N818
    """The enrolment service does not answer."""


class WireError(ApiaryError):
    """A peer sent what the protocol does not allow."""

    exit_code = 5


class TopicError(WireError):
    """A topic that is not one of ours, or an id that no topic may carry."""


class MessageError(WireError):
    """A control message that does not parse or breaks a bound."""


class VersionError(MessageError):
    """A message of another version of the protocol."""


class ChunkError(WireError):
    """A chunk that is torn, too large or not part of the blob it names."""


class BlobError(WireError):
    """A blob whose header, sizes or digest do not hold."""


class SignatureRefused(WireError):  # noqa: N818
    """A message that is not signed by the one who may say it, or a repetition of an older one.

    Its kinds are apart so that a log that has each kind once (`Complaints`) does not swallow another.
    """


class MessageUnsigned(SignatureRefused):
    """No signature at all."""


class MessageAltered(SignatureRefused):
    """A signature that does not fit the message, or the topic."""


class MessageAhead(SignatureRefused):
    """Issued at a time that is yet to come by this machine's clock."""


class MessageRepeated(SignatureRefused):
    """Said before, and something newer since."""


class ModelError(ApiaryError):
    """A model, recipe or runtime that cannot do its job."""

    exit_code = 6


class RuntimeUnavailable(ModelError):  # noqa: N818
    """No runtime of that name can be loaded on this machine."""


class EimError(ModelError):
    """An `.eim` program that crashed, hangs, or does not answer as it should."""


class ExportError(ModelError):
    """An exported file that does not convert, or differs from Keras."""


class RunFailed(ApiaryError):  # noqa: N818
    """A run that ended without a usable model."""

    exit_code = 7


class StoreError(ApiaryError):
    """A full disk, a torn file, a folder that another process holds."""

    exit_code = 8


class PublishError(ApiaryError):
    """A finished model that could not be published; `retry` where another attempt may do."""

    exit_code = 9

    def __init__(self, message: str, *, retry: bool = False):
        super().__init__(message)
        self.retry = retry


class RequestRefused(ApiaryError):  # noqa: N818
    """The coordinator, or a node, refused an operator's request."""

    exit_code = 10
