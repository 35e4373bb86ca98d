"""What a cluster on Ray goes through, in a process of its own: `python -m tests.ray_scenarios FOLDER`.

Three nodes of one Ray on this machine. Each scenario's facts go to FOLDER/facts.json under its name; one that fails
leaves its traceback there.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_memory_monitor_refresh_ms": "0",  # in a container it takes mapped pages for lack of memory
}

import ray
from click.testing import CliRunner
from ray.cluster_utils import Cluster

import tttnn
from tests.clusters import ROWS
from tests.encoders import save_encoder
from tttnn.cli.program import app
from tttnn.cluster.build_plan import BuildPlan, shard_path, unfinished_path
from tttnn.cluster.document_id import DocumentId
from tttnn.cluster.manifest import add_shards, replace_shard
from tttnn.cluster.ray_build import build_cluster
from tttnn.cluster.running import describe_cluster, start_cluster
from tttnn.config import ClusterConfig, CorpusConfig, DatastoreConfig, EmbedConfig, IndexConfig, StoreConfig

SHARDS = 3
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}
QUERIES = ("moon cat sort", "moon 1 cat", "zzz")
TEXTS = [row.text for row in ROWS] + [f"story {i}: " + "a word or two " * (i % 40) for i in range(1500)]


def plan_of(corpus: Path, encoder: str) -> BuildPlan:
    index = IndexConfig(backend="exact")
    return BuildPlan.of(
        [corpus], SHARDS, encoder, CorpusConfig(), DatastoreConfig(), index, EmbedConfig(), StoreConfig()
    )


def begun() -> Cluster:
    """Return a Ray of one node; Ray gives up after 30 seconds, which other work on the machine may take."""
    for left in (2, 1, 0):
        try:
            return Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        except Exception as error:
            if not left or "timed out during startup" not in str(error):
                raise
    raise AssertionError("the last try returns or raises")


class Scenarios:
    """The cluster, and what it goes through in this order."""

    def __init__(self, folder: Path) -> None:
        (folder / "encoder").mkdir()
        self.folder = folder
        self.commands: dict[str, Any] = {}
        """What commands printed, by their name."""
        self.encoder = str(save_encoder(folder / "encoder"))
        self.corpus = folder / "corpus.jsonl"
        self.corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
        self.place = folder / "pile"
        self.embedder = tttnn.Embedder.load(self.encoder, threads=1)
        self.cluster = begun()
        self.nodes = [self.cluster.add_node(**NODE) for _ in range(2)]
        self.cluster.wait_for_nodes()
        ray.init(address=self.cluster.address, namespace="tttnn", log_to_driver=False)

    def connect(self, **settings: Any) -> tttnn.ClusterDatastore:
        return tttnn.ClusterDatastore.connect(
            "pile", self.embedder, address=self.cluster.address, config=ClusterConfig(**settings)
        )

    def printed(self, *arguments: str) -> Any:
        """Run a command here, connected as this process is; return the JSON that it prints."""
        ran = CliRunner().invoke(app, [*arguments, "--json"])
        assert ran.exit_code == 0, (arguments, ran.output, ran.exception)
        return json.loads(ran.stdout)

    def build_with_kills(self) -> dict[str, Any]:
        """SIGKILL what builds, at moments drawn by seed, and compare with shards that nobody disturbed."""
        draw, killed, over = random.Random(7), [], threading.Event()
        kills = int(os.environ.get("TTTNN_KILLS", "2"))

        def kill() -> None:
            while len(killed) < kills and not over.is_set():
                writing = [n for n in range(SHARDS) if unfinished_path(self.place, n).exists()]
                pids = builders()
                if writing and pids:
                    time.sleep(draw.uniform(0, 2.0))
                    pid = draw.choice(pids)
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                    killed.append(time.monotonic())
                    time.sleep(draw.uniform(0, 3.0))
                time.sleep(0.02)

        killer = threading.Thread(target=kill)
        killer.start()
        told: list[Any] = []
        plan = plan_of(self.corpus, self.encoder)
        manifest = build_cluster(self.place, plan, address=self.cluster.address, on_progress=told.append)
        over.set()
        killer.join()
        ids = []
        for n in range(SHARDS):
            path = self.folder / f"undisturbed-{n}"
            part = plan.shards[n].documents(CorpusConfig())
            with tttnn.Datastore.build(path, part, self.embedder, index=IndexConfig(backend="exact")) as built:
                ids.append(built.id)
        command = ["cluster", "build", str(self.corpus), str(self.place), "--shards", str(SHARDS), "--backend", "exact"]
        self.commands["cluster build"] = again = self.printed(*command, "--embedder", self.encoder)
        return {
            "kills": len(killed),
            "documents": manifest.documents,
            "same": [shard.id for shard in manifest.shards] == ids,
            "again": again["id"] == manifest.id,
            "left": sorted(p.name for p in (self.place / "shards").iterdir()),
            "told": len(told[-1]),
        }

    def failed_build(self) -> dict[str, Any]:
        """A corpus that is none is the error of its shard; the other one is built, and not built again."""
        good, bad = self.folder / "good.jsonl", self.folder / "bad.jsonl"
        good.write_text('{"text": "a text"}\n')
        bad.write_text("")
        settings = (CorpusConfig(), DatastoreConfig(), IndexConfig(), EmbedConfig(), StoreConfig())
        plan = BuildPlan.of([good, bad], None, self.encoder, *settings)
        place = self.folder / "half"
        said = raised(lambda: build_cluster(place, plan, address=self.cluster.address))
        before = shard_path(place, 0).stat().st_ino
        bad.write_text('{"text": "another text"}\n')
        manifest = build_cluster(place, plan, address=self.cluster.address)
        other = BuildPlan.of([good], None, self.encoder, *settings)
        return {
            "said": said,
            "documents": manifest.documents,
            "kept": shard_path(place, 0).stat().st_ino == before,
            "other": raised(lambda: build_cluster(place, other)),
        }

    def answers(self) -> dict[str, Any]:
        """Start two replicas a shard, and compare with one datastore; commands take the cluster by its name."""
        described = self.printed("cluster", "start", str(self.place), "--replicas", "2")
        self.commands["cluster start"] = described
        whole = tttnn.Datastore.build(
            self.folder / "whole", self.corpus, self.embedder, index=IndexConfig(backend="exact")
        )
        same = []
        with self.connect() as cluster:
            for query in QUERIES:
                for k in (1, 7, len(TEXTS)):
                    one, many = whole.search(query, k), cluster.search(query, k)
                    # Of equal distances the shards' order is another; all of them are there where all are asked for.
                    same.append([n.distance for n in one] == [n.distance for n in many])
                    if k == len(TEXTS):
                        rows = [sorted((n.distance, n.text) for n in result) for result in (one, many)]
                        same.append(rows[0] == rows[1])
        found = self.printed("search", "--cluster", "pile", QUERIES[0], "-k", "3")
        self.commands["cluster status"] = status = self.printed("cluster", "status", "pile")
        told = [replica for shard in status["shards"] for replica in shard["replicas"]]
        return {
            "same": all(same),
            "compared": len(same),
            "nodes": [len({r["node_id"] for r in shard["replicas"]}) for shard in described["shards"]],
            "command": [found["coverage"]["full"], len(found["neighbors"])],
            "status": [sum(r["queries"] > 0 for r in told), all(r["memory_bytes"] > 0 for r in told)],
            "twice": raised(lambda: start_cluster(self.place, "pile", address=self.cluster.address)),
        }

    def changes(self) -> dict[str, Any]:
        """Add a shard, replace it and delete while another thread asks: each answer is of one state, whole."""
        wrong: list[str] = []
        over = threading.Event()
        asked = [0]

        def ask() -> None:
            with self.connect() as mine:
                while not over.is_set():
                    found = mine.search("moon 1 cat", 20)
                    asked[0] += 1
                    if found.coverage is None or not found.coverage.full or len(found) != 20:
                        wrong.append(repr(found))

        thread = threading.Thread(target=ask)
        thread.start()
        facts: dict[str, Any] = {}
        with self.connect() as cluster:
            first = cluster.search("moon 1 cat", 1)[0]
            facts["deleted"] = cluster.delete([first.id])
            facts["gone"] = first.id not in [n.id for n in cluster.search("moon 1 cat", 60)]
            for name, text, change in (
                ("added", "moon 1 cat new", lambda path: add_shards(self.place, [path])),
                ("replaced", "moon 1 cat newer", lambda path: replace_shard(self.place, SHARDS, path)),
            ):
                path = self.folder / name
                tttnn.Datastore.build(path, [text], self.embedder, index=IndexConfig(backend="exact")).close()
                change(path)
                found = cluster.search("moon 1 cat new", 60)
                facts[name] = [n.text for n in found if n.id == DocumentId.of(SHARDS, 0)]
            facts["documents"] = [len(cluster), len(TEXTS)]
        over.set()
        thread.join()
        return facts | {"asked": asked[0], "wrong": wrong[:3]}

    def node_lost(self) -> dict[str, Any]:
        """SIGKILL a node and its processes while queries go on: answers are complete, or say what is missing."""
        count = int(os.environ.get("TTTNN_QUERIES", "60"))
        with self.connect(on_missing_shard="partial", shard_deadline_seconds=20.0) as cluster:
            k = 40
            expected = [(n.id, n.distance, n.text) for n in cluster.search("moon 1 cat", k)]
            answers: list[dict[str, Any]] = []
            for i in range(count):
                if i == count // 4:
                    kill_node(self.cluster, self.nodes[0])
                began = time.perf_counter()
                found = cluster.search("moon 1 cat", k)
                seconds = time.perf_counter() - began
                coverage = found.coverage
                assert coverage is not None
                rows = [(n.id, n.distance, n.text) for n in found]
                missing = {f.shard for f in coverage.failures} if not coverage.full else set()
                right = rows == expected if coverage.full else _part(rows, expected, missing)
                answers.append({"seconds": seconds, "full": coverage.full, "right": right})
        times = sorted(a["seconds"] for a in answers)
        until = time.monotonic() + 120
        while time.monotonic() < until:
            described = describe_cluster("pile", address=self.cluster.address)
            lost = [r["error"] for shard in described["shards"] for r in shard["replicas"] if "error" in r]
            if not lost:
                break
            time.sleep(1)
        return {
            "queries": len(answers),
            "full": sum(a["full"] for a in answers),
            "wrong": sum(not a["right"] for a in answers),
            "p50": times[len(times) // 2],
            "p50_before": sorted(a["seconds"] for a in answers[: count // 4])[count // 8],
            "longest": times[-1],
            "healed": lost == [],
        }

    def stopped(self) -> dict[str, Any]:
        """After stop nothing is left, and who is still connected is told; a damaged shard does not begin."""
        with self.connect() as cluster:
            self.commands["cluster stop"] = self.printed("cluster", "stop", "pile")
            after = raised(lambda: cluster.search("moon", 1))
        left = [name for name in ray.util.list_named_actors() if name.startswith("pile")]
        older = shard_path(self.place, 1) / "manifest.json"
        text = older.read_text()
        older.write_text(text.replace('"documents": ', '"documents": 1', 1))
        damaged = raised(lambda: start_cluster(self.place, "pile", replicas=1, address=self.cluster.address))
        older.write_text(text)
        return {
            "stopped": self.commands["cluster stop"]["stopped"],
            "commands": self.commands,
            "after": after,
            "left": left,
            "damaged": damaged,
            "unknown": raised(lambda: tttnn.ClusterDatastore.connect("nothing", address=self.cluster.address)),
        }


def _part(rows: list[Any], expected: list[Any], missing: set[int]) -> bool:
    """Say whether an answer without some shards begins with what the whole one has from the others."""
    kept = [row for row in expected if row[0].shard not in missing]
    return rows[: len(kept)] == kept


def raised(call: Callable[[], Any]) -> str:
    """Return the message of the error that a call raises."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def builders() -> list[int]:
    """Return the processes of this Ray that build a shard."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and entry.joinpath("cmdline").read_bytes().startswith(b"ray::_task"):
                parent = int(entry.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1])
                if parent in RAYLETS:
                    found.append(int(entry.name))
        except OSError:
            continue  # has ended
    return found


RAYLETS: set[int] = set()


def raylet_of(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def kill_node(cluster: Any, node: Any) -> None:
    """SIGKILL a node's raylet and every process that it started."""
    raylet = raylet_of(node)
    children = [
        int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and parent_of(entry) == raylet
    ]
    for pid in (*children, raylet):
        os.kill(pid, signal.SIGKILL)
    cluster.remove_node(node, allow_graceful=False)


def parent_of(entry: Path) -> int:
    try:
        return int(entry.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def main(folder: Path) -> None:
    facts: dict[str, Any] = {}
    began = time.monotonic()
    scenarios = Scenarios(folder)
    RAYLETS.update(raylet_of(node) for node in (scenarios.cluster.head_node, *scenarios.nodes))
    facts["seconds"] = {"begin": time.monotonic() - began}
    for name in ("build_with_kills", "failed_build", "answers", "changes", "node_lost", "stopped"):
        began = time.monotonic()
        try:
            facts[name] = getattr(scenarios, name)()
        except Exception:
            facts[name] = {"failed": traceback.format_exc()}
        facts["seconds"][name] = time.monotonic() - began
        (folder / "facts.json").write_text(json.dumps(facts))
    ray.shutdown()
    scenarios.cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
