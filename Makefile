# Everything runs in .venv, which the first target that needs it creates. Needs Python 3.11 and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo app test docs quality style clean

demo: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python examples/demo.py --output demo_output

app: $(STAMP)
	$(BIN)/python examples/app/app.py

test: $(STAMP)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

docs: $(STAMP)
	$(BIN)/mkdocs build --strict

quality: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo_output site

# A checkout that was copied elsewhere brings a .venv whose paths point to the old place: the stamp holds the path it was
# made for, and the environment is made anew where that differs.
$(STAMP): pyproject.toml constraints.txt .venv-location
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[train,eval,demo,app,test,docs,quality]"
	touch $(STAMP)

.PHONY: force
.venv-location: force
	@echo "$(CURDIR)" | cmp -s - $@ || echo "$(CURDIR)" > $@
