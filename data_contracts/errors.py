"""The errors that users see, in one tree with their exit codes.

BloomeryError                     exit code 1
├── DocumentInvalid               2   a YAML file has an unknown key or an invalid value
│   ├── RecipeInvalid
│   └── ContractInvalid
├── SettingInvalid                2   an environment variable or an option has an invalid value
├── DataMissing                   2   data, a recipe or a version does not exist
├── ContractBroken                3   the data breaks its contract
│   └── DataUnfit                 3   the data keeps the contract, but no model can be trained on it
├── VersionTooLow                 3   a contract changed more than its version number allows
├── NoCandidate                   4   no compressed model is within the budget
├── ReleaseRefused                4   the packaged model failed a gate; the champion stays
├── SecretMissing                 2   a key that the contract or the endpoint's address requires is missing
├── ContainerUnfit                1   the build context of a container does not pass its checks
├── StateUnwritable               1   the state folder cannot be written, or the disk is full
├── ShareLost                     1   a disk or a network share stopped responding
├── PortInUse                     1   another process listens on the port
├── EngineMissing                 1   software that a stage requires, such as Java, is missing or does not start
├── OutputCorrupt                 1   a file differs from its recorded digest
│   └── SignatureRefused          1   it has no valid signature by a trusted key
├── OutputDiffers                 1   a reproduced version differs from the original
├── TrainingDiverged              1   the loss or the weights are no longer finite
└── ParityBroken                  1   the outputs of an exported model differ from those of its source
"""

from __future__ import annotations


class BloomeryError(Exception):
    """An error that says what was found, what was required, where, and what to do."""

    exit_code = 1

    def __init__(self, found: str, *, required: str, where: str, remedy: str) -> None:
        self.found = found
        self.required = required
        self.where = where
        self.remedy = remedy
        super().__init__(found)

    def __str__(self) -> str:
        return f"{self.found}\n  required: {self.required}\n  where:    {self.where}\n  do:       {self.remedy}"

    def _render_traceback_(self) -> list[str]:
        """The lines that IPython and Jupyter print instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]

    def __reduce__(self) -> tuple[object, ...]:
        # Errors are pickled between processes and by Prefect, and pickle does not pass keyword-only arguments.
        return (_rebuild, (type(self), self.found, self.required, self.where, self.remedy))

    def as_document(self) -> dict[str, str | int]:
        """The error as JSON values, for `--json`."""
        return {
            "error": type(self).__name__,
            "found": self.found,
            "required": self.required,
            "where": self.where,
            "remedy": self.remedy,
            "exit_code": self.exit_code,
        }


def _rebuild(kind: type[BloomeryError], found: str, required: str, where: str, remedy: str) -> BloomeryError:
    return kind(found, required=required, where=where, remedy=remedy)


class DocumentInvalid(BloomeryError):
    exit_code = 2


class RecipeInvalid(DocumentInvalid):
    pass


class ContractInvalid(DocumentInvalid):
    pass


class SettingInvalid(BloomeryError):
    exit_code = 2


class DataMissing(BloomeryError):
    exit_code = 2


class ContractBroken(BloomeryError):
    exit_code = 3


class DataUnfit(ContractBroken):
    pass


class VersionTooLow(BloomeryError):
    exit_code = 3


class NoCandidate(BloomeryError):
    exit_code = 4


class ReleaseRefused(BloomeryError):
    exit_code = 4


class SecretMissing(BloomeryError):
    exit_code = 2


class ContainerUnfit(BloomeryError):
    pass


class StateUnwritable(BloomeryError):
    pass


class ShareLost(BloomeryError):
    pass


class PortInUse(BloomeryError):
    pass


class EngineMissing(BloomeryError):
    pass


class OutputCorrupt(BloomeryError):
    pass


class SignatureRefused(OutputCorrupt):
    pass


class OutputDiffers(BloomeryError):
    """A reproduced version is not bit for bit the original."""


class TrainingDiverged(BloomeryError):
    pass


class ParityBroken(BloomeryError):
    pass
