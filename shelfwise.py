"""The command line of Shelfwise: one sub-command a step of the way, and no logic of its own.

    shelfwise sample PATH                     draw a catalogue to try everything on
    shelfwise fashion-gen TRAIN VAL PATH      published files of Fashion-Gen -> feed
    shelfwise train SYSTEM FEED --run DIR     train, resume, and write DIR/bundle
    shelfwise settings SYSTEM                 what can be set about a training, each a flag
    shelfwise export BUNDLE                   bundle -> the repository's next release (parity gate)
    shelfwise repository list                 the releases, and which one the next start serves
    shelfwise index FEED --bundle BUNDLE      the photos of a feed, to be searched
    shelfwise repository check                are the files those that were published, can the plans run here
    shelfwise repository roll-out             a running server takes a release without a failed request
    shelfwise rollback                        back to the release before
    shelfwise serve                           Triton on the repository, in the foreground
    shelfwise ready                           one true inference through every ensemble
    shelfwise categorize IMAGE --title …      ask a running server (ask.py)
    shelfwise match-colours IMAGES… --labels …
    shelfwise match IMAGE "text"             does the text belong to the photo
    shelfwise bulk SYSTEM FEED --out RESULT   a whole catalogue, each product once
    shelfwise audit FEED --bundle BUNDLE      the listings whose text least fits their photo

Imports are inside the commands: asking a server needs no torch, and --help answers at once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ask import CaOption, HeaderOption, UrlOption, UrlsOption, fail, parse_headers
from ask import app as ask_app

if TYPE_CHECKING:
    import grpc

    from catalogue.feed import Feed

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Product understanding for a catalogue, trained and served.",
)
labels_app = typer.Typer(no_args_is_help=True, help="Look at the label tables of a bundle.")
app.add_typer(labels_app, name="labels")
repository_app = typer.Typer(no_args_is_help=True, help="Look at the releases; take one into service.")
app.add_typer(repository_app, name="repository")
app.add_typer(ask_app)

REPOSITORY = Path("runs/repository")

RepositoryOption = Annotated[
    Path, typer.Option("--repository", envvar="SHELFWISE_REPOSITORY", help="Folder of the releases.")
]


@app.command()
def sample(
    path: Annotated[Path, typer.Argument(help="Parquet file to write.")],
    products: Annotated[int, typer.Option(min=1, help="How many products to draw.")] = 4000,
    seed: Annotated[int, typer.Option(help="The same seed draws the same catalogue.")] = 0,
) -> None:
    """Draw a sample catalogue: products in shapes, brands and colours, with titles and images."""
    from catalogue.sample import generate_sample

    summary = generate_sample(path, products, seed)
    typer.echo(f"{path}: {summary.products} products")


@app.command("sample-colours")
def sample_colours(
    path: Annotated[Path, typer.Argument(help="Parquet file to write.")],
    products: Annotated[
        int, typer.Option(min=1, help="How many products to draw, in two to eight colours each.")
    ] = 1500,
    seed: Annotated[int, typer.Option(help="The same seed draws the same products.")] = 0,
) -> None:
    """Draw products in several colours, labelled in Chinese or in English."""
    from catalogue.colour_sample import generate_colour_sample

    summary = generate_colour_sample(path, products, seed)
    typer.echo(f"{path}: {summary.products} rows")


@app.command("fashion-gen")
def fashion_gen(
    train: Annotated[Path, typer.Argument(help="fashiongen_256_256_train.h5")],
    validation: Annotated[Path, typer.Argument(help="fashiongen_256_256_validation.h5, the test split of papers.")],
    path: Annotated[Path, typer.Argument(help="Parquet file to write.")],
) -> None:
    """Turn the published files of Fashion-Gen into a feed (needs h5py)."""
    from catalogue.fashion_gen import fashion_gen_products
    from catalogue.feed import FeedError, write_feed

    try:
        summary = write_feed(path, fashion_gen_products(train, validation))
    except (FeedError, ImportError, ValueError, OSError) as error:
        fail(error)
    typer.echo(f"{path}: {summary.products} products")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    system: Annotated[str, typer.Argument(help="Which system; `shelfwise settings` lists them.")],
    feed: Annotated[Path, typer.Argument(help="Product feed: a file, or a folder of part files.")],
    run: Annotated[Path, typer.Option(help="Folder of the run: checkpoints, TensorBoard, bundle. Reuse it to resume.")],
    preset: Annotated[str | None, typer.Option(help="Column preset; by default the one that fits the columns.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="FIELD=COLUMN, e.g. title=name; may be repeated.")] = None,
    on_error: Annotated[str, typer.Option(help="Bad rows: 'raise' or 'skip' (and count).")] = "raise",
    merge_case: Annotated[
        bool, typer.Option("--merge-case", help="Categories that differ in case alone are one.")
    ] = False,
    settings: Annotated[Path | None, typer.Option(help="JSON file with settings of the recipe.")] = None,
    store: Annotated[
        Path | None,
        typer.Option(envvar="SHELFWISE_STORE", help="Where decoded feeds are kept; by default beside the run."),
    ] = None,
) -> None:
    """Train a system on a feed and write its bundle to RUN/bundle.

    Every setting of its recipe is a flag too, e.g. --seed 1, --epochs 3, --kl-weight 0.5; `shelfwise settings SYSTEM`
    lists them.
    """
    from catalogue.feed import FeedError
    from export.systems import system as system_named
    from training.recipe import train as train_recipe
    from training.settings import read_flags
    from training.train import make_accelerator

    try:
        chosen = system_named(system)
        given = chosen.settings.model_validate_json(settings.read_text() if settings else "{}")
        recipe = given.overridden(read_flags(context.args))
        accelerator = make_accelerator()
        products = _open(feed, preset, column, on_error, merge_case=merge_case)
        bundle = train_recipe(chosen.recipe, products, recipe, run, accelerator, stores=store)
        if accelerator.is_main_process:
            chosen.recipe.kind.save(run / "bundle", bundle)
            for note in bundle.config.training["notes"]:
                typer.echo(f"{feed}: {note}", err=True)
            for line in chosen.report(bundle.config.metrics):
                typer.echo(line)
            typer.echo(f"{run / 'bundle'} written")
    except (FeedError, ValueError, OSError, FloatingPointError) as error:
        fail(error)


@app.command("settings")
def list_settings(
    system: Annotated[str | None, typer.Argument(help="Which system's; all systems are named without.")] = None,
) -> None:
    """List the settings of a system's recipe, each with its default and what it is."""
    from export.systems import SYSTEMS
    from export.systems import system as system_named

    if system is None:
        typer.echo("\n".join(SYSTEMS))
        return
    try:
        chosen = system_named(system).settings()
    except ValueError as error:
        fail(error)
    for name, value, description in chosen.listed():
        typer.echo(f"--{name.replace('_', '-'):32} {value!s:18} {description}")


