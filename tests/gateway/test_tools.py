"""The reading tools, the toolbox that finds them, the catalog that lists them, the file that says where they reach."""

import ast
from pathlib import Path

import grpc.aio
import pytest
import yaml

from opsmesh.gateway.v1 import catalog_service_pb2, catalog_service_pb2_grpc
from opsmesh.tools.runbook.v1 import runbook_tool_service_pb2 as runbook_pb
from opsmesh.tools.runbook.v1 import runbook_tool_service_pb2_grpc as runbook_rpc
from opsmesh.tools.workload.v1 import workload_tool_service_pb2 as workload_pb
from services.gateway import backends, catalog
from services.gateway.domain import State
from services.gateway.runbook_index import Hit, Indexed
from services.gateway.tools.autoscaling import AutoscalingTools
from services.gateway.tools.change import ChangeTools
from services.gateway.tools.inventory import InventoryTools
from services.gateway.tools.logs import LogsTools
from services.gateway.tools.metrics import MetricsTools
from services.gateway.tools.notify import NotifyTools
from services.gateway.tools.runbook import RunbookTools
from services.gateway.tools.toolbox import Toolbox
from services.gateway.tools.workload import WorkloadTools, restart_ending
from services.mesh.call import working
from services.mesh.errors import BootError, Refusal
from services.mesh.tools import find_tool, tools
from tests.gateway.world import RESTART, TARGET, Mesh
from tests.mesh.world import ROOT

GATEWAY = ROOT / "services" / "gateway"
FORBIDDEN_MODULES = {"subprocess", "pty", "multiprocessing", "ctypes", "importlib", "runpy", "code", "requests"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "create_subprocess_exec", "create_subprocess_shell"}
FORBIDDEN_OS = ("exec", "spawn", "system", "popen", "fork", "posix_spawn")


def nodes(path: Path) -> list[ast.AST]:
    """Return all nodes of a file's syntax tree."""
    return list(ast.walk(ast.parse(path.read_text())))


