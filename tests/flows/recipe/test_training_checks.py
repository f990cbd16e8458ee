"""Training, compression and network of a recipe are consistent with its features and with each other."""

from __future__ import annotations

import pytest

from tests.flows.recipe.recipe_problems import (
    CNN,
    IMPORTED,
    MLP,
    NUMBER,
    PHOTO,
    RNN,
    TEXT,
    TREES,
    find_problems,
)


@pytest.mark.parametrize(
    ("source", "model", "task", "training", "sentence"),
    [
        (NUMBER, MLP, "classification", {"slices": ["nobody"]}, "training.slices: contract people has no column"),
        (NUMBER, MLP, "classification", {"slices": ["email"]}, "column 'email' is not stored in plain form (drop)"),
        (NUMBER, MLP, "classification", {"slices": ["photo"]}, "column 'photo' is an array"),
        (NUMBER, MLP, "classification", {"loss": "huber"}, "training.loss: huber is for a regression"),
        (NUMBER, MLP, "regression", {"class_weights": "balanced"}, "training.class_weights: a regression has no"),
        (NUMBER, MLP, "regression", {"label_smoothing": 0.1}, "training.label_smoothing: a regression has no"),
        (NUMBER, MLP, "classification", {"augment": {"flip": True}}, "training.augment.flip applies to an image"),
        (PHOTO, CNN, "classification", {"augment": {"mask": 0.1}}, "training.augment.mask applies to audio"),
        (TEXT, RNN, "classification", {"augment": {"mixup": 0.2}}, "but an encoded row is text"),
        ({"kind": "category", "columns": ["kind"], "encoding": "index"}, MLP, "classification",
         {"augment": {"mixup": 0.2}}, "cannot be interpolated"),
        (NUMBER, MLP, "classification", {"privacy": {"epsilon": 1, "delta": 1e-5}}, "set `norm: none`"),
        (NUMBER, {**MLP, "norm": "none", "periodic": {}}, "classification", {"privacy": {"epsilon": 1, "delta": 1e-5}},
         "frequencies of `periodic`"),
        (NUMBER, {**MLP, "norm": "none"}, "classification",
         {"privacy": {"epsilon": 1, "delta": 1e-5}, "search": {"trials": 2}}, "training.search: every trial"),
        (PHOTO, CNN, "classification", {"privacy": {"epsilon": 1, "delta": 1e-5}}, "a cnn normalises over the rows"),
        (NUMBER, {**MLP, "norm": "none"}, "classification", {"privacy": {"epsilon": 1, "delta": 1e-5}, "ema": 0.9},
         "training.ema is not supported by private training"),
        (TEXT, RNN, "classification", {"stages": [{"epochs": 1, "objective": "masked_tokens"}, {"epochs": 1}]},
         "stage 1 has the objective masked_tokens, which suits transformer and pretrained, but the network"),
        (PHOTO, CNN, "classification", {"stages": [{"epochs": 1, "objective": "masked_tokens"}, {"epochs": 1}]},
         "which learns from text, but an encoded row is an image"),
        (NUMBER, MLP, "classification", {"stages": [{"epochs": 1, "objective": "contrastive"}, {"epochs": 1}]},
         "which learns from an image or text, but an encoded row is table columns"),
        (PHOTO, CNN, "classification", {"stages": [{"epochs": 1}], "devices": 2}, "stages are trained in one process"),
        (PHOTO, CNN, "classification", {"stages": [{"epochs": 1}], "search": {}}, "a search has trials without stages"),
        (PHOTO, CNN, "classification", {"stages": [{"epochs": 1, "augment": {"drop_tokens": 0.1}}]},
         "training.augment.drop_tokens applies to text"),
        (PHOTO, CNN, "classification", {"epochs": 1, "lora": {}, "nodes": 2}, "adapters are trained in one process"),
        (NUMBER, {**MLP, "norm": "none"}, "classification", {"privacy": {"epsilon": 1, "delta": 1e-5}, "lora": {}},
         "training.lora is not supported by private training"),
        (NUMBER, {"kind": "auto"}, "classification", {"privacy": {"epsilon": 1, "delta": 1e-5}}, "name a network"),
        (NUMBER, {**MLP, "norm": "none"}, "classification", {"privacy": {"epsilon": 1, "delta": 1e-5}, "devices": 2},
         "training.devices is not supported by private training"),
    ],
    ids=str,
)  # fmt: skip
def test_inconsistent_training_options_are_reported(source, model, task, training, sentence):
    label = "city" if task == "classification" else "price"
    label_problems = find_problems(source, model=model, label=label, task=task)
    (problem,) = [text for text in find_problems(source, model=model, label=label, task=task, training=training)
                  if text not in label_problems]  # fmt: skip
    assert sentence in problem