@app.command()
def export(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, from `shelfwise train`.")],
    repository: RepositoryOption = REPOSITORY,
    target: Annotated[
        str, typer.Option(help="What will run it: cpu, gpu (ONNX Runtime; colours: torch) or tensorrt.")
    ] = "cpu",
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, fp16, bf16, int8, int8-dynamic, fp8; default fp32 on cpu, else fp16 (colours on gpu: bf16)."
        ),
    ] = None,
    gpu: Annotated[
        list[str] | None, typer.Option(help="Compute capability to build TensorRT-RTX plans for, e.g. 8.9; repeatable.")
    ] = None,
    form: Annotated[
        Literal["ensemble", "single"],
        typer.Option(help="Steps that Triton batches each, or all of them in one process, for one caller's latency."),
    ] = "ensemble",
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="TensorRT plans that later versions of TensorRT run as well.")
    ] = False,
    feed: Annotated[
        Path | None,
        typer.Option(help="Feed whose products calibrate int8 and fp8, and are compared; else the bundle's few."),
    ] = None,
) -> None:
    """Export a bundle as part of a repository's next release, if it answers as PyTorch does."""
    from export.bundles import export_bundle
    from export.onnx_graphs import ExportError
    from export.parity import ParityError
    from export.precision import Precision, Runtime
    from export.system import ExportTarget
    from training.bundle import BundleError

    try:
        wanted = ExportTarget(
            Runtime(target),
            Precision(precision) if precision else None,
            tuple(gpu or ()),
            version_compatible,
            single=form == "single",
        )
        calibration = _open(feed, None, None, "skip") if feed else None
        report = export_bundle(bundle, repository, target=wanted, feed=calibration, progress=typer.echo)
    except (BundleError, ExportError, ParityError, ValueError, OSError) as error:
        fail(error)
    for model, outputs in report.parity.items():
        for output in outputs:
            figures = (
                f"top-1 agreement {output.agreement:.4f}"
                if output.agreement is not None
                else f"cosine {output.cosine:.7f}  largest difference {output.difference:.1e}"
            )
            typer.echo(
                f"  {model:14} {report.precision[model]:13} {output.output:17} {figures}  ({output.rows} real inputs)"
            )
        if report.kept[model]:
            typer.echo(f"  {model:14} left in float32: {', '.join(report.kept[model])}")
    typer.echo(f"{report.repository}: release {report.release} published")


