"""search_index: embeddings of queries to the products whose photos are nearest, from a snapshot mapped into memory.

A query is the mean of what it gives: image, text, and the first photo of a product. The code that searches is the
project's own package index/, copied into served_index. Queries of a batch with the same filter share a pass over the
vectors. A filter on an attribute that the index lacks, a product that it does not hold and a k that is out of range
fail their own request with INVALID_ARG.
"""

import json
from collections import deque
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from served_index.search import Searcher
from served_index.snapshot import Encoder, SnapshotError, open_snapshot

MAX_K = 1000
DEFAULT_K = 10
ENCODER_FILE = "encoder.json"
INPUTS = ("image_embeds", "text_embeds", "image_present", "text_present", "named", "like", "filters", "k")


class TritonPythonModel:
    """Searches one snapshot."""

    def initialize(self, args):
        """Map the snapshot into memory. Raises SnapshotError where it is not whole, or of another encoder."""
        folder = Path(__file__).parent
        config = json.loads(args["model_config"])
        self.snapshot = open_snapshot(folder / "snapshot", self.encoder_beside(folder))
        self.columns = {
            name: {value: code for code, value in enumerate(values)}
            for name, values in self.snapshot.manifest.columns.items()
        }
        self.groups = json.loads((folder / "groups.json").read_text())
        self.searcher = Searcher(self.snapshot)
        self.exact = Searcher(self.snapshot, exact=True) if self.searcher.partition is not None else None
        self.check_every = int(config["parameters"]["check_every"]["string_value"])
        self.asked, self.recalls = 0, deque(maxlen=100)
        family = pb_utils.MetricFamily(
            name="shelfwise_recall_at_10",
            description="Share of the true first ten products that searches found, of those checked lately",
            kind=pb_utils.MetricFamily.GAUGE,
        )
        self.metric = family.Metric(labels={"model": args["model_name"], "version": args["model_version"]})
        self.metric.set(1.0)

    def encoder_beside(self, folder):
        """What the encoder of the queries is: it lies beside this model in the release."""
        path = max(folder.parents[1].glob(f"query_encoder/*/{ENCODER_FILE}"))
        return Encoder(**json.loads(path.read_text()))

    def execute(self, requests):
        """One response a request; those with the same filter and k are searched together."""
        asked = [Asked(request, self) for request in requests]
        together = {}
        for request in asked:
            if not request.error:
                together.setdefault((request.k, request.filter_key), []).append(request)
        for (k, _), group in together.items():
            queries = np.concatenate([request.queries for request in group])
            try:
                # One more for a product that is not to be its own answer.
                hits = self.searcher.search(queries, k + 1, group[0].wanted)
            except SnapshotError as error:
                for request in group:
                    request.error = str(error)
                continue
            self.check(queries[:1], hits[0], group[0].wanted)
            answers = iter(hits)
            for request in group:
                request.hits = [request.without_itself(row, next(answers)) for row in range(len(request.queries))]
        return [self.respond(request) for request in asked]

    def check(self, query, hits, wanted):
        """Now and then compares an answer of the partition with an exact search."""
        self.asked += 1
        if self.exact is None or self.asked % self.check_every:
            return
        [true] = self.exact.search(query, 10, wanted)
        if len(true.products):
            self.recalls.append(float(np.isin(true.products, hits.products[:10]).mean()))
            self.metric.set(float(np.mean(self.recalls)))

    def respond(self, request):
        """The hits of a request as tensors, rows filled up to the longest."""
        if request.error:
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(request.error, pb_utils.TritonError.INVALID_ARG)
            )
        shape = (len(request.hits), max(len(products) for products, _, _ in request.hits))
        found = np.full(shape, b"", np.object_)
        matched = np.full(shape, b"", np.object_)
        numbers = {name: np.zeros(shape, np.float32) for name in ("score", "image_score", "text_score")}
        photo = np.zeros(shape, np.int32)
        for row, (products, rows, scores) in enumerate(request.hits):
            count = len(products)
            vectors = self.snapshot.vectors[rows]
            found[row, :count] = [self.snapshot.id_of(int(product)).encode() for product in products]
            matched[row, :count] = [self.matched(int(product), request.named[row]) for product in products]
            photo[row, :count] = self.snapshot.photo[rows]
            numbers["score"][row, :count] = scores
            for name, parts in (("image_score", request.images), ("text_score", request.texts)):
                if parts[row] is not None:
                    numbers[name][row, :count] = vectors @ parts[row]
        tensors = {"product_id": found, "photo": photo, "matched_entities": matched, **numbers}
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in tensors.items()])

    def matched(self, product, named):
        """The groups in which a product is as the query names it, "brand,base_colour"."""
        codes = self.snapshot.attributes[product]
        groups = []
        for group, value in zip(self.groups, named, strict=True):
            if group in self.columns and value:
                place = list(self.columns).index(group)
                if codes[place] >= 0 and codes[place] == self.columns[group].get(value.decode(), -1):
                    groups.append(group)
        return ",".join(groups).encode()


