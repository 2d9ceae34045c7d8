"""Which columns of a table would draw alike, seed by seed, that should differ by chance."""


def alike(table, where=lambda *place: "--seeds") -> list[str]:
    """Columns with an ``apart`` that would draw as a seed of other columns, or of a column of the same recipe with another."""
    found, width = [], max(table.seeds, default=0) - min(table.seeds, default=0)
    held = [(name, one, {seed + one.apart for seed in table.seeds}) for name, one in table.columns.items() if one.apart]
    for number, (name, one, drawn) in enumerate(held):
        at = where("columns", name, "apart")
        found += [f"{at}: `{name}` would draw as other columns with seed {seed}: choose an `apart` above {width}"
                  for seed in sorted(drawn & {*table.seeds})]
        recipe = lambda column: (column.recipe or table.recipe, table.overrides(column))
        found += [f"{at}: `{name}` would draw as `{other}`, which has the same recipe, with seed {min(drawn & seeds)}: choose an "
                  f"`apart` that is more than {width} from {two.apart}"
                  for other, two, seeds in held[:number] if drawn & seeds and recipe(one) == recipe(two)]
    return found
