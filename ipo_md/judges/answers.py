r"""Reads the text of a language model that was asked for '1' or '2'.

The rule, in this order:

1. Reasoning is cut: blocks such as <think> ... </think>, all before a closing
   tag that was never opened, and all after an opening tag that is not closed.
2. Characters are normalised (NFKC, so a full-width 2 is a 2), and markup,
   quotes and brackets are dropped. 'Summary 2', 'option #2', 'the second one'
   and '2nd' are the name 2. Part of a number (12, 1.5, 1/2, v1, -1), a number
   of things ('the 2 summaries', '2 errors') and questions name nothing.
3. A stated answer counts ('Answer: 1', '\boxed{1}', '{"winner": 1}', 'The
   better summary is 1'), the last one if there are several. One with 'not',
   'if' or the like before it in its sentence is none.
4. A leading answer counts: a name that opens the text and is followed by the
   end of the line, punctuation or a reason. It does not count if another name
   is joined to it ('1 or 2'), if it numbers a step ('1. Read both'), or if all
   else that is said is for the other.
5. A closing answer counts: a last line, or a conclusion, that is a name alone.
6. Claims count if all of them agree: '1 is better than 2', 'I prefer 1', '1
   over 2', '1 > 2', '1 is more accurate', '2 is worse than 1', '2 is not as
   good as 1'. A claim with 'not', 'if' or the like before it is none.
7. If one name alone is left, it counts if all other words are of the kind 'I
   think it is', so that nothing is said but the name.

Everything else is neither 1 nor 2. A text that was cut off counts by a stated
or leading answer or a finished claim.
"""

import dataclasses
import re
from typing import Literal
import unicodedata

_TAG = re.compile(
  r'[<\[◁](?P<close>/?)(?:\w{1,20}:)?(?:think|thinking|thoughts?|reasoning|'
  r'reflection|analysis|scratchpad)\s?[>\]▷]'
  r'|<\|channel\|>\s?(?:(?P<final>final)(?:<\|message\|>)?|\w+)',
  re.I,
)
_LONGEST = 4_000  # characters at either end of a text that are read

_NOUN = (
  r'(?:summary|response|completion|answer|option|text|candidate|choice|output|'
  r'version|number|assistant|model|translation|reply|article|no\.)'
)
# A number of its own, and not in 12, 1.5, 1/2, v1, -1 or 1st.
_NUMBER = r'(?<![\w.,/⁄-])([12])(?![\w/⁄%]|[.,]\d)'
_THINGS = (
  r'(?:summaries|replies|responses|completions|answers|options|texts|'
  r'candidates|choices|outputs|versions|articles|words?|sentences?|points?|'
  r'reasons?|errors?|mistakes?|lines?|paragraphs?|stars?|facts?|details?)'
)
_COUNTS = re.compile(
  rf'\b(?:(?:of|out of|all of|both of|either of|neither of|from)\s+)?'
  rf'(?:the|these|those|both|all|any|my|your)\s+[12]\b(?!\s+(?:is|was|wins)\b)'
  rf'|(?<![\w.,/-])[12]\s+(?:\w+\s+)?{_THINGS}\b'
  rf'|(?<![\w.,/-])[12]\s+out\s+of\b|\bout\s+of\s+[12]\b'
)
_ORDINALS = (('first|1st', '1'), ('second|2nd', '2'))
_WORDS = {'one': '1', 'two': '2', '#1': '1', '#2': '2'}

