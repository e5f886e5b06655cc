"""Reads what an answer counts or measures: units, their powers, and plural nouns."""

import re
from collections.abc import Sequence

from sdpo_jax.mathematics import trees
from sdpo_jax.mathematics.tokens import Token

# A unit per line: the name that stands for it, then its other spellings.
_SPELLINGS = """
m meter metre
cm centimeter centimetre
mm millimeter millimetre
km kilometer kilometre
nm nanometer
in inch inches
ft foot feet
yd yard
mi mile
g gram gramme
kg kilogram
mg milligram
lb lbs pound
oz ounce
ton tonne
s sec second
min minute
h hr hour
ms millisecond
day
week
month
year yr
degree deg
radian rad
dollar usd
cent
euro eur
gbp
l liter litre L
ml milliliter millilitre mL
gal gallon
newton
joule
watt
volt
unit
bit
byte
hz hertz Hz
kJ kilojoule
kW kilowatt
kN kilonewton
Pa pascal
cup
tablespoon tbsp
teaspoon tsp
total
mol mole
acre
person people
child children
man men
woman women
mouse mice
goose geese
tooth teeth
fish
sheep
dice
"""
# Nouns that also count one: 1 apple.
_NOUNS = """
student apple marble coin ball book card page point way integer digit time step move
"""
_NAMES = [line.split() for line in _SPELLINGS.strip().splitlines()]
_NAMES += [[noun] for noun in _NOUNS.split()]
_UNITS = {
    spelling + plural: ((names[0], 1),)
    for names in _NAMES
    for spelling in names
    for plural in ("", "s")
} | {
    "mph": (("mi", 1), ("h", -1)),
    "kph": (("km", 1), ("h", -1)),
    "kmh": (("km", 1), ("h", -1)),
    "mpg": (("mi", 1), ("gal", -1)),
    "percent": (("%", 1),),
}
_TIGHT = frozenset("cm mm km kg mg ml mph kph ft lb hr min sec".split())
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_POWERED = {"squared": 2, "cubed": 3, "^2": 2, "^3": 3}
# Words that end like a plural, or stand before one, and change what the number means.
_NO_NOUNS = frozenset(
    """
and or not no nor of to the than then is are was were has does if but only more less
fewer least most over under above below about almost nearly around approximately exactly
times plus minus per mod modulo base half halve third quarter fourth fifth sixth seventh
eighth ninth tenth hundredth thousandth millionth hundred thousand million billion
trillion dozen ten twenty score pair couple triple double twice one two three four five
six seven eight nine zero percent percentage radian factorial square cube power log ln
sin cos tan north south east west wrong incorrect false true correct possible impossible
never unless except without with negative positive squared cubed infinite always perhaps
maybe either neither other else modulus versus remainder equal work fail eleven twelve
thirty forty fifty sixty seventy eighty ninety gross lakh crore quadrillion sine cosine
tangent exponent
""".split()
)
# Thirteen, and fractions: eleventh.
_NUMBER_WORD = re.compile(
    r"teen$"
    r"|(?:ten|seven|eleven|twelf|nin|eigh|fif|six|four|teen|tie|hundred|thousand|illion)"
    r"th$"
)
_LAST = re.compile(
    r"(?:^| )(?:in total|in all|long|wide|tall|high|deep|old|away|apart|each|total|left"
    r"|remaining|altogether)$"
)
_ORDINALS = {"1": "st", "2": "nd", "3": "rd"}
_MONEY = {"$": "dollar", "\\euro": "euro", "\\pounds": "gbp"}

# Name -> power, sorted: meters per second are (("m", 1), ("s", -1)); () for no unit.
Unit = tuple[tuple[str, int], ...]
PERCENT, RADIAN, DEGREE = ((("%", 1),), (("radian", 1),), (("degree", 1),))


def agree(a: Unit, b: Unit) -> bool:
    """Whether two units are one, or nouns of which one says more: red balls, balls."""
    if a == b:
        return True
    if len(a) != 1 or len(b) != 1 or a[0][1] != b[0][1]:
        return False
    first, second = sorted((a[0][0], b[0][0]), key=len)
    return second.endswith(f" {first}")


def fraction(tree: trees.Tree, unit: Unit) -> trees.Tree:
    """A value in percent as a fraction of one; any other value as it is."""
    return ("quotient", tree, trees.number("100")) if unit == PERCENT else tree


def without_unit(tokens: Sequence[Token]) -> tuple[list[Token], Unit]:
    """The tokens of a value and its unit; the unit is () where there is none."""
    tokens = list(tokens)
    texts = [token.text for token in tokens]
    sign = texts[:1].count("-")
    if currency := _MONEY.get("".join(texts[sign : sign + 1])):
        return _price(tokens[:sign] + tokens[sign + 1 :], currency)
    if texts[-1:] == ["%"]:
        return tokens[:-1], PERCENT
    for tail, unit in _TAILS:
        if len(texts) > len(tail) and texts[-len(tail) :] == tail:
            return tokens[: -len(tail)], unit
    if _is_ordinal(texts[-5:]):
        return tokens[: -1 if texts[-1] != "}" else -4], (("ordinal", 1),)
    for start in range(1, len(tokens)):
        if _may_start(*tokens[start - 1 : start + 2]):
            unit = _unit(tokens[start:])
            if unit:
                return tokens[:start], unit
    return tokens, ()


