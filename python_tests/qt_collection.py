"""Qt resource collections, as Qt's tool rcc writes them."""

import struct
import zlib

COMPRESSED, FOLDER, ZSTANDARD = 1, 2, 4  # flags of a node


def collection(files, version=3, flags=0):
    """The bytes of a collection whose files, by name, lie in the folder "art"."""
    names, contents = b"", b""
    places = {}
    for name in ("art", *files):
        places[name] = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    nodes = [struct.pack(">IHII", 0, FOLDER, 1, 1), struct.pack(">IHII", places["art"], FOLDER, len(files), 2)]
    for name, content in files.items():
        stored = struct.pack(">I", len(content)) + zlib.compress(content) if flags & COMPRESSED else content
        nodes.append(struct.pack(">IHHHI", places[name], flags, 0, 1, len(contents)))
        contents += struct.pack(">I", len(stored)) + stored
    tree = b"".join(node + bytes(8 if version > 1 else 0) for node in nodes)  # from version 2 on with a time
    head = 20
    starts = (head, head + len(tree), head + len(tree) + len(contents))
    return struct.pack(">4sIIII", b"qres", version, *starts) + tree + contents + names
