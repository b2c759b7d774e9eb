# `make test` and `make demo` set everything up by themselves; they need python3 (3.10 to 3.13) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCKS := requirements/base.txt requirements/test.txt requirements/detectron2.txt

.PHONY: test lint demo lock clean
test: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto  # one thread each: the processes share the cores

# Radiographs, a pre-trained backbone, a detector, implants with ranked systems on patients that no step has seen, and
# pictures: everything lands in demo/.
TEST := demo/run/demo_test
demo: $(VENV)/.ready
	rm -rf demo
	$(BIN)/implantdet phantom --preset mini --out demo/phantom
	$(BIN)/python train_net.py --config-file configs/demo_pretrain.yaml
	$(BIN)/python train_net.py --config-file configs/demo.yaml
	$(BIN)/implantdet draw demo/phantom --part test --implants $(TEST)/implants.json --min-score 0.3 \
	  --out demo/pictures
	@echo "Metrics: $(TEST)/results.json. Pictures: demo/pictures."

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The stamp is written last: a set-up that was interrupted starts again.
$(VENV)/.ready: $(LOCKS) setup.py
	@$(PYTHON) -c 'import sys; ok = (3, 10) <= sys.version_info[:2] <= (3, 13); sys.exit(None if ok else \
	  f"implantdet needs Python 3.10 to 3.13; {sys.executable} is {sys.version.split()[0]}. Run: make PYTHON=python3.12 $@")'
	@test "$$(uname -sm)" = "Linux x86_64" || { echo "The pinned wheel of detectron2 is for Linux on x86-64; this is $$(uname -sm):" \
	  "install detectron2 from its sources, then pip install -e . (README, Installing)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r requirements/base.txt -r requirements/test.txt
	$(BIN)/python -m pip install --disable-pip-version-check --require-hashes --no-deps --only-binary=:all: --upgrade \
	  --implementation cp --python-version 3.10 \
	  --target "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" -r requirements/detectron2.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

LOCK := $(BIN)/uv pip compile --universal --python-version 3.10 --generate-hashes --no-annotate --no-header --quiet
lock: $(VENV)/.ready
	$(LOCK) --upgrade requirements/base.in -o requirements/base.txt
	$(LOCK) --upgrade requirements/test.in -o requirements/test.txt

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
