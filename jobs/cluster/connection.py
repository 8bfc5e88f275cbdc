"""The connection to Ray: a private one on this machine, or to a cluster that runs."""

import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from jobs.cluster.messages import OnMessage, messages_to
from jobs.cluster.session_folder import session_folder
from jobs.execution.code import PACKAGES
from shards.files.errors import is_transient

logger = logging.getLogger(__name__)

ROOT: Final = Path(__file__).resolve().parents[2]
PRIVATE_NAMESPACE: Final = "stseg-pipeline-private"  # distinguishes a Ray that cannot grow from a cluster
_LOCAL_STORE_BYTES: Final = 256 * 1024**2  # shard names and records travel, never arrays
_START_ATTEMPTS: Final = 3


def connect(address: str | None = None, num_cpus: int | None = None) -> bool:
    """Connect this process to Ray; return whether it was not connected yet.

    Without an address a private Ray is started on this machine, without dashboard, behind a token of its own. Workers
    import the packages of this repository: here from its path, on a cluster from a copy that Ray uploads.

    Args:
        address: None: a private Ray; host:port: the Ray that runs there; "auto": the one that RAY_ADDRESS names, as in
            a Ray job, else the newest on this machine.
        num_cpus: CPUs of the private Ray; None: all. Ignored with an address.

    Raises:
        ValueError: A foreign package would be imported in place of one of ours, there is no token, or no folder for
            a private Ray's files.
        OSError: A private Ray cannot write its files.
        ConnectionError: No Ray answers at the address, or none starts here.
        KeyboardInterrupt: SIGTERM arrived meanwhile.
    """
    refuse_foreign_packages([Path.cwd(), Path(sys.path[0] or ".")])
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return False
    choose_authentication(local=address is None)
    import ray

    with _sigterm_as_before():
        if address is None:
            _start_private(num_cpus)
        else:
            _join(address)
    logger.info("Ray %s: %s", ray.__version__, address or "this machine")
    return True


def disconnect() -> None:
    """End the connection, and a private Ray with it; does nothing without a connection."""
    if "ray" not in sys.modules:
        return
    import ray

    ray.shutdown()


@contextmanager
def connection(
    address: str | None = None, num_cpus: int | None = None, on_message: OnMessage | None = None
) -> Iterator[None]:
    """Connect to Ray for the length of the block; a connection that exists already stays.

    Args:
        address: See `connect`.
        num_cpus: See `connect`.
        on_message: Takes Ray's messages about its machines, see `messages_to`.
    """
    ours = connect(address, num_cpus)
    try:
        with messages_to(on_message):
            yield
    finally:
        if ours:
            disconnect()


def refuse_foreign_packages(folders: Iterable[Path]) -> None:
    """Reject folders from which a foreign `models`, `jobs`, … would be imported in place of ours.

    Args:
        folders: Candidates for the import path.

    Raises:
        ValueError: One of them holds such a package or module.
    """
    # Ray puts the working folder and the script's folder first on its workers' path, and our names are common ones.
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        if folder == ROOT:
            continue
        for package in PACKAGES:
            for found in (folder / package / "__init__.py", folder / f"{package}.py"):
                if found.is_file() and ROOT / package not in found.resolve().parents:
                    raise ValueError(
                        f"{found} would be imported in place of this project's own {package}; run from another folder"
                    )


