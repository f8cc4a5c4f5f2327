"""The files in deployments/: Prefect's own models take them, they agree with each other and with the presets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.events.clients import AssertingEventsClient
from prefect.events.worker import EventsWorker

from deployments.automations import create
from flows.load import load_any_config, presets
from flows.server import serving
from fortifai_core.errors import InputError
from fortifai_core.families.registry import FamilyExperiment
from helpers import ENTRYPOINT, FAMILY_ENTRYPOINT
from tasks.engine.publish import announce, announce_space

DEPLOYMENTS = Path(__file__).parents[2] / "deployments"


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOYMENTS / name).read_text())


@pytest.mark.parametrize("name", ["prefect.yaml", "containers.yaml"])
def test_deployment_files_hold_up_before_prefects_own_models(name: str) -> None:
    from prefect.cli.deploy._models import PrefectYamlModel
    from prefect.utilities.importtools import import_object
    from prefect.utilities.templating import apply_values

    from deployments.steps import read_presets

    data = read(name)
    model = PrefectYamlModel.model_validate(data)
    steps = [step for section in ("build", "pull") for step in data[section]]
    assert all(callable(import_object(function)) for step in steps for function in step)
    found = read_presets()
    for deployment in model.deployments:
        assert deployment.work_pool is not None and deployment.work_pool.name
        filled = apply_values(deployment.parameters, {"presets": found}, warn_on_notset=True)
        preset = re.sub("-(docker|kubernetes)$", "", str(deployment.name))
        config = load_any_config(preset)
        family = isinstance(config, FamilyExperiment)
        assert deployment.entrypoint == (FAMILY_ENTRYPOINT if family else ENTRYPOINT)
        assert type(config).model_validate(filled["experiment"]) == config
    # the same signs of life as in the automation that waits for them
    pools = [d["work_pool"]["job_variables"]["env"] for d in data["deployments"]]
    assert {pool["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] for pool in pools} == {str(serving.HEARTBEAT_SECONDS)}


def test_every_preset_is_in_prefect_yaml() -> None:
    listed = {deployment["name"] for deployment in read("prefect.yaml")["deployments"]}
    assert listed == set(presets()), "add the new preset to deployments/prefect.yaml"


def test_automations_are_ones_that_prefect_takes() -> None:
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    zombie, collapse, full = (AutomationCore.model_validate(one) for one in read("automations.yaml")["automations"])
    assert isinstance(zombie.trigger, EventTrigger) and isinstance(collapse.trigger, EventTrigger)
    assert zombie.trigger.posture is Posture.Proactive and zombie.enabled
    assert zombie.trigger.within.total_seconds() == 3 * serving.HEARTBEAT_SECONDS
    # each way of ending counts as an answer, or a finished run would be crashed afterwards
    ends = {"Completed", "Failed", "Cancelled", "Crashed"}
    assert {f"prefect.flow-run.{end}" for end in ends} <= set(zombie.trigger.expect)
    assert not collapse.enabled and not full.enabled  # they name a block that each server has to make first


@pytest.mark.usefixtures("prefect_server")
def test_automations_send_to_the_block_that_they_are_given_and_are_there_once() -> None:
    from prefect.automations import Automation
    from prefect.blocks.notifications import SlackWebhook
    from prefect.blocks.system import Secret

    names = ["crash-zombie-runs", "notify-of-collapse", "notify-of-full-disk"]
    assert create() == names
    assert [Automation.read(name=name).enabled for name in names] == [True, False, False]
    SlackWebhook(url="https://hooks.test/x").save("alerts")
    block = SlackWebhook.load("alerts")._block_document_id
    assert create("slack-webhook/alerts") == names
    for name in names[1:]:
        made = Automation.read(name=name)
        assert made.enabled and [action.block_document_id for action in made.actions] == [block]
    Secret(value="x").save("no-messages")
    for wrong, said in (("slack-webhook/nowhere", "no such block"), ("secret/no-messages", "sends no messages")):
        with pytest.raises(InputError, match=said):
            create(wrong)


def test_a_disk_that_is_nearly_full_is_announced_and_waited_for(events: type[AssertingEventsClient]) -> None:
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

    trigger = AutomationCore.model_validate(read("automations.yaml")["automations"][2]).trigger
    assert isinstance(trigger, EventTrigger)
    announce_space(store="/somewhere/full", free=2_000_000_000)
    announce_space(store="/somewhere/full", free=1_999_999_999)
    EventsWorker.drain_all()
    assert events.last is not None
    (event,) = events.last.events
    assert event.event in trigger.expect and trigger.match.matches(event.resource)
    assert event.resource.name == event.payload["store"] == "/somewhere/full"
    assert event.payload["free_bytes"] == 1_999_999_999


@pytest.fixture
def events() -> Iterator[type[AssertingEventsClient]]:
    """Prefect's own client for tests: it keeps the events that are emitted instead of sending them."""
    EventsWorker.drain_all()  # of tests before this one
    AssertingEventsClient.reset()
    EventsWorker.set_client_override(AssertingEventsClient)
    try:
        yield AssertingEventsClient
    finally:
        EventsWorker.drain_all()
        EventsWorker.set_client_override(None)
        AssertingEventsClient.reset()


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("failed", [True, False])
def test_the_automation_waits_for_what_is_emitted_when_a_run_fails(
    events: type[AssertingEventsClient], failed: bool
) -> None:
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

    collapse = AutomationCore.model_validate(read("automations.yaml")["automations"][1]).trigger
    assert isinstance(collapse, EventTrigger)
    announce(
        experiment="tiny",
        arm="tce-0.9",
        seed=3,
        generation=9,
        model="ab" * 32,
        metrics={"kr-split-0": 0.4},
        failure={"status": "failed", "failed_in": 7, "threshold": 0.5} if failed else None,
    )
    EventsWorker.drain_all()
    assert events.last is not None
    finished, *others = events.last.events
    assert (finished.event, finished.resource.name) == ("generation.finished", "tiny · TCE 0.9 · seed 3 · g9")
    assert finished.payload["kr-split-0"] == 0.4 and finished.payload["generation"] == 9
    # judged by Prefect's own rules of what a trigger expects and matches
    emitted = [finished, *others]
    waited_for = [
        event for event in emitted if event.event in collapse.expect and collapse.match.matches(event.resource)
    ]
    assert waited_for == others and len(others) == failed
    for event in others:
        # where a stage makes several generations, it says in which of them the run failed
        told = [event.payload[name] for name in ("experiment", "arm", "seed", "generation", "threshold")]
        assert told == ["tiny", "tce-0.9", 3, 7, 0.5]


