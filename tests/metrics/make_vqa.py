"""Writes ``cases/vqa.json``: `python tests/metrics/make_vqa.py`.

The expected values are those of the functions below, a second implementation of the published rules, written apart from
``xtoolkit.metrics.vqa`` and as the rules are told: mark by mark, annotator by annotator, the table of contractions entry by
entry. The cases marked ``by hand`` have values that a person worked out; the script holds its functions against them.
"""

import json
import random
from pathlib import Path

MARKS = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
           "eight": "8", "nine": "9", "ten": "10"}
CONTRACTED = dict(pair.split(">") for pair in """
aint>ain't arent>aren't cant>can't couldve>could've couldnt>couldn't couldn'tve>couldn't've couldnt've>couldn't've didnt>didn't
doesnt>doesn't dont>don't hadnt>hadn't hadnt've>hadn't've hadn'tve>hadn't've hasnt>hasn't havent>haven't hed>he'd
hed've>he'd've he'dve>he'd've hes>he's howd>how'd howll>how'll hows>how's isnt>isn't itd>it'd itd've>it'd've it'dve>it'd've
itll>it'll maam>ma'am mightnt>mightn't mightnt've>mightn't've mightn'tve>mightn't've mightve>might've mustnt>mustn't
mustve>must've neednt>needn't notve>not've oclock>o'clock oughtnt>oughtn't ow's'at>'ow's'at 'ows'at>'ow's'at 'ow'sat>'ow's'at
shant>shan't shed've>she'd've she'dve>she'd've shouldve>should've shouldnt>shouldn't shouldnt've>shouldn't've
shouldn'tve>shouldn't've somebody'd>somebodyd somebodyd've>somebody'd've somebody'dve>somebody'd've somebodyll>somebody'll
somebodys>somebody's someoned>someone'd someoned've>someone'd've someone'dve>someone'd've someonell>someone'll
someones>someone's somethingd>something'd somethingd've>something'd've something'dve>something'd've somethingll>something'll
thats>that's thered>there'd thered've>there'd've there'dve>there'd've therere>there're theres>there's theyd>they'd
theyd've>they'd've they'dve>they'd've theyll>they'll theyre>they're theyve>they've twas>'twas wasnt>wasn't wed've>we'd've
we'dve>we'd've weve>we've werent>weren't whatll>what'll whatre>what're whats>what's whatve>what've whens>when's
whered>where'd wheres>where's whereve>where've whod>who'd whod've>who'd've who'dve>who'd've wholl>who'll whos>who's
whove>who've whyll>why'll whyre>why're whys>why's wont>won't wouldve>would've wouldnt>wouldn't wouldnt've>wouldn't've
wouldn'tve>wouldn't've yall>y'all yall'll>y'all'll y'allll>y'all'll yall'd've>y'all'd've y'alld've>y'all'd've
y'all'dve>y'all'd've youd>you'd youd've>you'd've you'dve>you'd've youll>you'll youre>you're youve>you've""".split())


def normalised(text: str) -> str:
    made = text
    for mark in MARKS:
        triples = zip(text, text[1:], text[2:])
        if mark + " " in text or " " + mark in text or any(a.isdecimal() and b == "," and c.isdecimal() for a, b, c in triples):
            made = made.replace(mark, "")
        else:
            made = made.replace(mark, " ")
    kept, left = "", 32
    for place, letter in enumerate(made):
        goes = letter == "." and not made[place + 1:place + 2].isdecimal() and left > 0
        left -= goes
        kept += "" if goes else letter
    words = []
    for word in kept.lower().split():
        word = NUMBERS[word] if word in NUMBERS else word
        if word not in ("a", "an", "the"):
            words.append(CONTRACTED[word] if word in CONTRACTED else word)
    return " ".join(words)


def scored(answer: str, annotations: list[str], always: bool) -> float:
    clean = lambda text: text.replace("\n", " ").replace("\t", " ").strip()
    given, answer = [clean(one) for one in annotations], clean(answer)
    if always or any(one != given[0] for one in given):
        given, answer = [normalised(one) for one in given], normalised(answer)
    shares = []
    for out in range(len(given)):
        others = given[:out] + given[out + 1:]
        if not others:
            return float(given[0] == answer)
        shares.append(min(1, sum(one == answer for one in others) / min(3, len(others))))
    return sum(shares) / len(shares)


