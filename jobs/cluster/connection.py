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

logger = logging.getLogger(__name__)

ROOT: Final = Path(__file__).resolve().parents[2]
PRIVATE_NAMESPACE: Final = "stseg-pipeline-private"  # tells a Ray that cannot grow from a cluster that may
PACKAGES: Final = ("pipeline", "jobs", "models", "shards")
_LOCAL_STORE_BYTES: Final = 256 * 1024**2  # shard names and records travel, never arrays
_START_ATTEMPTS: Final = 3


def connect(address: str | None = None, num_cpus: int | None = None) -> bool:
    """Connect this process to Ray, and give whether that was needed.

    Without an address a private Ray is started here, without dashboard, behind a token of its own. Workers import the
    packages of this repository: from its path here; on a cluster from a copy that Ray uploads.

    Args:
        address: None: this machine; host:port: the Ray that runs there; "auto": the one that RAY_ADDRESS names, as in a
            Ray job, else the newest on this machine.
        num_cpus: CPUs that the private Ray counts with; None: all. Without meaning with an address.

    Raises:
        ValueError: Another package of the same name would be imported in our packages' place, or there is no token.
        ConnectionError: No Ray answers at the address, or none starts here.
        KeyboardInterrupt: SIGTERM came meanwhile.
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
    """End the connection; a private Ray ends with it. Without a connection nothing happens."""
    if "ray" not in sys.modules:
        return
    import ray

    ray.shutdown()


@contextmanager
def connection(address: str | None = None, num_cpus: int | None = None) -> Iterator[None]:
    """Be connected to Ray for a while; a connection that was there before stays."""
    ours = connect(address, num_cpus)
    try:
        yield
    finally:
        if ours:
            disconnect()


def refuse_foreign_packages(folders: Iterable[Path]) -> None:
    """See to it that no other `models`, `jobs`, … could be imported in our packages' place.

    Ray puts the working folder and the script's folder on its workers' path, where such common names are found first.

    Args:
        folders: What may come on the path.

    Raises:
        ValueError: One of them holds such a package or module.
    """
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
    """Keep the handler of SIGTERM: Ray puts its own there, which end the process with exit codes of their own."""
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

    if address == "auto":  # a job is told its own cluster; Ray would take the newest one of the machine
        address = os.environ.get("RAY_ADDRESS", address)
    try:
        ray.init(address=address, runtime_env=uploaded_code(), log_to_driver=False, logging_level=logging.WARNING)
    except Exception as error:  # ConnectionError, RuntimeError or one of Ray's own, by what is wrong
        ray.shutdown()
        raise ConnectionError(f"no Ray that lets us in answers at {address}: {error}") from error


def _start_private(num_cpus: int | None) -> None:
    """Start Ray on this machine; on a busy one its own processes may be late for each other, so it is tried again."""
    import ray

    # By default Ray's workers give way to everything else: on a busy machine they hardly move.
    os.environ.setdefault("RAY_worker_niceness", "0")
    for attempt in range(1, _START_ATTEMPTS + 1):
        try:
            ray.init(
                address="local",
                namespace=PRIVATE_NAMESPACE,
                num_cpus=num_cpus,
                include_dashboard=False,
                object_store_memory=_LOCAL_STORE_BYTES,
                runtime_env={"env_vars": {"PYTHONPATH": _python_path()}},
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
            return
        except Exception as error:  # Ray raises a bare Exception for it
            ray.shutdown()
            if attempt == _START_ATTEMPTS:
                raise ConnectionError(f"Ray did not start on this machine in {attempt} attempts: {error}") from error
            logger.warning("Ray did not start (attempt %d of %d): %s", attempt, _START_ATTEMPTS, error)


def choose_authentication(*, local: bool) -> None:
    """Settle Ray's authentication before Ray reads it: drivers, heads and workers differ in their defaults.

    Args:
        local: Whether a Ray of our own is started, which gets a token if there is none.

    Raises:
        ValueError: There is no token for a cluster, and RAY_AUTH_MODE does not say that it has none.
    """
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
    """Give Ray's setting that brings the code to a cluster's workers; a Ray job and an installed package have it.

    Of the project's folder only the packages travel, with the tiny weights; what else may lie in it can be large.
    """
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if in_job or not (ROOT / "pyproject.toml").is_file():
        return {}
    for name in ("packaging", "working_dir"):  # they tell at length what they leave out
        logging.getLogger(f"ray._private.runtime_env.{name}").setLevel(logging.ERROR)
    others = sorted(f"/{path.name}" for path in ROOT.iterdir() if path.name not in PACKAGES)
    return {"working_dir": str(ROOT), "excludes": [*others, "__pycache__"]}


def _python_path() -> str:
    inherited = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return os.pathsep.join(dict.fromkeys([str(ROOT), *inherited]))
