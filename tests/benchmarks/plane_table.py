"""Write the rows of the sweep data/sweeps/plane.yml, once its runs are stored, to data/sweeps/plane.csv.

periodic sweep data/sweeps/plane.yml --scheduler tcp://127.0.0.1:8786
python tests/benchmarks/plane_table.py
"""

from __future__ import annotations

import pandas as pd

from periodic_lib import fingerprints, plans
from periodic_lib.analysis import widths
from periodic_lib.project import root, write_whole
from periodic_lib.storage import store


def main() -> None:
    """Read what is stored, judge it, and write the rows with their provenance."""
    tables, facts = [], []
    for plan in plans.plans_of(str(root() / "data" / "sweeps" / "plane.yml")):
        data = store.take(plan.keys)
        tables.append(widths.row_table(data, plan.setup.width, plan.setup.fresh_label_noise))
        facts.append(data)
    table = pd.concat(tables).round({"budget": 6, "swing": 4, "loss": 6})
    (steps,) = {plan.sizes["step"] for plan in facts}
    seconds = sum(one.attrs["seconds"] for one in facts)
    first = facts[0].attrs
    head = f"# {len(table)} runs of {steps} steps on {first['device']} ({first['instructions']}), {seconds:.0f} s of "
    head += f"stacks by the clock, {min(one.attrs['created'].split(';')[0] for one in facts)} and later, "
    head += f"torch {first['torch_version']}, numpy {first['numpy_version']}, code {fingerprints.code_digest()[:12]}\n"
    write_whole(root() / widths.PATH, head + table.to_csv(index=False))
    print(head, root() / widths.PATH)


if __name__ == "__main__":
    main()
