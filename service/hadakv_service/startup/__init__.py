"""Start of the program: reads the settings first, and imports the service only if they are valid."""
