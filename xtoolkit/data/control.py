"""A control: records that are shown the pictures of other records, for what a model reaches without seeing."""

import random
from array import array

from xtoolkit.data.record import Record
from xtoolkit.data.shards import Shards
from xtoolkit.registry import ConfigError


class OtherPictures:
    """Which record's pictures each record of some sources is shown: no own one, and the same ones at every visit.

    All records of a source lie on one circle, in an order drawn once and for all. A record is shown the pictures of the next
    one on it that has no picture in common with it, by content: so every picture is shown about as often as without the
    control, and what a record is shown depends on no seed, batch, worker or rank.

    Args:
        sources: of a dataset.
        key: whose value asked for it.

    Raises:
        ConfigError: a source is remote, of which no record can be read at any place, or has fewer than two records.
    """

    def __init__(self, sources: list[Shards], key: str = "data.shuffle_pictures"):
        self._sources, self._next = sources, []
        for shards in sources:
            if shards.remote:
                raise ConfigError(f"{key}: {shards.files[0]} is remote, and a picture of any other shard would have to be "
                                  "fetched for each of its records: copy the shards to a disk")
            if len(shards) < 2:
                raise ConfigError(f"{key}: {shards.files[0]} has one record, and no other has a picture for it")
            circle = list(range(len(shards)))
            random.Random(0).shuffle(circle)
            following = array("q", circle)
            for one, after in zip(circle, circle[1:] + circle[:1]):
                following[one] = after
            self._next.append(following)

    def __call__(self, source: int, sample: int, of: int = 1) -> Record:
        """The record whose first ``of`` pictures a record is shown. Raises BadSample where all have the record's own."""
        shards, following = self._sources[source], self._next[source]
        record = Record(shards, sample)
        pictures = lambda one: {one.picture(place, of)[0] for place in range(of)}
        own, other = pictures(record), following[sample]
        while other != sample:
            found = Record(shards, other)
            if not own & pictures(found):
                return found
            other = following[other]
        raise record.bad("missing picture", "shuffle_pictures: no other record has another picture")