_IS = r'(?:is|was|are|seems|looks|would\s+be|appears\s+to\s+be)'
_VERY = (
  r'(?:(?:\w+ly|much|far|by\s+far|a\s+(?:bit|little|lot)|the|also|still|even|'
  r'my|somewhat)\s+)*'
)
# Not 'better written' or 'better in style'.
_GOOD = (
  r'(?:(?:better|best|superior)(?!\s+(?:in|at|on|for|by|\w+ed|written)\b)|'
  r'preferable|preferred|the\s+winner|winner)\b'
)
_STATED = re.compile(
  r'(?:\b(?:answer|verdict|winner|choice|preference|decision|pick|selection|'
  r'judge?ment|conclusion|result|preferred|better|best)'
  rf'(?:[ _](?:one|is|{_NOUN}|of\s+the\s+two))*\s*(?:[:=]|->|→|-|\bis\b)+\s*'
  r'(?:that\s+|would\s+be\s+)?|\\boxed\s*|\[\[\s*)<([12])>'
  r'(?!\s*(?:,|and|or|&|/|nor)\s*<)'
)
_VIRTUES = (
  r'(?:accurate|concise|complete|faithful|informative|clear|coherent|relevant|'
  r'comprehensive|precise|specific|detailed|thorough|readable|useful|helpful|'
  r'correct|fluent|natural|consistent|factual|succinct|convincing|truthful)'
)
_CLAIMS = tuple(
  (re.compile(pattern), wins)
  for pattern, wins in (
    (rf'<([12])>\s+{_IS}\s+{_VERY}{_GOOD}', True),
    (r'<([12])>\s+(?:clearly\s+|easily\s+)?(?:wins|beats|outperforms)\b', True),
    (r'<([12])>\s+(?:clearly\s+|easily\s+)?(?:loses|lost)\b', False),
    (rf'<([12])>\s+{_IS}\s+{_VERY}more\s+{_VIRTUES}\b', True),
    (rf'<([12])>\s+{_IS}\s+{_VERY}less\s+{_VIRTUES}\b', False),
    (
      r'\b(?:prefer|choose|chose|pick|select|favou?r|recommend|go\s+with|'
      r'vote\s+for)\s+<([12])>(?!\s*(?:,|and|or|&)\s*<)',
      True,
    ),
    (r'<([12])>\s*(?:over|rather\s+than|instead\s+of|,?\s*not)\s+<', True),
    (r'<([12])>\s*(?:[>≻])+\s*<', True),
    (r'<([12])>\s*(?:[<≺])+\s*<', False),
    (
      rf'<([12])>\s+{_IS}\s+{_VERY}(?:worse|inferior|weaker)\s+(?:than|to)\s+<',
      False,
    ),
    (rf"<([12])>\s+(?:{_IS}\s+not|isn't)\s+(?:as|so)\s+\w+\s+as\s+<", False),
    (
      r"\bnot\s+<([12])>[,;]?\s+(?:but|rather|it\s+is|it's)\s+(?:rather\s+)?<",
      False,
    ),
  )
)
_DENIAL = re.compile(
  r'\b(?:not|cannot|never|neither|no|nor|none|unable|whether|if|unless|hardly|'
  r"doubt|hard|unclear|were)\b|n't\b"
)
# All words that may stand beside a lone name.
_PLAIN_WORDS = """
  a an and answer answers assistant believe best better candidate certainly
  choice choose chose chosen clearly completion completions decision
  definitely easily feel final finally for go going guess here i i'd i'll i'm
  is it it's judge like me model my number obviously of ok okay one option
  options output outputs overall pick picked please prefer preference
  preferred probably reply response responses result say select selected
  simply so summaries summary sure surely superior text texts than that that's
  the then therefore think this thus to translation version vote well will
  winner wins with would yes 答案
"""
_PLAIN = frozenset(_PLAIN_WORDS.split())
# Steps of a plan, which are numbered like answers.
_STEP = re.compile(
  r'(?:read|compare|look|consider|check|identify|analy[sz]e|note|summari[sz]e|'
  r'evaluate|determine|review|understand|assess|examine|first)\b'
)
_REASON = r'because|since|as|due|for|with|which|it|over|rather|instead|not'


@dataclasses.dataclass(frozen=True)
class Reading:
  """What a text answers.

  Attributes:
    name: '1' or '2', the better one.
    place: Which mention of the name is the answer: the first of all mentions,
      the last of its own, or None if it follows from a comparison.
  """

  name: str
  place: Literal['first', 'last'] | None


def read(text: str, *, whole: bool = True) -> Reading | None:
  """Reads an answer by the rule of this module.

    read('2\n\n1. It is shorter.').name  # '2'
    read('Neither of the 2 is good.')    # None

  Args:
    text: The text.
    whole: Whether the text ends where the model ended it.
  """
  marked = _marked(without_reasoning(text))
  names = _names(marked)
  if not names:
    return None
  first = names[0]
  if stated := _stated(marked):
    return Reading(stated[-1], 'last')
  leading, closing = _leading(marked), _closing(marked) if whole else None
  claimed = _claimed(marked)
  if leading is not None and closing in (None, leading):
    against = len(claimed) == 1 and leading not in claimed
    return None if against else Reading(leading, 'first')
  if closing is not None:
    return None if leading is not None else Reading(closing, 'last')
  if len(claimed) == 1:
    (name,) = claimed
    return Reading(name, 'first' if name == first else None)
  words = re.findall(r"[^\W\d_][\w']*", re.sub('<[12]>', ' ', marked))
  if whole and not claimed and len({*names}) == 1 and _PLAIN.issuperset(words):
    return Reading(first, 'first')
  return None


def without_reasoning(text: str) -> str:
  """Returns the text without what a model thought before it answered."""
  shown, start, depth = [], 0, 0
  for tag in _TAG.finditer(text):
    if tag['close'] or tag['final']:
      if depth == 0 or tag['final']:
        shown = []  # The tag that opened it is part of the prompt.
      depth = 0 if tag['final'] else max(0, depth - 1)
    else:
      if depth == 0:
        shown.append(text[start : tag.start()])
      depth += 1
    start = tag.end()
  return ' '.join(shown if depth else [*shown, text[start:]])


