"""Why a socket could not be bound, for the user."""

import errno


def reason(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "the address is in use; stop the program that has it or choose another"
        case errno.EACCES:
            return "no permission; ports below 1024 need privileges"
        case errno.EADDRNOTAVAIL:
            return "this machine has no such address"
        case errno.ENOENT:
            return "the folder does not exist"
    return error.strerror or str(error)
