"""Messages on the wire: msgpack and JSON bodies, and their types."""
