"""Odd calls, one after another on a connection: whatever is wrong with one is answered with a problem document."""

import http.client
import json
import random
from typing import Any
from urllib.parse import urlsplit

import msgpack

from fuzzing.http_cases import Call, made
from fuzzing.report import Limit, Tally
from fuzzing.watch import watched
from hadakv_service.testing import RunningService
from support.contract import MSGPACK, PROBLEM

TIMEOUT_SECONDS = 20.0


class Line:
    """One connection that is used again and again, and made anew when it was closed."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_SECONDS)

    def send(self, call: Call) -> tuple[int, str, bytes]:
        """Status, content type and content of the answer.

        Raises:
            TimeoutError: there was none in time.
            OSError, http.client.HTTPException: the connection broke.
        """
        connection = self._connection
        try:
            connection.putrequest(call.method, call.path)
            for name, value in call.headers.items():
                connection.putheader(name, value.encode("latin-1"))
            if call.chunks is not None:
                connection.putheader("Transfer-Encoding", "chunked")
                connection.endheaders(call.chunks, encode_chunked=True)
            else:
                if call.body is not None:
                    connection.putheader("Content-Length", str(len(call.body)))
                connection.endheaders(call.body)
            answer = connection.getresponse()
            return answer.status, answer.getheader("Content-Type", ""), answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            raise

    def close(self) -> None:
        self._connection.close()


def run(service: RunningService, limit: Limit) -> Tally:
    """Send calls."""
    tally, rng, line = Tally("calls"), random.Random(limit.seed), Line(service.url)
    for _ in watched(service, limit, tally):
        judge(tally, line, made(rng))
    line.close()
    return tally


def judge(tally: Tally, line: Line, call: Call) -> None:
    """Send one call; every error must be a problem document."""
    try:
        status, content_type, content = line.send(call)
    except TimeoutError:
        tally.note_hang(str(call))
        return
    except (OSError, http.client.HTTPException) as error:
        tally.note(0, str(call))
        tally.failures.append(f"no answer but {error!r}: {call}")
        return
    tally.note(status, str(call))
    if status >= 400 and call.method != "HEAD" and not _is_problem(status, content_type, content):
        tally.failures.append(f"{status} without a problem document, but {content_type} {content[:100]!r}: {call}")
    if status < 400 and content_type == MSGPACK:
        msgpack.unpackb(content)


def _is_problem(status: int, content_type: str, content: bytes) -> bool:
    if content_type != PROBLEM:
        return False
    document: Any = json.loads(content)
    return bool(document["status"] == status and document["title"] and document["detail"])