def test_compose_is_consistent() -> None:
    compose = read("compose.yaml")
    services = compose["services"]
    for service in services.values():
        for other, condition in service.get("depends_on", {}).items():
            needs = {"service_healthy": "healthcheck", "service_completed_successfully": "command"}
            assert needs[condition["condition"]] in services[other]
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in compose["volumes"]
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")  # the server has no login
    assert {"database", "server", "worker"} <= {name for name, s in services.items() if "healthcheck" in s}
    pool = read("prefect.yaml")["deployments"][0]["work_pool"]["name"]
    assert pool in services["worker"]["command"] and f"--type process {pool}" in services["setup"]["command"][-1]
    docker = read("containers.yaml")["deployments"][0]["work_pool"]["job_variables"]
    assert docker["volumes"][0].split(":")[0] == compose["volumes"]["store"]["name"]
    assert docker["image"] == services["worker"]["image"]


def test_the_image_holds_every_room_and_does_not_run_as_root() -> None:
    import tomllib

    lines = (DEPLOYMENTS / "Dockerfile").read_text().splitlines()
    copied = {name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]}
    root = DEPLOYMENTS.parent
    found = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    rooms = [name for name in found if not name.endswith(".*")]
    assert set(rooms) <= copied
    allowed = (DEPLOYMENTS / "Dockerfile.dockerignore").read_text().splitlines()
    assert {f"!{name}" for name in copied} <= set(allowed)
    instructions = [line.split()[0] for line in lines if re.match("[A-Z]+ ", line)]
    assert "USER fortifai" in lines and instructions.index("USER") < instructions.index("CMD")
    assert not any(name.isupper() and name == "RUN" for name in instructions[instructions.index("USER") :])
