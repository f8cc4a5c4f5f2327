"""Serving: deployments that take what the command line takes, and servers and runs that end when they should."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from flows import embedded
from flows.load import load_any_config, load_experiment_config, presets
from flows.server import serving
from fortifai_core.config.loss import Loss
from fortifai_core.errors import InputError
from fortifai_core.families.registry import FamilyExperiment
from helpers import ENTRYPOINT, FAMILY_ENTRYPOINT
from served import Served, eventually, free_port, serve
from storage.store.store import ArtifactStore

DEPLOYMENTS = Path(__file__).parents[2] / "deployments"
LINUX = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")


# --------------------------------------------------------------------------------------- addresses, settings


def test_a_free_port_is_free() -> None:
    assert serving.server_at("127.0.0.1", free_port()) is False


def test_a_port_that_something_else_uses_is_refused_by_its_number() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"--port = {port}: something that is no Prefect server uses it"):
            serving.server_at("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "port", "field"), [("127.0.0.1", 0, "--port"), ("127.0.0.1", 65536, "--port"), ("192.0.2.1", 1, "--host")]
)
def test_an_address_that_cannot_be_had_is_refused(host: str, port: int, field: str) -> None:
    port = port if field == "--port" else free_port()
    with pytest.raises(InputError) as refused:
        serving.server_at(host, port)
    assert refused.value.field == field


def test_what_is_served_to_all_is_reached_on_this_machine() -> None:
    assert serving._reachable("0.0.0.0") == "127.0.0.1"
    assert serving._reachable("::1") == "[::1]"


def test_a_server_has_the_logging_of_its_user_and_not_the_quiet_one_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_quieted", set())
    monkeypatch.delenv("PREFECT_LOGGING_LEVEL", raising=False)
    monkeypatch.setenv("PREFECT_LOGGING_TO_API_ENABLED", "false")  # the user's own choice
    monkeypatch.setattr(os, "environ", dict(os.environ))
    embedded.quiet_environment()
    assert os.environ["PREFECT_LOGGING_LEVEL"] == "CRITICAL"
    kept = embedded.talkative_environment()
    assert "PREFECT_LOGGING_LEVEL" not in kept
    assert kept["PREFECT_LOGGING_TO_API_ENABLED"] == "false"
    assert kept["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_prefect_announces_nothing_on_the_terminal_of_a_new_user(tmp_path: Path) -> None:
    reading, terminal = os.openpty()
    code = "from flows.embedded import quiet_environment; quiet_environment(); import prefect; print('imported')"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(DEPLOYMENTS.parent), "PREFECT_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, stdout=terminal, stderr=terminal, check=True)
    os.close(terminal)
    assert os.read(reading, 10_000).decode().split() == ["imported"]
    os.close(reading)


# ---------------------------------------------------------------------------------------------- deployments


def flow_of(preset: str) -> str:
    return "recursive-family" if isinstance(load_any_config(preset), FamilyExperiment) else "recursive-training"


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return {deployment.name: deployment for deployment in serving.deployments("/the/store")}


def schema_of(deployment: Any) -> dict[str, Any]:
    schema: dict[str, Any] = deployment._parameter_openapi_schema.model_dump(exclude_unset=True)
    return schema


def test_every_preset_is_a_deployment_of_the_importable_flow(made: dict[str, Any]) -> None:
    from prefect.flows import load_flow_from_entrypoint

    from flows.family import recursive_family
    from flows.recursive import recursive_training

    assert set(made) == set(presets())
    for name, deployment in made.items():
        config = load_any_config(name)
        family = isinstance(config, FamilyExperiment)
        assert deployment.entrypoint == (FAMILY_ENTRYPOINT if family else ENTRYPOINT)
        assert (deployment.flow_name, deployment.description) == (flow_of(name), presets()[name])
        assert type(config).model_validate(deployment.parameters["experiment"]) == config
        assert deployment.parameters["store"] == "/the/store"
    # a path (`flows/recursive.py:…`) would put the folder `flows` itself among the modules
    assert load_flow_from_entrypoint(ENTRYPOINT, use_placeholder_flow=False) is recursive_training
    assert load_flow_from_entrypoint(FAMILY_ENTRYPOINT, use_placeholder_flow=False) is recursive_family


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"generations": 2}, True),
        ({"generations": None, "seeds": [3, 4], "refresh": ["evaluate"]}, True),
        ({"generations": 0}, False),
        ({"seeds": [-1]}, False),
        ({"generation": 2}, False),
        ({"experiment": {"corpus": {"type": "text", "files": ["a.txt"]}}}, True),
        ({"experiment": {"corpus": {"type": "text"}}}, False),
        ({"experiment": {"losses": [{"type": "focal", "gamma": 2}]}}, True),
        ({"experiment": {"losses": [{"type": "tce", "gamma": 7}]}}, False),
    ],
)
def test_the_server_checks_parameters_before_a_run_is_made(
    made: dict[str, Any], change: dict[str, Any], fits: bool
) -> None:
    from prefect.utilities.schema_tools import is_valid_schema, validate

    schema = schema_of(made["smoke"])
    is_valid_schema(schema)
    parameters = {**made["smoke"].parameters, **change}
    if "experiment" in change:
        parameters["experiment"] = {**made["smoke"].parameters["experiment"], **change["experiment"]}
    known = set(parameters) <= set(schema["properties"])  # what else there is, the server refuses by name
    assert (known and not validate(parameters, schema)) == fits


def test_the_form_has_a_field_for_everything_and_a_tab_for_each_alternative(made: dict[str, Any]) -> None:
    schema = schema_of(made["smoke"])
    assert "oneOf" not in json.dumps(schema)  # which the form shows as bare JSON
    experiment = schema["definitions"]["ExperimentConfig"]["properties"]
    titles = {part["$ref"].rsplit("/", 1)[1] for part in experiment["corpus"]["anyOf"]}
    assert titles == {"AlmanacCorpus", "TextCorpus", "HuggingFaceCorpus", "MixtureCorpus"}
    tabs = {part["$ref"].rsplit("/", 1)[1] for part in experiment["losses"]["items"]["anyOf"]}
    assert tabs == {one.__name__ for one in get_args(get_args(Loss)[0])} and len(tabs) > 10
    for name in ("generations", "seeds", "store", "refresh"):
        assert schema["properties"][name]["description"]
    assert schema["required"] == ["experiment"]


def test_the_form_of_a_family_has_a_tab_for_each_alternative(made: dict[str, Any]) -> None:
    from prefect.utilities.schema_tools import is_valid_schema, validate

    deployment = made["gmm"]
    schema = schema_of(deployment)
    is_valid_schema(schema)
    assert "oneOf" not in json.dumps(schema)
    experiment = schema["definitions"]["FamilyExperiment"]["properties"]
    titles = {part["$ref"].rsplit("/", 1)[1] for part in experiment["family"]["anyOf"]}
    assert titles == {"GaussianConfig", "GmmConfig", "VaeConfig", "ZipfConfig", "DiffusionConfig"}
    assert not validate(deployment.parameters, schema)
    assert validate({**deployment.parameters, "generations": 0}, schema)


@pytest.mark.parametrize("preset", ["smoke", "gmm"])
def test_the_form_says_of_every_field_what_it_is(made: dict[str, Any], preset: str) -> None:
    schema = schema_of(made[preset])
    forms = {"the flow": schema, **schema["definitions"]}
    silent = [
        f"{name}.{field}"
        for name, form in forms.items()
        for field, shown in form.get("properties", {}).items()
        if not (shown.get("description") and shown.get("title")) and (name, field) != ("the flow", "experiment")
    ]
    assert not silent
    tabs = {form["title"] for form in forms.values() if "type" in form.get("properties", {})}
    assert {"tce", "focal", "almanac"} <= tabs if preset == "smoke" else {"gmm", "vae", "threshold"} <= tabs


def test_parameters_stay_below_what_prefect_takes(made: dict[str, Any]) -> None:
    assert max(len(json.dumps(deployment.parameters)) for deployment in made.values()) < 512 * 1024


def test_the_flow_is_called_with_what_the_form_sends(made: dict[str, Any]) -> None:
    from flows.recursive import recursive_training

    sent = json.loads(json.dumps({**made["smoke"].parameters, "generations": 2}))
    taken = recursive_training.validate_parameters(sent)
    assert taken["experiment"] == load_experiment_config("smoke")
    assert taken["generations"] == 2


# ------------------------------------------------------------------------------------------- for real, long


def processes_of(store: Path, *, module: str = "") -> list[int]:
    """The processes that have this store in their environment (and this module on their command line)."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or belongs to somebody else
            mine = f"FORTIFAI_STORE={store}".encode() in (place / "environ").read_bytes().split(b"\0")
            if mine and module.encode() in (place / "cmdline").read_bytes():
                found.append(int(place.name))
    return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("served")) as one:
        yield one


