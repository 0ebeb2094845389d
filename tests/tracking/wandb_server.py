"""A local stand-in for W&B's server: it accepts `wandb sync` and live runs, and answers `wandb.Api()`.

W&B's own client and core talk to it, so a test of ours that passes has gone through the real ones. It knows only what
they ask; anything else is kept in ``unknown``, and a filter that it cannot apply is an error.
"""

import gzip
import json
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "us"


@dataclass
class Stored:
    """A run as the server stores it."""

    name: str
    project: str
    attributes: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    files: set[str] = field(default_factory=set)
    state: str = "running"

    def node(self) -> dict[str, Any]:
        """Return the run in the form of the GraphQL API."""
        last = max((row["_step"] for row in self.rows), default=-1)
        return {
            "id": self.name,
            "name": self.name,
            "displayName": self.name,
            "projectId": 1,
            "state": self.state,
            "tags": self.attributes.get("tags") or [],
            "group": self.attributes.get("groupName"),
            "jobType": self.attributes.get("jobType"),
            "commit": self.attributes.get("commit"),
            "config": json.dumps(self.config),
            "summaryMetrics": json.dumps(self.summary),
            "systemMetrics": json.dumps(self.events[-1] if self.events else {}),
            "historyLineCount": len(self.rows),
            "historyKeys": {"lastStep": last, "keys": {}},
            "user": {"name": "u", "username": "u"},
            **dict.fromkeys(("sweepName", "readOnly", "createdAt", "heartbeatAt", "description", "notes")),
        }

    def fits(self, filters: dict[str, Any]) -> bool:
        """Return True if the run passes the filters of a query."""
        return all(_holds(self._value(key), wanted) for key, wanted in filters.items())

    def _value(self, key: str) -> Any:
        if key.startswith("config."):
            return self.config.get(key.removeprefix("config."), {}).get("value")
        return self.node()[key]


def _holds(value: Any, wanted: Any) -> bool:
    if not isinstance(wanted, dict):
        return bool(value == wanted)
    ((operator, operand),) = wanted.items()
    return {"$in": lambda: value in operand, "$ne": lambda: value != operand}[operator]()  # KeyError: not implemented


