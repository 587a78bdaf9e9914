"""Section 10.1 of the wire reference: published Python clients, unmodified, with the variables of `sandpool env`."""

from __future__ import annotations

import asyncio
import base64
import io
import json

import pytest
from PIL import Image

from sandpool import wait_for

PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 4, 9])\nplt.show()"


@pytest.fixture(autouse=True)
def variables(as_client):
    return as_client


def is_png(data: bytes) -> bool:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image.format == "PNG" and min(image.size) > 50


def shell_endpoint(variables) -> str:
    """`sandpool env` names one pool; another one is beside it."""
    return variables["AZURE_POOL_MANAGEMENT_ENDPOINT"].rsplit("/", 1)[0] + "/shell"


def test_langchain_python_tool_runs_code(variables, session):
    from langchain_azure_dynamic_sessions import SessionsPythonREPLTool

    tool = SessionsPythonREPLTool(
        pool_management_endpoint=variables["AZURE_POOL_MANAGEMENT_ENDPOINT"], session_id=session
    )
    assert json.loads(tool.invoke("6 * 7")) == {"result": 42, "stdout": "", "stderr": ""}
    assert json.loads(tool.invoke("print('hello')\nx = 5")) == {"result": "", "stdout": "hello\n", "stderr": ""}
    assert json.loads(tool.invoke("x + 1"))["result"] == 6, "the session keeps its variables"
    failed = tool.execute("1 / 0")
    assert failed["status"] == "Failure"
    assert "ZeroDivisionError" in failed["stderr"]
    picture = tool.execute(PLOT)["result"]
    assert (picture["type"], picture["format"]) == ("image", "png")
    assert is_png(base64.b64decode(picture["base64_data"]))
    pruned = json.loads(tool.invoke(PLOT))["result"]
    assert pruned == {"type": "image", "format": "png"}


def test_langchain_python_tool_has_files_and_ends_its_session(variables, session, tmp_path, server):
    from langchain_azure_dynamic_sessions import SessionsPythonREPLTool

    tool = SessionsPythonREPLTool(
        pool_management_endpoint=variables["AZURE_POOL_MANAGEMENT_ENDPOINT"], session_id=session
    )
    local = tmp_path / "données 1.csv"
    local.write_bytes(b"a,b\n1,2\n")
    uploaded = tool.upload_file(local_file_path=str(local))
    assert (uploaded.filename, uploaded.size_in_bytes) == ("données 1.csv", 8)
    named = tool.upload_file(data=io.BytesIO(b"xyz"), remote_file_path="/mnt/data/abs.bin")
    assert (named.filename, named.full_path) == ("abs.bin", "/mnt/data/abs.bin")
    listed = {file.filename: file.size_in_bytes for file in tool.list_files()}
    assert listed == {"données 1.csv": 8, "abs.bin": 3}
    assert tool.download_file(remote_file_path="données 1.csv").read() == b"a,b\n1,2\n"
    assert json.loads(tool.invoke("open('/mnt/data/abs.bin').read()"))["result"] == "xyz"
    tool.close()
    gone = lambda: server.native("GET", f"/pools/python/sessions/{session}").status_code == 404  # noqa: E731
    wait_for(gone, "the session's end, asked for in the background")


def test_langchain_bash_tool(variables, session, tmp_path, server):
    from langchain_azure_dynamic_sessions import SessionsBashTool

    tool = SessionsBashTool(pool_management_endpoint=shell_endpoint(variables), session_id=session)
    assert json.loads(tool.invoke("echo hello; pwd")) == {"stdout": "hello\n/mnt/data\n", "stderr": "", "exitCode": 0}
    assert json.loads(tool.invoke("echo oops >&2; exit 3")) == {"stdout": "", "stderr": "oops\n", "exitCode": 3}
    local = tmp_path / "in.txt"
    local.write_text("line\n")
    uploaded = tool.upload_file(local_file_path=str(local))
    assert (uploaded.filename, uploaded.size_in_bytes) == ("in.txt", 5)
    assert json.loads(tool.invoke("tr a-z A-Z < in.txt > out.txt; ls"))["stdout"] == "in.txt\nout.txt\n"
    assert {file.filename for file in tool.list_files()} == {"in.txt", "out.txt"}
    assert tool.download_file(remote_file_path="out.txt").read() == b"LINE\n"
    tool.close()
    gone = lambda: server.native("GET", f"/pools/shell/sessions/{session}").status_code == 404  # noqa: E731
    wait_for(gone, "the session's end")