@pytest.mark.parametrize(
    ("source", "model", "training"),
    [
        (NUMBER, MLP, {"slices": ["city", "age"], "augment": {"mixup": 0.2}}),
        (PHOTO, CNN, {"label_smoothing": 0.1, "augment": {"flip": True, "shift": 1}}),
        (TEXT, RNN, {"class_weights": "balanced", "augment": {"drop_tokens": 0.1}}),
        (NUMBER, {**MLP, "norm": "none"}, {"privacy": {"epsilon": 1, "delta": 1e-5}}),
        (PHOTO, CNN, {"stages": [{"epochs": 1, "objective": "contrastive"}, {"epochs": 2, "freeze": "body"}]}),
        (
            TEXT,
            {"kind": "transformer"},
            {"lora": {}, "stages": [{"epochs": 1, "objective": "masked_tokens"}, {"epochs": 1}]},
        ),
    ],
    ids=str,
)
def test_consistent_training_options_have_no_problems(source, model, training):
    assert find_problems(source, model=model, training=training) == []


@pytest.mark.parametrize(
    "training",
    [
        {"epochs": 3},
        {"epochs": 3, "search": {"trials": 2}},
        {"privacy": {"epsilon": 1, "delta": 1e-5}},
        {"start_from": {"network": "digits@champion"}},
        {"devices": 2},
        {"nodes": 2},
        {"learning_rate": 0.1},
        {"class_weights": "balanced"},
        {"augment": {"flip": True}},
    ],
    ids=str,
)
def test_an_imported_network_is_not_trained(training):
    problems = find_problems(NUMBER, model=IMPORTED, training=training)
    assert [problem.split(":")[0] for problem in problems] == [f"training.{name}" for name in training]
    assert all("an imported network is already trained" in problem for problem in problems)


def test_evaluation_options_apply_to_an_imported_network():
    options = {"slices": ["city"], "seed": 3, "num_threads": 2, "explain": {"rows": 2, "method": "lime"}}
    assert find_problems(NUMBER, model=IMPORTED, training=options) == []
    assert find_problems(NUMBER, model=IMPORTED, training={"explain": None}) == []
    (gradients,) = find_problems(NUMBER, model=IMPORTED, training={"explain": {"method": "integrated_gradients"}})
    assert "training.explain.method: an imported network has no gradients" in gradients
    (slices,) = find_problems(NUMBER, model=IMPORTED, training={"slices": ["nobody"]})
    assert "training.slices" in slices


@pytest.mark.parametrize("model", [IMPORTED, {"kind": "custom", "function": "mine:network"}], ids=str)
def test_imported_and_custom_networks_are_not_pruned(model):
    candidates = [{"name": "fp32"}, {"name": "small", "prune": 0.5}]
    (problem,) = find_problems(NUMBER, model=model, candidates=candidates)
    assert "compression.candidates: small cannot be pruned" in problem
    assert find_problems(NUMBER, model=model, candidates=candidates[:1]) == []
    assert find_problems(NUMBER, model=MLP, candidates=candidates) == []


@pytest.mark.parametrize(
    ("model", "candidate", "problem"),
    [
        (MLP, {"prune": {"ratio": 0.5, "structures": ["heads"]}}, "a mlp has no heads to remove"),
        (MLP, {"student": {"model": CNN}}, "one's student: model: a network of kind cnn reads an image"),
        (MLP, {"student": {"model": {"kind": "auto"}}}, "has a student of kind auto"),
        (
            MLP,
            {"student": {"model": RNN}, "prune": {"ratio": 0.5, "scope": "global"}},
            "share their width in the config",
        ),
        (IMPORTED, {"factorize": 0.5}, "cannot be factorized: an imported network is not changed"),
    ],
)
def test_impossible_candidates_are_reported_before_anything_runs(model, candidate, problem):
    problems = find_problems(NUMBER, model=model, candidates=[{"name": "fp32"}, {"name": "one", **candidate}])
    assert any(problem in sentence for sentence in problems), problems


