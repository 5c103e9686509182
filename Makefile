PYTHON ?= python3
# photos for the demo: two portraits in the public domain, or one's own
PHOTOS ?= .venv/photos
DEMO := demo/$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test format clean

demo: .venv/photos
	mkdir -p $(DEMO)
	.venv/bin/python align.py "$(PHOTOS)" $(DEMO)/aligned
	.venv/bin/python complete.py $(DEMO)/aligned --checkpointDir checkpoints/faces-64 --refine 10 --batchSize 1000 \
		--outDir $(DEMO)/completed --log_dir $(DEMO)/logs
	@echo "the faces, the hole and what fills it: $(DEMO)/completed/summary.png"
	@echo "the search as a film:                  $(DEMO)/completed/completion.gif"

test: .venv/dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pytest

format: .venv/dev
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

.venv/photos: .venv/demo
	mkdir -p $@.new
	.venv/bin/python -c "import skimage; skimage.io.imsave('$@.new/astronaut.png', skimage.data.astronaut())"
	cp "$$(.venv/bin/python -c "import matplotlib; print(matplotlib.get_data_path())")/sample_data/grace_hopper.jpg" $@.new
	mv $@.new $@

.venv/%: requirements-%.txt requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet -r $<
	touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache
