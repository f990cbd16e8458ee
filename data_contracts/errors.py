"""Every error a user can meet, in one tree.

BloomeryError                     exit code 1
├── DocumentInvalid               2   a YAML file does not say what its kind must say
│   ├── RecipeInvalid
│   └── ContractInvalid
├── SettingInvalid                2   a variable of the environment, or an option, is not what it must be
├── DataMissing                   2   the recipe names data, a recipe or a version that is not there
├── ContractBroken                3   the data breaks its contract
│   └── DataUnfit                 3   the data keeps the contract, but nothing can be learnt from it
├── VersionTooLow                 3   a contract changed more than its version number says
├── NoCandidate                   4   no compressed model is within the budget
├── ReleaseRefused                4   the packaged model failed a gate; the champion stands
├── SecretMissing                 2   a key that the contract or an endpoint's address calls for is not there
├── ContainerUnfit                1   what a container would be built from does not pass its checks
├── StateUnwritable               1   the state folder cannot be written, or the disk is full
├── ShareLost                     1   a disk or a network share that was there stopped answering
├── PortInUse                     1
├── EngineMissing                 1   what a stage needs of the machine, such as Java, is not there or does not start
├── OutputCorrupt                 1   a file is not the one that was recorded
│   └── SignatureRefused          1   nobody who is trusted has signed it
├── OutputDiffers                 1   a version that was made again is not what it was
├── TrainingDiverged              1
└── ParityBroken                  1   an exported model answers differently from its source
"""

from __future__ import annotations


class BloomeryError(Exception):
    """What was found, what was required, where, and what to do next."""

    exit_code = 1

    def __init__(self, found: str, *, required: str, where: str, remedy: str) -> None:
        self.found = found
        self.required = required
        self.where = where
        self.remedy = remedy
        super().__init__(found)

    def __str__(self) -> str:
        return f"{self.found}\n  required: {self.required}\n  where:    {self.where}\n  do:       {self.remedy}"

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process and Prefect result boundaries; keyword-only arguments need spelling out.
        return (_rebuild, (type(self), self.found, self.required, self.where, self.remedy))

    def as_document(self) -> dict[str, str | int]:
        """The same facts as plain values, for `--json`."""
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
    """A version that was made again is not, bit for bit, what it was."""


class TrainingDiverged(BloomeryError):
    pass


class ParityBroken(BloomeryError):
    pass