def _price(tokens: list[Token], currency: str) -> tuple[list[Token], Unit]:
    """The tokens of a sum of money, and its currency: by the hour, say."""
    paid = Token("letters", currency)
    for start in range(1, len(tokens)):
        unit = _unit([paid, *tokens[start:]])
        if tokens[start].text in ("per", "each", "total") and unit:
            return tokens[:start], unit
    return tokens, _unit([paid])


_CIRCLE = [["^", "\\circ"], ["^", "{", "\\circ", "}"], ["\\circ"]]
_TAILS = [(circle, DEGREE) for circle in _CIRCLE]
# Of temperature.
_TAILS += [([*circle, x], ((x, 1), ("degree", 1))) for circle in _CIRCLE for x in "CF"]


def _is_ordinal(texts: Sequence[str]) -> bool:
    """Whether a text ends as in 1st or 12^{th}."""
    match = re.fullmatch(
        r"(?:.* )?(\d+) (?:\^ \{ )?(st|nd|rd|th)(?: \})?", " ".join(texts)
    )
    if not match:
        return False
    is_teen = match[1][-2:-1] == "1"
    return match[2] == ("th" if is_teen else _ORDINALS.get(match[1][-1], "th"))


def _may_start(before: Token, token: Token, following: Token | None = None) -> bool:
    """Whether a unit can begin here: `5 m` in italics is a product, but not 5 m/s."""
    if token.kind != "letters" or before.text in ("^", "_", "/", "*", "+", "-"):
        return False
    if token.upright:
        return True
    if before.kind != "number":
        return len(token.text) > 2 and token.spaced
    is_rate = following is not None and following.text == "/"
    return token.text in _TIGHT or (token.spaced and (len(token.text) > 1 or is_rate))


def _unit(tokens: Sequence[Token]) -> Unit:
    """The unit that these tokens write, all of them; () if they do not."""
    text = " ".join(token.text for token in tokens)
    text = re.sub(r"\^ (?:\{ ([23]) \}|([23])(?!\S))", r"^\1\2", text).replace(" .", "")
    if not re.fullmatch(r"(?:[A-Za-z]+|\^[23]|/|\s)+", text):
        return ()
    # The unit of what: cups of flour, but not sets of ten. How it lies: feet long.
    if of := re.search(r"(?<=[a-z]s) of (?:[a-z]{3,} ?){1,2}$", text):
        if _NO_NOUNS.intersection(of[0].split()[1:]):
            return ()
        text = text[: of.start()]
    text = _LAST.sub("", text) or "total"
    above, *below = re.split(r" (?:per|/) ", text)
    if len(below) > 1:
        return ()
    found: dict[str, int] = {}
    for words, sign in ((above, 1), *((words, -1) for words in below)):
        names = _measured(words.split()) or _counted(words.split(), sign < 0)
        if not names:
            return ()
        for name, times in names.items():
            found[name] = found.get(name, 0) + sign * times
    return tuple(sorted(found.items()))


def _measured(words: Sequence[str]) -> dict[str, int]:
    """The powers of the units that words name, all of them; {} if they do not."""
    found, power, last = {}, 1, ""
    for word in words:
        names = _UNITS.get(word) or _UNITS.get(word.casefold() * (len(word) > 2))
        if word in _POWERS:
            power = _POWERS[word]
        elif word in _POWERED and last:
            found[last] *= _POWERED[word]
        elif names:
            last = names[0][0]
            for name, times in names:
                found[name] = found.get(name, 0) + power * times
            power = 1
        else:
            return {}
    return found if power == 1 else {}


def _counted(words: Sequence[str], is_one: bool) -> dict[str, int]:
    """The noun that words name, in the plural unless `is_one`, with its adjectives."""
    words = [word.casefold() for word in words]
    *adjectives, noun = words
    singular = _singular(noun)
    if len(words) > 3 or min(map(len, words)) < 3 or (singular == noun and not is_one):
        return {}
    # Ordered pairs are counted, where a pair alone may be of what is counted.
    allowed = {"pair", "triple"} if adjectives == ["ordered"] else set()
    named = {*words, *map(_singular, words), noun.removesuffix("s")} - allowed
    if named & _NO_NOUNS or any(map(_NUMBER_WORD.search, named)):
        return {}
    if any(word in _UNITS or not word.isalpha() for word in adjectives):
        return {}
    return {" ".join([*adjectives, singular]): 1}


def _singular(word: str) -> str:
    if word in _UNITS:
        return _UNITS[word][0][0]
    if word.endswith("ies"):
        return word[:-3] + "y"
    if re.search(r"(?:[sxz]|ch|sh)es$", word):
        return word[:-2]
    return word if re.search(r"(?:ss|us|is)$", word) else word.removesuffix("s")
