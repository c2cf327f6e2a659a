"""SQLite files as nsys exports them, with known times: the tables of its documented schema that the report reads."""

import sqlite3
from pathlib import Path

PROCESS = (1 << 56) | (4242 << 24)  # globalPid
THREAD = PROCESS | 4243  # globalTid
PUSH_POP = 59  # eventType of a range that a thread pushes and pops

# With every column that the schema declares NOT NULL, as in a real file.
SCHEMA = {
    "StringIds": "id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL",
    "TARGET_INFO_GPU": "vmId INTEGER, id INTEGER, name TEXT, busLocation TEXT",
    "NVTX_EVENTS": "start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL, rangeId INTEGER, "
    "category INTEGER, color INTEGER, text TEXT, globalTid INTEGER, endGlobalTid INTEGER, textId INTEGER, "
    "domainId INTEGER",
    "CUPTI_ACTIVITY_KIND_RUNTIME": "start INTEGER NOT NULL, end INTEGER NOT NULL, eventClass INTEGER NOT NULL, "
    "globalTid INTEGER, correlationId INTEGER, nameId INTEGER NOT NULL, returnValue INTEGER NOT NULL, "
    "callchainId INTEGER",
    "CUPTI_ACTIVITY_KIND_KERNEL": "start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL, "
    "contextId INTEGER NOT NULL, streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER, "
    "demangledName INTEGER NOT NULL, shortName INTEGER NOT NULL, mangledName INTEGER, launchType INTEGER, "
    "registersPerThread INTEGER NOT NULL, gridX INTEGER NOT NULL, gridId INTEGER NOT NULL, graphNodeId INTEGER",
    "CUPTI_ACTIVITY_KIND_MEMCPY": "start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL, "
    "contextId INTEGER NOT NULL, streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER, "
    "bytes INTEGER NOT NULL, copyKind INTEGER NOT NULL, graphNodeId INTEGER",
    "CUPTI_ACTIVITY_KIND_MEMSET": "start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL, "
    "contextId INTEGER NOT NULL, streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER, "
    "value INTEGER NOT NULL, bytes INTEGER NOT NULL, graphNodeId INTEGER, memKind INTEGER",
    "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": "start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL, "
    "contextId INTEGER NOT NULL, greenContextId INTEGER, streamId INTEGER NOT NULL, correlationId INTEGER, "
    "globalPid INTEGER, graphId INTEGER NOT NULL, graphExecId INTEGER NOT NULL",
    "CUDA_GRAPH_NODE_EVENTS": "start INTEGER NOT NULL, end INTEGER NOT NULL, eventClass INTEGER NOT NULL, "
    "globalTid INTEGER, nameId INTEGER NOT NULL, graphNodeId INTEGER NOT NULL, originalGraphNodeId INTEGER",
}


class Export:
    """Writes a file. Times are given in microseconds and stored in nanoseconds, as nsys does.

    A table is created with its first row, since nsys leaves out empty tables.
    """

    def __init__(self, path: Path, gpu: str = "NVIDIA H100 80GB HBM3"):
        self.path = path
        self._connection = sqlite3.connect(path)
        self._strings: dict[str, int] = {}
        self._correlation = 0
        self.insert("TARGET_INFO_GPU", name=gpu, id=0)

    def close(self) -> Path:
        self._connection.commit()
        self._connection.close()
        return self.path

    def insert(self, table: str, **values: object) -> None:
        self._connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({SCHEMA[table]})")
        required = {c.split()[0]: 0 for c in SCHEMA[table].split(", ") if "NOT NULL" in c and "KEY" not in c}
        row = required | values
        names = ", ".join(f'"{name}"' for name in row)
        marks = ", ".join("?" * len(row))
        self._connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(row.values()))

    def string(self, text: str) -> int:
        if text not in self._strings:
            self._strings[text] = len(self._strings) + 1
            self.insert("StringIds", id=self._strings[text], value=text)
        return self._strings[text]

    def range(self, name: str, start: int, end: int, *, registered: bool = False, thread: int = THREAD) -> None:
        """Add a range; the text of one with a registered string is in StringIds."""
        text = {"textId": self.string(name)} if registered else {"text": name}
        self.insert(
            "NVTX_EVENTS", start=start * 1000, end=end * 1000, eventType=PUSH_POP, globalTid=thread, domainId=0, **text
        )

    def launch(self, time: int, call: str = "cudaLaunchKernel_v7000", *, thread: int = THREAD) -> int:
        """Add a CUDA call that launches work; returns its correlation id."""
        self._correlation += 1
        self.insert(
            "CUPTI_ACTIVITY_KIND_RUNTIME",
            start=time * 1000,
            end=(time + 5) * 1000,
            globalTid=thread,
            correlationId=self._correlation,
            nameId=self.string(call),
        )
        return self._correlation

    def kernel(
        self,
        name: str,
        start: int,
        end: int,
        launched: int | None = None,
        *,
        correlation: int | None = None,
        node: int | None = None,
        stream: int = 7,
    ) -> None:
        """Add a kernel, launched by a new call at `launched`, by the call `correlation`, or by an unrecorded call."""
        if launched is not None:
            correlation = self.launch(launched)
        self.insert(
            "CUPTI_ACTIVITY_KIND_KERNEL",
            start=start * 1000,
            end=end * 1000,
            correlationId=correlation,
            globalPid=PROCESS,
            demangledName=self.string(name),
            shortName=self.string(name.split("<")[0].split("::")[-1]),
            streamId=stream,
            graphNodeId=node,
        )

    def copy(self, kind: int, start: int, end: int, launched: int) -> None:
        self.insert(
            "CUPTI_ACTIVITY_KIND_MEMCPY",
            start=start * 1000,
            end=end * 1000,
            correlationId=self.launch(launched, "cudaMemcpyAsync_v3020"),
            globalPid=PROCESS,
            copyKind=kind,
        )

    def node(self, node: int, time: int, original: int | None = None) -> None:
        """Add the creation of a graph's node, or of its clone when the graph is instantiated."""
        self.insert(
            "CUDA_GRAPH_NODE_EVENTS",
            start=time * 1000,
            end=time * 1000,
            globalTid=THREAD,
            graphNodeId=node,
            originalGraphNodeId=original,
        )