class WandbServer:
    """An HTTP server, used as ``with WandbServer() as server:``; ``server.environment`` points clients to it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # each request has its own thread
        self.runs: dict[str, Stored] = {}
        self.asked: list[str] = []  # names of all operations that were requested
        self.unknown: list[str] = []
        self.views: dict[str, dict[str, Any]] = {}  # workspaces and reports, by id
        self._known: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "Viewer": self._viewer,
            "GetDefaultEntity": self._viewer,
            "UpsertBucket": self._keep,
            "RunResumeStatus": self._resume,
            "OrganizationCoreWeaveOrganizationID": self._organization,
            "CreateRunFiles": self._files,
            "Runs": self._page_of_runs,
            "Run": self._one_run,
            "RunHistoryKeys": self._one_run,
            "RunParquetHistory": self._history,
            "HistoryPage": self._history_page,
            "SampledHistoryPage": self._sampled,
            "GetProjects": self._projects,
            "UpsertView2": self._keep_view,
            "upsertView": self._keep_view,
            "View": self._view_of_workspace,
            "SpecificReport": self._view_of_report,
        }
        owner = self

        class Handler(_Handler):
            server_of = owner

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make W&B's programs use this server."""
        return self.environment_of(self.url)

    @staticmethod
    def environment_of(url: str) -> dict[str, str]:
        """Return the variables that make W&B's programs use the server at ``url``."""
        key = "0123456789abcdef01234567" + "0" * 16
        return {"WANDB_BASE_URL": url, "WANDB_API_KEY": key, "WANDB_ERROR_REPORTING": "false"}

    def __enter__(self) -> "WandbServer":
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    # ------------------------------------------------------------------------------------------------------ operations

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Return the ``data`` of the answer to a GraphQL query."""
        name = re.search(r"(?:query|mutation)\s+(\w+)", query)
        operation = name[1] if name else query[:40]
        self.asked.append(operation)
        known = self._known.get(operation)
        if known is None:
            self.unknown.append(f"{operation}: {query} {json.dumps(variables)}")
            return {}
        return known(variables)

    def _viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        viewer = {"id": "VXNlcjox", "entity": ENTITY, "username": "u", "email": "u@example.org", "flags": "{}"}
        return {"viewer": {**viewer, "teams": {"edges": []}}}

    def _keep(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        inserted = run is None
        run = run or Stored(variables["name"], variables["project"])
        self.runs[run.name] = run
        run.attributes |= {key: value for key, value in variables.items() if value is not None}
        run.config |= json.loads(variables.get("config") or "{}")
        run.state = "running" if inserted else run.state
        project = {"id": "UHJvamVjdDox", "name": run.project, "entity": {"id": "RW50aXR5OjE=", "name": ENTITY}}
        bucket = {"id": run.name, "name": run.name, "displayName": run.name, "description": None, "sweepName": None}
        about = {"config": json.dumps(run.config), "project": project, "historyLineCount": len(run.rows)}
        return {"upsertBucket": {"bucket": {**bucket, **about}, "inserted": inserted}}

    def _resume(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Return the state that a resuming client asks for; a new run has none."""
        run = self.runs.get(variables["name"])
        model = {"id": "UHJvamVjdDox", "name": variables["project"], "entity": {"id": "RW50aXR5OjE=", "name": ENTITY}}
        if run is None:
            return {"model": {**model, "bucket": None}}
        counts = {"logLineCount": 0, "historyLineCount": len(run.rows), "eventsLineCount": len(run.events)}
        tails = {
            "historyTail": json.dumps([json.dumps(row) for row in run.rows[-1:]]),
            "eventsTail": json.dumps([json.dumps(event) for event in run.events[-1:]]),
        }
        started = json.dumps({"t": run.config.get("_wandb", {}).get("value", {}).get("t")})
        known = {name: run.node()[name] for name in ("id", "name", "displayName", "summaryMetrics", "config", "tags")}
        return {"model": {**model, "bucket": {**known, **counts, **tails, "notes": None, "wandbConfig": started}}}

    def _organization(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def _files(self, variables: dict[str, Any]) -> dict[str, Any]:
        names = variables["files"]
        self.runs[variables["run"]].files |= set(names)
        urls = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in names]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": urls}}

    def _page_of_runs(self, variables: dict[str, Any]) -> dict[str, Any]:
        filters = json.loads(variables["filters"] or "{}")
        fitting = [run for run in self.runs.values() if run.project == variables["project"] and run.fits(filters)]
        if variables["project"] not in {run.project for run in self.runs.values()}:
            return {"project": None}
        begin = int(variables.get("cursor") or 0)
        page = fitting[begin : begin + variables["perPage"]]
        edges = [{"node": run.node(), "cursor": str(begin + place)} for place, run in enumerate(page, start=1)]
        more = begin + len(page) < len(fitting)
        about = {"edges": edges, "pageInfo": {"endCursor": str(begin + len(page)), "hasNextPage": more}}
        return {"project": {"internalId": "1", "runCount": len(fitting), "readOnly": False, "runs": about}}

    def _one_run(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        return {"project": {"run": run.node() if run else None}}

    def _history(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Return the whole history as live data; the real server puts longer ones into parquet files."""
        run = self.runs.get(variables["runName"])
        history = {"parquetHistory": {"parquetUrls": [], "liveData": run.rows}} if run else None
        return {"project": {"run": history}}

    def _history_page(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Return the rows of a range of steps, which is asked for when no keys are named."""
        rows = self.runs[variables["run"]].rows[variables["minStep"] : variables["maxStep"]]
        return {"project": {"run": {"history": [json.dumps(row) for row in rows]}}}

    def _sampled(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Return the rows that have all requested keys."""
        spec = json.loads(variables["spec"])
        rows = [row for row in self.runs[variables["run"]].rows if spec["minStep"] <= row["_step"] <= spec["maxStep"]]
        page = [{key: row[key] for key in spec["keys"]} for row in rows if set(spec["keys"]) <= set(row)]
        return {"project": {"run": {"sampledHistory": [page[: spec["samples"]]]}}}

    # ----------------------------------------------------------------------------------------------------- dashboards

    def _projects(self, _: dict[str, Any]) -> dict[str, Any]:
        names = sorted({run.project for run in self.runs.values()} | {"p"})
        common = {"entityName": ENTITY, "createdAt": "2026-11-25T00:00:00Z", "isBenchmark": False, "user": None}
        edges = [{"node": {"id": name, "name": name, **common}} for name in names]
        return {"models": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}

    def _keep_view(self, variables: dict[str, Any]) -> dict[str, Any]:
        known = variables.get("id")
        name = known or f"Vmlldzo{len(self.views) + 1}"
        self.views[name] = {**self.views.get(name, {}), **variables, "id": name}
        return {"upsertView": {"view": self._shown(name), "inserted": known is None}}

    def _view_of_workspace(self, variables: dict[str, Any]) -> dict[str, Any]:
        fitting = [name for name, view in self.views.items() if view["name"] == variables["viewName"]]
        return {"project": {"allViews": {"edges": [{"node": self._shown(name)} for name in fitting]}}}

    def _view_of_report(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"view": self._shown(variables["reportId"])}

    def _shown(self, name: str) -> dict[str, Any]:
        view = self.views[name]
        project = {"id": "1", "name": view["projectName"], "entityName": view["entityName"]}
        wanted = {key: view.get(key) for key in ("id", "type", "name", "displayName", "description", "spec")}
        return {**wanted, "project": project, "createdAt": None, "updatedAt": None}

    # ----------------------------------------------------------------------------------------------------- file stream

    def stream(self, run: Stored, body: dict[str, Any]) -> None:
        """Store a chunk of history, events or summary of a live run."""
        for name, chunk in (body.get("files") or {}).items():
            lines = [json.loads(line) for line in chunk["content"]]
            if name == "wandb-history.jsonl":
                run.rows[chunk["offset"] :] = lines
            elif name == "wandb-events.jsonl":
                run.events[chunk["offset"] :] = lines
            elif name == "wandb-summary.json":
                run.summary = lines[-1]
        if body.get("complete"):
            run.state = "finished" if body.get("exitcode") == 0 else "failed"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: WandbServer

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        ours = self.server_of
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            asked = json.loads(body)
            with ours.lock:
                answer = {"data": ours.answer(asked["query"], asked.get("variables") or {})}
        elif stream := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            with ours.lock:
                ours.stream(ours.runs[stream[1]], json.loads(body))
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = _serve

    def handle(self) -> None:
        """Handle a request; a client that disconnects is no error."""
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, *_: object) -> None:
        """Do not log requests."""
