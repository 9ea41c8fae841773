# Two commands for newcomers: `make demo` compresses a teacher, `make test` checks the package. Each makes .venv when it is not there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One process on whatever this machine has; the options only say the defaults aloud, so that accelerate does not, and keep its
# traceback away when the recipe has already said in one line what is wrong.
LAUNCH := $(BIN)/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

.PHONY: demo test test-slow test-faults test-interop test-browser lint format docs notebooks clean

demo: $(VENV)/installed
	$(LAUNCH) recipes/glmd.py --config recipes/quickstart.yaml $(ARGS)

# On all cores, but for very many: each process loads torch.
test: $(VENV)/installed
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8 $(ARGS)

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -q -m slow $(ARGS)

# Stops before every file operation, a flip in every file; `make test` has a few of each. Ends with a table of what was tried,
# which HF_GLMD_FAULTS_TABLE=FILE also writes into a file; ARGS="-n 2" takes two processes.
test-faults: $(VENV)/installed
	HF_GLMD_FAULTS=all $(BIN)/python -m pytest -q tests/faults -m "slow or not slow" $(ARGS)

# All of tests/interop, those that `make test` runs too, for the table.
test-interop: $(VENV)/interop
	HF_GLMD_INTEROPERABILITY_TABLE=docs/interoperability.md $(BIN)/python -m pytest -q tests/interop -m "interop or not interop" $(ARGS)

# HF_GLMD_SCREENSHOTS=FOLDER keeps pictures of the pages.
test-browser: $(VENV)/browser
	HF_GLMD_CHROMIUM=$${HF_GLMD_CHROMIUM:-$$(cat $(VENV)/browser)} $(BIN)/python -m pytest -q tests/browser -m browser $(ARGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site, in site/. A warning ends it: a broken link, a page that the menu lacks. The variable silences a notice of the theme.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

# Runs every cell of every notebook, and keeps the results apart from them.
notebooks: $(VENV)/notebooks
	$(BIN)/python docs/notebooks/run.py runs/notebooks

clean:
	rm -rf runs site .pytest_cache .ruff_cache .mypy_cache .hypothesis

# The constraints name the versions that were tested; torch among them, which unpinned brings gigabytes of CUDA.
$(VENV)/installed: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	touch $@

$(VENV)/docs $(VENV)/notebooks: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test,$(@F)]"
	touch $@

# transformers.js without the install scripts of what it brings along: they would download GPU libraries.
$(VENV)/interop: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test,interop]"
	if command -v npm >/dev/null; then npm install --silent --ignore-scripts --prefix $(VENV)/node @huggingface/transformers@4; fi
	touch $@

# The npm package holds the browser itself, nothing else is downloaded; its own code unpacks it and says where.
$(VENV)/browser: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test,browser]"
	npm install --silent --ignore-scripts --prefix $(VENV)/chromium @sparticuz/chromium@153
	cd $(VENV)/chromium && TMPDIR=$$PWD node --input-type=module -e \
		"import chromium from '@sparticuz/chromium'; console.log(await chromium.executablePath())" > path
	mv $(VENV)/chromium/path $@
