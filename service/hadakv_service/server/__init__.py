"""HTTP server: connections, limits, sockets and TLS. The only package that imports httptools."""