@app.command("index")
def index_catalogue(
    feed: Annotated[Path, typer.Argument(help="Product feed to be searched.")],
    bundle: Annotated[Path, typer.Option(help="Bundle of a retriever; the index is written beside it.")],
    repository: RepositoryOption = REPOSITORY,
    preset: Annotated[str | None, typer.Option(help="Column preset; by default the one that fits the columns.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="FIELD=COLUMN, e.g. title=name; may be repeated.")] = None,
    on_error: Annotated[str, typer.Option(help="Bad rows: 'raise' or 'skip' (and count).")] = "raise",
) -> None:
    """Embed a feed's photos and publish them for `search`; again, only what changed is embedded.

    A repository that serves the bundle's encoder gets the index as its next release; otherwise `shelfwise export`
    publishes encoder and index together.
    """
    from export.index_feed import index_feed
    from export.retrieve import publish_index
    from index.snapshot import SnapshotError
    from repository.configs import RepositoryError
    from training.bundle import BundleError
    from training.retrieval import RETRIEVER

    try:
        retriever = RETRIEVER.load(bundle)
        summary = index_feed(_open(feed, preset, column, on_error), retriever, bundle)
    except (BundleError, SnapshotError, ValueError, OSError) as error:
        fail(error)
    typer.echo(
        f"{summary.products} products, {summary.photos} photos: {summary.embedded} embedded, "
        f"{summary.photos - summary.embedded} known; {summary.deleted} products gone, "
        f"{summary.without_photo} without a photo that can be read ({summary.unreadable} cannot)"
    )
    if (cells := summary.partition) is not None:
        typer.echo(f"{cells.lists} cells, {cells.scanned} rows a search: recall@10 {cells.recall_at_10:.3f}")
    try:
        typer.echo(f"{repository}: release {publish_index(retriever, bundle, repository).number} published")
    except (RepositoryError, SnapshotError) as error:
        why = f" ({error})" if repository.exists() else ""
        typer.echo(f"not served yet{why}: `shelfwise export {bundle}` publishes encoder and index together")


@app.command()
def rollback(
    repository: RepositoryOption = REPOSITORY,
    version: Annotated[int | None, typer.Option(help="Which release; the one before the current one.")] = None,
) -> None:
    """Have the next start serve an earlier release; nothing is removed. A running server: repository roll-out."""
    from repository.publish import rollback as roll_back

    try:
        typer.echo(f"release {roll_back(repository, version).number} is current; restart the server to serve it")
    except (ValueError, OSError) as error:
        fail(error)


@repository_app.command("list")
def repository_list(repository: RepositoryOption = REPOSITORY) -> None:
    """Print the releases, oldest first, with the version of each ensemble; the current one has a star."""
    from repository.release import Release, current, release_numbers

    try:
        served = current(repository)
        for number in release_numbers(repository):
            release = Release.load(repository / str(number))
            star = "*" if release.folder.resolve() == served else " "
            typer.echo(f"{star} {number}  {release.published}")
            for name, about in sorted(release.ensembles.items()):
                facts = "  ".join(f"{key} {about[key]}" for key in ("target", "precision", "bundle") if key in about)
                typer.echo(f"    {name} {release.version(name)}  {facts}")
    except (ValueError, OSError) as error:
        fail(error)


@repository_app.command("check")
def repository_check(
    repository: RepositoryOption = REPOSITORY,
    triton: Annotated[bool, typer.Option("--triton", help="Also start Triton on it and ask every ensemble.")] = False,
) -> None:
    """Check the current release: are its files those that were published, and do they fit their configurations?"""
    import os

    from repository.check import check_repository
    from serving.environment import ServerEnvironmentError
    from serving.readiness import NotReady
    from serving.server import ServerError, TritonServer

    try:
        models = check_repository(repository)
        typer.echo(f"{repository}: {', '.join(models)} fit their files")
        if triton:
            log = Path(os.devnull)  # a failure carries what Triton says about it
            with TritonServer(repository, grpc_port=0, metrics_port=0, log_file=log):
                typer.echo("Triton loads them, and every ensemble answers")
    except (ServerEnvironmentError, ServerError, NotReady, ValueError, OSError) as error:
        fail(error)


@repository_app.command("roll-out")
def repository_roll_out(
    repository: RepositoryOption = REPOSITORY,
    version: Annotated[int | None, typer.Option(help="Which release, earlier or later; the current one.")] = None,
    url: UrlOption = "127.0.0.1:8001",
    timeout: Annotated[float, typer.Option(min=1, help="Seconds a model may take to load.")] = 120.0,
    ca: CaOption = None,
    header: HeaderOption = None,
) -> None:
    """Have a running server (serve --model-control) take a release: load, ask, switch, unload the old one."""
    from serving.readiness import NotReady
    from serving.roll_out import RollOutError, roll_out

    try:
        done = roll_out(url, repository, version, timeout, credentials=_credentials(ca), headers=parse_headers(header))
    except (RollOutError, NotReady, ValueError, OSError) as error:
        fail(error)
    typer.echo(f"release {done.release} is served")
    for name, (old, new) in sorted(done.changed.items()):
        typer.echo(f"  {name}: version {new} after {old}" if old else f"  {name}: version {new}, new")


@app.command()
def serve(
    repository: RepositoryOption = REPOSITORY,
    host: Annotated[str, typer.Option(envvar="SHELFWISE_HOST", help="Address to listen on.")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(envvar="SHELFWISE_GRPC_PORT", help="0 picks a free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(envvar="SHELFWISE_METRICS_PORT", help="0 picks a free one.")] = 8002,
    http: Annotated[
        bool,
        typer.Option("--http", envvar="SHELFWISE_HTTP", help="Listen for HTTP as well, for trusted callers."),
    ] = False,
    http_port: Annotated[int, typer.Option(envvar="SHELFWISE_HTTP_PORT", help="With --http; 0 picks one.")] = 8000,
    log_file: Annotated[
        Path | None, typer.Option(envvar="SHELFWISE_LOG_FILE", help="Triton's log; else stderr.")
    ] = None,
    grace: Annotated[float, typer.Option(envvar="SHELFWISE_GRACE", help="Seconds a stop waits for requests.")] = 30.0,
    lame_duck: Annotated[
        float,
        typer.Option(min=0, envvar="SHELFWISE_LAME_DUCK", help="Seconds to answer on, readiness red, before a stop."),
    ] = 0.0,
    model_control: Annotated[
        bool, typer.Option("--model-control", envvar="SHELFWISE_MODEL_CONTROL", help="Allow loading models remotely.")
    ] = False,
    shared_memory: Annotated[
        bool,
        typer.Option("--shared-memory", envvar="SHELFWISE_SHARED_MEMORY", help="Let callers register shared memory."),
    ] = False,
    triton_option: Annotated[
        list[str] | None,
        typer.Option(help="Passed on to tritonserver, e.g. --triton-option=--grpc-use-ssl=true; repeatable."),
    ] = None,
    ca: CaOption = None,
    header: HeaderOption = None,
) -> None:
    """Serve a model repository with Triton until SIGTERM, Ctrl-C or the end of the terminal; restart what dies.

    With TLS or gated protocols among the Triton options, --ca and --header are what the readiness check needs.
    """
    from serving.environment import ServerEnvironmentError
    from serving.foreground import serve as run_server
    from serving.readiness import NotReady
    from serving.server import ServerError, TritonServer

    try:
        server = TritonServer(
            repository,
            host=host,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            http_port=http_port if http else None,
            log_file=log_file,
            grace_seconds=grace,
            model_control=model_control,
            shared_memory=shared_memory,
            triton_options=triton_option or (),
            credentials=_credentials(ca),
            headers=parse_headers(header),
        )
        status = run_server(server, lame_duck)
    except (ServerEnvironmentError, ServerError, NotReady, ValueError, OSError) as error:
        fail(error)
    raise typer.Exit(status)


@app.command()
def ready(
    model: Annotated[str | None, typer.Argument(help="One ensemble, or a step of some; by default all.")] = None,
    url: UrlOption = "127.0.0.1:8001",
    repository: RepositoryOption = REPOSITORY,
    timeout: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds for the whole check.")] = 10.0,
    ca: CaOption = None,
    header: HeaderOption = None,
) -> None:
    """Send one true inference through every ensemble of a running server; exit status 1 when one fails."""
    from serving.readiness import NotReady, check

    try:
        names = check(
            url, repository, timeout, model=model, credentials=_credentials(ca), headers=parse_headers(header)
        )
        if not names:
            raise NotReady(url, {"repository": f"{repository} holds no exported ensemble, so nothing was asked"})
        typer.echo(f"ready: {', '.join(names)}")
    except (NotReady, ValueError, OSError) as error:
        fail(error)


@app.command()
def bulk(
    system: Annotated[str, typer.Argument(help="categorize, embed-image or match-text-image.")],
    feed: Annotated[Path, typer.Argument(help="Product feed: a file, or a folder of part files.")],
    out: Annotated[Path, typer.Option(help="RESULT.parquet; RESULT.rejects.jsonl has the rows without an answer.")],
    url: UrlsOption = None,
    repository: Annotated[
        Path | None,
        typer.Option(help="Ask no server: the files of this repository, in this process, by ONNX Runtime."),
    ] = None,
    release: Annotated[int | None, typer.Option(help="Which one of --repository; the current one.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Candidates of an answer.")] = 1,
    only_changed: Annotated[
        bool, typer.Option("--only-changed", help="The feed has changed: ask about rows that are new or other alone.")
    ] = False,
    anew: Annotated[
        bool, typer.Option("--anew", help="Forget what an earlier run left, ask about everything.")
    ] = False,
    ray: Annotated[bool, typer.Option("--ray", help="On Ray Data (shelfwise[ray]); needs --repository.")] = False,
    ray_address: Annotated[
        str | None, typer.Option(envvar="RAY_ADDRESS", help="Of a cluster, with --ray: 'auto' or ray://host:10001.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Of Ray, a core each; all that there are.")] = None,
    preset: Annotated[str | None, typer.Option(help="Column preset; by default the one that fits the columns.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="FIELD=COLUMN, e.g. title=name; may be repeated.")] = None,
    part_rows: Annotated[int, typer.Option(min=1, help="Rows that are kept together; a killed run loses less.")] = 4096,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a request.")] = 16,
    in_flight: Annotated[int | None, typer.Option(min=1, help="Requests at a time; 8, in process one a core.")] = None,
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds for every request, retries included.")] = 60.0,
    ca: CaOption = None,
    header: HeaderOption = None,
) -> None:
    """Answer about a whole catalogue: a row a product in RESULT.parquet, once, whatever is killed on the way.

    The same command goes on where a killed one stopped, and asks about new rows alone where the feed has grown.
    """
    from bulk.in_process import InProcessConnection, release_folder
    from bulk.job import Job, run_with_client
    from bulk.progress import shown
    from bulk.systems import system_named
    from client import TLS, ShelfwiseClient, ShelfwiseError

    if (ray or release is not None) and repository is None:
        raise typer.BadParameter("--ray and --release need --repository: a release in process, no server")
    if repository is not None and url:
        raise typer.BadParameter("give --url or --repository, not both")
    try:
        products = _open(feed, preset, column, "skip", question=True)
        job = Job(products, system, out, k, part_rows, anew=anew, only_changed=only_changed)
        folder = None if repository is None else release_folder(repository, release)
        with shown(products) as show:
            if folder is not None and ray:
                from bulk.on_ray import run_on_ray

                done = run_on_ray(job, folder, show, address=ray_address, workers=workers, batch_size=batch_size)
            else:
                tls = TLS(ca) if ca else None
                at_a_time = in_flight or (len(os.sched_getaffinity(0)) if folder else 8)
                answers: Any = url or "127.0.0.1:8001"
                if folder is not None:
                    answers = InProcessConnection(folder, system_named(system).ensemble)
                with ShelfwiseClient(answers, timeout=timeout, tls=tls, headers=parse_headers(header)) as client:
                    done = run_with_client(job, client, show, batch_size=batch_size, in_flight=at_a_time)
    except (ShelfwiseError, ValueError, ImportError, OSError) as error:
        fail(error)
    typer.echo(f"{out}: {done.rows - done.rejected} products answered, {done.asked} of them asked about now")
    if done.rejected:
        typer.echo(f"{out.with_suffix('.rejects.jsonl')}: {done.rejected} rows without an answer, and why")


@app.command()
def audit(
    feed: Annotated[Path, typer.Argument(help="Product feed.")],
    bundle: Annotated[Path, typer.Option(help="Bundle of match-text-image.")],
    limit: Annotated[int, typer.Option("-n", min=1, help="Listings to show.")] = 30,
    split: Annotated[str | None, typer.Option(help="Only products of this split: train, val or test.")] = None,
    table: Annotated[Path | None, typer.Option(help="Write all listings to this CSV file.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Draw those shown to this PNG.")] = None,
    preset: Annotated[str | None, typer.Option(help="Column preset; by default the one that fits the columns.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="FIELD=COLUMN, e.g. title=name; may be repeated.")] = None,
    store: Annotated[
        Path,
        typer.Option(envvar="SHELFWISE_STORE", help="Where decoded feeds are kept."),
    ] = Path("runs/store"),
) -> None:
    """List the listings whose text least fits their photo."""
    from catalogue.feed import FeedError
    from catalogue.listing_sheet import draw_listing_sheet
    from catalogue.store import open_store
    from training.audit import audit as audit_feed
    from training.audit import write_table
    from training.bundle import BundleError
    from training.match_text_image import MATCHER

    try:
        if split not in (None, "train", "val", "test"):
            raise ValueError(f"--split is train, val or test, not {split!r}")
        matcher = MATCHER.load(bundle)
        products = _open(feed, preset, column, "skip")
        patches = matcher.config.fashionbert.patches
        decoded = open_store(products, store, patches.height, patches.width)
        listings = audit_feed(matcher, decoded, split)  # type: ignore[arg-type]
        if table is not None:
            write_table(listings, table)
        if sheet is not None:
            shown = {listing.id for listing in listings[:limit]}
            images = {product.id: product.images for product in products if product.id in shown}
            draw_listing_sheet([(images[it.id][0], it.title, it.probability) for it in listings[:limit]], sheet)
    except (FeedError, BundleError, ValueError, OSError) as error:
        fail(error)
    for listing in listings[:limit]:
        typer.echo(f"{listing.probability:7.4f}  {listing.id:12}  {' > '.join(listing.category)}  {listing.title}")
    typer.echo(f"{len(listings)} listings with title and photo", err=True)


@labels_app.command("show")
def labels_show(
    category: Annotated[str, typer.Argument(help="A category, by its full path or its last name.")],
    bundle: Annotated[Path, typer.Option(help="Bundle folder.")] = Path("runs/sample/categorize/bundle"),
) -> None:
    """Print the nearest labels of a category, with their similarity and their share of its soft label."""
    from training.bundle import BundleError
    from training.categorize import CATEGORIZER

    try:
        loaded = CATEGORIZER.load(bundle)
        taxonomy = loaded.extras["labels.txt"]
        row = taxonomy.find(category)
    except (BundleError, ValueError) as error:
        fail(error)
    table = loaded.extras["neighbours.safetensors"]
    for number, similarity, weight in zip(
        table.ids[row].tolist(), table.similarities[row].tolist(), table.weights[row].tolist(), strict=True
    ):
        typer.echo(f"{similarity:6.3f}  {weight:6.4f}  {taxonomy.label(number)}")


def _open(path: Path, preset: str | None, columns: list[str] | None, on_error: str, **reading: bool) -> Feed:
    from catalogue.feed import detect_preset, open_feed

    overrides: dict[str, Any] = {}
    for assignment in columns or []:
        field, separator, column = assignment.partition("=")
        if not separator:
            raise ValueError(f"--column wants FIELD=COLUMN, got {assignment!r}")
        overrides[field] = column.split(",") if "," in column else column
    if on_error not in ("raise", "skip"):
        raise ValueError(f"--on-error is 'raise' or 'skip', not {on_error!r}")
    chosen = preset or (None if overrides else detect_preset(path))
    return open_feed(path, chosen, on_error, **reading, **overrides)  # type: ignore[arg-type]


def _credentials(ca: Path | None) -> grpc.ChannelCredentials | None:
    import grpc

    return grpc.ssl_channel_credentials(ca.read_bytes()) if ca else None


if __name__ == "__main__":
    app()