@pytest.mark.parametrize("path", sorted(GATEWAY.rglob("*.py")), ids=lambda path: path.name)
def test_the_gateway_cannot_run_anything(path: Path) -> None:
    """No shell, subprocess, os.exec, eval or dynamic import in services/gateway."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            assert not {alias.name.partition(".")[0] for alias in node.names} & FORBIDDEN_MODULES
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in FORBIDDEN_MODULES
            assert not {alias.name for alias in node.names} & FORBIDDEN_CALLS
        elif isinstance(node, ast.Attribute):
            assert node.attr not in FORBIDDEN_CALLS
            if isinstance(node.value, ast.Name) and node.value.id == "os":
                assert not node.attr.startswith(FORBIDDEN_OS)
        elif isinstance(node, ast.Name):
            assert node.id not in FORBIDDEN_CALLS


@pytest.mark.parametrize("path", sorted(GATEWAY.rglob("*.py")), ids=lambda path: path.name)
def test_no_request_can_name_where_the_gateway_connects_to(path: Path) -> None:
    """Only tools/http.py uses an HTTP client, which takes a ConfiguredUrl, and only backends.py makes one."""
    imported = {alias.name for node in nodes(path) if isinstance(node, ast.Import) for alias in node.names}
    assert path.name == "http.py" or not imported & {"httpx", "socket", "http.client", "urllib.request", "aiohttp"}
    made = [
        node
        for node in nodes(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "ConfiguredUrl"
    ]
    assert path.name == "backends.py" or not made
    opened = {node.attr for node in nodes(path) if isinstance(node, ast.Attribute)}
    assert not opened & {"open_connection", "open_unix_connection", "create_connection", "ServerProxy"}


async def test_every_tool_of_the_idl_is_implemented() -> None:
    """The toolbox serves every tool there is."""
    assert [tool.name for tool in toolbox().tools()] == sorted(tools())


def test_an_rpc_without_a_method_stops_the_boot() -> None:
    """The error names the method to write."""

    class Half:
        service = WorkloadTools.service
        add = staticmethod(WorkloadTools.add)
        get_workload = WorkloadTools.get_workload
        check_health = WorkloadTools.check_health
        restart_workload = WorkloadTools.restart_workload

    with pytest.raises(BootError, match=r"write Half\.resolve_restart_workload"):
        Toolbox([Half()])


async def test_the_catalog_lists_the_tools_with_policy_and_digest(mesh: Mesh) -> None:
    """In pages, by name; the digest is that of the descriptors."""
    async with mesh.channel("operator") as channel:
        stub = catalog_service_pb2_grpc.CatalogServiceStub(channel)
        first = await stub.ListTools(catalog_service_pb2.ListToolsRequest(page_size=4))
        request = catalog_service_pb2.ListToolsRequest(page_token=first.next_page_token)
        second = await stub.ListTools(request)
    found = {one.tool: one for one in (*first.tools, *second.tools)}
    assert list(found) == sorted(tools())
    restart = found[RESTART]
    assert restart.descriptor_digest == catalog.digest(find_tool(RESTART)).hex()
    assert restart.policy.tool.resolve_rpc == "GetWorkload"
    assert len({one.descriptor_digest for one in found.values()}) == len(found)


@pytest.mark.parametrize(
    ("state", "process_id", "ending"),
    [
        (workload_pb.Workload.STATE_RUNNING, 8, State.SUCCEEDED),
        (workload_pb.Workload.STATE_RUNNING, 7, State.FAILED),
        (workload_pb.Workload.STATE_STOPPED, 0, State.FAILED),
        (workload_pb.Workload.STATE_FAILED, 0, State.FAILED),
        (workload_pb.Workload.STATE_STARTING, 8, None),
        (workload_pb.Workload.STATE_STOPPING, 7, None),
    ],
)
def test_how_a_restart_ended_is_read_off_the_process(
    state: "workload_pb.Workload.State.ValueType", process_id: int, ending: State | None
) -> None:
    """Another process: done; the same or none: failed; on its way: ask again."""
    found = workload_pb.GetWorkloadResponse(state=state, process_id=process_id)
    if ending is None:
        with pytest.raises(Refusal, match="BACKEND_UNAVAILABLE"):
            restart_ending(TARGET, {"process_id": "7"}, found)
    else:
        assert restart_ending(TARGET, {"process_id": "7"}, found).state is ending


async def test_an_unhealthy_workload_is_an_answer(tmp_path: Path) -> None:
    """Nobody listens: not healthy, status 0, with a reason."""
    workload = {"target_id": TARGET, "health_url": "http://127.0.0.1:9/", "supervisord": {"program": "x"}}
    workload["supervisord"] |= {"server_url": "unix:///nowhere"}  # type: ignore[operator]
    path = tmp_path / "backends.yaml"
    path.write_text(yaml.safe_dump({"workloads": [workload]}))
    family = WorkloadTools(backends.load(path, tmp_path).workloads)
    with working("service/gateway", RESTART, 5):
        health = await family.check_health(workload_pb.CheckHealthRequest(target_id=TARGET), {})
        assert (health.healthy, health.status_code) == (False, 0)
        assert "not reached" in health.detail
        with pytest.raises(Refusal, match="BACKEND_UNAVAILABLE"):
            await family.get_workload(workload_pb.GetWorkloadRequest(target_id=TARGET), {})
        with pytest.raises(Refusal, match=r"BACKEND_MISSING.*no backend is configured.*workloads: "):
            await family.get_workload(workload_pb.GetWorkloadRequest(target_id="svc:demo/other"), {})
    await family.close()


async def test_runbooks_are_listed_read_and_searched(mesh: Mesh) -> None:
    """Over the wire, as the model and people do."""
    async with mesh.channel("operator") as channel:
        stub = runbook_rpc.RunbookToolServiceStub(channel)
        listed = await stub.ListRunbooks(runbook_pb.ListRunbooksRequest())
        assert [(one.runbook_id, one.title) for one in listed.runbooks] == [("checkout-down", "Checkout is down")]
        read = await stub.ReadRunbook(runbook_pb.ReadRunbookRequest(runbook_id="checkout-down"))
        assert read.markdown.startswith("# Checkout is down")
        found = await stub.SearchRunbooks(runbook_pb.SearchRunbooksRequest(query="RESTART checkout"))
        assert [(hit.line, hit.heading, hit.excerpt) for hit in found.hits] == [(1, "Checkout is down", "Restart it.")]
        nothing = await stub.SearchRunbooks(runbook_pb.SearchRunbooksRequest(query="checkout submarine"))
        assert not nothing.hits
        with pytest.raises(grpc.aio.AioRpcError, match="there is no runbook nope"):
            await stub.ReadRunbook(runbook_pb.ReadRunbookRequest(runbook_id="nope"))


@pytest.mark.parametrize("name", ["../secret", "..", "a/../../secret", "/etc/passwd", "link", "sub/inner", "secret"])
async def test_no_runbook_id_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    """Parents, absolute paths, links and other folders are no runbooks."""
    folder = tmp_path / "runbooks"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "inner.md").write_text("# inner")
    (tmp_path / "secret.md").write_text("# secret")
    (folder / "link.md").symlink_to(tmp_path / "secret.md")
    family = RunbookTools(folder, Unused())
    with pytest.raises(Refusal, match="NOT_FOUND"):
        await family.read_runbook(runbook_pb.ReadRunbookRequest(runbook_id=name), {})
    listed = await family.list_runbooks(runbook_pb.ListRunbooksRequest(), {})
    assert not listed.runbooks


async def test_a_long_runbook_is_cut_and_says_so(tmp_path: Path) -> None:
    """256 KiB of any bytes are shown."""
    (tmp_path / "long.md").write_bytes(b"# Long\x1b title\n" + b"\xff\x00x" * 200_000)
    family = RunbookTools(tmp_path, Unused())
    found = await family.read_runbook(runbook_pb.ReadRunbookRequest(runbook_id="long"), {})
    assert found.truncated
    assert len(found.markdown) <= 262144
    assert found.runbook.title == "Long title"


async def test_runbooks_come_in_pages(tmp_path: Path) -> None:
    """Two pages hold three runbooks by id."""
    for name in ("a", "a-b", "b"):
        (tmp_path / f"{name}.md").write_text(f"# {name}")
    family = RunbookTools(tmp_path, Unused())
    first = await family.list_runbooks(runbook_pb.ListRunbooksRequest(page_size=2), {})
    request = runbook_pb.ListRunbooksRequest(page_size=2, page_token=first.next_page_token)
    second = await family.list_runbooks(request, {})
    assert [one.runbook_id for one in (*first.runbooks, *second.runbooks)] == ["a", "a-b", "b"]
    assert not second.next_page_token


def test_a_wrong_backends_file_stops_the_boot(tmp_path: Path) -> None:
    """A missing secret and a name given twice are named."""
    path = tmp_path / "backends.yaml"
    webhook = {"channel": "hook", "webhook": {"url": "https://example.org/", "secret_file": "hook.secret"}}
    path.write_text(yaml.safe_dump({"channels": [webhook]}))
    with pytest.raises(BootError, match="secret of channel hook"):
        backends.load(path, tmp_path)
    (tmp_path / "hook.secret").write_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n")
    (tmp_path / "hook.secret").chmod(0o644)
    with pytest.raises(BootError, match=r"the secret of channel hook.*chmod 600"):
        backends.load(path, tmp_path)
    (tmp_path / "hook.secret").chmod(0o600)
    assert backends.load(path, tmp_path).channels
    path.write_text(yaml.safe_dump({"channels": [webhook, webhook]}))
    with pytest.raises(BootError, match="hook is given twice"):
        backends.load(path, tmp_path)


class Unused:
    """An index that nobody asks."""

    async def put(self, runbook: Indexed) -> None:
        """Stay unused."""
        raise NotImplementedError

    async def keep(self, runbook_ids: list[str]) -> None:
        """Stay unused."""
        raise NotImplementedError

    async def search(self, query: str, limit: int) -> list[Hit]:
        """Stay unused."""
        raise NotImplementedError


def toolbox() -> Toolbox:
    """Return every family, on no backends."""
    return Toolbox(
        [
            WorkloadTools({}),
            NotifyTools({}),
            RunbookTools(None, Unused()),
            MetricsTools({}),
            LogsTools({}),
            AutoscalingTools({}),
            InventoryTools(grpc.aio.insecure_channel("127.0.0.1:9"), lambda: None),
            ChangeTools(grpc.aio.insecure_channel("127.0.0.1:9")),
        ]
    )
