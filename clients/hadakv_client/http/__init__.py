"""HTTP layer of the client: builds requests, parses responses, and adapts httpx."""