def test_langchain_bash_backend(variables, session):
    from langchain_azure_dynamic_sessions.backends import SessionsBashBackend

    backend = SessionsBashBackend(shell_endpoint(variables), session_id=session)
    assert backend.id == session
    done = backend.execute("echo out; echo err >&2; exit 7")
    assert (done.output, done.exit_code, done.truncated) == ("out\nerr\n", 7, False)
    assert backend.write("/mnt/data/dir/a.txt", "one\ntwo\ntwo\n").error is None
    assert "already exists" in backend.write("/mnt/data/dir/a.txt", "x").error
    assert backend.read("/mnt/data/dir/a.txt").splitlines() == ["     1\tone", "     2\ttwo", "     3\ttwo"]
    assert "not found" in backend.read("/mnt/data/none")
    assert "multiple" in backend.edit("/mnt/data/dir/a.txt", "two", "2").error
    assert backend.edit("/mnt/data/dir/a.txt", "two", "2", replace_all=True).occurrences == 2
    assert "not found" in backend.edit("/mnt/data/dir/a.txt", "seven", "7").error
    assert backend.execute("cat dir/a.txt").output == "one\n2\n2\n"
    assert {"path": "dir", "is_dir": True} in backend.ls_info("/mnt/data")
    assert backend.glob_info("*.txt", "/mnt/data/dir") == [{"path": "a.txt", "is_dir": False}]
    [uploaded] = backend.upload_files([("/mnt/data/up.bin", b"\x00\xff")])
    assert uploaded.error is None
    found, missing = backend.download_files(["/mnt/data/up.bin", "/mnt/data/none.bin"])
    assert found.content == b"\x00\xff"
    assert missing.error == "file_not_found"


def test_semantic_kernel(variables, session, tmp_path):
    from azure.identity import DefaultAzureCredential
    from semantic_kernel.core_plugins.sessions_python_tool.sessions_python_plugin import SessionsPythonTool
    from semantic_kernel.core_plugins.sessions_python_tool.sessions_python_settings import SessionsPythonSettings

    local = tmp_path / "table.csv"
    local.write_bytes(b"a\n1\n")

    async def story():
        # The address comes from ACA_POOL_MANAGEMENT_ENDPOINT, and must be https; the client waits for five seconds.
        tool = SessionsPythonTool(
            credential=DefaultAzureCredential(),
            settings=SessionsPythonSettings(identifier=session),
            enable_dangerous_file_uploads=True,
            allowed_upload_directories={str(tmp_path)},
        )
        assert await tool.execute_code("6 * 7") == "Status:\nSuccess\nResult:\n42\nStdout:\n\nStderr:\n"
        assert "Stdout:\nhello\n" in await tool.execute_code("print('hello')")
        failed = await tool.execute_code("{}['key']")
        assert failed.startswith("Status:\nFailure\n") and "KeyError" in failed
        assert "'type': 'image'" in await tool.execute_code(PLOT)
        # After an execution this client says `Content-Type: application/json` over its multipart bodies.
        uploaded = await tool.upload_file(local_file_path=str(local))
        assert (uploaded.filename, uploaded.size_in_bytes) == ("table.csv", 4)
        assert [file.filename for file in await tool.list_files()] == ["table.csv"]
        assert (await tool.download_file(remote_file_name="table.csv")).read() == b"a\n1\n"
        assert "\n2\n" in await tool.execute_code("len(open('table.csv').readlines())")
        await tool.http_client.aclose()

    asyncio.run(story())


def total():
    """A function for an agent to call, with the package that it needs. Its text is what autogen sends."""
    from autogen_core.code_executor import FunctionWithRequirements

    return FunctionWithRequirements.from_str(
        "def total(numbers: list) -> int:\n    return int(numpy.sum(numbers))\n",
        python_packages=["numpy"],
        global_imports=["numpy"],
    )


