# %% [markdown]
"""A look at a catalogue from a notebook: cells are marked with %%, as Jupyter, VS Code and PyCharm read them.

    python examples/notebook.py feed.parquet [HOST:PORT]

Products about which the model is in doubt, as a table. A large `neighbour_kl` says that the doubt is among distant
categories: those are worth a person's look.
"""

# %%
import sys
from itertools import islice

from catalogue.feed import open_feed
from client import Item, ShelfwiseClient, to_arrow

feed = open_feed(sys.argv[1])
url = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1:8001"
products = list(islice(feed, 50))

# %%
client = ShelfwiseClient(url)
items = [Item(product.images[0] if product.images else None, product.title) for product in products]
answers = to_arrow(client.categorize_many(items, k=3)).append_column("id", [[product.id for product in products]])

# %%
doubtful = answers.sort_by([("neighbour_kl", "descending")]).slice(0, 10)
for row in doubtful.to_pylist():
    best = row["categories"][0]
    print(f"{row['id']:>8}  {row['neighbour_kl']:6.3f}  {best['probability']:.3f}  {best['label']}")

# %%
client.close()
