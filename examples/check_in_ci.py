"""Holds bundles to the first one, as a step of continuous integration.

python examples/check_in_ci.py FP32_BUNDLE BUNDLE... [--data scenes:100 | coco:FILE.json]
"""

import argparse
import sys

import samforge

LEAST_F1, MOST_LOSS = 0.95, 0.01

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--data", default="scenes:100")
    options = parser.parse_args()
    reference, *others = samforge.compare(options.bundles, options.data)
    lost = []
    for row in others:
        agreement = row.accuracy.fidelity.agreement or 0.0
        drop = row.cgf1_drop or 0.0
        print(f"{row.bundle}: F1 of the objects {agreement:.4f}, loss of cgF1 {drop:+.4f}")
        if agreement < LEAST_F1 or drop > MOST_LOSS:
            lost.append(row.bundle)
    sys.exit(f"Not as good as {reference.bundle}: {lost}" if lost else 0)
