"""The failure signatures that a diagnosis looks for, one a file. A file that is added here is found by itself."""
