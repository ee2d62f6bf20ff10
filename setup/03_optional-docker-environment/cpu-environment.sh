#!/bin/sh
# Turn the Python that is called `python` into the course's, with the CPU build of PyTorch,
# which on Linux is several gigabytes smaller than the plain one. Run it in the course's
# folder, in an environment of your own. uv knows where PyTorch keeps its builds;
# TORCH_BACKEND chooses another: auto looks for a graphics card.
set -e
python -m pip install --quiet uv
python -m uv pip install --python "$(command -v python)" \
    --torch-backend "${TORCH_BACKEND:-cpu}" -r requirements.txt
# The second step needs the whole course; an image takes the first before it is copied.
if [ -d course ]; then
    python -m course setup --here
fi
