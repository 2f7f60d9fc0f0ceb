"""name -> Row, one file each."""

from importlib import import_module

from offrl_ray.algos import VARIANTS
from tests.rows.kinds import Row

ROWS: dict[str, Row] = {name: import_module(f"tests.rows.{name}").ROW for name in VARIANTS}
