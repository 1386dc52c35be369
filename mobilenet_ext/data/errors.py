"""What goes wrong with data."""


class DataError(Exception):
    """The data set is missing, incomplete or not what it should be; the message names the file."""
