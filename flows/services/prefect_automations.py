"""What Prefect's server does by itself: drift starts the deployment that trains anew, and dead runs are crashed."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from bloomery.data_contracts.errors import DataMissing
from bloomery.tasks.monitoring.publishing import DRIFT, resource_of

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.events.schemas.automations import AutomationCore

HEARTBEAT_S = 30


def ensure(client: SyncPrefectClient, wanted: AutomationCore) -> UUID:
    """Afterwards the server has one automation of that name, and it is this one. Returns its id."""
    known = client.read_automations_by_name(wanted.name)
    for superfluous in known[1:]:  # two made it in the same moment
        client.delete_automation(superfluous.id)
    if not known:
        return client.create_automation(wanted)
    client.update_automation(known[0].id, wanted)
    return known[0].id


def ensure_retraining(name: str, pause: timedelta = timedelta(hours=6), *, is_wanted: bool = True) -> UUID | None:
    """Afterwards the server has one automation that starts the deployment `pipeline/NAME` where NAME has drifted.

    From one start to the next there is `pause` at least, however many looks find drift meanwhile. Where it is not
    wanted there is none afterwards. It may be called again at any time, also after the deployment was made anew.

    Returns:
        The automation's id; None where none is wanted.

    Raises:
        DataMissing: the server has no such deployment.
    """
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        if is_wanted:
            return ensure(client, _retraining(name, _deployment(client, name).id, pause))
        for known in client.read_automations_by_name(_name_of(name)):
            client.delete_automation(known.id)
        return None


def crash_dead_runs() -> AutomationCore:
    """The server does not do so by itself: a run that has told nothing for three heartbeats is crashed."""
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    heartbeat = "prefect.flow-run.heartbeat"
    ends = ("Completed", "Failed", "Cancelled", "Crashed", "Suspended", "Paused", "AwaitingRetry", "Scheduled")
    return AutomationCore(
        name="mark dead runs as crashed",
        description="A flow run whose process sends no heartbeats any more is marked as crashed.",
        enabled=True,
        trigger=EventTrigger(
            after={heartbeat},
            expect={heartbeat, *(f"prefect.flow-run.{name}" for name in ends)},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=3 * HEARTBEAT_S),
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed",
                state=StateType.CRASHED,
                message="No heartbeat came for three times its interval.",
                force=False,
            )
        ],
    )


def _name_of(name: str) -> str:
    return f"retrain {name}"


def _retraining(name: str, deployment: UUID, pause: timedelta) -> AutomationCore:
    from prefect.events.actions import RunDeployment
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    return AutomationCore(
        name=_name_of(name),
        description=f"Rows that {name} is asked are no longer as those that it learnt from: train anew.",
        enabled=True,
        # Fires at the first event, then not before the time is over.
        trigger=EventTrigger(
            expect={DRIFT},
            match={"prefect.resource.id": resource_of(name)},
            posture=Posture.Reactive,
            threshold=1,
            within=pause,
        ),
        actions=[RunDeployment(source="selected", deployment_id=deployment, parameters=None, job_variables=None)],
    )


def _deployment(client: SyncPrefectClient, name: str) -> DeploymentResponse:
    from prefect.exceptions import ObjectNotFound

    try:
        return client.read_deployment_by_name(f"pipeline/{name}")
    except ObjectNotFound as failure:
        raise DataMissing(
            f"Prefect's server has no deployment pipeline/{name}",
            required="a deployment of the flow `pipeline`, which drift can start",
            where=str(client.api_url),
            remedy="make it first: prefect deploy --prefect-file deployments/prefect.yaml",
        ) from failure
