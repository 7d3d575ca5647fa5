"""Tools of the commands; but for `engine`, no file here needs another to be read."""