def test_autogen(variables, session, tmp_path):
    from autogen_core import CancellationToken
    from autogen_core.code_executor import CodeBlock
    from autogen_ext.code_executors.azure import ACADynamicSessionsCodeExecutor
    from azure.identity import DefaultAzureCredential

    def block(code: str) -> list:
        return [CodeBlock(code=code, language="python")]

    async def story():
        token = CancellationToken()
        executor = ACADynamicSessionsCodeExecutor(
            pool_management_endpoint=variables["AZURE_POOL_MANAGEMENT_ENDPOINT"],
            credential=DefaultAzureCredential(),
            work_dir=tmp_path,
            functions=[total()],
            session_id=session,
        )
        # 10.8: the packages are what pkg_resources lists, read from the text of a Python list.
        executor._ensure_access_token()
        packages = await executor.get_available_packages(token)
        assert {"numpy", "pandas", "matplotlib"} <= packages and len(packages) > 20
        assert all(name and not set(name) & set("[]'\n ") for name in packages)
        done = await executor.execute_code_blocks(block("print(total([1, 2, 3]))\nimport numpy"), token)
        assert (done.exit_code, done.output) == (0, "6\n")
        assert (await executor.execute_code_blocks(block("6 * 7"), token)).output == "42"
        failed = await executor.execute_code_blocks(block("print('before')\nraise ValueError('no')"), token)
        assert failed.exit_code == 1
        assert "ValueError" in failed.output and "before" in failed.output
        picture = await executor.execute_code_blocks(block(PLOT), token)
        assert picture.exit_code == 0 and "'format': 'png'" in picture.output
        (tmp_path / "in.txt").write_text("content")
        await executor.upload_files(["in.txt"], token)
        assert (await executor.execute_code_blocks(block("open('in.txt').read()"), token)).output == "content"
        await executor.execute_code_blocks(block("open('out.txt', 'w').write('made there')"), token)
        assert set(await executor.get_file_list(token)) == {"in.txt", "out.txt"}
        assert await executor.download_files(["out.txt"], token) == [str(tmp_path / "out.txt")]
        assert (tmp_path / "out.txt").read_text() == "made there"
        await executor.stop()

    asyncio.run(story())


def test_llama_index(variables, session, tmp_path):
    from llama_index.tools.azure_code_interpreter import AzureCodeInterpreterToolSpec

    # The address comes from AZURE_POOL_MANAGEMENT_ENDPOINT.
    tool = AzureCodeInterpreterToolSpec(session_id=session, local_save_path=str(tmp_path))
    assert tool.code_interpreter("6 * 7")["properties"]["result"] == 42
    assert tool.code_interpreter("print('hello')")["properties"]["stdout"] == "hello\n"
    failed = tool.code_interpreter("int('x')")["properties"]
    assert failed["status"] == "Failure" and "ValueError" in failed["stderr"]
    picture = tool.code_interpreter(PLOT)["properties"]["result"]
    assert picture["saved_to_local_path"] is True
    [saved] = tmp_path.glob("*.png")
    assert is_png(saved.read_bytes())
    local = tmp_path / "in.txt"
    local.write_text("abc")
    [uploaded] = tool.upload_file(local_file_path=str(local))
    assert (uploaded.filename, uploaded.size_in_bytes) == ("in.txt", 3)
    assert [file.filename for file in tool.list_files()] == ["in.txt"]
    assert tool.download_file_to_local("/mnt/data/in.txt").read() == b"abc"


def test_many_clients_of_one_session_take_turns(variables, session):
    """Several threads of one agent share a session: nothing is mixed up, nobody is refused."""
    from concurrent.futures import ThreadPoolExecutor

    from langchain_azure_dynamic_sessions import SessionsPythonREPLTool

    tool = SessionsPythonREPLTool(
        pool_management_endpoint=variables["AZURE_POOL_MANAGEMENT_ENDPOINT"], session_id=session
    )
    tool.invoke("seen = []")
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda n: tool.execute(f"seen.append({n}); {n} ** 2")["result"], range(8)))
    assert results == [n**2 for n in range(8)]
    assert sorted(tool.execute("print(sorted(seen))")["stdout"].split()) == sorted(str(list(range(8))).split())
