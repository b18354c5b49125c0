"""Session ids with a special meaning in paths."""

from attacks.attack import BODY, SECRET, Outcome, Target, append_head, attack, described, head, statuses, summary


def tried(target: Target, sent: str, *ids: str) -> Outcome:
    """Append to, read and delete sessions of those ids. Every request must be rejected because of its path."""
    requests = [append_head(each, len(BODY)) + BODY for each in ids]
    requests += [head("GET", f"/sessions/{each}/kv") for each in ids] + [
        head("DELETE", f"/sessions/{each}") for each in ids
    ]
    answers = [target.exchange(request) for request in requests]
    with target.caller("mallory") as mallory:
        none_made = mallory.get("/sessions").body["sessions"] == []
    refused = all(set(statuses(answer)) <= {400, 404, 405, 422, 431} for answer in answers)
    return Outcome(sent, described(*answers), refused and none_made)


@attack("id: dots")
def dots(target: Target) -> Outcome:
    return tried(target, "`..`, `.`, `../healthz`", "..", ".", "../healthz", f"../../{SECRET}")


@attack("id: encoded dots")
def encoded_dots(target: Target) -> Outcome:
    return tried(target, "`%2e%2e`, `%2E`, `.%2e`", "%2e%2e", "%2E", ".%2e", f"%2e%2e%2f{SECRET}")


@attack("id: encoded slash")
def encoded_slash(target: Target) -> Outcome:
    return tried(target, "`a%2fb`, `%2F..%2F`, `a%5cb`", "a%2fb", "%2F..%2Fetc%2Fpasswd", "a%5cb", "a%252fb")


@attack("id: NUL and control characters")
def control_characters(target: Target) -> Outcome:
    return tried(target, "`a%00b`, `%0d%0a`, `%1b`", "a%00b", "%00", "a%0d%0aX:%20y", "%1b[2J")


@attack("id: very long")
def very_long(target: Target) -> Outcome:
    return tried(target, "129 to 1,000,000 letters", "a" * 129, "a" * 60_000, "a" * 1_000_000)


@attack("id: Unicode")
def unicode_(target: Target) -> Outcome:
    return tried(
        target, "é, fullwidth dots, RTL, not UTF-8", "%c3%a9", "%ef%bc%8e%ef%bc%8e", "%e2%80%ae", "%ff", "\xe9"
    )


@attack("id: of a fork")
def of_a_fork(target: Target) -> Outcome:
    ids = ["..", "../x", "a/b", "a\0b", "", "é", "a" * 129]
    with target.caller("alice") as alice:
        answers = [alice.post(f"/sessions/{SECRET}/fork", {"id": each}) for each in ids]

    return Outcome("the same, in the body", summary(answers), {answer.status for answer in answers} == {422})
