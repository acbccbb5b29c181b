"""What a server has in /dev/shm, by which it is known also after it was killed.

Triton's Python backend exchanges tensors through regions of shared memory. Those of one server share a prefix, and a
lock file of that prefix is held by `serve`, Triton and all of its stubs: they inherit the open file, and with it the
lock. So an open lock proves whose process it is. What a killed server left, processes or regions, is recognised by the
next one and removed; nothing else is ever touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

FOLDER = Path("/dev/shm")
PREFIX = "shelfwise-"
TRITON_NAMES = ("tritonserver", "triton_python_backend_stub")
KILL_SECONDS = 10.0


@dataclass(frozen=True)
class Record:
    """Who a lock belongs to: the process that started the server, its gRPC port, and whether it is about to stop."""

    owner: int
    grpc_port: int
    stopping: bool = False


class ServerLock:
    """The prefix of one server's regions, and the lock that says that one of its processes still lives."""

    def __init__(self, grpc_port: int) -> None:
        self.prefix = f"{PREFIX}{secrets.token_hex(6)}-"
        self.path = FOLDER / f"{self.prefix}lock"
        self.record = Record(os.getpid(), grpc_port)
        self.descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        self._write(self.record)

    def announce_stop(self) -> None:
        """Tell the probes of this machine that the server still answers, but should get no new callers."""
        self._write(Record(self.record.owner, self.record.grpc_port, stopping=True))

    def release(self) -> None:
        """Remove the server's regions and the lock. All its processes must have ended."""
        _remove_regions(self.prefix)
        os.close(self.descriptor)

    def _write(self, record: Record) -> None:
        content = json.dumps(asdict(record)).encode()
        os.pwrite(self.descriptor, content.ljust(128), 0)  # one write of one length: readers see the old or the new one


def is_stopping(grpc_port: int) -> bool:
    """Whether a server of this machine on that port has said that it is about to stop."""
    records = (_read(path) for path in FOLDER.glob(f"{PREFIX}*-lock"))
    return any(record is not None and record.grpc_port == grpc_port and record.stopping for record in records)


def remove_abandoned() -> list[str]:
    """End the processes and remove the regions of servers whose `serve` no longer lives. Returns their prefixes."""
    removed = []
    for path in FOLDER.glob(f"{PREFIX}*-lock"):
        try:
            descriptor = os.open(path, os.O_RDWR)
        except OSError:
            continue  # another user's, or removed a moment ago
        with contextlib.closing(os.fdopen(descriptor, "r+b")) as lock:
            if not _try_lock(lock.fileno()):
                record = _read(path)
                if record is None or _holds(record.owner, path):
                    continue  # its server lives
                _end([process for process in psutil.process_iter() if _is_triton(process, path)])
                if not _try_lock(lock.fileno()):
                    continue  # held by a process that this one cannot see
            prefix = path.name.removesuffix("lock")
            _remove_regions(prefix)
            removed.append(prefix)
    return removed


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(path: Path) -> Record | None:
    try:
        return Record(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None  # removed meanwhile, being written, or not of this version


def _holds(pid: int, path: Path) -> bool:
    """Whether a process has the very file open."""
    with contextlib.suppress(OSError):  # it ended, is another user's, or the file is gone
        wanted = path.stat()
        return any(
            os.path.samestat(wanted, entry.stat()) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.exists()
        )
    return False


def _is_triton(process: psutil.Process, lock: Path) -> bool:
    """Whether a process is a Triton or a stub of the server that a lock belongs to."""
    with contextlib.suppress(psutil.Error):
        return process.name() in TRITON_NAMES and _holds(process.pid, lock)
    return False


def _end(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=KILL_SECONDS)


def _remove_regions(prefix: str) -> None:
    for path in FOLDER.glob(f"{prefix}*"):
        path.unlink(missing_ok=True)
