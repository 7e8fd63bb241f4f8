"""The parts of the model, each in its own file; `modeling_virst.py` puts them together."""
