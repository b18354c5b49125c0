"""One class per API operation. They run on the device thread and know nothing of HTTP."""
