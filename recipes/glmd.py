"""Compresses a teacher as a recipe says.

accelerate launch recipes/glmd.py --config recipes/quickstart.yaml
accelerate launch recipes/glmd.py --config recipes/quickstart.yaml --vocab.size 0.25 --output_dir runs/quarter
python recipes/glmd.py --help
"""

from hf_glmd.cli import run_recipe_command

if __name__ == "__main__":
    raise SystemExit(run_recipe_command())
