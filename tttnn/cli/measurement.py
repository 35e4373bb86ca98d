"""Commands that measure and check what was measured: eval, audit, lm-eval.

Knows flags and how tables are printed. Does not know how anything is measured.
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any, get_args

import click

from .. import models
from ..config import PRESETS, AdaptConfig, CorpusConfig, EvalConfig, ScoreConfig, SelectionConfig
from ..errors import TttnnError
from ..evaluation.catalogue import AUTO, BASE, CATALOGUE, INSTANT, INSTANT_CONTEXT, TTT_NN
from .bars import Bars
from .command import Command
from .exit_codes import FAILED
from .flags import (
    ClusterCommand,
    DatastorePlace,
    as_json_flag,
    cache_dir_flag,
    config_file_flag,
    loading_flags,
    model_flag,
    other_embedder_flag,
    preset_flag,
    rejects_flag,
    settings_flags,
    writes,
)
from .loading import Loading, quiet_transformers
from .printing import print_audit, print_json, print_results, print_size_laws, tell_rejected

if TYPE_CHECKING:
    from ..evaluation.results import EvalResult
    from ..store.corpus import Corpus

_METHODS = "\b\nMethods:\n" + "\n".join(f"{entry.name:<17}  {entry.about}" for entry in CATALOGUE.values())


@click.command("eval", cls=ClusterCommand, epilog=_METHODS)
@click.argument("datastore", type=DatastorePlace())
@click.argument("docs", type=click.Path(exists=True, allow_dash=True))
@model_flag
@preset_flag
@settings_flags(AdaptConfig, "adapt_flags")
@settings_flags(SelectionConfig, "select_flags", prefix="select_")
@settings_flags(EvalConfig, "eval_flags")
@settings_flags(ScoreConfig, "score_flags", prefix="score_")
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="File of result lines; continued if there.")
@click.option(
    "--methods",
    help="Names with commas between, of those below; unless given, base and what the --mode names: exact: ttt-nn; "
    "instant: instant, or instant+context with --context-neighbors; auto: auto.",
)
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Processes, a model in each.")
@click.option("--keep-text", is_flag=True, help="Keep queries, neighbors and continuations beside the results.")
@click.option(
    "--weighting",
    type=click.Choice(["both", "bytes", "pile"]),
    default="both",
    show_default=True,
    help="Totals to show: over all bytes, over components by their share of the Pile, or both.",
)
@rejects_flag
@other_embedder_flag
@settings_flags(CorpusConfig, "corpus_flags")
@loading_flags()
@config_file_flag
@as_json_flag
@writes("rejects")
def eval_(
    datastore: str,
    docs: str,
    model: str,
    preset: str,
    adapt_flags: dict[str, Any],
    select_flags: dict[str, Any],
    eval_flags: dict[str, Any],
    score_flags: dict[str, Any],
    out: str,
    methods: str | None,
    workers: int,
    keep_text: bool,
    weighting: str,
    rejects: str | None,
    embedder: str | None,
    corpus_flags: dict[str, Any],
    loading: Loading,
    as_json: bool,
) -> None:
    """Measure methods on DOCS: bits per byte after each number of neighbors, against the base model.

    One JSON line per document and method goes to --out. Started again after an interruption, it measures only what is
    missing; a larger --limit continues, too.

    \b
    Examples:
      tttnn eval pile-00 test.jsonl --num-neighbors 20 --out results.jsonl
      tttnn eval pile-00 val.jsonl --methods ttt-nn,in-context --limit 4 --out v
      tttnn eval pile-00 val.jsonl --methods instant,instant+context,auto --out i
      tttnn eval pile-00 val.jsonl --methods index-size --limit 4 --out s
    """
    from ..evaluation.interpolation import interpolation_curve
    from ..evaluation.results import Budget
    from ..evaluation.runner import evaluate
    from ..evaluation.size_law import size_laws
    from ..evaluation.workers import evaluate_with_workers
    from ..recipe import TrainerRecipe
    from ..store.corpus import Corpus

    config = PRESETS[preset].with_(**adapt_flags)
    names = methods_of(config) if methods is None else [name.strip() for name in methods.split(",") if name.strip()]
    if config.mode != "exact":
        # The methods say the mode; the neighbors that instant reads are the curve's.
        kept = config.context_neighbors if AUTO.name in names else None
        config = config.with_(mode="exact", context_neighbors=kept)
    threads = loading.threads
    if threads is None and workers > 1:
        threads = max(1, len(os.sched_getaffinity(0)) // workers)
    recipe = TrainerRecipe(
        model,
        datastore,
        config,
        SelectionConfig(**select_flags),
        ScoreConfig(**score_flags),
        embedder,
        threads,
        loading.cache_dir,
        loading.device,
        loading.dtype,
    )
    documents = Corpus([docs], CorpusConfig(**corpus_flags), rejects=rejects, name_paths=False)
    options: dict[str, Any] = {
        "out": out,
        "config": EvalConfig(**eval_flags),
        "methods": names,
        "keep_text": keep_text,
    }
    loading.check()
    quiet_transformers()
    with Bars() as bars:
        recipe.fetch(bars.tell)
        options["progress"] = bars
        if workers == 1:
            result = evaluate(recipe.load(), documents, **options)
        else:
            result = evaluate_with_workers(recipe, documents, workers=workers, **options)
        tell_rejected(documents, rejects, bars)
    if not result.lines:
        raise _nothing_measured(docs, documents, result)
    summary = result.summary()
    hidden = {"both": (), "bytes": ("pile_all",), "pile": ("all",)}[weighting]
    summary = dataclasses.replace(summary, rows=[row for row in summary.rows if row.group not in hidden])
    pairs = [pair for unit in get_args(Budget) for pair in result.compare_at_budgets(unit)]
    weights = interpolation_curve(result) if "interpolation" in names else {}
    laws = [law for law in size_laws(result) if law.group not in hidden]
    if as_json:
        described = {
            "at_equal_budget": [dataclasses.asdict(pair) for pair in pairs],
            "interpolation": weights,
            "index_size": [dataclasses.asdict(law) for law in laws],
        }
        print_json(summary.to_dict() | described)
        return
    print_results(summary, pairs, weights)
    print_size_laws(laws)


def methods_of(config: AdaptConfig) -> list[str]:
    """Return the methods that are measured where a mode is named and no method."""
    if config.mode == "exact":
        return [BASE.name, TTT_NN.name]
    if config.mode == "auto":
        return [BASE.name, AUTO.name]
    return [BASE.name, INSTANT_CONTEXT.name if config.in_context else INSTANT.name]


def _nothing_measured(docs: str, documents: Corpus, result: EvalResult) -> TttnnError:
    """Return the error for an evaluation without a line, with the first reasons why."""
    from ..evaluation.results import reasons_told
    from ..store.corpus import no_documents

    if not result.unmeasured:
        return TttnnError(f"{docs}: {no_documents(documents)}")
    told = reasons_told(result.summary().reasons)
    return TttnnError(f"{docs}: must hold a document that can be measured, got none: {'; '.join(told)}.")


@click.command(cls=Command)
@click.argument("results", type=click.Path(exists=True, dir_okay=False))
@click.option("--datastore", required=True, type=click.Path(exists=True), help="The one that was searched.")
@click.option("--documents", required=True, type=click.Path(exists=True), help="The documents that were measured.")
@click.option("--model", help="Whose tokenizer to use; that of the results unless given.")
@click.option("--ngram", default=8, show_default=True, type=click.IntRange(1), help="Words of an n-gram.")
@click.option(
    "--max-share",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Largest share of the n-grams of a passage, or of a scored text, that the other may hold.",
)
@settings_flags(CorpusConfig, "corpus_flags")
@cache_dir_flag
@as_json_flag
def audit(
    results: str,
    datastore: str,
    documents: str,
    model: str | None,
    ngram: int,
    max_share: float,
    corpus_flags: dict[str, Any],
    cache_dir: str | None,
    as_json: bool,
) -> None:
    """Check RESULTS for leaks: whether text that was scored was trained on.

    Re-reads every document and every passage that a method used: ids and digests must match, and no passage may share
    more of its n-grams with the scored text than --max-share, nor the other way round. Exit code 1 when something is
    found. The flags that say how --documents is read are those that eval was given.

    \b
    Examples:
      tttnn audit results.jsonl --datastore pile-00 --documents test.jsonl
      tttnn audit results.jsonl --datastore pile-00 --documents test.jsonl --json
    """
    from ..evaluation.audit import audit_results
    from ..evaluation.result_file import read_results
    from ..instant.descriptions import seen_by_experts
    from ..lm.loading import load_tokenizer
    from ..recipe import open_documents
    from ..store.corpus import iter_corpus

    quiet_transformers()
    results_read = read_results(results)
    name = model or results_read.settings["model"]["name"]
    with Bars() as bars:
        models.resolve(name, cache_dir=cache_dir, on_fetch=bars.tell)
        tokenizer = load_tokenizer(name, cache_dir=cache_dir)
        with open_documents(datastore) as opened:
            report = audit_results(
                results_read,
                iter_corpus(documents, CorpusConfig(**corpus_flags)),
                opened.documents,
                tokenizer,
                ngram=ngram,
                max_share=max_share,
                experts=seen_by_experts(opened.path, results_read.settings["model"]["fingerprint"]),
                progress=bars,
            )
    if as_json:
        print_json(report.to_dict())
    else:
        print_audit(report)
    if not report.clean:
        raise SystemExit(FAILED)


@click.command(
    "lm-eval", cls=Command, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def lm_eval(arguments: tuple[str, ...]) -> None:
    """Run lm-evaluation-harness with the model tttnn and the packaged task tttnn_jsonl; ARGUMENTS are its own.

    \b
    Examples:
      tttnn lm-eval run --model tttnn --model_args pretrained=smollm2-135m,datastore=pile-00,k=10 --tasks lambada_openai
      tttnn lm-eval run --model tttnn --model_args pretrained=smollm2-135m,datastore=pile-00,k=10,rolling=split \\
        --tasks tttnn_jsonl --metadata '{"documents": "val.jsonl.zst"}' --limit 20
    """
    from ..evaluation.harness_command import run

    quiet_transformers()
    run(arguments)
