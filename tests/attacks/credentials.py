"""Requests without a valid token, or with the token of another tenant."""

from attacks.attack import (
    BODY,
    SECRET,
    TOKENS,
    K,
    Outcome,
    Target,
    V,
    append_head,
    attack,
    described,
    head,
    statuses,
    summary,
)
from support.contract import Answer

CALLS = [
    ("POST", f"/sessions/{SECRET}/kv"),
    ("GET", f"/sessions/{SECRET}/kv"),
    ("PUT", f"/sessions/{SECRET}"),
    ("DELETE", f"/sessions/{SECRET}"),
    ("POST", f"/sessions/{SECRET}/truncate"),
    ("POST", f"/sessions/{SECRET}/fork"),
    ("GET", "/sessions"),
    ("POST", "/encode"),
    ("GET", "/metrics"),
]


def every_call(target: Target, *authorizations: str) -> list[Answer]:
    with target.caller(None) as stranger:
        return [
            stranger.send(method, path, BODY, **({"authorization": words} if words else {}))
            for method, path in CALLS
            for words in authorizations
        ]


@attack("no token")
def no_token(target: Target) -> Outcome:
    answers = every_call(target, "")

    return Outcome(f"{len(CALLS)} calls", summary(answers), {a.status for a in answers} == {401})


@attack("wrong token")
def wrong_token(target: Target) -> Outcome:
    right = TOKENS["alice"]
    wrong = (
        "Bearer",
        "Bearer x",
        f"Bearer {right}x",
        f"Bearer {right[:-1]}",
        f"Basic {right}",
        right,
        f"Bearer {right.upper()}",
    )

    answers = every_call(target, *wrong)

    return Outcome(f"{len(CALLS)} calls, {len(wrong)} tokens", summary(answers), {a.status for a in answers} == {401})


@attack("a token beside another")
def two_tokens(target: Target) -> Outcome:
    received = target.exchange(head("GET", f"/sessions/{SECRET}", "Authorization: Bearer x", tenant="alice"))
    turned = target.exchange(
        head(
            "GET",
            f"/sessions/{SECRET}",
            "Authorization: Bearer x",
            f"Authorization: Bearer {TOKENS['alice']}",
            tenant=None,
        )
    )

    return Outcome("two Authorization headers", described(received), statuses(received) == statuses(turned) == [401])


@attack("a token in the address")
def token_in_address(target: Target) -> Outcome:
    token = TOKENS["alice"]
    received = target.exchange(head("GET", f"/sessions/{SECRET}?token={token}&access_token={token}", tenant=None))

    return Outcome("token as a query parameter", described(received), statuses(received) == [401])


# Mallory has a token; the session is Alice's.


@attack("another tenant's session: read")
def read_others(target: Target) -> Outcome:
    with target.caller("mallory") as mallory:
        answers = [mallory.get(f"/sessions/{SECRET}/kv"), mallory.get(f"/sessions/{SECRET}")]

    return Outcome("GET of it and of its K and V", summary(answers), {a.status for a in answers} == {404})


@attack("another tenant's session: append")
def append_to_others(target: Target) -> Outcome:
    # The id is free in Mallory's namespace. A session of her own is created, and Alice's is not changed.
    with target.caller("mallory") as mallory:
        at_end = mallory.append(SECRET, V, K, position=K.shape[2])
        own = mallory.append(SECRET, V, K)
        seen = mallory.read(SECRET)["length"]
        mallory.delete(f"/sessions/{SECRET}")

    return Outcome(
        "appends at its end, and anywhere",
        f"{summary([at_end, own])}: a session of her own",
        (at_end.status, own.status, seen) == (409, 201, K.shape[2]),
    )


@attack("another tenant's session: fork")
def fork_others(target: Target) -> Outcome:
    with target.caller("mallory") as mallory:
        answer = mallory.post(f"/sessions/{SECRET}/fork", {"id": "copy"})

    return Outcome("fork of it", summary([answer]), answer.status == 404)


@attack("another tenant's session: truncate")
def truncate_others(target: Target) -> Outcome:
    with target.caller("mallory") as mallory:
        answer = mallory.post(f"/sessions/{SECRET}/truncate", {"length": 0})

    return Outcome("truncation to nothing", summary([answer]), answer.status == 404)


@attack("another tenant's session: delete")
def delete_others(target: Target) -> Outcome:
    with target.caller("mallory") as mallory:
        answer = mallory.delete(f"/sessions/{SECRET}")

    return Outcome("DELETE of it", summary([answer]), answer.status == 404)


@attack("another tenant's session: PUT")
def put_others(target: Target) -> Outcome:
    # As with an append, a session of her own is created. It reveals nothing about Alice's.
    with target.caller("mallory") as mallory:
        answer = mallory.put(f"/sessions/{SECRET}", {"layers": 7, "window": 1})
        layers = answer.body.get("declared_layers")
        mallory.delete(f"/sessions/{SECRET}")

    return Outcome(
        "PUT with another shape", f"{summary([answer])}: a session of her own", (answer.status, layers) == (201, 7)
    )


@attack("another tenant's session: list")
def list_others(target: Target) -> Outcome:
    with target.caller("mallory") as mallory:
        lists = [mallory.get("/sessions", prefix=prefix, limit=1000).body["sessions"] for prefix in ("", SECRET)]

    return Outcome("lists, of all and by its name", f"{sum(map(len, lists))} sessions", lists == [[], []])


@attack("a tenant's name as an id")
def tenant_as_id(target: Target) -> Outcome:
    ids = (f"alice/{SECRET}", f"alice%2f{SECRET}", f"../alice/{SECRET}", f"alice%00{SECRET}")
    received = [target.exchange(append_head(each, len(BODY)) + BODY) for each in ids]

    return Outcome("alice/secret, alice%2fsecret, ...", described(*received), set(statuses(*received)) <= {404, 422})
