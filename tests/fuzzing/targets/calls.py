"""Target "calls": odd requests, one after another on a connection. Every error must be a problem document."""

import http.client
import json
import random
from typing import Any
from urllib.parse import urlsplit

import msgpack

from fuzzing.http_cases import Call, made
from fuzzing.report import Limit, Tally
from fuzzing.watch import monitored
from hadakv_service.testing import RunningService
from support.contract import MSGPACK, PROBLEM

TIMEOUT_SECONDS = 20.0


class Line:
    """Connection that is reused, and opened again after it was closed."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_SECONDS)

    def send(self, call: Call) -> tuple[int, str, bytes]:
        """Send a request; return the status, content type and content of the response.

        Raises:
            TimeoutError: there was no response in time.
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
    """Run the target."""
    tally, rng, line = Tally("calls"), random.Random(limit.seed), Line(service.url)
    for _ in monitored(service, limit, tally):
        judge(tally, line, made(rng))
    line.close()
    return tally


def judge(tally: Tally, line: Line, call: Call) -> None:
    """Send one request and check the response."""
    try:
        status, content_type, content = line.send(call)
    except TimeoutError:
        tally.record_timeout(str(call))
        return
    except (OSError, http.client.HTTPException) as error:
        tally.record(0, str(call))
        tally.failures.append(f"no response, {error!r}: {call}")
        return
    tally.record(status, str(call))
    if status >= 400 and call.method != "HEAD" and not _is_problem(status, content_type, content):
        tally.failures.append(f"{status} is no problem document: {content_type} {content[:100]!r}: {call}")
    if status < 400 and content_type == MSGPACK:
        msgpack.unpackb(content)


def _is_problem(status: int, content_type: str, content: bytes) -> bool:
    if content_type != PROBLEM:
        return False
    document: Any = json.loads(content)
    return bool(document["status"] == status and document["title"] and document["detail"])
