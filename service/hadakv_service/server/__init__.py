"""HTTP server: connections, limits, sockets and TLS. Only this package and `__main__` import uvicorn or httptools."""
