"""Groups of calls, their order and their summaries on the documentation page."""

# Name and description of each group, and the summary of each of its calls by operationId.
GROUPS: dict[tuple[str, str], dict[str, str]] = {
    ("Sessions", "Store keys and values, read them, and manage the sessions that hold them."): {
        "createSession": "Create a session",
        "getSession": "Describe a session",
        "deleteSession": "Delete a session",
        "appendTokens": "Append tokens",
        "readTokens": "Read tokens",
        "truncateSession": "Delete the last tokens",
        "forkSession": "Fork a session",
        "listSessions": "List sessions",
        "exportSession": "Export a session to a file",
        "importSession": "Import a session from a file",
    },
    ("Codec", "Encode and decode tensors without a session."): {
        "encode": "Encode a tensor",
        "decode": "Decode a tensor",
    },
    ("Service", "Probes and metrics."): {
        "healthz": "Liveness",
        "readyz": "Readiness",
        "metrics": "Metrics for Prometheus",
    },
}
TAGS = [{"name": name, "description": description} for name, description in GROUPS]
# Group and summary of each call, in the order of the page.
PLACES = {call: (tag["name"], calls[call]) for tag, calls in zip(TAGS, GROUPS.values(), strict=True) for call in calls}