@contextmanager
def _sigterm_as_before() -> Iterator[None]:
    """Restore the handler of SIGTERM after the block: Ray's own handlers end the process with their own exit codes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as ended:  # one of Ray's handlers
        raise KeyboardInterrupt from ended
    finally:
        signal.signal(signal.SIGTERM, before)


def _join(address: str) -> None:
    import ray

    if address == "auto":  # RAY_ADDRESS names a job's own cluster; Ray would take the newest one of the machine
        address = os.environ.get("RAY_ADDRESS", address)
    try:
        ray.init(address=address, runtime_env=uploaded_code(), log_to_driver=False, logging_level=logging.WARNING)
    except Exception as error:  # ConnectionError, RuntimeError or one of Ray's own, depending on the cause
        ray.shutdown()
        raise ConnectionError(f"no Ray that lets us in answers at {address}: {error}") from error


def _start_private(num_cpus: int | None) -> None:
    """Start a private Ray on this machine."""
    import ray

    # By default Ray's workers run at low priority: on a busy machine they hardly move.
    os.environ.setdefault("RAY_worker_niceness", "0")
    folder, why = session_folder()
    if folder is not None:
        logger.warning("%s", why)
    # Several attempts: on a busy machine Ray's own processes may miss each other's time limits.
    for attempt in range(1, _START_ATTEMPTS + 1):
        try:
            ray.init(
                address="local",  # named, since with None Ray would join the one that RAY_ADDRESS names
                namespace=PRIVATE_NAMESPACE,
                num_cpus=num_cpus,
                include_dashboard=False,  # an idle Ray then takes 517 MiB instead of 724
                object_store_memory=_LOCAL_STORE_BYTES,
                runtime_env={"env_vars": {"PYTHONPATH": _python_path()}},
                _temp_dir=None if folder is None else str(folder),
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
            return
        except Exception as error:  # Ray raises a bare Exception for it
            ray.shutdown()
            # What the user has to change stays as it is, and another attempt would only cost time.
            if isinstance(error, OSError) and error.errno is not None and not is_transient(error):
                raise
            if isinstance(error, UnicodeError):
                text = "Ray takes only names in UTF-8, and the command line or the current folder has another"
                raise ValueError(f"{text} ({error}); rename it, or work without Ray: --backend inline") from error
            if isinstance(error, ValueError):
                raise ValueError(f"Ray did not start on this machine: {error}") from error
            if attempt == _START_ATTEMPTS:
                raise ConnectionError(f"Ray did not start on this machine in {attempt} attempts: {error}") from error
            logger.warning("Ray did not start (attempt %d of %d): %s", attempt, _START_ATTEMPTS, error)


def choose_authentication(*, local: bool) -> None:
    """Set Ray's authentication mode explicitly.

    Args:
        local: Whether a private Ray is started, which gets a token if there is none.

    Raises:
        ValueError: There is no token for a cluster, and RAY_AUTH_MODE does not say that it has none.
    """
    # Heads, drivers and workers have different defaults: a driver that joins a head with a token without setting the
    # mode fails only after 30 s of retries.
    if "RAY_AUTH_MODE" in os.environ:
        return
    has_token = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if local and not has_token:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        has_token = True
    if not has_token and not (Path.home() / ".ray" / "auth_token").is_file():
        raise ValueError(
            "there is no token for the cluster; set RAY_AUTH_TOKEN_PATH to a file with the token that it was started "
            "with, or RAY_AUTH_MODE=disabled if it is open to everyone who reaches it"
        )
    os.environ["RAY_AUTH_MODE"] = "token"
    if "ray" in sys.modules:
        from ray._raylet import Config  # type: ignore[attr-defined]

        Config.initialize("")  # Ray read the mode when it was imported; it refreshes it in the same way itself


def uploaded_code() -> dict[str, Any]:
    """Return the runtime environment that uploads the code to a cluster; empty in a Ray job or an installed package."""
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if in_job or not (ROOT / "pyproject.toml").is_file():
        return {}
    for name in ("packaging", "working_dir"):  # they log every folder that is left out
        logging.getLogger(f"ray._private.runtime_env.{name}").setLevel(logging.ERROR)
    # Ray's own list of what it leaves out adds nothing to ours, and each use of it is a warning.
    os.environ.setdefault("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", "")
    # Only the packages, with the tiny weights: runs, images and environments in the same folder can be large.
    others = sorted(f"/{path.name}" for path in ROOT.iterdir() if path.name not in PACKAGES)
    return {"working_dir": str(ROOT), "excludes": [*others, "__pycache__"]}


def _python_path() -> str:
    inherited = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return os.pathsep.join(dict.fromkeys([str(ROOT), *inherited]))
