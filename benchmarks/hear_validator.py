"""Hold a model against HEAR's own validator: `python benchmarks/hear_validator.py MODEL`.

MODEL is a model folder, a run folder, or a model of the Hub. The validator declares Python below 3.9 and TensorFlow,
but works without either: it imports TensorFlow to tell its models from torch's, for which a stand-in does. Install it
alone:

    pip install --no-deps --ignore-requires-python hearvalidator==2021.0.6
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_STAND_IN = "class Module:\n    pass\n"
# Two of the things that it only warns of are mistakes all the same: timestamps too far apart, or not over the clip.
_ERRORS = [f"-Werror:{start}" for start in ("We suggest", "Your timestamps")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model folder, a run folder, or a model of the Hub")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    if importlib.util.find_spec("hearvalidator") is None:
        print("hearvalidator is not installed; see the top of this file", file=sys.stderr)
        return 2
    command = [sys.executable, *_ERRORS, "-m", "hearvalidator.validate", "ssamba.integrations.hear"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tensorflow.py").write_text(_STAND_IN)
        paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        command += ["--model", arguments.model, "--device", arguments.device]
        return subprocess.run(command, env=environment).returncode


if __name__ == "__main__":
    raise SystemExit(main())