def bare(token: str) -> str:
  """Returns the letters and digits of a token, normalised."""
  return re.sub(r'[\W_]', '', unicodedata.normalize('NFKC', token))


def _marked(text: str) -> str:
  """Returns the text in lower case, with <1> and <2> where it names one."""
  if len(text) > 2 * _LONGEST:
    text = f'{text[:_LONGEST]}\n{text[-_LONGEST:]}'
  text = unicodedata.normalize('NFKC', text).lower().replace('’', "'")
  text = re.sub(r'<\s*(?:answer|verdict|winner)\s*>', ' answer: ', text)
  text = re.sub(r'</?[a-z|][\w|/]*>', ' ', text)
  text = re.sub(r'\\boxed|\[\[', ' answer: ', text)
  text = re.sub(r"(?<!\w)'|'(?!\w)|[*_`~\"“”„«»$\\(){}\[\]【】「」]", ' ', text)
  sentences = re.split(r'(?<=[.!?\n])', text)
  text = ''.join(x for x in sentences if not x.endswith('?'))
  alone = text.strip(' \n.!:')
  if alone in _WORDS:
    return f'<{_WORDS[alone]}>'
  for word, number in _ORDINALS:
    text = re.sub(
      rf'\b(?:the\s+)?(?:{word})(?:\s+(?:one|{_NOUN}))\b', f' {number} ', text
    )
    text = re.sub(
      rf'(?:^|\bthe\s+)(?:{word})(?=\s*(?:$|[.!,;]\s*$|is\b|was\b|wins\b))',
      f' {number} ',
      text,
    )
  for word, number in (('one', '1'), ('two', '2')):
    text = re.sub(rf'\b({_NOUN})\s+{word}\b', rf'\1 {number}', text)
  # A colon after 'answer' or 'choice' states an answer instead.
  text = re.sub(rf'\b(?:the\s+)?{_NOUN}\s*(?:#|-)?\s*{_NUMBER}', r' \1', text)
  text = _COUNTS.sub(' ', re.sub(r'\bvs\b\.?|\bversus\b', ' or ', text))
  text = re.sub(r'#\s*(?=[12])', ' ', text)
  return re.sub(_NUMBER, r'<\1>', text)


def _stated(marked: str) -> list[str]:
  """Returns the answers that are stated without a condition or a denial."""
  found = []
  for match in _STATED.finditer(marked):
    before = re.split(r'[.;!\n{]', marked[: match.start()])[-1]
    if not _DENIAL.search(before) and not re.search(
      r'\b(?:less|worse)\b', before
    ):
      found.append(match[1])
  return found


def _leading(marked: str) -> str | None:
  """Returns the name that opens the text as an answer of its own."""
  start = re.match(r'[\W_]*?<([12])>', marked)
  if start is None:
    return None
  name, rest = start[1], marked[start.end() :]
  if not re.search('[a-z]', marked) and len({*_names(marked)}) > 1:
    return None
  if re.match(r'[.)]\s*\S', rest) and re.search(
    rf'\n\s*<{_other(name)}>[.): ]+\S', rest
  ):
    return None  # a list of remarks about both
  line = rest.split('\n', 1)[0].strip()
  if _STEP.match(line.lstrip('.): ')):
    return None
  if not line or re.match(rf'(?:{_REASON})\b', line):
    return name
  if re.match(r'[,;/&+=|]*\s*<|-\s*<[12]>\W*$|[=<>]', line):
    return None
  return name if re.match(r'[.,:;!)—–-]', line) else None


def _closing(marked: str) -> str | None:
  """Returns the name that the last line or the conclusion consists of."""
  line = marked.strip().rsplit('\n', 1)[-1]
  if echo := re.search(
    r'<[12]>\s*(?:and|or)\s*<[12]>\s*:\s*<([12])>\W*$', line
  ):
    return echo[1]
  found = re.fullmatch(r'\W*<([12])>\W*', line) or re.search(
    r'(?:(?:^|[.!;]\s)\s*|(?:^|,\s*|[.!;]\s*)(?:so|therefore|thus|hence|overall|'
    r'finally|in conclusion)\b[,:]?\s*)'
    r'<([12])>[\s.!]*$',
    line,
  )
  if found is None or re.search(r'<[12]>\W*<[12]>\W*$', marked):
    return None
  return found[1]


def _claimed(marked: str) -> set[str]:
  """Returns the names that some claim is for."""
  found = set()
  for pattern, wins in _CLAIMS:
    for match in pattern.finditer(marked):
      before = re.split(r'[.;:!\n,]|\bbut\b', marked[: match.start()])[-1]
      if not _DENIAL.search(before):
        found.add(match[1] if wins else _other(match[1]))
  return found


def _names(marked: str) -> list[str]:
  return re.findall('<([12])>', marked)


def _other(name: str) -> str:
  return '2' if name == '1' else '1'