@pytest.mark.parametrize(
    ("training", "problem"),
    [
        ({"epochs": 3}, "training.epochs: boosted trees are not trained by gradient descent"),
        ({"patience": 3}, "training.patience: boosted trees are not trained by gradient descent"),
        ({"privacy": {"epsilon": 1, "delta": 1e-5}}, "training.privacy: boosted trees are not trained"),
        ({"devices": 2}, "training.devices: boosted trees are not trained"),
        ({"start_from": {"network": "digits@champion"}}, "training.start_from: boosted trees are not trained"),
        ({"explain": {"method": "integrated_gradients"}}, "training.explain.method: boosted trees have no gradients"),
        ({"search": {"epochs": 3}}, "training.search.epochs: boosted trees have rounds instead of epochs"),
        ({"search": {"space": {"training.batch_size": [8, 16]}}}, "training.batch_size has no effect on boosted trees"),
    ],
    ids=str,
)
def test_options_of_gradient_descent_do_not_apply_to_boosted_trees(training, problem):
    (sentence,) = find_problems(NUMBER, model=TREES, training=training)
    assert problem in sentence


def test_boosted_trees_read_tables_and_take_the_options_that_they_have():
    options = {"class_weights": "balanced", "slices": ["city"], "num_threads": 2, "seed": 1}
    assert find_problems(NUMBER, model=TREES, training=options) == []
    assert find_problems(NUMBER, model=TREES, training={"search": {"space": {"model.max_leaves": [8, 31]}}}) == []
    (problem,) = find_problems(PHOTO, model=TREES)
    assert "a network of kind boosted_trees reads table columns" in problem


@pytest.mark.parametrize(
    "step",
    [
        {"quantize": "dynamic"},
        {"weight_only": "int8"},
        {"prune": 0.5, "quantize": "dynamic"},
        {"factorize": 0.5},
        {"num_clusters": 16},
        {"sparsify": {"density": 0.5}},
        {"quantize": "static", "quantization_aware": True},
    ],
    ids=str,
)
def test_boosted_trees_have_no_weights_to_compress_but_a_student_may_replace_them(step):
    (problem,) = find_problems(NUMBER, model=TREES, candidates=[{"name": "fp32"}, {"name": "small", **step}])
    assert "compression.candidates: small cannot be built: boosted_trees consists of trees" in problem
    student = {"name": "small", "student": {"model": MLP}, **step}
    assert find_problems(NUMBER, model=TREES, candidates=[{"name": "fp32"}, student]) == []
    assert (
        find_problems(NUMBER, model=TREES, candidates=[{"name": "fp32"}, {"name": "packed", "storage": "zstd"}]) == []
    )


def test_boosted_trees_lose_a_share_of_the_trees_without_further_options():
    few, packed = {"name": "few", "prune": 0.5}, {"name": "packed", "prune": 0.9, "storage": "zstd"}
    for kind in ("boosted_trees", "tabular_ensemble"):
        assert find_problems(NUMBER, model={"kind": kind}, candidates=[{"name": "fp32"}, few, packed]) == []
        for options in ({"target": {"macs": 0.5}}, {"ratio": 0.5, "rounds": 3}, {"ratio": 0.5, "importance": "taylor"}):
            candidates = [{"name": "fp32"}, {"name": "few", "prune": options}]
            (problem,) = find_problems(NUMBER, model={"kind": kind}, candidates=candidates)
            assert f"few cannot be pruned: {kind} loses trees by a `ratio`, without further options" in problem


