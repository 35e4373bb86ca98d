"""An engine process: loads a session, says that it is ready, and does one job after the other until the pipe ends.

Knows processes, signals and the pipe. Does not know what a job is. One thread works; another hears what is cancelled,
and what the job at work is told.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import sys
import threading
from typing import Any

from ..errors import RestoreError, TttnnError
from ..recipe import TrainerRecipe
from .failures import where
from .pipe import Frame, Pipe
from .turn import Turn, fail

_log = logging.getLogger("tttnn.engines")


class _Inbox:
    """What has come in: jobs, and which of them nobody waits for any more."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._jobs: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._commands: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._cancelled: set[int] = set()
        self._interrupted: set[tuple[int, int]] = set()
        threading.Thread(target=self._hear, name="inbox", daemon=True).start()

    def _hear(self) -> None:
        while True:
            try:
                frame = self._pipe.receive()
            except OSError:
                frame = None
            if frame is None:
                # The serving process has gone: there is nobody to finish anything for.
                os._exit(1)
            if "cancel" in frame:
                self._cancelled.add(frame["cancel"])
                self._commands.put({"to": frame["cancel"], "end": True})  # wakes a job that waits for a command
            elif "interrupt" in frame:
                self._interrupted.add((frame["to"], frame["interrupt"]))
            elif "to" in frame:
                self._commands.put(frame)
            else:
                self._jobs.put(None if "stop" in frame else frame)

    def next(self) -> Frame | None:
        """Return the next job; None: there will be none."""
        return self._jobs.get()

    def is_cancelled(self, number: int) -> bool:
        """Say whether a job was given up."""
        return number in self._cancelled

    def is_interrupted(self, number: int, command: int) -> bool:
        """Say whether nobody waits for the answer to a job's command any more."""
        return (number, command) in self._interrupted

    def command(self, number: int, timeout: float) -> Frame | None:
        """Return what a job is told next; None where nothing comes within `timeout` seconds."""
        try:
            while (frame := self._commands.get(timeout=timeout))["to"] != number:
                pass
        except queue.Empty:
            return None
        return frame

    def forget(self, number: int) -> None:
        """Forget a job that is done, and what it was told: to no later one anything has been said yet."""
        self._cancelled.discard(number)
        self._interrupted.clear()
        while not self._commands.empty():
            self._commands.get_nowait()


def main(pipe: Pipe, desk: socket.socket) -> int:
    """Be an engine; return the exit code.

    Args:
        pipe: to the process that serves. Its first frame says what to load: `recipe`, a `TrainerRecipe.to_dict()`, and
            the `weights` of an engine before it; the `name` that clients call the model; and `verify_every`.
        desk: where the descriptor of weights made here is handed over.
    """
    first = pipe.receive()
    if first is None:
        return 1
    inbox = _Inbox(pipe)
    try:
        session, ready = _loaded(first, desk)
    except (TttnnError, ValueError, OSError) as error:
        pipe.send({"event": "failed", "message": str(error)})
        return 1
    except Exception as error:
        pipe.send({"event": "failed", "message": f"the model could not be loaded: {where(error)}"})
        return 1
    pipe.send(ready)
    done = 0
    while (frame := inbox.next()) is not None:
        sound = _do(session, frame, pipe, inbox)
        done += 1
        if sound and first["verify_every"] and done % first["verify_every"] == 0:
            sound = _verified(session, pipe)
        if not sound:
            return 1
    return 0


def _loaded(first: Frame, desk: socket.socket) -> tuple[Any, Frame]:
    """Load, make a first real step, and return the session with the frame that says so."""
    from transformers.utils import logging as transformers_logging

    from ..weights.shared_weights import SharedWeights
    from .session import Session

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    sealed = first["weights"]
    weights = None if sealed is None else SharedWeights.of(sealed[0], sealed[1])
    session = Session(TrainerRecipe.of(first["recipe"]), weights)
    spent = session.warm_up()
    descriptor, layout = session.weights.described()
    if sealed is None:
        socket.send_fds(desk, [b"w"], [descriptor])
    return session, {"event": "ready", "facts": session.facts(first["name"]), "layout": layout, "spent": spent}


def _do(session: Any, frame: Frame, pipe: Pipe, inbox: _Inbox) -> bool:
    """Do one job; False where the weights may not be what they were."""
    from .tasks import TASKS

    turn = Turn(frame, pipe.send, inbox)
    turn.joined = [Turn(other, pipe.send, inbox) for other in frame.get("joined", [])]
    result: dict[str, Any] | None = None
    error: Exception | None = None
    try:
        result = TASKS[frame["task"]](session, turn)
        if not turn.joined:
            parts = sum(turn.seconds.values()) + turn.waited
            turn.cost("request", max(0.0, turn.total() - parts), 1)
    except Exception as caught:
        error = caught
    for one in (turn, *turn.joined):
        session.costs.saw(one.spent)
        inbox.forget(one.number)
    if error is not None and not turn.ended:
        fail(turn, error)
    elif result is not None and not turn.ended:
        turn.done(result)
    if turn.joined:
        pipe.send({"event": "free", "job": turn.number})  # whoever was not answered waits again
    return not isinstance(error, RestoreError)


def _verified(session: Any, pipe: Pipe) -> bool:
    try:
        session.trainer.verify()
    except RestoreError as error:
        _log.error("verification: %s", where(error))
        pipe.send({"event": "verified", "ok": False})
        return False
    pipe.send({"event": "verified", "ok": True})
    return True


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the serving process says when to end
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    code = main(Pipe(socket.socket(fileno=int(sys.argv[1]))), socket.socket(fileno=int(sys.argv[2])))
    sys.stderr.flush()
    os._exit(code)  # at once: threads of torch and of the inbox need no farewell
