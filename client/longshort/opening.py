"""How a session is opened, the first time and again."""

from __future__ import annotations

import os
import re
import socket
import uuid
from typing import TYPE_CHECKING, Final, Literal

from longshort import arrays, errors, named
from longshort.v1 import sequence_pb2, types_pb2

if TYPE_CHECKING:
    from longshort.errors import LongshortError
    from longshort.named import Named

Mode = Literal["open_or_create", "open", "create"]
Durability = Literal["none", "behind", "sync"]
ModelChange = Literal["refuse", "move", "reset"]

MODES: Final[dict[str, types_pb2.OpenMode]] = {
    "open_or_create": types_pb2.OPEN_MODE_OPEN_OR_CREATE,
    "open": types_pb2.OPEN_MODE_OPEN,
    "create": types_pb2.OPEN_MODE_CREATE,
}
DURABILITIES: Final[dict[str | None, types_pb2.Durability]] = {
    None: types_pb2.DURABILITY_UNSPECIFIED,
    "none": types_pb2.DURABILITY_NONE,
    "behind": types_pb2.DURABILITY_BEHIND,
    "sync": types_pb2.DURABILITY_SYNC,
}
MODEL_CHANGES: Final[dict[str, types_pb2.ModelChange]] = {
    "refuse": types_pb2.MODEL_CHANGE_REFUSE,
    "move": types_pb2.MODEL_CHANGE_MOVE,
    "reset": types_pb2.MODEL_CHANGE_RESET,
}
MAX_CLIENT_ID: Final = 40  # characters; the server takes 64, and a random tail follows
_CLIENT_ID: Final = re.compile(rf"[!-~]{{1,{MAX_CLIENT_ID}}}")
_HEADER_VALUE: Final = re.compile(r"[!-~]{1,256}")


def own_client_id(client_id: str | None) -> str:
    """Return the name by which a client is told to others: the caller's, or else host:process."""
    if client_id is None:
        pid = f":{os.getpid()}"
        host = re.sub(r"[^!-~]", "-", socket.gethostname() or "client")
        return host[: MAX_CLIENT_ID - len(pid)] + pid
    if not isinstance(client_id, str) or not _CLIENT_ID.fullmatch(client_id):
        raise errors.InvalidRequest(
            f"client_id is 1 to {MAX_CLIENT_ID} printable ASCII characters without space, not {client_id!r}",
            reason="INVALID_OPTION",
        )
    return client_id


def routing_header(session_id: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata by which a proxy can route; none for an id that no session may have."""
    return (("session-id", session_id),) if _HEADER_VALUE.fullmatch(session_id) else ()


class Opening:
    """What a session is opened with. It owns the mode: a session once seen is only ever continued.

    Without an id (None or empty) a random UUID is drawn. `client_id` names the client; what goes over the
    wire has a random tail, since two clients of one name must not take each other for themselves. `created`
    says after the first opening whether the session is new. `initial` is what it begins with where it is.
    """

    def __init__(
        self,
        session_id: str | None = None,
        *,
        model: str | None = None,
        version: int | None = None,
        mode: Mode = "open_or_create",
        durability: Durability | None = None,
        model_change: ModelChange = "refuse",
        initial: Named | None = None,
        client_id: str = "client",
    ) -> None:
        for name, value, table in (
            ("mode", mode, MODES),
            ("durability", durability, DURABILITIES),
            ("model_change", model_change, MODEL_CHANGES),
        ):
            if not isinstance(value, str | None) or value not in table:
                allowed = ", ".join(str(key) for key in table)
                raise errors.InvalidRequest(
                    f"{name} is one of {allowed}, not {value!r}", reason="INVALID_OPTION"
                )
        self.session_id = arrays.text(session_id or "", "session_id") or str(uuid.uuid4())
        self.client_id = f"{client_id}:{uuid.uuid4().hex[:16]}"
        self.created = False
        self._drew_id = not session_id
        self._model = arrays.text("" if model is None else model, "model")
        self._version = 0 if version is None else arrays.whole_number(version, "version", 2**63)
        self._mode = MODES[mode]
        self._durability = DURABILITIES[durability]
        self._model_change = MODEL_CHANGES[model_change]
        self._initial = [] if initial is None else named.messages(initial)
        self._created_by_lost_try = False

    def request(self, opened: sequence_pb2.Opened | None, epoch: int = 0) -> sequence_pb2.StreamRequest:
        """Return the opening for the wire; `opened` is what the session was when it was last open.

        `epoch` is the greatest that was seen of it: a server whose store is away knows by it whether its memory is
        the newest state. A reopening asks for no change of the model: that has been done, or was refused.
        """
        return sequence_pb2.StreamRequest(
            open=sequence_pb2.Open(
                session=types_pb2.SessionKey(id=self.session_id),
                model=self._model if opened is None else opened.model,
                version=self._version if opened is None else opened.version,
                mode=self._mode if opened is None else types_pb2.OPEN_MODE_OPEN,
                client_id=self.client_id,
                durability=self._durability,
                epoch=epoch,
                model_change=self._model_change if opened is None else types_pb2.MODEL_CHANGE_UNSPECIFIED,
                initial=self._initial if opened is None else (),
            )
        )

    def note_first(self, opened: sequence_pb2.Opened) -> None:
        """Take the answer to the first opening that had one."""
        self.created = opened.created or self._created_by_lost_try

    def was_ours(self, failure: LongshortError) -> bool:
        """Return whether SESSION_EXISTS only says that an earlier try, whose answer was lost, had succeeded.

        If so the next try opens what that one created.
        """
        ours = self._drew_id or failure.metadata.get("client_id") == self.client_id
        if not (isinstance(failure, errors.SessionExists) and ours):
            return False
        self._mode = types_pb2.OPEN_MODE_OPEN
        self._created_by_lost_try = True
        return True