@pytest.mark.long
def test_a_run_of_a_deployment_ends_with_its_artifacts_in_the_store(served: Served) -> None:
    arguments = ("deployment", "run", "recursive-training/smoke", "--param", "generations=1", "--watch")
    done = served.prefect(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Flow run finished successfully in 'Completed'" in done.stdout
    kinds = {manifest.kind for manifest in ArtifactStore(served.store).ls()}
    assert kinds >= {"source", "tokenizer", "corpus", "model", "evaluation", "failure", "report"}
    # the base and one of each arm: one generation, as asked
    assert len(ArtifactStore(served.store).ls("model")) == 3
    # what the run logs is in the UI and in the log file, not on the terminal of the server
    assert served.output.read_text().splitlines()[-1].startswith("Ctrl-C stops the server")
    assert "train · g0" in (served.store / "logs" / "serve-runs.log").read_text()
    again = served.prefect(*arguments)
    assert again.returncode == 0 and "prefect.task-run.Cached" in again.stdout


@pytest.mark.long
def test_the_output_says_where_everything_is(served: Served) -> None:
    text = served.output.read_text()
    for wanted in (
        served.api.removesuffix("/api"),
        str(served.store),
        f"export PREFECT_API_URL={served.api}",
        f"login        {served.login}",
        "prefect deployment run 'recursive-training/tiny' --param generations=6 --watch",
        *(f"{flow_of(name)}/{name}" for name in presets()),
    ):
        assert wanted in text


@pytest.mark.long
def test_nothing_is_asked_for_in_the_other_terminal_of_this_software(served: Served) -> None:
    """Its own commands find the login where it is kept, which nobody else can read."""
    kept = Path(served.environment["PREFECT_HOME"]) / "fortifai-login"
    assert kept.read_text().strip() == served.login and stat.S_IMODE(kept.stat().st_mode) == 0o600
    environment = {**served.environment, "PREFECT_API_URL": served.api, "COLUMNS": "200"}
    command = [sys.executable, "-m", "flows.cli", "doctor"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert re.search(rf"server +fine +Prefect \S+ at {served.api}", done.stdout), done.stdout + done.stderr


def answer_to(url: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, dict[str, str]]:
    """Status and headers of what a server answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=20) as answer:
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}
    except urllib.error.HTTPError as error:
        return error.code, {name.lower(): value for name, value in error.headers.items()}


def forged(port: int) -> list[dict[str, str]]:
    """Headers that a browser sends for other sites' pages, or for a name that was made to point here."""
    origins = ["https://evil.example", "null", "http://127.0.0.1:1", f"http://evil.example:{port}", "http://localhost"]
    hosts = ["evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", f"10.0.0.1:{port}", ""]
    origins += [
        f"https://127.0.0.1:{port}",
        f"http://127.0.0.1:{port}.evil.example",
        f"http://127.0.0.1:{port}@evil.example",
    ]
    return [*({"origin": origin} for origin in origins), *({"host": host} for host in hosts)]


def refuses_strangers(api: str, authorized: dict[str, str]) -> None:
    """A server answers to its own name and pages alone, and to nobody without its login, by any road."""
    port = int(api.split(":")[2].split("/")[0])
    asked = {"content-type": "application/json"}
    for path, body in (("/deployments/filter", b"{}"), ("/flows/", b'{"name": "planted"}'), ("/admin/version", None)):
        for headers in forged(port):
            for login in ({}, authorized):
                status, answered = answer_to(f"{api}{path}", body, {**asked, **login, **headers})
                assert status in (400, 403), (path, headers)
                assert "access-control-allow-origin" not in answered
        for login in ({}, {"authorization": "Basic Zm9ydGlmYWk6Zm9ydGlmYWk="}, {"authorization": "Bearer x"}):
            assert answer_to(f"{api}{path}", body, {**asked, **login})[0] == 401, path
        assert answer_to(f"{api}{path}", body, {**asked, **authorized})[0] in (200, 201), path
        own = {"origin": f"http://localhost:{port}"}
        status, answered = answer_to(f"{api}{path}", body, {**asked, **authorized, **own})
        assert status in (200, 201) and answered["access-control-allow-origin"] == own["origin"]
    for headers in forged(port):
        for socket_path in ("/events/in", "/events/out", "/logs/out"):
            assert answer_to(f"{api}{socket_path}", None, {**WEB_SOCKET, **authorized, **headers})[0] in (400, 403)


WEB_SOCKET = {
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
    "sec-websocket-protocol": "prefect",
}


@pytest.mark.long
def test_a_strangers_page_and_whoever_has_no_login_get_nothing(served: Served) -> None:
    refuses_strangers(served.api, served.authorized())


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_the_server_of_a_single_run_lets_nobody_else_in() -> None:
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

    login, api = PREFECT_API_AUTH_STRING.value(), PREFECT_API_URL.value()
    assert login is not None and api is not None
    refuses_strangers(api, {"authorization": f"Basic {base64.b64encode(login.encode()).decode()}"})


@pytest.mark.long
def test_no_parameter_of_a_deployment_has_code_run(tmp_path: Path) -> None:
    """With the login even: neither code of the folder in which it was started, nor a callable of any library."""
    cwd, planted = tmp_path / "here", tmp_path / "planted"
    cwd.mkdir()
    telltale = f"from pathlib import Path\nPath({str(planted)!r}).touch()\n"
    for name in ("random", "storage", "flows", "tasks", "sitecustomize"):
        (cwd / f"{name}.py").write_text(telltale)
    (cwd / "losses_here.py").write_text(telltale + "def own(nll):\n    return nll\n")
    popen = {"()": "subprocess.Popen", "args": ["touch", str(planted)]}
    uvicorn = {"app": "a:b", "log_config": {"version": 1, "handlers": {"h": popen}}}
    with serve(tmp_path, cwd=cwd) as one:
        smoke = one.get("/deployments/name/recursive-training/smoke")["parameters"]["experiment"]
        for function, options in (("losses_here:own", {}), ("uvicorn:Config", uvicorn), ("os:system", {})):
            loss = {"type": "custom", "function": function, "name": "own", "options": options}
            run = one.start_run(experiment={**smoke, "losses": [loss]})
            eventually(lambda run=run: one.state_of(run) == "Failed", seconds=120, what="the run fails")
            told = one.get("/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}})
            said = " ".join([line["message"] for line in told] + [one.get(f"/flow_runs/{run}")["state"]["message"]])
            assert f"losses.0.function = '{function}'" in said and "--allow-code" in said
        assert not ArtifactStore(one.store).ls() and not planted.exists()


@pytest.mark.long
def test_a_server_for_other_machines_says_so_and_where_it_is(tmp_path: Path) -> None:
    with serve(tmp_path, "--host", "0.0.0.0") as one:
        text, port = one.output.read_text(), one.api.split(":")[2].split("/")[0]
        assert "warning: other machines reach this server" in text and f"{socket.gethostname().lower()}:{port}" in text
        refuses = {"host": f"evil.example:{port}", **one.authorized()}
        assert answer_to(f"{one.api}/admin/version", None, refuses)[0] == 400
        called = {"host": f"{socket.gethostname()}:{port}"}
        assert answer_to(f"{one.api}/admin/version", None, {**called, **one.authorized()})[0] == 200
        assert answer_to(f"{one.api}/admin/version", None, called)[0] == 401


@pytest.mark.long
def test_impossible_parameters_make_no_run(served: Served) -> None:
    refused = served.prefect("deployment", "run", "recursive-training/smoke", "--param", "generations=0")
    assert refused.returncode != 0
    assert "generations" in refused.stdout + refused.stderr


@pytest.mark.long
def test_the_ui_is_served(served: Served) -> None:
    address = served.api.removesuffix("/api")
    request = urllib.request.Request(f"{address}/dashboard", headers={"accept": "text/html"})
    with urllib.request.urlopen(request, timeout=20) as page:
        assert page.status == 200
        assert "<title>" in page.read().decode()
        policy = page.headers["content-security-policy"].split()
    ports = {place.rpartition(":")[2] for place in policy[2:]}
    assert policy[:2] == ["connect-src", "'self'"] and ports == {served.api.split(":")[2].split("/")[0]}
    with urllib.request.urlopen(f"{address}/ui-settings", timeout=20) as answer:
        settings = json.load(answer)
    assert settings["api_url"] == served.api and settings["auth"] == "BASIC"
    assert {deployment["name"] for deployment in served.get("/deployments/filter", {})} == set(presets())


@pytest.mark.long
def test_a_server_that_is_there_is_used_and_left_running(served: Served, tmp_path: Path) -> None:
    port = int(served.api.split(":")[2].split("/")[0])
    with serve(tmp_path, port=port, home=Path(served.environment["PREFECT_HOME"])) as second:
        assert "using the Prefect server" in second.output.read_text()
        assert second.exports == served.exports
        second.process.send_signal(signal.SIGINT)
        assert second.process.wait(60) == 0
    assert served.get("/health") is True
    assert "Traceback" not in second.output.read_text()


@LINUX
@pytest.mark.long
def test_a_cancelled_run_leaves_no_process(served: Served) -> None:
    run = served.start_run(seeds=[101])
    eventually(lambda: processes_of(served.store, module="tasks.engine.worker"), seconds=90, what="a worker")
    assert served.prefect("flow-run", "cancel", run).returncode == 0
    eventually(lambda: served.state_of(run) == "Cancelled", seconds=60, what="the run is cancelled")
    eventually(lambda: not processes_of(served.store, module="tasks.engine.worker"), seconds=20, what="no worker")
    assert not processes_of(served.store, module="prefect.engine")


@LINUX
@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_serving_ends_in_the_middle_of_a_run(tmp_path: Path, how: signal.Signals) -> None:
    with serve(tmp_path) as one:
        one.start_run(seeds=[102])
        eventually(lambda: processes_of(one.store, module="tasks.engine.worker"), seconds=90, what="a worker")
        one.process.send_signal(how)
        code = one.process.wait(60)
        assert code == (-signal.SIGKILL if how is signal.SIGKILL else 0)
        eventually(lambda: not processes_of(one.store), seconds=40, what="every process is gone")
    text = one.output.read_text()
    assert "Traceback" not in text
    assert ("stopped; what was finished is kept" in text) == (how is not signal.SIGKILL)
    assert "Cancelled flow run" in (one.store / "logs" / "serve-runs.log").read_text()


@pytest.mark.long
def test_prefect_yaml_and_automations_work_on_a_server(tmp_path: Path) -> None:
    with serve(tmp_path) as one:
        assert one.prefect("work-pool", "create", "--type", "process", "fortifai").returncode == 0
        deployed = one.prefect("--no-prompt", "deploy", "--all", "--prefect-file", str(DEPLOYMENTS / "prefect.yaml"))
        assert deployed.stdout.count("successfully created") == len(presets()), deployed.stdout + deployed.stderr
        created = one.prefect("automation", "create", "--from-file", str(DEPLOYMENTS / "automations.yaml"))
        assert created.returncode == 0 and "crash-zombie-runs" in created.stdout, created.stderr
        assert one.prefect("automation", "inspect", "crash-zombie-runs").returncode == 0
        assert one.prefect("automation", "inspect", "no-such-automation").returncode != 0  # compose.yaml relies on it
        deployment = one.get("/deployments/name/recursive-training/smoke")
        assert deployment["work_pool_name"] == "fortifai" and str(Path.cwd()) not in json.dumps(deployment)
        run = one.get(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {"generations": 1}})["id"]
        with (tmp_path / "worker.log").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "prefect", "worker", "start", "--pool", "fortifai"],
                env={**one.environment, **one.exports},
                stdout=log,
                stderr=log,
            )
            try:
                ended = ("Completed", "Failed", "Crashed")
                eventually(lambda: one.state_of(run) in ended, seconds=200, what="the worker's run ends")
            finally:
                worker.terminate()
                worker.wait(30)
        assert one.state_of(run) == "Completed", (tmp_path / "worker.log").read_text()
