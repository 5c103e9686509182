PYTHON ?= python3
DEMO := demo/$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test test-all lint paint format clean

# completes two portraits in the public domain, or one's own: PHOTOS=path; then scratches them and mends the photos
demo: .venv/photos
	.venv/bin/python align.py "$${PHOTOS:-.venv/photos}" $(DEMO)/aligned
	.venv/bin/python complete.py $(DEMO)/aligned --checkpointDir checkpoints/faces-64 --batchSize 1000 \
		--outDir $(DEMO)/completed --log_dir $(DEMO)/logs
	.venv/bin/python docs/scratches.py "$${PHOTOS:-.venv/photos}" $(DEMO)
	.venv/bin/python complete.py $(DEMO)/damaged --photo --maskDir $(DEMO)/masks --checkpointDir checkpoints/faces-64 \
		--batchSize 1000 --outDir $(DEMO)/mended --log_dir $(DEMO)/logs
	@echo "the completed faces:                   $(DEMO)/completed/final"
	@echo "the faces, the hole and what fills it: $(DEMO)/completed/summary.png"
	@echo "the search as a film:                  $(DEMO)/completed/completion.gif"
	@echo "the photos, scratched and mended:      $(DEMO)/damaged, $(DEMO)/mended/photos"

# a page on which holes are painted into photos: http://127.0.0.1:8765
paint: .venv/demo
	.venv/bin/python paint.py

test: lint
	.venv/bin/pytest -n 2 --dist worksteal -m "not slow"
	@echo "left out: several workers, cold starts, pretrained model, browser, notebook, benchmarks; make test-all runs all"

test-all: lint
	.venv/bin/pytest -n 2 --dist worksteal

lint: .venv/dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check

format: .venv/dev
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

.venv/photos: .venv/demo
	rm -rf $@ $@.new
	mkdir $@.new
	.venv/bin/python -c "import skimage; skimage.io.imsave('$@.new/astronaut.png', skimage.data.astronaut())"
	cp "$$(.venv/bin/python -c "import matplotlib; print(matplotlib.get_data_path())")/sample_data/grace_hopper.jpg" $@.new
	mv $@.new $@

.venv/dev: requirements-demo.txt
.venv/%: requirements-%.txt requirements.txt
	@echo "installing: with TensorFlow 3 GB, which takes a minute after the download"
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet -r $<
	touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache
