"""What all commands share: how they are called, how they answer mistakes, how they end."""

import argparse
import functools
import os
import select
import sys

from xtoolkit.engine.environment import keep_few_shapes, share_processors
from xtoolkit.registry import ConfigError, nearest

HINT = "xfm/tiny.yaml runs as it is, its data come with the toolkit: xtoolkit train --config xfm/tiny.yaml"


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """The parser of ``xtoolkit NAME``."""
    return Parser(prog=f"xtoolkit {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def whole(word: str) -> int:
    """The type of an option that is a number of 0 or more."""
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number of 0 or more")
    return int(word)


def positive(word: str) -> int:
    """The type of an option that is a number above 0."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number above 0")
    return int(word)


class Once(argparse.Action):
    """An option that may be given once: the last of several would win without a word."""

    def __call__(self, parser, namespace, value, option_string=None):
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string}: given twice, {getattr(namespace, self.dest)} and {value}: name one")
        setattr(namespace, self.dest, value)


class Parser(argparse.ArgumentParser):
    """Says of an unknown option which one is near."""

    def parse_args(self, args=None, namespace=None):
        found, strange = self.parse_known_args(args, namespace)
        if strange:
            self.error(self.unknown(strange))
        return found

    def unknown(self, strange: list[str]) -> str:
        """What is said of arguments that are none."""
        known = [name for action in self._actions for name in action.option_strings]
        near = [nearest(one.partition("=")[0], known) for one in strange if one.startswith("--")]
        return f"unrecognized arguments: {' '.join(strange)}" + next((one for one in near if "did you mean" in one), "")


class RecipeParser(Parser):
    """Says of a recipe without ``--config``, and of a key with dashes, how they are written."""

    def parse_intermixed_args(self, args=None, namespace=None):
        found, strange = self.parse_known_intermixed_args(args, namespace)
        if strange:
            key = next((one.lstrip("-") for one in strange if "=" in one), "train.steps=100")
            self.error(f"{self.unknown(strange)}; a key of the recipe is changed without dashes: {key}")
        if found.config is None:
            from xtoolkit.recipe.folder import CONFIG  # only here: it imports yaml, which --help does without

            given = next((one for one in found.overrides if "=" not in one), None)
            name = given and (os.path.join(given, CONFIG) if os.path.isdir(given) else given)  # of a run, that in its folder
            self.error(f"{given}: name the recipe with --config {name}" if given else
                       "--config: name a recipe, a file or one of `xtoolkit list recipes`")
        return found


def recipe_parser(name: str, description: str) -> argparse.ArgumentParser:
    """The parser of a command on a recipe: ``--config`` and overrides. Read with ``parse_intermixed_args``."""
    found = RecipeParser(prog=f"xtoolkit {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--config", metavar="F", action=Once,
                       help="the recipe (YAML): a file, or one of `xtoolkit list recipes`")
    found.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe, e.g. train.steps=100")
    return found


def command(main):
    """Decorates ``main(argv) -> exit code``: 0 all done, 1 stopped on the way, 2 mistakes of the caller.

    A ConfigError is answered with all its lines. A reader that has gone (``| head``) ends a command without a word.
    """
    @functools.wraps(main)
    def run(argv=None) -> int:
        share_processors()
        keep_few_shapes()
        try:
            try:
                return main(argv)
            finally:
                sys.stdout.flush()  # here, where a reader that has gone can still be answered
        except ConfigError as e:
            return answer(e)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:
            if not _reader_has_gone():
                raise  # another pipe than the output's
            # What is still buffered goes nowhere, so that Python does not complain at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
    return run


def _reader_has_gone() -> bool:
    output = select.poll()
    output.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in output.poll(0))


def answer(error: ConfigError) -> int:
    """Prints every mistake, under torchrun once a machine; returns the exit code for them."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return 2
    from xtoolkit.recipe.checks import FilesMissing

    count = len(error.problems)
    print(f"{count} problem{'s' * (count > 1)}, nothing was started", file=sys.stderr)
    print("\n".join(f"  {p}" for p in error.problems), file=sys.stderr)
    if error.hint or isinstance(error, FilesMissing):
        print(error.hint or HINT, file=sys.stderr)
    return 2
