"""HTTP server: connections, limits, sockets and TLS. Only this package and `startup` import uvicorn or httptools."""
