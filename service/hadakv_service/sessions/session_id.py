"""The session id rule."""

import re

from hadakv_service.errors import InvalidRequest

ID_RULE = "must be 1 to 128 of A-Z a-z 0-9 . _ : - and neither . nor .."


# Proxies and clients resolve "." and ".." in a path, so they cannot be ids.
_SESSION_ID = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.:-]{1,128}")


def check_session_id(session: str, field: str = "id") -> str:
    """Return the id if it is valid.

    Raises:
        InvalidRequest: the id is not 1 to 128 of A-Z a-z 0-9 . _ : - or it is "." or "..".
    """
    if not _SESSION_ID.fullmatch(session):
        raise InvalidRequest([(field, ID_RULE)])
    return session
