"""The bridge to EasyEdit: everything that knows the host's internals lives in this package."""

from __future__ import annotations

from types import ModuleType

from .host import HostInfo, host_info

__all__ = ["HostInfo", "host_info", "load_easyeditor", "register", "unregister"]


# These import what they need when called: finding the host takes neither torch nor transformers.
def load_easyeditor() -> ModuleType:
    """Import `easyeditor` from the host that `host_info` finds and return it.

    Multimodal modules whose packages are missing are replaced by stand-ins that raise ImportError
    when used. The release is made to run on `device: cpu` and to read byte-level BPE tokenizers.
    A later `import easyeditor` gives the same module. Raises ImportError when there is no host,
    or when the host lacks a package that editing text needs.
    """
    from . import loading

    return loading.load_easyeditor()


def register() -> HostInfo:
    """Make `alg_name: DAFNet` known to EasyEdit and return which EasyEdit that is.

    Calling it again changes nothing. Raises ImportError when there is no EasyEdit, and
    RuntimeError when it has a DAFNet of its own or is not built as expected.
    """
    from . import registration

    return registration.register()


def unregister() -> None:
    """Put back everything that `register` changed; does nothing when it was not called.

    EasyEdit stays imported as `load_easyeditor` has imported it.
    """
    from . import registration

    registration.unregister()
