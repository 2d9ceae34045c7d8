"""Contrasts of a table: what its YAML may ask, what it answers with any of its cells there, and how often it answers wrongly."""

import pytest
import toy_table
from xtoolkit.ablation.table import read
from xtoolkit.registry import ConfigError

TABLE = """
output: FOLDER/out
seeds: [1, 2, 3]
recipe: long.yaml
columns:
  Plain:   {groups: [words]}
  Begun:   {set: [train.steps=2]}
  Further: {set: [train.steps=3]}
  Again:   {set: [train.steps=3], apart: 50}
rows:
  Short:  {recipe: long.yaml, metrics: {told: test.accuracy, other: test.other}, group: words}
  Longer: {recipe: long.yaml, metrics: {told: test.accuracy}, group: words, set: [evaluate.test.tokens=9]}
  Long:   {recipe: long.yaml, metrics: {told: test.accuracy}, group: sentences, set: [evaluate.test.tokens=13]}
reference: Further
contrasts:
  words: {groups: [words], better: Further, than: Plain}
  both:  {groups: [words, sentences], better: Further, than: Begun}
  more:  {groups: [sentences], better: Further, than: Begun, beyond: [Again, Begun], role: secondary}
  same:  {groups: [words], better: Further, than: Again, role: negative control}
  sure:  {groups: [words], better: Further, than: Begun, role: positive control}
"""


@pytest.fixture
def folder(tmp_path):
    toy_table.write(tmp_path)
    (tmp_path / "table.yaml").write_text(TABLE.replace("FOLDER", str(tmp_path)))
    return tmp_path


@pytest.mark.parametrize("change, line, said", [
    (("better: Further, than: Plain", "better: Futher, than: Plain"), 16, "no column `Futher`; did you mean `Further`?"),
    (("better: Further, than: Plain", "better: Further, than: Pain"), 16, "no column `Pain`; did you mean `Plain`?"),
    (("groups: [words], better: Further, than: Plain", "groups: [wrods], better: Further, than: Plain"), 16,
     "no row is of group `wrods`; did you mean `words`?"),
    (("words: {groups: [words]", "words: {groups: [words, sentences]"), 16,
     "no row of group `sentences` applies to column `Plain`, whose groups are words"),
    (("words: {groups: [words]", "words: {groups: []"), 16, "`groups` are empty: name those whose means are held, of sentences, words"),
    (("better: Further, than: Plain", "better: Further, than: Further"), 16, "`Further` is held against itself: name another column"),
    (("beyond: [Again, Begun]", "beyond: [Again]"), 18, "`beyond` must be two columns, [A, B] for A - B, not 1"),
    (("beyond: [Again, Begun]", "beyond: [Agin, Begun]"), 18, "no column `Agin`; did you mean `Again`?"),
    (("role: negative", "role: negativ"), 19, "`contrasts.same.role` of Table must be one of primary, secondary, negative control, positive control"),
    (("reference: Further", "reference: Furter"), 14, "no column `Furter`; did you mean `Further`?"),
    (("apart: 50", "apart: 1"), 9, "`Again` would draw as other columns with seed 2: choose an `apart` above 2"),
    (("{set: [train.steps=3], apart", "{run: out, apart"), 9, "a run is taken as it is: leave out its recipe, set and apart"),
])
def test_mistakes(folder, change, line, said):
    path = folder / "table.yaml"
    assert path.read_text().count(change[0]) == 1
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(ConfigError) as caught:
        read(str(path))
    assert said in str(caught.value) and f"{path}:{line}:" in str(caught.value)
