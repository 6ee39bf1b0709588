"""The client of the HTTP interface."""

from lodestream.errors import ConfigError

try:
    import httpx2  # noqa: F401
    import tenacity  # noqa: F401
except ModuleNotFoundError as error:
    raise ConfigError(
        f"the client needs {error.name}, which is not installed", "pip install 'lodestream[client]'"
    ) from None
