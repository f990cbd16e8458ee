"""The eight stages in their order, without the orchestrator: for plain calls and look-ups."""

from __future__ import annotations

from bloomery.flows.order import Stages
from bloomery.tasks.choose.stage import choose
from bloomery.tasks.compress.stage import compress
from bloomery.tasks.ingest.stage import ingest
from bloomery.tasks.package.stage import package
from bloomery.tasks.prepare.stage import prepare
from bloomery.tasks.promote.stage import promote
from bloomery.tasks.train.stage import train
from bloomery.tasks.validate.stage import validate

STAGES = (ingest, validate, prepare, train, compress, choose, package, promote)
PLAIN_STAGES = Stages(ingest, validate, prepare, train, compress, choose, package, promote)