BY_HAND = [  # answer, annotations, always, accuracy
    ("yes", ["yes"] * 10, False, 1.0), ("no", ["yes"] * 10, False, 0.0),
    ("no", ["yes"] * 9 + ["no"], False, 0.3), ("no", ["yes"] * 8 + ["no"] * 2, False, 0.6),     # 9 x 1/3, 8 x 2/3 + 2 x 1/3
    ("no", ["yes"] * 7 + ["no"] * 3, False, 0.9), ("no", ["yes"] * 6 + ["no"] * 4, False, 1.0),  # 7 x 1 + 3 x 2/3
    ("Yes", ["yes"] * 10, False, 0.0), ("Yes", ["yes"] * 10, True, 1.0),                         # agreed: compared as they are
    ("Yes", ["yes"] * 9 + ["no"], False, 1.0),
    ("the dog", ["dog"] * 5 + ["a dog"] * 5, False, 1.0), ("dog", ["the dog"] * 10, False, 0.0),
    ("none", ["0"] * 4 + ["2"] * 6, False, 1.0), ("zero", ["none"] * 10, False, 0.0), ("0", ["none"] * 10, True, 1.0),
    ("1,000", ["1000"] * 5 + ["1,000"] * 5, False, 1.0), ("two-story", ["2 story"] * 4 + ["house"] * 6, False, 1.0),
    ("dont know", ["don't know"] * 4 + ["red"] * 6, False, 1.0), ("a", ["the"] * 4 + ["red"] * 6, False, 1.0),  # both empty
    ("", ["yes"] * 10, False, 0.0), ("red\n", ["red"] * 10, False, 1.0), ("\tred", ["red"] * 10, False, 1.0),
    ("red", ["red", "red", "blue"], False, 2 / 3), ("red", ["red", "blue"], False, 0.5), ("red", ["red"], False, 1.0),  # few
    ("red", ["red", "red", "red", "red"], False, 1.0), ("red", ["red", "red", "red", "blue"], False, 0.75),
    ("a red", ["red"], True, 1.0),
]
TEXTS = ["1,000", "1, 000", "1,000-2", "a 1,5,b", "3.5", "3.", ".5", "5. the", "no. 5", "a.b.c", "...", "." * 40, "u.s.a.",
         "10:30", "o'clock", "10 oclock", "t-shirt", "t - shirt", "t -shirt", "red/blue", "red / blue", "(red)", "red (ish)", "\"stop\"",
         "what?", "what ?", "a_b", "<no>", "a@b", "50%", "$5", "none", "None", "NONE of the above", "zero", "ten", "eleven",
         "twenty two", "one hundred", "The", "an apple a day", "a", "the the", "", " ", "-", "isnt", "ISNT", "Ive", "let's",
         "lets", "she's", "shes", "somebody'd", "somebodyd", "yall'd've", "yalldve", "'ow'sat", "couldn'tve", "don't", "cant;wont",
         "rock-n-roll", "é", "naïve café", "１,０００", "five,six", "a,", ",a", "5,", "5,b", "tab\there", "two  spaces", "`x`", "[1]",
         "{a}", "x=y", "x+y", "back\\slash", "can`t", "no!", "!no", "none.", "one.", "the.", "a-the-an", "isnt."]
WORDS = ["red", "Red", "the red", "red.", "2", "two", "none", "0", "a dog", "dog", "dogs", "isnt", "isn't", "1,000", "1000",
         "t-shirt", "t shirt", "", "yes", "no"]


def main():
    for answer, annotations, always, expected in BY_HAND:
        assert abs(scored(answer, annotations, always) - expected) < 1e-12, (answer, annotations, always)
    draw, keys = random.Random(0), ("answer", "annotations", "always", "accuracy")
    cases = [dict(zip(keys, case)) | {"by": "hand"} for case in BY_HAND]
    cases += [{"text": text, "normalised": normalised(text)} for text in TEXTS]
    for number in range(80):
        few = draw.sample(WORDS, draw.randint(1, 4))
        given = draw.choices(few, k=10 if number % 4 else draw.randint(1, 12))
        answer, always = draw.choice(few + WORDS), number % 5 == 0
        cases.append({"answer": answer, "annotations": given, "always": always, "accuracy": scored(answer, given, always)})
    said = ("tests/metrics/make_vqa.py: a second implementation of VQA v2's published rules "
            "(https://visualqa.org/evaluation.html; Goyal et al. 2017); cases `by hand` are worked out by hand; "
            "drawn by Python's random, seed 0")
    path = Path(__file__).parent / "cases/vqa.json"
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    path.write_text(f'{{"provenance": {json.dumps(said)}, "cases": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
