"""Calls to a store over a network: retried while the trouble is transient, else an error that names the URL."""

import errno
import logging
import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

from shards.files.errors import DISK_FULL, StoreRefused, StoreUnavailable

logger = logging.getLogger(__name__)

ATTEMPTS: Final = 9
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 15.0

_FINAL_ERRNOS: Final = frozenset({errno.EINVAL, errno.EACCES, errno.EPERM})
_OF_THIS_DISK: Final = DISK_FULL | {errno.EROFS}
_FINAL: Final = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_NETWORK_PACKAGES: Final = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "requests", "urllib3")
_NO_BUCKET: Final = "specified bucket does not exist"  # S3 answers so; an object that is missing is another matter
_FINAL_NAMES: Final = ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "InvalidRegionError")

Result = TypeVar("Result")


def persistently(url: str, call: Callable[[], Result], pause: Callable[[float], None] = time.sleep) -> Result:
    """Return what a repeatable call returns, after up to `ATTEMPTS` attempts with growing pauses.

    Args:
        url: What the call is about, for messages.
        call: May raise FileNotFoundError and FileExistsError: these are answers and pass through.
        pause: Waits some seconds; tests pass their own.

    Raises:
        StoreUnavailable: Each attempt failed with a transient error.
        StoreRefused: The store refuses: no such bucket, no permission, no credentials.
    """
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except (FileNotFoundError, FileExistsError) as error:
            if _NO_BUCKET in str(error):
                raise StoreRefused(f"{url}: {_brief(error)}; make it, or see its name") from error
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _OF_THIS_DISK:
                raise  # of the local disk that an object is downloaded to
            if not may_pass(error):
                if isinstance(error, OSError) or _comes_from_network(error):
                    raise StoreRefused(f"{url}: {_brief(error)}; see its name, rights and credentials") from error
                raise
            if attempt == ATTEMPTS - 1:
                text = f"no answer after {ATTEMPTS} attempts ({_brief(error)}); resume with the same command"
                raise StoreUnavailable(errno.ETIMEDOUT, text, url) from error
            logger.info("%s: %s; attempt %d follows", url, _brief(error), attempt + 2)
        # At random, so that many workers that a store turned away do not return at once.
        pause(min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S) * random.uniform(0.5, 1.0))
    raise AssertionError("every attempt returns or raises")


def may_pass(error: Exception) -> bool:
    """Return whether the same call may succeed a little later."""
    if isinstance(error, _FINAL) or type(error).__name__ in _FINAL_NAMES:
        return False
    if isinstance(error, OSError):
        return error.errno not in _FINAL_ERRNOS
    code = getattr(error, "code", None)
    if isinstance(code, int) and 400 <= code < 500 and code not in (408, 429):  # gcsfs' HttpError
        return False
    return _comes_from_network(error)


def _comes_from_network(error: Exception) -> bool:
    # By module name: the packages are optional, so their exceptions cannot be imported here.
    return type(error).__module__.partition(".")[0] in _NETWORK_PACKAGES


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip() or '(no message)'}"
