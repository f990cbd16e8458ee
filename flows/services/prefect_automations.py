"""Automations of Prefect's server: drift starts a retraining, and dead runs are marked as crashed."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from bloomery.data_contracts.errors import DataMissing
from bloomery.tasks.monitoring.publishing import DRIFT_EVENT, event_resource

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.events.schemas.automations import AutomationCore

HEARTBEAT_S = 30


def ensure_automation(client: SyncPrefectClient, automation: AutomationCore) -> UUID:
    """Creates the automation, or updates the one of that name. Returns its id."""
    existing = client.read_automations_by_name(automation.name)
    for duplicate in existing[1:]:  # created by two processes at the same time
        client.delete_automation(duplicate.id)
    if not existing:
        return client.create_automation(automation)
    client.update_automation(existing[0].id, automation)
    return existing[0].id


def ensure_retraining(name: str, pause: timedelta = timedelta(hours=6), *, is_enabled: bool = True) -> UUID | None:
    """Creates or updates the automation that starts the deployment `pipeline/NAME` when NAME has drifted.

    Two starts are at least `pause` apart, however often drift is detected in between. With `is_enabled=False` the
    automation is deleted. Repeated calls are safe, also after the deployment was created anew.

    Returns:
        The id of the automation; None if `is_enabled` is False.

    Raises:
        DataMissing: the server has no such deployment.
    """
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        if is_enabled:
            return ensure_automation(client, _retraining(name, _deployment(client, name).id, pause))
        for automation in client.read_automations_by_name(_retraining_name(name)):
            client.delete_automation(automation.id)
        return None


def dead_run_automation() -> AutomationCore:
    """Returns the automation that marks a run as crashed after three missed heartbeats; Prefect has none of its own."""
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    heartbeat = "prefect.flow-run.heartbeat"
    ends = ("Completed", "Failed", "Cancelled", "Crashed", "Suspended", "Paused", "AwaitingRetry", "Scheduled")
    return AutomationCore(
        name="mark dead runs as crashed",
        description="Marks a flow run as crashed when its process sends no more heartbeats.",
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
                message="No heartbeat arrived for three intervals.",
                force=False,
            )
        ],
    )


def _retraining_name(name: str) -> str:
    return f"retrain {name}"


def _retraining(name: str, deployment: UUID, pause: timedelta) -> AutomationCore:
    from prefect.events.actions import RunDeployment
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    return AutomationCore(
        name=_retraining_name(name),
        description=f"Retrains {name} when its requests have drifted from the training data.",
        enabled=True,
        # Fires at the first event, then at most once per `within`.
        trigger=EventTrigger(
            expect={DRIFT_EVENT},
            match={"prefect.resource.id": event_resource(name)},
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
            required="a deployment of the flow `pipeline`, which drift starts",
            where=str(client.api_url),
            remedy="create it: prefect deploy --prefect-file deployments/prefect.yaml",
        ) from failure