@pytest.mark.parametrize("kind", ["tabm", "tabular_ensemble"])
def test_tabular_ensembles_are_trained_in_one_process_on_tables(kind):
    model = {"kind": kind}
    assert find_problems(NUMBER, model=model, training={"patience": 3}) == []
    (problem,) = find_problems(NUMBER, model=model, training={"devices": 2})
    assert f"a network of kind {kind} is trained in one process" in problem
    (problem,) = find_problems(NUMBER, model=model, training={"privacy": {"epsilon": 1, "delta": 1e-5}})
    assert "have no per-row gradients; use an mlp" in problem
    (problem,) = find_problems(PHOTO, model=model)
    assert f"a network of kind {kind} reads table columns" in problem
    network = {"kind": "tabm", "edges": [[0, 1, 2]]}
    configured = network if kind == "tabm" else model | {"network": network}
    (problem,) = find_problems(NUMBER, model=configured, training={})
    assert "which the training computes" in problem


def test_a_score_of_the_recipe_suits_trees_unless_it_is_of_a_quantile():
    assert find_problems(NUMBER, model=TREES, training={"score": {"name": "macro_f1"}}) == []
    quantile = {"score": {"name": "quantile_loss", "quantile": 0.9}}
    for kind in ("boosted_trees", "tabular_ensemble"):
        problems = find_problems(NUMBER, model={"kind": kind}, label="price", task="regression", training=quantile)
        assert [problem for problem in problems if f"the trees of {kind} predict means, not quantiles" in problem]


def test_decisions_suit_a_score_of_classes_alone():
    model = {"kind": "tabular_ensemble", "decisions": "score"}
    for name in ("macro_f1", "balanced_accuracy"):
        assert find_problems(NUMBER, model=model, training={"score": {"name": name}}) == []
    for training, found in (({}, "the default one"), ({"score": {"name": "auc"}}, "auc")):
        (problem,) = find_problems(NUMBER, model=model, training=training)
        assert (
            f"model.decisions: score suits decisions to a score of classes, but the recipe's score is {found}"
            in problem
        )
        assert "set `score` to macro_f1 or balanced_accuracy" in problem


def test_boosted_trees_have_no_candidate_search_and_no_other_formats():
    (problem,) = find_problems(NUMBER, model=TREES, search=True)
    assert "compression.search: boosted_trees consists of trees" in problem
    (problem,) = find_problems(NUMBER, model=TREES, extra_formats=["pt2"])
    assert "compression.extra_formats: boosted_trees is not a PyTorch network" in problem


def test_an_imported_network_has_no_extra_formats_but_its_student_has():
    student = {"name": "one", "student": {"model": MLP}}
    for candidates in (None, [{"name": "fp32"}, student | {"quantize": "static"}]):
        (problem,) = find_problems(NUMBER, model=IMPORTED, extra_formats=["pt2"], candidates=candidates)
        assert "compression.extra_formats: an imported network is not a PyTorch network" in problem
    assert find_problems(NUMBER, model=IMPORTED, extra_formats=["pt2"], candidates=[{"name": "fp32"}, student]) == []
    assert find_problems(NUMBER, model=MLP, extra_formats=["pt2", "litert"]) == []


def test_an_imported_network_has_no_candidate_search_but_its_student_may_be_pruned():
    (problem,) = find_problems(NUMBER, model=IMPORTED, search=True)
    assert "compression.search: an imported network cannot be pruned" in problem
    assert find_problems(NUMBER, model=MLP, search=True) == []
    student = {"name": "one", "student": {"model": MLP}, "prune": 0.5}
    assert find_problems(NUMBER, model=IMPORTED, candidates=[{"name": "fp32"}, student]) == []


def test_impossible_distillation_is_reported_before_anything_runs():
    candidates = [{"name": "fp32"}, {"name": "one", "student": {"model": MLP}}]
    for weight in ("feature_weight", "attention_weight"):
        (problem,) = find_problems(NUMBER, model=IMPORTED, candidates=candidates, distill={weight: 1})
        assert "compression.distill: one cannot be distilled from the trained network:" in problem
        assert find_problems(NUMBER, model=IMPORTED, candidates=candidates[:1], distill={weight: 1}) == []
    (problem,) = find_problems(NUMBER, model=MLP, distill={"attention_weight": 1})
    assert "a pruned network cannot be distilled from the trained network: a network of kind mlp has no know" in problem
    assert find_problems(NUMBER, model=MLP, distill={"feature_weight": 1}) == []