class Asked:
    """The rows of one request: queries [rows, D], and what is wrong with them ("" for nothing)."""

    def __init__(self, request, model):
        given = {name: pb_utils.get_input_tensor_by_name(request, name) for name in INPUTS}
        tensors = {name: tensor.as_numpy() for name, tensor in given.items() if tensor is not None}
        for name, value in (("like", b""), ("filters", b""), ("k", DEFAULT_K)):  # may be left out
            tensors.setdefault(name, np.full((len(tensors["image_embeds"]), 1), value, np.object_))
        self.named = tensors["named"]
        self.hits = []
        self.error = ""
        self.images = present(tensors["image_embeds"], tensors["image_present"])
        self.texts = present(tensors["text_embeds"], tensors["text_present"])
        try:
            self.k = one_of(tensors["k"])
            self.wanted = read_filters(one_row(tensors["filters"]))
            ids = [value.decode() for value in tensors["like"][:, 0]]
            self.likes = [model.snapshot.product_of(product_id) if product_id else None for product_id in ids]
            self.queries = self.combined(model, ids)
        except ValueError as error:
            self.error = str(error)
            return
        self.filter_key = tuple(sorted((name, tuple(sorted(values))) for name, values in self.wanted.items()))

    def combined(self, model, ids):
        """[rows, D] the mean direction of what each row gives."""
        queries = []
        for row, (image, text, like) in enumerate(zip(self.images, self.texts, self.likes, strict=True)):
            if ids[row] and like is None:
                raise ValueError(f"the index holds no product {ids[row]!r}")
            parts = [part for part in (image, text) if part is not None]
            if like is not None:
                parts.append(model.searcher.vector_of(like))
            if not parts:
                raise ValueError("there is nothing to search by: give a query, an image, known entities or a product")
            total = np.sum(parts, axis=0)
            queries.append(total / max(float(np.linalg.norm(total)), 1e-12))
        return np.stack(queries).astype(np.float32)

    def without_itself(self, row, hits):
        """Products, rows and scores of the first k, without the product that was asked for."""
        kept = (
            np.flatnonzero(hits.products != self.likes[row])[: self.k] if self.likes[row] is not None else slice(self.k)
        )
        return hits.products[kept], hits.rows[kept], hits.scores[kept]


def present(embeds, there):
    """The rows of an input, None where it is absent."""
    return [row if has else None for row, has in zip(embeds, there[:, 0], strict=True)]


def one_of(k):
    """The k of a request, the same in all its rows."""
    values = set(k[:, 0].tolist())
    if len(values) > 1 or not 1 <= min(values) <= MAX_K:
        raise ValueError(f"k is {', '.join(map(str, sorted(values)))}; it must be one number from 1 to {MAX_K}")
    return values.pop()


def one_row(filters):
    """The filters of a request, the same in all its rows."""
    if any((row != filters[0]).any() for row in filters):
        raise ValueError("the rows of a request must have the same filters; send them in requests of their own")
    return filters[0]


def read_filters(filters):
    """Values by attribute of "attribute=value"."""
    wanted = {}
    for entry in filters:
        if not entry:
            continue
        attribute, separator, value = entry.decode().partition("=")
        if not separator:
            raise ValueError(f"a filter is written attribute=value, got {entry.decode()!r}")
        wanted.setdefault(attribute, []).append(value)
    return wanted
