"""What is called in place of a command of the documentation: hands it to `commands.serve`.

    python -S stand_in.py NAME WORD …

Prints and reads what the command does, by its file descriptors, and ends with its exit code.
"""

import json
import os
import socket
import sys

with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.environ["DOCUMENTED_COMMANDS"])
    socket.send_fds(server, [b"+"], [0, 1, 2])
    asked = {"words": sys.argv[1:], "folder": os.getcwd(), "environ": dict(os.environ)}  # noqa: PTH109
    server.sendall(json.dumps(asked).encode())
    server.shutdown(socket.SHUT_WR)
    said = server.recv(16)
sys.exit(int(said) if said else "the command was ended")
