"""What the codec refuses.

CodecError
├── UnsupportedCodec     a codec option has a value there is no codec for
├── UnsupportedShape     the last axis is not a head_dim the codec has
├── UnsupportedDtype     the element type is none the codec reads or writes
└── BackendUnavailable   the backend asked for cannot run on this machine
"""


class CodecError(ValueError):
    """Base of every error raised by `hadakv_kernels`."""


class UnsupportedCodec(CodecError):
    """A codec option has a value there is no codec for.

    Attributes:
        field: the option's name, for example `"bits"`.
        reason: what is wrong with it, as a sentence fragment.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"codec.{field}: {reason}")
        self.field = field
        self.reason = reason


class UnsupportedShape(CodecError):
    """The last axis is not one of `HEAD_DIMS`."""


class UnsupportedDtype(CodecError):
    """The element type is not float32, float16 or bfloat16."""


class BackendUnavailable(CodecError):
    """The backend asked for cannot run on this machine."""
