"""Errors of the codec.

CodecError
├── UnsupportedCodec     a codec option is unknown or has an invalid value
├── UnsupportedShape     an array has the wrong shape, or its last axis is not a supported head_dim
├── UnsupportedDtype     the element type is not supported
└── BackendUnavailable   the requested backend cannot run on this machine
"""


class CodecError(ValueError):
    """Base of every error raised by `hadakv_kernels`."""


class UnsupportedCodec(CodecError):
    """A codec option is unknown or has an invalid value.

    Attributes:
        field: name of the option, for example `"bits"`.
        reason: what is wrong, as a sentence fragment.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"codec.{field}: {reason}")
        self.field = field
        self.reason = reason


class UnsupportedShape(CodecError):
    """An array has the wrong shape, or its last axis is not one of `HEAD_DIMS`."""


class UnsupportedDtype(CodecError):
    """The element type is not supported. Values are float32, float16 or bfloat16."""


class BackendUnavailable(CodecError):
    """The requested backend cannot run on this machine."""
