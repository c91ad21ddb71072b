"""Make the small simulated files of this folder: SPXRAW as SAS7BDAT (haven), DEMO and BMX as XPORT.

Run in this folder: python make_sas7bdat.py. Needs Rscript with the package haven.
"""

import subprocess
import tempfile
from pathlib import Path

from spiro_diffusion import simulate_blows, simulate_people, write_nhanes

here = Path(__file__).parent
people = simulate_people(12, seed=12)
write_nhanes(here, people=people, seed=12, tables=("DEMO", "BMX"))
with tempfile.TemporaryDirectory() as folder:
    table = Path(folder) / "SPXRAW_G_simulated.csv"
    blows = simulate_blows(people, seed=12)
    blows[blows["SPXPTS"] < 900].to_csv(table, index=False)  # short ones, to keep the file small
    subprocess.run(
        [
            "Rscript",
            str(here / "make_sas7bdat.R"),
            str(table),
            str(here / "SPXRAW_G_simulated.sas7bdat"),
        ],
        check=True,
    )
