"""Stage `package`: builds a bento with the network, the encoder, the contract and the serving code."""

from __future__ import annotations

import shutil

from bloomery.data_contracts.documents.digests import digest_of_document, digest_of_file
from bloomery.data_contracts.records.provenance import RecipeDocument
from bloomery.data_contracts.records.records import Bento, Choice
from bloomery.tasks.bentos.bento_store import bento_folder
from bloomery.tasks.bentos.bundled_code import BUNDLED
from bloomery.tasks.model_card.card import CARD_FOLDER, write_card
from bloomery.tasks.orchestration import prefect_artifacts
from bloomery.tasks.orchestration.stage import stage
from bloomery.tasks.orchestration.stage_store import Output
from bloomery.tasks.package.bento_builder import (
    ARTIFACTS,
    build_bento,
    digest_files,
    write_context,
    write_manifest,
    write_provenance,
)
from bloomery.tasks.security import signing_key

_CARD = "bloomery.tasks.model_card"  # presentation, but part of what is packaged


def _is_complete(record: Bento) -> bool:
    """Whether the bento's files are unchanged, and signed by the current key."""
    source = bento_folder(record.tag) / "src"
    is_unchanged = all(
        (source / path).is_file() and digest_of_file(source / path) == sha256 for path, sha256 in record.files
    )
    return is_unchanged and signing_key.is_signed(source / ARTIFACTS)


@stage(
    is_complete=_is_complete,
    publish=prefect_artifacts.publish_bento,
    further_modules=(_CARD,),
    bundled_modules=BUNDLED,
)
def package(out: Output, choice: Choice, name: str, stated_recipe: RecipeDocument) -> Bento:
    """Builds the bento `name:VERSION` in BentoML's store, where VERSION is a digest of everything that it serves.

    Its manifest is signed. The bento also holds its provenance (all records and the recipe) and a model card. Neither
    counts in VERSION, since both contain times and run ids.

    Raises:
        EngineMissing: BentoML cannot build the bento.
        SettingInvalid: BLOOMERY_SIGNING_KEY names no usable key.
    """
    context = out.path("context")
    write_context(context, choice, stated_recipe.recipe)
    content = digest_of_document(digest_files(context))
    tag = f"{name}:{content[:16]}"
    # The name counts: the same model under another name is another release.
    digest = digest_of_document([name, content])
    write_provenance(context, tag, digest, choice, stated_recipe)
    write_card(context / ARTIFACTS / CARD_FOLDER, tag, choice, stated_recipe.recipe)
    write_manifest(context, tag, choice)
    files = digest_files(context)
    signing_key.sign_manifest(context / ARTIFACTS)  # not in the record: the version does not depend on the key
    labels = {"run": choice.candidate.run_id, "data": choice.candidates.trained.dataset.digest[:16]}
    build_bento(context, tag, labels)
    shutil.rmtree(context)
    return Bento(tag=tag, files=tuple(files.items()), choice=choice, digest=digest)
